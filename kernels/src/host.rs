//! What the container shows of the driver outside its library.

use std::fs;
use std::path::Path;

use gate_report::{Driver, DriverModel};

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

/// `/dev/nvidia0` and so on, or WSL2's `/dev/dxg`. `nvidiactl` alone is no device.
fn has_device_files(dev: &Path) -> bool {
    let is_device = |name: &str| {
        name == "dxg"
            || name.strip_prefix("nvidia").is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            })
    };
    fs::read_dir(dev).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_str().is_some_and(is_device))
    })
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
        assert_eq!(kernel_version(open).as_deref(), Some("580.95.05"));
        assert_eq!(kernel_version("GCC version: 12.2.0"), None);
    }

    #[test]
    fn only_numbered_files_are_devices() {
        let dir = std::env::temp_dir().join(format!("cuda-smoke-dev-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("nvidiactl"), "").unwrap();
        assert!(!has_device_files(&dir));
        fs::write(dir.join("nvidia0"), "").unwrap();
        assert!(has_device_files(&dir));
        fs::remove_dir_all(&dir).unwrap();
    }
}
