//! The pool's scale set: made, listened to, and removed again.

use std::collections::BTreeSet;

use cudarunner_crds::{RunnerPhase, ScaleSetStatus};
use jiff::{SignedDuration, Timestamp};

use super::condition::{ConditionState, condition_state};
use super::queue::Waiting;
use super::{Access, Action, Case, Observed, Plan, left};
use crate::model::github::{NewScaleSet, ScaleSet, Statistics};
use crate::model::pool::{Pool, RegistrationKind, Spec};
use crate::model::runner::Runner;
use crate::model::scale_set::{Known, Listening, ScaleSetFacts, Trouble};
use crate::model::time::Shift as _;
use crate::reason::Reason;
use crate::shares::room::GLANCE;

/// For so long after its end a glance may be offered still.
const LATE: SignedDuration = SignedDuration::from_secs(2);

/// Plans the scale set of a pool that is not being deleted.
pub(super) fn plan(case: Case, plan: &mut Plan) {
    let Case {
        pool,
        spec,
        observed,
        health,
        now,
    } = case;
    let Some(facts) = &observed.scale_set else {
        return;
    };
    if spec.registration != RegistrationKind::ScaleSet {
        retire(pool, spec, observed, now, plan);
        return;
    }
    wait(facts, now, plan);
    let moments = [facts.recount, facts.awaited_until, health.not_before];
    for moment in moments.into_iter().flatten().filter(|at| *at > now) {
        plan.wake_at(moment, now);
    }
    plan.acted_on = facts.listening.as_ref().map(|l| (l.set, l.heard.number));
    let capacity = plan.capacity.map_or(0, |capacity| capacity.jobs);
    let may_write = observed.access == Access::Granted && pool.finalizer;
    match &facts.known {
        Known::Absent if may_write => {
            // It is on record before it is made: it is found by its name then, however it may be registered by then.
            let wanted = wanted(pool, spec);
            let intent = Some(intent(&wanted));
            if left::is_noted(pool, spec, plan) && pool.status.scale_set == intent {
                plan.actions.push(Action::CreateScaleSet(wanted));
            }
            plan.status.scale_set = intent;
            plan.wake_in(SignedDuration::ZERO);
        }
        Known::Present(set) if may_write && is_lost(facts, set, observed) => {
            // Made anew it has no session, and nothing is lost with it.
            plan.actions.push(Action::DeleteUnusedScaleSet(set.id));
            plan.wake_in(SignedDuration::from_secs(1));
        }
        Known::Present(set) if may_write => maintain(case, facts, set, capacity, plan),
        // Nothing can be changed now. What runs, or can, is still told to GitHub: further jobs would wait.
        _ => {
            if let Some(listening) = &facts.listening {
                advertise(listening.set, capacity, None, facts, plan);
            }
        }
    }
    if let Some(statistics) = statistics(facts).filter(|_| may_write) {
        let waiting = statistics.assigned.saturating_sub(statistics.running);
        let queued = i32::try_from(waiting.saturating_add(statistics.available));
        plan.status.queued = queued.unwrap_or(i32::MAX);
        let listening = facts.listening.as_ref();
        plan.queue = Some(Waiting {
            jobs: plan.status.queued,
            oldest: listening.and_then(|listening| listening.heard.oldest),
        });
    }
}

fn statistics(facts: &ScaleSetFacts) -> Option<Statistics> {
    facts.listening.as_ref()?.heard.statistics
}

/// Whether nobody can listen to a scale set for minutes, and it has nothing to do meanwhile.
fn is_lost(facts: &ScaleSetFacts, set: &ScaleSet, observed: &Observed) -> bool {
    let listening = facts.listening.as_ref().filter(|l| l.set == set.id);
    // GitHub may not show yet what the registrar has registered a moment ago.
    let may_be_registered = |r: &Runner| r.end.is_none() && r.reached >= RunnerPhase::Gated;
    listening.is_some_and(|l| l.heard.is_lost) && !observed.runners.iter().any(may_be_registered)
}

/// Has the scale set as it should be, and somebody who listens.
fn maintain(case: Case, facts: &ScaleSetFacts, set: &ScaleSet, capacity: usize, plan: &mut Plan) {
    let Case { pool, spec, .. } = case;
    let listening = facts.listening.as_ref().filter(|l| l.set == set.id);
    let new = wanted(pool, spec);
    let before = pool.status.scale_set.as_ref();
    let before = before.filter(|before| number(before).is_none_or(|id| id == set.id));
    let is_asked = facts.asked.as_ref() == Some(&new);
    let has_group = before.is_none_or(|before| before.runner_group == new.group);
    let is_as_wanted = has_group && has_labels(set, &new.labels);
    if facts.is_unwritten || !is_asked && !is_as_wanted {
        plan.actions
            .push(Action::UpdateScaleSet(set.id, new.clone()));
        plan.wake_in(SignedDuration::ZERO);
    }
    let session = before.and_then(|before| before.session.clone());
    advertise(set.id, capacity, session.clone(), facts, plan);
    let heard = listening.and_then(|listening| listening.heard.session.clone());
    let group = if is_asked || before.is_none() {
        new.group
    } else {
        before.and_then(|before| before.runner_group.clone())
    };
    let was_made = before.filter(|before| number(before).is_some());
    let shown = shown(case, was_made, capacity, plan);
    plan.status.scale_set = Some(ScaleSetStatus {
        id: i64::try_from(set.id).unwrap_or(i64::MAX),
        name: set.name.clone(),
        labels: set.labels.clone(),
        runner_group: group,
        // The last one stays until there is another: it may have to be ended first.
        session: heard.or(session),
        capacity: shown,
    });
}

/// The offer as the status shows it: one runner more when that has lasted longer than a glance. Scale sets without a job have
/// glances all day, and each would be written twice.
fn shown(case: Case, before: Option<&ScaleSetStatus>, offered: usize, plan: &mut Plan) -> i32 {
    let offered = i32::try_from(offered).unwrap_or(i32::MAX);
    let since = case
        .observed
        .share
        .as_ref()
        .and_then(|share| share.room.since);
    let lasts = since.map(|since| since.after(GLANCE).after(LATE));
    match (before, lasts) {
        (Some(before), Some(lasts))
            if case.now < lasts && offered == before.capacity.saturating_add(1) =>
        {
            plan.wake_at(lasts, case.now);
            before.capacity
        }
        _ => offered,
    }
}

/// Has somebody listen, and GitHub assign so many jobs at a time.
fn advertise(
    set: u64,
    capacity: usize,
    session: Option<String>,
    facts: &ScaleSetFacts,
    plan: &mut Plan,
) {
    let is_told = |l: &Listening| l.set == set && l.capacity == capacity;
    if !facts.listening.as_ref().is_some_and(is_told) {
        plan.actions.push(Action::Listen {
            set,
            capacity,
            session,
        });
    }
}

/// Nobody listens any more, where anybody does: no further job is assigned.
pub(super) fn stop_listening(observed: &Observed, plan: &mut Plan) {
    let facts = observed.scale_set.as_ref();
    if facts.is_some_and(|facts| facts.listening.is_some()) {
        plan.actions.push(Action::StopListening);
    }
}

/// GitHub's number for a scale set on record; `None` for one that may have been made or not.
#[must_use]
pub fn number(set: &ScaleSetStatus) -> Option<u64> {
    u64::try_from(set.id).ok().filter(|id| *id > 0)
}

/// What is on record of a scale set before it is made.
fn intent(wanted: &NewScaleSet) -> ScaleSetStatus {
    ScaleSetStatus {
        name: wanted.name.clone(),
        runner_group: wanted.group.clone(),
        ..ScaleSetStatus::default()
    }
}

fn wanted(pool: &Pool, spec: &Spec) -> NewScaleSet {
    NewScaleSet {
        name: pool.scale_set_name(),
        group: spec.runner_group.clone(),
        labels: spec.labels.clone(),
    }
}

/// Whether a scale set has these labels and no others; its own name may be one.
fn has_labels(set: &ScaleSet, wanted: &[String]) -> bool {
    let lower = |label: &String| label.to_lowercase();
    let mut has: BTreeSet<String> = set.labels.iter().map(lower).collect();
    let wanted: BTreeSet<String> = wanted.iter().map(lower).collect();
    if !wanted.contains(&lower(&set.name)) {
        has.remove(&lower(&set.name));
    }
    has == wanted
}

/// The pool registers in another way now: its scale set goes once its runners have.
fn retire(pool: &Pool, spec: &Spec, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    stop_listening(observed, plan);
    let mut runners = observed.runners.iter();
    if runners.all(|r| r.end.is_some() || r.template == spec.template_hash) {
        remove(pool, observed, now, plan);
    }
}

/// Looks again when a failed attempt may be repeated.
fn wait(facts: &ScaleSetFacts, now: Timestamp, plan: &mut Plan) {
    if let Some(at) = facts.not_before.filter(|at| *at > now) {
        plan.wake_at(at, now);
    }
}

/// Removes the scale set; true when there is none.
pub(super) fn remove(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) -> bool {
    let Some(facts) = &observed.scale_set else {
        return pool.status.scale_set.is_none();
    };
    wait(facts, now, plan);
    match &facts.known {
        Known::Present(set) => {
            plan.actions.push(Action::DeleteScaleSet(set.id));
            plan.wake_in(SignedDuration::ZERO);
            false
        }
        // Without credentials none was made, unless the status names one.
        Known::Unknown => {
            let is_refused = matches!(
                observed.access,
                Access::Refused {
                    transient: false,
                    ..
                }
            );
            is_refused && pool.status.scale_set.is_none() && !facts.is_unwritten
        }
        Known::Absent => {
            plan.status.scale_set = None;
            true
        }
    }
}

/// What the scale set says of the queue; `None` where that is not known better than by reading the queue.
pub(super) fn served(pool: &Pool, spec: &Spec, observed: &Observed) -> Option<ConditionState> {
    let facts = observed.scale_set.as_ref()?;
    if spec.registration != RegistrationKind::ScaleSet {
        return None;
    }
    if let Some(trouble) = trouble(facts) {
        return Some(condition_state(
            "False",
            trouble.reason,
            trouble.message.clone(),
        ));
    }
    let Known::Present(set) = &facts.known else {
        return Some(condition_state(
            "Unknown",
            Reason::ScaleSetMissing,
            "The pool's scale set is not there yet",
        ));
    };
    if !has_labels(set, &spec.labels) {
        return Some(condition_state(
            "False",
            Reason::LabelsNotHonoured,
            other_labels(spec, set),
        ));
    }
    if statistics(facts).is_none() {
        return Some(condition_state(
            "Unknown",
            Reason::NotListening,
            "Nobody listens for the scale set's jobs yet",
        ));
    }
    // Of a repository the queue itself tells more: jobs that lack a runner with their labels.
    (!spec.url.is_repository() || pool.deleting.is_some()).then(|| {
        condition_state(
            "True",
            Reason::Listening,
            "Jobs that ask for these labels are assigned to the pool's scale set",
        )
    })
}

/// What a server has made of the labels, and what to do.
fn other_labels(spec: &Spec, set: &ScaleSet) -> String {
    let advice = if set.labels == [set.name.clone()] {
        format!(
            "Write runs-on: {} in the workflows, or set spec.registration to JitConfig; an Enterprise Server needs version 3.18, with its administrator's leave for further labels before 3.21",
            set.name
        )
    } else {
        "This server gives a scale set its labels when it is made: delete the pool, and apply it again".to_owned()
    };
    format!(
        "The scale set {} has the labels [{}] on GitHub, and not [{}]: jobs come that ask for the former. {advice}",
        set.name,
        set.labels.join(", "),
        spec.labels.join(", "),
    )
}

/// What keeps the pool from hearing of its jobs.
pub(super) fn trouble(facts: &ScaleSetFacts) -> Option<&Trouble> {
    let heard = facts.listening.as_ref().map(|listening| &listening.heard);
    facts
        .trouble
        .as_ref()
        .or_else(|| heard.and_then(|heard| heard.trouble.as_ref()))
}

#[cfg(test)]
mod tests;
