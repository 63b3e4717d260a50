//! `sample`: beside the agent, or beside the steps of a job, in whichever image. Watches the GPUs while a job runs, and says
//! to who asks what they did.
//!
//! Nobody waits for it and nothing rests on it: it can crash, hang, or not start at all. It is the job's own user's, who may
//! end it or answer in its place.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::files;
use gate_report::contract::file;
use gate_report::usage::GpuUsage;
use gate_report::{Report, exit};

use crate::args::SampleArgs;
use crate::host;
use crate::nvml::Usage;

/// Between two looks at the GPUs.
const LOOK: Duration = Duration::from_secs(5);
/// The same, where the driver does not remember what happens between them.
const SHORT_LOOK: Duration = Duration::from_secs(1);
/// How often it is seen whether a job runs.
const POLL: Duration = Duration::from_millis(250);
/// For so long who asks waits for a last look; then what is known already must do.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Longest report of the gate.
const LONGEST_REPORT: u64 = 256 * 1024;

/// What was seen last.
type Seen = Arc<Mutex<Vec<GpuUsage>>>;
/// Where an answer goes.
type Question = SyncSender<Vec<GpuUsage>>;
/// What tells one job's file from the next one's.
type Mark = (u64, i64, i64);

/// Watches until it is killed; ends by itself only where nobody could ask it.
pub(crate) fn run(args: &SampleArgs) -> u8 {
    // SAFETY: plain system calls; this process must not outlive the container's first one, nor take a CPU from a job.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
    let Ok(listener) = files::listen(&args.dir.join(file::SAMPLER_SOCKET)) else {
        return exit::INTERNAL;
    };
    let (sender, questions) = mpsc::sync_channel(1);
    let seen = Seen::default();
    let shared = Arc::clone(&seen);
    thread::spawn(move || answer_all(&listener, &sender, &shared));
    Sampler::new(args, seen).work(&questions);
    exit::PASSED
}

/// One after the other: an agent asks once for each job.
fn answer_all(listener: &UnixListener, questions: &SyncSender<Question>, seen: &Seen) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            thread::sleep(POLL);
            continue;
        };
        let (sender, answer) = mpsc::sync_channel(1);
        let asked = questions.try_send(sender).is_ok();
        let fresh = answer.recv_timeout(PATIENCE).ok().filter(|_| asked);
        let known = || take(seen);
        write(stream, &fresh.unwrap_or_else(known));
    }
}

/// Who has gone away needs no answer.
fn write(mut stream: UnixStream, gpus: &[GpuUsage]) {
    if let Ok(json) = serde_json::to_vec(gpus)
        && stream.set_write_timeout(Some(PATIENCE)).is_ok()
    {
        let _ = stream.write_all(&json);
    }
}

fn take(seen: &Seen) -> Vec<GpuUsage> {
    std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The state of the watch.
struct Sampler<'a> {
    args: &'a SampleArgs,
    seen: Seen,
    usage: Option<Usage>,
    /// The library was looked for.
    has_tried: bool,
    /// The job that was seen last.
    job: Option<Mark>,
    /// When to look next; none where no job is watched.
    next: Option<Instant>,
}

impl<'a> Sampler<'a> {
    fn new(args: &'a SampleArgs, seen: Seen) -> Self {
        Self {
            args,
            seen,
            usage: None,
            has_tried: false,
            job: None,
            next: None,
        }
    }

    fn work(&mut self, questions: &Receiver<Question>) {
        loop {
            match questions.recv_timeout(POLL) {
                Ok(question) => {
                    self.finish();
                    // It may have given up.
                    let _ = question.send(take(&self.seen));
                }
                Err(RecvTimeoutError::Timeout) => self.step(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Sees whether a job has begun or ended, and looks where it is time.
    fn step(&mut self) {
        let job = self.job_now();
        if job != self.job {
            self.finish();
            self.job = job;
            if job.is_some() {
                self.begin();
            }
        } else if self.next.is_some_and(|at| Instant::now() >= at) {
            self.look();
        }
    }

    fn begin(&mut self) {
        take(&self.seen);
        if !self.has_tried {
            self.has_tried = true;
            let root = self.args.library_root.clone();
            let shared = self.args.shared || host::has_mps();
            self.usage = Usage::load(root, &gpus(&self.args.dir), shared);
        }
        if let Some(usage) = &mut self.usage {
            usage.begin();
            self.look();
        }
    }

    fn look(&mut self) {
        let Some(usage) = &mut self.usage else { return };
        usage.look();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = usage.told();
        let pause = if usage.is_remembered() {
            LOOK
        } else {
            SHORT_LOOK
        };
        self.next = Some(Instant::now() + pause);
    }

    /// The last look at what a job did.
    fn finish(&mut self) {
        if self.next.is_some() {
            self.look();
        }
        self.next = None;
    }

    /// The job that runs now.
    fn job_now(&self) -> Option<Mark> {
        if self.args.now {
            return Some(Mark::default());
        }
        let file = fs::symlink_metadata(self.args.dir.join(file::BUSY)).ok()?;
        Some((file.ino(), file.mtime(), file.mtime_nsec()))
    }
}

/// The GPUs that the gate found, by UUID and product.
fn gpus(dir: &Path) -> Vec<(String, String)> {
    let report = files::read(&dir.join(file::PASSED), LONGEST_REPORT).ok();
    let report = report.and_then(|json| Report::read(&json).ok());
    let devices = report.map(|report| report.devices).unwrap_or_default();
    devices
        .into_iter()
        .map(|one| (one.uuid, one.name))
        .collect()
}
