//! Given pools, then an event wakes those whose job it may be, on whichever replica it comes.

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
        assert!(!desk.arrived(&id, Some(other)).await);
    }
    assert!(!desk.arrived("guessed", None).await);
    assert_eq!(heard(), Heard::default());

    // A ping says that something comes, and an event has the queue read
    assert!(desk.arrived(&id, None).await);
    assert!(heard().at.is_some() && heard().read_at.is_none());
    assert!(
        desk.arrived(&id, Some(event("Acme/Widgets", &["CUDA"])))
            .await
    );
    let first = heard().read_at.unwrap();
    // However many come then, it is read once
    for _ in 0..10 {
        assert!(
            desk.arrived(&id, Some(event("acme/widgets", &["self-hosted"])))
                .await
        );
    }
    let next = heard().read_at.unwrap();
    assert_eq!(next, first + cuda_runner_plan::webhook::APART);
}

#[tokio::test]
async fn a_replica_that_stands_by_tells_the_one_that_leads() {
    let cluster = Cluster::default();
    let (desk, _, id) = desk(&cluster, Fence::closed()).await;
    assert!(
        desk.arrived(&id, Some(event("acme/widgets", &["cuda"])))
            .await
    );
    assert_eq!(cluster.writes(), ["PATCH pool"]);
}
