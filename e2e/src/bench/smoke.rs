//! What the gate costs beside the driver: `cuda-smoke check`, its wall clock less the time in the driver.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use gate_report::Report;
use serde_json::json;

use super::{
    Run,
    bed::PROFILE,
    figure::{Budget, Figure},
};
use crate::{images::artifact, process::remove_dir};

/// Processes for each run of the bench: one alone says little.
const PROCESSES: usize = 10;

/// A check has no cluster.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let count = run.runs * PROCESSES;
    run.story
        .step(&format!("cuda-smoke check: {count} processes"));
    tokio::task::spawn_blocking(move || measure(count)).await?
}

fn measure(count: usize) -> Result<Vec<Figure>> {
    let folder = std::env::temp_dir().join(format!("bench-driver-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    // Under the name that the real one has; cargo cannot give it.
    fs::copy(artifact(PROFILE, "libcuda.so"), folder.join("libcuda.so.1"))
        .context("cannot copy the simulated driver")?;
    let measured = checks(&folder, count);
    remove_dir(&folder)?;
    measured
}

fn checks(driver: &Path, count: usize) -> Result<Vec<Figure>> {
    let clock = driver.join("clock");
    let (mut own, mut total, mut start) = (vec![], vec![], vec![]);
    for _ in 0..count {
        let (_, version) = timed(driver, &clock, &["--version"])?;
        start.push(version);
        let (output, wall) = timed(driver, &clock, &["check", "--json"])?;
        let report: Report = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(report.passed(), "the check failed: {:?}", report.failure);
        own.push(wall - in_driver(&clock)?);
        total.push(wall);
    }
    let figure = |name: &str, ours, floor, budget| Figure {
        name: name.to_owned(),
        unit: "ms",
        ours,
        floor,
        budget,
    };
    Ok(vec![
        figure(
            "cuda-smoke check, without the driver; floor: --version",
            own,
            start,
            Some(Budget::AtMost(30.0)),
        ),
        figure(
            "cuda-smoke check, with the simulated driver",
            total,
            vec![],
            None,
        ),
    ])
}

/// Runs it; the output and how long it took, in milliseconds.
fn timed(driver: &Path, clock: &Path, arguments: &[&str]) -> Result<(Output, f64)> {
    let start = Instant::now();
    let output = Command::new(artifact(PROFILE, "cuda-smoke"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", driver)
        .env("SIMCUDA", json!({"clock": clock}).to_string())
        .output()
        .context("cannot start cuda-smoke")?;
    Ok((output, start.elapsed().as_secs_f64() * 1000.0))
}

/// Milliseconds that the last process was in the driver.
fn in_driver(clock: &Path) -> Result<f64> {
    let nanoseconds: f64 = fs::read_to_string(clock)?.parse()?;
    Ok(nanoseconds / 1e6)
}
