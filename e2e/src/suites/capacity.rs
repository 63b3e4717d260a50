//! Offers that are true: GPUs that others hold are taken off at once, two pools share the rest by weight and in turn, and a pod
//! that a scheduling gate holds is called that.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, SOON, context::merge};
use crate::example;

/// The pod that is nobody's runner.
const FOREIGN: &str = "notebook";
/// Jobs of one pool: so many that some still wait when the other is heard.
const JOBS: usize = 10;
const GATE: &str = "kueue.x-k8s.io/admission";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a node with four GPUs, and a pool
    ctx.apply(&pool(ctx, "one", 2)).await?;
    offers(ctx, "one", 4).await?;

    // When a pod that is no runner takes one, then the pool offers the others, though no pod of its own has waited
    foreign(ctx).await?;
    offers(ctx, "one", 3).await?;
    ensure!(ctx.status("one").await?.replicas == 0, "a runner was made");

    // And with another pool it shares them by weight
    ctx.apply(&pool(ctx, "other", 1)).await?;
    offers(ctx, "one", 2).await?;
    offers(ctx, "other", 1).await?;

    // When all jobs are for one, then it gets all
    let mut jobs = vec![];
    for number in 0..JOBS {
        jobs.push(hold(ctx, &format!("one-{number}"), "one").await?);
    }
    for job in &jobs[..3] {
        ctx.picked_up(*job).await?;
    }
    offers(ctx, "other", 0).await?;

    // When the other has a job, of which GitHub tells nobody who is offered nothing, then it comes before jobs that wait for longer
    let job = hold(ctx, "other", "other").await?;
    let begun = end_until_begun(ctx, &jobs, job).await?;
    ensure!(begun < JOBS, "no job waited any more when it began");

    // When the foreign pod goes, then so does the wait
    let pods: Api<Pod> = ctx.api();
    pods.delete(FOREIGN, &DeleteParams::default().grace_period(0))
        .await?;
    ctx.wait_for("its GPU to be used", SOON, async || {
        Ok((begun_of(ctx, &jobs).await?.len() > begun).then_some(()))
    })
    .await?;
    for job in jobs.iter().chain([&job]) {
        ctx.github.release(*job).await?;
    }
    for job in jobs.iter().chain([&job]) {
        ctx.succeeded(*job).await?;
    }
    ctx.delete("one").await?;
    ctx.delete("other").await?;
    gated(ctx).await
}

fn pool(ctx: &Ctx, name: &str, weight: i32) -> Value {
    ctx.pool(
        name,
        json!({"scaling": {"maxRunners": 6, "weight": weight}}),
    )
}

async fn hold(ctx: &Ctx, name: &str, pool: &str) -> Result<u64> {
    ctx.queue_for(name, &["self-hosted", pool], "true", true)
        .await
}

/// Ends one job after the other until another pool's has begun; how many have begun by then.
async fn end_until_begun(ctx: &Ctx, jobs: &[u64], other: u64) -> Result<usize> {
    for job in jobs {
        let before = begun_of(ctx, jobs).await?.len();
        ensure!(before < jobs.len(), "the other's job waits for ever");
        ctx.github.release(*job).await?;
        ctx.succeeded(*job).await?;
        ctx.wait_for("the next job to begin", SOON, async || {
            let is_begun = ctx.github.job(other).await?.started_at.is_some();
            let next = begun_of(ctx, jobs).await?.len() > before;
            Ok((is_begun || next).then_some(()))
        })
        .await?;
        if ctx.github.job(other).await?.started_at.is_some() {
            break;
        }
    }
    Ok(begun_of(ctx, jobs).await?.len())
}

/// Those of these jobs that have begun.
async fn begun_of(ctx: &Ctx, jobs: &[u64]) -> Result<Vec<u64>> {
    let mut begun = vec![];
    for job in jobs {
        if ctx.github.job(*job).await?.started_at.is_some() {
            begun.push(*job);
        }
    }
    Ok(begun)
}

async fn offers(ctx: &Ctx, pool: &str, jobs: i32) -> Result<()> {
    ctx.wait_for(&format!("{pool} to offer {jobs}"), SOON, async || {
        let set = ctx.status(pool).await?.scale_set;
        Ok(set.filter(|set| set.capacity == jobs).map(drop))
    })
    .await
}

/// A pod of somebody else's, which holds a GPU.
async fn foreign(ctx: &Ctx) -> Result<()> {
    let pod = json!({
        "metadata": {"name": FOREIGN},
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main",
                "image": example::AGENT,
                "command": ["sleep", "3600"],
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
            }],
        },
    });
    let pods: Api<Pod> = ctx.api();
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    Ok(())
}

/// A pod with a scheduling gate, as Kueue sets one.
async fn gated(ctx: &Ctx) -> Result<()> {
    let mut pool = ctx.pool("gated", json!({}));
    let gates = json!({"template": {
        "metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}},
        "spec": {"schedulingGates": [{"name": GATE}]},
    }});
    merge(&mut pool["spec"], gates);
    ctx.apply(&pool).await?;
    let said = ctx
        .condition("gated", "RunnersOnline", "False", "SchedulingGated")
        .await?;
    let gate = format!("{GATE} (queue gpus)");
    ensure!(said.contains(&gate), "{said}");

    // When the gate is taken off, then the runner comes
    let pods: Api<Pod> = ctx.api();
    let runner = ctx
        .pods()
        .await?
        .into_iter()
        .find_map(|pod| pod.metadata.name);
    let open = json!({"spec": {"schedulingGates": null}});
    pods.patch(
        &runner.unwrap_or_default(),
        &PatchParams::default(),
        &Patch::Merge(open),
    )
    .await?;
    ctx.idle("gated", 1).await?;
    ctx.delete("gated").await
}
