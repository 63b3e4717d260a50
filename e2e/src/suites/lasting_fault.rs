//! Faults that look as if they passed by themselves, and do not: the second time in a row the node is to blame, and the job
//! runs elsewhere.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::{CudaRunnerStatus, QuarantineStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Ctx, second_node::with_second_node};
use crate::{cluster::Cluster, node};

/// Two gates wait for their device for 15 seconds each, with a pause between them.
const LIMIT: Duration = Duration::from_mins(3);
/// `CUDA_ERROR_DEVICE_UNAVAILABLE`: so the driver says that a device needs a reset.
const UNAVAILABLE: i32 = 46;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    with_second_node(ctx, async |_| {
        // Given two nodes that have been up for long, and that the devices of one need a reset
        for name in [node::NAME, node::SECOND] {
            up_for_long(ctx, name).await?;
        }
        ctx.devices(|device| {
            let fault = json!({"call": "cuDevicePrimaryCtxRetain", "code": UNAVAILABLE});
            device.faults.push(fault);
        })?;
        Cluster::cordon(&ctx.client, node::SECOND, true).await?;
        let job = ctx.queue("patient", "true").await?;
        ctx.apply(&ctx.pool("lasting", json!({}))).await?;

        // Then the second gate in a row that says so is enough: the node is quarantined, and no third is tried
        let (entry, status) = one_quarantine(ctx, "lasting", LIMIT).await?;
        ensure!(
            entry.node == node::NAME
                && entry.class.as_str() == "node"
                && entry.code == Some(UNAVAILABLE)
                && entry.until.is_some(),
            "{entry:?}"
        );
        let classes: Vec<_> = status
            .last_failures
            .iter()
            .map(|f| f.class.as_str())
            .collect();
        ensure!(classes == ["node", "transient"], "{classes:?}");

        // When the other node takes pods, then the job runs there, and has been given to nobody before
        Cluster::cordon(&ctx.client, node::SECOND, false).await?;
        let view = ctx.succeeded(job).await?;
        ensure!(view.assignments == 1, "{view:?}");
        let jobs = ctx.concluded("lasting", 1).await?;
        let ran = jobs.first().context("no job in the status")?;
        ensure!(ran.node.as_deref() == Some(node::SECOND), "{ran:?}");
        ctx.delete("lasting").await
    })
    .await
}

/// Waits until a pool has quarantined a node, and one alone.
pub(super) async fn one_quarantine(
    ctx: &Ctx,
    pool: &str,
    limit: Duration,
) -> Result<(QuarantineStatus, CudaRunnerStatus)> {
    let status = ctx
        .wait_for("a quarantine", limit, async || {
            let status = ctx.status(pool).await?;
            Ok((!status.quarantine.is_empty()).then_some(status))
        })
        .await?;
    let [entry] = &status.quarantine[..] else {
        bail!("{:?}", status.quarantine);
    };
    Ok((entry.clone(), status))
}

/// Lets a node have been ready for an hour: what new nodes say of their drivers blames nobody.
pub(super) async fn up_for_long(ctx: &Ctx, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let since = Timestamp::now() - SignedDuration::from_hours(1);
    let since = since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let patch = json!({"status": {"conditions": [
        {"type": "Ready", "status": "True", "lastTransitionTime": since},
    ]}});
    let params = PatchParams::default();
    nodes
        .patch_status(name, &params, &Patch::Strategic(patch))
        .await?;
    Ok(())
}
