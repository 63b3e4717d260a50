//! Given pools, then an event wakes those whose job it may be, on whichever replica it comes.

use jiff::SignedDuration;
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::super::keys::Keys;
use super::*;
use crate::lease::Fence;
use crate::reconcile::tests::{Cluster, context};
use cuda_runner_plan::fixture;

/// A desk for a pool that is woken by webhooks and one that polls; the first one's pool, and the name of its webhook.
async fn desk(cluster: &Cluster, fence: Fence) -> (OperatorDesk, Pool, String) {
    let resource = |name: &str, source: &str| {
        let mut resource = fixture::resource();
        resource.metadata.name = Some(name.to_owned());
        resource.metadata.uid = Some(name.to_owned());
        let scaling = json!({"maxRunners": 4, "source": source});
        resource.spec.scaling = Some(serde_json::from_value(scaling).unwrap());
        resource
    };
    let (pools, mut writer) = reflector::store();
    let woken = resource("pool", "Webhook");
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitApply(woken.clone()));
    writer.apply_watcher_event(&Event::InitApply(resource("other", "Poll")));
    writer.apply_watcher_event(&Event::InitDone);
    let mut ctx = Arc::into_inner(context(cluster).await).unwrap();
    ctx.pools = vec![pools];
    ctx.fence = fence;
    let client = ctx.client.clone();
    let webhooks = Arc::new(Webhooks::new("https://hooks", Keys::of(1, 2, Some(3))));
    let pool = ctx.specs.pool(&woken);
    let name = HookName::of(&pool, pool.spec.as_ref().unwrap()).unwrap();
    let id = webhooks.keys().id(&name);
    (OperatorDesk::new(Arc::new(ctx), webhooks, client), pool, id)
}

fn event(repository: &str, labels: &[&str]) -> JobEvent {
    JobEvent {
        repository: repository.to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
    }
}

#[tokio::test]
async fn an_event_wakes_the_pools_whose_job_it_may_be() {
    let (desk, pool, id) = desk(&Cluster::default(), Fence::default()).await;
    let heard = || desk.ctx.memory.with(&pool, |memory| memory.webhook);
    let secrets = desk.secrets(&id).await.unwrap();
    assert_eq!(secrets.len(), 2, "the one before is valid, too");
    assert_ne!(secrets[0].expose_secret(), secrets[1].expose_secret());
    assert!(desk.secrets("guessed").await.is_none());

    // What is not the pool's wakes nobody
    for other in [
        event("acme/gadgets", &["cuda"]),
        event("acme/widgets", &["cuda", "a100"]),
    ] {
        assert!(!desk.arrived(&id, Some(other)));
    }
    assert!(!desk.arrived("guessed", None));
    assert_eq!(heard(), Heard::default());

    // A ping says that something comes, and an event has the queue read
    assert!(desk.arrived(&id, None));
    let ping = heard().at.unwrap();
    assert_eq!(heard().read_at, None);
    assert!(desk.arrived(&id, Some(event("Acme/Widgets", &["CUDA"]))));
    let first = heard().read_at.unwrap();
    assert_eq!(first, ping + cuda_runner_plan::webhook::APART);
    // However much comes then, it is read once
    for _ in 0..10 {
        assert!(desk.arrived(&id, Some(event("acme/widgets", &["self-hosted"]))));
        assert!(desk.arrived(&id, None));
    }
    assert_eq!(heard().read_at, Some(first));
}

#[tokio::test]
async fn a_replica_that_stands_by_answers_first_and_then_tells_the_one_that_leads() {
    let cluster = Cluster::default();
    let (desk, pool, id) = desk(&cluster, Fence::closed()).await;
    // Given an event, then nothing is asked of the API server before it is answered
    assert!(desk.arrived(&id, Some(event("acme/widgets", &["cuda"]))));
    assert_eq!(cluster.writes(), Vec::<String>::new());

    // And the one that leads is told of it once, however much has come
    for _ in 0..10 {
        assert!(desk.arrived(&id, Some(event("acme/widgets", &["cuda"]))));
    }
    let heard = desk.ctx.memory.with(&pool, |memory| memory.webhook);
    assert!(heard.read_at.is_some());
    pass_on(&desk).await;
    let sent = &cluster.last_sent()["metadata"]["annotations"]["cudarunner.dev/look-again"];
    let told = Heard::of_note(sent.as_str().unwrap());
    assert_eq!(told, Some(heard));
    assert_eq!(cluster.writes(), ["PATCH pool"]);

    // A ping is passed on, too: it may be what the one that leads waits for
    let at = heard.at.map(|at| at - SignedDuration::from_secs(60));
    let before = Heard { at, read_at: at };
    desk.ctx
        .memory
        .with(&pool, |memory| memory.webhook = before);
    assert!(desk.arrived(&id, None));
    pass_on(&desk).await;
    assert_eq!(cluster.writes(), ["PATCH pool"]);
}

/// Passes on what has arrived.
async fn pass_on(desk: &OperatorDesk) {
    let turns = async {
        // Nothing here waits for a clock or a network: every task gets as many turns as it needs.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = desk.pass_on() => {}
        () = turns => {}
    }
}
