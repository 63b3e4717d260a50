//! Steady use: each second a job ends, and another runner takes the place of the one that ran it.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, Result};
use cudarunner_crds::{CudaRunner, POOL_LABEL};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Bed, Run,
    figure::{Figure, percentile},
    fleet::{Entry, Fleet, Size, register_one},
    player,
    pods::afresh,
};
use crate::suites::Ctx;

/// From one end to the next.
const BEAT: Duration = Duration::from_secs(1);
/// Ends in which the bare client is measured.
const FLOOR: u32 = 60;
/// The longest that a runner may be missing.
const LIMIT: Duration = Duration::from_secs(30);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_mins(5);

/// From a job's end to the creation of the next pod. The floor is a bare client that watches the pods and makes the next
/// when one has ended.
pub(super) async fn run(run: &Run, size: Size, time: Duration) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    for number in 0..run.runs {
        run.story
            .step(&format!("steady use: run {} of {}", number + 1, run.runs));
        Bed::with(size.runners() + 8, async |bed| {
            let mut use_ = Use::of(bed, size).await?;
            ours.push(use_.beats(time, || Ok(())).await?);
            bed.kill().await?;
            use_.bare(bed).await?;
            floor.push(use_.beats(BEAT * FLOOR, || Ok(())).await?);
            Ok(())
        })
        .await?;
    }
    let figure = |percent: usize| {
        let of = |runs: &[Vec<Duration>]| runs.iter().map(|run| percentile(run, percent)).collect();
        Figure {
            name: format!("job's end → next pod, one a second, p{percent}"),
            unit: "ms",
            ours: of(&ours),
            floor: of(&floor),
            budget: None,
        }
    };
    Ok(vec![figure(50), figure(99)])
}

/// Memory of the operator in long use, one sample every five minutes; the floor is that after the first of them.
pub(super) async fn churn(run: &Run, size: Size, time: Duration) -> Result<Vec<Figure>> {
    run.story.step("an hour of use");
    let mut memory = vec![];
    Bed::with(size.runners() + 8, async |bed| {
        let mut use_ = Use::of(bed, size).await?;
        let mut next = Instant::now() + LOOK;
        use_.beats(time, || {
            if Instant::now() >= next {
                memory.push(bed.memory()?.0);
                next += LOOK;
            }
            Ok(())
        })
        .await
    })
    .await?;
    let floor = memory.first().copied().into_iter().collect();
    Ok(vec![Figure {
        name: format!("memory, a job a second for {} minutes", time.as_secs() / 60),
        unit: "MiB",
        ours: memory,
        floor,
        budget: None,
    }])
}

/// A pool in use.
struct Use {
    ctx: Ctx,
    /// The pool's uid.
    pool: String,
    /// The longest there are first.
    runners: VecDeque<Entry>,
    /// Names of new pods, when the watch tells of them.
    new: tokio::sync::mpsc::UnboundedReceiver<(String, Instant)>,
    /// The watch, and the bare client where there is one: they end with this.
    tasks: Vec<AbortHandle>,
}

impl Drop for Use {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Use {
    async fn of(bed: &Bed, size: Size) -> Result<Self> {
        bed.started().await?;
        let mut fleet = Fleet::make(bed, size).await?;
        let ctx = fleet.namespaces.pop().context("there is no pool")?;
        let pools: Api<CudaRunner> = ctx.api();
        let pool = pools.get("pool-0").await?.uid().unwrap_or_default();
        let (sender, mut new) = tokio::sync::mpsc::unbounded_channel();
        let config = watcher::Config::default().labels(POOL_LABEL);
        let pods: Api<Pod> = ctx.api();
        let watch = tokio::spawn(async move {
            let mut seen = std::collections::HashSet::new();
            let mut events = watcher(pods, config).default_backoff().boxed();
            while let Some(event) = events.next().await {
                let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else {
                    continue;
                };
                let is_new = seen.insert(pod.name_any());
                if is_new && sender.send((pod.name_any(), Instant::now())).is_err() {
                    return;
                }
            }
        });
        for _ in 0..fleet.entries.len() {
            timeout(LIMIT, new.recv()).await?;
        }
        Ok(Self {
            ctx,
            pool,
            runners: fleet.entries.into(),
            new,
            tasks: vec![watch.abort_handle()],
        })
    }

    /// Ends a runner's job each second; gives the times until there was another pod.
    async fn beats(
        &mut self,
        time: Duration,
        mut each: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        let mut times = vec![];
        let start = Instant::now();
        while start.elapsed() < time {
            let next = Instant::now() + BEAT;
            let runner = self.runners.pop_front().context("no runner is left")?;
            self.ctx.github.delete_runner(runner.id).await?;
            let ended = Instant::now();
            let pods: Api<Pod> = self.ctx.api();
            let status = Patch::Strategic(json!({"status": player::finished()}));
            pods.patch_status(&runner.name, &PatchParams::default(), &status)
                .await?;
            let (name, at) = timeout(LIMIT, self.new.recv())
                .await
                .context("no other runner came")?
                .context("the watch has ended")?;
            times.push(at.duration_since(ended));
            let entry = register_one(&self.ctx, name, &self.pool).await?;
            self.runners.push_back(entry);
            each()?;
            sleep_until(next).await;
        }
        Ok(times)
    }

    /// Does the operator's work for pods that end, and nothing else.
    async fn bare(&mut self, bed: &Bed) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(bed.bare().await?, &self.ctx.namespace);
        let config = watcher::Config::default().labels(POOL_LABEL);
        let mut events = watcher(pods.clone(), config).default_backoff().boxed();
        // What was there before is in the first list.
        while !matches!(events.next().await, Some(Ok(watcher::Event::InitDone))) {}
        let bare = tokio::spawn(async move {
            let mut number = 0;
            let mut done = std::collections::HashSet::new();
            while let Some(event) = events.next().await {
                let watcher::Event::Apply(pod) = event? else {
                    continue;
                };
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                if phase == Some("Succeeded") && done.insert(pod.name_any()) {
                    number += 1;
                    let mut next = afresh(&pod);
                    next.metadata.name = Some(format!("bare-{number:05}"));
                    pods.create(&PostParams::default(), &next).await?;
                    pods.delete(&pod.name_any(), &DeleteParams::default())
                        .await?;
                }
            }
            anyhow::Ok(())
        });
        self.tasks.push(bare.abort_handle());
        Ok(())
    }
}
