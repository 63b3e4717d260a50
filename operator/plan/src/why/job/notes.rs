//! What an answer about a job is worth, and what is said where nothing is known of it.

use std::collections::BTreeSet;

use cudarunner_crds::CudaRunner;

use super::{Asked, Candidate, MOST, Told};
use crate::fleet::{Device, Fleet, Pool};
use crate::why::of_any_job;
use crate::why::operator::NOBODY;

/// Pools that are named at most.
const MOST_POOLS: usize = 5;

/// What the answer is worth.
pub(super) fn notes(
    fleet: &Fleet,
    asked: &Asked,
    (jobs, candidates): (&[Told], &[Candidate]),
    by_status: &[CudaRunner],
) -> Vec<String> {
    let mut notes = vec![];
    if let Some(more) = jobs.len().checked_sub(MOST).filter(|more| *more > 0) {
        notes.push(format!(
            "{more} more jobs could be meant: name one by its address"
        ));
    }
    if let (Some(number), false) = (asked.number(), jobs.is_empty())
        && jobs.iter().all(|told| told.job.id != Some(number))
    {
        notes.push(format!(
            "Which of the jobs of its run has the number {number} is not known: the operator knows the numbers of jobs that wait in the queue of a repository, and no others"
        ));
    }
    if jobs.is_empty() {
        notes.extend(nothing(fleet, asked, candidates));
    }
    let concerned = by_status.iter().filter(|pool| match asked {
        _ if !jobs.is_empty() => jobs.iter().any(|told| told.pools.contains(&key(pool))),
        Asked::Page(page) => page.is_at(&pool.spec.github.url),
        Asked::Name(_) => true,
    });
    notes.extend(unread(fleet, concerned.map(key).collect()));
    let stand_by = fleet.operators().filter(|operator| !operator.leads);
    notes.extend(stand_by.map(|operator| {
        format!(
            "{} answered, which stands by: which jobs wait and run is known to the replica that leads",
            operator.name
        )
    }));
    notes
}

/// What cannot be known of pools whose statuses alone were read, and how it could.
fn unread(fleet: &Fleet, by_status: Vec<String>) -> Option<String> {
    let of = match fleet.operator {
        None => String::new(),
        Some(_) if by_status.is_empty() => return None,
        Some(_) => format!(", of {}", some(by_status, ", ")),
    };
    let why = if fleet.not_read.is_empty() {
        String::new()
    } else {
        format!(", because {}", fleet.not_read.join(", and "))
    };
    if fleet.not_read.iter().any(|why| why == NOBODY) {
        return Some(format!(
            "This is from the statuses of the pools alone{of}{why}: which jobs wait and run nobody knows"
        ));
    }
    Some(format!(
        "This is from the statuses of the pools alone{of}: which jobs wait and run only the operator's own document tells, which was not read{why}: it is read where fleetPage.enabled=true is set in the operator's chart, by whoever may get services/proxy there"
    ))
}

/// The pools for the repository of a job, those first whose jobs something holds.
pub(super) fn candidates(asked: &Asked, by_status: &[CudaRunner]) -> Vec<Candidate> {
    let Asked::Page(page) = asked else {
        return vec![];
    };
    let pools = by_status
        .iter()
        .filter(|pool| page.is_at(&pool.spec.github.url));
    let mut all: Vec<Candidate> = pools
        .map(|pool| Candidate {
            pool: key(pool),
            labels: pool.runner_labels(),
            queued: pool.status.as_ref().map_or(0, |status| status.queued),
            causes: of_any_job(pool),
        })
        .collect();
    all.sort_by_key(|candidate| candidate.causes.is_empty());
    all.truncate(MOST_POOLS);
    all
}

/// `NAMESPACE/NAME`.
fn key(pool: &CudaRunner) -> String {
    let namespace = pool.metadata.namespace.as_deref().unwrap_or_default();
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    format!("{namespace}/{name}")
}

/// The first of these, and how many more there are.
#[must_use]
pub fn some(all: Vec<String>, between: &str) -> String {
    let more = match all.len().saturating_sub(MOST_POOLS) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let first: Vec<String> = all.into_iter().take(MOST_POOLS).collect();
    format!("{}{more}", first.join(between))
}

/// What is known where the job is not.
fn nothing(fleet: &Fleet, asked: &Asked, candidates: &[Candidate]) -> Vec<String> {
    let mut notes = vec![];
    let mut pools: Vec<&Pool> = fleet.pools.iter().collect();
    if let Asked::Page(page) = asked {
        pools.retain(|pool| page.is_at(&pool.url));
        if pools.is_empty() {
            let all: BTreeSet<&String> = fleet.pools.iter().map(|pool| &pool.url).collect();
            let there = match all.len() {
                0 => "nothing yet".to_owned(),
                _ => some(all.into_iter().cloned().collect(), ", "),
            };
            return vec![format!(
                "No pool is for {} at {}, so none takes its jobs. Pools are for: {there}",
                page.repository, page.origin
            )];
        }
    }
    let named = |pool: &&Pool| format!("{} ([{}])", pool.key(), pool.labels.join(", "));
    let could = match (pools.len(), candidates.len()) {
        (0, _) => "Pools that could take it: none".to_owned(),
        (all, told) if told == all => "The pools above could take it".to_owned(),
        _ => format!(
            "Pools that could take it, each with its labels: {}",
            some(pools.iter().map(named).collect(), "; ")
        ),
    };
    notes.push(format!(
        "Nothing is known of {}: it is in no queue as last read, runs on no runner that is known to have it, and is not among the last jobs. {could}",
        asked.words()
    ));
    let beyond = pools.iter().map(|pool| pool.queue.waiting_not_listed);
    let beyond = beyond.fold(fleet.unserved_not_listed, u32::saturating_add);
    if beyond > 0 {
        notes.push(format!(
            "{beyond} jobs wait of which no more is known than that they do"
        ));
    }
    let unnamed = unnamed(fleet, &pools);
    if unnamed > 0 {
        notes.push(format!(
            "{unnamed} of their runners run jobs whose names are known when they have ended: only a scale set gets them before"
        ));
    }
    if fleet.operator.is_some() {
        notes.push("The queue of a pool with a fixed number of runners is read every few minutes: `kubectl cudarunner why POOL` has it read now".to_owned());
    }
    notes
}

/// How many runners of these pools are busy with a job that nobody can name.
fn unnamed(fleet: &Fleet, pools: &[&Pool]) -> usize {
    let busy = pools.iter().map(|pool| pool.busy);
    let busy = usize::try_from(busy.fold(0, i32::saturating_add)).unwrap_or(0);
    let keys: BTreeSet<String> = pools.iter().map(|pool| pool.key()).collect();
    let devices = fleet.nodes.iter().flat_map(|node| &node.devices);
    let is_named = |device: &&Device| {
        let pool = device.pool.as_ref();
        device.job.is_some() && pool.is_some_and(|pool| keys.contains(pool))
    };
    let named = devices.filter(is_named).map(|device| &device.runner);
    busy.saturating_sub(named.collect::<BTreeSet<_>>().len())
}
