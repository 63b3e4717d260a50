//! What other pools tell: their specs and statuses, and the pods of their runners.

use std::collections::BTreeSet;
use std::sync::Arc;

use cudarunner_crds::{CudaRunner, JobStatus};
use gate_report::Finding;
use kube::runtime::reflector::Store;

use crate::context::Context;
use crate::watch::pools::key_of;
use cuda_runner_plan::Passed;
use cuda_runner_plan::checks;
use cuda_runner_plan::model::checks::{Elsewhere, Word};
use cuda_runner_plan::model::key::PoolKey;
use cuda_runner_plan::model::node_marks::Quarantined;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::{End, Runner};
use cuda_runner_plan::model::url::GitHubUrl;

fn others<'a>(ctx: &'a Context, pool: &'a Pool) -> impl Iterator<Item = Arc<CudaRunner>> + 'a {
    let all = ctx.pools.iter().flat_map(Store::state);
    all.filter(|other| other.metadata.uid.as_ref() != Some(&pool.uid))
}

/// Labels of the other pools that register at the address of `pool`.
pub(super) fn labels(ctx: &Context, pool: &Pool) -> Vec<Vec<String>> {
    let Ok(spec) = &pool.spec else {
        return vec![];
    };
    let is_there = |other: &Arc<CudaRunner>| {
        GitHubUrl::parse(&other.spec.github.url, true).is_ok_and(|url| url == spec.url)
    };
    others(ctx, pool)
        .filter(is_there)
        .map(|other| other.runner_labels())
        .collect()
}

/// The gates that passed, of all pools that there are.
pub fn passed(ctx: &Context) -> Vec<Passed> {
    ctx.pods.passed(|key, owner| ctx.has(key, owner))
}

/// The other pools' last jobs on the nodes where a gate of these runners found memory taken.
pub(super) fn jobs(ctx: &Context, pool: &Pool, runners: &[Runner]) -> Vec<(PoolKey, JobStatus)> {
    jobs_of(others(ctx, pool), runners)
}

/// Those of these pools.
pub(super) fn jobs_of(
    others: impl Iterator<Item = Arc<CudaRunner>>,
    runners: &[Runner],
) -> Vec<(PoolKey, JobStatus)> {
    let is_taken = |runner: &&Runner| matches!(&runner.end, Some(End::Failed(failure)) if failure.is(Finding::MemoryTaken));
    let taken = runners.iter().filter(is_taken);
    let nodes: BTreeSet<_> = taken.filter_map(|runner| runner.node.as_ref()).collect();
    if nodes.is_empty() {
        return vec![];
    }
    let is_there = |job: &&JobStatus| job.node.as_ref().is_some_and(|node| nodes.contains(node));
    let mut found = vec![];
    for other in others {
        let jobs = other.status.iter().flat_map(|status| &status.last_jobs);
        found.extend(
            jobs.filter(is_there)
                .map(|job| (key_of(&other), job.clone())),
        );
    }
    found
}

/// What the other pools have in quarantine.
pub(super) fn quarantined(ctx: &Context, pool: &Pool) -> Vec<Quarantined> {
    let own = others(ctx, pool).flat_map(|other| held_by(&other));
    own.chain(beside(ctx)).collect()
}

/// What pools have in quarantine that other operators serve.
#[must_use]
pub fn beside(ctx: &Context) -> Vec<Quarantined> {
    ctx.beside.quarantined(|key| ctx.resource(key).is_some())
}

/// What a pool has in quarantine, as its status says.
#[must_use]
pub fn held_by(pool: &CudaRunner) -> Vec<Quarantined> {
    let entries = pool.status.iter().flat_map(|s| &s.quarantine);
    let held = entries.map(|entry| Quarantined {
        pool: key_of(pool),
        entry: entry.clone(),
    });
    held.collect()
}

/// What other pools require at the server of a pool that requires something, too, as this process has written it down
/// for them: what a namespace's users can write is no proof. One in deletion gives its part up.
pub(super) fn required(ctx: &Context, pool: &Pool) -> BTreeSet<Elsewhere> {
    let Ok(spec) = &pool.spec else {
        return BTreeSet::new();
    };
    if spec.required_checks.is_none() && pool.status.required_checks.is_none() {
        return BTreeSet::new();
    }
    others(ctx, pool)
        .filter(|other| other.metadata.deletion_timestamp.is_none())
        .filter(|other| other.spec.required_checks.is_some())
        .flat_map(|other| required_by(ctx, &other))
        .collect()
}

fn required_by(ctx: &Context, other: &CudaRunner) -> Vec<Elsewhere> {
    let uid = other.metadata.uid.as_deref().unwrap_or_default();
    let known = ctx.memory.of(&key_of(other), uid, |memory| {
        let word = Word::of(&memory.github.access, &memory.checks.facts);
        (word, memory.status.clone())
    });
    let (word, written) = known.unwrap_or((Some(Word::Unproven), None));
    match (word, written.as_ref().or(other.status.as_ref())) {
        (Some(word), Some(status)) => checks::required_by(&other.spec, status, word),
        _ => vec![],
    }
}
