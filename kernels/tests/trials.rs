//! `hardware`, from one file. On a machine whose driver is simulated the trials run; where there is no GPU it says so, and
//! nothing counts as tried.

#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

mod common;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use common::{driver, folder, program};
use serde_json::Value;

/// The program alone in a folder, as it is copied to a machine with a GPU.
static HARDWARE: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--workspace"])
        .args(["--test", "hardware", "--no-run"])
        .args(["--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let text = String::from_utf8(built.stdout).unwrap();
    let mut messages = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let is_it = |message: &Value| {
        message["reason"] == "compiler-artifact" && message["target"]["name"] == "hardware"
    };
    let message = messages.find(is_it).unwrap();
    let alone = folder("hardware").join("hardware");
    // Another process writes it, as it does in `program`.
    let copied = Command::new("cp")
        .arg(message["executable"].as_str().unwrap())
        .arg(&alone)
        .status();
    assert!(copied.unwrap().success());
    alone
});

/// Runs the trials of this name, with these programs in front of the others; what is printed.
fn trial(name: &str, programs: &Path) -> String {
    let dev = folder("dev");
    for file in ["nvidia0", "nvidia-uvm"] {
        fs::write(dev.join(file), "").unwrap();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([programs.into()].into_iter().chain(env::split_paths(&path)));
    let output = Command::new(&*HARDWARE)
        .arg(name)
        .env("PATH", path.unwrap())
        .env("CUDA_SMOKE_DEV_DIR", &dev)
        .env("LD_LIBRARY_PATH", driver().parent().unwrap())
        .env_remove("SIMCUDA")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{name}: {text}");
    text
}

#[test]
fn without_a_gpu_no_trial_is_made_and_none_passes() {
    // Given a machine without device files of a GPU
    let dev = folder("no-gpu");
    // When
    let output = Command::new(&*HARDWARE)
        .env("CUDA_SMOKE_DEV_DIR", &dev)
        .output()
        .unwrap();
    // Then
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("ignored: no GPU. Nothing was tested and nothing is proven."));
    let trials = text.lines().filter(|line| line.starts_with("test ["));
    let (ignored, others): (Vec<_>, Vec<_>) = trials.partition(|line| line.ends_with(" ignored"));
    assert!(!ignored.is_empty() && others.is_empty(), "{text}");
    let all = format!("0 passed; 0 failed; {} ignored", ignored.len());
    assert!(text.contains(&all), "{text}");
    assert!(!text.contains("For docs/hardware.md"), "{text}");
}

#[test]
fn trials_go_well_on_the_simulated_driver() {
    for name in [
        "each_part_alone",
        "options",
        "ptx_that_is_wrong_or_too_new",
        "two_processes_at_once",
        "forms_of_cuda_visible_devices",
        "a_killed_child",
    ] {
        let text = trial(name, Path::new("/nowhere"));
        assert!(text.contains(&format!("\n| `{name}` | ok |")), "{text}");
        assert!(text.contains("1 passed; 0 failed"), "{text}");
    }
}

#[test]
fn a_daemon_of_mps_that_does_not_start_is_left_out() {
    for (script, outcome) in [
        ("#!/bin/sh\nexit 1\n", "left out"),
        ("#!/bin/sh\nexit 0\n", "ok"),
    ] {
        // Given a daemon that refuses, or starts
        let programs = folder("mps");
        program(&programs.join("nvidia-cuda-mps-control"), script);
        // When
        let text = trial("mps", &programs);
        // Then
        assert!(text.contains(&format!("\n| `mps` | {outcome} |")), "{text}");
    }
}
