//! The container with the GPU. Each start finds out from the files in the shared folder how far the pod is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cuda_smoke::files;
use cuda_smoke::registrar::Error;
use gate_report::contract::{self, file, gate};
use gate_report::{Class, Confidence, Failure, Outcome, Report, Step, exit};

use crate::agent;
use crate::ending::{self, Ending};
use crate::process::{self, KILLED, Signals, TERMINATED};

/// Longest file that is read.
const LIMIT: u64 = 256 * 1024;

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
    /// This is the runner's image.
    Runner,
}

/// Returns the container's exit code.
pub(crate) fn run(dir: PathBuf, agent: &[OsString]) -> u8 {
    let (settings, broken) = match settings(&dir) {
        Ok(settings) => (settings, None),
        Err(error) => (Settings::new(), Some(error)),
    };
    let log = settings
        .get(gate::TERMINATION_LOG)
        .map_or(contract::TERMINATION_LOG, String::as_str);
    let ending = Ending {
        log: log.into(),
        dir,
    };
    let mut signals = match (Signals::new(), broken) {
        (Ok(signals), None) => signals,
        (Ok(_), Some(error)) => return fail(&ending, none(), error.into()),
        (Err(error), _) => {
            let error = Error::Internal(format!("signals could not be taken over: {error}"));
            return fail(&ending, none(), error.into());
        }
    };
    let program = gate_program(&settings);
    match find(&ending.dir, Path::new(program)) {
        Found::End(code) => again(&ending, &mut signals, code),
        Found::CutOff => {
            eprintln!("This runner was cut off: its first process was killed.");
            let code = ending.write(KILLED);
            again(&ending, &mut signals, code)
        }
        Found::Gate => test(&ending, &mut signals, &settings, program),
        Found::Unproven => fail(&ending, none(), unproven()),
        Found::Runner => match work(&ending, &mut signals, &settings, agent) {
            ControlFlow::Continue(code) | ControlFlow::Break(code) => code,
        },
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
fn find(dir: &Path, gate: &Path) -> Found {
    let has = |name: &str| dir.join(name).symlink_metadata().is_ok();
    let has_ticket = || files::read(&dir.join(file::TICKET), 1).is_ok_and(|t| !t.is_empty());
    match ending::code(dir) {
        Some(code) => Found::End(code),
        None if has(file::STARTED) => Found::CutOff,
        None if gate.exists() => Found::Gate,
        None if !has(file::PASSED) => Found::Unproven,
        None if !has_ticket() => Found::CutOff,
        None => Found::Runner,
    }
}

/// The kubelet restarts this container until it sees that the main container has ended. This start waits for that: with
/// another end, the true one would be the container's last state no more.
fn again(ending: &Ending, signals: &mut Signals, code: u8) -> u8 {
    ending.say_again();
    signals.wait_for_end();
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

/// The runner's image: what comes before the agent, and the agent. `Break` where a signal came before it.
fn work(
    ending: &Ending,
    signals: &mut Signals,
    settings: &Settings,
    line: &[OsString],
) -> ControlFlow<u8, u8> {
    let passed = files::read(&ending.dir.join(file::PASSED), LIMIT)
        .ok()
        .and_then(|json| Report::read(&json).ok());
    let mut report = passed.unwrap_or_else(none);
    let ready = match agent::look(&ending.dir, signals, settings, &mut report)? {
        Ok(()) => agent::register(&ending.dir, signals, settings)?,
        failed => failed,
    };
    if let Err(failed) = ready {
        return ControlFlow::Continue(fail(ending, report, failed));
    }
    let [program, arguments @ ..] = line else {
        return ControlFlow::Continue(exit::USAGE);
    };
    let agent = match process::start(Command::new(program).args(arguments)) {
        Ok(agent) => agent,
        Err(code) => return ControlFlow::Continue(ending.write(code)),
    };
    let code = signals.supervise(agent, |signal| process::forward(agent, signal))?;
    process::kill_all_others();
    ending.tell_online(code);
    ControlFlow::Continue(ending.write(code))
}

/// A report of no gate.
fn none() -> Report {
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
        },
    }
}

/// Ends with a failure that the operator can read.
fn fail(ending: &Ending, report: Report, failed: Failed) -> u8 {
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

fn settings(dir: &Path) -> Result<Settings, Error> {
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
        for (files, expected) in [
            (&[GATE, file::TICKET][..], Found::Gate),
            // The container was restarted before its image was changed.
            (&[GATE, file::TICKET, file::PASSED], Found::Gate),
            (&[file::TICKET, file::PASSED], Found::Runner),
            (&[file::TICKET], Found::Unproven),
            (&[file::PASSED], Found::CutOff),
            (&[file::PASSED, file::STARTED], Found::CutOff),
            // A ticket that came from somewhere, and an image that was changed back, start nothing again.
            (&[file::TICKET, file::PASSED, file::STARTED], Found::CutOff),
            (
                &[GATE, file::TICKET, file::PASSED, file::STARTED],
                Found::CutOff,
            ),
            (&ALL, Found::End(7)),
            (&[file::EXIT], Found::End(7)),
        ] {
            fs::create_dir_all(&dir).unwrap();
            for name in files {
                fs::write(dir.join(name), "7").unwrap();
            }
            assert_eq!(find(&dir, &dir.join(GATE)), expected, "{files:?}");
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}
