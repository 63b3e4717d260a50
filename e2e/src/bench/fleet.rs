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
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Bed, Run,
    bed::pool,
    figure::{Budget, Figure},
    pods::{Pods, afresh},
};
use crate::{audit::Audit, suites::Ctx, wait::wait_for};

/// Pools of one namespace, with one credential and one repository.
const POOLS_EACH: usize = 100;
/// Requests of the bench in flight.
pub(super) const AT_ONCE: usize = 16;
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
    let memory = memory_with(run, &what, size.runners(), async |bed| {
        Fleet::make(bed, size).await
    });
    let Memory { now, peak, floor } = memory.await?;
    Ok(vec![
        in_mib("at rest", &what, (now, floor), Some(budget)),
        in_mib("at its peak", &what, (peak, vec![]), None),
    ])
}

/// The same with pools that have a scale set each, and wait for jobs. The budget is for the peak.
pub(super) async fn scale_sets(run: &Run, pools: usize, budget: f64) -> Result<Vec<Figure>> {
    let what = format!("{} with a scale set each", plural(pools, "pool"));
    let mut spec = pool(0);
    spec["replicas"] = json!(null);
    spec["scaling"] = json!({"maxRunners": 1});
    let memory = memory_with(run, &what, pools, async |bed| {
        let namespaces = apply_all(bed, pools, &spec).await?;
        let github = &namespaces.first().context("there is no pool")?.github;
        wait_for("all pools to listen", LIMIT, async || {
            let sets = github.scale_sets().await?;
            let listen = sets.iter().filter(|set| set.session.is_some()).count();
            Ok((listen >= pools).then_some(()))
        })
        .await
    });
    let Memory { now, peak, floor } = memory.await?;
    Ok(vec![
        in_mib("at rest", &what, (now, vec![]), None),
        in_mib("at its peak", &what, (peak, floor), Some(budget)),
    ])
}

/// Samples of resident memory, in MiB.
struct Memory {
    now: Vec<f64>,
    peak: Vec<f64>,
    floor: Vec<f64>,
}

async fn memory_with<T>(
    run: &Run,
    what: &str,
    runners: usize,
    make: impl AsyncFnOnce(&Bed) -> Result<T>,
) -> Result<Memory> {
    run.story.step(&format!("memory: {what}"));
    let (mut now, mut peak, mut floor) = (vec![], vec![], vec![]);
    Bed::with(runners, async |bed| {
        bed.started().await?;
        settled(bed).await?;
        floor.push(bed.memory()?.0);
        let fleet = make(bed).await?;
        for number in 0..run.runs {
            if number > 0 {
                bed.kill().await?;
                bed.started().await?;
            }
            settled(bed).await?;
            let (at_rest, most) = bed.memory()?;
            now.push(at_rest);
            peak.push(most);
        }
        drop(fleet);
        Ok(())
    })
    .await?;
    Ok(Memory { now, peak, floor })
}

pub(super) fn in_mib(
    when: &str,
    what: &str,
    (ours, floor): (Vec<f64>, Vec<f64>),
    budget: Option<f64>,
) -> Figure {
    Figure {
        name: format!("memory {when}, {what}"),
        unit: "MiB",
        ours,
        floor,
        budget: budget.map(Budget::AtMost),
    }
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

fn plural(count: usize, word: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {word}{s}")
}

pub(super) fn words(size: Size) -> String {
    format!(
        "{} in {}",
        plural(size.runners(), "runner"),
        plural(size.pools, "pool")
    )
}

/// Waits until the operator has nothing left to do.
pub(super) async fn settled(bed: &Bed) -> Result<()> {
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
        let pods = Pods::follow(Api::all(bed.client.clone()), POOL_LABEL).await?;
        let namespaces = apply_all(bed, size.pools, &pool(size.each)).await?;
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

/// Makes so many pools with this spec; gives their namespaces.
async fn apply_all(bed: &Bed, pools: usize, spec: &Value) -> Result<Vec<Ctx>> {
    let mut namespaces = vec![];
    for number in 0..pools.div_ceil(POOLS_EACH) {
        namespaces.push(bed.ctx(&format!("fleet-{number}")).await?);
    }
    stream::iter(0..pools)
        .map(|number| {
            let ctx = &namespaces[number / POOLS_EACH];
            async move {
                let pool = ctx.pool(&format!("pool-{number}"), spec.clone());
                ctx.apply(&pool).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(namespaces)
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
