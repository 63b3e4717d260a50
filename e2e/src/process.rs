//! Running programs, and knowing processes again: by pid *and* start time, so that a recycled pid is never ours.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::paths;

/// The environment variable that every process of a cluster carries, with the cluster's folder as its value. `down`
/// finds by it what a killed run left before it could write anything down.
pub const MARKER: &str = "CUDA_RUNNER_E2E_CLUSTER";

/// The cargo that runs us, in the repository.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(paths::repository());
    command
}

/// A process, told apart from later ones with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: u32,
    /// Clock ticks from boot to its start.
    pub start: u64,
}

impl Identity {
    /// The identity of a running process.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat).map(|(start, _)| Self { pid, start })
    }

    /// The process that asks.
    pub fn own() -> Result<Self> {
        Self::of(std::process::id()).context("cannot read /proc/self/stat: is /proc mounted?")
    }

    /// Whether it still runs. A zombie does not.
    pub fn alive(self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| parse_stat(&stat))
            .is_some_and(|(start, state)| start == self.start && state != 'Z' && state != 'X')
    }

    /// Its program, and the processor's time that it has had, in seconds; nothing where it is gone.
    pub fn usage(self) -> Option<(String, f64)> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid));
        let program = fs::read_link(proc.join("exe")).ok()?;
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        // Fields 14 and 15 of the line: in the program itself, and in the kernel for it.
        let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let ticks: u32 = fields
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse::<u32>().ok())
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "a hundred a second")]
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        // A build may have replaced it meanwhile.
        let name = program.file_name()?.to_string_lossy();
        let name = name.trim_end_matches(" (deleted)").to_owned();
        Some((name, f64::from(ticks) / per_second))
    }

    /// Its resident memory in MiB: now, and at its peak. An error where it is gone.
    pub fn memory(self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib: f64 = line
                .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
                .with_context(|| format!("the kernel does not say {name}"))?;
            anyhow::Ok(kib / 1024.0)
        };
        Ok((field("VmRSS:")?, field("VmHWM:")?))
    }

    /// Sends a signal to exactly this process; nothing happens where it is gone.
    pub fn signal(self, signal: Signal) {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return;
        };
        // The descriptor pins the process; only then is the check of the start time worth anything.
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        if self.alive() {
            // It may end between the check and the signal, which is what the signal is for.
            let _ = pidfd_send_signal(&fd, signal);
        }
    }
}

/// Start time and state from a line of `/proc/PID/stat`. The name in parentheses may itself hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(u64, char)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the line is the 20th after the name, the 19th after the state.
    Some((fields.nth(18)?.parse().ok()?, state))
}

/// Every running process that carries the [`MARKER`] of this folder, ourselves excepted.
pub fn marked(dir: &Path) -> Vec<Identity> {
    let wanted = format!("{MARKER}={}", dir.display());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            // Identity first: if the pid is reused in between, the signal later does not fit it.
            let identity = Identity::of(pid)?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            environment
                .split(|b| *b == 0)
                .any(|v| v == wanted.as_bytes())
                .then_some(identity)
        })
        .filter(|identity| identity.alive())
        .collect()
}

/// Every process of a pod of the cluster with this cgroup.
pub fn in_pod(cgroup: &str, uid: &str) -> Vec<Identity> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let identity = Identity::of(pid)?;
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
            (groups.contains(cgroup) && groups.contains(uid)).then_some(identity)
        })
        .collect()
}

/// Polls until the condition holds. For conditions that have nothing to wait on; short steps, and an end.
pub fn poll(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            bail!("waited {} s for {what}, in vain", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Runs a program to its end and gives its standard output. A failure shows the end of what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !done.status.success() {
        let mut text = String::from_utf8_lossy(&done.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&done.stderr));
        bail!("`{shown}` failed ({}):\n{}", done.status, tail(&text, 30));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a program to its end, with everything that it writes kept in a file.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let shown = show(command);
    let file = append(log)?;
    let done = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !done.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        bail!(
            "`{shown}` failed ({done}); the end of {}:\n{}",
            log.display(),
            tail(&text, 30)
        );
    }
    Ok(())
}

/// Opens a log for appending, with its folder.
pub fn append(log: &Path) -> Result<fs::File> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open the log {}", log.display()))
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Program and arguments in one line, for messages.
fn show(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Finds a program as a shell would, and in the administrator's folders, which a user's PATH often lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Removes a folder, present or not. In steps, because a dying process may still write into it.
pub fn remove_dir(dir: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !dir.exists() => {
                return Ok(());
            }
            Err(error) if start.elapsed() > Duration::from_mins(1) => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 9";
        assert_eq!(parse_stat(stat), Some((777, 'S')));
    }

    #[test]
    fn a_recycled_pid_is_not_alive() {
        let own = Identity::own().unwrap();
        assert!(own.alive());
        assert!(
            !Identity {
                start: own.start + 1,
                ..own
            }
            .alive()
        );
    }

    #[test]
    fn marked_processes_are_found_and_only_those() {
        let dir = std::env::temp_dir().join(format!("e2e-marker-{}", std::process::id()));
        let mut child = Command::new("sleep")
            .arg("60")
            .env(MARKER, &dir)
            .spawn()
            .unwrap();
        poll("the child", Duration::from_secs(5), || {
            marked(&dir).len() == 1
        })
        .unwrap();
        assert!(marked(&dir.join("other")).is_empty());
        marked(&dir)[0].signal(Signal::KILL);
        child.wait().unwrap();
        assert!(marked(&dir).is_empty());
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
    }
}
