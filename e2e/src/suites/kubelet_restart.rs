//! The kubelet is restarted beside runners, as an upgrade of the node's software does it: no job is lost, and no node is
//! blamed.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Ctx,
    late_registration::{arrives, nobody_is_blamed, pool, waits_for_its_image},
    upgrade::runners,
};

/// An image that is not there yet: its change takes until it is.
const IMAGE: &str = "localhost/changing-agent:dev";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    beside_an_idle_and_a_busy_one(ctx).await?;
    in_the_middle_of_the_change(ctx).await?;
    before_a_late_device_plugin(ctx).await
}

async fn beside_an_idle_and_a_busy_one(ctx: &Ctx) -> Result<()> {
    // Given a runner with a job, and an idle one
    ctx.apply(&ctx.pool("pool", json!({"replicas": 2}))).await?;
    ctx.idle("pool", 2).await?;
    let job = ctx.hold("long").await?;
    let busy = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let idle = ctx.other_idle("pool", &busy).await?;
    let before = runners(ctx).await?;

    // When the kubelet is restarted
    ctx.cluster.restart_kubelet().await?;

    // Then the job ends well where it began, and the next runner comes
    ctx.github.release(job).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.assignments == 1 && view.runner.as_deref() == Some(&busy),
        "{view:?}"
    );
    ctx.gone(&busy).await?;
    let now = ctx.idle("pool", 2).await?;
    // And the idle one has not noticed
    let after = runners(ctx).await?;
    ensure!(
        now.contains(&idle) && after.get(&idle) == before.get(&idle),
        "{idle} was {:?} and is {:?}",
        before.get(&idle),
        after.get(&idle)
    );
    let failures = ctx.status("pool").await?.last_failures;
    ensure!(failures.is_empty(), "{failures:?}");
    nobody_is_blamed(ctx, "pool").await?;
    ctx.delete("pool").await
}

async fn in_the_middle_of_the_change(ctx: &Ctx) -> Result<()> {
    // Given a job, and a pod whose gate has passed, and whose image is being changed
    let job = ctx.queue("patient", "true").await?;
    ctx.apply(&pool(ctx, "changing", IMAGE)).await?;
    waits_for_its_image(ctx).await?;

    // When the kubelet is restarted, and the image is there then
    ctx.cluster.restart_kubelet().await?;
    arrives(ctx, IMAGE)?;

    // Then the job runs, once, on that pod or on the next one: what runs no container, Kubernetes may give up. Nobody is
    // blamed for it
    let view = ctx.succeeded(job).await?;
    ensure!(view.assignments == 1, "{view:?}");
    nobody_is_blamed(ctx, "changing").await?;
    ctx.delete("changing").await
}

async fn before_a_late_device_plugin(ctx: &Ctx) -> Result<()> {
    // Given a runner with a job
    ctx.apply(&ctx.pool("bereft", json!({"replicas": 1})))
        .await?;
    ctx.idle("bereft", 1).await?;
    let job = ctx.hold("last").await?;
    ctx.picked_up(job).await?;

    // When the job ends while there is no kubelet, and the next kubelet finds no device plugin: it refuses the pod whose
    // container has ended
    ctx.cluster.kill_kubelet().await?;
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    ctx.cluster.start_kubelet()?;

    // Then the next runner waits for GPUs, however many the kubelet refuses before Kubernetes knows that there are none
    ctx.condition("bereft", "RunnersOnline", "False", "Unschedulable")
        .await?;
    nobody_is_blamed(ctx, "bereft").await?;

    // And it comes when the plugin does
    ctx.cluster.let_plugin_back().await?;
    ctx.idle("bereft", 1).await?;
    nobody_is_blamed(ctx, "bereft").await?;
    ctx.delete("bereft").await
}
