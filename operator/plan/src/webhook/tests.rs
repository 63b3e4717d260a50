//! Given what came and what was read, then the queue is read again at the right moment, and the condition says what to do.

use cudarunner_crds::{Scaling, ScalingSource};
use serde_json::json;

use super::*;
use crate::fixture::{NOW, ago, observed, resource};
use crate::kind;
use crate::model::github::QueuedJob;
use crate::model::webhook::Hook;

const URL: &str = "https://hooks.example.com/hooks/abc";
const ADDRESS: &str = "https://github.com/acme/widgets";

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

/// An event at this moment.
fn heard(at: Option<Timestamp>) -> Heard {
    Heard { at, read_at: at }
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
        let heard = heard(event.map(at));
        let found = read_again(&spec, at(read), &heard);
        assert_eq!(found, at(expected), "{read} {event:?}");
    }
    // What is polled alone heeds no event
    let mut polled = (*spec).clone();
    polled.webhook = None;
    let heard = heard(Some(at(1)));
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
    let came: fn(&mut WebhookFacts) = |f| f.heard.at = Some(ago(1));
    let failing: fn(&mut WebhookFacts) = |f| f.failing = Some("502 failed to connect".to_owned());
    let untold: fn(&mut WebhookFacts) = |f| f.is_untold = true;
    for (facts, status, reason) in [
        (Some(WebhookFacts::default()), "False", "WebhooksOff"),
        (Some(not_allowed()), "False", "WebhookMissing"),
        (with(came, not_allowed()), "True", "WebhookDelivers"),
        (Some(facts(KnownHook::Unknown)), "Unknown", "WebhookPending"),
        (Some(facts(KnownHook::Absent)), "Unknown", "WebhookPending"),
        (Some(facts(there(true))), "Unknown", "WebhookSilent"),
        (with(came, facts(there(true))), "True", "WebhookDelivers"),
        (with(failing, facts(there(true))), "False", "WebhookFailing"),
        (with(untold, facts(there(true))), "False", "WebhookSilent"),
        (with(untold, not_allowed()), "False", "WebhookMissing"),
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

/// What becomes known of a webhook.
type Change = fn(&mut WebhookFacts);

#[test]
fn what_came_is_remembered_for_the_address_at_which_it_came() {
    let mut pool = pool(Some("hook"));
    let mut came = facts(there(true));
    came.heard.at = Some(ago(1));
    pool.status.webhook = planned(&pool, Some(came)).status.webhook;
    // A restarted operator goes on
    assert_eq!(
        condition(&pool, Some(facts(there(true)))).1,
        "WebhookDelivers"
    );
    // Until something speaks against it: then only what comes after that says that it works
    let against: [Change; 3] = [
        |facts| facts.failing = Some("502".to_owned()),
        |facts| facts.is_untold = true,
        |facts| facts.hook = KnownHook::Absent,
    ];
    for change in against {
        let mut pool = pool.clone();
        pool.status.webhook.as_mut().unwrap().id = Some(7);
        let mut seen = facts(there(true));
        change(&mut seen);
        assert_ne!(condition(&pool, Some(seen.clone())).0, "True", "{seen:?}");
        pool.status.webhook = planned(&pool, Some(seen)).status.webhook;
        let later = facts(KnownHook::Unknown);
        assert_eq!(condition(&pool, Some(later.clone())).1, "WebhookPending");
        let mut again = later;
        again.heard.at = Some(NOW);
        assert_eq!(condition(&pool, Some(again)).1, "WebhookDelivers");
    }
    let mut moved = facts(KnownHook::Absent);
    moved.url = Some("https://new".to_owned());
    assert_eq!(condition(&pool, Some(moved)).1, "WebhookPending");
}

#[test]
fn what_another_replica_heard_counts_where_it_is_news() {
    let came = |at: Timestamp| Heard {
        at: Some(at),
        read_at: None,
    };
    let since = ago(600);
    for (elsewhere, here, is_news) in [
        (heard(Some(ago(5))), Heard::default(), true),
        (came(ago(5)), Heard::default(), true),
        (heard(Some(ago(5))), heard(Some(ago(60))), true),
        // The queue is about to be read: a little ahead of now
        (heard(Some(ago(-2))), Heard::default(), true),
        // It was heard here since, or before this process, or by a clock that is wrong
        (heard(Some(ago(60))), heard(Some(ago(5))), false),
        (heard(Some(ago(3600))), Heard::default(), false),
        (heard(Some(ago(-3600))), Heard::default(), false),
    ] {
        let found = heard_elsewhere(&elsewhere.note(), &here, since, NOW);
        let what = format!("{elsewhere:?} {here:?}");
        assert_eq!(found, is_news.then_some(elsewhere), "{what}");
    }
    // A ping has nothing read, and takes nothing away
    let found = heard_elsewhere(&came(ago(5)).note(), &heard(Some(ago(60))), since, NOW);
    let read_at = Some(ago(60));
    let at = Some(ago(5));
    assert_eq!(found, Some(Heard { at, read_at }));
    // A person's word is none of a webhook
    assert_eq!(heard_elsewhere("now", &Heard::default(), since, NOW), None);
}

#[test]
fn a_job_of_which_no_event_tells_is_a_sign_that_none_arrive() {
    let spec = pool(None).spec.unwrap();
    let hours = |hours: i64| ago(hours * 3600);
    for (created, labels, event, since, is_untold) in [
        // Nothing has come at all, or not since the hour before
        (Some(ago(40)), "cuda", None, hours(2), true),
        (Some(ago(40)), "cuda", Some(hours(1)), hours(2), true),
        // Its event has come; or came before GitHub's time for it, by our clock
        (Some(ago(40)), "cuda", Some(ago(39)), hours(2), false),
        (Some(ago(40)), "cuda", Some(ago(90)), hours(2), false),
        // Its event came to the process before this one
        (Some(hours(1)), "cuda", None, ago(60), false),
        (Some(ago(40)), "cuda", None, ago(60), false),
        // It is another's, or nobody knows when it was queued
        (Some(ago(40)), "a100", None, hours(2), false),
        (None, "cuda", None, hours(2), false),
    ] {
        let job = QueuedJob {
            labels: vec![labels.to_owned()],
            created_at: created,
            ..QueuedJob::default()
        };
        let queue = Queue {
            at: ago(5),
            asked: None,
            jobs: Ok(Some(vec![job].into())),
            registered: None,
            shut_out: None,
        };
        let found = untold(&spec, &queue, &heard(event), since);
        assert_eq!(found, is_untold.then_some(ago(5)), "{created:?} {event:?}");
    }
    // A single event may be lost: those of its beginning and of its end come
    assert!(!is_unheard(None, NOW));
    assert!(!is_unheard(Some(ago(599)), NOW));
    assert!(is_unheard(Some(ago(600)), NOW));
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
    let version = "v1".to_owned();
    let url = URL.to_owned();
    written.written = Some(Written { url, version });
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

/// Pools whose webhook is to go: one that polls now, one that is deleted, and one that has another webhook.
fn leaving(id: Option<i64>, secret: Option<&str>) -> [(Pool, WebhookFacts); 3] {
    let mut moved = pool(None);
    moved.status.webhook = Some(WebhookStatus {
        url: URL.to_owned(),
        address: ADDRESS.to_owned(),
        id,
        secret_version: secret.map(str::to_owned),
        ..WebhookStatus::default()
    });
    let mut polled = moved.clone();
    polled.spec_mut().webhook = None;
    let mut deleted = moved.clone();
    deleted.deleting = Some(ago(1));
    let mut elsewhere = facts(KnownHook::Unknown);
    elsewhere.url = Some("https://new/hooks/1".to_owned());
    [
        (polled, WebhookFacts::default()),
        (deleted, facts(there(true))),
        (moved, elsewhere),
    ]
}

/// That it is removed.
fn removed() -> [Action; 1] {
    [Action::RemoveWebhook(ADDRESS.to_owned(), URL.to_owned())]
}

/// An attempt to remove it, which failed `seconds` ago or is not to be made again before.
fn tried(failed: Option<(bool, i64)>) -> Removal {
    Removal {
        url: URL.to_owned(),
        failed: failed.map(|(is_refusal, seconds)| NotRemoved {
            why: "grant Webhooks".to_owned(),
            is_refusal,
            tries: 1,
            not_before: ago(seconds),
        }),
    }
}

#[test]
fn another_address_that_does_not_remove_it_holds_up_no_next_webhook() {
    // Given a webhook at the pool's address, and one at a server where the pool is no more
    const ELSEWHERE: &str = "https://ghe.example.com/acme/widgets";
    let [polls, is_deleted, moves] = [0, 1, 2];
    for (index, address, tries, said) in [
        // A failure may pass, and it is tried again
        (moves, ELSEWHERE, 1, 0),
        (moves, ELSEWHERE, 2, 0),
        // When it does not, then the pool goes on, and an Event says what is left
        (moves, ELSEWHERE, 3, 1),
        // At its own address nothing works until it passes; and who waits for no other webhook tries on
        (moves, ADDRESS, 30, 0),
        (polls, ELSEWHERE, 30, 0),
        (is_deleted, ELSEWHERE, 30, 0),
    ] {
        let case = format!("{index} {address} {tries}");
        let (mut pool, mut facts) = leaving(Some(7), Some("v1"))[index].clone();
        pool.status.webhook.as_mut().unwrap().address = address.to_owned();
        let mut removal = tried(Some((false, -60)));
        removal.failed.as_mut().unwrap().tries = tries;
        facts.removal = Some(removal);
        let plan = planned(&pool, Some(facts.clone()));
        assert_eq!(plan.news.len(), said, "{case}");
        assert_eq!(plan.status.webhook.is_none(), said == 1, "{case}");
        for news in &plan.news {
            let note = &news.note;
            assert!(note.contains(URL) && note.contains(ELSEWHERE), "{note}");
            assert!(note.contains("grant Webhooks"), "{note}");
        }
        // One that polls says that it is there still
        if index == polls {
            let (.., message) = condition(&pool, Some(facts));
            assert!(message.contains("grant Webhooks"), "{message}");
        }
    }
}

#[test]
fn what_may_not_be_removed_is_tried_again_and_holds_up_no_next_webhook() {
    let [polls, is_deleted, moves] = [0, 1, 2];
    let refused_at = |seconds| Some((true, seconds));
    for (index, failed, is_tried, stays, said) in [
        // Refused, and the pause is not over, or is
        (polls, refused_at(-60), false, true, 0),
        (polls, refused_at(1), true, true, 0),
        (is_deleted, refused_at(-60), false, true, 0),
        (is_deleted, refused_at(1), true, true, 0),
        // The pool goes on to its next one, and an Event says what is left
        (moves, refused_at(-60), false, false, 1),
        (moves, refused_at(1), false, false, 1),
        // What may pass, such as a token that has expired, is waited for
        (polls, Some((false, -60)), false, true, 0),
        (is_deleted, Some((false, -60)), false, true, 0),
        (moves, Some((false, -60)), false, true, 0),
        (moves, Some((false, 1)), true, true, 0),
    ] {
        let case = format!("{index} {failed:?}");
        let (pool, mut facts) = leaving(Some(7), Some("v1"))[index].clone();
        facts.removal = Some(tried(failed));
        let plan = planned(&pool, Some(facts.clone()));
        let expected = if is_tried { &removed()[..] } else { &[] };
        assert_eq!(actions(&plan), expected, "{case}");
        assert_eq!(plan.status.webhook.is_some(), stays, "{case}");
        assert_eq!(plan.news.len(), said, "{case}");
        for news in &plan.news {
            let note = &news.note;
            assert!(note.contains(URL) && note.contains(ADDRESS), "{note}");
            assert!(note.contains("grant Webhooks"), "{note}");
        }
        // A pool that polls says that it is there still
        let is_refused = failed.is_some_and(|(is_refusal, _)| is_refusal);
        if index == polls && is_refused {
            let (status, reason, message) = condition(&pool, Some(facts));
            assert_eq!((&*status, &*reason), ("Unknown", "WebhookRefused"));
            assert!(message.contains(URL), "{message}");
        }
    }
}

#[test]
fn a_deletion_that_is_over_names_the_webhook_that_is_left() {
    let [_, (mut pool, facts), _] = leaving(Some(7), Some("v1"));
    pool.deleting = Some(ago(36_000));
    for (failed, words) in [
        (None, "teardown timeout"),
        (Some((true, -60)), "grant Webhooks"),
    ] {
        let mut facts = facts.clone();
        facts.removal = failed.map(|failed| tried(Some(failed)));
        let plan = planned(&pool, Some(facts));
        assert!(plan.actions.contains(&Action::RemoveFinalizer));
        let mut notices = plan.notices.iter().filter(|n| n.note.contains(URL));
        let notice = notices.next().unwrap();
        assert!(notice.reason == Reason::TeardownIncomplete && notice.note.contains(words));
    }
    // One that another pool has, or that was entered by hand, is not left behind
    let mut shared = facts.clone();
    shared.is_shared = true;
    let mut by_hand = pool.clone();
    by_hand.status.webhook.as_mut().unwrap().secret_version = None;
    for (pool, facts) in [(&pool, shared), (&by_hand, facts)] {
        let plan = planned(pool, Some(facts));
        assert!(!plan.notices.iter().any(|n| n.note.contains(URL)));
    }
}

#[test]
fn what_was_entered_by_hand_stays() {
    // Given one that was seen, and that the credentials could never write
    for (pool, facts) in leaving(Some(7), None) {
        let plan = planned(&pool, Some(facts));
        assert_eq!((actions(&plan), plan.status.webhook), (vec![], None));
        assert_eq!(plan.news.len(), 0);
    }
    // Given none that was ever seen, then whether an answer was lost is looked at, and who may not look has made none
    for (pool, mut facts) in leaving(None, None) {
        let plan = planned(&pool, Some(facts.clone()));
        assert_eq!(actions(&plan), removed());
        facts.removal = Some(tried(Some((true, -60))));
        let plan = planned(&pool, Some(facts));
        assert_eq!((actions(&plan), plan.status.webhook), (vec![], None));
        assert_eq!(plan.news.len(), 0);
    }
}

#[test]
fn it_goes_with_the_last_pool_that_has_it() {
    for (pool, facts) in leaving(Some(7), Some("v1")) {
        // Then it is removed
        let plan = planned(&pool, Some(facts.clone()));
        assert_eq!(actions(&plan), removed());
        assert!(plan.status.webhook.is_some(), "until it is gone");
        // And is gone from the status when it is
        let mut gone = facts.clone();
        gone.removal = Some(tried(None));
        let plan = planned(&pool, Some(gone));
        assert_eq!((actions(&plan), plan.status.webhook), (vec![], None));
        // Unless another pool stays that has it
        let mut shared = facts;
        shared.is_shared = true;
        let plan = planned(&pool, Some(shared));
        assert_eq!((actions(&plan), plan.status.webhook), (vec![], None));
    }
}
