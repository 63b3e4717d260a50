//! The agent in the runner's image, and what comes before it: the look at the image, and the registration.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cuda_smoke::files::{self, OPEN, READABLE};
use cuda_smoke::registrar::{Error, Registrar};
use gate_report::contract::{REGISTRATION_DIR, WORK_DIR, file, gate, script};
use gate_report::preflight::{CheckOutcome, Facts, Preflight, SCRIPT, Wanted};
use gate_report::wire::Registration;
use gate_report::{Report, exit};

use crate::ending::{self, Ending};
use crate::gpu::{self, Failed, Settings, Start};
use crate::limit;
use crate::process::{self, KILLED, Signals, TERMINATED};

/// Longest file that is read.
const LIMIT: u64 = 256 * 1024;
/// How often the main container looks whether the gate has passed.
const LOOK: Duration = Duration::from_millis(50);
/// How long the registrar is asked where the settings do not say it.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The agent in the main container, where jobs run in the container with the GPU in an image of their own. Its files are in
/// a folder where no job comes; the gate's are in the one that both containers have.
pub(crate) fn run(dir: PathBuf, line: &[OsString]) -> u8 {
    let Start {
        ending,
        mut signals,
        settings,
    } = match gpu::begin(dir) {
        Ok(start) => start,
        Err(code) => return code,
    };
    if ending.dir.join(file::STARTED).exists() {
        eprintln!("This runner was cut off: its first process was killed.");
        return ending.write(KILLED);
    }
    let shared = settings
        .get(gate::REGISTRATION_DIR)
        .map_or(REGISTRATION_DIR, String::as_str);
    let shared = Path::new(shared);
    loop {
        if let Some(code) = ending::code(shared) {
            return ending.write(code);
        }
        if signals.is_told_to_end() {
            return TERMINATED;
        }
        if shared.join(file::PASSED).exists() {
            break;
        }
        thread::sleep(LOOK);
    }
    let worked = work(&ending, shared, &mut signals, &settings, line);
    let (ControlFlow::Continue(code) | ControlFlow::Break(code)) = worked;
    let had_agent = ending.dir.join(file::STARTED).exists();
    // A gate that passed and was refused then says why the agent got no registration.
    let of_the_gate = ending::code(shared).filter(|_| !had_agent);
    of_the_gate.map_or(code, |code| ending.write(code))
}

/// The preflight, the registration, and the agent. `Break` where a signal or the gate's end came before it.
pub(crate) fn work(
    ending: &Ending,
    shared: &Path,
    signals: &mut Signals,
    settings: &Settings,
    line: &[OsString],
) -> ControlFlow<u8, u8> {
    let passed = files::read(&shared.join(file::PASSED), LIMIT)
        .ok()
        .and_then(|json| Report::read(&json).ok());
    let mut report = passed.unwrap_or_else(gpu::none);
    let ready = match look(&ending.dir, signals, settings, &mut report)? {
        Ok(()) => register(&ending.dir, shared, signals, settings)?,
        failed => failed,
    };
    if let Err(failed) = ready {
        return ControlFlow::Continue(gpu::fail(ending, report, failed));
    }
    let [program, arguments @ ..] = line else {
        return ControlFlow::Continue(exit::USAGE);
    };
    let agent = match process::start(Command::new(program).args(arguments)) {
        Ok(agent) => agent,
        Err(code) => return ControlFlow::Continue(ending.write(code)),
    };
    limit::keep(agent, &ending.dir, &ending.log, settings);
    let code = signals.supervise(agent, |signal| process::forward(agent, signal))?;
    process::kill_all_others();
    ending.tell_online(code);
    ControlFlow::Continue(ending.write(code))
}

/// Looks at the image with its own shell and the job's own environment, and adds what was found to the gate's report.
fn look(
    dir: &Path,
    signals: &mut Signals,
    settings: &Settings,
    report: &mut Report,
) -> ControlFlow<u8, Result<(), Failed>> {
    let Some(wanted) = settings.get(gate::PREFLIGHT) else {
        return ControlFlow::Continue(Ok(()));
    };
    let wanted: Wanted = match serde_json::from_str(wanted) {
        Ok(wanted) => wanted,
        Err(error) => {
            let error = Error::Internal(format!("{} is not understood: {error}", gate::PREFLIGHT));
            return ControlFlow::Continue(Err(error.into()));
        }
    };
    if !wanted.image {
        return ControlFlow::Continue(Ok(()));
    }
    let found = dir.join(file::PREFLIGHT);
    // Of an earlier start.
    let _ = files::forget(&found);
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", SCRIPT, file::PREFLIGHT])
        .env(script::DIR, dir)
        .env(script::COMMANDS, wanted.commands.join(" "))
        .env(
            script::TOOLKIT,
            if wanted.cuda_toolkit.is_some() {
                "1"
            } else {
                ""
            },
        )
        .env(
            script::TOOLCHAIN,
            wanted.rust_toolchain.as_deref().unwrap_or_default(),
        )
        .env(script::WORK, WORK_DIR)
        .stdin(Stdio::null());
    // Without a shell nothing is found, and that is said.
    if let Ok(shell) = process::start(&mut shell) {
        signals.supervise(shell, process::end_at_once)?;
    }
    let facts = files::read(&found, LIMIT).unwrap_or_default();
    let facts = Facts::read(&String::from_utf8_lossy(&facts));
    let mut preflight = Preflight::of_image(&wanted, &facts);
    for warning in &preflight.findings {
        if warning.outcome == CheckOutcome::Warning {
            eprintln!(
                "{}: {} {}",
                warning.subject, warning.message, warning.advice
            );
        }
    }
    let failure = preflight.failure();
    let of_the_network = report.preflight.take().unwrap_or_default();
    preflight.findings.extend(of_the_network.findings);
    report.preflight = Some(preflight);
    ControlFlow::Continue(match failure {
        Some(failure) => Err(Failed {
            code: failure.class.exit_code(),
            failure,
        }),
        None => Ok(()),
    })
}

/// Exchanges the ticket for the registration, and leaves that to the agent's start. Nothing is left of the ticket then.
fn register(
    dir: &Path,
    shared: &Path,
    signals: &mut Signals,
    settings: &Settings,
) -> ControlFlow<u8, Result<(), Failed>> {
    let ticket = dir.join(file::TICKET);
    let (bearer, own) = (files::read(&ticket, LIMIT), settings.clone());
    let ask = move || {
        let bearer = bearer
            .map_err(|error| Error::Internal(format!("the ticket could not be read: {error}")))?;
        let setting = |name| own.get(name).map_or("", String::as_str);
        let seconds = setting(gate::REGISTRATION_TIMEOUT_SECONDS).parse();
        let timeout = seconds.map_or(TIMEOUT, Duration::from_secs);
        Registrar::new(setting(gate::REGISTRAR_URL), setting(gate::REGISTRAR_CA))?
            .registration(&String::from_utf8_lossy(&bearer), Instant::now() + timeout)
    };
    // A gate that was refused has no registration to wait for.
    let given = signals.during(ask, || ending::code(shared))?;
    let panicked = || Err(Error::Internal("the registrar's client panicked".into()));
    let stored = given.unwrap_or_else(panicked).and_then(|registration| {
        store(dir, shared, &registration).map_err(|error| {
            let dir = dir.display();
            Error::Internal(format!(
                "the registration could not be written to {dir}: {error}"
            ))
        })
    });
    ControlFlow::Continue(stored.map_err(Failed::from))
}

fn store(dir: &Path, shared: &Path, registration: &Registration) -> std::io::Result<()> {
    let (name, secret) = match registration {
        Registration::JitConfig { encoded_jit_config } => (file::JIT_CONFIG, encoded_jit_config),
        Registration::RegistrationToken { token } => (file::TOKEN, token),
    };
    files::write(&dir.join(name), secret.as_bytes(), OPEN)?;
    // No job is to find it, nor is a job to run before it is known that one may.
    for dir in [dir, shared] {
        files::forget(&dir.join(file::TICKET))?;
    }
    files::write(&dir.join(file::STARTED), b"", READABLE)
}
