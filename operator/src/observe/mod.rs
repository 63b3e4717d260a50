//! Stores and GitHub's answers become plain values.

pub mod agent;
pub mod checks;
pub mod disruption;
pub mod end;
pub mod github;
pub mod jobs;
mod left;
pub mod marks;
pub mod pod;
pub mod refusal;
pub mod scale_set;
mod status;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, RunnerPhase};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Resource, ResourceExt as _};

use crate::context::Context;
use crate::github::Client;
use crate::memory::{Answer, PoolMemory};
use cuda_runner_plan::model::node_marks::Held;
use cuda_runner_plan::model::pool::{GpuRequest, Pool};
use cuda_runner_plan::model::runner::{End, Runner};
use cuda_runner_plan::quarantine::blames_node;
use cuda_runner_plan::{Access, NodeFacts, Observed};
use cuda_runner_plan::{health, jobs as ended_jobs};

/// Pods that the API server is asked for at one visit.
const ASKED_FOR: usize = 32;

/// Whether nothing is left to tell of a runner whose pod is gone. A job is told even where we have removed the pod: the
/// watch is behind at times, and shows a runner as idle that has run its job meanwhile.
fn is_told(status: &CudaRunnerStatus, removed: &BTreeSet<String>, runner: &Runner) -> bool {
    match (&runner.end, &runner.done) {
        (Some(End::JobDone(_)), Some(done)) => {
            ended_jobs::is_noted(&status.last_jobs, &runner.name, done)
        }
        _ => removed.contains(&runner.uid) || health::is_known(&status.last_failures, runner),
    }
}

/// Reads everything that the plan depends on; and the client with which to carry it out.
pub async fn observe(
    ctx: &Context,
    pool: &Pool,
    now: Timestamp,
) -> (Observed, Option<Arc<Client>>) {
    let removed = ctx.memory.with(pool, |memory| memory.removed.clone());
    let mut vanished = ctx
        .pods
        .vanished(&pool.key, |runner| is_told(&pool.status, &removed, runner));
    // After those that have vanished: one that vanishes in between is in neither and wakes the pool, and never in both.
    let mut runners = ctx.pods.of(&pool.key);
    let seen = runners
        .iter()
        .map(|r| (r.name.clone(), r.uid.clone()))
        .collect();
    ctx.memory.with(pool, |memory| memory.settle(&seen, now));
    ask_for_pods(ctx, pool, now).await;

    scale_set::name_jobs(ctx, pool, runners.iter_mut().chain(&mut vanished));
    let client = github::look(ctx, pool, now).await;
    let left = left::look(ctx, pool, &runners, now).await;
    let verification = verify::look(ctx, pool, client.as_deref(), now).await;
    let checks = checks::look(ctx, pool, client.as_deref(), now).await;
    let jobs = jobs::look(
        ctx,
        pool,
        runners.iter().chain(&vanished),
        client.as_deref(),
        &verification,
        now,
    )
    .await;
    // What walks over all runners of the address, or all pods, is done only where the plan will look at it; and nothing
    // that walks is done under the lock.
    let queue = ctx.memory.with(pool, |memory| memory.github.queue.clone());
    let other_pools = if queue.as_ref().is_some_and(|queue| queue.has_jobs()) {
        ctx.other_pools(pool)
    } else {
        vec![]
    };
    let scale_set = scale_set::look(
        ctx,
        pool,
        runners.iter().chain(&vanished),
        client.as_deref(),
        now,
    )
    .await;
    let quarantined = ctx.quarantined_elsewhere(pool);
    let required_elsewhere = ctx.required_elsewhere(pool);
    let passed = if has_failed(&pool.status, &runners, &quarantined) {
        ctx.passed()
    } else {
        vec![]
    };
    let nodes = nodes(ctx, pool, &runners);
    let taken = scale_set.as_ref().and_then(|_| ctx.taken(pool));
    let random = ctx.random();
    let mut observed = ctx.memory.with(pool, |memory| {
        memory.wait(&mut runners, now);
        for runner in &mut runners {
            // Asked to go, though the watch does not show it yet.
            if memory.removed.contains(&runner.uid) {
                runner.phase = RunnerPhase::Terminating;
            }
            if let Some(End::Failed(failure)) = &mut runner.end {
                failure.registered &= !memory.unregistered.contains(&runner.uid);
            }
        }
        Observed {
            runners,
            vanished,
            expected: names(memory, |answer| answer != Answer::Absent),
            unanswered: names(memory, |answer| answer == Answer::Absent),
            ask_for_pods: memory.expected.values().map(|e| e.ask).min(),
            access: memory.github.access.clone(),
            left,
            ask_again: memory.github.not_before,
            listing: memory.github.listing.clone(),
            queue,
            verification,
            checks,
            jobs,
            lifecycles: BTreeMap::new(),
            scale_set,
            required_elsewhere,
            other_pools,
            last_change: memory.last_change,
            nodes,
            taken,
            quarantined,
            passed,
            pod_refused: memory.pod_refused.clone(),
            seed: random,
        }
    });
    if let Some(client) = client
        .as_deref()
        .filter(|_| observed.access == Access::Granted && pool.deleting.is_none())
    {
        observed.lifecycles = versions::look(&observed, client).await;
    }
    (observed, client)
}

/// Asks the API server for pods that were created a while ago and that the watch does not show: it may be behind, the
/// creation may not have come through, or somebody has removed them within a moment.
async fn ask_for_pods(ctx: &Context, pool: &Pool, now: Timestamp) {
    let overdue = ctx.memory.with(pool, |memory| memory.overdue(now));
    let api = Api::<Pod>::namespaced(ctx.client.clone(), &pool.key.namespace);
    for name in overdue.into_iter().take(ASKED_FOR) {
        let found = api.get_metadata_opt(&name).await;
        ctx.memory.with(pool, |memory| match &found {
            Ok(pod) => memory.found(&name, pod.as_ref().is_some_and(|pod| is_of(pod, pool)), now),
            Err(_) => memory.not_found_out(&name, now),
        });
        if let Err(error) = found {
            tracing::warn!(pool = %pool.key, runner = name, %error, "a pod that was created could not be looked for");
        }
    }
}

/// Whether an object is the pool's: somebody else's may have the same name.
pub fn is_of(object: &impl Resource, pool: &Pool) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.uid == pool.uid)
}

/// Names of expected pods of whose creation the API server has said this.
fn names(memory: &PoolMemory, wanted: impl Fn(Answer) -> bool) -> BTreeSet<String> {
    let expected = memory.expected.iter().filter(|(_, e)| wanted(e.answer));
    expected.map(|(name, _)| name.clone()).collect()
}

/// The nodes with GPUs for the pool. A claim names none, so there those count as well that the pool has met.
fn nodes(ctx: &Context, pool: &Pool, runners: &[Runner]) -> Option<Vec<Arc<NodeFacts>>> {
    let (nodes, spec) = ctx.nodes.as_ref().zip(pool.spec.as_ref().ok())?;
    Some(match &spec.gpu {
        GpuRequest::Resource { name, count } => nodes.offering(name, *count),
        GpuRequest::Claim(_) => {
            let status = &pool.status;
            let failed = status.last_failures.iter().map(|f| f.node.as_deref());
            let left_alone = status.quarantine.iter().map(|q| Some(q.node.as_str()));
            let used = runners.iter().map(|r| r.node.as_deref());
            let known: BTreeSet<&str> = failed.chain(left_alone).chain(used).flatten().collect();
            nodes.claimable(&known)
        }
    })
}

/// Whether a node is under suspicion, here or elsewhere: gates that passed speak for such nodes, and for nothing else.
fn has_failed(status: &CudaRunnerStatus, runners: &[Runner], quarantined: &[Held]) -> bool {
    !status.quarantine.is_empty()
        || status.last_failures.iter().any(blames_node)
        || !quarantined.is_empty()
        || runners
            .iter()
            .any(|r| matches!(r.end, Some(End::Failed(_))))
}
