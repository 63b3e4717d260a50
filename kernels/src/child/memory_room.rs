//! Whether the device's memory is there for this pod, or somebody else holds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use gate_report::{Finding, Step, clean};

use super::calls::Called;
use super::test::Bench;
use crate::host;

/// A process that has just ended lets go of its memory a little later: so long that is waited for.
const WAIT: Duration = Duration::from_millis(1500);
/// How long until it is asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// So often it is asked for at least: where this process or its machine stood still, all of the wait is over at once.
const LEAST: u32 = 5;
/// Bytes of a MiB, as a shift.
const MIB: u32 = 20;
/// Bytes of a process's name that are told. The kernel keeps 15.
const NAME: usize = 64;

impl Bench<'_> {
    /// Free and total memory, of which enough must be free where the device is this pod's alone.
    pub(super) fn room(&mut self) -> Called<u64> {
        let driver = self.driver.at(Step::Context);
        let percent = if self.is_for_us_alone() {
            self.args.min_free_memory_percent
        } else {
            0
        };
        let started = Instant::now();
        let mut asked = 0;
        loop {
            let (free, total) = driver.memory()?;
            asked += 1;
            let report = self.report();
            report.free_memory_bytes = Some(free);
            report.memory_bytes = total;
            if is_enough(free, total, percent) {
                return Ok(free);
            }
            if asked >= LEAST && started.elapsed() > WAIT {
                let text = format!(
                    "{} MiB of {} MiB are free, and {percent} % must be; {}",
                    free >> MIB,
                    total >> MIB,
                    holder(&self.args.dev_dir)
                );
                return Err(driver.stop(Finding::MemoryTaken, text).into());
            }
            thread::sleep(PAUSE);
        }
    }

    /// Whether nobody but this pod has a claim to the memory: not where the device is shared or a slice, nor where it is the
    /// host's memory or the host uses it too, nor under Windows, whose desktop is there as well.
    fn is_for_us_alone(&self) -> bool {
        let is_under_windows = self.args.dev_dir.join("dxg").exists();
        !self.is_shared() && !is_under_windows && !self.is_hosts_too()
    }
}

fn is_enough(free: u64, total: u64, percent: u8) -> bool {
    u128::from(free) * 100 >= u128::from(total) * u128::from(percent)
}

/// Who holds the memory, as far as this container can tell: a process that it sees, or somebody outside. The device files that
/// processes have open say it; other sources belong here as well.
fn holder(dev: &Path) -> String {
    let files = host::device_files(dev);
    let ours = [std::process::id(), std::os::unix::process::parent_id()];
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut others = ids.filter(|id| !ours.contains(id));
    match others.find(|id| has_open(*id, &files)) {
        Some(id) => {
            let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            format!(
                "process {id} ({}), which this pod can see, has a GPU's device file open",
                clean(name.trim(), NAME)
            )
        }
        None => "something outside of this pod holds the rest, as no process that this pod can see has a GPU's device file open".to_owned(),
    }
}

/// Whether a process has any of these files open, as far as we may look.
fn has_open(process: u32, files: &[PathBuf]) -> bool {
    let open = fs::read_dir(format!("/proc/{process}/fd"));
    let open = open.into_iter().flatten().flatten();
    open.filter_map(|file| fs::read_link(file.path()).ok())
        .any(|file| files.contains(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_is_a_part_of_the_whole() {
        assert!(is_enough(90, 100, 90));
        assert!(!is_enough(89, 100, 90));
        assert!(is_enough(0, 100, 0));
        assert!(is_enough(0, 0, 90), "nothing is known of it");
        assert!(is_enough(u64::MAX, u64::MAX, 100));
    }
}
