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
/// How long opening may take: the driver starts the device meanwhile, and without persistence that takes seconds.
const LIMIT: Duration = Duration::from_secs(10);

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

/// Looks closer at a failure that may be a device file's.
pub(crate) fn explain(stop: &mut Stop, dev: &Path) {
    let is_hang = stop.cause == Cause::Finding(Finding::Hang);
    let is_asked = match stop.cause {
        Cause::Code(NO_DEVICE) | Cause::Finding(Finding::TooFewDevices) => true,
        _ => is_hang && stop.place.step == Step::Init,
    };
    if !is_asked {
        return;
    }
    let files = host::device_files(dev);
    let found = look(&files)
        .into_iter()
        .filter_map(|(path, opened)| Some((path, opened.failure()?)))
        // A device that is lost says more than one that is forbidden.
        .min_by_key(|(_, (finding, _))| *finding != Finding::LostDevice);
    match found {
        Some((path, (finding, why))) => {
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

/// What became of opening a file.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Opened {
    /// It was opened.
    Yes,
    /// It was not, with this error.
    No(i32),
    /// There was no answer in time.
    Hangs,
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
            Self::No(libc::EIO | libc::ENODEV | libc::ENXIO | libc::EBUSY) | Self::Hangs => {
                Finding::LostDevice
            }
            Self::No(libc::EPERM) => Finding::ExcludedDevice,
            Self::No(libc::EACCES) => Finding::DeviceFileMode,
            Self::No(_) | Self::Yes | Self::Unknown => return None,
        };
        let why = match self {
            Self::No(number) => {
                format!("cannot be opened: {}", io::Error::from_raw_os_error(number))
            }
            _ => format!("was not opened within {} s", LIMIT.as_secs()),
        };
        Some((finding, why))
    }
}

/// Opens each file in a process of its own, all at once: one that hangs must not hide the others.
fn look(files: &[PathBuf]) -> Vec<(&Path, Opened)> {
    let end = Instant::now() + LIMIT;
    let children: Vec<_> = files.iter().map(|path| (path, start(path))).collect();
    children
        .into_iter()
        .map(|(path, child)| {
            (
                path.as_path(),
                child.map_or(Opened::Unknown, |child| wait(child, end)),
            )
        })
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

fn wait(mut child: Child, end: Instant) -> Opened {
    match reap(&mut child, end) {
        Ok(Some(status)) => Opened::of(status),
        Ok(None) => {
            // One that is stuck in the kernel is left behind.
            let _ = child.kill();
            Opened::Hangs
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
            (Opened::Hangs, Some(Finding::LostDevice)),
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
}
