//! What the container shows of the driver outside its library.

use std::fs;
use std::path::{Path, PathBuf};

use gate_report::contract::gate;
use gate_report::{Driver, DriverModel, Host};

/// The machine, as this process was built for it and runs on it.
pub(crate) fn machine() -> Host {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Host {
        architecture: architecture.to_owned(),
        page_size_bytes: u64::try_from(rustix::param::page_size()).unwrap_or_default(),
    }
}

/// Looks at the device files and at the kernel module's version.
pub(crate) fn driver(dev: &Path) -> Driver {
    Driver {
        kernel_version: fs::read_to_string("/proc/driver/nvidia/version")
            .ok()
            .and_then(|text| kernel_version(&text)),
        model: driver_model(dev),
        device_files: has_device_files(dev),
        uvm_file: dev.join("nvidia-uvm").exists(),
        ..Driver::default()
    }
}

/// Told by the device files; where there are none, there is nothing to tell.
fn driver_model(dev: &Path) -> Option<DriverModel> {
    if dev.join("dxg").exists() {
        Some(DriverModel::Wsl2)
    } else {
        has_device_files(dev).then_some(DriverModel::Linux)
    }
}

/// `/dev/nvidia0` and so on, or WSL2's `/dev/dxg`.
fn has_device_files(dev: &Path) -> bool {
    dev.join("dxg").exists() || !device_files(dev).is_empty()
}

/// `/dev/nvidia0` and so on, by their numbers: one for each GPU that the container was given. `nvidiactl` is no device.
pub(crate) fn device_files(dev: &Path) -> Vec<PathBuf> {
    let number = |name: &str| name.strip_prefix("nvidia")?.parse::<u32>().ok();
    let entries = fs::read_dir(dev).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())))
        .collect();
    files.sort_unstable();
    files.into_iter().map(|(_, path)| path).collect()
}

/// Whether the environment hides devices from every program of CUDA's.
pub(crate) fn hides_devices() -> bool {
    std::env::var_os("CUDA_VISIBLE_DEVICES").is_some()
}

/// Whether the device plugin says that the GPU is shared by MPS.
pub(crate) fn has_mps() -> bool {
    gate::OF_THE_DEVICE
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// What the container's control group counts of processes that the kernel killed for want of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct MemoryKills {
    /// By any killer: that of the container's limit, of a limit above it, or of the node.
    all: u64,
    /// How often the container's own limit left no other way.
    at_limit: u64,
}

/// Why the kernel killed a process for want of memory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shortage {
    /// The container has used up its own limit, which is this in words.
    Limit(String),
    /// The node has no memory left, or the pod as a whole.
    Node,
}

impl MemoryKills {
    /// What the kernel has counted; `None` where it does not count.
    ///
    /// Control groups v2: `oom_kill` and `oom` in `memory.events`. v1 has `oom_kill` alone, in `memory.oom_control`, and each
    /// counts as one at the limit where a limit is set (`Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`).
    pub(crate) fn read(cgroup: &Path) -> Option<Self> {
        if let Ok(text) = fs::read_to_string(cgroup.join("memory.events")) {
            return Some(Self {
                all: count(&text, "oom_kill")?,
                at_limit: count(&text, "oom").unwrap_or_default(),
            });
        }
        let text = fs::read_to_string(cgroup.join("memory/memory.oom_control")).ok()?;
        let all = count(&text, "oom_kill")?;
        let has_limit = memory_limit(cgroup).is_some();
        Some(Self {
            all,
            at_limit: if has_limit { all } else { 0 },
        })
    }

    /// Why there was a kill since then, if there was.
    pub(crate) fn since(self, before: Self, cgroup: &Path) -> Option<Shortage> {
        if self.all <= before.all {
            return None;
        }
        if self.at_limit <= before.at_limit {
            return Some(Shortage::Node);
        }
        let size = memory_limit(cgroup);
        let size = size.map_or_else(String::new, |bytes| format!(" of {} MiB", bytes >> 20));
        Some(Shortage::Limit(format!(
            "the container's memory limit{size}"
        )))
    }
}

/// The number in the line that begins with this word.
fn count(text: &str, word: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, number) = lines.find(|(key, _)| *key == word)?;
    number.trim().parse().ok()
}

/// The container's memory limit in bytes, where one is set. v2 says `max` where none is, and v1 the largest whole number of
/// pages.
fn memory_limit(cgroup: &Path) -> Option<u64> {
    const NONE: u64 = 1 << 62;
    let text = fs::read_to_string(cgroup.join("memory.max"))
        .or_else(|_| fs::read_to_string(cgroup.join("memory/memory.limit_in_bytes")));
    let bytes = text.ok()?.trim().parse().ok()?;
    (bytes < NONE).then_some(bytes)
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue …` → `580.95.05`.
fn kernel_version(text: &str) -> Option<String> {
    text.lines()
        .find(|line| line.starts_with("NVRM version"))?
        .split_whitespace()
        .find(|word| {
            word.contains('.')
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'.')
        })
        .map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12.2.0";
        let open =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build";
        assert_eq!(kernel_version(closed).as_deref(), Some("535.183.01"));
        let arm =
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build";
        for open in [open, arm] {
            assert_eq!(kernel_version(open).as_deref(), Some("580.95.05"));
        }
        assert_eq!(kernel_version("GCC version: 12.2.0"), None);
    }

    /// A control group with these files.
    fn cgroup(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("cuda-smoke-{name}-{}", std::process::id()));
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("memory")).unwrap();
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
        dir
    }

    #[test]
    fn a_kill_is_the_limits_where_the_limit_was_reached() {
        let none = MemoryKills {
            all: 0,
            at_limit: 0,
        };
        let limit = |words: &str| Some(Shortage::Limit(words.into()));
        let of_64 = "the container's memory limit of 64 MiB";
        let (events, max) = ("memory.events", "memory.max");
        let (control, bytes) = ("memory/memory.oom_control", "memory/memory.limit_in_bytes");
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        for (files, expected) in [
            (vec![(events, "oom 0\noom_kill 0\n")], None),
            (vec![(events, "max 3\noom 1\noom_kill 0\n")], None),
            (
                vec![(events, "oom 1\noom_kill 1\n"), (max, "67108864\n")],
                limit(of_64),
            ),
            (
                vec![(events, "oom 1\noom_kill 1\n")],
                limit("the container's memory limit"),
            ),
            // The node's own killer, with a limit and without
            (
                vec![(events, "oom 0\noom_kill 1\n"), (max, "67108864\n")],
                Some(Shortage::Node),
            ),
            (
                vec![(events, "oom 0\noom_kill 1\n"), (max, "max\n")],
                Some(Shortage::Node),
            ),
            // v1
            (vec![(control, v1), (bytes, "67108864\n")], limit(of_64)),
            (
                vec![(control, v1), (bytes, "9223372036854771712\n")],
                Some(Shortage::Node),
            ),
            (vec![(control, v1)], Some(Shortage::Node)),
        ] {
            let dir = cgroup("cgroup", &files);
            let now = MemoryKills::read(&dir).unwrap();
            assert_eq!(now.since(none, &dir), expected, "{files:?}");
            assert_eq!(now.since(now, &dir), None, "{files:?}");
            fs::remove_dir_all(&dir).unwrap();
        }
        assert_eq!(MemoryKills::read(Path::new("/nowhere")), None);
    }

    #[test]
    fn only_numbered_files_are_devices() {
        let dir = std::env::temp_dir().join(format!("cuda-smoke-dev-{}", std::process::id()));
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("nvidiactl"), "").unwrap();
        assert!(!has_device_files(&dir));
        for name in ["nvidia10", "nvidia2", "nvidia-uvm", "nvidia2a"] {
            fs::write(dir.join(name), "").unwrap();
        }
        assert_eq!(
            device_files(&dir),
            [dir.join("nvidia2"), dir.join("nvidia10")]
        );
        assert!(has_device_files(&dir));
        fs::remove_dir_all(&dir).unwrap();
    }
}
