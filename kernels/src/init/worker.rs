//! The agent's process for one job, `Runner.Worker`: how it is found, and how it is ended so that the job fails with a reason.
//!
//! Where that process ends otherwise than it should, the listener fails the job by itself, whatever steps say `always()`, and
//! shows what the process wrote (actions/runner, `src/Runner.Listener/JobDispatcher.cs`).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Its name.
const WORKER: &str = "Runner.Worker";
/// How long its end is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// A process that has the agent's name for it. Another one may have its number later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Worker {
    pid: Pid,
    started: u64,
}

impl Worker {
    /// The worker that has called this process: the nearest of our ancestors with its name, or else what has called us. A
    /// process that somebody else gave that name is no ancestor.
    pub(crate) fn above() -> Option<Self> {
        let parent = rustix::process::getppid()?;
        let named = ancestors(parent).find(|pid| is_named(*pid));
        let pid = named.or(Some(parent)).filter(|pid| *pid != Pid::INIT)?;
        Self::of(pid)
    }

    /// The worker that an agent has started.
    pub(crate) fn below(agent: Pid) -> Option<Self> {
        let named = processes().filter(|pid| is_named(*pid));
        let mut ours = named.filter(|pid| ancestors(*pid).any(|above| above == agent));
        ours.find_map(Self::of)
    }

    fn of(pid: Pid) -> Option<Self> {
        let started = Stat::read(pid)?.started;
        Some(Self { pid, started })
    }

    /// Whether it runs.
    pub(crate) fn is_alive(self) -> bool {
        Stat::read(self.pid)
            .is_some_and(|stat| stat.started == self.started && !['Z', 'X'].contains(&stat.state))
    }

    /// Says why, and kills it.
    pub(crate) fn kill(self, sentence: &str) {
        // What is lost is the reason, not the end.
        let _ = self.say(sentence);
        // Refused only where it is gone already.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }

    /// Waits for its end.
    pub(crate) fn wait(self) {
        let until = Instant::now() + PATIENCE;
        while self.is_alive() && Instant::now() < until {
            thread::sleep(LOOK);
        }
    }

    /// What it has started, and what that has.
    pub(crate) fn descendants(self) -> Vec<Pid> {
        let mut children: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
        for pid in processes() {
            if let Some(parent) = Stat::read(pid).and_then(|stat| stat.parent) {
                children
                    .entry(parent.as_raw_nonzero().get())
                    .or_default()
                    .push(pid);
            }
        }
        let mut all = vec![];
        let mut next = vec![self.pid];
        while let Some(pid) = next.pop() {
            let own = children.remove(&pid.as_raw_nonzero().get());
            let own = own.unwrap_or_default();
            all.extend(&own);
            next.extend(own);
        }
        all
    }

    /// Writes into its standard error. That is a pipe of its own: who does not read it need not be waited for.
    fn say(self, sentence: &str) -> io::Result<()> {
        OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/{}/fd/2", self.pid.as_raw_nonzero()))?
            .write_all(format!("{sentence}\n").as_bytes())
    }
}

/// Adds a line for the operator to the container's termination message.
pub(crate) fn leave_mark(mark: &Value, log: &Path) {
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(log)
        .and_then(|mut log| log.write_all(format!("{mark}\n").as_bytes()));
    if let Err(error) = written {
        let log = log.display();
        eprintln!("The termination message {log} could not be written: {error}");
    }
}

/// The time as marks have it.
pub(crate) fn seconds_now() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs().to_string()
}

/// A process and those above it, but for the first of all.
fn ancestors(pid: Pid) -> impl Iterator<Item = Pid> {
    std::iter::successors(Some(pid), |pid| Stat::read(*pid)?.parent)
        .take_while(|pid| *pid != Pid::INIT)
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw)
}

fn is_named(pid: Pid) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
    name.is_ok_and(|name| name.trim_end() == WORKER)
}

/// What the kernel says of a process.
struct Stat {
    state: char,
    parent: Option<Pid>,
    /// When it was started, in ticks since the node's own start.
    started: u64,
}

impl Stat {
    /// Reads `/proc/PID/stat`: the name is in brackets, and may have some itself.
    fn read(pid: Pid) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        let (_, rest) = text.rsplit_once(')')?;
        let mut words = rest.split_whitespace();
        Some(Self {
            state: words.next()?.chars().next()?,
            parent: Pid::from_raw(words.next()?.parse().ok()?),
            // The 22nd field; this is the fifth.
            started: words.nth(17)?.parse().ok()?,
        })
    }
}
