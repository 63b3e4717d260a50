//! `hardware` where there is no GPU: it says so, and nothing counts as tried.

#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

mod common;

use std::process::Command;

use common::folder;

#[test]
fn without_a_gpu_no_trial_is_made_and_none_passes() {
    // Given a machine without device files of a GPU
    let dev = folder("no-gpu");
    // When
    let output = Command::new(env!("CARGO"))
        .args(["test", "--quiet", "--workspace", "--test", "hardware"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CUDA_SMOKE_DEV_DIR", &dev)
        .output()
        .unwrap();
    // Then
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("ignored: no GPU. Nothing was tested and nothing is proven."));
    assert!(text.contains("0 passed; 0 failed; "), "{text}");
    let mut trials = text.lines().filter(|line| line.starts_with("test ["));
    assert!(trials.all(|line| line.ends_with(" ignored")), "{text}");
    assert!(!text.contains("For docs/hardware.md"), "{text}");
}
