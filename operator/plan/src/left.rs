//! What a pool has left at addresses that its spec does not name any more: its runners there, and its scale set.
//!
//! It is in the status until it is gone, and what is asked about it is asked where it was made.

use std::collections::BTreeSet;

use cudarunner_crds::{LeftStatus, ScaleSetStatus};
use jiff::{SignedDuration, Timestamp};

use super::{Access, Action, Entry, Notice, Observed, Plan};
use crate::model::left::Left;
use crate::model::pool::{Pool, Spec};
use crate::model::runner::Runner;
use crate::model::scale_set::Known;
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// How soon such an address is asked again while nothing happens there.
pub const AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// The same once its runners have gone: only a list that was read afterwards shows that their entries have.
pub const SOON: SignedDuration = SignedDuration::from_secs(2);
/// Addresses without pods that are remembered at most. Beyond them the oldest is given up, and an Event says so. One that a
/// pod registers at is never given up: its runner could only be asked for at a wrong address.
const MOST: usize = 10;
/// So often in a row GitHub says that an address does not exist before that is believed.
const TIMES: u32 = 3;
/// And for so long, where nothing waits for it: an organization that is being renamed, or credentials that are being changed,
/// are back by then.
const GONE_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// Moves what was made at another address than the spec's into the list of what is left.
pub(super) fn note(pool: &Pool, observed: &Observed, plan: &mut Plan) {
    let Ok(spec) = &pool.spec else {
        return;
    };
    let (status, url) = (&mut plan.status, spec.url.to_string());
    // Back where it was before: what is there is the pool's again.
    let mut back = None;
    if let Some(index) = status.left_at.iter().position(|left| left.url == url) {
        back = status.left_at.remove(index).scale_set;
    }
    let Some(before) = &pool.status.registered_at else {
        // Pods are here, whatever has become of the word that they are.
        let is_here = |r: &Runner| !r.is_elsewhere(spec);
        status.registered_at = observed.runners.iter().any(is_here).then_some(url);
        return;
    };
    if *before == url {
        return;
    }
    status.left_at.insert(
        0,
        LeftStatus {
            url: before.clone(),
            scale_set: pool.status.scale_set.clone(),
            message: None,
        },
    );
    status.registered_at = Some(url);
    status.scale_set = back;
    let may_come = may_come(observed);
    let has_pods = |left: &LeftStatus| {
        let mut runners = observed.runners.iter();
        may_come || runners.any(|r| r.url.as_ref() == Some(&left.url))
    };
    let mut without = 0_usize;
    let beyond = status.left_at.extract_if(.., |left| {
        if !has_pods(left) {
            without = without.saturating_add(1);
        }
        without > MOST && !has_pods(left)
    });
    for forgotten in beyond {
        let why = "The address has changed too often";
        plan.notices.push(abandoned(pool, &forgotten, why));
    }
    plan.wake_in(SignedDuration::ZERO);
}

/// Whether the status has the pool's address, so that something may be made there: it is asked for where it was made, whatever
/// happens in between. Where it has not, it gets it.
pub(super) fn is_noted(pool: &Pool, spec: &Spec, plan: &mut Plan) -> bool {
    let here = Some(spec.url.to_string());
    if pool.status.registered_at == here {
        return true;
    }
    plan.status.registered_at = here;
    // A finalizer that is being set wakes by itself.
    if pool.finalizer {
        plan.wake_in(SignedDuration::ZERO);
    }
    false
}

/// Whether there may be a pod that the watch does not show yet. It may be of any address.
fn may_come(observed: &Observed) -> bool {
    let mut names = observed.expected.iter().chain(&observed.unanswered);
    names.any(|name| observed.runners.iter().all(|r| r.name != *name))
}

/// Removes what is left, address by address; one that holds nothing more is forgotten, and one that is gone itself is given up.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let mut left_at = std::mem::take(&mut plan.status.left_at);
    let now_has = plan.status.scale_set.clone();
    let may_come = may_come(observed);
    left_at.retain_mut(|left| {
        let seen = observed.left.get(&left.url);
        left.message = seen.and_then(trouble);
        let runners = observed.runners.iter();
        // A pod that does not say where it registers was made before they did.
        let is_here = |url: &String| *url == left.url;
        let mut here = runners.filter(|r| r.url.as_ref().is_none_or(is_here));
        let has_pods = may_come || here.any(|r| r.gone_by.is_none_or(|by| now < by));
        if !has_pods && seen.is_some_and(|seen| is_gone(pool, observed, seen, now)) {
            let why = "The address is gone, or out of the credentials' reach";
            plan.notices.push(abandoned(pool, left, why));
            return false;
        }
        let ask_again = seen.and_then(|seen| seen.ask_again);
        let soon = now.after(SOON);
        let waits = has_pods || left.message.is_some();
        let wake = if waits { ask_again } else { Some(soon) };
        plan.wake_at(wake.unwrap_or(soon), now);
        // The set goes last: jobs that run are of it.
        let may_ask = !has_pods && seen.is_some_and(|seen| seen.listing.is_some());
        let set = seen.and_then(|seen| seen.set);
        // A renamed repository leads to the same set by both addresses.
        let set = set.filter(|id| !is_the_pools(*id, observed, now_has.as_ref()));
        if let Some(id) = set.filter(|_| may_ask) {
            plan.actions
                .push(Action::DeleteScaleSetAt(left.url.clone(), id));
        }
        let has_set = set.is_some();
        let entries = remove_entries(&left.url, observed, plan);
        has_pods || has_set || entries != Some(0)
    });
    plan.status.left_at = left_at;
}

/// Whether an address has been missing for so long that nothing can be removed there any more.
fn is_gone(pool: &Pool, observed: &Observed, seen: &Left, now: Timestamp) -> bool {
    let missing = seen.missing.filter(|missing| missing.times >= TIMES);
    // A deletion has little time, and waits for nothing else.
    let is_over = |since: Timestamp| pool.deleting.is_some() || now >= since.after(GONE_AFTER);
    observed.access == Access::Granted && missing.is_some_and(|missing| is_over(missing.since))
}

/// Why it is not known what is left there.
fn trouble(seen: &Left) -> Option<String> {
    let is_part = seen.listing.as_ref().is_some_and(|list| !list.is_whole);
    let part = || "not all of the runners there can be listed".to_owned();
    seen.trouble.clone().or_else(|| is_part.then(part))
}

/// Removes entries that have no pod; how many there were, where all were read after the last change.
fn remove_entries(url: &str, observed: &Observed, plan: &mut Plan) -> Option<usize> {
    let listing = observed.left.get(url)?.listing.as_ref()?;
    let has_pod = |entry: &Entry| {
        let mut pods = observed.runners.iter().filter(|r| r.name == entry.name);
        pods.any(|r| r.url.as_ref().is_none_or(|at| at == url))
    };
    // A renamed repository shows the same entries by both addresses.
    let now_has = observed.listing.iter().flat_map(|listing| &listing.entries);
    let now_has: BTreeSet<u64> = now_has.map(|entry| entry.id).collect();
    let entries = listing.entries.iter();
    let entries: Vec<&Entry> = entries
        .filter(|entry| !now_has.contains(&entry.id))
        .collect();
    for entry in entries.iter().filter(|e| !e.busy && !has_pod(e)) {
        let action = Action::DeleteEntryAt(url.to_owned(), (*entry).clone());
        plan.actions.push(action);
    }
    let is_fresh = observed
        .last_change
        .is_none_or(|change| listing.at > change);
    (is_fresh && listing.is_whole).then_some(entries.len())
}

/// Whether a set that was left is the one that the pool has now.
fn is_the_pools(id: u64, observed: &Observed, now_has: Option<&ScaleSetStatus>) -> bool {
    let known = observed.scale_set.as_ref().map(|facts| &facts.known);
    let is_known = matches!(known, Some(Known::Present(there)) if there.id == id);
    is_known || now_has.is_some_and(|now| u64::try_from(now.id) == Ok(id))
}

/// Says what may be left at an address that is not asked any more.
pub(super) fn abandoned(pool: &Pool, left: &LeftStatus, why: &str) -> Notice {
    let set = left.scale_set.as_ref();
    let set = set.map_or_else(String::new, |set| {
        format!("the scale set {} and ", set.name)
    });
    let trouble = left.message.as_ref();
    let trouble = trouble.map_or_else(String::new, |text| {
        format!(" It could not be asked: {text}")
    });
    Notice {
        warning: true,
        reason: Reason::TeardownIncomplete.into(),
        note: format!(
            "{why}: {set}runners with the label {} may be left at {}, where the pool was before; remove them on its runners page.{trouble}",
            pool.ownership_label(),
            left.url
        ),
        about: None,
    }
}

#[cfg(test)]
mod tests;
