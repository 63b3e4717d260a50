//! The container with the GPU. Each start finds out from the files in the shared folder how far the pod is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use cuda_smoke::files::{self, READABLE};
use cuda_smoke::registrar::Error;
use gate_report::contract::{self, file, gate};
use gate_report::{Class, Confidence, Failure, Outcome, Report, Step, exit};

use crate::agent;
use crate::ending::{self, Ending};
use crate::job;
use crate::process::{self, KILLED, Signals, TERMINATED};
use crate::telemetry;

/// Longest file that is read.
const LIMIT: u64 = 256 * 1024;
/// How long a start after the end waits: the main container ends in a moment, and the kubelet sees that in a second or two.
const AGAIN: Duration = Duration::from_secs(5);

/// The gate's settings, by the names of their variables.
pub(crate) type Settings = BTreeMap<String, String>;

/// Why the container ends before there is an agent.
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) code: u8,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            code: error.exit_code(),
            failure: error.failure(),
        }
    }
}

/// What a start finds.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// It has ended already, with this code.
    End(u8),
    /// It was killed while the agent ran, or while it took the registration.
    CutOff,
    /// This is the gate's image.
    Gate,
    /// This is another image, and no gate has passed.
    Unproven,
    /// This is the image that follows the gate's: the runner's, or a job's.
    Next,
}

/// What the container is for, in the image that follows the gate's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose<'a> {
    /// For the agent, and this is its command.
    Agent(&'a [OsString]),
    /// For the steps of a job that names its own image.
    Job,
}

/// What every container begins with.
pub(crate) struct Start {
    pub(crate) ending: Ending,
    pub(crate) signals: Signals,
    pub(crate) settings: Settings,
}

/// Where the container's termination message is.
pub(crate) fn termination_log(settings: &Settings) -> &Path {
    let log = settings.get(gate::TERMINATION_LOG);
    Path::new(log.map_or(contract::TERMINATION_LOG, String::as_str))
}

/// Reads the settings and takes over the signals; the exit code where that fails.
pub(crate) fn begin(dir: PathBuf) -> Result<Start, u8> {
    let (settings, broken) = match settings(&dir) {
        Ok(settings) => (settings, None),
        Err(error) => (Settings::new(), Some(error)),
    };
    let ending = Ending {
        log: termination_log(&settings).into(),
        dir,
    };
    let error = match (Signals::new(), broken) {
        (Ok(signals), None) => {
            return Ok(Start {
                ending,
                signals,
                settings,
            });
        }
        (Ok(_), Some(error)) => error,
        (Err(error), _) => Error::Internal(format!("signals could not be taken over: {error}")),
    };
    Err(fail(&ending, none(), error.into()))
}

/// Returns the container's exit code.
pub(crate) fn run(dir: PathBuf, purpose: Purpose<'_>) -> u8 {
    let Start {
        ending,
        mut signals,
        settings,
    } = match begin(dir) {
        Ok(start) => start,
        Err(code) => return code,
    };
    let program = gate_program(&settings);
    match (find(&ending.dir, Path::new(program), purpose), purpose) {
        (Found::End(code), _) => again(&ending, &mut signals, code),
        (Found::CutOff, Purpose::Agent(_)) => {
            eprintln!("This runner was cut off: its first process was killed.");
            let code = ending.write(KILLED);
            again(&ending, &mut signals, code)
        }
        // The agent lives in another container, and hears of it from its next step.
        (Found::CutOff, Purpose::Job) => job::serve(&ending.dir, &mut signals, true),
        (Found::Gate, _) => test(&ending, &mut signals, &settings, program),
        (Found::Unproven, _) => fail(&ending, none(), unproven()),
        (Found::Next, Purpose::Agent(line)) => {
            telemetry::start(&ending.dir, &settings, false);
            let worked = agent::work(&ending, &ending.dir, &mut signals, &settings, line);
            let (ControlFlow::Continue(code) | ControlFlow::Break(code)) = worked;
            code
        }
        (Found::Next, Purpose::Job) => {
            let started = ending.dir.join(file::STARTED);
            if let Err(error) = files::write(&started, b"", READABLE) {
                let started = started.display();
                let error = Error::Internal(format!("{started} could not be written: {error}"));
                return fail(&ending, none(), error.into());
            }
            telemetry::start(&ending.dir, &settings, true);
            job::serve(&ending.dir, &mut signals, false)
        }
    }
}

/// A hook or a probe of the template's, in its image: in the gate's image all is well. Returns where it could not be
/// started.
pub(crate) fn hook(dir: &Path, line: &[OsString]) -> u8 {
    let settings = settings(dir).unwrap_or_default();
    if Path::new(gate_program(&settings)).exists() {
        return exit::PASSED;
    }
    let [program, arguments @ ..] = line else {
        return exit::USAGE;
    };
    process::become_program(Command::new(program).args(arguments))
}

/// A file that only the gate's image has.
fn gate_program(settings: &Settings) -> &str {
    settings
        .get(gate::PROGRAM)
        .map_or(contract::GATE_PROGRAM, String::as_str)
}

/// How far the pod is.
fn find(dir: &Path, gate: &Path, purpose: Purpose<'_>) -> Found {
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let has_ticket = || files::read(&dir.join(file::TICKET), 1).is_ok_and(|t| !t.is_empty());
    let is_for_the_agent = matches!(purpose, Purpose::Agent(_));
    match ending::code(dir) {
        // Only a gate's end is this container's, where the agent is in another one. A job can write what it likes.
        None if has(file::STARTED) => Found::CutOff,
        Some(_) if has(file::STARTED) && !is_for_the_agent => Found::CutOff,
        Some(code) => Found::End(code),
        None if gate.exists() => Found::Gate,
        None if !has(file::PASSED) => Found::Unproven,
        None if is_for_the_agent && !has_ticket() => Found::CutOff,
        None => Found::Next,
    }
}

/// The kubelet restarts this container until it sees that the main container has ended. This start waits for that, and ends as
/// the one before. Where SIGTERM came before this process could take it over, the kernel has thrown it away: without a limit
/// the pod would keep its devices until the kubelet kills it.
fn again(ending: &Ending, signals: &mut Signals, code: u8) -> u8 {
    ending.say_again();
    signals.wait_for_end(AGAIN);
    code
}

/// The gate, with its own settings and nothing of the container's, but for what makes a shared device usable.
fn test(ending: &Ending, signals: &mut Signals, settings: &Settings, program: &str) -> u8 {
    let of_the_device = gate::OF_THE_DEVICE
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let gate = process::start(
        Command::new(program)
            .arg("gate")
            .env_clear()
            .envs(of_the_device)
            .envs(settings)
            .stdin(Stdio::null()),
    );
    let gate = match gate {
        Ok(gate) => gate,
        Err(code) => return ending.write(code),
    };
    let ended = signals.supervise(gate, |signal| {
        if !process::ends(signal) {
            return ControlFlow::Continue(());
        }
        // The image is being changed, or the pod is being deleted: nobody waits for a code in a file. With 0 the kubelet would
        // take an init container for done, and not say what the next image waits for.
        ControlFlow::Break(TERMINATED)
    });
    match ended {
        ControlFlow::Break(code) => code,
        // It has to wait for the runner's image.
        ControlFlow::Continue(exit::PASSED) => {
            let error = Error::Internal("the gate ended by itself, and without a failure".into());
            fail(ending, none(), error.into())
        }
        ControlFlow::Continue(code) => ending.write(code),
    }
}

/// A report of no gate.
pub(crate) fn none() -> Report {
    Report::new(env!("CARGO_PKG_VERSION"))
}

fn unproven() -> Failed {
    Failed {
        code: Class::Config.exit_code(),
        failure: Failure {
            class: Class::Config,
            step: Step::Start,
            code: None,
            code_name: "ImageChanged".into(),
            call: None,
            device: None,
            uuid: None,
            message: "The image of the container gpu was changed before the gate had passed.".into(),
            advice: "Only the operator may change it, after the pass. Find out who else does: a policy that rewrites images of running pods, for example."
                .into(),
            confidence: Confidence::High,
            shared: false,
        },
    }
}

/// Ends with a failure that the operator can read.
pub(crate) fn fail(ending: &Ending, report: Report, failed: Failed) -> u8 {
    let Failed { failure, code } = failed;
    eprintln!("{} {}", failure.message, failure.advice);
    let report = Report {
        outcome: Outcome::Failed,
        failure: Some(failure),
        ..report
    };
    if let Err(error) = files::replace(&ending.log, report.summary().as_bytes()) {
        let log = ending.log.display();
        eprintln!("The termination message {log} could not be written: {error}");
    }
    ending.write(code)
}

pub(crate) fn settings(dir: &Path) -> Result<Settings, Error> {
    let path = dir.join(file::SETTINGS);
    let bytes = files::read(&path, LIMIT).map_err(|error| error.to_string());
    bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
        .map_err(|why| {
            let path = path.display();
            Error::Internal(format!(
                "the gate's settings {path} could not be read: {why}"
            ))
        })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_start_knows_from_the_files_how_far_the_pod_is() {
        const GATE: &str = "cuda-smoke";
        const ALL: [&str; 5] = [GATE, file::TICKET, file::PASSED, file::STARTED, file::EXIT];
        let dir = std::env::temp_dir().join(format!("runner-init-find-{}", std::process::id()));
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&dir);
        for (files, for_the_agent, for_a_job) in [
            (&[GATE, file::TICKET][..], Found::Gate, Found::Gate),
            // The container was restarted before its image was changed.
            (
                &[GATE, file::TICKET, file::PASSED],
                Found::Gate,
                Found::Gate,
            ),
            (&[file::TICKET, file::PASSED], Found::Next, Found::Next),
            (&[file::TICKET], Found::Unproven, Found::Unproven),
            // The agent of a pod for jobs has taken the ticket away
            (&[file::PASSED], Found::CutOff, Found::Next),
            (&[file::PASSED, file::STARTED], Found::CutOff, Found::CutOff),
            // A ticket that came from somewhere, and an image that was changed back, start nothing again.
            (
                &[file::TICKET, file::PASSED, file::STARTED],
                Found::CutOff,
                Found::CutOff,
            ),
            (
                &[GATE, file::TICKET, file::PASSED, file::STARTED],
                Found::CutOff,
                Found::CutOff,
            ),
            (&ALL, Found::End(7), Found::CutOff),
            (&[file::EXIT], Found::End(7), Found::End(7)),
            (
                &[GATE, file::TICKET, file::EXIT],
                Found::End(7),
                Found::End(7),
            ),
        ] {
            fs::create_dir_all(&dir).unwrap();
            for name in files {
                fs::write(dir.join(name), "7").unwrap();
            }
            let found = |purpose| find(&dir, &dir.join(GATE), purpose);
            assert_eq!(found(Purpose::Agent(&[])), for_the_agent, "{files:?}");
            assert_eq!(found(Purpose::Job), for_a_job, "{files:?}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}
