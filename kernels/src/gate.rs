//! `gate`: the first life of the container that has the GPU. Test, report, and then the runner's image.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::files::{self, READABLE};
use crate::registrar::{Error, Registrar, Verdict};
use gate_report::contract::{self, file};
use gate_report::{Class, Confidence, Failure, Outcome, Report, Step, exit};

use crate::args::{GateArgs, PodArgs};
use crate::{preflight, supervisor};

/// How long a failing report is offered to the registrar. It is in the termination message anyway.
const FAILING_REPORT: Duration = Duration::from_secs(10);
/// How often a passing report is repeated until the image is changed: an operator that was restarted must hear it again.
const REPEAT: Duration = Duration::from_secs(5);
/// Longest ticket that is read.
const LONGEST_TICKET: u64 = 128 * 1024;

/// Tests and reports. Returns the exit code of a gate that failed; one that passed waits for its end.
pub(crate) fn run(args: &GateArgs) -> u8 {
    end_on_signal();
    let preflight = args.preflight.as_ref().map(preflight::start);
    let mut report = Report {
        node: args.pod.node.clone(),
        namespace: args.pod.namespace.clone(),
        pod: args.pod.pod.clone(),
        ..supervisor::test(&args.test)
    };
    if let Some(preflight) = preflight {
        preflight.finish(&mut report);
    }
    // Written before the registrar is asked, in case we do not live to hear its answer.
    write_summary(&args.pod.termination_log, &report);
    print!("{}", report.text());
    if !report.passed() {
        hand_in(&args.pod, &report);
        return report.exit_code();
    }
    let Err(error) = hold(&args.pod, &report);
    eprintln!("No runner: {error}");
    report.outcome = Outcome::Failed;
    report.failure = Some(error.failure());
    write_summary(&args.pod.termination_log, &report);
    error.exit_code()
}

/// Reports the failure. Whatever comes back, the class of the failure stands.
fn hand_in(args: &PodArgs, report: &Report) {
    let limit = args.registration_timeout.min(FAILING_REPORT);
    match submit(args, report, limit) {
        Ok(Verdict::Noted) => {}
        Ok(Verdict::Admitted) => {
            eprintln!("The registrar took a failing report for one that passed.");
        }
        Err(error) => eprintln!("The registrar did not take the report: {error}"),
    }
}

/// Reports that every device passed, again and again until the change of the image ends this process.
fn hold(args: &PodArgs, report: &Report) -> Result<std::convert::Infallible, Error> {
    let passed = args.registration_dir.join(file::PASSED);
    // The image may be changed before the registrar's answer is here.
    files::write(&passed, report.summary().as_bytes(), READABLE)
        .map_err(|error| not_written(&passed, &error))?;
    let mut admitted = false;
    loop {
        match submit(args, report, args.registration_timeout) {
            Ok(Verdict::Admitted) if admitted => {}
            Ok(Verdict::Admitted) => {
                admitted = true;
                println!("The registrar has taken the report.");
            }
            // The image stays until a job names one. The agent, in another container, takes the ticket away when it has
            // registered, and nobody needs the report any more.
            Err(_) if args.agent_dir.is_some() && ticket(args).is_err() => {}
            // It knows the report already, and is being restarted, say.
            Err(Error::Unreachable(why)) if admitted => eprintln!("{why}"),
            Ok(Verdict::Noted) => {
                return Err(Error::Internal(
                    "the registrar noted a passing report as failing".into(),
                ));
            }
            Err(error) => return Err(error),
        }
        thread::sleep(REPEAT);
    }
}

fn submit(args: &PodArgs, report: &Report, limit: Duration) -> Result<Verdict, Error> {
    Registrar::new(&args.registrar_url, &args.registrar_ca)?.report(
        &ticket(args)?,
        report,
        Instant::now() + limit,
    )
}

fn ticket(args: &PodArgs) -> Result<String, Error> {
    let path = args.registration_dir.join(file::TICKET);
    let ticket = files::read(&path, LONGEST_TICKET).and_then(|ticket| {
        // Another user's file is emptied where it cannot be removed.
        let is_there = !ticket.is_empty();
        is_there
            .then_some(ticket)
            .ok_or(io::ErrorKind::NotFound.into())
    });
    ticket
        .map(|ticket| String::from_utf8_lossy(&ticket).into_owned())
        .map_err(|error| {
            Error::Internal(format!(
                "the ticket {} could not be read: {error}",
                path.display()
            ))
        })
}

/// A file of the shared folder could not be written.
pub(crate) fn not_written(path: &Path, error: &io::Error) -> Error {
    Error::Internal(format!("{} could not be written: {error}", path.display()))
}

/// The command line was not understood: says so where the operator looks, too.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Help and version come this way as well; a failure to print them has no one to be told to.
    let _ = error.print();
    if error.use_stderr()
        && std::env::args()
            .nth(1)
            .is_some_and(|c| c == "gate" || c == "prepare")
    {
        let report = Report {
            failure: Some(Failure {
                class: Class::Internal,
                step: Step::Start,
                code: None,
                code_name: "Usage".into(),
                call: None,
                device: None,
                uuid: None,
                message: error.to_string(),
                advice: "Check that operator and gate image have the same version.".into(),
                confidence: Confidence::High,
                shared: false,
            }),
            ..Report::new(env!("CARGO_PKG_VERSION"))
        };
        let log = std::env::var_os(contract::gate::TERMINATION_LOG)
            .unwrap_or_else(|| contract::TERMINATION_LOG.into());
        write_summary(Path::new(&log), &report);
    }
    ExitCode::from(if error.use_stderr() {
        exit::USAGE
    } else {
        exit::PASSED
    })
}

/// Replaces the termination message.
pub(crate) fn write_summary(path: &Path, report: &Report) {
    if let Err(error) = files::replace(path, report.summary().as_bytes()) {
        eprintln!(
            "The termination message {} could not be written: {error}",
            path.display()
        );
    }
}

/// The first process of a container ignores SIGTERM unless it asks for it, and the pod would take its whole grace
/// period to end.
pub(crate) fn end_on_signal() {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: allowed in a signal handler. The kernel ends the container's other processes with its first.
        unsafe { libc::_exit(128 + signal) }
    }
    let handler = end as extern "C" fn(libc::c_int);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: the handler does nothing but end the process.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}
