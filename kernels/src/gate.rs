//! `gate`: the init container's entry. Test, report, registration.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gate_report::wire::Registration;
use gate_report::{Class, Confidence, Failure, Outcome, Report, Step, contract, exit};

use crate::args::GateArgs;
use crate::registrar::{Answer, Error, Registrar};
use crate::{preflight, registration, supervisor};

/// How long a failing report is offered to the registrar. It is in the termination message anyway.
const FAILING_REPORT: Duration = Duration::from_secs(10);

/// Tests, reports, stores the registration, and returns the exit code.
pub(crate) fn run(args: &GateArgs) -> u8 {
    end_on_signal();
    let preflight = args.preflight.as_ref().map(preflight::start);
    let mut report = Report {
        node: args.node.clone(),
        namespace: args.namespace.clone(),
        pod: args.pod.clone(),
        ..supervisor::test(&args.test)
    };
    if let Some(preflight) = preflight {
        preflight.finish(&args.registration_dir, &mut report);
    }
    // Written before the registrar is asked, in case we do not live to hear its answer.
    write_summary(&args.termination_log, &report);
    print!("{}", report.text());
    let code = if report.passed() {
        register(args, &mut report)
    } else {
        hand_in(args, &report);
        report.exit_code()
    };
    if code != exit::PASSED {
        write_summary(&args.termination_log, &report);
    }
    code
}

/// Reports the failure. Whatever comes back, the class of the failure stands.
fn hand_in(args: &GateArgs, report: &Report) {
    let deadline = Instant::now() + args.registration_timeout.min(FAILING_REPORT);
    match Registrar::new(args).and_then(|registrar| registrar.submit(report, deadline)) {
        Ok(Answer::Noted) => {}
        Ok(Answer::Registered(_)) => {
            eprintln!("The registrar gave a registration for a failing report; it is not used.");
        }
        Ok(Answer::Refused(refusal)) => eprintln!(
            "The registrar answered: {}: {}",
            refusal.reason, refusal.message
        ),
        Err(error) => eprintln!("The registrar did not take the report: {error}"),
    }
}

/// Exchanges a passing report for a registration.
fn register(args: &GateArgs, report: &mut Report) -> u8 {
    let deadline = Instant::now() + args.registration_timeout;
    let result = Registrar::new(args)
        .and_then(|registrar| registrar.submit(report, deadline))
        .and_then(|answer| match answer {
            Answer::Registered(registration) => store(args, &registration),
            Answer::Refused(refusal) => Err(Error::Refused {
                reason: refusal.reason,
                message: refusal.message,
            }),
            Answer::Noted => Err(Error::Internal(
                "the registrar noted a passing report as failing".into(),
            )),
        });
    match result {
        Ok(()) => {
            println!("registered");
            exit::PASSED
        }
        Err(error) => {
            eprintln!("No registration: {error}");
            report.outcome = Outcome::Failed;
            report.failure = Some(error.failure());
            error.exit_code()
        }
    }
}

fn store(args: &GateArgs, registration: &Registration) -> Result<(), Error> {
    registration::store(&args.registration_dir, registration).map_err(|error| {
        Error::Internal(format!(
            "the registration could not be written to {}: {error}",
            args.registration_dir.display()
        ))
    })
}

/// The command line was not understood: says so where the operator looks, too.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Help and version come this way as well; a failure to print them has no one to be told to.
    let _ = error.print();
    if error.use_stderr() && std::env::args().nth(1).as_deref() == Some("gate") {
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

/// Replaces the termination message. In place: it is a mount and cannot be renamed over.
fn write_summary(path: &Path, report: &Report) {
    let result = OpenOptions::new()
        .write(true)
        .truncate(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(report.summary().as_bytes()));
    if let Err(error) = result {
        eprintln!(
            "The termination message {} could not be written: {error}",
            path.display()
        );
    }
}

/// The first process of a container ignores SIGTERM unless it asks for it, and the pod would take its whole grace
/// period to end.
fn end_on_signal() {
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
