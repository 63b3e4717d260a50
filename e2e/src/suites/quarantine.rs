//! A broken GPU costs its node, not the jobs: they wait for a healthy one, and the node comes back when it is fixed.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{
    Ctx, SOON, node_marks,
    plugin::{plugin, shown_in},
    second_node::with_second_node,
};
use crate::{audit::Audit, cluster::Cluster, deploy, device_plugin::state::Device, node};

/// The pool that meets the broken GPU, one that comes later, and one that is deleted while it quarantines the node.
const POOL: &str = "sick";
const LATER: &str = "later";
const DELETED: &str = "deleted";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let on = ["nodeCondition.enabled=true", "nodeTaint.enabled=true"];
    let outcome = deploy::with_values(&ctx.cluster, &on, async || left_alone(ctx).await).await;
    outcome.and(node_marks::clear(ctx).await)
}

async fn left_alone(ctx: &Ctx) -> Result<()> {
    with_second_node(ctx, async |_| {
        node_marks::foreign(ctx).await?;
        let mut audit = Audit::from_now(&ctx.cluster)?;
        let job = the_node_is_left_alone(ctx).await?;
        a_restart_and_another_pool_know_of_it(ctx).await?;
        the_node_says_so_once(ctx, &mut audit).await?;
        the_healthy_node_takes_the_job(ctx, job).await?;
        a_release_ends_it(ctx).await?;
        a_deletion_ends_it(ctx).await
    })
    .await
}

async fn the_node_is_left_alone(ctx: &Ctx) -> Result<u64> {
    // Given two nodes: one computes wrongly, the other takes no pods for now
    ctx.devices(Device::compute_wrongly)?;
    Cluster::cordon(&ctx.client, node::SECOND, true).await?;
    let mark = ctx.last_call().await?;
    let script = "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check";
    let job = ctx.queue("patient", script).await?;
    ctx.apply(&ctx.pool(POOL, json!({}))).await?;

    // Then the node is quarantined, under the name of its device
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
        entry.node == node::NAME && entry.class.as_str() == "device" && entry.boot_id.is_some(),
        "{entry:?}"
    );
    // And the next pod waits for another node
    ctx.condition(POOL, "RunnersOnline", "False", "Unschedulable")
        .await?;
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
    shown_in(ctx, "guides/gpu-faults.md", POOL, &report)?;
    shown_in(ctx, "guides/gpu-faults.md", POOL, &shown)?;
    // And there is no pile of failed ones
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

async fn the_node_says_so_once(ctx: &Ctx, audit: &mut Audit) -> Result<()> {
    // The rest of the cluster sees the fault, and whose word it is, beside what others say of the node
    let message = node_marks::wait(ctx, "False", "DeviceFailed").await?;
    ensure!(
        message.contains("GPU-c0da") && message.contains(&format!("{}/{POOL}", ctx.namespace)),
        "{message}"
    );
    node_marks::none(ctx, node::SECOND).await?;
    // And neither the restart nor the other pool has it written again
    let writes = node_marks::writes(audit)?;
    ensure!(writes == 2, "condition and taint took {writes} writes");
    Ok(())
}

async fn the_healthy_node_takes_the_job(ctx: &Ctx, job: u64) -> Result<()> {
    let waiting = ctx.github.job(job).await?;
    ensure!(waiting.started_at.is_none(), "a broken device got the job");
    // Given that feature discovery has not noticed which product the node has now
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let label = json!({"metadata": {"labels": {"nvidia.com/gpu.product": "Tesla-T4"}}});
    nodes
        .patch(node::SECOND, &PatchParams::default(), &Patch::Merge(label))
        .await?;
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
    // And the pool warns of the label, once for all runners, and blames nobody
    let [stale] = status.stale_labels.as_slice() else {
        bail!("the stale labels are {:?}", status.stale_labels);
    };
    ensure!(
        stale.node == node::SECOND
            && stale.value == "Tesla-T4"
            && stale.found == "NVIDIA-A100-SXM4-40GB",
        "{stale:?}"
    );
    ensure!(status.quarantine.len() == 1, "{:?}", status.quarantine);
    let reported = ctx
        .wait_for("the Event of the label", SOON, async || {
            let reported = ctx.events("StaleLabels").await?;
            Ok((!reported.is_empty()).then_some(reported))
        })
        .await?;
    ensure!(
        reported.len() == 1 && reported[0].series.is_none(),
        "the label was reported so: {reported:?}"
    );
    let shown = plugin(ctx, 0, &["status", POOL]).await?;
    ensure!(
        shown.contains("STALE LABELS") && shown.contains("Tesla-T4"),
        "{shown}"
    );
    Ok(())
}

async fn a_release_ends_it(ctx: &Ctx) -> Result<()> {
    // When the device is fixed and somebody says so
    ctx.devices(|_| {})?;
    let reported = plugin(ctx, 0, &["release", POOL, node::NAME]).await?;
    // Then the node may be used again
    ensure!(reported.contains("lets"), "{reported}");
    let left = ctx.status(POOL).await?.quarantine;
    ensure!(left.is_empty(), "{left:?}");
    ctx.condition(POOL, "GpuHealthy", "True", "GatePassed")
        .await?;
    node_marks::wait(ctx, "True", "Released").await?;
    ctx.delete(POOL).await
}

async fn a_deletion_ends_it(ctx: &Ctx) -> Result<()> {
    // Given a pool that quarantines the node
    ctx.devices(Device::compute_wrongly)?;
    Cluster::cordon(&ctx.client, node::SECOND, true).await?;
    ctx.apply(&ctx.pool(DELETED, json!({}))).await?;
    node_marks::wait(ctx, "False", "DeviceFailed").await?;
    // When it is deleted, then its marks go, too
    ctx.delete(DELETED).await?;
    node_marks::wait(ctx, "True", "Released").await?;
    Ok(())
}
