//! A second node with GPUs: a pool that waits for it from zero, and two pools on two sets of nodes.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    runner_ends::{NODE_GONE, failed},
};
use crate::{
    cluster::Offer,
    device_plugin::state::{self, Device},
    node::{self, Machine},
};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let job = from_zero(ctx).await?;
    with_second_node(ctx, async |machine| {
        cold_driver(ctx, &machine, job).await?;
        donated_capacity(ctx).await
    })
    .await?;
    // When the node is gone, and its runner with it, then that is said of the runner, and the other pool is untouched
    let failure = failed(ctx, "donated", "NodeLost", NODE_GONE).await?;
    ensure!(failure.node.as_deref() == Some(node::SECOND), "{failure:?}");
    ctx.idle("own", 1).await?;
    ctx.delete("donated").await?;
    ctx.delete("own").await
}

/// Works with a second node. Whatever comes of it, the next suite finds one.
pub(super) async fn with_second_node(
    ctx: &Ctx,
    work: impl AsyncFnOnce(Machine) -> Result<()>,
) -> Result<()> {
    with_node_that_offers(ctx, 2, Offer::Resource, work).await
}

/// The same with a node that offers so many devices in this way.
pub(super) async fn with_node_that_offers(
    ctx: &Ctx,
    devices: usize,
    offer: Offer,
    work: impl AsyncFnOnce(Machine) -> Result<()>,
) -> Result<()> {
    let outcome = async {
        let machine = ctx.cluster.add_second_node(devices, offer).await?;
        work(machine).await
    }
    .await;
    outcome.and(ctx.cluster.remove_second_node(&ctx.client).await)
}

/// A pool for the node that its owner lends to one project only, which says so by a label and a taint.
fn donated(ctx: &Ctx, replicas: u32) -> Value {
    ctx.pool(
        "donated",
        json!({
            "replicas": replicas,
            "labels": ["self-hosted", "cuda", "donated"],
            "template": {"spec": {
                "nodeSelector": {"example.com/donor": "lab"},
                "tolerations": [{"key": "example.com/donor", "operator": "Exists"}],
            }},
        }),
    )
}

async fn from_zero(ctx: &Ctx) -> Result<u64> {
    // Given a pool without runners, whose node does not exist, and a job for it
    ctx.apply(&donated(ctx, 0)).await?;
    ctx.condition("donated", "RunnersOnline", "True", "ScaledToZero")
        .await?;
    let script = "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check";
    let job = ctx
        .queue_for(
            "on-donated",
            &["self-hosted", "cuda", "donated"],
            script,
            false,
        )
        .await?;
    // When it is scaled up
    ctx.apply(&donated(ctx, 1)).await?;
    // Then a pod waits, from which an autoscaler sees which node to bring
    ctx.condition("donated", "RunnersOnline", "False", "Unschedulable")
        .await?;
    Ok(job)
}

async fn cold_driver(ctx: &Ctx, machine: &Machine, job: u64) -> Result<()> {
    // Given that the node has appeared, and that its driver still starts
    for number in 0..2 {
        let mut device = Device::healthy(number, 0);
        device.faults.push(json!({"call": "cuInit", "code": 802}));
        state::write(&machine.devices(), number, &device)?;
    }
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let lent = json!({
        "metadata": {"labels": {"example.com/donor": "lab"}},
        "spec": {"taints": [{"key": "example.com/donor", "value": "lab", "effect": "NoSchedule"}]},
    });
    nodes
        .patch(node::SECOND, &PatchParams::default(), &Patch::Merge(lent))
        .await?;
    // Then the pool says what it waits for, and blames nobody
    ctx.wait_for("a failure with the code 802", SOON, async || {
        let failures = ctx.status("donated").await?.last_failures;
        Ok(failures.iter().any(|f| f.code == Some(802)).then_some(()))
    })
    .await?;
    let status = ctx.status("donated").await?;
    ensure!(
        status.quarantine.is_empty(),
        "a node that warms up is quarantined: {:?}",
        status.quarantine
    );
    let stalled = status.conditions.iter().find(|c| c.type_ == "Stalled");
    ensure!(
        stalled.is_some_and(|c| c.status == "False"),
        "a node that warms up stalls the pool: {stalled:?}"
    );
    // When the driver is up, then the runner comes by itself and the job runs there
    for number in 0..2 {
        state::write(&machine.devices(), number, &Device::healthy(number, 0))?;
    }
    let view = ctx.succeeded(job).await?;
    let name = view.runner.context("a job that ran had a runner")?;
    ensure!(name.starts_with("donated-"), "it ran on {name}");
    Ok(())
}

async fn donated_capacity(ctx: &Ctx) -> Result<()> {
    // When another pool is not pointed at it
    ctx.apply(&ctx.pool("own", json!({}))).await?;

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
    Ok(())
}
