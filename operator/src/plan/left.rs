//! What a pool has left at addresses that its spec does not name any more: its runners there, and its scale set.
//!
//! It is in the status until it is gone, and what is asked about it is asked where it was made.

use cudarunner_crds::LeftStatus;
use jiff::{SignedDuration, Timestamp};

use super::{Action, Entry, Listing, Notice, Observed, Plan};
use crate::pool::Pool;
use crate::time::Shift as _;

/// How soon such an address is asked again while nothing happens there.
pub const AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// The same once its runners have gone: only a list that was read afterwards shows that their entries have.
pub const SOON: SignedDuration = SignedDuration::from_secs(2);
/// Addresses that are remembered at most. Beyond them the oldest is given up, and an Event says so.
const MOST: usize = 10;

/// What was seen at an address that the pool has left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Left {
    /// The pool's entries there, as last read.
    pub listing: Option<Listing>,
    /// Whether the scale set is gone there.
    pub set_is_gone: bool,
    /// Why it could not be asked.
    pub trouble: Option<String>,
    /// When it may be asked again.
    pub ask_again: Option<Timestamp>,
}

/// Moves what was made at another address than the spec's into the list of what is left.
pub(super) fn note(pool: &Pool, plan: &mut Plan) {
    let Ok(spec) = &pool.spec else {
        return;
    };
    let (status, url) = (&mut plan.status, spec.url.to_string());
    // Back where it was before: what is there is the pool's again.
    if let Some(index) = status.left_at.iter().position(|left| left.url == url) {
        let back = status.left_at.remove(index);
        status.scale_set = status.scale_set.take().or(back.scale_set);
    }
    let Some(before) = pool.status.registered_at.clone().filter(|at| *at != url) else {
        return;
    };
    status.left_at.insert(
        0,
        LeftStatus {
            url: before,
            scale_set: pool.status.scale_set.clone(),
            message: None,
        },
    );
    status.registered_at = Some(url);
    status.scale_set = None;
    for forgotten in status.left_at.drain(MOST.min(status.left_at.len())..) {
        plan.notices.push(abandoned(
            pool,
            &forgotten,
            "The address has changed too often",
        ));
    }
    plan.wake_in(SignedDuration::ZERO);
}

/// Removes what is left, address by address; one that holds nothing more is forgotten.
pub(super) fn plan(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let mut left_at = std::mem::take(&mut plan.status.left_at);
    left_at.retain_mut(|left| {
        let seen = observed.left.get(&left.url);
        left.message = seen.and_then(|seen| seen.trouble.clone());
        let runners = observed.runners.iter();
        let mut here = runners.filter(|r| r.url.as_ref() == Some(&left.url));
        let has_pods = here.any(|r| r.gone_by.is_none_or(|by| now < by));
        let ask_again = seen.and_then(|seen| seen.ask_again);
        let soon = now.after(SOON);
        let wake = if has_pods { ask_again } else { Some(soon) };
        plan.wake_at(wake.unwrap_or(soon), now);
        // The set goes last: jobs that run are of it.
        let has_set = match &left.scale_set {
            Some(set) if !seen.is_some_and(|seen| seen.set_is_gone) => {
                if let Some(id) = u64::try_from(set.id).ok().filter(|_| !has_pods) {
                    plan.actions
                        .push(Action::DeleteScaleSetAt(left.url.clone(), id));
                }
                true
            }
            _ => false,
        };
        let entries = remove_entries(&left.url, observed, plan);
        has_pods || has_set || entries != Some(0)
    });
    plan.status.left_at = left_at;
}

/// Removes entries that have no pod; how many there were, where that was read after the last change.
fn remove_entries(url: &str, observed: &Observed, plan: &mut Plan) -> Option<usize> {
    let listing = observed.left.get(url)?.listing.as_ref()?;
    let has_pod = |entry: &&Entry| observed.runners.iter().any(|r| r.name == entry.name);
    let idle = listing.entries.iter().filter(|entry| !entry.busy);
    for entry in idle.filter(|entry| !has_pod(entry)) {
        let action = Action::DeleteEntryAt(url.to_owned(), entry.clone());
        plan.actions.push(action);
    }
    let is_fresh = observed
        .last_change
        .is_none_or(|change| listing.at > change);
    is_fresh.then_some(listing.entries.len())
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
        reason: "TeardownIncomplete".to_owned(),
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
