//! What the gate costs beside the driver: its wall clock less the time in the driver, by hand (`cuda-smoke check`) and as
//! a whole (`cuda-smoke gate`, with a registration from a real operator).

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gate_report::Report;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::json;

use super::{
    Bed, Run,
    bed::{PROFILE, gated_pool},
    figure::{Budget, Figure},
    player::{Player, gate_runs},
};
use crate::{
    images::{artifact, install_driver},
    process::remove_dir,
};

/// Processes for each run of the bench: one alone says little.
const PROCESSES: usize = 10;
/// Long enough for the pods of all gates.
const LIMIT: Duration = Duration::from_mins(1);

/// A check has no cluster.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let count = run.runs * PROCESSES;
    run.story
        .step(&format!("cuda-smoke check: {count} processes"));
    tokio::task::spawn_blocking(move || checks(&Driver::install()?, count)).await?
}

/// The whole gate, as in a pod: with the pod's own environment and token, until it has its registration.
pub(super) async fn gate(run: &Run) -> Result<Vec<Figure>> {
    let count = run.runs * PROCESSES;
    run.story.step(&format!("cuda-smoke gate: {count} pods"));
    let driver = Driver::install()?;
    let (mut own, mut start) = (vec![], vec![]);
    Bed::with(count, async |bed| {
        let ctx = bed.ctx("gate").await?;
        bed.started().await?;
        ctx.apply(&ctx.pool("pool", gated_pool(count))).await?;
        let what = format!("{count} pods whose gate runs");
        let pods = ctx.wait_for(&what, LIMIT, async || {
            let pods = ctx.pods().await?;
            let all = pods.len() == count && pods.iter().all(gate_runs);
            Ok(all.then_some(pods))
        });
        let player = Player::new(&ctx);
        for pod in pods.await? {
            start.push(driver.timed(&["--version"], &[])?.1);
            let token = player.token(&pod).await?;
            own.push(driver.gate(&pod, &token)?);
        }
        Ok(())
    })
    .await?;
    Ok(vec![Figure {
        name: "cuda-smoke gate with its registration, without the driver; floor: --version"
            .to_owned(),
        unit: "ms",
        ours: own,
        floor: start,
        budget: Some(Budget::AtMost(30.0)),
    }])
}

fn checks(driver: &Driver, count: usize) -> Result<Vec<Figure>> {
    let (mut own, mut total, mut start) = (vec![], vec![], vec![]);
    for _ in 0..count {
        start.push(driver.timed(&["--version"], &[])?.1);
        let (output, wall) = driver.timed(&["check", "--json"], &[])?;
        let report: Report = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(report.passed(), "the check failed: {:?}", report.failure);
        own.push(wall - driver.spent()?);
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

/// The simulated driver, in a folder of its own.
struct Driver(PathBuf);

impl Driver {
    fn install() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("bench-driver-{}", std::process::id()));
        install_driver(PROFILE, &folder)?;
        Ok(Self(folder))
    }

    /// Runs `cuda-smoke`; the output and how long it took, in milliseconds.
    fn timed(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<(Output, f64)> {
        let start = Instant::now();
        let output = Command::new(artifact(PROFILE, "cuda-smoke"))
            .args(arguments)
            .env("LD_LIBRARY_PATH", &self.0)
            .env("SIMCUDA", json!({"clock": self.clock()}).to_string())
            .envs(environment.iter().copied())
            .output()
            .context("cannot start cuda-smoke")?;
        Ok((output, start.elapsed().as_secs_f64() * 1000.0))
    }

    /// Runs the gate of a pod; its own time in milliseconds, the registrar's answer included.
    fn gate(&self, pod: &Pod, token: &str) -> Result<f64> {
        let file = |name: &str| self.0.join(name).to_string_lossy().into_owned();
        fs::write(file("token"), token)?;
        fs::create_dir_all(file("registration"))?;
        let (files, name) = (
            ["token", "registration", "message"].map(file),
            pod.name_any(),
        );
        let namespace = pod.namespace().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        let node = node.unwrap_or_default();
        let containers = pod
            .spec
            .iter()
            .flat_map(|s| s.init_containers.iter().flatten());
        let variables = containers.flat_map(|container| container.env.iter().flatten());
        let mut environment: Vec<(&str, &str)> = variables
            // Where the driver is, is the bench's own affair.
            .filter(|variable| variable.name.starts_with("CUDA_SMOKE_"))
            .filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)))
            .collect();
        environment.extend([
            ("CUDA_SMOKE_TOKEN_FILE", files[0].as_str()),
            ("CUDA_SMOKE_REGISTRATION_DIR", files[1].as_str()),
            ("CUDA_SMOKE_TERMINATION_LOG", files[2].as_str()),
            ("POD_NAME", name.as_str()),
            ("POD_NAMESPACE", namespace.as_str()),
            ("NODE_NAME", node),
        ]);
        let (output, wall) = self.timed(&["gate"], &environment)?;
        ensure!(
            output.status.success(),
            "the gate failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(wall - self.spent()?)
    }

    fn clock(&self) -> PathBuf {
        self.0.join("clock")
    }

    /// Milliseconds that the last process was in the driver.
    fn spent(&self) -> Result<f64> {
        let nanoseconds: f64 = fs::read_to_string(self.clock())?.parse()?;
        Ok(nanoseconds / 1e6)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What is left in the system's temporary folder harms nobody.
        let _ = remove_dir(&self.0);
    }
}
