//! What the agent calls before a job of a pool that does not take every job.
//!
//! A hook that fails stops neither steps with `if: always()` nor what actions do before them (actions/runner,
//! `src/Runner.Worker/JobExtension.cs`). So a refusal ends the agent's process for the job, `Runner.Worker`: the listener
//! then fails the job by itself, and shows what that process wrote (`src/Runner.Listener/JobDispatcher.cs`).
//!
//! The verdict rests on our own folder, and on variables that the agent sets after all others.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use cuda_smoke::files;
use gate_report::allow::{Asking, LONGEST_EVENT, Payload, Policy};
use gate_report::clean;
use gate_report::contract::{file, gate, mark, script};
use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::gpu::{self, Settings};
use crate::process;

/// The agent's process for one job.
const WORKER: &str = "Runner.Worker";
/// How long its end is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// Longest name in a mark, in characters. The termination message has 4 KiB for all.
const LONGEST_NAME: usize = 140;
/// Longest reason in a mark, in characters.
const LONGEST_WHY: usize = 400;
/// With which a hook fails.
const FAILED: u8 = 1;

/// Lets the job begin with the hook of every pool, or ends it. Returns where the job must not go on.
pub(crate) fn run(dir: &Path) -> u8 {
    let settings = gpu::settings(dir).map_err(|error| error.to_string());
    let verdict = match &settings {
        Ok(settings) => judge(settings),
        Err(error) => Err(error.clone()),
    };
    let Err(why) = verdict else {
        let mut hook = Command::new("/bin/sh");
        hook.arg("-e")
            .arg(dir.join(file::JOB_STARTED))
            .env(script::DIR, dir);
        return process::become_program(&mut hook);
    };
    refuse(&why, gpu::termination_log(&settings.unwrap_or_default()));
    FAILED
}

/// Whether the job may run; why not, as a sentence without an end.
fn judge(settings: &Settings) -> Result<(), String> {
    let policy = settings.get(gate::ALLOW).map(String::as_str);
    let policy: Policy = serde_json::from_str(policy.unwrap_or_default())
        .map_err(|error| format!("the pool's policy could not be read: {error}"))?;
    let payload = if policy.forks {
        Payload::default()
    } else {
        payload()?
    };
    let job = Asking {
        event: variable("GITHUB_EVENT_NAME"),
        git_ref: variable("GITHUB_REF"),
        payload,
    };
    policy.refusal(&job).map_or(Ok(()), Err)
}

/// What GitHub says of the event. An event may have nothing to say.
fn payload() -> Result<Payload, String> {
    let path = PathBuf::from(std::env::var_os("GITHUB_EVENT_PATH").unwrap_or_default());
    if path.as_os_str().is_empty() {
        return Ok(Payload::default());
    }
    let bytes = files::read(&path, LONGEST_EVENT).map_err(|error| error.to_string());
    bytes
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
        .map_err(|why| format!("the payload of its event could not be read: {why}"))
}

fn variable(name: &str) -> String {
    let text = std::env::var_os(name).map(OsString::into_string);
    text.map_or_else(String::new, |text| {
        text.unwrap_or_else(|other| other.to_string_lossy().into_owned())
    })
}

/// Tells the operator and the job's people why, and ends the job.
fn refuse(why: &str, log: &Path) {
    if let Err(error) = leave_mark(why, log) {
        let log = log.display();
        eprintln!("The termination message {log} could not be written: {error}");
    }
    let sentence = format!(
        "This job may not use the GPUs of this pool, and none of its steps has run: {why}. The pool's spec.jobs.allow decides; ask who runs the pool."
    );
    // Where the worker is gone, its log is too. This is for one that cannot be ended.
    println!("::error::{sentence}");
    let Some(worker) = worker() else {
        return;
    };
    // What is lost is the reason, not the refusal.
    let _ = say_as(worker, &sentence);
    // Refused only where it is gone already.
    let _ = rustix::process::kill_process(worker, Signal::KILL);
    let until = Instant::now() + PATIENCE;
    while is_alive(worker) && Instant::now() < until {
        thread::sleep(LOOK);
    }
}

fn leave_mark(why: &str, log: &Path) -> io::Result<()> {
    let name = |name| clean(&variable(name), LONGEST_NAME);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mark = json!({
        "mark": mark::REFUSED,
        "job": name("GITHUB_JOB"),
        "run": name("GITHUB_RUN_ID"),
        "attempt": name("GITHUB_RUN_ATTEMPT"),
        "at": now.unwrap_or_default().as_secs().to_string(),
        "workflow": name("GITHUB_WORKFLOW"),
        "repository": name("GITHUB_REPOSITORY"),
        "why": clean(why, LONGEST_WHY),
    });
    let mut log = OpenOptions::new().append(true).create(true).open(log)?;
    log.write_all(format!("{mark}\n").as_bytes())
}

/// The process that runs the job: the nearest of our ancestors with its name, or else what has called us. A process that
/// somebody else gave that name is no ancestor.
fn worker() -> Option<Pid> {
    let parent = rustix::process::getppid()?;
    let ancestors = std::iter::successors(Some(parent), |pid| stat(*pid)?.parent);
    let named = ancestors
        .take_while(|pid| *pid != Pid::INIT)
        .find(|pid| stat(*pid).is_some_and(|stat| stat.name == WORKER));
    named.or(Some(parent)).filter(|pid| *pid != Pid::INIT)
}

/// Writes into a process' standard error. That is a pipe of its own: who does not read it need not be waited for.
fn say_as(pid: Pid, sentence: &str) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/{}/fd/2", pid.as_raw_nonzero()))?
        .write_all(format!("{sentence}\n").as_bytes())
}

fn is_alive(pid: Pid) -> bool {
    stat(pid).is_some_and(|stat| !['Z', 'X'].contains(&stat.state))
}

/// What the kernel says of a process.
struct Stat {
    name: String,
    state: char,
    parent: Option<Pid>,
}

/// Reads `/proc/PID/stat`: the name is in brackets, and may have some itself.
fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (head, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    Some(Stat {
        name: head.split_once('(')?.1.to_owned(),
        state: words.next()?.chars().next()?,
        parent: Pid::from_raw(words.next()?.parse().ok()?),
    })
}
