//! What the child tells its supervisor: one JSON object per line on its standard output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::ChildStdout;
use std::sync::mpsc;
use std::thread;

pub(crate) use gate_report::Cause;
use gate_report::{Device, Finding, Peers, Step, Warning};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub(crate) enum Event {
    /// A call into the driver begins. If no other line follows, this is the call that never came back.
    Calling(Place),
    /// The driver's library was loaded.
    Library {
        path: Option<String>,
        /// Others that are there and were not loaded.
        others: Vec<String>,
    },
    /// The driver reported its version.
    CudaVersion { version: String },
    /// How long `cuInit` took.
    Initialised { ms: f64 },
    /// What is known of a device; replaces what was said of it before.
    Device(Device),
    /// How the devices reach one another.
    Peers(Peers),
    /// Worth knowing.
    Warning(Warning),
    /// The test failed.
    Stopped(Stop),
    /// Every device passed.
    Passed { ms: f64 },
}

/// Where the test is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) step: Step,
    /// The driver's function, where one is called.
    pub(crate) call: Option<String>,
    /// Ordinal of the device, where it is about one.
    pub(crate) device: Option<u32>,
}

/// Why the test ended early.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stop {
    pub(crate) place: Place,
    pub(crate) cause: Cause,
    /// The driver's name for a code that our table does not list.
    pub(crate) code_name: Option<String>,
    /// What was seen, in a sentence.
    pub(crate) detail: String,
}

impl Stop {
    /// A fault that no code of the driver stands for.
    pub(crate) fn found(place: Place, finding: Finding, detail: String) -> Self {
        Self {
            place,
            cause: Cause::Finding(finding),
            code_name: None,
            detail,
        }
    }
}

/// Sends a line to the supervisor.
pub(crate) fn send(event: &impl Serialize) {
    if let Ok(json) = serde_json::to_vec(event) {
        // A library may have printed something without an end of its line.
        let line = [b"\n", json.as_slice(), b"\n"].concat();
        // One write for each line. Without a reader there is nobody left to tell.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

/// Reads a child's lines on a thread of its own, so that a deadline can pass meanwhile. The channel ends with its output.
pub(crate) fn listen<T: DeserializeOwned + Send + 'static>(
    output: Option<ChildStdout>,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    if let Some(output) = output {
        thread::spawn(move || {
            // A line that is none of ours was printed by a library; it does not matter.
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if let Ok(event) = serde_json::from_slice(&line)
                    && sender.send(event).is_err()
                {
                    break;
                }
            }
        });
    }
    receiver
}
