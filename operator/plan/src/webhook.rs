//! The webhook that wakes a pool: when the queue is read because of it, and whether it works.
//!
//! An event is a wake-up and never a number: GitHub loses, repeats and reorders them.

use cudarunner_crds::WebhookStatus;
use jiff::{SignedDuration, Timestamp};

use super::condition::{ConditionState, condition_state};
use super::{Access, Action, Notice, Observed, Plan, demand};
use crate::model::pool::{Pool, Spec};
use crate::model::time::Shift as _;
use crate::model::webhook::{Heard, KnownHook};
use crate::reason::Reason;

/// Reads of one queue because of events lie so far apart at least.
pub const APART: SignedDuration = SignedDuration::from_secs(2);
/// How often the queue is read while events arrive: GitHub does not repeat one that is lost.
const SLOW: SignedDuration = SignedDuration::from_mins(5);
/// After so long without an event none are taken to arrive.
const ARRIVE: SignedDuration = SignedDuration::from_mins(10);
/// The key of a user's Secret.
pub const SECRET: &str = "secret";
/// The key with the secret before it.
pub const PREVIOUS_SECRET: &str = "previous-secret";

/// When a queue that was read at a moment is to be read again, for a pool that was woken by events or by none.
///
/// It is read at once, half a minute later, since GitHub's lists lag behind its events, and then seldom.
#[must_use]
pub fn read_again(spec: &Spec, read: Timestamp, heard: &Heard) -> Timestamp {
    let poll = read.after(demand::POLL);
    let Some(event) = heard.read_at.filter(|_| spec.webhook.is_some()) else {
        return poll;
    };
    let settled = event.after(demand::POLL);
    if read < event {
        event.min(poll)
    } else if read < settled {
        settled
    } else if read < event.after(ARRIVE) {
        read.after(SLOW)
    } else {
        poll
    }
}

/// The moment at which the queue is read because of an event at `now`, where it was last read so at `last`, or is about to be.
#[must_use]
pub fn coalesced(last: Option<Timestamp>, now: Timestamp) -> Timestamp {
    match last {
        // Of a clock that was set back since.
        Some(last) if last > now.after(APART) => now,
        Some(last) if last > now => last,
        Some(last) => now.max(last.after(APART)),
        None => now,
    }
}

/// Has the webhook as it should be, or removed where it should not be.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let Ok(spec) = &pool.spec else {
        // Whatever it is to be, it stays until the spec can be read again.
        return;
    };
    let spec = Some(spec).filter(|spec| spec.webhook.is_some());
    let facts = observed.webhook.as_ref();
    let wanted = spec.zip(facts).and_then(|(_, facts)| facts.url.clone());
    let before = pool.status.webhook.as_ref();
    if before.is_some_and(|before| Some(&before.url) != wanted.as_ref()) {
        // Another address, another secret, or none any more: first goes what was.
        if remove(pool, observed, now, plan) && wanted.is_some() {
            plan.wake_in(SignedDuration::ZERO);
        }
        return;
    }
    let (Some(spec), Some(facts), Some(url)) = (spec, facts, wanted) else {
        return;
    };
    let mut status = before.cloned().unwrap_or_default();
    status.address = spec.url.to_string();
    status.delivered |= facts.heard.any;
    status.url = url;
    maintain(pool, observed, &mut status, now, plan);
    plan.status.webhook = Some(status);
}

/// Makes it, or makes it what it should be. Where it is made is in the status first: it is found there, whatever happens in
/// between.
fn maintain(
    pool: &Pool,
    observed: &Observed,
    status: &mut WebhookStatus,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(facts) = &observed.webhook else {
        return;
    };
    if let Some(at) = facts.not_before.filter(|at| *at > now) {
        plan.wake_at(at, now);
        return;
    }
    let may_write = observed.access == Access::Granted && pool.finalizer;
    if !may_write || facts.secret_trouble.is_some() {
        return;
    }
    match &facts.hook {
        KnownHook::Absent => {
            status.id = None;
            if pool.status.webhook.is_some() {
                plan.actions.push(Action::CreateWebhook(status.url.clone()));
            }
            plan.wake_in(SignedDuration::ZERO);
        }
        KnownHook::Present(hook) => {
            status.id = i64::try_from(hook.id).ok();
            if facts.written.is_some() {
                status.secret_version.clone_from(&facts.written);
            }
            if !hook.is_right || status.secret_version != facts.secret_version {
                let url = status.url.clone();
                plan.actions.push(Action::UpdateWebhook(hook.id, url));
                plan.wake_in(SignedDuration::ZERO);
            }
        }
        KnownHook::Unknown | KnownHook::NotAllowed(_) => {}
    }
}

/// Removes the webhook that the status names, with the last pool that has it; true when nothing of it is left.
pub(super) fn remove(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) -> bool {
    let Some(before) = &pool.status.webhook else {
        return true;
    };
    let facts = observed.webhook.as_ref();
    let is_gone = facts.is_some_and(|f| f.is_shared || f.removed.as_ref() == Some(&before.url));
    if is_gone {
        plan.status.webhook = None;
        return true;
    }
    let not_before = facts.and_then(|facts| facts.not_before);
    if let Some(at) = not_before.filter(|at| *at > now) {
        plan.wake_at(at, now);
    } else {
        let (address, url) = (before.address.clone(), before.url.clone());
        plan.actions.push(Action::RemoveWebhook(address, url));
        plan.wake_in(SignedDuration::ZERO);
    }
    false
}

/// What is said where there is no more time to remove it.
pub(super) fn left_behind(pool: &Pool, why: &str) -> Option<Notice> {
    let hook = pool.status.webhook.as_ref()?;
    Some(Notice {
        warning: true,
        reason: Reason::TeardownIncomplete.into(),
        note: format!(
            "The teardown timeout is over: the webhook that delivers to {} may be left; remove it in the settings of {}.{why}",
            hook.url, hook.address
        ),
        about: None,
    })
}

/// Whether anything has come by it, as far as the status knows.
fn has_delivered(pool: &Pool, url: &str) -> bool {
    let before = pool.status.webhook.as_ref();
    before.is_some_and(|before| before.url == url && before.delivered)
}

/// Whether GitHub's webhook reaches the operator.
pub(super) fn ready(pool: &Pool, observed: &Observed) -> ConditionState {
    let spec = pool.spec.as_ref().ok();
    let Some(webhook) = spec.and_then(|spec| spec.webhook.as_ref()) else {
        return condition_state(
            "Unknown",
            Reason::NotAsked,
            "spec.scaling.source is not Webhook",
        );
    };
    let facts = observed.webhook.as_ref();
    let Some((url, facts)) = facts.and_then(|facts| Some((facts.url.as_ref()?, facts))) else {
        return condition_state(
            "False",
            Reason::WebhooksOff,
            "The operator takes no webhooks, and the queue is read twice a minute: set webhook.enabled and webhook.url of its chart",
        );
    };
    if let Some(trouble) = &facts.secret_trouble {
        return condition_state("False", Reason::WebhookSecretInvalid, trouble.clone());
    }
    if let Some(failing) = &facts.failing {
        return condition_state(
            "False",
            Reason::WebhookFailing,
            format!(
                "GitHub cannot deliver to {url} ({failing}), and the queue is read twice a minute. Is the Ingress or Gateway there, with a certificate that GitHub trusts?"
            ),
        );
    }
    if facts.heard.any || has_delivered(pool, url) {
        return condition_state(
            "True",
            Reason::WebhookDelivers,
            "GitHub's events arrive, and wake the pool",
        );
    }
    if let Some(trouble) = &facts.trouble {
        return condition_state("False", Reason::WebhookRefused, trouble.clone());
    }
    match &facts.hook {
        KnownHook::NotAllowed(why) => {
            let how = by_hand(url, webhook.secret.as_deref());
            condition_state(
                "False",
                Reason::WebhookMissing,
                format!("{how}. The operator does it itself where it may: {why}"),
            )
        }
        KnownHook::Present(_) => condition_state(
            "Unknown",
            Reason::WebhookSilent,
            "The webhook is there, and nothing has come by it yet",
        ),
        KnownHook::Unknown | KnownHook::Absent => condition_state(
            "Unknown",
            Reason::WebhookPending,
            "The webhook is not there yet",
        ),
    }
}

/// What to enter on GitHub.
fn by_hand(url: &str, secret: Option<&str>) -> String {
    let secret = secret.map_or_else(
        || {
            format!(
                "and a secret that you write into the key {SECRET} of a Secret in this namespace, named in spec.scaling.webhook.secretRef"
            )
        },
        |name| format!("and, as its secret, what the key {SECRET} of the Secret {name} has"),
    );
    format!(
        "Nothing has come from GitHub yet, and the queue is read twice a minute. Add a webhook in the repository's settings, with the payload URL {url}, the content type application/json, the event Workflow jobs alone, {secret}"
    )
}

#[cfg(test)]
mod tests;
