//! Runners that end without a finished job, each in its own way: the resource and an Event say why, and the next one comes.

use std::time::Duration;

use anyhow::{Result, ensure};
use cudarunner_crds::FailureStatus;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::EvictParams};
use serde_json::json;

use super::{Ctx, SOON, context::agent_with};
use crate::example;

/// The garbage collector looks for pods without a node every 20 s, and gives a node that vanished 40 s.
pub(super) const NODE_GONE: Duration = Duration::from_mins(3);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    evicted(ctx).await?;
    killed(ctx).await?;
    without_a_job(ctx).await?;
    no_image(ctx).await
}

/// As `kubectl drain` does it.
async fn evicted(ctx: &Ctx) -> Result<()> {
    // Given a runner without a job, and one in the middle of one
    ctx.apply(&ctx.pool("drained", json!({"replicas": 2})))
        .await?;
    ctx.idle("drained", 2).await?;
    let job = ctx.hold("long").await?;
    let busy = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let idle = ctx.other_idle("drained", &busy).await?;

    // When their pods are evicted
    let pods: Api<Pod> = ctx.api();
    for runner in [&idle, &busy] {
        pods.evict(runner, &EvictParams::default()).await?;
    }

    // Then of the one it is said that this was Kubernetes, and of the other how its job ended
    let failure = failed(ctx, "drained", "Evicted", SOON).await?;
    ensure!(failure.runner == idle, "{failure:?}");
    let jobs = ctx.concluded("drained", 1).await?;
    ensure!(
        jobs[0].runner == busy && jobs[0].conclusion.as_deref() != Some("success"),
        "{jobs:?}"
    );
    ctx.idle("drained", 2).await?;
    ctx.delete("drained").await
}

/// The agent does not end while it may: the kubelet kills it, and says so a moment after its time is over.
async fn killed(ctx: &Ctx) -> Result<()> {
    // Given a job that ends of no signal but one
    let mut template = agent_with("SETTING", "killed");
    template["spec"]["terminationGracePeriodSeconds"] = json!(5);
    ctx.apply(&ctx.pool("killed", json!({"template": template})))
        .await?;
    ctx.idle("killed", 1).await?;
    let deaf = "trap '' INT TERM; echo begun; while :; do sleep 0.1; done";
    let job = ctx
        .queue_for("deaf", &["self-hosted", "cuda"], deaf, false)
        .await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    ctx.wait_for("the job to be deaf", SOON, async || {
        let log = ctx.github.job_log(job).await?;
        Ok(log.contains("begun").then_some(()))
    })
    .await?;

    // When its pod is evicted, with less time than an agent gives its job
    let pods: Api<Pod> = ctx.api();
    pods.evict(&runner, &EvictParams::default()).await?;

    // Then it is said that this was Kubernetes, and the node is neither lost nor kept off
    let failure = failed(ctx, "killed", "Evicted", SOON).await?;
    ensure!(failure.runner == runner, "{failure:?}");
    ctx.idle("killed", 1).await?;
    let status = ctx.status("killed").await?;
    ensure!(
        status.quarantine.is_empty() && status.last_failures.len() == 1,
        "{status:?}"
    );
    ctx.delete("killed").await
}

/// Somebody removes its entry on GitHub: the agent ends by itself.
async fn without_a_job(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("removed", json!({}))).await?;
    ctx.idle("removed", 1).await?;
    for entry in ctx.runners().await? {
        ctx.github
            .delete_runner(entry["id"].as_u64().unwrap_or_default())
            .await?;
    }
    failed(ctx, "removed", "EndedWithoutJob", SOON).await?;
    replaced(ctx, "removed").await
}

async fn no_image(ctx: &Ctx) -> Result<()> {
    // When the image does not exist
    let mut template = agent_with("SETTING", "absent");
    template["spec"]["containers"][0]["image"] = json!("localhost/absent:none");
    let pool = |template| ctx.pool("absent", json!({"template": template}));
    ctx.apply(&pool(template)).await?;

    // Then the pool says so in Kubernetes' word, with an Event, and blames no GPU
    let word = ctx
        .wait_for("the image to be missed", SOON, async || {
            let conditions = ctx.status("absent").await?.conditions;
            let online = conditions.into_iter().find(|c| c.type_ == "RunnersOnline");
            let missed = online.filter(|c| c.message.contains("image cannot be pulled"));
            Ok(missed.map(|c| c.reason))
        })
        .await?;
    reported(ctx, &word, "imagePullSecrets").await?;
    ensure!(ctx.status("absent").await?.quarantine.is_empty());

    // When it is another one, then the runner comes
    let mut template = agent_with("SETTING", "absent");
    template["spec"]["containers"][0]["image"] = json!(example::AGENT);
    ctx.apply(&pool(template)).await?;
    ctx.idle("absent", 1).await?;
    ctx.delete("absent").await
}

/// Waits until the status of a pool has a failure with this reason, and an Event its runner.
pub(super) async fn failed(
    ctx: &Ctx,
    pool: &str,
    reason: &str,
    limit: Duration,
) -> Result<FailureStatus> {
    let what = format!("{pool} to say {reason}");
    let failure = ctx
        .wait_for(&what, limit, async || {
            let failures = ctx.status(pool).await?.last_failures;
            Ok(failures.into_iter().find(|f| f.reason == reason))
        })
        .await?;
    reported(ctx, reason, &failure.runner).await?;
    Ok(failure)
}

/// Waits for a warning with this reason and these words.
async fn reported(ctx: &Ctx, reason: &str, words: &str) -> Result<()> {
    ctx.wait_for(&format!("an Event {reason}"), SOON, async || {
        let reported = ctx.events(reason).await?;
        let reported = reported.iter().any(|event| {
            event.type_.as_deref() == Some("Warning")
                && event.note.as_deref().is_some_and(|n| n.contains(words))
        });
        Ok(reported.then_some(()))
    })
    .await
}

/// Waits until the pool has a runner again; then it is of no more use.
async fn replaced(ctx: &Ctx, pool: &str) -> Result<()> {
    ctx.idle(pool, 1).await?;
    ctx.delete(pool).await
}
