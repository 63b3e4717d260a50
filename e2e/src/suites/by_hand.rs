//! The same gate by hand: on this machine, which has no GPU, it says so.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::Ctx;
use crate::images::{Profile, artifact};

/// Exit code of a container or host that is not set up for CUDA, as docs/reference/gate.md has it.
const NO_DRIVER: i32 = 10;

pub(super) async fn run(_: &Ctx) -> Result<()> {
    let check = |arguments: &[&str]| {
        Command::new(artifact(Profile::Dev, "cuda-smoke"))
            .arg("check")
            .args(arguments)
            .env_remove("LD_LIBRARY_PATH")
            .output()
    };
    // When somebody without a GPU runs the check
    let plain = check(&[])?;
    // Then it says clearly that there is no driver, and ends with the documented code
    let text = String::from_utf8_lossy(&plain.stdout) + String::from_utf8_lossy(&plain.stderr);
    ensure!(
        plain.status.code() == Some(NO_DRIVER),
        "it ended with {}: {text}",
        plain.status
    );
    ensure!(
        text.contains("libcuda.so.1"),
        "it does not say what is missing: {text}"
    );
    // And for a program, the same as JSON
    let json = check(&["--json"])?;
    let report: Value = serde_json::from_slice(&json.stdout)?;
    ensure!(
        report["outcome"] == "failed" && report["failure"]["class"] == "config",
        "{report:#}"
    );
    Ok(())
}
