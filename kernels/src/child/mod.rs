//! The test itself, in a process of its own: all that touches the driver is below this module.
//!
//! It tells its supervisor where it is before each call, and ends without tearing anything down: after a launch
//! error the context is poisoned, and a clean-up that fails or hangs would blame the wrong thing.

mod calls;
mod copies;
mod count;
mod functions;
mod library;
mod memory_room;
mod memory_walk;
mod optional_calls;
mod pattern;
mod peers;
mod tensor_cores;
mod test;

use std::time::Instant;

pub(crate) use library::{FOLDERS, open, path_of_mapping, under};

use crate::args::TestArgs;
use crate::protocol::{Event, send};
use crate::times::milliseconds;

/// Runs the test and ends the process.
pub(crate) fn run(args: &TestArgs) -> u8 {
    // SAFETY: plain system call; a hung test must not outlive a supervisor that was killed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let started = Instant::now();
    match test::all_devices(args) {
        Ok(()) => send(&Event::Passed {
            ms: milliseconds(started),
        }),
        Err(stop) => send(&Event::Stopped(*stop)),
    }
    // SAFETY: ends the process at once, without the exit handlers of a driver that may be broken. All output is
    // flushed.
    unsafe { libc::_exit(0) }
}
