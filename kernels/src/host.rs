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

/// How often the kernel has killed a process of this container because it was out of memory; `None` where it does not count.
///
/// Control groups v2: `memory.events`; v1: `memory.oom_control` (`Documentation/admin-guide/cgroup-v2.rst`, `cgroup-v1/memory.rst`).
pub(crate) fn memory_kills(cgroup: &Path) -> Option<u64> {
    let text = fs::read_to_string(cgroup.join("memory.events"))
        .or_else(|_| fs::read_to_string(cgroup.join("memory/memory.oom_control")));
    let text = text.ok()?;
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count?.trim().parse().ok()
}

/// The container's memory limit in words, with its size where it can be read.
pub(crate) fn memory_limit(cgroup: &Path) -> String {
    let text = fs::read_to_string(cgroup.join("memory.max"))
        .or_else(|_| fs::read_to_string(cgroup.join("memory/memory.limit_in_bytes")));
    let bytes = text.ok().and_then(|text| text.trim().parse::<u64>().ok());
    let size = bytes.map_or_else(String::new, |bytes| format!(" of {} MiB", bytes >> 20));
    format!("the container's memory limit{size}")
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
