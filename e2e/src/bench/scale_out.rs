//! From none to many runners and back, beside a bare client that makes and removes the same pods.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cudarunner_crds::POOL_LABEL;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    pods::{BARE_LABEL, Pods, bare as bare_pod},
};
use crate::suites::Ctx;

/// Requests of the operator in flight for one pool; the bare client's, too.
const AT_ONCE: usize = 32;
/// Long enough for all of them.
const LIMIT: Duration = Duration::from_mins(5);
/// How much longer than the bare client it may take.
const BUDGET: Budget = Budget::TimesFloor(1.25);

/// The programs whose share of the processor is reported.
const PROGRAMS: [&str; 7] = [
    "cuda-runner-operator",
    "kube-apiserver",
    "etcd",
    "kube-scheduler",
    "kube-controller-manager",
    "kwok",
    // The bench, the bare client in it, and the simulated GitHub.
    "e2e",
];

/// What was measured of one side, in seconds.
struct Times {
    out: Out,
    /// Until all pods were gone again.
    gone: f64,
}

/// The way out.
struct Out {
    /// Until all pods were there.
    there: f64,
    /// Until all were ready.
    ready: f64,
    /// The processor's time of each program until then.
    processor: BTreeMap<String, f64>,
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
    let mut figures = vec![
        figure("pods made", |times| times.out.there),
        figure("pods ready", |times| times.out.ready),
        Figure {
            name: format!("{runners} → 0 runners: pods gone"),
            budget: None,
            ..figure("", |times| times.gone)
        },
    ];
    figures.extend(PROGRAMS.map(|program| {
        let share = |all: &[Times]| {
            all.iter()
                .map(|times| {
                    times
                        .out
                        .processor
                        .get(program)
                        .copied()
                        .unwrap_or_default()
                })
                .collect()
        };
        Figure {
            name: format!("0 → {runners} runners: processor time of {program}"),
            unit: "s",
            ours: share(&ours),
            floor: share(&floor),
            budget: None,
        }
    }));
    Ok(figures)
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
    let client = bed.bare().await?;
    let bare_made = follow(&ctx, BARE_LABEL).await?;
    let (ours, floor, gone, floor_gone);
    if ours_first {
        ours = operator(bed, &ctx, &made, runners).await?;
        floor = bare(bed, &ctx, &client, &bare_made, &pods).await?;
        gone = operator_removes(&ctx, &made).await?;
        floor_gone = bare_removes(&ctx, &client, &bare_made, &pods).await?;
    } else {
        floor = bare(bed, &ctx, &client, &bare_made, &pods).await?;
        ours = operator(bed, &ctx, &made, runners).await?;
        floor_gone = bare_removes(&ctx, &client, &bare_made, &pods).await?;
        gone = operator_removes(&ctx, &made).await?;
    }
    let times = |out, gone| Times { out, gone };
    Ok((times(ours, gone), times(floor, floor_gone)))
}

async fn follow(ctx: &Ctx, label: &str) -> Result<Pods> {
    Pods::follow(ctx.api(), label).await
}

/// From the change of the resource on.
async fn operator(bed: &Bed, ctx: &Ctx, made: &Pods, runners: usize) -> Result<Out> {
    let before = bed.processor()?;
    let start = Instant::now();
    ctx.scale("pool", runners).await?;
    let times = times(made, start, runners).await?;
    times.with_processor(bed, &before)
}

async fn operator_removes(ctx: &Ctx, made: &Pods) -> Result<f64> {
    let start = Instant::now();
    ctx.scale("pool", 0).await?;
    gone(made, start).await
}

/// From the first request on, by a client that has its connection.
async fn bare(bed: &Bed, ctx: &Ctx, client: &Client, made: &Pods, pods: &[Pod]) -> Result<Out> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &ctx.namespace);
    api.list(&ListParams::default().limit(1)).await?;
    let before = bed.processor()?;
    let start = Instant::now();
    let requests = stream::iter(pods)
        .map(|pod| async { api.create(&PostParams::default(), pod).await.map(drop) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>();
    let (created, times) = tokio::join!(requests, times(made, start, pods.len()));
    created?;
    times?.with_processor(bed, &before)
}

/// Each by its own request, as the operator does.
async fn bare_removes(ctx: &Ctx, client: &Client, made: &Pods, pods: &[Pod]) -> Result<f64> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &ctx.namespace);
    let params = DeleteParams::default();
    let start = Instant::now();
    let requests = stream::iter(pods)
        .map(|pod| async { api.delete(&pod.name_any(), &params).await.map(drop) })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>();
    let (removed, seconds) = tokio::join!(requests, gone(made, start));
    removed?;
    seconds
}

async fn gone(made: &Pods, start: Instant) -> Result<f64> {
    let reached = made
        .until("all pods to be gone", LIMIT, |count| count.there == 0)
        .await?;
    Ok(reached.into_std().duration_since(start).as_secs_f64())
}

impl Out {
    /// With what each program has used since.
    fn with_processor(self, bed: &Bed, before: &BTreeMap<String, f64>) -> Result<Self> {
        let now = bed.processor()?.into_iter();
        let processor = now.map(|(program, seconds)| {
            let had = before.get(&program).copied().unwrap_or_default();
            (program, seconds - had)
        });
        Ok(Self {
            processor: processor.collect(),
            ..self
        })
    }
}

async fn times(made: &Pods, start: Instant, pods: usize) -> Result<Out> {
    let seconds = |at: tokio::time::Instant| at.into_std().duration_since(start).as_secs_f64();
    Ok(Out {
        there: seconds(
            made.until("all pods to be made", LIMIT, |count| count.there >= pods)
                .await?,
        ),
        ready: seconds(
            made.until("all pods to be ready", LIMIT, |count| count.ready >= pods)
                .await?,
        ),
        processor: BTreeMap::new(),
    })
}

fn copies(sample: &Pod, count: usize) -> Vec<Pod> {
    (0..count)
        .map(|number| bare_pod(sample, format!("bare-{number:05}")))
        .collect()
}
