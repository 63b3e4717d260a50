//! What opening a GPU's device file says: the driver's library has one code for what the kernel has several for.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUresult;
use gate_report::{Cause, Finding, Step};

use crate::host;
use crate::protocol::Stop;
use crate::supervisor::reap;

const NO_DEVICE: i32 = CUresult::CUDA_ERROR_NO_DEVICE as i32;
/// The exit code of a child that could not open its file, and does not know why.
const NO_REASON: u8 = 255;
/// How long one waits at least, however little of the gate's time is left: an error comes at once.
const LEAST: Duration = Duration::from_secs(1);

/// Opens a device file as the driver's library does. Returns the error's number, as an exit code.
pub(crate) fn open(path: &Path) -> u8 {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => 0,
        Err(error) => error
            .raw_os_error()
            .and_then(|number| u8::try_from(number).ok())
            .unwrap_or(NO_REASON),
    }
}

/// How long opening may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For each file. The driver starts the device meanwhile, which takes seconds without persistence, and one after the other.
    pub(crate) of_each: Duration,
    /// For all of them: what is left of the gate's time, where that is limited.
    pub(crate) of_all: Option<Duration>,
}

impl Limits {
    /// How long one waits for so many files.
    fn time(self, files: usize) -> Duration {
        let wanted = self.wanted(files);
        self.of_all.map_or(wanted, |all| all.min(wanted)).max(LEAST)
    }

    fn wanted(self, files: usize) -> Duration {
        let files = u32::try_from(files).unwrap_or(u32::MAX);
        self.of_each.saturating_mul(files)
    }

    /// Whether no answer in that time says something: a device that is cold may have needed most of what it should have had.
    fn proves_a_hang(self, files: usize) -> bool {
        self.time(files) >= self.wanted(files) / 2
    }
}

/// Looks closer at a failure that may be a device file's.
pub(crate) fn explain(stop: &mut Stop, dev: &Path, limits: Limits) {
    let is_hang = stop.cause == Cause::Finding(Finding::Hang);
    let is_asked = match stop.cause {
        Cause::Code(NO_DEVICE) | Cause::Finding(Finding::TooFewDevices) => true,
        _ => is_hang && stop.place.step == Step::Init,
    };
    if !is_asked {
        return;
    }
    let files = host::device_files(dev);
    match most_telling(look(&files, limits), is_hang) {
        Some((path, finding, why)) => {
            stop.detail = format!("{}; {} {why}", stop.detail, path.display());
            if !is_hang || finding == Finding::LostDevice {
                stop.cause = Cause::Finding(finding);
            }
        }
        None if stop.cause == Cause::Code(NO_DEVICE) && host::hides_devices() => {
            stop.cause = Cause::Finding(Finding::HiddenDevices);
        }
        None => {}
    }
}

/// Of the files that were not opened the one that says most, what is wrong with it, and what was seen.
fn most_telling(looked: Vec<(&Path, Opened)>, is_hang: bool) -> Option<(&Path, Finding, String)> {
    let failed = looked.into_iter().filter_map(|(path, opened)| {
        let (finding, why) = opened.failure()?;
        Some((opened.rank(is_hang), path, finding, why))
    });
    let (_, path, finding, why) = failed.min_by_key(|(rank, ..)| *rank)?;
    Some((path, finding, why))
}

/// What became of opening a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Opened {
    /// It was opened.
    Yes,
    /// It was not, with this error.
    No(i32),
    /// There was no answer within this time.
    Hangs(Duration),
    /// Nobody could look.
    Unknown,
}

impl Opened {
    fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Yes,
            Some(number) if number != i32::from(NO_REASON) => Self::No(number),
            _ => Self::Unknown,
        }
    }

    /// What is wrong, and what was seen.
    fn failure(self) -> Option<(Finding, String)> {
        let finding = match self {
            // EIO: the adapter cannot be started; ENODEV: it is lost; ENXIO: nothing has the number; EBUSY: it is held back.
            Self::No(libc::EIO | libc::ENODEV | libc::ENXIO | libc::EBUSY) | Self::Hangs(_) => {
                Finding::LostDevice
            }
            Self::No(libc::EPERM) => Finding::ExcludedDevice,
            Self::No(libc::EACCES) => Finding::DeviceFileMode,
            Self::No(_) | Self::Yes | Self::Unknown => return None,
        };
        let why = match self {
            Self::Hangs(time) => format!("was not opened within {} s", time.as_secs().max(1)),
            Self::No(number) => {
                format!("cannot be opened: {}", io::Error::from_raw_os_error(number))
            }
            Self::Yes | Self::Unknown => return None,
        };
        Some((finding, why))
    }

    /// The smaller, the more it says. A device that is lost says more than one that is forbidden; an error more than no answer,
    /// which a healthy device gives too that waits for another one. What is forbidden explains no hang.
    fn rank(self, is_hang: bool) -> u8 {
        match self {
            Self::No(libc::EPERM | libc::EACCES) => {
                if is_hang {
                    3
                } else {
                    1
                }
            }
            Self::No(_) => 0,
            Self::Hangs(_) | Self::Yes | Self::Unknown => 2,
        }
    }
}

/// Opens each file in a process of its own, all at once: one that hangs must not hide the others.
fn look(files: &[PathBuf], limits: Limits) -> Vec<(&Path, Opened)> {
    let time = limits.time(files.len());
    let late = if limits.proves_a_hang(files.len()) {
        Opened::Hangs(time)
    } else {
        Opened::Unknown
    };
    let end = Instant::now() + time;
    let children: Vec<_> = files.iter().map(|path| (path, start(path))).collect();
    let opened =
        |child: io::Result<Child>| child.map_or(Opened::Unknown, |one| wait(one, end, late));
    children
        .into_iter()
        .map(|(path, child)| (path.as_path(), opened(child)))
        .collect()
}

fn start(path: &Path) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .arg("open")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// What became of a child; `late` where it has not ended by then.
fn wait(mut child: Child, end: Instant, late: Opened) -> Opened {
    match reap(&mut child, end) {
        Ok(Some(status)) => Opened::of(status),
        Ok(None) => {
            // One that is stuck in the kernel is left behind.
            let _ = child.kill();
            late
        }
        Err(_) => Opened::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_meaning() {
        for (opened, finding) in [
            (Opened::No(libc::EIO), Some(Finding::LostDevice)),
            (Opened::No(libc::ENODEV), Some(Finding::LostDevice)),
            (Opened::No(libc::ENXIO), Some(Finding::LostDevice)),
            (Opened::No(libc::EBUSY), Some(Finding::LostDevice)),
            (Opened::Hangs(LEAST), Some(Finding::LostDevice)),
            (Opened::No(libc::EPERM), Some(Finding::ExcludedDevice)),
            (Opened::No(libc::EACCES), Some(Finding::DeviceFileMode)),
            (Opened::No(libc::EMFILE), None),
            (Opened::Yes, None),
            (Opened::Unknown, None),
        ] {
            let found = opened.failure().map(|(finding, _)| finding);
            assert_eq!(found, finding, "{opened:?}");
        }
    }

    #[test]
    fn every_file_has_its_time_within_that_of_the_gate() {
        let second = Duration::from_secs(1);
        // Seconds for each, files, what is left of the gate's time; how long one waits, and whether a hang is proven then.
        for (each, files, left, time, proves) in [
            (10, 1, None, 10, true),
            (10, 8, None, 80, true),
            (10, 8, Some(100), 80, true),
            (10, 8, Some(40), 40, true),
            (10, 8, Some(39), 39, false),
            (5, 1, Some(4), 4, true),
            (10, 8, Some(0), 1, false),
        ] {
            let limits = Limits {
                of_each: second * each,
                of_all: left.map(|left| second * left),
            };
            assert_eq!(
                (limits.time(files), limits.proves_a_hang(files)),
                (second * time, proves),
                "{each} s, {files} files, {left:?} s left"
            );
        }
    }

    #[test]
    fn the_file_that_says_most_is_named() {
        let hangs = Opened::Hangs(LEAST);
        let [lost, forbidden, mode] = [libc::EIO, libc::EPERM, libc::EACCES].map(Opened::No);
        for (opened, is_hang, expected) in [
            (vec![hangs, lost], true, Some(1)),
            (vec![hangs, lost], false, Some(1)),
            (vec![forbidden, lost], false, Some(1)),
            (vec![hangs, mode], false, Some(1)),
            (vec![forbidden, hangs], true, Some(1)),
            (
                vec![Opened::Yes, Opened::Unknown, hangs, hangs],
                true,
                Some(2),
            ),
            (vec![Opened::Yes, Opened::Unknown], true, None),
        ] {
            let paths: Vec<_> = (0..opened.len())
                .map(|n| PathBuf::from(n.to_string()))
                .collect();
            let looked = paths.iter().map(PathBuf::as_path).zip(opened.clone());
            let found = most_telling(looked.collect(), is_hang);
            let number = found.map(|(path, ..)| path.to_str().unwrap().parse::<usize>().unwrap());
            assert_eq!(number, expected, "{opened:?}, hang: {is_hang}");
        }
    }
}
