//! How the container with the GPU ended: one container writes it, the other one reads it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use cuda_smoke::files::{self, READABLE};
use gate_report::contract::{file, mark};
use gate_report::{SUMMARY_LIMIT, exit};

use crate::process::{Signals, TERMINATED};

/// How often the main container looks.
const LOOK: Duration = Duration::from_millis(50);
/// Longer than any exit code.
const LONGEST_CODE: u64 = 8;

/// Where the end is written.
pub(crate) struct Ending {
    /// The shared folder.
    pub(crate) dir: PathBuf,
    /// The container's termination message.
    pub(crate) log: PathBuf,
}

impl Ending {
    /// Writes the exit code, and keeps the termination message: the kubelet may restart this container before it has seen
    /// that the main container ended.
    pub(crate) fn write(&self, code: u8) -> u8 {
        if let Ok(message) = message(&self.log) {
            // Without it, the next start says nothing; the code is what counts.
            let _ = files::write(&self.dir.join(file::MESSAGE), &message, READABLE);
        }
        let path = self.dir.join(file::EXIT);
        let write = || files::write(&path, code.to_string().as_bytes(), READABLE);
        let written = write().or_else(|_| {
            self.make_room();
            write()
        });
        if let Err(error) = written {
            eprintln!("{} could not be written: {error}", path.display());
        }
        code
    }

    /// Leaves a mark where the agent was online: what the kubelet finds out of it comes later, and may come too late.
    pub(crate) fn tell_online(&self, code: u8) {
        if !self.dir.join(file::ONLINE).exists() {
            return;
        }
        let line = format!("{{\"mark\":\"{}\"}}\n", mark::ONLINE);
        // An agent that fails says why in its log, which the kubelet shows where there is no message.
        if code != 0 && message(&self.log).is_ok_and(|message| message.is_empty()) {
            print!("{line}");
            return;
        }
        let log = fs::OpenOptions::new().append(true).open(&self.log);
        if let Err(error) = log.and_then(|mut log| log.write_all(line.as_bytes())) {
            let log = self.log.display();
            eprintln!("The termination message {log} could not be written: {error}");
        }
    }

    /// Says the kept termination message again, in the container's new one.
    pub(crate) fn say_again(&self) {
        if let Ok(message) = message(&self.dir.join(file::MESSAGE)) {
            // It stands in the container's last state, too.
            let _ = files::replace(&self.log, &message);
        }
    }

    /// A job can fill the folder, or put something else where our file belongs. It is over now.
    fn make_room(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let is_ours = file::RUNNER_INIT.starts_with(&*entry.file_name().to_string_lossy());
            if is_ours || entry.file_name() == file::MESSAGE {
                continue;
            }
            // What is another user's stays.
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
        }
    }
}

fn message(path: &Path) -> io::Result<Vec<u8>> {
    files::read(path, SUMMARY_LIMIT as u64)
}

/// The exit code that was written. A job may have written something else there: that is none.
pub(crate) fn code(dir: &Path) -> Option<u8> {
    let bytes = files::read(&dir.join(file::EXIT), LONGEST_CODE).ok()?;
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

/// The main container: waits for the exit code and ends with it. SIGTERM comes where the pod is deleted: then it ends at
/// once, because the container with the GPU is told only after that.
pub(crate) fn wait(dir: &Path) -> u8 {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("Signals could not be taken over: {error}");
            return exit::INTERNAL;
        }
    };
    loop {
        // Asked first: what was written before the signal counts.
        let told = signals.is_told_to_end();
        match code(dir) {
            Some(code) => return code,
            None if told => return TERMINATED,
            None => thread::sleep(LOOK),
        }
    }
}
