//! When a status is written: beside the reconciles, or before one ends.

use super::*;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::{TEMPLATE_ANNOTATION, URL_ANNOTATION};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// A pool that was reconciled, and whose counts are not gathered any more.
async fn reconciled(cluster: &Cluster) -> (Arc<CudaRunner>, Arc<Context>) {
    let ctx = context(cluster).await;
    let resource = two();
    reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap();
    cluster.writes();
    (resource, ctx)
}

/// A pool of two runners.
fn two() -> Arc<CudaRunner> {
    resource(|resource| resource.spec.replicas = Some(2))
}

/// The watch shows another pod of the pool's, and the last write is long ago.
fn another_pod(ctx: &Context, name: &str) {
    let pool = Pool::read(&two(), false);
    let spec = pool.spec.as_ref().unwrap();
    let pod = json!({
        "metadata": {
            "name": name, "namespace": "ci", "uid": name, "creationTimestamp": Timestamp::now(),
            "labels": {"cudarunner.dev/pool": "pool"},
            "annotations": {TEMPLATE_ANNOTATION: spec.template_hash, URL_ANNOTATION: spec.url.to_string()},
            "ownerReferences": [{"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": "pool", "uid": pool.uid}],
        },
        "status": {"phase": "Pending"},
    });
    ctx.pods
        .apply(&serde_json::from_value(pod).unwrap(), true)
        .unwrap();
    ctx.memory
        .with(&pool, |memory| memory.status_written = None);
}

/// A runner whose gate has failed.
fn failed_gate(ctx: &Context) {
    show_pod(
        ctx,
        "pool-failed",
        &json!({"phase": "Failed", "initContainerStatuses": [{
            "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 12}},
        }]}),
    );
}

#[tokio::test]
async fn a_count_that_is_not_written_yet_holds_up_no_reconcile() {
    let cluster = Cluster::default();
    let (resource, ctx) = reconciled(&cluster).await;
    let pool = Pool::read(&resource, false);
    let reconcile = async || {
        let reconcile = reconcile(Arc::clone(&resource), Arc::clone(&ctx));
        tokio::time::timeout(LIMIT, reconcile)
            .await
            .unwrap()
            .unwrap();
    };

    // Given an API server that takes its time with a status that has other counts
    let silence = Arc::clone(&cluster.3).write_owned().await;
    another_pod(&ctx, "pool-aaaaa");
    reconcile().await;
    assert_eq!(cluster.writes(), ["PATCH status"]);

    // When the pool is reconciled meanwhile, then the reconcile ends, and no second write overtakes the first
    another_pod(&ctx, "pool-bbbbb");
    reconcile().await;
    assert_eq!(cluster.writes(), Vec::<String>::new());

    // When there is an answer, then the newest status is written, once
    drop(silence);
    while ctx
        .status_writes
        .with(&pool, |writes| writes.are_under_way())
    {
        tokio::task::yield_now().await;
    }
    reconcile().await;
    let newest = cluster.0.lock().unwrap().last().unwrap().2.clone();
    assert_eq!(newest["status"]["replicas"], 2);
    assert_eq!(cluster.writes(), ["PATCH status"]);
    reconcile().await;
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn the_pool_is_woken_for_a_status_that_came_while_another_was_on_its_way() {
    let cluster = Cluster::default();
    let (waker, mut woken) = Waker::new();
    waker.listen();
    let mut ctx = context(&cluster).await;
    Arc::get_mut(&mut ctx).unwrap().waker = Arc::new(waker);
    let reconcile = async || {
        reconcile(two(), Arc::clone(&ctx)).await.unwrap();
    };
    reconcile().await;

    // Given a status on its way, and a newer one
    let silence = Arc::clone(&cluster.3).write_owned().await;
    for name in ["pool-aaaaa", "pool-bbbbb"] {
        another_pod(&ctx, name);
        reconcile().await;
    }
    assert!(woken.try_recv().is_err(), "nothing is to be done yet");

    // When the first is answered, then the pool is reconciled again
    drop(silence);
    let pool = tokio::time::timeout(LIMIT, futures::StreamExt::next(&mut woken));
    assert_eq!(pool.await.unwrap().unwrap().name, "pool");
}

#[tokio::test]
async fn a_count_that_could_not_be_written_is_written_by_the_next_reconcile() {
    let cluster = Cluster::default();
    let (resource, ctx) = reconciled(&cluster).await;
    let reconcile = async || reconcile(Arc::clone(&resource), Arc::clone(&ctx)).await;

    // Given an API server that refuses a status that has other counts
    cluster.1.store(true, Ordering::Relaxed);
    another_pod(&ctx, "pool-aaaaa");
    reconcile().await.unwrap();

    // Then the next reconcile is a failed one, which is counted and tried again later each time
    let error = reconcile().await.unwrap_err();
    assert_eq!(error.category(), "Status");
    assert_eq!(cluster.writes(), ["PATCH status", "PATCH status"]);

    // When it is taken, then nothing is left to do
    cluster.1.store(false, Ordering::Relaxed);
    reconcile().await.unwrap();
    assert_eq!(cluster.writes(), ["PATCH status"]);
    reconcile().await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn what_later_reconciles_act_upon_is_stored_before_the_reconcile_ends() {
    let cluster = Cluster::default();
    let (resource, ctx) = reconciled(&cluster).await;

    // Given counts on their way, and then a failure
    let silence = Arc::clone(&cluster.3).write_owned().await;
    another_pod(&ctx, "pool-aaaaa");
    reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap();
    failed_gate(&ctx);
    let mut reconcile = std::pin::pin!(reconcile(Arc::clone(&resource), Arc::clone(&ctx)));

    // Then the reconcile waits for the counts, so that the older status is not carried out last
    let soon = std::time::Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, &mut reconcile).await.is_err());
    let writes = cluster.writes();
    let statuses = writes.iter().filter(|write| *write == "PATCH status");
    assert_eq!(statuses.count(), 1, "{writes:?}");

    // And ends when its own is stored
    drop(silence);
    tokio::time::timeout(LIMIT, reconcile)
        .await
        .unwrap()
        .unwrap();
    let stored = cluster.0.lock().unwrap().last().unwrap().2.clone();
    assert_eq!(stored["status"]["lastFailures"][0]["runner"], "pool-failed");
}

#[tokio::test]
async fn a_status_of_another_resource_is_not_believed_and_replaced_at_once() {
    // Given a copy of a pool, restored with the status of the original
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let restored = |uid: &str| {
        let mut status = json!({
            "uid": uid,
            "registeredAt": "https://github.com/acme/widgets",
            "scaleSet": {"id": 7, "name": "pool-0a1b2c3d"},
            "webhook": {"url": "https://hooks.example/1", "address": "https://github.com/acme/widgets"},
        });
        status["operator"] = json!(OperatorStatus::default());
        resource(|resource| resource.status = Some(serde_json::from_value(status).unwrap()))
    };
    let copy = restored("0a1b2c3d-2fa1-11d2-883f-0016d3cca427");

    // When it is reconciled
    reconcile(Arc::clone(&copy), Arc::clone(&ctx))
        .await
        .unwrap();

    // Then the fields go whoever owns them, and the pool's own status is written
    let all = cluster.0.lock().unwrap().clone();
    let statuses: Vec<_> = all
        .iter()
        .filter(|(_, path, _)| path.ends_with("/status"))
        .collect();
    let [(_, _, cleared), (_, _, written)] = &statuses[..] else {
        panic!("{statuses:#?}");
    };
    let fields = cleared["status"].as_object().unwrap();
    assert!(fields.contains_key("scaleSet") && fields.values().all(Value::is_null));
    assert!(
        !fields.contains_key("operator"),
        "that is another's to write"
    );
    assert_eq!(written["status"]["uid"], fixture::pool(1).uid);
    for field in ["scaleSet", "webhook", "registeredAt"] {
        assert!(written["status"][field].is_null(), "{written:#}");
    }
    // And an Event names what is left alone
    let said = |all: &[(Method, String, Value)]| {
        let of = all
            .iter()
            .filter(|(_, _, sent)| sent["reason"] == "StatusOfAnother");
        of.map(|(_, _, sent)| sent["note"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let notes = said(&all);
    assert_eq!(notes.len(), 1, "{notes:?}");
    for what in [
        "cudarunner-0a1b2c3d",
        "pool-0a1b2c3d",
        "https://hooks.example/1",
    ] {
        assert!(notes[0].contains(what), "{}", notes[0]);
    }
    // And not again while the watch still shows the other one, nor after that
    let own = restored(&fixture::pool(1).uid);
    for shown in [copy, own] {
        reconcile(shown, Arc::clone(&ctx)).await.unwrap();
    }
    assert_eq!(said(&cluster.0.lock().unwrap()).len(), 1);
}

#[tokio::test]
async fn a_crd_that_is_too_old_is_named_by_an_event_now_and_then() {
    // Given a CRD without a field that the operator writes
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    *cluster.6.lock().unwrap() = Some(
        "failed to create typed patch object (ci/pool; cudarunner.dev/v1alpha1, Kind=CudaRunner): errors:\n  .status.uid: field not declared in schema\n  .status.demand: field not declared in schema",
    );
    let resource = resource(|_| {});
    let reported = async || {
        reconcile(Arc::clone(&resource), Arc::clone(&ctx))
            .await
            .unwrap_err();
        let all = std::mem::take(&mut *cluster.0.lock().unwrap());
        let said = all.iter().map(|(_, _, sent)| sent);
        let said = said.filter(|sent| sent["reason"] == "CrdTooOld");
        said.cloned().collect::<Vec<_>>()
    };
    // When a status cannot be stored, then an Event names the field and the chart
    let said = reported().await;
    assert_eq!(said.len(), 1, "{said:#?}");
    let note = said[0]["note"].as_str().unwrap();
    for word in [" .status.uid:", "cuda-runner-operator-crds"] {
        assert!(note.contains(word), "{note}");
    }
    // And not at each attempt
    assert_eq!(reported().await, Vec::<Value>::new());
    // But again after a while
    ctx.memory.with(&Pool::read(&resource, false), |memory| {
        memory.said_of_crd = Some(Timestamp::now() - SignedDuration::from_mins(11));
    });
    assert_eq!(reported().await.len(), 1);
}

#[tokio::test]
async fn a_status_that_somebody_has_changed_is_written_again() {
    let cluster = Cluster::default();
    let (_, ctx) = reconciled(&cluster).await;
    let stored = cluster.5.lock().unwrap().clone();
    let shown = |version: &str, status: &Value| {
        let mut status: CudaRunnerStatus = serde_json::from_value(status.clone()).unwrap();
        status.operator = Some(OperatorStatus::default());
        resource(|resource| {
            resource.spec.replicas = Some(2);
            resource.metadata.resource_version = Some(version.to_owned());
            resource.status = Some(status);
        })
    };
    let mut with_more = stored.clone();
    with_more["webhook"] =
        json!({"url": "https://hooks.example/1", "address": "https://github.com/acme/widgets"});
    for (version, status, seconds, writes) in [
        // Our own write is on its way
        ("1", &json!({}), 5, 0),
        ("2", &stored, 31, 0),
        // It was emptied
        ("3", &json!({}), 31, 1),
        // It stays so, whatever we write
        ("3", &json!({}), 31, 0),
        // It went back: what has come back beside ours is removed first
        ("4", &with_more, 31, 2),
    ] {
        // Given that the watch shows this so long after our last write
        let resource = shown(version, status);
        ctx.memory.with(&Pool::read(&resource, false), |memory| {
            memory.status_written = Some(Timestamp::now() - SignedDuration::from_secs(seconds));
        });
        // When the pool is reconciled
        reconcile(resource, Arc::clone(&ctx)).await.unwrap();
        // Then our status is written where it is lost, and only there
        let all = std::mem::take(&mut *cluster.0.lock().unwrap());
        let statuses = all.iter().filter(|(_, path, _)| path.ends_with("/status"));
        let sent: Vec<_> = statuses.map(|(_, _, sent)| &sent["status"]).collect();
        assert_eq!(sent.len(), writes, "version {version}: {sent:#?}");
        if let Some(last) = sent.last() {
            assert_eq!(**last, stored, "version {version}");
        }
        if writes == 2 {
            assert_eq!(*sent[0], json!({"webhook": null}));
        }
    }
}
