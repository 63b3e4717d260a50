//! A broken GPU costs its node, not the jobs: they wait for a healthy one, and the node comes back when it is mended.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{Ctx, plugin::plugin, second_node::with_second_node};
use crate::{cluster::Cluster, deploy, node};

/// The pool that meets the broken GPU, and one that comes later.
const POOL: &str = "sick";
const LATER: &str = "later";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    with_second_node(ctx, async |_| {
        let job = the_node_is_left_alone(ctx).await?;
        a_restart_and_another_pool_know_of_it(ctx).await?;
        the_healthy_node_takes_the_job(ctx, job).await?;
        a_release_ends_it(ctx).await
    })
    .await
}

async fn the_node_is_left_alone(ctx: &Ctx) -> Result<u64> {
    // Given two nodes: one computes wrongly, the other takes no pods for now
    for number in 0..4 {
        ctx.device(number, |device| {
            device
                .store_faults
                .push(json!({"kernel": "vector_add", "nth": 7, "flipBit": 3, "device": 0}));
        })?;
    }
    Cluster::cordon(&ctx.client, node::SECOND, true).await?;
    let mark = ctx.last_call().await?;
    let script = "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check";
    let job = ctx.queue("patient", script).await?;
    ctx.apply(&ctx.pool(POOL, json!({}))).await?;

    // Then the node is left alone, under the name of its device
    let message = ctx
        .condition(POOL, "GpuHealthy", "False", "NodesQuarantined")
        .await?;
    ensure!(
        message.contains(node::NAME) && message.contains("GPU-c0da"),
        "{message}"
    );
    let status = ctx.status(POOL).await?;
    let entry = status.quarantine.first().context("an entry")?;
    ensure!(
        entry.node == node::NAME && entry.class == "device" && entry.boot_id.is_some(),
        "{entry:?}"
    );
    // And whoever asks is shown the node, and the report of its gate
    let shown = plugin(ctx, 0, &["status", POOL]).await?;
    ensure!(
        shown.contains("QUARANTINE") && shown.contains(node::NAME),
        "{shown}"
    );
    let report = plugin(ctx, 0, &["report", node::NAME]).await?;
    ensure!(
        report.contains("FAILED: device") && report.contains("WrongResult"),
        "{report}"
    );
    // And the next pod waits for another node, without a pile of failed ones
    ctx.condition(POOL, "RunnersOnline", "False", "Unschedulable")
        .await?;
    let failed = ctx.status(POOL).await?.last_failures.len();
    ensure!(failed == 1, "{failed} pods were spent on one broken node");
    ensure!(
        ctx.registrations(mark).await? == 0,
        "a runner was registered"
    );
    Ok(job)
}

async fn a_restart_and_another_pool_know_of_it(ctx: &Ctx) -> Result<()> {
    // When the operator is killed, and a second pool comes
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    ctx.apply(&ctx.pool(LATER, json!({}))).await?;
    // Then that pool's pod keeps off the node, too
    ctx.condition(LATER, "RunnersOnline", "False", "Unschedulable")
        .await?;
    let pods: Vec<Pod> = ctx.pods().await?;
    for pod in pods
        .iter()
        .filter(|p| p.metadata.name.iter().any(|n| n.starts_with(LATER)))
    {
        let affinity = serde_json::to_string(&pod.spec.as_ref().and_then(|s| s.affinity.as_ref()))?;
        ensure!(
            affinity.contains("NotIn") && affinity.contains(node::NAME),
            "{affinity}"
        );
    }
    ensure!(
        ctx.status(LATER).await?.last_failures.is_empty(),
        "the second pool tried the broken node"
    );
    ensure!(
        ctx.status(POOL).await?.quarantine.len() == 1,
        "the restart forgot the quarantine"
    );
    ctx.delete(LATER).await
}

async fn the_healthy_node_takes_the_job(ctx: &Ctx, job: u64) -> Result<()> {
    let waiting = ctx.github.job(job).await?;
    ensure!(waiting.started_at.is_none(), "a broken device got the job");
    // When the healthy node takes pods
    Cluster::cordon(&ctx.client, node::SECOND, false).await?;
    // Then the job runs there
    ctx.succeeded(job).await?;
    ctx.idle(POOL, 1).await?;
    let status = ctx.status(POOL).await?;
    let runner = status.runners.first().context("an idle runner")?;
    ensure!(
        runner.node.as_deref() == Some(node::SECOND),
        "the runner is on {:?}",
        runner.node
    );
    Ok(())
}

async fn a_release_ends_it(ctx: &Ctx) -> Result<()> {
    // When the device is mended and somebody says so
    for number in 0..4 {
        ctx.device(number, |_| {})?;
    }
    let told = plugin(ctx, 0, &["release", POOL, node::NAME]).await?;
    // Then the node may be used again
    ensure!(told.contains("lets"), "{told}");
    let left = ctx.status(POOL).await?.quarantine;
    ensure!(left.is_empty(), "{left:?}");
    ctx.condition(POOL, "GpuHealthy", "True", "GatePassed")
        .await?;
    ctx.delete(POOL).await
}
