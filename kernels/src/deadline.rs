//! When a step of the test must be over.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, DirEntry};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// A step that waits for a CPU may take so many times its limit, where there is no limit for the whole.
const AT_MOST: u32 = 10;
/// Longest single wait: what one takes longer than this is a pause of the machine.
const LOOK: Duration = Duration::from_millis(250);

/// A limit for one step of the test process. Time in which that process wanted to run and got no CPU does not count, nor
/// does time in which the whole machine stood still: a busy host is no broken GPU, and neither is a paused one.
pub(crate) struct Deadline {
    process: u32,
    began: Instant,
    /// What each thread of the process had waited for a CPU when the step began.
    waited: HashMap<OsString, Duration>,
    /// How long the step may take.
    limit: Duration,
    /// How long the process has waited for a CPU in this step, when one last looked.
    starved: Duration,
    /// How much longer than asked for we ourselves have slept: in a paused or stolen machine nobody computes.
    overslept: Duration,
    end: Instant,
}

/// How long one has waited for a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited {
    pub(crate) all: Duration,
    /// The part of it in which the process had no CPU.
    pub(crate) starved: Duration,
}

impl Waited {
    /// Whether the process had no CPU for most of the step.
    pub(crate) fn was_starved(&self) -> bool {
        self.starved > self.all / 2
    }
}

impl Deadline {
    /// From now on, and not beyond the end of the whole.
    pub(crate) fn new(process: u32, limit: Duration, whole: Option<Instant>) -> Self {
        let began = Instant::now();
        Self {
            process,
            began,
            waited: waited_for_cpu(process),
            limit,
            starved: Duration::ZERO,
            overslept: Duration::ZERO,
            end: whole.unwrap_or_else(|| began + limit * AT_MOST),
        }
    }

    /// The next step begins; what the process waited for a CPU before counts for it as well.
    pub(crate) fn again(&mut self) {
        self.began = Instant::now();
    }

    /// What is told next; `Timeout` where nothing is told before the end of the step.
    pub(crate) fn next<T>(&mut self, told: &Receiver<T>) -> Result<T, RecvTimeoutError> {
        loop {
            let (asked, began) = (self.left().min(LOOK), Instant::now());
            let next = told.recv_timeout(asked);
            self.overslept += began.elapsed().saturating_sub(asked);
            let is_silent = matches!(next, Err(RecvTimeoutError::Timeout));
            if !is_silent || (self.left().is_zero() && self.is_over()) {
                return next;
            }
        }
    }

    /// What is left of the step's time, as far as is known.
    pub(crate) fn left(&self) -> Duration {
        let end = self.end.min(self.began + self.limit + self.without_cpu());
        end.saturating_duration_since(Instant::now())
    }

    /// What does not count. The larger of both: on a busy machine we wait for a CPU at the same time as the process.
    fn without_cpu(&self) -> Duration {
        self.starved.max(self.overslept)
    }

    /// Whether nothing is left, now that one looks how long the process has waited for a CPU.
    fn is_over(&mut self) -> bool {
        let now = waited_for_cpu(self.process);
        let before = |thread| self.waited.get(thread).copied().unwrap_or_default();
        let waits = now
            .iter()
            .map(|(thread, all)| all.saturating_sub(before(thread)));
        self.starved = waits.max().unwrap_or_default().max(self.starved);
        self.left().is_zero()
    }

    /// How long one has waited for the end of the step.
    pub(crate) fn waited(&self) -> Waited {
        Waited {
            all: self.began.elapsed(),
            starved: self.without_cpu(),
        }
    }
}

/// How long each thread of a process was ready to run and had no CPU; nothing where the kernel does not count it.
///
/// The second field of `/proc/PID/task/TID/schedstat`, in nanoseconds (`Documentation/scheduler/sched-stats.rst`).
fn waited_for_cpu(process: u32) -> HashMap<OsString, Duration> {
    let of_thread = |thread: DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let nanoseconds = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((thread.file_name(), Duration::from_nanos(nanoseconds)))
    };
    let threads = fs::read_dir(format!("/proc/{process}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads.filter_map(of_thread).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn time_without_a_cpu_does_not_count() {
        // Given two processes that want the same CPU all the time
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let allowed = status.split_once("Cpus_allowed_list:\t").unwrap().1;
        let cpu = allowed.split(['-', ',', '\n']).next().unwrap();
        let busy = || {
            let mut command = Command::new("taskset");
            command.args(["-c", cpu, "sh", "-c", "while :; do :; done"]);
            command.spawn().unwrap()
        };
        let mut both = [busy(), busy()];
        let limit = Duration::from_mins(1);
        let mut deadline = Deadline::new(both[0].id(), limit, None);
        let before = deadline.left();

        // When one of them has waited for it
        let enough = Duration::from_millis(50);
        let until = Instant::now() + limit / 2;
        while deadline.starved < enough && Instant::now() < until {
            assert!(!deadline.is_over());
            thread::yield_now();
        }
        let left = deadline.left() + deadline.began.elapsed();
        for process in &mut both {
            process.kill().unwrap();
            process.wait().unwrap();
        }

        // Then its step may take that much longer
        assert!(left > before + enough / 2, "{left:?} after {before:?}");
    }

    #[test]
    fn the_whole_bounds_a_step() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let starved = |limit, whole| Deadline {
            starved: second * 60,
            ..Deadline::new(std::process::id(), limit, whole)
        };
        let whole = starved(second * 10, Some(now + second * 3));
        assert!(whole.left() <= second * 3);
        assert!(whole.waited().was_starved());
        assert!(starved(second, None).left() <= second * 10);
    }

    #[test]
    fn a_pause_of_the_machine_does_not_count_and_nothing_counts_twice() {
        let second = Duration::from_secs(1);
        // Seconds that the process waited for a CPU, that we overslept, and that the step may take longer for both.
        for (starved, overslept, longer) in [(0, 0, 0), (0, 3, 3), (3, 0, 3), (2, 3, 3), (3, 2, 3)]
        {
            let deadline = Deadline {
                starved: second * starved,
                overslept: second * overslept,
                ..Deadline::new(std::process::id(), second * 60, None)
            };
            let end = deadline.began + second * (60 + longer);
            assert!(Instant::now() + deadline.left() <= end);
            assert!(deadline.left() >= end - Instant::now());
            assert_eq!(deadline.waited().starved, second * longer);
        }
    }

    #[test]
    fn a_wait_ends_with_what_is_told_or_with_the_step() {
        let (sender, told) = std::sync::mpsc::channel();
        let limit = LOOK * 2;
        let mut deadline = Deadline::new(u32::MAX, limit, None);
        sender.send(1).unwrap();
        assert_eq!(deadline.next(&told), Ok(1));
        assert_eq!(deadline.next(&told), Err(RecvTimeoutError::Timeout));
        assert!(deadline.waited().all >= limit + deadline.overslept);
        drop(sender);
        assert_eq!(deadline.next(&told), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_process_that_is_gone_has_not_waited() {
        assert!(waited_for_cpu(u32::MAX).is_empty());
    }
}
