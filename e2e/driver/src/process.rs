//! What depends on the process, or outlives it: which devices it may see, and what earlier ones left behind.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use crate::config::{Config, Device, Fault};

/// In the folder of the state: a byte for each process.
const PROCESSES: &str = "processes";
/// In the folder of the state: UUID and code of what was left behind.
const LEFT: &str = "left";

impl Device {
    /// Whether it is a MIG slice.
    pub(crate) fn is_slice(&self) -> bool {
        self.name.contains(" MIG ")
    }

    /// As nvidia-smi writes it, without the groups' hyphens.
    fn uuid_digits(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.uuid))
    }
}

impl Config {
    /// The simulation as this process meets it.
    pub(crate) fn in_this_process(mut self) -> Result<Self, String> {
        if let Some(folder) = &self.device_files {
            self.devices.retain(|device| opens(folder, device));
        }
        one_slice_of_each(&mut self.devices);
        if let Ok(wanted) = env::var("CUDA_VISIBLE_DEVICES") {
            self.devices = visible(&self.devices, &wanted);
        }
        if let Some(folder) = self.state.clone() {
            let error = |error: io::Error| format!("{}: {error}", folder.display());
            let number = append(&folder.join(PROCESSES), "p").map_err(error)?;
            self.faults.retain(|fault| {
                let strikes = |(from, to)| (from..=to).contains(&number);
                fault.processes.is_none_or(strikes)
            });
            let left = fs::read_to_string(folder.join(LEFT)).unwrap_or_default();
            self.faults.extend(left_behind(&left, &self.devices));
        }
        Ok(self)
    }

    /// Has later processes meet what this fault leaves on the device.
    pub(crate) fn leave_behind(&self, fault: &Fault, device: Option<u32>) {
        if let (Some(code), Some(folder), Some(device)) = (fault.leaves, &self.state, device)
            && let Some(device) = self.devices.get(device as usize)
        {
            let line = format!("{} {code}\n", device.uuid_digits());
            // A test that does not meet it fails by itself.
            let _ = append(&folder.join(LEFT), &line);
        }
    }

    /// Dies as a process does that the kernel kills for want of memory: of its container, `at_limit`, or of the node.
    pub(crate) fn run_out_of_memory(&self, at_limit: bool) -> ! {
        if let Some(file) = &self.memory_events {
            let (max, oom) = if at_limit { (7, 1) } else { (0, 0) };
            let text = format!("low 0\nhigh 0\nmax {max}\noom {oom}\noom_kill 1\n");
            let _ = fs::write(file, text);
        }
        let _ = std::process::Command::new("kill")
            .args(["-KILL", &std::process::id().to_string()])
            .status();
        std::process::abort()
    }
}

/// Whether the device's file can be opened, as the real driver does.
fn opens(folder: &Path, device: &Device) -> bool {
    let file = folder.join(format!("nvidia{}", device.minor));
    OpenOptions::new().read(true).write(true).open(file).is_ok()
}

/// A program sees one slice of a GPU.
fn one_slice_of_each(devices: &mut Vec<Device>) {
    let mut seen = vec![];
    devices.retain(|device| {
        let is_first = !seen.contains(&device.minor);
        seen.push(device.minor);
        is_first || !device.is_slice()
    });
}

/// Ordinals or beginnings of UUIDs, as far as they are right; each device once.
fn visible(devices: &[Device], wanted: &str) -> Vec<Device> {
    let find = |word: &str| {
        let index = match word.strip_prefix("GPU-").or(word.strip_prefix("MIG-")) {
            Some(digits) => {
                let digits = digits.replace('-', "");
                let is_it = |device: &Device| device.uuid_digits().starts_with(&digits);
                devices.iter().position(is_it)?
            }
            None => word.parse().ok()?,
        };
        (index < devices.len()).then_some(index)
    };
    let words = wanted.split(',').map(|word| find(word.trim()));
    let mut shown: Vec<usize> = vec![];
    for index in words.map_while(|index| index) {
        if shown.contains(&index) {
            return vec![];
        }
        shown.push(index);
    }
    shown
        .into_iter()
        .map(|index| devices[index].clone())
        .collect()
}

/// A fault for each device that is shown and was left with a code.
fn left_behind(text: &str, devices: &[Device]) -> Vec<Fault> {
    let fault = |line: &str| {
        let (uuid, code) = line.split_once(' ')?;
        let ordinal = devices
            .iter()
            .position(|device| device.uuid_digits() == uuid)?;
        Some(Fault {
            call: "cuDevicePrimaryCtxRetain".to_owned(),
            device: u32::try_from(ordinal).ok(),
            code: code.parse().ok(),
            ..Fault::default()
        })
    };
    text.lines().filter_map(fault).collect()
}

/// Appends to a file, and tells how long it is then.
fn append(file: &Path, text: &str) -> io::Result<u64> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    file.write_all(text.as_bytes())?;
    Ok(file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(text: &str) -> Vec<Device> {
        Config::parse(text).unwrap().devices
    }

    #[test]
    fn cuda_visible_devices_names_devices_as_far_as_it_is_right() {
        let three = devices(r#"{"devices":[{"profile":"t4","count":3}]}"#);
        let second = format!("GPU-{}", &three[1].uuid_digits());
        for (wanted, shown) in [
            ("0,1,2", vec![0, 1, 2]),
            ("2,0", vec![2, 0]),
            ("1,7,2", vec![1]),
            ("-1", vec![]),
            ("", vec![]),
            ("1,1", vec![]),
            (second.as_str(), vec![1]),
            ("GPU-ffffffff", vec![]),
        ] {
            let found: Vec<_> = visible(&three, wanted)
                .iter()
                .map(|device| device.minor)
                .collect();
            assert_eq!(found, shown, "{wanted:?}");
        }
    }

    #[test]
    fn one_slice_of_a_gpu_is_seen() {
        let mut mixed = devices(
            r#"{"devices":[{"profile":"mig-1g","count":3},{"profile":"mig-1g"},{"profile":"a100"}]}"#,
        );
        one_slice_of_each(&mut mixed);
        let minors: Vec<_> = mixed.iter().map(|device| device.minor).collect();
        assert_eq!(minors, [0, 3, 4]);
    }

    #[test]
    fn what_was_left_is_a_fault_of_the_device_as_it_is_shown() {
        let two = devices(r#"{"devices":[{"profile":"t4","count":2}]}"#);
        let text = format!("{} 46\nffff 719\n", two[1].uuid_digits());
        let faults = left_behind(&text, &two);
        assert_eq!(faults.len(), 1);
        assert_eq!((faults[0].device, faults[0].code), (Some(1), Some(46)));
    }
}
