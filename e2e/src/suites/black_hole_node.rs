//! One dead GPU whose device plugin refuses every pod, on a node that stays Ready: the scheduler sends pods there for ever.
//!
//! A large project lost 554 pods to such a node in 106 minutes, see <https://github.com/pytorch/ci-infra/issues/1057>.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Ctx,
    lasting_fault::{one_quarantine, up_for_long},
    second_node::with_second_node,
};
use crate::{
    cluster::Cluster,
    device_plugin::state::{self, Device},
    node,
};

/// Two rounds of pods, with a pause between them.
const LIMIT: Duration = Duration::from_mins(2);
/// Both of the node's devices are asked for at once, twice.
const MOST_LOST: usize = 4;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    with_second_node(ctx, async |machine| {
        // Given a node whose plugin fails for every pod, because one of its two devices is lost
        up_for_long(ctx, node::SECOND).await?;
        let lost = Device {
            lost: true,
            ..Device::healthy(0, 0)
        };
        state::write(&machine.devices(), 0, &lost)?;
        Cluster::cordon(&ctx.client, node::NAME, true).await?;
        let mark = ctx.last_call().await?;
        let job = ctx.queue("patient", "true").await?;
        ctx.apply(&ctx.pool("hole", json!({"replicas": 2}))).await?;

        // Then the node is quarantined, in the kubelet's and the plugin's words, after a few pods
        let (entry, _) = one_quarantine(ctx, "hole", LIMIT).await?;
        ensure!(
            entry.node == node::SECOND
                && entry.class.as_str() == "node"
                && entry.message.contains("GPU is lost"),
            "{entry:?}"
        );
        ensure!(
            ctx.registrations(mark).await? == 0,
            "a runner was registered on a node without GPUs"
        );

        // When another node takes pods, then the job runs there, and the lost ones stay few
        Cluster::cordon(&ctx.client, node::NAME, false).await?;
        ctx.succeeded(job).await?;
        ctx.idle("hole", 2).await?;
        let status = ctx.status("hole").await?;
        ensure!(
            status.quarantine.len() == 1 && status.last_failures.len() <= MOST_LOST,
            "{:?}, {:?}",
            status.quarantine,
            status.last_failures
        );
        let is_there =
            |runner: &cudarunner_crds::RunnerStatus| runner.node.as_deref() == Some(node::NAME);
        ensure!(status.runners.iter().all(is_there), "{:?}", status.runners);
        ctx.delete("hole").await
    })
    .await
}
