//! GPUs that several pods share: a busy one is nobody's fault, however long it is busy; and of two slices a program sees
//! one, which is nobody's fault either.

use std::time::Duration;

use anyhow::{Result, ensure};
use cudarunner_crds::FailureStatus;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Ctx, lasting_fault::up_for_long, late_registration::nobody_is_blamed};
use crate::node;

/// Gates wait for memory for 15 seconds each, with a pause between them.
const LIMIT: Duration = Duration::from_mins(3);
/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: i32 = 2;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let outcome = async {
        label(ctx, json!("time-slicing"), json!("4")).await?;
        busy(ctx).await
    }
    .await;
    outcome.and(label(ctx, Value::Null, Value::Null).await)?;
    hangs(ctx).await?;
    two_slices(ctx).await
}

/// What feature discovery says of a node whose device plugin shares its GPUs.
async fn label(ctx: &Ctx, strategy: Value, replicas: Value) -> Result<()> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let labels = json!({
        "nvidia.com/gpu.sharing-strategy": strategy,
        "nvidia.com/gpu.replicas": replicas,
    });
    let patch = json!({"metadata": {"labels": labels}});
    nodes
        .patch(node::NAME, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

async fn busy(ctx: &Ctx) -> Result<()> {
    // Given shared GPUs whose other users hold all memory
    up_for_long(ctx, node::NAME).await?;
    ctx.devices(|device| {
        let fault = json!({"call": "cuMemAlloc_v2", "code": OUT_OF_MEMORY});
        device.faults.push(fault);
    })?;
    ctx.apply(&ctx.pool("shares", json!({}))).await?;
    // When two gates in a row find none
    let status = ctx
        .wait_for("two gates without memory", LIMIT, async || {
            let status = ctx.status("shares").await?;
            Ok((status.last_failures.len() >= 2).then_some(status))
        })
        .await?;
    // Then that blames nobody, and says why
    for failure in &status.last_failures {
        ensure!(
            failure.class.as_str() == "transient"
                && failure.code == Some(OUT_OF_MEMORY)
                && failure.message.contains("is shared"),
            "{failure:?}"
        );
    }
    ensure!(status.quarantine.is_empty(), "{:?}", status.quarantine);
    // When there is memory again, then the runner comes, and its gate has left the others their share
    ctx.devices(|_| {})?;
    let runner = ctx.idle("shares", 1).await?.remove(0);
    let report = ctx.report(&runner).await?;
    let device = &report["devices"][0];
    let walked = device["memoryWalkBytes"].as_u64().unwrap_or_default();
    ensure!(
        device["hostToDeviceGibPerSecond"].is_null() && walked <= 256 * 1024,
        "{report:#}"
    );
    ctx.delete("shares").await
}

async fn hangs(ctx: &Ctx) -> Result<()> {
    // Given GPUs that are shared by MPS, of which no label tells, and that do not answer
    ctx.devices(|device| {
        device.mps = true;
        let fault = json!({"call": "cuStreamSynchronize", "hang": true});
        device.faults.push(fault);
    })?;
    // When a gate has waited for it
    ctx.apply(&ctx.pool("waits", json!({"smoke": {"timeoutSeconds": 5}})))
        .await?;
    let failure = first_failure(ctx, "waits").await?;
    // Then whoever has the other shares may have been in its way
    ensure!(
        failure.class.as_str() == "transient"
            && failure.code_name.as_deref() == Some("Hang")
            && failure.shared,
        "{failure:?}"
    );
    nobody_is_blamed(ctx, "waits").await?;
    ctx.devices(|_| {})?;
    ctx.delete("waits").await
}

async fn two_slices(ctx: &Ctx) -> Result<()> {
    // Given slices of one GPU, of which CUDA shows a program one
    ctx.devices(|device| {
        let slice = [("profile", json!("mig-1g")), ("minor", json!(0))];
        let slice = slice.map(|(key, value)| (key.to_owned(), value));
        device.properties.extend(slice);
    })?;
    // When a pool asks for two of them
    ctx.apply(&ctx.pool("two", json!({"gpu": {"count": 2}})))
        .await?;
    let failure = first_failure(ctx, "two").await?;
    // Then it is for the pool's author to change that, and the node is well
    ensure!(
        failure.class.as_str() == "config" && failure.code_name.as_deref() == Some("SliceHidden"),
        "{failure:?}"
    );
    ctx.condition("two", "Stalled", "True", "GateFailed")
        .await?;
    nobody_is_blamed(ctx, "two").await?;
    ctx.delete("two").await?;
    // And one slice is a GPU like any other
    ctx.apply(&ctx.pool("one", json!({}))).await?;
    ctx.idle("one", 1).await?;
    ctx.delete("one").await?;
    ctx.devices(|_| {})
}

async fn first_failure(ctx: &Ctx, pool: &str) -> Result<FailureStatus> {
    ctx.wait_for("a gate that fails", LIMIT, async || {
        Ok(ctx.status(pool).await?.last_failures.pop())
    })
    .await
}
