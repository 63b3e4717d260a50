//! The time limit of a pool's jobs: kept by the first process of the agent's container, which no job can end.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cuda_smoke::files;
use gate_report::contract::{file, gate, mark};
use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::gpu::Settings;
use crate::worker::{self, Worker};

/// How often the agent's process for a job is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// The limit of jobs, and what their end leaves.
struct Limit {
    agent: Pid,
    most: Duration,
    log: PathBuf,
    busy: PathBuf,
}

/// Ends jobs that take longer than the pool lets them, for as long as this process lives. Where it lets them take their
/// time, nothing is looked at.
pub(crate) fn keep(agent: Pid, dir: &Path, log: &Path, settings: &Settings) {
    let seconds = settings.get(gate::MAX_JOB_SECONDS);
    let Some(seconds) = seconds.and_then(|seconds| seconds.parse().ok()) else {
        return;
    };
    let limit = Limit {
        agent,
        most: Duration::from_secs(seconds),
        log: log.to_owned(),
        busy: dir.join(file::BUSY),
    };
    thread::spawn(move || limit.keep());
}

impl Limit {
    fn keep(&self) {
        let mut current: Option<(Worker, Instant)> = None;
        loop {
            thread::sleep(LOOK);
            current = current
                .filter(|(worker, _)| worker.is_alive())
                .or_else(|| Worker::below(self.agent).map(|worker| (worker, Instant::now())));
            if let Some((worker, _)) = current.filter(|(_, since)| since.elapsed() >= self.most) {
                self.end(worker);
                current = None;
            }
        }
    }

    /// Ends a job, and what it runs: a runner that goes on has the GPU free again, and is idle.
    fn end(&self, worker: Worker) {
        let minutes = self.most.as_secs().div_ceil(60);
        let mark =
            json!({"mark": mark::TIMED_OUT, "minutes": minutes, "at": worker::seconds_now()});
        worker::leave_mark(&mark, &self.log);
        let of_the_job = worker.descendants();
        worker.kill(&format!(
            "This job has exceeded the maximum execution time of {minutes} minutes and was ended. The pool's spec.jobs.maxMinutes is the limit; ask who runs the pool."
        ));
        for process in of_the_job {
            // Refused only where it is gone already, or another user's.
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
        // The hook after the job was not called.
        let _ = files::forget(&self.busy);
    }
}
