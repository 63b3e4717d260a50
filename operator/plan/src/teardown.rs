//! The end of a pool: everything that it made goes, and nothing else.

use cudarunner_crds::{DeletionPolicy, RunnerPhase};
use jiff::{SignedDuration, Timestamp};

use super::{
    Access, Action, Notice, Observed, Plan, checks, jobs, left, scale_set, verify, webhook,
};
use crate::model::pool::Pool;
use crate::model::runner::{End, Runner};
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// How soon GitHub is asked again while entries are left.
const AGAIN: SignedDuration = SignedDuration::from_secs(5);

/// Plans a pool that has been in deletion since `since`.
pub(super) fn plan(
    pool: &Pool,
    observed: &Observed,
    since: Timestamp,
    now: Timestamp,
    plan: &mut Plan,
) {
    if !pool.finalizer {
        return;
    }
    jobs::plan(pool, observed, now, plan);
    verify::give_up(pool, observed, plan);
    let limit = since.after(pool.teardown_timeout);
    if now >= limit {
        give_up(pool, observed, plan);
        return;
    }
    plan.wake_at(limit, now);
    checks::plan(pool, observed, now, plan);
    // Jobs that are assigned and do not run yet are given to others when the scale set goes.
    scale_set::stop_listening(observed, plan);
    remove_runners(pool, observed, plan);
    // Pods on a lost node are never confirmed gone: past their grace they do not hold the rest up.
    let left = observed
        .runners
        .iter()
        .any(|r| r.gone_by.is_none_or(|by| now < by));
    if left || !observed.expected.is_empty() {
        return;
    }
    if plan.status.registered_at.is_none() {
        let_go(pool, observed, now, plan);
        return;
    }
    clear_entries(pool, observed, now, plan);
}

/// Takes out the runners, busy ones as the policy says.
fn remove_runners(pool: &Pool, observed: &Observed, plan: &mut Plan) {
    // Such an address remembers the entry, which is asked for there when that can be.
    let is_elsewhere = |r: &Runner| pool.spec.as_ref().is_ok_and(|spec| r.is_elsewhere(spec));
    for runner in &observed.runners {
        let action = match (runner.phase, &runner.end) {
            (RunnerPhase::Terminating, _) => continue,
            (_, Some(End::JobDone(_))) => Action::DeletePod(runner.into()),
            (_, Some(End::Failed(_))) if is_elsewhere(runner) => Action::DeletePod(runner.into()),
            (RunnerPhase::Busy, None) => match pool.deletion_policy {
                DeletionPolicy::WaitForJobs => continue,
                DeletionPolicy::Now => Action::Evict(runner.into()),
            },
            _ => Action::Drain(runner.into()),
        };
        plan.actions.push(action);
    }
}

/// With the pods gone, only a list that was read afterwards proves that GitHub holds nothing of ours.
fn clear_entries(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if observed.access != Access::Granted && observed.access != Access::Unchecked {
        // Observing retries with its own pause, and at once when credentials are there again; the limit ends it.
        plan.refresh = observed.ask_again.is_some();
        plan.wake_in(AGAIN);
        return;
    }
    if let Some(arrives) = observed.last_change.filter(|change| *change > now) {
        plan.wake_at(arrives, now);
        return;
    }
    let fresh = observed
        .listing
        .as_ref()
        .filter(|l| observed.last_change.is_none_or(|change| l.at > change));
    let Some(listing) = fresh else {
        plan.refresh = true;
        plan.wake_in(SignedDuration::from_millis(200));
        return;
    };
    if listing.is_whole && listing.entries.is_empty() {
        if let_go(pool, observed, now, plan) {
            plan.notices.push(Notice {
                warning: false,
                reason: Reason::TornDown.into(),
                note: format!("No runner of {} is left on GitHub", pool.key.name),
                about: None,
            });
        }
        return;
    }
    for entry in listing.entries.iter().filter(|e| !e.busy) {
        plan.actions.push(Action::DeleteEntry(entry.clone()));
    }
    if now >= listing.at.after(AGAIN) {
        plan.refresh = true;
    }
    plan.wake_in(AGAIN);
}

/// Lets the resource go unless checks are still required for it, or it has a scale set: they are on their way out, and a
/// look at GitHub tells when they are gone.
fn let_go(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) -> bool {
    let has_webhook = !webhook::remove(pool, observed, false, now, plan);
    let has_none = scale_set::remove(pool, observed, now, plan) && !has_webhook;
    if !has_none {
        // Where GitHub cannot be asked, the limit ends it.
        plan.wake_in(AGAIN);
    }
    let is_clear =
        has_none && plan.status.required_checks.is_none() && plan.status.left_at.is_empty();
    if is_clear {
        plan.actions.push(Action::RemoveFinalizer);
    }
    is_clear
}

/// The time is up: says what is left, and lets go.
fn give_up(pool: &Pool, observed: &Observed, plan: &mut Plan) {
    let mut left: Vec<&str> = observed.runners.iter().map(|r| r.name.as_str()).collect();
    let mut is_whole = false;
    if let Some(listing) = &observed.listing {
        left.extend(listing.entries.iter().map(|e| e.name.as_str()));
        is_whole = listing.is_whole;
    }
    left.sort_unstable();
    left.dedup();
    let why = match &observed.access {
        Access::Refused { message, .. } => format!(" GitHub could not be asked: {message}"),
        _ if !is_whole && observed.listing.is_some() => {
            " Not all of the runners there could be listed.".to_owned()
        }
        _ => String::new(),
    };
    if let Some(left) = checks::left(pool) {
        plan.notices.push(Notice {
            warning: true,
            reason: Reason::TeardownIncomplete.into(),
            note: format!(
                "The teardown timeout is over: {left} may be left; remove them in its settings.{why}"
            ),
            about: None,
        });
    }
    plan.notices
        .extend(webhook::left_behind(pool, observed, &why));
    if let Some(set) = &pool.status.scale_set {
        plan.notices.push(Notice {
            warning: true,
            reason: Reason::TeardownIncomplete.into(),
            note: format!(
                "The teardown timeout is over: the scale set {} may be left; remove it on the runners page of the address in spec.github.url.{why}",
                set.name
            ),
            about: None,
        });
    }
    if let Some(place) = &pool.status.registered_at {
        let names = named(&left, is_whole, &pool.ownership_label());
        plan.notices.push(Notice {
            warning: true,
            reason: Reason::TeardownIncomplete.into(),
            note: format!(
                "The teardown timeout is over: {names} may be left at {place}; remove them on its runners page.{why}"
            ),
            about: None,
        });
    }
    for place in &plan.status.left_at {
        let notice = left::abandoned(pool, place, "The teardown timeout is over");
        plan.notices.push(notice);
    }
    plan.actions.push(Action::RemoveFinalizer);
}

/// Runners that are named in an Event: it has room for more, and for what is to be done with them.
const NAMED: usize = 10;

/// Runners that may be left, where these are known, and where these are all or not.
fn named(known: &[&str], are_all: bool, label: &str) -> String {
    let shown = &known[..known.len().min(NAMED)];
    let names = shown.join(", ");
    match (known.is_empty(), are_all && shown.len() == known.len()) {
        (true, _) => format!("runners with the label {label}"),
        (false, true) => format!("the runners {names}"),
        (false, false) => format!("the runners {names}, and others with the label {label},"),
    }
}

/// What a pool has on GitHub by its status, in words; `None` where it has nothing.
fn on_github(pool: &Pool) -> Option<String> {
    let runners = pool.status.registered_at.as_ref().map(|place| {
        format!(
            "runners with the label {} at {place}",
            pool.ownership_label()
        )
    });
    let set = pool.status.scale_set.as_ref();
    let set = set.map(|set| format!("the scale set {}", set.name));
    let hook = pool.status.webhook.as_ref();
    let hook = hook.filter(|hook| !webhook::is_by_hand(hook, None));
    let hook = hook.map(|hook| format!("the webhook that delivers to {}", hook.url));
    let before = pool.status.left_at.iter();
    let before = before.map(|left| format!("what the pool has left at {}", left.url));
    let all: Vec<String> = runners
        .into_iter()
        .chain(set)
        .chain(hook)
        .chain(before)
        .chain(checks::left(pool))
        .collect();
    (!all.is_empty()).then(|| all.join(", and "))
}

/// What is said of a pool that was found with another resource's status.
pub(super) fn of_another(pool: &Pool) -> Option<Notice> {
    let original = pool.original()?;
    let left = on_github(&original).map_or_else(
        || "It names nothing on GitHub.".to_owned(),
        |left| format!("Not touched are {left}; remove them by hand if that resource is gone."),
    );
    Some(Notice {
        warning: true,
        reason: Reason::StatusOfAnother.into(),
        note: format!(
            "The status was that of another resource, with the uid {}, as in a restored backup. The pool begins with an empty one. {left}",
            original.uid
        ),
        about: None,
    })
}

/// What is said of a pool that is gone though its operator has not let it go, where anything is left of it.
#[must_use]
pub fn without_finalizer(pool: &Pool) -> Option<Notice> {
    let left = on_github(pool)?;
    Some(Notice {
        warning: true,
        reason: Reason::FinalizerRemoved.into(),
        note: format!(
            "The resource is gone, and the operator has not let it go: its finalizer was taken off by hand. {left} may stay on GitHub; remove them there."
        ),
        about: None,
    })
}

/// What is said of a pool that is let go because its operator was uninstalled.
#[must_use]
pub fn without_operator(pool: &Pool) -> Notice {
    let left = on_github(pool);
    let stays = left.as_ref().map_or_else(
        || "It has nothing on GitHub.".to_owned(),
        |left| {
            format!(
                "{left} stay on GitHub until an operator runs again, or until they are removed by hand."
            )
        },
    );
    Notice {
        warning: left.is_some(),
        reason: Reason::OperatorUninstalled.into(),
        note: format!(
            "The operator was uninstalled. The pool can be deleted, and its pods go with it. {stays}"
        ),
        about: None,
    }
}

#[cfg(test)]
mod tests;
