//! A pool's webhook between two reconciles, with a GitHub that counts what it is asked.

use std::sync::atomic::AtomicU16;

use super::*;
use crate::act::act;
use crate::github::Client as GitHub;
use crate::github::tests::stub::{Stub, error, raw, reply};
use crate::observe::webhook::look;
use crate::webhook::keys::Keys;
use crate::webhook::{HookName, Webhooks};
use cuda_runner_plan::condition::kind;
use cuda_runner_plan::model::github::QueuedJob;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::webhook::Heard;
use cuda_runner_plan::{Access, Plan, Queue};
use cudarunner_crds::{ScalingSource, WebhookStatus};

/// Where webhooks are taken now, and where they were before.
const NOW_AT: &str = "https://hooks.example.com";
const BEFORE: &str = "https://before.example.com/hooks/1";

/// A repository with one webhook. Each method has the status with which it is answered, and the last delivery that of its own.
struct Repository {
    stub: Stub,
    lists: Arc<AtomicU16>,
    deletes: Arc<AtomicU16>,
    delivered: Arc<AtomicU16>,
}

impl Repository {
    async fn new(lists: u16, deletes: u16) -> Self {
        Self::with(BEFORE.to_owned(), lists, deletes).await
    }

    /// One whose webhook delivers to this address.
    async fn with(url: String, lists: u16, deletes: u16) -> Self {
        let statuses = [lists, deletes, 202];
        let [lists, deletes, delivered] = statuses.map(|status| Arc::new(AtomicU16::new(status)));
        let (list, removal) = (Arc::clone(&lists), Arc::clone(&deletes));
        let outcome = Arc::clone(&delivered);
        let mut is_there = true;
        let stub = Stub::start(move |seen, _| {
            let answer = match seen.method {
                Method::DELETE => &removal,
                _ => &list,
            };
            match (answer.load(Ordering::Relaxed), &seen.method) {
                (200, &Method::DELETE) => {
                    is_there = false;
                    raw(204, "")
                }
                (200, _) if seen.path.contains("/deliveries") => {
                    let status = outcome.load(Ordering::Relaxed);
                    reply(
                        200,
                        &json!([{"status_code": status, "status": "timed out"}]),
                    )
                }
                (200, _) => {
                    let hook = json!({
                        "id": 7, "active": true, "events": ["workflow_job"],
                        "config": {"url": url, "content_type": "json", "insecure_ssl": "0"},
                    });
                    reply(200, &json!(Vec::from_iter(is_there.then_some(hook))))
                }
                (status, _) => error(status, "Resource not accessible by personal access token"),
            }
        });
        Self {
            stub: stub.await,
            lists,
            deletes,
            delivered,
        }
    }

    fn client(&self) -> Arc<GitHub> {
        self.stub.client("acme/widgets")
    }

    /// Removals that it was asked for.
    fn removals(&self) -> usize {
        let seen = self.stub.seen();
        seen.iter().filter(|s| s.method == Method::DELETE).count()
    }
}

/// A pool that had a webhook of the operator's, and what is remembered of it.
struct Had {
    ctx: Arc<Context>,
    client: Arc<GitHub>,
    pool: Pool,
    now: Timestamp,
}

impl Had {
    async fn new(repository: &Repository, source: &str) -> Self {
        let mut ctx = context(&Cluster::default()).await;
        let webhooks = Webhooks::new(NOW_AT, Keys::of(1, 2, None));
        Arc::get_mut(&mut ctx).unwrap().webhooks = Some(Arc::new(webhooks));
        let client = repository.client();
        let resource = resource(|resource| {
            let scaling = json!({"maxRunners": 4, "source": source});
            resource.spec.scaling = Some(serde_json::from_value(scaling).unwrap());
        });
        let mut pool = Pool::read(&resource, false);
        pool.status.webhook = Some(WebhookStatus {
            url: BEFORE.to_owned(),
            address: client.url().to_string(),
            id: Some(7),
            secret_version: Some("v1".to_owned()),
            delivered: true,
        });
        ctx.memory
            .with(&pool, |memory| memory.github.access = Access::Granted);
        let now = Timestamp::now();
        Self {
            ctx,
            client,
            pool,
            now,
        }
    }

    /// One reconcile, as far as it is about webhooks.
    async fn reconcile(&mut self) -> Plan {
        let client = Arc::clone(&self.client);
        let mut observed = fixture::observed(vec![]);
        observed.webhook = look(&self.ctx, &self.pool, Some(&*client), self.now).await;
        let mut plan = cuda_runner_plan::plan(&self.pool, &observed, self.now);
        let outcome = act(&self.ctx, &self.pool, Some(client), &mut plan).await;
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        self.pool.status = plan.status.clone();
        plan
    }

    async fn reconcile_often(&mut self) {
        for _ in 0..20 {
            self.reconcile().await;
        }
    }

    /// GitHub delivers something now.
    fn hears(&self) {
        let at = Some(self.now);
        self.ctx.memory.with(&self.pool, |memory| {
            memory.webhook = Heard { at, read_at: at };
        });
    }

    /// Status and reason of the condition after another reconcile.
    async fn ready(&mut self) -> (String, String) {
        let plan = self.reconcile().await;
        let mut all = plan.status.conditions.into_iter();
        let ready = all.find(|c| c.type_ == kind::WEBHOOK_READY).unwrap();
        (ready.status, ready.reason)
    }

    /// The webhook that the status has.
    fn url(&self) -> Option<&str> {
        let webhook = self.pool.status.webhook.as_ref();
        webhook.map(|webhook| webhook.url.as_str())
    }
}

#[tokio::test]
async fn a_webhook_that_may_not_be_removed_is_tried_again_later_and_later() {
    // Given a pool that polls now, and credentials that may read webhooks alone
    let repository = Repository::new(200, 403).await;
    let mut had = Had::new(&repository, "Poll").await;
    // When it is reconciled often, then GitHub is asked once until the pause is over
    had.reconcile_often().await;
    assert_eq!(repository.removals(), 1);
    had.now += SignedDuration::from_secs(15);
    had.reconcile_often().await;
    assert_eq!(repository.removals(), 2);
    assert_eq!(had.url(), Some(BEFORE));
    // When the permission is there, then it is removed
    repository.deletes.store(200, Ordering::Relaxed);
    had.now += SignedDuration::from_mins(10);
    had.reconcile_often().await;
    assert_eq!((repository.removals(), had.url()), (3, None));
}

#[tokio::test]
async fn a_pool_goes_on_to_its_next_webhook_though_the_last_may_not_be_removed() {
    let repository = Repository::new(200, 403).await;
    let mut had = Had::new(&repository, "Webhook").await;
    had.reconcile().await;
    // When GitHub has refused the removal, then an Event names what is left
    let plan = had.reconcile().await;
    let notes: Vec<_> = plan.news.iter().map(|news| news.note.as_str()).collect();
    assert!(
        matches!(notes[..], [note] if note.contains(BEFORE)),
        "{notes:?}"
    );
    // And the pool has another one
    had.reconcile_often().await;
    assert_eq!(repository.removals(), 1);
    assert!(had.url().is_some_and(|url| url.starts_with(NOW_AT)));
}

#[tokio::test]
async fn a_pool_that_moved_to_another_server_goes_on_whatever_the_first_one_answers() {
    // Given a server that does not know the credentials that the pool has now, one that fails, and one that nobody can ask
    let (stranger, broken) = (
        Repository::new(401, 200).await,
        Repository::new(503, 200).await,
    );
    let never = "https://before.example.com/acme/widgets";
    for (repository, address) in [(&stranger, None), (&broken, None), (&broken, Some(never))] {
        let mut had = Had::new(repository, "Webhook").await;
        let webhook = had.pool.status.webhook.as_mut().unwrap();
        if let Some(address) = address {
            webhook.address = address.to_owned();
        }
        let address = webhook.address.clone();
        // When a webhook is there, and its removal was tried a few times
        let mut told = vec![];
        for _ in 0..20 {
            told.extend(had.reconcile().await.news);
            had.now += SignedDuration::from_secs(15);
        }
        // Then an Event names what is left, and the pool has another one
        let notes: Vec<_> = told.iter().map(|news| news.note.as_str()).collect();
        assert!(
            matches!(notes[..], [note] if note.contains(BEFORE) && note.contains(&address)),
            "{notes:?}"
        );
        assert!(had.url().is_some_and(|url| url.starts_with(NOW_AT)));
    }
}

#[tokio::test]
async fn a_webhook_is_not_forgotten_because_the_credentials_have_expired() {
    // Given credentials that GitHub does not accept, or that may not see webhooks any more
    for status in [401, 403, 404] {
        let repository = Repository::new(status, 200).await;
        let mut had = Had::new(&repository, "Poll").await;
        had.reconcile_often().await;
        assert_eq!(had.url(), Some(BEFORE), "{status}");
        // When they are renewed, then it is removed
        repository.lists.store(200, Ordering::Relaxed);
        had.now += SignedDuration::from_secs(15);
        had.reconcile_often().await;
        assert_eq!((repository.removals(), had.url()), (1, None));
    }
}

#[tokio::test]
async fn a_pool_counts_as_one_that_stays_while_its_spec_is_to_have_the_webhook() {
    // Given two pools with a webhook at an address that neither is to have any more, or that the other one is to have
    for (url, removals) in [(BEFORE.to_owned(), 1), (address(), 0)] {
        let repository = Repository::with(url.clone(), 200, 200).await;
        let mut had = Had::new(&repository, "Poll").await;
        had.pool.status.webhook.as_mut().unwrap().url = url;
        let mut other = fixture::scaled(ScalingSource::Webhook, 0, 4);
        other.metadata.name = Some("other".to_owned());
        other.metadata.uid = Some("other".to_owned());
        let status = other.status.as_mut().unwrap();
        status.webhook.clone_from(&had.pool.status.webhook);
        let (pools, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        writer.apply_watcher_event(&Event::InitApply(other));
        writer.apply_watcher_event(&Event::InitDone);
        Arc::get_mut(&mut had.ctx).unwrap().pools = vec![pools];
        // When the first one polls from now on, then its webhook goes unless the other one keeps it
        had.reconcile_often().await;
        assert_eq!((repository.removals(), had.url()), (removals, None));
    }
}

/// The address of the webhook of pools that are woken.
fn address() -> String {
    let name = HookName {
        namespace: "ci".to_owned(),
        address: "https://github.com/acme/widgets".to_owned(),
        secret: None,
    };
    Webhooks::new(NOW_AT, Keys::of(1, 2, None)).address(&name)
}

fn said(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn deliveries_that_fail_since_the_last_one_that_arrived_are_told() {
    // Given a webhook by which events come
    let repository = Repository::with(address(), 200, 200).await;
    let mut had = Had::new(&repository, "Webhook").await;
    had.pool.status.webhook.as_mut().unwrap().url = address();
    had.hears();
    had.reconcile_often().await;
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));

    // When a certificate has expired, then GitHub's next failure is told, and the queue is polled
    repository.delivered.store(502, Ordering::Relaxed);
    had.now += SignedDuration::from_mins(6);
    for _ in 0..3 {
        assert_eq!(had.ready().await, said("False", "WebhookFailing"));
    }
    let heard = had.ctx.memory.with(&had.pool, |memory| memory.webhook);
    assert_eq!(heard, Heard::default());

    // When something comes again, then it works
    had.now += SignedDuration::from_secs(10);
    had.hears();
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));
    had.now += SignedDuration::from_mins(2);
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));
}

#[tokio::test]
async fn a_webhook_that_nobody_may_see_is_silent_when_jobs_come_of_which_it_did_not_tell() {
    // Given a webhook that was entered by hand, and by which events came
    let repository = Repository::with(address(), 403, 403).await;
    let mut had = Had::new(&repository, "Webhook").await;
    had.pool.status.webhook = Some(WebhookStatus {
        url: address(),
        delivered: true,
        ..WebhookStatus::default()
    });
    had.hears();
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));

    // When it is deleted, and the queue has a job of which no event tells
    let queued = had.now + SignedDuration::from_mins(4);
    had.now = queued + SignedDuration::from_secs(30);
    let queue = Queue {
        at: had.now,
        asked: None,
        jobs: Ok(Some(Arc::new([QueuedJob {
            labels: vec!["cuda".to_owned()],
            created_at: Some(queued),
            ..QueuedJob::default()
        }]))),
        registered: None,
        shut_out: None,
    };
    let queue = Some(Arc::new(queue));
    had.ctx
        .memory
        .with(&had.pool, |memory| memory.github.queue = queue);
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));
    had.ctx
        .memory
        .with(&had.pool, |memory| memory.github.queue = None);

    // Then that is told when none has come for a while, and after a restart
    had.now += SignedDuration::from_mins(10);
    assert_eq!(had.ready().await, said("False", "WebhookMissing"));
    had.ctx.memory.forget(&had.pool.key);
    had.ctx
        .memory
        .with(&had.pool, |memory| memory.github.access = Access::Granted);
    assert_eq!(had.ready().await, said("False", "WebhookMissing"));
    // Until something comes
    had.hears();
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));
}

#[tokio::test]
async fn what_a_replica_that_stands_by_heard_counts_for_the_one_that_leads() {
    // Given a webhook that may not be seen, and by which nothing has come to this replica
    let repository = Repository::with(address(), 403, 403).await;
    let mut had = Had::new(&repository, "Webhook").await;
    had.pool.status.webhook = None;
    let begin = had.now;
    let note = |at: Timestamp| {
        let at = Some(at);
        Some(Heard { at, read_at: at }.note())
    };
    // When a note of an earlier day is there, or one that a person wrote, then that says nothing
    let minutes = SignedDuration::from_mins;
    let far = begin + minutes(60);
    for other in [note(begin - minutes(60)), note(far), Some("now".to_owned())] {
        had.pool.look_again = other;
        had.now += SignedDuration::from_secs(10);
        assert_eq!(had.ready().await, said("False", "WebhookMissing"));
    }
    // When the other replica has heard something, then it counts as heard here, and the queue is read because of it
    had.now += SignedDuration::from_secs(10);
    had.pool.look_again = note(had.now);
    assert_eq!(had.ready().await, said("True", "WebhookDelivers"));
    let heard = had.ctx.memory.with(&had.pool, |memory| memory.webhook);
    assert_eq!(heard.read_at, Some(had.now));
}
