//! Stores and GitHub's answers become plain values.

pub mod agent;
pub mod checks;
mod claim;
pub mod disruption;
pub mod end;
pub mod github;
mod given;
pub mod gpu;
mod job;
pub mod jobs;
mod left;
mod life;
pub mod marks;
pub mod others;
pub mod pod;
pub mod refusal;
mod rerun;
pub mod runners;
pub mod scale_set;
mod status;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod versions;
pub mod webhook;

use std::collections::BTreeSet;
use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, FailureStatus};
use jiff::Timestamp;

use crate::context::Context;
use crate::device_taints::Tainting;
use crate::github::Client;
use crate::memory::{Answer, PoolMemory};
use cuda_runner_plan::device_taints::Effect;
use cuda_runner_plan::lasting::is_suspicious;
use cuda_runner_plan::model::node_marks::Quarantined;
use cuda_runner_plan::model::pool::{GpuRequest, Pool};
use cuda_runner_plan::model::published::Published;
use cuda_runner_plan::model::runner::{End, Runner};
use cuda_runner_plan::quarantine::blames_node;
use cuda_runner_plan::{Access, NodeFacts, Observed};

/// Reads everything that the plan depends on; and the client with which to carry it out.
pub async fn observe(
    ctx: &Context,
    pool: &Pool,
    now: Timestamp,
) -> (Observed, Option<Arc<Client>>) {
    // Each look has its memory while it runs: a thousand may wait for GitHub at a time.
    let (mut runners, mut vanished) = Box::pin(runners::look(ctx, pool, now)).await;
    let client = Box::pin(github::look(ctx, pool, now)).await;
    given::name_jobs(ctx, pool, runners.iter_mut().chain(&mut vanished));
    let asked = client.as_deref();
    let webhook = Box::pin(webhook::look(ctx, pool, asked, now)).await;
    let left = Box::pin(left::look(ctx, pool, &runners, now)).await;
    let verification = Box::pin(verify::look(ctx, pool, asked, now)).await;
    let checks = Box::pin(checks::look(ctx, pool, asked, now)).await;
    let all = runners.iter().chain(&vanished);
    let jobs = jobs::look(ctx, pool, all.clone(), asked, &verification, now);
    let jobs = Box::pin(jobs).await;
    let mut reruns = Box::pin(rerun::look(ctx, pool, all.clone(), asked, now)).await;
    let scale_set = Box::pin(scale_set::look(ctx, pool, all, asked, now)).await;
    let known = ctx.memory.with(pool, |memory| {
        runners::amend(memory, &mut runners, now);
        remembered(memory)
    });
    // What walks over all runners of the address, or all pods, is done only where the plan will look at it; and nothing
    // that walks is done under the lock.
    let has_jobs = known.queue.as_ref().is_some_and(|queue| queue.has_jobs());
    let other_pools = has_jobs.then(|| others::labels(ctx, pool));
    let quarantined = others::quarantined(ctx, pool);
    let is_suspected = has_failed(&pool.status, &known.failures, &runners, &quarantined, now);
    let passed = is_suspected.then(|| others::passed(ctx));
    let jobs_elsewhere = others::jobs(ctx, pool, &runners);
    let may_blame = is_suspected && !reruns.ended.is_empty();
    reruns.passes = may_blame.then(|| ctx.pods.passes(now)).flatten();
    let claim_template = Box::pin(claim::look(ctx, pool, &runners, now)).await;
    let mut observed = Observed {
        claim_template,
        nodes: nodes(ctx, pool, &runners),
        share: ctx.shares.of(&pool.key),
        published: published(ctx),
        taints_devices: taints_devices(ctx),
        required_elsewhere: others::required(ctx, pool),
        other_pools: other_pools.unwrap_or_default(),
        passed: passed.unwrap_or_default(),
        jobs_elsewhere,
        seed: ctx.random(),
        runners,
        vanished,
        left,
        verification,
        checks,
        jobs,
        reruns,
        scale_set,
        webhook,
        quarantined,
        gone: ctx.pods.gone(&pool.key),
        hung_after: ctx.hung_after,
        ..known
    };
    ctx.memory
        .with(pool, |memory| memory.doubt(pool, &mut observed, now));
    let is_in_use = observed.access == Access::Granted && pool.deleting.is_none();
    if let Some(client) = client.as_deref().filter(|_| is_in_use) {
        observed.lifecycles = Box::pin(versions::look(&observed, client)).await;
    }
    (observed, client)
}

/// What is remembered of earlier looks and of what was done.
fn remembered(memory: &PoolMemory) -> Observed {
    Observed {
        expected: names(memory, |answer| answer != Answer::Absent),
        unanswered: names(memory, |answer| answer == Answer::Absent),
        ask_for_pods: memory.expected.values().map(|e| e.ask).min(),
        access: memory.github.access.clone(),
        ask_again: memory.github.not_before,
        listing: memory.github.listing.clone(),
        queue: memory.github.queue.clone(),
        last_change: memory.settled_at(),
        pod_refused: memory.pod_refused.clone(),
        failures: memory.failures.clone(),
        ..Observed::default()
    }
}

/// Names of expected pods of whose creation the API server has said this.
fn names(memory: &PoolMemory, wanted: impl Fn(Answer) -> bool) -> BTreeSet<String> {
    let expected = memory.expected.iter().filter(|(_, e)| wanted(e.answer));
    expected.map(|(name, _)| name.clone()).collect()
}

/// The nodes with GPUs for the pool. A claim names none, so there those count as well that the pool has met; as do those
/// where Kubernetes claims what the pool asks for by number.
fn nodes(ctx: &Context, pool: &Pool, runners: &[Runner]) -> Option<Vec<Arc<NodeFacts>>> {
    let (nodes, spec) = ctx.nodes.as_ref().zip(pool.spec.as_ref().ok())?;
    let status = &pool.status;
    let failed = status.last_failures.iter().map(|f| f.node.as_deref());
    let left_alone = status.quarantine.iter().map(|q| Some(q.node.as_str()));
    let used = runners.iter().map(|r| r.node.as_deref());
    let known: BTreeSet<&str> = failed.chain(left_alone).chain(used).flatten().collect();
    Some(match &spec.gpu {
        GpuRequest::Resource { name, count } => {
            let mut all = nodes.offering(name, *count);
            let published = published(ctx);
            let published = published.as_deref();
            let has_some = |node: &&&str| published.is_some_and(|p| p.count(node) > 0);
            let met = known.iter().filter(has_some).filter_map(|n| nodes.named(n));
            let met = met.filter(|node| !node.offers.contains_key(name));
            all.extend(met);
            all
        }
        GpuRequest::Claim(_) => nodes.claimable(&known),
    })
}

/// What drivers publish, where that is watched.
fn published(ctx: &Context) -> Option<Arc<Published>> {
    ctx.devices.as_ref()?.published()
}

/// Whether a device that failed is kept off by a rule.
pub(crate) fn taints_devices(ctx: &Context) -> bool {
    let keeps_off = |t: &Tainting| t.effect == Effect::NoSchedule;
    let may = ctx
        .devices
        .as_ref()
        .is_some_and(|devices| devices.may_taint());
    may && ctx.tainting.as_ref().is_some_and(keeps_off)
}

/// Whether a node is under suspicion, here or elsewhere: gates that passed speak for such nodes, and for nothing else.
fn has_failed(
    status: &CudaRunnerStatus,
    remembered: &[FailureStatus],
    runners: &[Runner],
    quarantined: &[Quarantined],
    now: Timestamp,
) -> bool {
    let mut failures = status.last_failures.iter().chain(remembered);
    !status.quarantine.is_empty()
        || failures.any(|f| blames_node(f) || is_suspicious(f, now))
        || !quarantined.is_empty()
        || runners
            .iter()
            .any(|r| matches!(r.end, Some(End::Failed(_))))
}
