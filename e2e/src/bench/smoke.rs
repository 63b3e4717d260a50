//! What the gate costs beside the driver: its wall clock less the time in the driver, by hand (`cuda-smoke check`) and as
//! a whole (`cuda-smoke gate`, with a registration from a real operator). The whole waits for two others as well, the API
//! server and GitHub: what a bare client waits for them is taken off, too.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gate_report::{Report, contract::gate, wire::AUDIENCE};
use github_simulator::control::NewCredential;
use http::{Method, StatusCode, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1::Pod,
};
use kube::{Api, ResourceExt as _, api::PostParams};
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
    suites::Ctx,
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
    let (mut own, mut start, mut waited) = (vec![], vec![], vec![]);
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
        let others = Others::new(&ctx).await?;
        for pod in pods.await? {
            start.push(driver.timed(&["--version"], &[])?.1);
            let token = player.token(&pod).await?;
            let wall = driver.gate(&pod, &token)?;
            let waits = others.wait(&pod.name_any(), &token).await?;
            own.push(wall - waits);
            waited.push(waits);
        }
        Ok(())
    })
    .await?;
    Ok(vec![
        figure(
            "cuda-smoke gate, without the driver, the API server and GitHub; floor: --version",
            own,
            start,
            Some(Budget::AtMost(30.0)),
        ),
        figure(
            "what the API server and GitHub take for a registration",
            waited,
            vec![],
            None,
        ),
    ])
}

/// Whom a registration waits for, asked by a bare client that has its connections.
struct Others<'a> {
    ctx: &'a Ctx,
    /// GitHub's token.
    token: String,
}

impl<'a> Others<'a> {
    async fn new(ctx: &'a Ctx) -> Result<Self> {
        let new = NewCredential {
            name: "bare".to_owned(),
            scopes: Some(["repo".to_owned()].into()),
            admin: true,
            ..NewCredential::default()
        };
        Ok(Self {
            ctx,
            token: ctx.github.create_token(&new).await?,
        })
    }

    /// Whose token this is, and a registration like that of this pod: how long both take, in milliseconds.
    async fn wait(&self, pod: &str, token: &str) -> Result<f64> {
        let reviews: Api<TokenReview> = Api::all(self.ctx.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let path = format!(
            "/api/v3/repos/{}/actions/runners/generate-jitconfig",
            self.ctx.repository
        );
        let bearer = format!("Bearer {}", self.token);
        let headers = [
            (header::AUTHORIZATION.as_str(), bearer.as_str()),
            (header::USER_AGENT.as_str(), "bench"),
        ];
        let runner =
            json!({"name": format!("{pod}-bare"), "runner_group_id": 1, "labels": ["cuda"]});
        let start = Instant::now();
        reviews.create(&PostParams::default(), &review).await?;
        let sent = self
            .ctx
            .github
            .send(Method::POST, &path, &headers, Some(&runner));
        let (status, _, answer) = sent.await?;
        let waited = start.elapsed().as_secs_f64() * 1000.0;
        ensure!(
            status == StatusCode::CREATED,
            "GitHub answered {status}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(waited)
    }
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
            .filter(|variable| variable.name.starts_with(gate::PREFIX))
            .filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?)))
            .collect();
        environment.extend([
            (gate::TOKEN_FILE, files[0].as_str()),
            (gate::REGISTRATION_DIR, files[1].as_str()),
            (gate::TERMINATION_LOG, files[2].as_str()),
            (gate::POD, name.as_str()),
            (gate::NAMESPACE, namespace.as_str()),
            (gate::NODE, node),
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
