//! The steps' own processes. The first process reaps whatever ends, so it tells each step of its end by a pipe.

use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;

use crate::process;

/// Those that run.
#[derive(Default)]
pub(super) struct Children(Mutex<HashMap<Pid, PipeWriter>>);

impl Children {
    /// Starts a process. Its exit code, one byte, comes from the pipe.
    pub(super) fn start(&self, command: &mut Command) -> io::Result<(Pid, PipeReader)> {
        let (ended, tell) = io::pipe()?;
        // Nobody reaps before it is known whom this pipe is for. Nor does anybody reap a process that could not become
        // the program: the standard library does, and must find it.
        let mut running = self.lock();
        let child = Pid::from_child(&command.spawn()?);
        running.insert(child, tell);
        Ok((child, ended))
    }

    /// Tells of all that have ended.
    pub(super) fn reap(&self) {
        let mut running = self.lock();
        for (child, code) in process::reaped() {
            if let Some(mut tell) = running.remove(&child) {
                // Nobody asks any more where the step was cut off.
                let _ = tell.write_all(&[code]);
            }
        }
    }

    /// Sends a signal to a step that has not ended, and to what belongs to it.
    pub(super) fn signal(&self, child: Pid, signal: i32) {
        if self.lock().contains_key(&child) {
            process::forward_to_group(child, signal);
        }
    }

    /// Kills all steps with what belongs to them.
    pub(super) fn kill(&self) {
        for child in self.lock().keys() {
            process::forward_to_group(*child, libc::SIGKILL);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pid, PipeWriter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
