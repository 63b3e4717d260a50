//! Beside those who mean ill: another team, whose pool goes on as if nothing were, and the operator, which bears it all.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use gate_report::is_hidden;
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{Api, api::ListParams};
use serde_json::{Value, json};

use super::Ctx;
use crate::{deploy, helm::NAMESPACE, process};

/// The most memory that the operator may take, in MiB, whatever it meets: well below the limit that the chart sets. Suites
/// run a build that is not optimised.
const MEMORY: f64 = 160.0;
/// A neighbour's job and its next runner may take this many times what they take in calm, and a little more: the machine
/// has few cores, and all that is ill runs on them, too.
const SLOWER: u32 = 3;
const GRACE: Duration = Duration::from_secs(10);
/// So often is it tried: what is ill slows every job, what the machine has to do beside does not.
const TRIES: usize = 3;
/// The neighbour's pool.
pub(super) const POOL: &str = "pool";

/// Another team in a namespace of its own.
pub(super) struct Neighbour {
    /// What it works with.
    pub(super) ctx: Ctx,
    suite: String,
    calm: Duration,
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
    neighbour.calm = neighbour.job().await?;
    // When somebody does what is ill
    ill(&neighbour).await?;
    // Then their next job and the runner after it come in time, and they have nothing to complain of
    neighbour.is_unharmed().await?;
    // And the operator bears it
    neighbour.operator_is_well().await
}

impl Neighbour {
    /// A job of theirs, and the next runner after it: how long both take.
    async fn job(&self) -> Result<Duration> {
        let runner = self.ctx.other_ready(POOL, "").await?;
        let begun = Instant::now();
        let job = self.ctx.queue("neighbour", "true").await?;
        self.ctx.succeeded(job).await?;
        self.ctx.other_ready(POOL, &runner).await?;
        Ok(begun.elapsed())
    }

    /// Their job runs and their next runner comes in time; no failure is theirs, and no node is kept from them.
    pub(super) async fn is_unharmed(&self) -> Result<()> {
        let most = self.calm * SLOWER + GRACE;
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            let took = self.job().await.context("the neighbour's job")?;
            println!(
                "{}: a neighbour's job and its next runner take {:.1} s in calm, {:.1} s beside",
                self.suite,
                self.calm.as_secs_f64(),
                took.as_secs_f64()
            );
            best = best.min(took);
            if best <= most {
                break;
            }
        }
        ensure!(best <= most, "{best:?} are more than {most:?}");
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

    /// The operator, which has borne all until now, is killed, comes back, and has to read everything again.
    pub(super) async fn restart(&self) -> Result<()> {
        self.operator_is_well().await?;
        deploy::kill(&self.ctx.cluster, &self.ctx.client).await
    }

    /// No operator has restarted by itself, and the memory was enough.
    async fn operator_is_well(&self) -> Result<()> {
        let cluster = &self.ctx.cluster;
        let pods: Api<Pod> = Api::namespaced(self.ctx.client.clone(), NAMESPACE);
        let mut most: f64 = 0.0;
        for pod in pods.list(&ListParams::default()).await?.items {
            let statuses = pod.status.and_then(|status| status.container_statuses);
            let mut statuses = statuses.into_iter().flatten();
            ensure!(
                statuses.all(|container| container.restart_count == 0),
                "it was restarted: {:?}",
                pod.metadata.name
            );
            let uid = pod.metadata.uid.unwrap_or_default();
            for process in process::in_pod(&cluster.cgroup(), &uid) {
                // One that has ended meanwhile was a probe's.
                most = most.max(process.memory().map_or(0.0, |(_, peak)| peak));
            }
        }
        let suite = &self.suite;
        println!("{suite}: the operator's memory has been at most {most:.0} MiB");
        ensure!(
            most > 0.0 && most <= MEMORY,
            "{most} MiB are more than {MEMORY}"
        );
        Ok(())
    }
}

/// Nothing in what the namespace's people read moves a cursor, turns a text or forges a line: statuses, Events, the
/// operator's log. `forged` are words that a line of the log would begin with.
pub(super) async fn nothing_hidden(ctx: &Ctx, forged: &str) -> Result<()> {
    let pools: Api<CudaRunner> = ctx.api();
    let events: Api<Event> = ctx.api();
    let mut shown = vec![];
    for pool in pools.list(&ListParams::default()).await?.items {
        shown.push(json!(pool.status));
    }
    for event in events.list(&ListParams::default()).await?.items {
        shown.push(json!([event.note, event.reason, event.action]));
    }
    for value in &shown {
        ensure!(!has_hidden(value), "hidden characters are shown: {value}");
    }
    for log in deploy::operator_log(&ctx.client, None).await? {
        for line in log.lines() {
            ensure!(
                !line.chars().any(is_hidden),
                "hidden characters in the log: {line:?}"
            );
            ensure!(
                !line.trim_start().starts_with(forged),
                "a forged line: {line:?}"
            );
        }
    }
    Ok(())
}

fn has_hidden(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().any(is_hidden),
        Value::Array(items) => items.iter().any(has_hidden),
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| name.chars().any(is_hidden) || has_hidden(value)),
        _ => false,
    }
}
