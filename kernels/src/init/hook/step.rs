//! A step: handed to the job's container, which sends back what it prints and its exit code.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use gate_report::wire::ContainerState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::input::StepArgs;
use super::words::words;
use super::{Hook, Refusals, next, send};
use crate::job::frames::{Frame, Frames};
use crate::job::request::{Request, Run};

/// How long it is asked for why the container has gone: Kubernetes needs a moment to know it.
const WHY: Duration = Duration::from_secs(10);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);

impl Hook {
    /// Runs a step, and returns its own exit code.
    pub(super) fn step(&self, args: StepArgs) -> Result<u8, Refusals> {
        let request = request(args)?;
        let stream = UnixStream::connect(&self.socket).map_err(|error| {
            self.gone(&format!("The job's container cannot be reached: {error}."))
        })?;
        match follow(stream, &request)? {
            Ok(Some(Frame::Exit(code))) => Ok(code),
            Ok(Some(Frame::Failed(sentence))) => Err(vec![sentence]),
            Ok(_) => Err(self.gone("The job's container ended while the step ran.")),
            Err(error) => Err(self.gone(&format!(
                "The job's container was lost while the step ran: {error}."
            ))),
        }
    }

    /// What happened, and Kubernetes' words for why.
    fn gone(&self, what: &str) -> Refusals {
        let deadline = Instant::now() + WHY;
        let asked = || {
            let ticket = self.ticket().ok()?;
            let registrar = self.registrar().ok()?;
            registrar.job_container_state(&ticket, deadline).ok()
        };
        while Instant::now() < deadline {
            match asked().map(|state| state.container) {
                Some(ContainerState::Failed { reason, message }) => {
                    return vec![format!("{what} {reason}: {message}")];
                }
                Some(_) => thread::sleep(PAUSE),
                None => break,
            }
        }
        vec![what.into()]
    }
}

fn request(args: StepArgs) -> Result<Request, Refusals> {
    let arguments = words(&args.entry_point_args.join(" "))
        .ok_or_else(|| vec!["A quote in the step's command line is not closed.".into()])?;
    Ok(Request::Run(Run {
        argv: [vec![args.entry_point], arguments].concat(),
        env: args.environment_variables,
        cwd: args.working_directory,
        path: args.prepend_path,
    }))
}

/// Prints what the step prints, and hands signals to it. The last frame; `None` where there is none.
fn follow(
    mut stream: UnixStream,
    request: &Request,
) -> Result<io::Result<Option<Frame>>, Refusals> {
    // Before the step begins: a signal is for the step from then on.
    let handed_on = stream.try_clone().and_then(hand_on_signals);
    handed_on.map_err(|error| vec![format!("Signals could not be taken over: {error}.")])?;
    send(&mut stream, request).map_err(|sentence| vec![sentence])?;
    let mut frames = Frames::default();
    Ok(loop {
        let printed = match next(&mut stream, &mut frames) {
            Ok(Some(Frame::Stdout(bytes))) => print(&mut io::stdout().lock(), &bytes),
            Ok(Some(Frame::Stderr(bytes))) => print(&mut io::stderr().lock(), &bytes),
            last => break last,
        };
        if let Err(error) = printed {
            break Err(error);
        }
    })
}

fn hand_on_signals(mut to_the_step: UnixStream) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            let signal = u8::try_from(signal).unwrap_or_default();
            // A step that has ended needs none.
            let _ = to_the_step.write_all(&Frame::Signal(signal).bytes());
        }
    });
    Ok(())
}

fn print(to: &mut dyn io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
