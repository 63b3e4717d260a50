//! Signals, children, and orphans.

use std::io;
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};

/// With which a process ends that SIGTERM ended.
pub(crate) const TERMINATED: u8 = 143;
/// With which a process ends that SIGKILL ended.
pub(crate) const KILLED: u8 = 137;
/// What shells say of a program that is not there.
const NOT_FOUND: u8 = 127;
/// What shells say of a program that could not be started.
const NOT_STARTED: u8 = 126;
/// How often signals are looked for where something else is waited for as well.
const LOOK: Duration = Duration::from_millis(10);

/// The signals of this process. While it exists, none of them ends it.
pub(crate) struct Signals(signal_hook::iterator::Signals);

impl Signals {
    /// Takes them over. Orphans become our children wherever we are: in a pod with one process namespace for all
    /// containers, we are not its first process.
    pub(crate) fn new() -> io::Result<Self> {
        let own = signal_hook::iterator::Signals::new([
            SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
        ])?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        Ok(Self(own))
    }

    /// Waits for a child and reaps all others. `Break` where a signal says so: the child is killed, and we end with
    /// this code.
    pub(crate) fn supervise(
        &mut self,
        child: Pid,
        mut on: impl FnMut(i32) -> ControlFlow<u8>,
    ) -> ControlFlow<u8, u8> {
        loop {
            if let Some(code) = reap(child) {
                return ControlFlow::Continue(code);
            }
            for signal in self.0.wait() {
                if signal == SIGCHLD {
                    continue;
                }
                if let ControlFlow::Break(code) = on(signal) {
                    // Refused only where it is gone already.
                    let _ = rustix::process::kill_process(child, Signal::KILL);
                    return ControlFlow::Break(code);
                }
            }
        }
    }

    /// Does something on another thread. SIGTERM and SIGINT end us meanwhile, and so does `over`, with its code. `None` where
    /// that thread panicked.
    pub(crate) fn during<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
        over: impl Fn() -> Option<u8>,
    ) -> ControlFlow<u8, Option<T>> {
        let worker = thread::spawn(work);
        while !worker.is_finished() {
            if self.is_told_to_end() {
                return ControlFlow::Break(TERMINATED);
            }
            if let Some(code) = over() {
                return ControlFlow::Break(code);
            }
            thread::sleep(LOOK);
        }
        ControlFlow::Continue(worker.join().ok())
    }

    /// Whether SIGTERM or SIGINT came.
    pub(crate) fn is_told_to_end(&mut self) -> bool {
        self.0.pending().any(ends)
    }

    /// Waits for SIGTERM or SIGINT, for so long.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) {
        let start = Instant::now();
        while !self.is_told_to_end() && start.elapsed() < limit {
            thread::sleep(LOOK);
        }
    }

    /// Waits for SIGTERM or SIGINT. Meanwhile children end, which is for somebody else.
    pub(crate) fn wait_with(&mut self, mut child_ended: impl FnMut()) {
        loop {
            let signals: Vec<i32> = self.0.wait().collect();
            if signals.contains(&SIGCHLD) {
                child_ended();
            }
            if signals.into_iter().any(ends) {
                return;
            }
        }
    }
}

/// Whether the signal asks us to end.
pub(crate) fn ends(signal: i32) -> bool {
    [SIGTERM, SIGINT].contains(&signal)
}

/// Before the agent runs, there is nothing to wait for.
pub(crate) fn end_at_once(signal: i32) -> ControlFlow<u8> {
    if ends(signal) {
        return ControlFlow::Break(TERMINATED);
    }
    ControlFlow::Continue(())
}

/// Hands a signal on.
pub(crate) fn forward(child: Pid, signal: i32) -> ControlFlow<u8> {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // Refused only where it is gone already.
        let _ = rustix::process::kill_process(child, signal);
    }
    ControlFlow::Continue(())
}

/// Sends a signal to a process and all that belong to it.
pub(crate) fn forward_to_group(leader: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // Refused only where they are gone already.
        let _ = rustix::process::kill_process_group(leader, signal);
    }
}

/// Starts a program; the exit code of a shell where that fails.
pub(crate) fn start(command: &mut Command) -> Result<Pid, u8> {
    match command.spawn() {
        Ok(child) => Ok(Pid::from_child(&child)),
        Err(error) => Err(not_started(command, &error)),
    }
}

/// Becomes a program; returns where that fails, with the exit code of a shell.
pub(crate) fn become_program(command: &mut Command) -> u8 {
    let error = command.exec();
    not_started(command, &error)
}

fn not_started(command: &Command, error: &io::Error) -> u8 {
    let program = command.get_program().display();
    eprintln!("{program} could not be started: {error}");
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_STARTED,
    }
}

/// Whether the container has processes of its own, and we are the first of them.
pub(crate) fn is_first() -> bool {
    rustix::process::getpid() == Pid::INIT
}

/// Kills whatever else runs in the container, if the container has processes of its own.
pub(crate) fn kill_all_others() {
    if is_first() {
        // The group of process 1 is, by definition of kill(2), all processes but the first.
        let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    }
}

/// Reaps all that have ended. The exit code, where this child is among them.
fn reap(child: Pid) -> Option<u8> {
    reaped()
        .filter_map(|(ended, code)| (ended == child).then_some(code))
        .last()
}

/// Reaps all that have ended: who, and with which exit code.
pub(crate) fn reaped() -> impl Iterator<Item = (Pid, u8)> {
    std::iter::from_fn(|| {
        let ended = rustix::process::wait(WaitOptions::NOHANG).ok().flatten();
        ended.map(|(child, status)| (child, code_of(status)))
    })
}

/// As shells write it: 128 and the number of the signal.
fn code_of(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, signal) => 128 + signal.unwrap_or_default(),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}
