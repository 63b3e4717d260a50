//! From a job that is queued to the pod that is made for it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cudarunner_crds::POOL_LABEL;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::json;

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure, percentile},
    pods::{BARE_LABEL, Pods, bare},
};
use crate::{suites::Ctx, wait::wait_for};

/// Jobs of a run.
const JOBS: usize = 200;
const LIMIT: Duration = Duration::from_secs(30);
/// What 99 of a hundred jobs may take, in milliseconds.
const BUDGET: Budget = Budget::AtMost(50.0);

/// One job after the other, each from before it is queued to the moment at which a watch shows its pod. The floor is a
/// bare client's pod, from before its request.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    for number in 0..run.runs {
        run.story.step(&format!(
            "{JOBS} jobs, one after the other: run {} of {}",
            number + 1,
            run.runs
        ));
        let (our, bare) = Bed::with(2 * JOBS, one).await?;
        ours.push(our);
        floor.push(bare);
    }
    let figure = |percent: usize, budget| {
        let of =
            |all: &[Vec<Duration>]| all.iter().map(|times| percentile(times, percent)).collect();
        Figure {
            name: format!("job queued → its pod, p{percent}"),
            unit: "ms",
            ours: of(&ours),
            floor: of(&floor),
            budget,
        }
    };
    Ok(vec![figure(50, None), figure(99, Some(BUDGET))])
}

async fn one(bed: &Bed) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let ctx = bed.ctx("queue").await?;
    bed.started().await?;
    let mut spec = pool(0);
    spec["replicas"] = json!(null);
    spec["scaling"] = json!({"maxRunners": JOBS});
    ctx.apply(&ctx.pool("pool", spec)).await?;
    listening(&ctx, 0).await?;
    let client = bed.bare().await?;
    let bare_pods: Api<Pod> = Api::namespaced(client, &ctx.namespace);
    let made = Pods::follow(ctx.api(), POOL_LABEL).await?;
    let bare_made = Pods::follow(ctx.api(), BARE_LABEL).await?;
    let (mut ours, mut floor) = (vec![], vec![]);
    let mut sample = None;
    for number in 1..=JOBS {
        let start = Instant::now();
        ctx.queue(&format!("job-{number}"), "true").await?;
        ours.push(there(&made, number).await?.duration_since(start));
        listening(&ctx, number).await?;

        if sample.is_none() {
            sample = ctx.pods().await?.pop();
        }
        let sample = sample.as_ref().context("the pool has no pod")?;
        let pod = bare(sample, format!("bare-{number:05}"));
        let start = Instant::now();
        bare_pods.create(&PostParams::default(), &pod).await?;
        floor.push(there(&bare_made, number).await?.duration_since(start));
    }
    Ok((ours, floor))
}

async fn there(made: &Pods, count: usize) -> Result<Instant> {
    let reached = made
        .until("the job's pod", LIMIT, |now| now.there >= count)
        .await?;
    Ok(reached.into_std())
}

/// Waits until so many jobs are assigned to the pool, and all messages about them are acknowledged.
async fn listening(ctx: &Ctx, assigned: usize) -> Result<()> {
    wait_for("the operator to listen", LIMIT, async || {
        let sets = ctx.scale_sets().await?;
        let listens = sets.iter().any(|set| {
            set.session.is_some()
                && set.capacity == JOBS
                && set.unacknowledged == 0
                && set.statistics.total_assigned_jobs == assigned
        });
        Ok(listens.then_some(()))
    })
    .await
}
