//! The supervisor's side: starts the child, and adds to the report what it has said by the end of the test.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{Health, Report};

use super::{Over, Told};
use crate::args::TestArgs;
use crate::deadline::Deadline;
use crate::protocol::listen;

/// After the test, the longest time without a word, and for all of it.
const SILENCE: Duration = Duration::from_secs(2);
const ALL: Duration = Duration::from_secs(8);

/// The child that asks NVML while the test runs.
pub(crate) struct Beside {
    child: Child,
    orders: Option<ChildStdin>,
    told: mpsc::Receiver<Told>,
}

impl Beside {
    /// Starts it. Where that fails there is nothing to add.
    pub(crate) fn start(args: &TestArgs) -> Option<Self> {
        let mut child = Command::new(std::env::current_exe().ok()?)
            .arg("nvml")
            .args(args.to_command_line())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        Some(Self {
            orders: child.stdin.take(),
            told: listen(child.stdout.take()),
            child,
        })
    }

    /// The test is over: adds what there is, and ends the child.
    pub(crate) fn finish(mut self, report: &mut Report) {
        let over = Over {
            uuids: report.devices.iter().map(|one| one.uuid.clone()).collect(),
            failed: report.failure.is_some(),
        };
        if let (Some(mut orders), Ok(line)) = (self.orders.take(), serde_json::to_string(&over)) {
            // One that has died says so by the end of its output.
            let _ = writeln!(orders, "{line}");
            self.collect(report);
            drop(orders);
        }
        let _ = self.child.kill();
        // One that is stuck in the kernel never ends; it is left behind.
        thread::spawn(move || self.child.wait());
    }

    fn collect(&mut self, report: &mut Report) {
        let end = Instant::now() + ALL;
        let child = self.child.id();
        let mut deadline = Deadline::new(child, SILENCE, Some(end));
        let (mut health, mut calling) = (None, None);
        loop {
            match deadline.next(&self.told) {
                Ok(Told::Absent) => {}
                Ok(Told::Done) => break,
                Ok(Told::Library { path }) => {
                    health = Some(Health {
                        library: path,
                        ..Health::default()
                    });
                }
                Ok(Told::Calling { name }) => calling = Some(name),
                Ok(Told::Device(device)) => {
                    let devices = &mut health.get_or_insert_with(Health::default).devices;
                    // Several may have no UUID.
                    devices.retain(|known| {
                        known.uuid != device.uuid || (known.uuid.is_empty() && *known != device)
                    });
                    devices.push(device);
                }
                Ok(Told::Unknown { why }) => report.health_unknown(&why),
                Err(error) => {
                    report.health_unknown(&self.lost(error, calling.as_deref()));
                    break;
                }
            }
            deadline.again();
        }
        if let Some(health) = health {
            report.add_health(health);
        }
    }

    fn lost(&mut self, error: RecvTimeoutError, calling: Option<&str>) -> String {
        let place = calling.map_or_else(String::new, |name| format!(" in {name}"));
        if error == RecvTimeoutError::Timeout {
            return format!("no answer{place} by the end of the test");
        }
        let status = self.child.wait().ok();
        match status.and_then(|status| status.signal()) {
            Some(signal) => format!("its process died of signal {signal}{place}"),
            None => format!("its process ended{place}"),
        }
    }
}
