//! What to do: a pure function of the pool, of what was observed, and of the time.
//!
//! Nothing here has a client, a clock or randomness of its own, so that every decision can be tested as data: [`model`] has
//! the values, and each other file decides on one concern.
#![cfg_attr(
    not(any(test, feature = "fixture")),
    warn(clippy::arithmetic_side_effects)
)]

pub mod architecture;
pub mod checks;
pub mod condition;
pub mod conditions;
pub mod demand;
pub mod device_taints;
mod devices;
pub mod fleet;
pub mod health;
pub mod hours;
pub mod hung;
pub mod jobs;
pub mod kind;
mod labels;
pub mod lasting;
pub mod left;
pub mod model;
pub mod node_marks;
pub mod owner;
mod placement;
pub mod pod;
pub mod quarantine;
pub mod queue;
pub mod reason;
pub mod rerun;
pub mod retest;
pub mod runners;
pub mod scale_set;
pub mod schedule;
pub mod shares;
pub mod sharing;
mod shown;
mod stable;
pub mod teardown;
pub mod usage;
pub mod verify;
pub mod version;
pub mod webhook;
pub mod why;

#[cfg(test)]
mod extremes;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use cudarunner_crds::{CudaRunnerStatus, RunnerPhase};
use jiff::{SignedDuration, Timestamp};

use crate::health::Health;
pub use crate::model::action::{
    About, Action, NOTE, NewRunner, Notice, Plan, PodSettings, Recorded, Target,
};
pub use crate::model::github::{Entry, Listing};
pub use crate::model::observed::{Access, Labels, NodeFacts, Observed, Passed, Queue};
use crate::model::pool::{Pool, Spec};
use crate::model::runner::{Runner, Told};
use crate::model::time::Shift as _;

/// When the next of many pods are asked for.
const SOON: SignedDuration = SignedDuration::from_secs(1);

/// What is decided on, of a pool whose spec can be carried out.
#[derive(Clone, Copy)]
struct Case<'a> {
    pool: &'a Pool,
    spec: &'a Spec,
    observed: &'a Observed,
    health: &'a Health,
    now: Timestamp,
}

/// Decides.
#[must_use]
pub fn plan(pool: &Pool, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = decided(pool, observed, now);
    plan.keep_unrecorded();
    if let Ok(spec) = &pool.spec {
        plan.hold_creations(spec.size.max);
    }
    plan.wake_for_refresh(observed.ask_again, now);
    let quarantined = plan.status.quarantine.len();
    plan.status.quarantined_nodes = i32::try_from(quarantined).unwrap_or(i32::MAX);
    let share = observed.share.as_ref().filter(|share| share.is_beside);
    plan.status.demand = share.map(|_| plan.claim.demand());
    shown::tidy(&mut plan);
    #[cfg(test)]
    reason::tests::all_in_their_places(&plan);
    plan
}

/// What is told of runners with this plan's status, if it is of a pool whose failures are.
fn told(pool: &Pool, observed: &Observed, health: Option<&Health>) -> BTreeMap<String, Told> {
    let there = observed.runners.iter().map(|runner| (runner, false));
    let vanished = observed.vanished.iter().map(|runner| (runner, true));
    let all = there.chain(vanished).filter_map(|(runner, has_vanished)| {
        let before = runner.told.unwrap_or_default();
        let is_over = has_vanished || runner.end.is_some();
        let told = Told {
            end: before.end || is_over && health.is_some() && pool.spec.is_ok(),
            late: before.late || health.is_some_and(|health| health.late.contains(&runner.uid)),
            // Of a pool whose spec cannot be read no job is told, nor run again.
            job: match pool.spec {
                Ok(_) => jobs::done(runner).map(|done| done.finished),
                Err(_) => before.job,
            },
        };
        (told != Told::default()).then(|| (runner.uid.clone(), told))
    });
    all.collect()
}

fn decided(pool: &Pool, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan {
        status: counted(pool, observed, now),
        ..Plan::default()
    };
    // Said once: the status that is written with it is the pool's own.
    plan.news.extend(teardown::of_another(pool));
    // One that is over woke this reconcile, or belongs to a spec that cannot be read any more.
    if let Some(moment) = observed.ask_again.filter(|moment| *moment > now) {
        plan.wake_at(moment, now);
    }
    // So many pods are asked for at a time, and the others next.
    if let Some(moment) = observed.ask_for_pods {
        plan.wake_at(moment.max(now.after(SOON)), now);
    }
    left::note(pool, observed, &mut plan);
    left::plan(pool, observed, now, &mut plan);
    if let Some(since) = pool.deleting {
        if !observed.runners.is_empty() {
            conditions::leaving(pool, now, &mut plan);
        }
        teardown::plan(pool, observed, since, now, &mut plan);
        hours::plan(pool, observed, now, &mut plan);
        plan.told = told(pool, observed, None);
        return plan;
    }
    if !pool.finalizer {
        plan.actions.push(Action::AddFinalizer);
    }
    let health = health::assess(pool, observed, now);
    version::plan(pool, observed, now, &mut plan);
    jobs::plan(pool, observed, now, &mut plan);
    hours::plan(pool, observed, now, &mut plan);
    if let Ok(spec) = &pool.spec {
        let case = Case {
            pool,
            spec,
            observed,
            health: &health,
            now,
        };
        plan.capacity = Some(demand::capacity(spec, observed, &health, now));
        scale_set::plan(case, &mut plan);
        runners::plan(case, &mut plan);
        hung::plan(case, &mut plan);
        verify::plan(case, &mut plan);
        checks::plan(pool, observed, now, &mut plan);
        rerun::plan(case, &mut plan);
    } else {
        scale_set::stop_listening(observed, &mut plan);
    }
    plan.status.released.clone_from(&pool.release);
    report(&health, now, &mut plan);
    queue::plan(pool, observed, now, &mut plan);
    labels::plan(pool, observed, &mut plan);
    conditions::plan(pool, observed, &health, now, &mut plan);
    plan.told = told(pool, observed, Some(&health));
    plan.failures = health.remembered;
    plan
}

/// Reports the failures, and what is in quarantine.
fn report(health: &Health, now: Timestamp, plan: &mut Plan) {
    plan.failed.clone_from(&health.failed);
    plan.unrecorded.extend(health.unrecorded());
    plan.status.consecutive_failures = health.consecutive;
    plan.status.last_failures.clone_from(&health.last_failures);
    plan.status
        .quarantine
        .clone_from(&health.quarantine.entries);
    plan.notices.extend(health.quarantine.notices.clone());
    if let Some(moment) = health.quarantine.wake {
        plan.wake_at(moment, now);
    }
}

/// The counts and lists of the status.
fn counted(pool: &Pool, observed: &Observed, now: Timestamp) -> CudaRunnerStatus {
    let runners = &observed.runners;
    let count = |wanted: &dyn Fn(&Runner) -> bool| {
        i32::try_from(runners.iter().filter(|r| wanted(r)).count()).unwrap_or(i32::MAX)
    };
    let phase = |phases: &'static [RunnerPhase]| move |r: &Runner| phases.contains(&r.phase);
    let mut listed: Vec<_> = runners.iter().filter(|r| r.end.is_none()).collect();
    listed.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let beyond = listed
        .len()
        .saturating_sub(cudarunner_crds::MAX_LISTED_RUNNERS);
    CudaRunnerStatus {
        uid: Some(pool.uid.clone()).filter(|uid| !uid.is_empty()),
        observed_generation: Some(pool.generation),
        replicas: count(&|r| r.is_active(now)),
        pending: count(&phase(&[RunnerPhase::Unscheduled, RunnerPhase::Preparing])),
        gated: count(&phase(&[RunnerPhase::Gated])),
        online: count(&Runner::is_online),
        busy: count(&phase(&[RunnerPhase::Busy])),
        failed: count(&phase(&[RunnerPhase::Failed])),
        gpu: pool
            .spec
            .as_ref()
            .map_or_else(|_| pool.status.gpu.clone(), |spec| spec.gpu.to_string()),
        selector: format!("{}={}", cudarunner_crds::POOL_LABEL, pool.key.name),
        runners: listed
            .iter()
            .take(cudarunner_crds::MAX_LISTED_RUNNERS)
            .map(|r| cudarunner_crds::RunnerStatus {
                name: r.name.clone(),
                node: r.node.clone(),
                devices: r.devices.clone(),
                phase: r.phase.into(),
                waiting: r.waiting.as_ref().map(|waiting| {
                    let mut before = pool.status.runners.iter().filter(|old| old.name == r.name);
                    let before = before.find_map(|old| old.waiting.as_deref());
                    shown::steady(before, waiting.to_string())
                }),
                since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(r.created),
            })
            .collect(),
        tainted_devices: device_taints::of_drivers(observed),
        runners_not_listed: i32::try_from(beyond).unwrap_or(i32::MAX),
        ..pool.status.clone()
    }
}
