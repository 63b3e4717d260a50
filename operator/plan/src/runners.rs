//! How many runners there are: create, replace, scale down, roll, sweep.

use std::collections::BTreeSet;

use cudarunner_crds::{MAX_LAST_FAILURES, RunnerPhase};
use jiff::{SignedDuration, Timestamp};

use super::health::{self, Health};
use super::{
    About, Access, Action, Case, NewRunner, Notice, Observed, Plan, Target, demand, left, retest,
    schedule, stable,
};
use crate::model::claim::Retest;
use crate::model::hung::Contradiction;
use crate::model::pool::{Pool, Spec};
use crate::model::runner::{End, Failure, Runner};
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// How often GitHub's list is compared with the pods.
pub const SWEEP: SignedDuration = SignedDuration::from_mins(5);
/// After this time an idle runner must be in GitHub's list.
const LISTED_AFTER: SignedDuration = SignedDuration::from_mins(2);
/// How long a pod has to be over after the container that ended it: the kubelet says so some seconds later.
const OVER_WITHIN: SignedDuration = SignedDuration::from_secs(30);
/// How soon a busy leftover on GitHub is looked at again.
const BUSY_LEFTOVER: SignedDuration = SignedDuration::from_secs(60);

/// Plans the runners of a pool that is not being deleted.
pub(super) fn plan(case: Case, plan: &mut Plan) {
    let Case {
        pool,
        spec,
        observed,
        health,
        now,
    } = case;
    clear_ended(case, plan);
    stop_overdue(observed, health, plan);
    replace_outdated(case, plan);
    let removed: BTreeSet<String> = removed_names(plan);
    let is_finishing = |r: &Runner| is_finishing(observed, &r.name);
    let active: Vec<&Runner> = observed
        .runners
        .iter()
        .filter(|r| r.is_active(now) && !removed.contains(&r.name) && !is_finishing(r))
        .collect();
    let (unseen, unseen_ending) = unseen(observed);
    let have = active.len().saturating_add(unseen);
    // Those that are about to end hold their GPUs all the same, and so do those that are removed at this reconcile.
    let is_leaving = |r: &Runner| is_finishing(r) || removed.contains(&r.name);
    let ending = observed.runners.iter();
    let ending = ending
        .filter(|r| r.is_ending(now) || r.is_active(now) && is_leaving(r))
        .count()
        .saturating_add(unseen_ending);
    let room = spec.size.max.saturating_sub(have).saturating_sub(ending);
    let desired = demand::desired(case, have);
    plan.desired = desired;
    if let Some(moment) = schedule::next_change(&spec.schedule, now) {
        plan.wake_at(moment, now);
    }
    plan.claim = demand::claim(case, desired);
    if spec.persistent && stable::retire(pool, desired, &active, have, plan) {
        // Their places are filled when they are gone.
    } else if have > desired {
        if !spec.persistent {
            scale_down(&active, spec, have.saturating_sub(desired), plan);
        }
    } else {
        let admitted = admitted(case, desired);
        let missing = admitted.saturating_sub(have).min(room);
        if have == desired
            && let Some(waiting) = retest::gives_way(case, &active)
        {
            plan.actions.push(Action::Drain(waiting.into()));
        }
        create(case, missing, plan);
        yield_places(case, &active, have.saturating_sub(admitted), plan);
        roll(&active, spec, plan);
    }
    if observed.access == Access::Granted {
        sweep(spec, observed, now, plan);
    }
    for runner in active {
        wake_for(runner, spec, now, plan);
    }
    wake_for_silent(observed, now, plan);
}

/// When a pod counts as lost whose node does not say how it ended. A moment that is over has had its effect.
fn wake_for_silent(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let silent = observed.runners.iter().filter(|r| r.end.is_none());
    for moment in silent.filter_map(|r| observed.lost_by(r)) {
        if moment > now {
            plan.wake_at(moment, now);
        }
    }
}

/// When time alone changes what is done with a runner.
fn wake_for(runner: &Runner, spec: &Spec, now: Timestamp, plan: &mut Plan) {
    if let Some(at) = health::deadline(runner, spec) {
        plan.wake_at(at, now);
    }
    if runner.phase == RunnerPhase::Terminating
        && let Some(by) = runner.gone_by
    {
        plan.wake_at(by, now);
    }
}

/// How many runners may be there, as the GPUs are shared with other pools.
fn admitted(case: Case, desired: usize) -> usize {
    let Some(share) = &case.observed.share else {
        return desired;
    };
    let runners = case.observed.runners.iter();
    let placed = runners.filter(|r| {
        r.is_active(case.now) && r.node.is_some() && !is_finishing(case.observed, &r.name)
    });
    share.admits(desired, placed.count())
}

/// Pods that wait for a GPU while it is another pool's turn go. Those that wait for something else are in nobody's way.
fn yield_places(case: Case, active: &[&Runner], surplus: usize, plan: &mut Plan) {
    if case.spec.persistent || demand::is_barred(case.spec, case.observed, case.now) {
        return;
    }
    let mut waiting: Vec<&&Runner> = active
        .iter()
        .filter(|r| r.phase == RunnerPhase::Unscheduled)
        .collect();
    waiting.sort_by_key(|r| (std::cmp::Reverse(r.created), r.name.clone()));
    let surplus = waiting.into_iter().take(surplus);
    plan.actions
        .extend(surplus.map(|r| Action::Drain((*r).into())));
}

/// Created pods that the watch does not show yet: those that count, or a stale store would make one too many; and those
/// whose job has ended, as GitHub tells, which hold their GPUs for a moment yet.
fn unseen(observed: &Observed) -> (usize, usize) {
    let shown: BTreeSet<&str> = observed.runners.iter().map(|r| r.name.as_str()).collect();
    let unseen = observed.expected.iter();
    let unseen = unseen.filter(|name| !shown.contains(name.as_str()));
    let (ending, active): (Vec<&String>, Vec<&String>) =
        unseen.partition(|name| is_finishing(observed, name));
    (active.len(), ending.len())
}

/// Whether GitHub tells that a runner's job has ended, while its pod is still there.
fn is_finishing(observed: &Observed, name: &str) -> bool {
    let facts = observed.scale_set.as_ref();
    facts.is_some_and(|facts| facts.finishing.contains(name))
}

/// Pods that have ended go. Of those that failed a few are kept for a look: those that never registered, and the one that
/// stalls the pool because its agent hardly starts.
fn clear_ended(case: Case, plan: &mut Plan) {
    let Case {
        spec,
        observed,
        health,
        now,
        ..
    } = case;
    let stalls = health.stalled().filter(|f| health::hardly_started(f));
    let mut kept: Vec<(&Runner, &Failure)> = vec![];
    for runner in &observed.runners {
        match (&runner.end, runner.phase) {
            (_, RunnerPhase::Terminating) | (None, _) => {}
            // The address that it was left at remembers its entry, which is asked for there when that can be.
            (Some(_), _) if runner.is_elsewhere(spec) => {
                plan.actions.push(Action::DeletePod(runner.into()));
            }
            (Some(End::JobDone(_)), _) => plan.actions.push(Action::DeletePod(runner.into())),
            (Some(End::Failed(failure)), _)
                if !failure.registered || stalls.is_some_and(|f| f.runner == runner.name) =>
            {
                kept.push((runner, failure));
            }
            // Without a finished job GitHub does not remove the entry by itself. Nobody learns more from such a pod.
            (Some(End::Failed(_)), _) => plan.actions.push(Action::Drain(runner.into())),
        }
    }
    // A persistent runner's successor has the same name.
    // Another container may keep it, and its GPUs, for ever.
    let is_over_by = |r: &Runner| r.since.after(OVER_WITHIN);
    let may_stay = |r: &Runner| !spec.persistent && (r.is_over || now < is_over_by(r));
    kept.sort_by_key(|(r, _)| (!may_stay(r), std::cmp::Reverse(r.since)));
    let room = spec.size.max.min(MAX_LAST_FAILURES);
    for (place, (runner, failure)) in kept.into_iter().enumerate() {
        if place < room && may_stay(runner) {
            if !runner.is_over {
                plan.wake_at(is_over_by(runner), now);
            }
            if failure.registered {
                plan.actions.push(Action::DeleteEntryOf(runner.into()));
            }
        } else {
            plan.actions.push(Action::Drain(runner.into()));
        }
    }
}

/// Runners that have overrun a deadline are taken out. GitHub would keep the entry of one that it calls busy, and so its pod
/// and its GPUs, for as long as the agent hangs.
fn stop_overdue(observed: &Observed, health: &Health, plan: &mut Plan) {
    let overdue = observed.runners.iter();
    let overdue = overdue.filter(|runner| health.overdue.contains(&runner.name));
    plan.actions.extend(overdue.map(|runner| {
        let doubt = runner.doubt.map(|doubt| doubt.about);
        match doubt {
            Some(Contradiction::JobNotBegun) => Action::EndUnstarted(runner.into()),
            _ => Action::Drain(runner.into()),
        }
    }));
}

/// Pods that wait for a node with an old idea of which nodes are well are made anew.
fn replace_outdated(case: Case, plan: &mut Plan) {
    let Case {
        observed,
        health,
        now,
        ..
    } = case;
    let removed = removed_names(plan);
    let waiting = observed
        .runners
        .iter()
        .filter(|r| !removed.contains(&r.name));
    let outdated = waiting.filter(|r| health.quarantine.is_outdated(r, &observed.runners, now));
    plan.actions
        .extend(outdated.map(|r| Action::Drain(r.into())));
}

fn removed_names(plan: &Plan) -> BTreeSet<String> {
    let removed = plan.actions.iter().filter_map(Action::removes);
    removed.map(|pod| pod.name.clone()).collect()
}

/// Takes out `surplus` runners: old ones and those that are furthest from a job first, busy ones never.
fn scale_down(active: &[&Runner], spec: &Spec, surplus: usize, plan: &mut Plan) {
    let mut candidates: Vec<&&Runner> = active
        .iter()
        .filter(|r| !matches!(r.phase, RunnerPhase::Busy | RunnerPhase::Terminating))
        .collect();
    candidates.sort_by_key(|r| {
        (
            r.is_current(spec),
            r.phase,
            std::cmp::Reverse(r.created),
            r.name.clone(),
        )
    });
    // Those on their way out already are part of the surplus.
    let leaving = active
        .iter()
        .filter(|r| r.phase == RunnerPhase::Terminating)
        .count();
    let take = surplus.saturating_sub(leaving);
    plan.actions.extend(
        candidates
            .into_iter()
            .take(take)
            .map(|r| Action::Drain((*r).into())),
    );
}

/// Creates what is missing, unless GitHub would not have it or the last failure asks for a pause.
fn create(case: Case, missing: usize, plan: &mut Plan) {
    let Case {
        pool,
        spec,
        observed,
        health,
        now,
    } = case;
    if missing == 0 || observed.access != Access::Granted {
        return;
    }
    if let Some(moment) = health.not_before.filter(|moment| *moment > now) {
        plan.wake_at(moment, now);
        return;
    }
    if !left::is_noted(pool, spec, plan) || !pool.finalizer {
        return;
    }
    let mut missing = missing;
    if health.quarantine.breaker.is_some() {
        let on_its_way = observed.runners.iter().any(|r| {
            matches!(
                r.phase,
                RunnerPhase::Unscheduled | RunnerPhase::Preparing | RunnerPhase::Gated
            )
        });
        missing = usize::from(!on_its_way && observed.expected.is_empty());
    }
    let names = if spec.persistent {
        stable::free_names(pool, plan.desired, observed, missing)
    } else {
        random_names(pool, observed, missing)
    };
    let kept = observed.share.iter().flat_map(|share| &share.kept);
    let shuns: BTreeSet<String> = health.suspects.iter().chain(kept).cloned().collect();
    let new = |name, avoids, retest| {
        Action::CreatePod(NewRunner {
            name,
            avoids,
            shuns: shuns.clone(),
            retest,
        })
    };
    let mut names = names.into_iter();
    if let Some(retest) = health.quarantine.retest()
        && let Some(name) = names.next()
    {
        plan.notices.push(tells_of(&name, retest));
        let avoids = health.quarantine.avoided_by_retests();
        plan.actions.push(new(name, avoids, Some(retest.clone())));
    }
    let avoided = health.quarantine.avoided_by_new(&observed.runners);
    let others = names.zip(avoided);
    plan.actions
        .extend(others.map(|(name, avoids)| new(name, avoids, None)));
}

fn tells_of(name: &str, retest: &Retest) -> Notice {
    Notice {
        warning: false,
        reason: Reason::DeviceRetest.into(),
        note: format!(
            "{} of {} was tainted for long enough, and {name} tries it: the taint stays until the gate has passed there",
            retest.uuid, retest.node
        ),
        about: Some(About::Runner(name.to_owned())),
    }
}

/// So many names that no pod has; first those of pods that may still come.
fn random_names(pool: &Pool, observed: &Observed, missing: usize) -> Vec<String> {
    let mut taken: BTreeSet<String> = observed.runners.iter().map(|r| r.name.clone()).collect();
    taken.extend(observed.expected.iter().cloned());
    taken.extend(observed.unanswered.iter().cloned());
    let again: Vec<String> = observed.unanswered.iter().take(missing).cloned().collect();
    let mut seed = observed.seed;
    let mut name = || loop {
        let name = format!("{}-{}", pool.key.name, suffix(&mut seed));
        if taken.insert(name.clone()) {
            return name;
        }
    };
    let fresh = missing.saturating_sub(again.len());
    let fresh: Vec<String> = (0..fresh).map(|_| name()).collect();
    [again, fresh].concat()
}

/// Five characters of `[a-z0-9]`; advances the seed (splitmix64).
pub(super) fn suffix(seed: &mut u64) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut bits = *seed;
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (0..5)
        .map(|_| {
            let index = usize::try_from(bits % 36).unwrap_or_default();
            bits /= 36;
            char::from(ALPHABET[index])
        })
        .collect()
}

/// Replaces runners of an older template, or whose registrar is another operator's, a few at a time and only while the new ones come up: intake never stops.
fn roll(active: &[&Runner], spec: &Spec, plan: &mut Plan) {
    let is_new = |r: &&&Runner| r.is_current(spec);
    let at_once = (plan.desired / 4).max(1);
    let coming = active
        .iter()
        .filter(is_new)
        .filter(|r| !r.is_online())
        .count();
    let leaving = active
        .iter()
        .filter(|r| r.phase == RunnerPhase::Terminating)
        .count();
    let mut old: Vec<&&Runner> = active
        .iter()
        .filter(|r| !is_new(r))
        .filter(|r| !matches!(r.phase, RunnerPhase::Busy | RunnerPhase::Terminating))
        .collect();
    old.sort_by_key(|r| (r.phase, r.created));
    // What never came online serves nobody: it goes at once.
    let (useless, serving): (Vec<&&Runner>, Vec<&&Runner>) =
        old.into_iter().partition(|r| !r.is_online());
    plan.actions
        .extend(useless.into_iter().map(|r| Action::Drain((*r).into())));
    let room = at_once.saturating_sub(coming).saturating_sub(leaving);
    plan.actions.extend(
        serving
            .into_iter()
            .take(room)
            .map(|r| Action::Drain((*r).into())),
    );
}

/// Compares GitHub's list with the pods.
fn sweep(spec: &Spec, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let Some(listing) = &observed.listing else {
        plan.refresh = true;
        return;
    };
    if now >= listing.at.after(SWEEP) {
        plan.refresh = true;
    } else {
        plan.wake_at(listing.at.after(SWEEP), now);
    }
    for entry in &listing.entries {
        let has_pod = observed.runners.iter().any(|r| r.name == entry.name)
            || observed.expected.contains(&entry.name);
        if has_pod {
            continue;
        }
        if entry.busy {
            if now >= listing.at.after(BUSY_LEFTOVER) {
                plan.refresh = true;
            } else {
                plan.wake_at(listing.at.after(BUSY_LEFTOVER), now);
            }
        } else {
            plan.actions.push(Action::DeleteEntry(entry.clone()));
        }
    }
    for runner in &observed.runners {
        // One of another address is in that one's list.
        let unlisted = runner.phase == RunnerPhase::Idle
            && !runner.is_elsewhere(spec)
            && runner.since.after(LISTED_AFTER) < listing.at
            && !listing.entries.iter().any(|e| e.name == runner.name);
        if unlisted {
            // A list lags: only a look at the entry itself is proof.
            let target: Target = runner.into();
            plan.actions.push(Action::ReplaceUnregistered(target));
        }
    }
}
