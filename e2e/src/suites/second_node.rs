//! A second node with GPUs: another pool on it, and a healthy place for the jobs of a broken one.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Ctx, SOON};
use crate::{node, report::Story};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    ctx.cluster.add_second_node(2, &Story::default()).await?;
    let outcome = donated_capacity(ctx).await;
    // Whatever came of it, the next suite finds one node.
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    ctx.cluster.cut_second_node()?;
    nodes.delete(node::SECOND, &DeleteParams::default()).await?;
    ctx.wait_for("the second node to be gone", SOON, async || {
        Ok(nodes.get_opt(node::SECOND).await?.is_none().then_some(()))
    })
    .await?;
    outcome
}

async fn donated_capacity(ctx: &Ctx) -> Result<()> {
    // Given a node that its owner lends to one project only: labelled, and closed to others by a taint
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let lent = json!({
        "metadata": {"labels": {"example.com/donor": "lab"}},
        "spec": {"taints": [{"key": "example.com/donor", "value": "lab", "effect": "NoSchedule"}]},
    });
    nodes
        .patch(node::SECOND, &PatchParams::default(), &Patch::Merge(lent))
        .await?;

    // When one pool is pointed at it, and another is not
    ctx.apply(&ctx.pool("own", json!({}))).await?;
    let donated = json!({
        "labels": ["self-hosted", "cuda", "donated"],
        "template": {"spec": {
            "nodeSelector": {"example.com/donor": "lab"},
            "tolerations": [{"key": "example.com/donor", "operator": "Exists"}],
        }},
    });
    ctx.apply(&ctx.pool("donated", donated)).await?;

    // Then each has its runner on its own node
    for (pool, place) in [("own", node::NAME), ("donated", node::SECOND)] {
        ctx.idle(pool, 1).await?;
        let status = ctx.status(pool).await?;
        let runner = status.runners.first().context("an idle runner is listed")?;
        ensure!(
            runner.node.as_deref() == Some(place),
            "the runner of {pool} is on {:?}, not on {place}",
            runner.node
        );
    }

    // And a job that asks for the donated GPUs runs there
    let job = ctx
        .queue_for(
            "on-donated",
            &["self-hosted", "cuda", "donated"],
            "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check",
            false,
        )
        .await?;
    let view = ctx.succeeded(job).await?;
    let name = view.runner.context("a job that ran had a runner")?;
    ensure!(name.starts_with("donated-"), "it ran on {name}");
    ctx.delete("donated").await?;
    ctx.delete("own").await
}
