//! Runs the test in a child process, survives whatever happens to it, and makes the report.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{
    Class, Context, Driver, Failure, Fault, Finding, Outcome, Report, Step, Warning, fault, finding,
};

use crate::args::TestArgs;
use crate::deadline::Deadline;
use crate::host;
use crate::protocol::{Cause, Event, Place, Stop};
use crate::times::milliseconds;

/// How long a killed child may take to vanish. One that is stuck in the kernel never does; it is left behind.
const REAP: Duration = Duration::from_secs(2);

/// Tests the devices and tells the verdict. Never fails: what goes wrong is in the report.
pub(crate) fn test(args: &TestArgs) -> Report {
    let started = Instant::now();
    let mut report = Report {
        requested_devices: args.expected_devices,
        driver: Some(host::driver(&args.dev_dir)),
        ..Report::new(env!("CARGO_PKG_VERSION"))
    };
    if let Err(first) = attempt(args, &mut report) {
        let fault = first.meaning(args, &report, false);
        if fault.retry {
            retry(args, &mut report, &first, fault);
        } else {
            report.failure = Some(first.failure(fault, &report));
        }
    }
    report.outcome = match report.failure {
        None => Outcome::Passed,
        Some(_) => Outcome::Failed,
    };
    report.timings.total_ms = milliseconds(started);
    report
}

/// Looks a second time, in a new process: an error after a launch poisons the first one, and a fault that does not
/// come back blames nobody.
fn retry(args: &TestArgs, report: &mut Report, first: &Stop, fault: Fault) {
    report.attempts = 2;
    report.devices.clear();
    report.warnings.clear();
    match attempt(args, report) {
        Ok(()) => report.warnings.push(Warning {
            reason: "PassedOnRetry".into(),
            message: format!(
                "The first try failed ({}: {}). {} A second try in a new process passed.",
                first.place.step, first.detail, fault.meaning
            ),
            device: first.place.device,
        }),
        Err(second) => {
            let fault = second.meaning(args, report, true);
            report.failure = Some(second.failure(fault, report));
        }
    }
}

/// One child, from start to end.
fn attempt(args: &TestArgs, report: &mut Report) -> Result<(), Box<Stop>> {
    let mut last = Place {
        step: Step::Start,
        call: None,
        device: None,
    };
    let mut child = start(args).map_err(|error| {
        Stop::found(
            last.clone(),
            Finding::Internal,
            format!("the test process could not be started: {error}"),
        )
    })?;
    let events = listen(&mut child);
    let whole = args.limits.timeout.map(|limit| Instant::now() + limit);
    let within = |limit| Deadline::new(child.id(), limit, whole);
    // Start-up first; then anew for each device.
    let mut deadline = within(args.limits.startup());
    let mut verdict = None;
    let ended = loop {
        match events.recv_timeout(deadline.left()) {
            Ok(Event::Calling(place)) => {
                if place.device != last.device {
                    deadline = within(args.limits.test());
                }
                last = place;
            }
            Ok(Event::Stopped(stop)) => verdict = Some(Err(Box::new(stop))),
            Ok(Event::Passed { ms }) => {
                report.timings.test_ms = ms - report.timings.init_ms;
                verdict = Some(Ok(()));
            }
            Ok(event) => {
                if matches!(event, Event::Initialised { .. }) {
                    deadline = within(args.limits.test());
                }
                note(event, report);
            }
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) if deadline.is_over() => break false,
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    let status = if ended {
        reap(&mut child, Instant::now() + deadline.left())
    } else {
        None
    };
    if status.is_none() {
        // Refused only when it is gone already.
        let _ = child.kill();
        reap(&mut child, Instant::now() + REAP);
    }
    verdict.unwrap_or_else(|| Err(without_verdict(&last, status, &deadline).into()))
}

fn start(args: &TestArgs) -> std::io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg("child")
        .args(args.to_command_line())
        // Faults show while the module is loaded, not at the first launch; and nothing is compiled that was
        // compiled before on another day.
        .env("CUDA_MODULE_LOADING", "EAGER")
        .env("CUDA_CACHE_DISABLE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
}

/// Reads the child's lines on a thread of its own, so that a deadline can pass meanwhile.
fn listen(child: &mut Child) -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        thread::spawn(move || {
            // A line that is none of ours was printed by a library; it does not matter.
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if let Ok(event) = serde_json::from_slice(&line)
                    && sender.send(event).is_err()
                {
                    break;
                }
            }
        });
    }
    receiver
}

/// Waits for the child's end, until the deadline.
fn reap(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn note(event: Event, report: &mut Report) {
    let driver = report.driver.get_or_insert_with(Driver::default);
    match event {
        Event::Library { path } => driver.library = path,
        Event::CudaVersion { version } => driver.cuda_version = Some(version),
        Event::Initialised { ms } => report.timings.init_ms = ms,
        Event::Device(device) => match report
            .devices
            .iter_mut()
            .find(|known| known.ordinal == device.ordinal)
        {
            Some(known) => *known = device,
            None => report.devices.push(device),
        },
        Event::Warning(warning) => report.warnings.push(warning),
        Event::Calling(_) | Event::Stopped(_) | Event::Passed { .. } => {}
    }
}

/// The child is gone, or had to be killed, and said nothing of why.
fn without_verdict(last: &Place, status: Option<ExitStatus>, deadline: &Deadline) -> Stop {
    /// Rust's exit code for a panic.
    const PANICKED: i32 = 101;
    let doing = match &last.call {
        Some(call) => format!("in {call}"),
        None => format!("at the step \"{}\"", last.step),
    };
    match status {
        None if deadline.was_starved() => Stop::found(
            last.clone(),
            Finding::Starved,
            format!(
                "no answer {doing}, and for {} s of the time there was no CPU for the test",
                deadline.starved.as_secs()
            ),
        ),
        None => Stop::found(
            last.clone(),
            Finding::Hang,
            format!("no answer {doing} within {} s", deadline.limit.as_secs()),
        ),
        Some(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => Stop::found(
                last.clone(),
                Finding::Crash,
                format!(
                    "the test process died of signal {signal} ({}) {doing}",
                    signal_name(signal)
                ),
            ),
            (None, Some(PANICKED)) => Stop::found(
                last.clone(),
                Finding::Internal,
                format!("the test process panicked {doing}"),
            ),
            (None, code) => Stop::found(
                last.clone(),
                Finding::UnexpectedExit,
                format!(
                    "the test process exited with code {} {doing}",
                    code.unwrap_or_default()
                ),
            ),
        },
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        _ => "another signal",
    }
}

impl Stop {
    /// What this means, by the table.
    fn meaning(&self, args: &TestArgs, report: &Report, retried: bool) -> Fault {
        let context = Context {
            step: self.place.step,
            shared: args.shared || self.is_of_slice(report),
            device_files: report
                .driver
                .as_ref()
                .is_some_and(|driver| driver.device_files),
            retried,
        };
        match self.cause {
            Cause::Code(code) => fault(code, context),
            Cause::Finding(what) => finding(what, context),
        }
    }

    /// Whether it is about a MIG slice, which has little memory of its own.
    fn is_of_slice(&self, report: &Report) -> bool {
        report.devices.iter().any(|device| {
            Some(device.ordinal) == self.place.device && device.uuid.starts_with("MIG-")
        })
    }

    fn failure(&self, fault: Fault, report: &Report) -> Failure {
        let device = self.place.device;
        let mut message = format!("{}. {}", capitalised(&self.detail), fault.meaning);
        if let (Class::Node | Class::Device | Class::Transient, Some(driver)) =
            (fault.class, &report.driver)
            && driver.device_files
            && !driver.uvm_file
        {
            message.push_str(" /dev/nvidia-uvm is not in the container.");
        }
        Failure {
            class: fault.class,
            step: self.place.step,
            code: match self.cause {
                Cause::Code(code) => Some(code),
                Cause::Finding(_) => None,
            },
            code_name: self.code_name.clone().unwrap_or_else(|| fault.name.into()),
            call: self.place.call.clone(),
            device,
            uuid: report
                .devices
                .iter()
                .find(|known| Some(known.ordinal) == device && !known.uuid.is_empty())
                .map(|known| known.uuid.clone()),
            message,
            advice: fault.advice.into(),
            confidence: fault.confidence,
        }
    }
}

/// With a capital at the start, unless it starts with a function's name.
fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("cu") => first.to_uppercase().chain(chars).collect(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            step: Step::Init,
            call: Some("cuInit".into()),
            device: None,
        }
    }

    fn finding_of(status: Option<i32>) -> Cause {
        without_verdict(
            &place(),
            status.map(ExitStatus::from_raw),
            &Deadline::new(std::process::id(), Duration::from_secs(30), None),
        )
        .cause
    }

    #[test]
    fn how_a_child_without_a_verdict_ended() {
        assert_eq!(finding_of(None), Cause::Finding(Finding::Hang));
        assert_eq!(
            finding_of(Some(libc::SIGSEGV)),
            Cause::Finding(Finding::Crash)
        );
        assert_eq!(finding_of(Some(0)), Cause::Finding(Finding::UnexpectedExit));
        assert_eq!(
            finding_of(Some(3 << 8)),
            Cause::Finding(Finding::UnexpectedExit)
        );
        assert_eq!(
            finding_of(Some(101 << 8)),
            Cause::Finding(Finding::Internal)
        );
    }

    #[test]
    fn a_missing_uvm_file_is_told_where_it_may_matter() {
        let mut report = Report {
            driver: Some(Driver {
                device_files: true,
                ..Driver::default()
            }),
            ..Report::default()
        };
        let stop = Stop {
            place: place(),
            cause: Cause::Code(999),
            code_name: None,
            detail: "cuInit returned 999".into(),
        };
        let message = |report: &Report| {
            stop.failure(fault(999, Context::at(Step::Init)), report)
                .message
        };
        assert!(message(&report).contains("/dev/nvidia-uvm is not"));
        report.driver = Some(Driver {
            device_files: true,
            uvm_file: true,
            ..Driver::default()
        });
        assert!(!message(&report).contains("is not in the container"));
    }
}
