//! Beside those who mean ill: another team, whose pool goes on as if nothing were, and the operator, which bears it all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::ListParams};
use serde_json::json;

use super::Ctx;
use crate::{cluster::Cluster, deploy, helm::NAMESPACE, process};

/// The most memory that the operator may take, in MiB, whatever it meets: well below the limit that the chart sets. Suites
/// run a build that is not optimised.
const MEMORY: f64 = 160.0;
/// A neighbour's job and its next runner may take this many times what they take in calm, and a little more: the machine
/// has few cores, and all that is ill runs on them, too.
const SLOWER: u32 = 3;
const GRACE: Duration = Duration::from_secs(10);
/// The neighbour's pool.
pub(super) const POOL: &str = "pool";

/// Another team in a namespace of its own.
pub(super) struct Neighbour {
    /// What it works with.
    pub(super) ctx: Ctx,
    suite: String,
    calm: Duration,
}

/// The operator's processes at some moment.
struct Operator {
    pods: Vec<(String, i32)>,
    /// The most that it has ever had, in MiB.
    peak: f64,
}

/// Does something ill beside another team, which must not notice anything of it.
pub(super) async fn beside(
    ctx: &Ctx,
    ill: impl AsyncFnOnce(&Neighbour) -> Result<()>,
) -> Result<()> {
    let theirs = Ctx::new(&ctx.cluster, &format!("{}-beside", ctx.namespace)).await?;
    let outcome = unharmed(ctx, &theirs, ill).await;
    let tidied = theirs.tidy().await;
    outcome?;
    tidied.context("the neighbour")
}

async fn unharmed(
    ctx: &Ctx,
    theirs: &Ctx,
    ill: impl AsyncFnOnce(&Neighbour) -> Result<()>,
) -> Result<()> {
    // Given another team whose pool works
    let mut neighbour = Neighbour {
        ctx: theirs.clone(),
        suite: ctx.namespace.clone(),
        calm: Duration::ZERO,
    };
    theirs.apply(&theirs.pool(POOL, json!({}))).await?;
    theirs.idle(POOL, 1).await?;
    neighbour.calm = neighbour.job().await?;
    // When somebody does what is ill
    let before = Operator::look(&ctx.cluster).await?;
    ill(&neighbour).await?;
    // Then their next job and the runner after it come in time, and they have nothing to complain of
    neighbour.is_unharmed().await?;
    // And the operator is still the same
    before.still(ctx).await
}

impl Neighbour {
    /// A job of theirs, and the next runner after it: how long both take.
    async fn job(&self) -> Result<Duration> {
        let runner = self.ctx.idle(POOL, 1).await?.remove(0);
        let begun = Instant::now();
        let job = self.ctx.queue("neighbour", "true").await?;
        self.ctx.succeeded(job).await?;
        self.ctx.other_idle(POOL, &runner).await?;
        Ok(begun.elapsed())
    }

    /// Their job runs and their next runner comes in time; no failure is theirs, and no node is kept from them.
    pub(super) async fn is_unharmed(&self) -> Result<()> {
        let took = self.job().await.context("the neighbour's job")?;
        let most = self.calm * SLOWER + GRACE;
        println!(
            "{}: a neighbour's job and its next runner take {:.1} s in calm, {:.1} s beside",
            self.suite,
            self.calm.as_secs_f64(),
            took.as_secs_f64()
        );
        ensure!(took <= most, "{took:?} are more than {most:?}");
        let status = self.ctx.status(POOL).await?;
        ensure!(status.quarantine.is_empty(), "{:?}", status.quarantine);
        ensure!(
            status.last_failures.is_empty(),
            "{:?}",
            status.last_failures
        );
        self.ctx.condition(POOL, "Ready", "True", "Online").await?;
        Ok(())
    }

    /// The operator is killed, comes back, and has to read everything again.
    pub(super) async fn restart(&self) -> Result<()> {
        deploy::kill(&self.ctx.cluster, &self.ctx.client).await?;
        self.is_unharmed().await
    }
}

impl Operator {
    async fn look(cluster: &Cluster) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(cluster.client().await?, NAMESPACE);
        let mut looked = Self {
            pods: vec![],
            peak: 0.0,
        };
        for pod in pods.list(&ListParams::default()).await?.items {
            let statuses = pod.status.and_then(|status| status.container_statuses);
            let restarts = statuses
                .into_iter()
                .flatten()
                .map(|c| c.restart_count)
                .sum();
            let uid = pod.metadata.uid.unwrap_or_default();
            for process in process::in_pod(&cluster.cgroup(), &uid) {
                // One that has ended meanwhile was a probe's.
                let peak = process.memory().map_or(0.0, |(_, peak)| peak);
                looked.peak = looked.peak.max(peak);
            }
            looked
                .pods
                .push((pod.metadata.name.unwrap_or_default(), restarts));
        }
        Ok(looked)
    }

    /// Nothing has restarted by itself, and the memory was enough.
    async fn still(&self, ctx: &Ctx) -> Result<()> {
        let now = Self::look(&ctx.cluster).await?;
        println!(
            "{}: the operator's memory has been at most {:.0} MiB, before {:.0}",
            ctx.namespace, now.peak, self.peak
        );
        ensure!(
            now.pods.iter().all(|(_, restarts)| *restarts == 0),
            "it was restarted: {:?}",
            now.pods
        );
        ensure!(
            now.peak > 0.0 && now.peak <= MEMORY,
            "{} MiB are more than {MEMORY}",
            now.peak
        );
        Ok(())
    }
}
