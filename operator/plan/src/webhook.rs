//! The webhook that wakes a pool: when the queue is read because of it, and whether it works.
//!
//! An event is a wake-up and never a number: GitHub loses, repeats and reorders them.

use cudarunner_crds::WebhookStatus;
use jiff::{SignedDuration, Timestamp};

use super::condition::{ConditionState, condition_state};
use super::{Access, Action, Notice, Observed, Plan, Queue, demand};
use crate::model::pool::{Pool, Spec};
use crate::model::time::Shift as _;
use crate::model::webhook::{Heard, KnownHook, NotRemoved, Removal, WebhookFacts, Written};
use crate::reason::Reason;

/// Reads of one queue because of events lie so far apart at least.
pub const APART: SignedDuration = SignedDuration::from_secs(2);
/// How often the queue is read while events arrive: GitHub does not repeat one that is lost.
const SLOW: SignedDuration = SignedDuration::from_mins(5);
/// After so long without an event none are taken to arrive.
const ARRIVE: SignedDuration = SignedDuration::from_mins(10);
/// Attempts to remove a webhook, after which a pool that has gone elsewhere waits no longer.
const TRIES: i32 = 3;
/// An event of a job comes so soon after GitHub's time for the job at the latest, by a clock that is not GitHub's.
const TOLD_WITHIN: SignedDuration = SignedDuration::from_mins(1);
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

/// What has come by now, where another replica's note has news: nothing of before `since`, and nothing of a clock that is far
/// ahead.
#[must_use]
pub fn heard_elsewhere(
    note: &str,
    heard: &Heard,
    since: Timestamp,
    now: Timestamp,
) -> Option<Heard> {
    let elsewhere = Heard::of_note(note)?;
    let last = heard.at.map_or(since, |at| at.max(since));
    elsewhere
        .at
        .filter(|at| *at > last && *at <= now.after(APART))?;
    Some(Heard {
        read_at: elsewhere.read_at.max(heard.read_at),
        ..elsewhere
    })
}

/// When the queue was read, where it has a job of the pool's of which no event has told. `since` is the moment before which
/// nothing could be heard, or nothing arrived.
#[must_use]
pub fn untold(spec: &Spec, queue: &Queue, heard: &Heard, since: Timestamp) -> Option<Timestamp> {
    let jobs = queue.jobs.as_ref().ok()?.as_ref()?;
    let told = heard.at.map_or(since, |at| at.max(since));
    let told = told.after(TOLD_WITHIN);
    let ours = jobs.iter().filter(|job| job.is_served_by(&spec.labels));
    let mut queued = ours.filter_map(|job| job.created_at);
    queued.any(|at| at > told).then_some(queue.at)
}

/// Whether events do not arrive, where the first job of which none told was seen at `untold`, and nothing came since: its end
/// and its beginning would have been told, too.
#[must_use]
pub fn is_unheard(untold: Option<Timestamp>, now: Timestamp) -> bool {
    untold.is_some_and(|at| at.after(ARRIVE) <= now)
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
        if remove(pool, observed, wanted.is_some(), now, plan) && wanted.is_some() {
            plan.wake_in(SignedDuration::ZERO);
        }
        return;
    }
    let (Some(spec), Some(facts), Some(url)) = (spec, facts, wanted) else {
        return;
    };
    let mut status = before.cloned().unwrap_or_default();
    status.address = spec.url.to_string();
    let is_silent = facts.failing.is_some() || facts.is_untold;
    status.delivered = facts.heard.at.is_some() || status.delivered && !is_silent;
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
            if status.id.take().is_some() {
                // By the one that was there something came.
                status.delivered = facts.heard.at.is_some();
            }
            if pool.status.webhook.is_some() {
                plan.actions.push(Action::CreateWebhook(status.url.clone()));
            }
            plan.wake_in(SignedDuration::ZERO);
        }
        KnownHook::Present(hook) => {
            status.id = i64::try_from(hook.id).ok();
            if let Some(written) = written(facts, &status.url) {
                status.secret_version = Some(written.version.clone());
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

/// The secret that this process has given to the webhook that delivers to this address.
fn written<'a>(facts: &'a WebhookFacts, url: &str) -> Option<&'a Written> {
    facts.written.as_ref().filter(|written| written.url == url)
}

/// Whether the operator has ever written it, as far as is known.
fn is_written(before: &WebhookStatus, facts: Option<&WebhookFacts>) -> bool {
    let now = facts.and_then(|facts| written(facts, &before.url));
    before.secret_version.is_some() || now.is_some()
}

/// Whether it was entered by hand: it was seen, and the credentials could never write it.
pub(super) fn is_by_hand(before: &WebhookStatus, facts: Option<&WebhookFacts>) -> bool {
    before.id.is_some() && !is_written(before, facts)
}

/// The last attempt to remove it.
fn removal<'a>(before: &WebhookStatus, facts: Option<&'a WebhookFacts>) -> Option<&'a Removal> {
    let last = facts?.removal.as_ref();
    last.filter(|removal| removal.url == before.url)
}

/// Why it is there still, where GitHub does not let it be removed, or where it was tried often.
fn lasting<'a>(before: &WebhookStatus, facts: Option<&'a WebhookFacts>) -> Option<&'a NotRemoved> {
    let failed = removal(before, facts)?.failed.as_ref();
    failed.filter(|failed| failed.is_refusal || failed.tries >= TRIES)
}

/// Removes the webhook that the status names, with the last pool that has it; true when nothing more is to be done about it.
/// One that was entered by hand stays. A pool that `goes_on` to its next one waits for no permission, and for none of another
/// address, which may be a server that is off or has other credentials: an Event says what is left.
pub(super) fn remove(
    pool: &Pool,
    observed: &Observed,
    goes_on: bool,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    let Some(before) = &pool.status.webhook else {
        return true;
    };
    let facts = observed.webhook.as_ref();
    let last = removal(before, facts);
    let is_shared = facts.is_some_and(|facts| facts.is_shared);
    let is_gone = last.is_some_and(|removal| removal.failed.is_none());
    let lasting = lasting(before, facts);
    let is_refused = lasting.is_some_and(|failed| failed.is_refusal);
    let is_written = is_written(before, facts);
    // Who was never seen to write webhooks, and may not, has made none.
    let was_never_ours = is_by_hand(before, facts) || is_refused && !is_written;
    if is_shared || is_gone || was_never_ours {
        plan.status.webhook = None;
        return true;
    }
    // Where it cannot be removed at the pool's own address because of the credentials, no other one can be made either.
    let spec = pool.spec.as_ref();
    let is_elsewhere = spec.is_ok_and(|spec| spec.url.to_string() != before.address);
    let lasting = lasting.filter(|_| goes_on && (is_refused || is_elsewhere));
    if let Some(failed) = lasting {
        let begin = "The pool has gone on to another webhook";
        plan.news.push(left(before, begin, &tried(failed)));
        plan.status.webhook = None;
        return true;
    }
    let failed = last.and_then(|removal| removal.failed.as_ref());
    if let Some(failed) = failed.filter(|failed| failed.not_before > now) {
        plan.wake_at(failed.not_before, now);
    } else {
        let (address, url) = (before.address.clone(), before.url.clone());
        plan.actions.push(Action::RemoveWebhook(address, url));
        plan.wake_in(SignedDuration::ZERO);
    }
    false
}

/// What is said where there is no more time to remove it; `why` where it was not tried.
pub(super) fn left_behind(pool: &Pool, observed: &Observed, why: &str) -> Option<Notice> {
    let before = pool.status.webhook.as_ref()?;
    let facts = observed.webhook.as_ref();
    if is_by_hand(before, facts) || facts.is_some_and(|facts| facts.is_shared) {
        return None;
    }
    let failed = removal(before, facts).and_then(|removal| removal.failed.as_ref());
    let why = failed.map_or_else(|| why.to_owned(), tried);
    Some(left(before, "The teardown timeout is over", &why))
}

fn tried(failed: &NotRemoved) -> String {
    format!(" It could not be removed: {}", failed.why)
}

fn left(before: &WebhookStatus, begin: &str, why: &str) -> Notice {
    let (url, address) = (&before.url, &before.address);
    Notice {
        warning: true,
        reason: Reason::TeardownIncomplete.into(),
        note: format!(
            "{begin}: the webhook that delivers to {url} may be left; remove it in the settings of {address}.{why}"
        ),
        about: None,
    }
}

/// Whether GitHub's webhook reaches the operator; `status` is what is to be written of it.
pub(super) fn ready(
    pool: &Pool,
    status: Option<&WebhookStatus>,
    observed: &Observed,
) -> ConditionState {
    let spec = pool.spec.as_ref().ok();
    let facts = observed.webhook.as_ref();
    let Some(webhook) = spec.and_then(|spec| spec.webhook.as_ref()) else {
        return not_asked(pool, facts);
    };
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
    if status.is_some_and(|status| status.url == *url && status.delivered) {
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
        KnownHook::Present(_) => silent(url, facts.is_untold),
        KnownHook::Unknown | KnownHook::Absent => condition_state(
            "Unknown",
            Reason::WebhookPending,
            "The webhook is not there yet",
        ),
    }
}

/// What is said of a webhook that is there, and by which nothing comes.
fn silent(url: &str, is_untold: bool) -> ConditionState {
    if !is_untold {
        let yet = "The webhook is there, and nothing has come by it yet";
        return condition_state("Unknown", Reason::WebhookSilent, yet);
    }
    condition_state(
        "False",
        Reason::WebhookSilent,
        format!(
            "The webhook that delivers to {url} is there, jobs come of which it does not tell, and the queue is read twice a minute. See its Recent Deliveries in the repository's settings"
        ),
    )
}

/// What is said of a pool that is woken by no webhook.
fn not_asked(pool: &Pool, facts: Option<&WebhookFacts>) -> ConditionState {
    let before = pool.status.webhook.as_ref();
    let refused = before.and_then(|before| Some((before, lasting(before, facts)?)));
    let Some((before, refused)) = refused.filter(|(before, _)| is_written(before, facts)) else {
        return condition_state(
            "Unknown",
            Reason::NotAsked,
            "spec.scaling.source is not Webhook",
        );
    };
    condition_state(
        "Unknown",
        Reason::WebhookRefused,
        format!(
            "spec.scaling.source is not Webhook, and the webhook that delivers to {} could not be removed: {}. It is tried again, or remove it in the settings of {}",
            before.url, refused.why, before.address
        ),
    )
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
        "Nothing comes from GitHub, and the queue is read twice a minute. Add a webhook in the repository's settings, or correct the one that is there: with the payload URL {url}, the content type application/json, the event Workflow jobs alone, {secret}"
    )
}

#[cfg(test)]
mod tests;
