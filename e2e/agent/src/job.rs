//! One job: its log, what stops it, and how its end is reported.

use std::{
    env,
    ffi::OsString,
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

use crate::{
    control::{Cancel, Log},
    run::Run,
    server::{Job, Reported, Server},
    settings::Settings,
    terminal,
    work::{self, Place},
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

    /// The exit code of the process that ran the job.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 100,
            Self::Failure => 102,
            Self::Cancelled => 103,
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
    let (log, sent) = stream(server, job);
    let over = Arc::new(AtomicBool::new(false));
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let own = env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    let conclusion = match Place::prepare(root, settings, job, &own) {
        Ok(place) => {
            let place = Arc::new(place);
            watch(server, job.job_id, cancel, &place, &over);
            attempt(place, server, job, cancel, &log)
        }
        Err(error) => {
            log.error(&format!("{error:#}"));
            Conclusion::Failure
        }
    };
    over.store(true, Ordering::Relaxed);
    let (annotations, summary) = (log.annotations(), log.summary());
    drop(log);
    // The log must be there before the job is over.
    let _ = sent.join();
    let annotations: Vec<&str> = annotations.iter().map(String::as_str).collect();
    report(server, job.job_id, conclusion, &annotations, &summary);
    conclusion
}

/// Reports a job whose process ended otherwise than it should, with what that printed.
pub(crate) fn force_fail(server: &Server, job: u64, output: &str) -> Conclusion {
    let annotation = Some(output).filter(|output| !output.trim().is_empty());
    report(server, job, Conclusion::Failure, annotation.as_slice(), "");
    Conclusion::Failure
}

fn attempt(
    place: Arc<Place>,
    server: &Server,
    job: &Job,
    cancel: &Cancel,
    log: &Log,
) -> Conclusion {
    log.line(&format!("Runner name: '{}'", place.runner));
    let steps = Reported {
        server,
        job: job.job_id,
    };
    let mut run = match Run::set_up(place, job, &steps, cancel, log) {
        Ok(run) => run,
        Err(error) => {
            log.error(&format!("{error:#}"));
            return Conclusion::Failure;
        }
    };
    log.line(&format!("Complete job name: {}", job.name()));
    run.finish_all()
}

/// Sends lines in small batches, so that a log can be followed.
fn stream(server: &Server, job: &Job) -> (Log, thread::JoinHandle<()>) {
    let (sender, lines) = mpsc::channel::<String>();
    let log = Log::new(sender, job.secrets.values());
    let server = server.clone();
    let job = job.job_id;
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
    (log, sent)
}

/// Listens for what the server wants of the job, which also keeps the runner online.
fn watch(server: &Server, job: u64, cancel: &Cancel, place: &Place, over: &Arc<AtomicBool>) {
    let server = server.clone();
    let cancel = cancel.clone();
    let over = Arc::clone(over);
    let released = place.temp.join(work::RELEASED);
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            match server.control(job) {
                Ok(Ok(Some(control))) => {
                    if let Some(reason) = &control.cancel {
                        cancel.set(reason);
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

fn report(server: &Server, job: u64, conclusion: Conclusion, annotations: &[&str], summary: &str) {
    for _ in 0..REPORTS {
        match server.complete(job, conclusion.as_str(), annotations, summary) {
            Ok(_) => return,
            Err(error) => {
                terminal::trace("ERR ", "JobDispatcher", &format!("{error:#}"));
                thread::sleep(Duration::from_secs(1));
            }
        }
    }
}
