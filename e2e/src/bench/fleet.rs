//! Many pools with many runners: what they cost in memory, and how soon a restarted operator acts.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use anyhow::{Context as _, Result};
use cudarunner_crds::{CudaRunner, POOL_LABEL};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use github_simulator::control::NewRunner;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    pods::{Pods, afresh},
};
use crate::{audit::Audit, suites::Ctx};

/// Pools of one namespace, with one credential and one repository.
const POOLS_EACH: usize = 100;
/// Requests of the bench in flight.
const AT_ONCE: usize = 16;
/// Long enough for thousands of pods.
const LIMIT: Duration = Duration::from_mins(9);
/// The size of a page, as a watch asks for it.
const PAGE: u32 = 500;

/// So many pools with so many runners each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) pools: usize,
    pub(super) each: usize,
}

impl Size {
    pub(super) fn runners(self) -> usize {
        self.pools * self.each
    }
}

/// Resident memory of the operator at rest: the one that has made the pods, then others that found them. The floor is
/// an operator without a pool.
pub(super) async fn memory(run: &Run, size: Size, budget: f64) -> Result<Vec<Figure>> {
    let what = words(size);
    run.story.step(&format!("memory: {what}"));
    let (mut ours, mut peak, mut floor) = (vec![], vec![], vec![]);
    Bed::with(size.runners(), async |bed| {
        bed.started().await?;
        settled(bed).await?;
        floor.push(bed.memory()?.0);
        let fleet = Fleet::make(bed, size).await?;
        for number in 0..run.runs {
            if number > 0 {
                bed.kill().await?;
                bed.started().await?;
            }
            settled(bed).await?;
            let (now, most) = bed.memory()?;
            ours.push(now);
            peak.push(most);
        }
        drop(fleet);
        Ok(())
    })
    .await?;
    let figure = |name, ours, floor, budget| Figure {
        name,
        unit: "MiB",
        ours,
        floor,
        budget,
    };
    Ok(vec![
        figure(
            format!("memory at rest, {what}"),
            ours,
            floor,
            Some(Budget::AtMost(budget)),
        ),
        figure(format!("memory at its peak, {what}"), peak, vec![], None),
    ])
}

/// From the start of an operator to the pod that is missing from the last pool. The floor is a bare client that reads
/// the same pods and pools, and makes the pod.
pub(super) async fn restart(run: &Run, size: Size) -> Result<Vec<Figure>> {
    let what = words(size);
    run.story.step(&format!("restart: {what}"));
    let (mut ours, mut floor) = (vec![], vec![]);
    Bed::with(size.runners() + 1, async |bed| {
        bed.started().await?;
        let fleet = Fleet::make(bed, size).await?;
        for _ in 0..run.runs {
            settled(bed).await?;
            bed.kill().await?;
            let missing = fleet.remove_one().await?;
            floor.push(bare(&bed.bare().await?, &missing).await?);
            fleet.remove(&missing).await?;
            let start = bed.start()?;
            let made = fleet
                .pods
                .until("the missing runner", LIMIT, |count| {
                    count.there >= size.runners()
                })
                .await?;
            ours.push(made.into_std().duration_since(start).as_secs_f64());
        }
        Ok(())
    })
    .await?;
    Ok(vec![Figure {
        name: format!("restart to the first action, {what}"),
        unit: "s",
        ours,
        floor,
        budget: Some(Budget::AtMost(3.0)),
    }])
}

fn words(size: Size) -> String {
    let plural = |count: usize, word: &str| {
        let s = if count == 1 { "" } else { "s" };
        format!("{count} {word}{s}")
    };
    format!(
        "{} in {}",
        plural(size.runners(), "runner"),
        plural(size.pools, "pool")
    )
}

/// Waits until the operator has nothing left to do.
async fn settled(bed: &Bed) -> Result<()> {
    let mut audit = Audit::from_now(&bed.cluster)?;
    audit.settled(LIMIT, async || Ok(true)).await.map(drop)
}

/// The pools, and the watch of their pods.
pub(super) struct Fleet {
    size: Size,
    pub(super) namespaces: Vec<Ctx>,
    pods: Pods,
    /// What GitHub knows of.
    pub(super) entries: Vec<Entry>,
}

/// A runner as GitHub knows it.
pub(super) struct Entry {
    /// Its name, which is its pod's.
    pub(super) name: String,
    /// GitHub's number for it.
    pub(super) id: u64,
}

impl Fleet {
    /// Makes the pools and waits until their runners are there: ready, and known to GitHub.
    pub(super) async fn make(bed: &Bed, size: Size) -> Result<Self> {
        let mut namespaces = vec![];
        for number in 0..size.pools.div_ceil(POOLS_EACH) {
            namespaces.push(bed.ctx(&format!("fleet-{number}")).await?);
        }
        let pods = Pods::follow(Api::all(bed.client.clone()), POOL_LABEL).await?;
        stream::iter(0..size.pools)
            .map(|number| {
                let ctx = &namespaces[number / POOLS_EACH];
                async move {
                    let pool = ctx.pool(&format!("pool-{number}"), pool(size.each));
                    ctx.apply(&pool).await
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        pods.until("all runners to be ready", LIMIT, |count| {
            count.ready >= size.runners()
        })
        .await?;
        let mut entries = vec![];
        for ctx in &namespaces {
            entries.extend(register(ctx).await?);
        }
        Ok(Self {
            size,
            namespaces,
            pods,
            entries,
        })
    }

    /// Removes a pod of the last pool; gives it as it would be made again.
    async fn remove_one(&self) -> Result<Pod> {
        let ctx = self.namespaces.last().context("there is no pool")?;
        let last = pools(ctx).await?.pop().context("there is no pool")?;
        let of_it = ListParams::default().labels(&format!("{POOL_LABEL}={}", last.name_any()));
        let pods: Api<Pod> = ctx.api();
        let pod = pods.list(&of_it).await?.items.pop();
        let pod = pod.context("the last pool has no pod")?;
        self.remove(&pod).await?;
        Ok(afresh(&pod))
    }

    /// Removes a pod, and waits until it is gone.
    async fn remove(&self, pod: &Pod) -> Result<()> {
        let api: Api<Pod> = self.namespaces.last().context("there is no pool")?.api();
        let all = self.size.runners();
        // The watch may be behind with the pod's own creation.
        self.pods
            .until("the pod to be seen", LIMIT, |count| count.there >= all)
            .await?;
        api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
            .await?;
        self.pods
            .until("a pod to be gone", LIMIT, |count| count.there < all)
            .await?;
        Ok(())
    }
}

/// The pools of a namespace, by name.
async fn pools(ctx: &Ctx) -> Result<Vec<CudaRunner>> {
    let api: Api<CudaRunner> = ctx.api();
    let mut pools = api.list(&ListParams::default()).await?.items;
    pools.sort_by_key(kube::ResourceExt::name_any);
    Ok(pools)
}

/// Tells GitHub of the runners: what it does not know is looked up and replaced.
async fn register(ctx: &Ctx) -> Result<Vec<Entry>> {
    let owners: HashMap<_, _> = pools(ctx)
        .await?
        .into_iter()
        .map(|pool| (pool.name_any(), pool.uid().unwrap_or_default()))
        .collect();
    stream::iter(ctx.pods().await?)
        .map(|pod| {
            let uid = pod
                .labels()
                .get(POOL_LABEL)
                .and_then(|name| owners.get(name));
            let owner = uid.cloned().unwrap_or_default();
            async move { register_one(ctx, pod.name_any(), &owner).await }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// Tells GitHub of the runner of a pool with this uid.
pub(super) async fn register_one(ctx: &Ctx, name: String, pool: &str) -> Result<Entry> {
    // The label by which a pool knows its own.
    let owner = pool.get(..8).unwrap_or_default();
    let runner = NewRunner {
        scope: ctx.repository.clone(),
        name: name.clone(),
        labels: vec!["cuda".to_owned(), format!("cudarunner-{owner}")],
    };
    let id = ctx.github.create_runner(&runner).await?;
    Ok(Entry { name, id })
}

/// The least that an operator must do before it can act: read all pods and pools, and make the pod.
async fn bare(client: &Client, missing: &Pod) -> Result<f64> {
    let start = Instant::now();
    let (pods, pools): (Api<Pod>, Api<CudaRunner>) =
        (Api::all(client.clone()), Api::all(client.clone()));
    let labelled = ListParams::default().labels(POOL_LABEL);
    tokio::try_join!(pages(&pods, labelled), pages(&pools, ListParams::default()))?;
    let namespace = missing.namespace().unwrap_or_default();
    Api::<Pod>::namespaced(client.clone(), &namespace)
        .create(&PostParams::default(), missing)
        .await?;
    Ok(start.elapsed().as_secs_f64())
}

/// Reads a list to its end.
async fn pages<K>(api: &Api<K>, params: ListParams) -> Result<usize>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut count = 0;
    loop {
        let page = api.list(&params).await?;
        count += page.items.len();
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(count),
        }
    }
}
