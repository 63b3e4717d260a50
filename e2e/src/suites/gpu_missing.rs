//! Too few GPUs, or none: why it waits is on the resource, and the pool recovers by itself.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use serde_json::json;

use super::{Ctx, SOON};
use crate::node;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    no_node_offers_it(ctx).await?;
    too_few_are_free(ctx).await?;
    the_device_goes_bad(ctx).await
}

async fn no_node_offers_it(ctx: &Ctx) -> Result<()> {
    // Given a pool for a kind of device that no node has
    let pool = |resource: &str| ctx.pool("absent", json!({"gpu": {"resource": resource}}));
    ctx.apply(&pool("nvidia.com/mig-1g.10gb")).await?;
    // Then it says that no node offers it, by name
    let message = ctx
        .condition("absent", "RunnersOnline", "False", "Unschedulable")
        .await?;
    ensure!(message.contains("nvidia.com/mig-1g.10gb"), "{message}");
    ctx.condition("absent", "Ready", "False", "Unschedulable")
        .await?;
    // And a fixed resource takes the place of the pod that could never run
    ctx.apply(&pool("nvidia.com/gpu")).await?;
    ctx.idle("absent", 1).await?;
    ctx.delete("absent").await
}

async fn too_few_are_free(ctx: &Ctx) -> Result<()> {
    // Given a pool that wants one GPU more than there are
    ctx.apply(&ctx.pool("few", json!({"replicas": 5}))).await?;
    // Then four runners work, and the resource says what the fifth waits for
    let message = ctx
        .condition("few", "RunnersOnline", "True", "Unschedulable")
        .await?;
    ensure!(message.contains("free"), "{message}");
    ctx.idle("few", 4).await?;
    // When another GPU appears
    ctx.device(4, |_| {})?;
    // Then the fifth comes
    ctx.idle("few", 5).await?;
    ctx.condition("few", "RunnersOnline", "True", "Online")
        .await?;
    ctx.delete("few").await
}

async fn the_device_goes_bad(ctx: &Ctx) -> Result<()> {
    // Given a node whose device plugin calls every device unhealthy
    for number in 0..5 {
        ctx.device(number, |device| device.healthy = false)?;
    }
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    ctx.wait_for("the node to offer no GPU", SOON, async || {
        let allocatable = nodes
            .get(node::NAME)
            .await?
            .status
            .unwrap_or_default()
            .allocatable
            .unwrap_or_default();
        Ok(allocatable
            .get("nvidia.com/gpu")
            .is_some_and(|count| count.0 == "0")
            .then_some(()))
    })
    .await?;
    ctx.apply(&ctx.pool("ill", json!({}))).await?;
    // Then the pod waits, and the resource says so
    ctx.condition("ill", "RunnersOnline", "False", "Unschedulable")
        .await?;
    // When one is healthy again
    ctx.device(0, |_| {})?;
    // Then it runs
    ctx.idle("ill", 1).await?;
    ctx.delete("ill").await
}
