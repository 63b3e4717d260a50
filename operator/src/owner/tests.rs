//! Two operators and one pool, with an API server that records what this one writes.

use std::convert::Infallible;

use cudarunner_crds::CudaRunner;
use http::{Request, Response};
use kube::client::Body;
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::lease::{ALONE_SECONDS, SELECTOR};
use crate::reconcile::reconcile;
use crate::reconcile::tests::{Cluster, STALE, context};
use cuda_runner_plan::fixture;

fn operator(name: &str) -> OperatorStatus {
    OperatorStatus {
        namespace: "system".to_owned(),
        name: name.to_owned(),
    }
}

/// A Lease of another operator, renewed some time ago and never again.
fn lease(holder: &str, selector: Option<&str>) -> Value {
    let annotations = selector.map(|selector| json!({SELECTOR: selector}));
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "other", "namespace": "system", "annotations": annotations},
        "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": 30,
            "renewTime": "2026-01-01T00:00:00.000000Z",
        },
    })
}

/// The Lease of an operator without leader election.
fn alone(holder: &str) -> Value {
    let mut lease = lease(holder, None);
    lease["spec"]["leaseDurationSeconds"] = json!(ALONE_SECONDS);
    lease
}

/// An operator to which the other's shows like this; nothing where it cannot be read.
async fn one_of_two(cluster: &Cluster, other: Option<Value>) -> Arc<Context> {
    let mut ctx = Arc::into_inner(context(cluster).await).unwrap();
    let service = tower::service_fn(move |_: Request<Body>| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "Forbidden", "code": 403});
        let code = if other.is_some() { 200 } else { 403 };
        let body = other.clone().unwrap_or(status).to_string().into_bytes();
        let answer = Response::builder().status(code).body(Body::from(body));
        std::future::ready(Ok::<_, Infallible>(answer.unwrap()))
    });
    let leases = Client::new(service, "system");
    let selector = Some("shard=a".parse().unwrap());
    ctx.ownership = Ownership::new(operator("own"), selector, leases);
    Arc::new(ctx)
}

/// The pool, with the label that this operator selects, as it names an operator.
fn pool(named: Option<&str>) -> Arc<CudaRunner> {
    let mut pool = fixture::resource();
    pool.labels_mut().insert("shard".to_owned(), "a".to_owned());
    let mut status = pool.status.take().unwrap_or_default();
    status.operator = named.map(operator);
    pool.status = Some(status);
    Arc::new(pool)
}

/// What a reconcile writes, Events apart.
async fn writes(ctx: &Arc<Context>, cluster: &Cluster, named: Option<&str>) -> Vec<String> {
    reconcile(pool(named), Arc::clone(ctx)).await.unwrap();
    let mut writes = cluster.writes();
    writes.retain(|write| write != "POST events");
    writes
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_served_only_when_it_names_this_operator() {
    let cluster = Cluster::default();
    let ctx = one_of_two(&cluster, None).await;

    // Given a pool that names nobody, then it is named, and nothing else is written
    reconcile(pool(None), Arc::clone(&ctx)).await.unwrap();
    let sent = cluster.last_sent();
    assert_eq!(sent["status"], json!({"operator": operator("own")}));
    assert_eq!(cluster.writes(), ["PATCH status"]);

    // When the watch shows that, then nothing is done until what somebody else has begun must show, too
    assert_eq!(writes(&ctx, &cluster, Some("own")).await, [] as [&str; 0]);
    let key = fixture::pool(1).key;
    ctx.ownership.lock().get_mut(&key).unwrap().settles = Some(Instant::now());

    // Then the pool is reconciled, and its status says nothing of the operator: that is written apart
    assert_eq!(writes(&ctx, &cluster, Some("own")).await, ["PATCH status"]);
}

#[tokio::test]
async fn of_two_that_take_a_pool_at_once_the_slower_does_nothing() {
    // Given a pool that names nobody, as the watch shows it, when another operator has written its name there
    let cluster = Cluster::default();
    let ctx = one_of_two(&cluster, None).await;
    let mut shown = Arc::unwrap_or_clone(pool(None));
    shown.metadata.resource_version = Some(STALE.to_owned());

    // Then this one's name is refused, and nothing else is written
    let error = reconcile(Arc::new(shown), ctx).await.unwrap_err();
    assert!(matches!(error, ReconcileError::Owner(_)), "{error}");
    assert_eq!(cluster.writes(), ["PATCH status"]);
}

#[tokio::test]
async fn a_status_never_says_whose_the_pool_is() {
    let cluster = Cluster::default();
    let ctx = one_of_two(&cluster, None).await;
    reconcile(pool(Some("own")), Arc::clone(&ctx))
        .await
        .unwrap();
    let sent = cluster.last_sent();
    assert!(sent["status"]["conditions"].is_array(), "{sent}");
    assert_eq!(sent["status"]["operator"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_pool_is_another_operators_while_that_one_lives_and_selects_it() {
    let nothing = [] as [&str; 0];
    for (what, other, at_first, after_its_time) in [
        ("it selects all", Some(lease("op-1", None)), false, true),
        (
            "it selects the pool, too",
            Some(lease("op-1", Some("shard in (a,b)"))),
            false,
            true,
        ),
        (
            "it is about to be replaced",
            Some(lease("", Some("shard=a"))),
            false,
            true,
        ),
        (
            "it has not given it back yet",
            Some(lease("op-1", Some("shard=b"))),
            false,
            true,
        ),
        (
            "it selects it no more, and is gone",
            Some(lease("", Some("shard=b"))),
            true,
            true,
        ),
        ("it has no election", Some(alone("op-1")), false, false),
        ("its Lease cannot be read", None, false, false),
    ] {
        let cluster = Cluster::default();
        let ctx = one_of_two(&cluster, other).await;
        for (is_taken, wait) in [(at_first, 0), (after_its_time, 31)] {
            // The Lease is not renewed meanwhile
            tokio::time::advance(Duration::from_secs(wait)).await;
            let writes = writes(&ctx, &cluster, Some("other")).await;
            let expected: &[&str] = if is_taken {
                &["PATCH status"]
            } else {
                &nothing
            };
            assert_eq!(writes, expected, "{what}, after {wait} s");
        }
    }
}

#[tokio::test]
async fn a_reconcile_that_another_operator_has_overtaken_writes_nothing() {
    for (named, expected) in [("own", &["PATCH status"][..]), ("other", &[])] {
        let cluster = Cluster::default();
        let mut ctx = one_of_two(&cluster, None).await;
        // Given a pool that named this operator when its reconcile began, when the watch names this one, or another
        let (store, mut writer) = reflector::store();
        let shown = Arc::unwrap_or_clone(pool(Some(named)));
        writer.apply_watcher_event(&Event::Apply(shown));
        Arc::get_mut(&mut ctx).unwrap().pools = vec![store];

        // Then it acts, or does not
        assert_eq!(
            writes(&ctx, &cluster, Some("own")).await,
            expected,
            "{named}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_lives_until_its_lease_was_not_held_for_its_time() {
    for (what, other, lives) in [
        ("it is not renewed", Some(lease("op-1", None)), false),
        ("it was given back", Some(lease("", None)), false),
        ("its time is longer", Some(alone("op-1")), true),
        ("it cannot be read", None, true),
    ] {
        let cluster = Cluster::default();
        let ctx = one_of_two(&cluster, other).await;
        let operator = operator("other");
        assert!(ctx.ownership.lives(&operator).await, "{what}, at first");
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(ctx.ownership.lives(&operator).await, lives, "{what}");
    }
}
