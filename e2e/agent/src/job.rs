//! One job: hooks, steps, its log, and what stops it.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    control::{Cancel, Log},
    server::{Job, Server},
    settings::Settings,
    terminal,
    work::{self, Place},
    worker::Worker,
};

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conclusion {
    Success,
    Failure,
    Cancelled,
}

impl Conclusion {
    /// The server's word for it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }

    /// What the agent prints.
    pub(crate) fn result(self) -> &'static str {
        match self {
            Self::Success => "Succeeded",
            Self::Failure => "Failed",
            Self::Cancelled => "Canceled",
        }
    }
}

/// Runs a job to its end and reports it.
pub(crate) fn run(
    root: &Path,
    settings: &Settings,
    server: &Server,
    job: &Job,
    cancel: &Cancel,
) -> Conclusion {
    let _worker = Worker::start(root);
    let (log, sent) = stream(server, job.job_id);
    let over = Arc::new(AtomicBool::new(false));
    let conclusion = match Place::prepare(root, settings, job) {
        Ok(place) => {
            watch(server, job.job_id, cancel, &place, &over);
            attempt(&place, server, job, cancel, &log)
        }
        Err(error) => {
            log.line(&format!("##[error]{error:#}"));
            Conclusion::Failure
        }
    };
    over.store(true, Ordering::Relaxed);
    drop(log);
    // The log must be there before the job is over.
    let _ = sent.join();
    report(server, job.job_id, conclusion);
    conclusion
}

fn attempt(place: &Place, server: &Server, job: &Job, cancel: &Cancel, log: &Log) -> Conclusion {
    log.line(&format!("Runner name: '{}'", place.runner()));
    log.line(&format!("Job name: {}", job.name()));
    let mut conclusion = hook(
        "ACTIONS_RUNNER_HOOK_JOB_STARTED",
        "started",
        place,
        cancel,
        log,
    );
    if conclusion == Conclusion::Success {
        conclusion = steps(place, server, job, cancel, log);
    }
    // The last hook runs whatever happened, and nothing stops it.
    let last = hook(
        "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
        "completed",
        place,
        &Cancel::default(),
        log,
    );
    if conclusion == Conclusion::Success {
        conclusion = last;
    }
    conclusion
}

fn steps(place: &Place, server: &Server, job: &Job, cancel: &Cancel, log: &Log) -> Conclusion {
    for (index, step) in job.steps.iter().enumerate() {
        log.line(&format!("##[group]Run {}", step.name));
        for line in step.run.lines() {
            log.line(line);
        }
        log.line("##[endgroup]");
        let number = index + 1;
        // The report of a step is worth no second try: the job's end says it again.
        let _ = server.step(job.job_id, number, None);
        let conclusion = script(place, &format!("step-{number}.sh"), &step.run, cancel, log);
        let _ = server.step(job.job_id, number, Some(conclusion.as_str()));
        if conclusion != Conclusion::Success {
            return conclusion;
        }
    }
    if job.hold {
        return script(place, "hold.sh", work::HOLD, cancel, log);
    }
    Conclusion::Success
}

fn hook(variable: &str, event: &str, place: &Place, cancel: &Cancel, log: &Log) -> Conclusion {
    let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) else {
        return Conclusion::Success;
    };
    let path = Path::new(&path);
    log.line(&format!(
        "A job {event} hook has been configured by the self-hosted runner administrator"
    ));
    log.line(&format!("##[group]Run '{}'", path.display()));
    log.line("##[endgroup]");
    if !path.is_file() {
        log.line(&format!("##[error]File doesn't exist: {}", path.display()));
        return Conclusion::Failure;
    }
    conclude(place.bash(path, cancel, log), cancel, log)
}

fn script(place: &Place, name: &str, text: &str, cancel: &Cancel, log: &Log) -> Conclusion {
    let path = place.temp().join(name);
    let written = fs::write(&path, text).with_context(|| format!("writing {}", path.display()));
    conclude(
        written.and_then(|()| place.bash(&path, cancel, log)),
        cancel,
        log,
    )
}

fn conclude(exit: Result<i32>, cancel: &Cancel, log: &Log) -> Conclusion {
    if let Some(reason) = cancel.reason() {
        log.line(&format!("##[error]{reason}"));
        log.line("##[error]The operation was canceled.");
        return Conclusion::Cancelled;
    }
    match exit {
        Ok(0) => Conclusion::Success,
        Ok(code) => {
            log.line(&format!(
                "##[error]Process completed with exit code {code}."
            ));
            Conclusion::Failure
        }
        Err(error) => {
            log.line(&format!("##[error]{error:#}"));
            Conclusion::Failure
        }
    }
}

/// Sends lines in small batches, so that a log can be followed.
fn stream(server: &Server, job: u64) -> (Log, thread::JoinHandle<()>) {
    let (sender, lines) = mpsc::channel::<String>();
    let server = server.clone();
    let sent = thread::spawn(move || {
        let mut batch = String::new();
        loop {
            let last = match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    batch.push_str(&line);
                    while let Ok(line) = lines.try_recv() {
                        batch.push_str(&line);
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            if !batch.is_empty() && server.log(job, &batch).is_ok() {
                batch.clear();
            }
            if last {
                return;
            }
        }
    });
    (Log(sender), sent)
}

/// Listens for what the server wants of the job, which also keeps the runner online.
fn watch(server: &Server, job: u64, cancel: &Cancel, place: &Place, over: &Arc<AtomicBool>) {
    let server = server.clone();
    let cancel = cancel.clone();
    let over = Arc::clone(over);
    let released = place.temp().join(work::RELEASED);
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            match server.control(job) {
                Ok(Ok(Some(control))) => {
                    if control.cancel {
                        cancel.set("The run was canceled.");
                    }
                    if control.released && fs::write(&released, "").is_err() {
                        cancel.set("The job could not be released.");
                    }
                    // Reported once; the same answer comes again until the job is over.
                    thread::sleep(Duration::from_millis(500));
                }
                Ok(Ok(None)) => {}
                Ok(Err(_)) if over.load(Ordering::Relaxed) => return,
                Ok(Err(refusal)) => {
                    cancel.set(&refusal.message);
                    return;
                }
                Err(_) => thread::sleep(Duration::from_secs(1)),
            }
        }
    });
}

/// So often the end of a job is reported before the agent gives up.
const REPORTS: u32 = 10;

fn report(server: &Server, job: u64, conclusion: Conclusion) {
    for _ in 0..REPORTS {
        match server.complete(job, conclusion.as_str()) {
            Ok(_) => return,
            Err(error) => {
                terminal::trace("ERR ", "JobDispatcher", &format!("{error:#}"));
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}
