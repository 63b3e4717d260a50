//! Given what came and what was read, then the queue is read again at the right moment, and the condition says what to do.

use cudarunner_crds::{Scaling, ScalingSource};
use serde_json::json;

use super::*;
use crate::fixture::{NOW, ago, observed, resource};
use crate::kind;
use crate::model::webhook::{Hook, WebhookFacts};

const URL: &str = "https://hooks.example.com/hooks/abc";

fn pool(secret: Option<&str>) -> Pool {
    let mut resource = resource();
    let webhook = secret.map(|name| json!({"secretRef": {"name": name}}));
    resource.spec.scaling = Some(Scaling {
        min_runners: 0,
        max_runners: 8,
        source: ScalingSource::Webhook,
        webhook: webhook.map(|webhook| serde_json::from_value(webhook).unwrap()),
        schedule: vec![],
        weight: 1,
    });
    Pool::read(&resource, false)
}

#[test]
fn the_queue_is_read_at_once_again_later_and_then_seldom() {
    let spec = pool(None).spec.unwrap();
    let at = |second: i64| NOW.after(SignedDuration::from_secs(second));
    for (read, event, expected) in [
        // Nothing has come: as without webhooks
        (0, None, 30),
        // One came after the last read; or is to be looked at in a moment
        (0, Some(1), 1),
        (0, Some(20), 20),
        // Never later than without webhooks
        (0, Some(40), 30),
        // Read because of it: once more, since lists lag
        (1, Some(1), 31),
        (5, Some(1), 31),
        (30, Some(1), 31),
        // Then seldom, as long as events arrive
        (31, Some(1), 331),
        (331, Some(1), 631),
        (600, Some(1), 900),
        (601, Some(1), 631),
    ] {
        let heard = Heard {
            any: event.is_some(),
            read_at: event.map(at),
        };
        let found = read_again(&spec, at(read), &heard);
        assert_eq!(found, at(expected), "{read} {event:?}");
    }
    // What is polled alone heeds no event
    let mut polled = (*spec).clone();
    polled.webhook = None;
    let heard = Heard {
        any: true,
        read_at: Some(at(1)),
    };
    assert_eq!(read_again(&polled, at(0), &heard), at(30));
}

#[test]
fn reads_because_of_events_lie_apart() {
    let at = |millis: i64| NOW.after(SignedDuration::from_millis(millis));
    for (last, now, expected) in [
        (None, 0, 0),
        (Some(0), 0, 2_000),
        (Some(0), 500, 2_000),
        // The next read is planned already
        (Some(2_000), 600, 2_000),
        (Some(2_000), 2_000, 4_000),
        (Some(2_000), 9_000, 9_000),
        // The clock was set back since
        (Some(3_600_000), 500, 500),
    ] {
        let found = coalesced(last.map(at), at(now));
        assert_eq!(found, at(expected), "{last:?} {now}");
    }
}

fn planned(pool: &Pool, facts: Option<WebhookFacts>) -> crate::Plan {
    let mut observed = observed(vec![]);
    observed.webhook = facts;
    crate::plan(pool, &observed, NOW)
}

fn condition(pool: &Pool, facts: Option<WebhookFacts>) -> (String, String, String) {
    let found = planned(pool, facts).status.conditions.into_iter();
    let found = found.filter(|c| c.type_ == kind::WEBHOOK_READY);
    let found: Vec<_> = found.map(|c| (c.status, c.reason, c.message)).collect();
    found.first().cloned().unwrap()
}

fn facts(hook: KnownHook) -> WebhookFacts {
    WebhookFacts {
        url: Some(URL.to_owned()),
        secret_version: Some("v1".to_owned()),
        hook,
        ..WebhookFacts::default()
    }
}

fn there(is_right: bool) -> KnownHook {
    KnownHook::Present(Hook {
        id: 7,
        url: URL.to_owned(),
        is_right,
    })
}

#[test]
fn the_condition_says_what_is_wrong_and_what_to_enter_by_hand() {
    let pool = pool(Some("hook"));
    let not_allowed = || facts(KnownHook::NotAllowed("grant Webhooks".to_owned()));
    let with = |change: fn(&mut WebhookFacts), mut facts: WebhookFacts| {
        change(&mut facts);
        Some(facts)
    };
    let came: fn(&mut WebhookFacts) = |f| f.heard.any = true;
    let failing: fn(&mut WebhookFacts) = |f| f.failing = Some("502 failed to connect".to_owned());
    for (facts, status, reason) in [
        (Some(WebhookFacts::default()), "False", "WebhooksOff"),
        (Some(not_allowed()), "False", "WebhookMissing"),
        (with(came, not_allowed()), "True", "WebhookDelivers"),
        (Some(facts(KnownHook::Unknown)), "Unknown", "WebhookPending"),
        (Some(facts(KnownHook::Absent)), "Unknown", "WebhookPending"),
        (Some(facts(there(true))), "Unknown", "WebhookSilent"),
        (with(came, facts(there(true))), "True", "WebhookDelivers"),
        (with(failing, facts(there(true))), "False", "WebhookFailing"),
        (
            with(
                |f| f.trouble = Some("503".to_owned()),
                facts(KnownHook::Unknown),
            ),
            "False",
            "WebhookRefused",
        ),
        (
            with(
                |f| f.secret_trouble = Some("no".to_owned()),
                facts(there(true)),
            ),
            "False",
            "WebhookSecretInvalid",
        ),
    ] {
        let found = condition(&pool, facts.clone());
        assert_eq!(
            (found.0.as_str(), found.1.as_str()),
            (status, reason),
            "{facts:?}"
        );
    }
    let (.., message) = condition(&pool, Some(not_allowed()));
    for word in [
        URL,
        "application/json",
        "Workflow jobs",
        "key secret of the Secret hook",
        "grant Webhooks",
    ] {
        assert!(message.contains(word), "{message}");
    }
    let (.., message) = condition(&super::tests::pool(None), Some(not_allowed()));
    assert!(
        message.contains("spec.scaling.webhook.secretRef"),
        "{message}"
    );
    // One that does not ask for it
    assert_eq!(condition(&crate::fixture::pool(1), None).1, "NotAsked");
}

#[test]
fn what_came_is_remembered_for_the_address_at_which_it_came() {
    let mut pool = pool(Some("hook"));
    let mut came = facts(there(true));
    came.heard.any = true;
    pool.status.webhook = planned(&pool, Some(came)).status.webhook;
    // A restarted operator goes on
    assert_eq!(
        condition(&pool, Some(facts(there(true)))).1,
        "WebhookDelivers"
    );
    let mut moved = facts(KnownHook::Absent);
    moved.url = Some("https://new".to_owned());
    assert_eq!(condition(&pool, Some(moved)).1, "WebhookPending");
}

/// The actions that are about webhooks.
fn actions(plan: &crate::Plan) -> Vec<Action> {
    let all = plan.actions.iter();
    all.filter(|action| {
        matches!(
            action,
            Action::CreateWebhook(_) | Action::UpdateWebhook(..) | Action::RemoveWebhook(..)
        )
    })
    .cloned()
    .collect()
}

#[test]
fn it_is_recorded_then_made_then_kept_as_it_should_be() {
    let mut pool = pool(None);
    let absent = || Some(facts(KnownHook::Absent));
    // Given none, then its address is in the status first
    let plan = planned(&pool, absent());
    assert_eq!(actions(&plan), []);
    assert_eq!(plan.wake, Some(SignedDuration::ZERO));
    pool.status.webhook = plan.status.webhook;
    // And it is made once that is written
    let plan = planned(&pool, absent());
    assert_eq!(actions(&plan), [Action::CreateWebhook(URL.to_owned())]);

    // Given one whose answer was lost, or that an operator before this one has made, then it gets its secret
    let update = [Action::UpdateWebhook(7, URL.to_owned())];
    let plan = planned(&pool, Some(facts(there(true))));
    assert_eq!(actions(&plan), update);
    // And is left alone when it has it
    let mut written = facts(there(true));
    written.written = Some("v1".to_owned());
    let plan = planned(&pool, Some(written));
    assert_eq!(actions(&plan), []);
    pool.status.webhook = plan.status.webhook;
    assert_eq!(pool.status.webhook.as_ref().unwrap().id, Some(7));
    assert_eq!(actions(&planned(&pool, Some(facts(there(true))))), []);

    // When it was changed by hand, when its secret is another, or when it is gone, then it is repaired
    assert_eq!(actions(&planned(&pool, Some(facts(there(false))))), update);
    let mut rotated = facts(there(true));
    rotated.secret_version = Some("v2".to_owned());
    assert_eq!(actions(&planned(&pool, Some(rotated))), update);
    let made = [Action::CreateWebhook(URL.to_owned())];
    assert_eq!(actions(&planned(&pool, absent())), made);

    // But not while GitHub wants a pause, nor where the credentials may not
    let mut paused = facts(KnownHook::Absent);
    paused.not_before = Some(ago(-60));
    assert_eq!(actions(&planned(&pool, Some(paused))), []);
    let not_allowed = facts(KnownHook::NotAllowed("no".to_owned()));
    assert_eq!(actions(&planned(&pool, Some(not_allowed))), []);
}

#[test]
fn it_goes_with_the_last_pool_that_has_it() {
    let mut pool = pool(None);
    pool.status.webhook = Some(WebhookStatus {
        url: URL.to_owned(),
        address: "https://github.com/acme/widgets".to_owned(),
        id: Some(7),
        ..WebhookStatus::default()
    });
    let removal = [Action::RemoveWebhook(
        "https://github.com/acme/widgets".to_owned(),
        URL.to_owned(),
    )];
    // When the pool takes none any more, is deleted, or has another one
    let mut polled = pool.clone();
    polled.spec_mut().webhook = None;
    let mut deleted = pool.clone();
    deleted.deleting = Some(ago(1));
    let mut elsewhere = facts(KnownHook::Unknown);
    elsewhere.url = Some("https://new/hooks/1".to_owned());
    for (pool, facts) in [
        (&polled, WebhookFacts::default()),
        (&deleted, facts(there(true))),
        (&pool, elsewhere),
    ] {
        // Then it is removed
        let plan = planned(pool, Some(facts.clone()));
        assert_eq!(actions(&plan), removal);
        assert!(plan.status.webhook.is_some(), "until it is gone");
        // And is gone from the status when it is
        let mut gone = facts.clone();
        gone.removed = Some(URL.to_owned());
        let plan = planned(pool, Some(gone));
        assert_eq!((actions(&plan), plan.status.webhook), (vec![], None));
        // Unless another pool stays that has it
        let mut shared = facts;
        shared.is_shared = true;
        let plan = planned(pool, Some(shared));
        assert_eq!((actions(&plan), plan.status.webhook), (vec![], None));
    }
}
