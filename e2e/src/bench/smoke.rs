//! What the gate costs beside the driver: its wall clock less the time in the driver, by hand (`cuda-smoke check`) and as
//! a whole (`cuda-smoke prepare` and `gate`, admitted by a real operator). The whole waits for the API server as well: what
//! a bare client waits for it is taken off, too.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gate_report::{Report, contract::gate};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Bed, Run,
    bed::{PROFILE, gated_pool},
    figure::{Budget, Figure},
    player::Player,
};
use crate::{
    gpu,
    images::{artifact, install_driver},
    process::remove_dir,
    suites::Ctx,
};

/// Processes for each run of the bench: one alone says little.
const PROCESSES: usize = 10;
/// Long enough for the pods of all gates.
const LIMIT: Duration = Duration::from_mins(1);

/// How many devices are checked, and what their check may take beside the driver, in milliseconds.
const DEVICES: [(usize, Option<Budget>); 2] = [(1, Some(Budget::AtMost(30.0))), (8, None)];

/// A check has no cluster.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let count = run.runs * PROCESSES;
    run.story
        .step(&format!("cuda-smoke check: {count} processes"));
    tokio::task::spawn_blocking(move || {
        let driver = Driver::install()?;
        let mut figures = vec![];
        for (devices, budget) in DEVICES {
            figures.extend(checks(&driver, devices, budget, count)?);
        }
        Ok(figures)
    })
    .await?
}

/// The whole gate, as in a pod: with the pod's own environment and token, until its report is admitted.
pub(super) async fn gate(run: &Run) -> Result<Vec<Figure>> {
    let count = run.runs * PROCESSES;
    run.story.step(&format!("cuda-smoke gate: {count} pods"));
    let driver = Driver::install()?;
    let (mut own, mut start, mut waited) = (vec![], vec![], vec![]);
    Bed::with(count, async |bed| {
        let ctx = bed.ctx("gate").await?;
        bed.started().await?;
        ctx.apply(&ctx.pool("pool", gated_pool(count))).await?;
        let what = format!("{count} pods whose gate runs");
        let pods = ctx.wait_for(&what, LIMIT, async || {
            let pods = ctx.pods().await?;
            let all = pods.len() == count && pods.iter().all(gpu::gate_runs);
            Ok(all.then_some(pods))
        });
        let player = Player::new(&ctx);
        for pod in pods.await? {
            let bare = || anyhow::Ok(driver.timed(&["--version"], &[])?.1);
            start.push(bare()? + bare()?);
            let token = player.token(&pod).await?;
            let wall = driver.gate(&pod, &token)?;
            let waits = change(&ctx, &pod.name_any()).await?;
            own.push(wall - waits);
            waited.push(waits);
        }
        Ok(())
    })
    .await?;
    Ok(vec![
        figure(
            "cuda-smoke prepare and gate, without the driver and the API server; floor: --version twice",
            own,
            start,
            Some(Budget::AtMost(30.0)),
        ),
        figure(
            "what the API server takes for a change of the pod",
            waited,
            vec![],
            None,
        ),
    ])
}

/// A change of this pod: how long the API server takes for it, in milliseconds. A gate waits for that, and here a bare
/// client asks, which has its connections.
async fn change(ctx: &Ctx, pod: &str) -> Result<f64> {
    let pods: Api<Pod> = ctx.api();
    let patch = Patch::Strategic(json!({"metadata": {"annotations": {"bench": "changed"}}}));
    let start = Instant::now();
    pods.patch_metadata(pod, &PatchParams::default(), &patch)
        .await?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

fn figure(name: &str, ours: Vec<f64>, floor: Vec<f64>, budget: Option<Budget>) -> Figure {
    Figure {
        name: name.to_owned(),
        unit: "ms",
        ours,
        floor,
        budget,
    }
}

fn checks(
    driver: &Driver,
    devices: usize,
    budget: Option<Budget>,
    count: usize,
) -> Result<Vec<Figure>> {
    let (mut own, mut total, mut start) = (vec![], vec![], vec![]);
    let simulated = json!({"clock": driver.clock(), "devices": vec![json!({}); devices]});
    let simulated = simulated.to_string();
    let environment = [("SIMCUDA", &*simulated)];
    for _ in 0..count {
        start.push(driver.timed(&["--version"], &[])?.1);
        let (output, wall) = driver.timed(&["check", "--json"], &environment)?;
        let report: Report = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(report.passed(), "the check failed: {:?}", report.failure);
        ensure!(
            report.devices.len() == devices,
            "{} devices were checked",
            report.devices.len()
        );
        own.push(wall - driver.spent()? - report.timings.teardown_ms);
        total.push(wall);
    }
    let of = if devices == 1 {
        String::new()
    } else {
        format!(" of {devices} devices")
    };
    Ok(vec![
        figure(
            &format!("cuda-smoke check{of}, without the driver; floor: --version"),
            own,
            start,
            budget,
        ),
        figure(
            &format!("cuda-smoke check{of}, with the simulated driver"),
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
        let output = self
            .command(arguments, environment)
            .output()
            .context("cannot start cuda-smoke")?;
        Ok((output, start.elapsed().as_secs_f64() * 1000.0))
    }

    fn command(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(artifact(PROFILE, "cuda-smoke"));
        command
            .args(arguments)
            .env("LD_LIBRARY_PATH", &self.0)
            .env("SIMCUDA", json!({"clock": self.clock()}).to_string())
            .envs(environment.iter().copied());
        command
    }

    /// Runs a gate until it is admitted: then it waits for its end. Gives the milliseconds until there, without those in
    /// which the driver cleaned up.
    fn until_admitted(&self, environment: &[(&str, &str)]) -> Result<f64> {
        let start = Instant::now();
        let mut gate = self
            .command(&["gate"], environment)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start cuda-smoke")?;
        let said = BufReader::new(gate.stdout.take().context("no output")?).lines();
        let mut said = said.map_while(Result::ok);
        let clean_up = said.find_map(|line| {
            let (_, after) = line.split_once(", clean-up ")?;
            after.split_once(" ms")?.0.parse::<f64>().ok()
        });
        let is_admitted = said.any(|line| line.starts_with("The registrar has taken the report"));
        let wall = start.elapsed().as_secs_f64() * 1000.0;
        gate.kill()?;
        let ended = gate.wait()?;
        ensure!(is_admitted, "the gate failed: {ended}");
        Ok(wall - clean_up.context("the gate does not say what the clean-up took")?)
    }

    /// Prepares a pod and runs its gate; their own time in milliseconds, the registrar's answers included.
    fn gate(&self, pod: &Pod, token: &str) -> Result<f64> {
        let name = pod.name_any();
        let file = |kind: &str| {
            let path = self.0.join(format!("{kind}-{name}"));
            path.to_string_lossy().into_owned()
        };
        let files = ["token", "registration", "message"].map(file);
        fs::write(&files[0], token)?;
        fs::create_dir_all(&files[1])?;
        let init = artifact(PROFILE, "runner-init");
        let init = init.to_string_lossy();
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
            .filter(|variable| variable.name.starts_with(gate::PREFIX))
            .filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)))
            .collect();
        environment.extend([
            (gate::TOKEN_FILE, files[0].as_str()),
            (gate::REGISTRATION_DIR, files[1].as_str()),
            (gate::TERMINATION_LOG, files[2].as_str()),
            (gate::RUNNER_INIT, &*init),
            (gate::POD, name.as_str()),
            (gate::NAMESPACE, namespace.as_str()),
            (gate::NODE, node),
        ]);
        let (output, prepared) = self.timed(&["prepare"], &environment)?;
        ensure!(
            output.status.success(),
            "the pod was not prepared: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let wall = prepared + self.until_admitted(&environment)?;
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
