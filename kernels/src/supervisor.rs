//! Runs the test in a child process, survives whatever happens to it, and makes the report.

use std::fmt::Write as _;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{
    Again, Cause, Class, Context, Device, Driver, Failure, Fault, Finding, Next, Outcome, Report,
    Step, Tries, Warning, Which,
};

use crate::args::{Part, TestArgs, Times};
use crate::deadline::{Deadline, Waited};
use crate::host::{MemoryKills, Shortage};
use crate::nvml::Beside;
use crate::protocol::{Event, Place, Stop, listen};
use crate::times::milliseconds;
use crate::{device_files, host};

/// How long a killed child may take to vanish. One that is stuck in the kernel never does; it is left behind.
const REAP: Duration = Duration::from_secs(2);

/// Tests the devices and tells the verdict. Never fails: what goes wrong is in the report.
pub(crate) fn test(args: &TestArgs) -> Report {
    let started = Instant::now();
    let mut report = Report {
        requested_devices: args.expected_devices,
        host: Some(host::machine()),
        driver: Some(host::driver(&args.dev_dir)),
        ..Report::new(env!("CARGO_PKG_VERSION"))
    };
    let nvml = args
        .has(Part::Health)
        .then(|| Beside::start(args))
        .flatten();
    let leaving = until_verdict(args, &mut report, started)
        .map_err(|failure| report.failure = Some(*failure))
        .ok();
    if let Some(nvml) = nvml {
        nvml.finish(&mut report);
    }
    if let Some(leaving) = leaving {
        report.timings.teardown_ms = leaving.wait();
    }
    report.outcome = match report.failure {
        None => Outcome::Passed,
        Some(_) => Outcome::Failed,
    };
    report.timings.total_ms = milliseconds(started);
    report
}

/// A try that failed, and was followed by another.
struct Earlier {
    stop: Box<Stop>,
    meaning: &'static str,
    /// What was known of the devices.
    devices: Vec<Device>,
}

/// A test's process that has had its last word, while the driver tears down what was its.
struct Leaving {
    child: Child,
    deadline: Deadline,
}

impl Leaving {
    /// Waits until it is gone, or kills it; how long that took, in milliseconds.
    fn wait(mut self) -> f64 {
        let started = Instant::now();
        let gone = reap(&mut self.child, started + self.deadline.left());
        if !matches!(gone, Ok(Some(_))) {
            kill(&mut self.child);
        }
        milliseconds(started)
    }
}

fn kill(child: &mut Child) {
    // Refused only when it is gone already.
    let _ = child.kill();
    let _ = reap(child, Instant::now() + REAP);
}

/// Tries until the devices pass or a failure stands: each time in a new process, because an error after a launch poisons
/// its own.
fn until_verdict(
    args: &TestArgs,
    report: &mut Report,
    started: Instant,
) -> Result<Leaving, Box<Failure>> {
    let times = args.times();
    let mut tries = Tries::new(times.patience);
    let mut earlier: Option<Earlier> = None;
    loop {
        let mut stop = match attempt(args, times, report, started) {
            Ok(leaving) => {
                report.warnings.extend(earlier.map(passed_on_retry));
                return Ok(leaving);
            }
            Err(stop) => stop,
        };
        let said = stop.code();
        device_files::explain(&mut stop, &args.dev_dir, times.of_files(started));
        let context = stop.context(args, report);
        match tries.failed(stop.cause, context, started.elapsed()) {
            Next::Again(pause) => {
                thread::sleep(pause);
                report.attempts += 1;
                report.warnings.clear();
                report.peers = None;
                earlier = Some(Earlier {
                    meaning: stop.cause.meaning(context).meaning,
                    stop,
                    devices: std::mem::take(&mut report.devices),
                });
            }
            Next::Stands(Which::Last, fault) => {
                let mut failure = stop.failure(fault, context, report);
                // What the driver said stays a fact, whatever the device files add.
                failure.code = said;
                if fault.again == Again::Wait && earlier.is_some() {
                    let waited = started.elapsed().as_secs().max(1);
                    // A string takes everything.
                    let _ = write!(
                        failure.message,
                        " It was so for all of the {waited} s that the gate waited."
                    );
                }
                return Err(failure.into());
            }
            Next::Stands(Which::First, fault) => {
                let Some(first) = earlier else {
                    return Err(stop.failure(fault, context, report).into());
                };
                report.devices = first.devices;
                let mut failure = first.stop.failure(fault, context, report);
                let second = &stop.detail;
                let _ = write!(
                    failure.message,
                    " The next try, in a new process, failed as well: {second}."
                );
                return Err(failure.into());
            }
        }
    }
}

fn passed_on_retry(earlier: Earlier) -> Warning {
    let Earlier { stop, meaning, .. } = earlier;
    Warning {
        reason: "PassedOnRetry".into(),
        message: format!(
            "A try failed ({}: {}). {meaning} The next one, in a new process, passed.",
            stop.place.step, stop.detail
        ),
        device: stop.place.device,
    }
}

impl Times {
    /// How long opening the device files may take now. All tries together take no longer than two.
    fn of_files(self, started: Instant) -> device_files::Limits {
        let left = |limit: Duration| (limit * 2).saturating_sub(started.elapsed());
        device_files::Limits {
            of_each: self.opening,
            of_all: self.whole.map(left),
        }
    }
}

/// One child, from its start to its end, or to the word that all devices passed.
fn attempt(
    args: &TestArgs,
    times: Times,
    report: &mut Report,
    started: Instant,
) -> Result<Leaving, Box<Stop>> {
    let mut last = Place {
        step: Step::Start,
        call: None,
        device: None,
    };
    let kills = MemoryKills::read(&args.cgroup_dir);
    let mut child = start(args).map_err(|error| {
        Stop::found(
            last.clone(),
            Finding::Internal,
            format!("the test process could not be started: {error}"),
        )
    })?;
    let events = listen(child.stdout.take());
    // All tries together take no longer than two.
    let whole = times
        .whole
        .map(|limit| (Instant::now() + limit).min(started + limit * 2));
    let within = |limit| Deadline::new(child.id(), limit, whole);
    // Start-up first; then anew for each device.
    let mut deadline = within(times.startup);
    let mut stopped = None;
    let ended = loop {
        match deadline.next(&events) {
            Ok(Event::Calling(place)) => {
                if place.device != last.device {
                    deadline = within(times.test);
                }
                last = place;
            }
            Ok(Event::Stopped(stop)) => stopped = Some(Box::new(stop)),
            Ok(Event::Passed { ms }) => {
                report.timings.test_ms = ms - report.timings.init_ms;
                return Ok(Leaving { child, deadline });
            }
            Ok(event) => {
                if matches!(event, Event::Initialised { .. }) {
                    deadline = within(times.test);
                }
                note(event, report);
            }
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    let status = ended
        .then(|| reap(&mut child, Instant::now() + deadline.left()))
        .and_then(|ended| ended.ok().flatten());
    // What its end takes is no wait for an answer.
    let waited = deadline.waited();
    if status.is_none() {
        kill(&mut child);
    }
    Err(stopped.unwrap_or_else(|| {
        let now = MemoryKills::read(&args.cgroup_dir);
        let both = now.zip(kills);
        let shortage = both.and_then(|(now, before)| now.since(before, &args.cgroup_dir));
        without_verdict(&last, status, waited, shortage).into()
    }))
}

fn start(args: &TestArgs) -> io::Result<Child> {
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

/// Waits for a child's end, until the deadline; `None` where it has not ended by then.
pub(crate) fn reap(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(Some(status)),
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            None => return Ok(None),
        }
    }
}

fn note(event: Event, report: &mut Report) {
    let driver = report.driver.get_or_insert_with(Driver::default);
    match event {
        Event::Library { path, others } => {
            driver.library = path;
            driver.other_libraries = others;
        }
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
        Event::Peers(peers) => report.peers = Some(peers),
        Event::Warning(warning) => report.warnings.push(warning),
        Event::Calling(_) | Event::Stopped(_) | Event::Passed { .. } => {}
    }
}

/// The child is gone, or had to be killed, and said nothing of why. `shortage` is there where the kernel killed for want of
/// memory.
fn without_verdict(
    last: &Place,
    status: Option<ExitStatus>,
    waited: Waited,
    shortage: Option<Shortage>,
) -> Stop {
    /// Rust's exit code for a panic.
    const PANICKED: i32 = 101;
    let doing = match &last.call {
        Some(call) => format!("in {call}"),
        None => format!("at the step \"{}\"", last.step),
    };
    let found = |finding, text| Stop::found(last.clone(), finding, text);
    let Some(status) = status else {
        return no_answer(last, &doing, waited);
    };
    match (status.signal(), status.code(), shortage) {
        (Some(libc::SIGKILL), _, Some(Shortage::Limit(limit))) => found(
            Finding::OutOfMemoryKill,
            format!("the kernel killed the test process {doing}, at {limit}"),
        ),
        (Some(libc::SIGKILL), _, Some(Shortage::Node)) => found(
            Finding::NodeOutOfMemory,
            format!(
                "the kernel killed the test process {doing} for want of memory, and not at the container's limit"
            ),
        ),
        (Some(signal), ..) => found(
            Finding::Crash,
            format!(
                "the test process died of signal {signal} ({}) {doing}",
                signal_name(signal)
            ),
        ),
        (None, Some(PANICKED), _) => found(
            Finding::Internal,
            format!("the test process panicked {doing}"),
        ),
        (None, code, _) => found(
            Finding::UnexpectedExit,
            format!(
                "the test process exited with code {} {doing}",
                code.unwrap_or_default()
            ),
        ),
    }
}

/// The child had to be killed.
fn no_answer(last: &Place, doing: &str, waited: Waited) -> Stop {
    // The true wait: a limit is longer where there was no CPU, and shorter where the whole was over.
    let seconds = waited.all.as_secs_f64().round().max(1.0);
    if waited.was_starved() {
        let starved = waited.starved.as_secs();
        let text = format!(
            "no answer {doing} within {seconds} s, and for {starved} s of them there was no CPU for the test"
        );
        return Stop::found(last.clone(), Finding::Starved, text);
    }
    let text = format!("no answer {doing} within {seconds} s");
    Stop::found(last.clone(), Finding::Hang, text)
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

/// Codes that may be about the library that was loaded: another may be the right one.
const OF_LIBRARIES: [i32; 7] = [34, 36, 227, 302, 303, 803, 804];

impl Stop {
    /// The driver's code, where it is about one.
    fn code(&self) -> Option<i32> {
        match self.cause {
            Cause::Code(code) => Some(code),
            Cause::Finding(_) => None,
        }
    }

    /// What changes its meaning.
    fn context(&self, args: &TestArgs, report: &Report) -> Context {
        let driver = report.driver.as_ref();
        Context {
            shared: args.is_shared(),
            slice: self.is_of_slice(report),
            mps: host::has_mps(),
            device_files: driver.is_some_and(|driver| driver.device_files),
            ..Context::at(self.place.step)
        }
    }

    /// Whether it is about a MIG slice.
    fn is_of_slice(&self, report: &Report) -> bool {
        report.devices.iter().any(|device| {
            Some(device.ordinal) == self.place.device && device.uuid.starts_with("MIG-")
        })
    }

    fn failure(&self, fault: Fault, context: Context, report: &Report) -> Failure {
        let device = self.place.device;
        let mut message = format!("{}. {}", capitalised(&self.detail), fault.meaning);
        if let (Class::Node | Class::Device | Class::Transient, Some(driver)) =
            (fault.class, &report.driver)
            && driver.device_files
            && !driver.uvm_file
        {
            message.push_str(" /dev/nvidia-uvm is not in the container.");
        }
        if let (Cause::Code(code), Some(driver)) = (self.cause, &report.driver)
            && OF_LIBRARIES.contains(&code)
            && !driver.other_libraries.is_empty()
        {
            let others = driver.other_libraries.join(", ");
            let _ = write!(message, " Also there, and not used: {others}.");
        }
        Failure {
            class: fault.class,
            step: self.place.step,
            code: self.code(),
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
            shared: context.shared,
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
            Deadline::new(std::process::id(), Duration::from_secs(30), None).waited(),
            None,
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
            finding_of(Some(libc::SIGKILL)),
            Cause::Finding(Finding::Crash)
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
            let context = Context::at(Step::Init);
            stop.failure(stop.cause.meaning(context), context, report)
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
