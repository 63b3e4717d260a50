//! From none to many runners, beside a bare client that makes the same pods.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use cudarunner_crds::POOL_LABEL;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    pods::{Pods, afresh},
};
use crate::suites::Ctx;

/// Requests of the operator in flight for one pool; the bare client's, too.
const AT_ONCE: usize = 32;
/// The label of the bare client's pods: as long as the pools', so that nothing but the name differs.
const BARE_LABEL: &str = "cudarunner.dev/bare";
/// Long enough for all of them.
const LIMIT: Duration = Duration::from_mins(5);
/// How much longer than the bare client it may take.
const BUDGET: Budget = Budget::TimesFloor(1.25);

/// When all pods were there, and when all were ready, in seconds.
struct Times {
    there: f64,
    ready: f64,
}

/// Each run on a fresh cluster, and the other way round than the one before: who comes second finds warm caches.
pub(super) async fn run(run: &Run, runners: usize) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    for number in 0..run.runs {
        run.story.step(&format!(
            "scale-out to {runners}: run {} of {}",
            number + 1,
            run.runs
        ));
        let (our, bare) = Bed::with(2 * runners + 1, async |bed| {
            one(bed, runners, number % 2 == 0).await
        })
        .await?;
        ours.push(our);
        floor.push(bare);
    }
    let figure = |what: &str, of: fn(&Times) -> f64| Figure {
        name: format!("0 → {runners} runners: {what}"),
        unit: "s",
        ours: ours.iter().map(of).collect(),
        floor: floor.iter().map(of).collect(),
        budget: Some(BUDGET),
    };
    Ok(vec![
        figure("pods made", |times| times.there),
        figure("pods ready", |times| times.ready),
    ])
}

async fn one(bed: &Bed, runners: usize, ours_first: bool) -> Result<(Times, Times)> {
    let ctx = bed.ctx("scale-out").await?;
    bed.started().await?;
    ctx.apply(&ctx.pool("pool", pool(1))).await?;
    let made = follow(&ctx, POOL_LABEL).await?;
    made.until("the first runner", LIMIT, |count| count.ready == 1)
        .await?;
    let sample = ctx.pods().await?.pop().context("the pool has no pod")?;
    let pods = copies(&sample, runners);
    ctx.scale("pool", 0).await?;
    made.until("no runner", LIMIT, |count| count.there == 0)
        .await?;
    if ours_first {
        let ours = operator(&ctx, &made, runners).await?;
        Ok((ours, bare(&ctx, bed.bare().await?, &pods).await?))
    } else {
        let floor = bare(&ctx, bed.bare().await?, &pods).await?;
        Ok((operator(&ctx, &made, runners).await?, floor))
    }
}

async fn follow(ctx: &Ctx, label: &str) -> Result<Pods> {
    Pods::follow(ctx.api(), label).await
}

/// From the change of the resource on.
async fn operator(ctx: &Ctx, made: &Pods, runners: usize) -> Result<Times> {
    let start = Instant::now();
    ctx.scale("pool", runners).await?;
    times(made, start, runners).await
}

/// From the first request on, by a client that has its connection.
async fn bare(ctx: &Ctx, client: Client, pods: &[Pod]) -> Result<Times> {
    let made = follow(ctx, BARE_LABEL).await?;
    let api: Api<Pod> = Api::namespaced(client, &ctx.namespace);
    api.list(&ListParams::default().limit(1)).await?;
    let start = Instant::now();
    let requests = stream::iter(pods)
        .map(|pod| async { api.create(&PostParams::default(), pod).await.map(drop) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>();
    let (created, times) = tokio::join!(requests, times(&made, start, pods.len()));
    created?;
    times
}

async fn times(made: &Pods, start: Instant, pods: usize) -> Result<Times> {
    let seconds = |at: tokio::time::Instant| at.into_std().duration_since(start).as_secs_f64();
    Ok(Times {
        there: seconds(
            made.until("all pods to be made", LIMIT, |count| count.there >= pods)
                .await?,
        ),
        ready: seconds(
            made.until("all pods to be ready", LIMIT, |count| count.ready >= pods)
                .await?,
        ),
    })
}

/// The operator's own pod as it would create it again, out of its watch's sight.
fn copies(sample: &Pod, count: usize) -> Vec<Pod> {
    let mut pod = afresh(sample);
    if let Some(labels) = &mut pod.metadata.labels
        && let Some(value) = labels.remove(POOL_LABEL)
    {
        labels.insert(BARE_LABEL.to_owned(), value);
    }
    (0..count)
        .map(|number| {
            let mut pod = pod.clone();
            pod.metadata.name = Some(format!("bare-{number:05}"));
            pod
        })
        .collect()
}
