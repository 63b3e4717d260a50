//! What the driver's management library says, beside the test and in a process of its own: one that crashes or hangs costs
//! nothing but what it would have said.
//!
//! During a job it is asked by [`crate::sample`], in a process of its own as well, which nobody waits for: [`usage`].
//!
//! Beside the test it starts with that, asks all GPUs that NVML shows while the test runs, and once more at its end, when it
//! is told which devices the test had.

mod ask;
mod beside;
mod calls;
mod devices;
mod layout;
mod usage;

use std::io::BufRead as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use gate_report::DeviceHealth;
use serde::{Deserialize, Serialize};

pub(crate) use beside::Beside;
pub(crate) use usage::Usage;

use crate::args::TestArgs;
use crate::protocol::send;

/// How often the clocks are looked at.
const SAMPLE: Duration = Duration::from_millis(20);

/// One line to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
enum Told {
    /// There is no library.
    Absent,
    /// The library was loaded.
    Library { path: Option<String> },
    /// A function is called. If no other line follows, this is the one that killed the process.
    Calling { name: String },
    /// What is known of a device; replaces what was said of it before.
    Device(DeviceHealth),
    /// It could not be asked, or not everything.
    Unknown { why: String },
    /// All has been said.
    Done,
}

/// One line from the supervisor: the test is over.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Over {
    /// The devices under test, by CUDA's words; empty where it named none.
    uuids: Vec<String>,
    failed: bool,
}

/// The child: asks, and ends the process.
pub(crate) fn run(args: &TestArgs) -> u8 {
    // SAFETY: plain system call; this process must not outlive a supervisor that was killed.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let over = orders();
    if let Some(nvml) = calls::load(&args.library_root, send) {
        let mut gpus = ask::Gpus::list(nvml);
        let over = loop {
            match over.recv_timeout(SAMPLE) {
                Ok(over) => break over,
                Err(RecvTimeoutError::Timeout) => gpus.sample(),
                Err(RecvTimeoutError::Disconnected) => break Over::default(),
            }
        };
        gpus.finish(&over.uuids, over.failed);
    }
    send(&Told::Done);
    // SAFETY: ends the process at once, without the exit handlers of a library that may hang.
    unsafe { libc::_exit(0) }
}

/// What the supervisor says, on a channel.
fn orders() -> mpsc::Receiver<Over> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).is_ok()
            && let Ok(over) = serde_json::from_str(&line)
        {
            let _ = sender.send(over);
        }
    });
    receiver
}
