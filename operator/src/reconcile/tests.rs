//! The spine, with an API server that records what it is asked: what is written, in which order, and when nothing is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, OperatorStatus};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::Reporter;
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::{RwLock, Semaphore};

use kube::runtime::controller::Action as Next;

use super::{guarded, on_error};
use crate::act::events::Events;
use crate::context::{CREATIONS, Context, STATUS_WRITES};
use crate::ended::EndedRunners;
use crate::error::ReconcileError;
use crate::github::tests::stub::Stub;
use crate::github::{Clients, Reach};
use crate::lease::Fence;
use crate::listen::Listeners;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::owner::Ownership;
use crate::per_pool::PerPool;
use crate::registrar::{CaStore, ServerNames};
use crate::specs::Specs;
use crate::watch::Waker;
use crate::watch::objects::{Breadth, Objects};
use crate::watch::pods::Pods;
use cuda_runner_plan::fixture;
use cuda_runner_plan::model::pool::FINALIZER;
use cuda_runner_plan::node_marks::Marking;

mod checks;
mod failures;
mod gone;
mod left;
mod rerun;
mod status;
mod webhook;

/// A version that the API server has gone past.
pub(crate) const STALE: &str = "stale";
/// Name and uid of a pod that is there and whose removal meets a conflict.
pub(crate) const HELD: &str = "pool-held";
/// Name of a pod whose creation gets no good answer.
pub(crate) const LOST: &str = "pool-lost";
/// Names of pods with an idle agent, and with one that has a job.
pub(crate) const IDLE: &str = "pool-idle";
pub(crate) const BUSY: &str = "pool-busy";
/// Name of a pod that is there already.
pub(crate) const THERE: &str = "pool-there";

/// An API server with a namespace that holds no Secret and no ConfigMap, unless a test puts one there.
#[derive(Clone, Default)]
pub(crate) struct Cluster(
    Arc<Mutex<Vec<(Method, String, Value)>>>,
    /// Whether a status cannot be written.
    Arc<AtomicBool>,
    /// Whether Events get no answer.
    Arc<AtomicBool>,
    /// Held by whoever lets no status write be answered.
    Arc<RwLock<()>>,
    /// What a test has put into the pools' namespace, by the kind's name in paths.
    Arc<Mutex<BTreeMap<&'static str, Value>>>,
    /// The pool's status, as it was last stored.
    Arc<Mutex<Value>>,
    /// Why a status cannot be written, in the API server's words.
    Arc<Mutex<Option<&'static str>>>,
);

impl Cluster {
    fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                Ok::<_, Infallible>(this.answer(&parts.method, &parts.uri, &body).await)
            }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> Response<Body> {
        if uri.query().unwrap_or_default().contains("watch=true") {
            // Nothing happens while the test runs.
            std::future::pending::<()>().await;
        }
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        if *method != Method::GET {
            self.0
                .lock()
                .unwrap()
                .push((method.clone(), uri.path().to_owned(), sent.clone()));
        }
        if uri.path().ends_with("/events") && self.2.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if uri.path().ends_with("/status") {
            let _may_answer = self.3.read().await;
            if self.1.load(Ordering::Relaxed) {
                return refusal(500, "InternalError");
            }
            let said = *self.6.lock().unwrap();
            if let Some(said) = said {
                return refusal_with(500, "InternalError", said);
            }
            *self.5.lock().unwrap() = sent["status"].clone();
        }
        if let Some(object) = self.listed(method, uri.path()) {
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [object]});
            return Response::new(Body::from(list.to_string().into_bytes()));
        }
        if sent["metadata"]["resourceVersion"] == STALE {
            return refusal(409, "Conflict");
        }
        match sent["metadata"]["name"].as_str() {
            Some(LOST) => return refusal(504, "Timeout"),
            Some(THERE) => return refusal(409, "AlreadyExists"),
            _ => {}
        }
        let answer = match (method, uri.path()) {
            (&Method::DELETE, path) if path.ends_with(HELD) => return refusal(409, "Conflict"),
            (&Method::GET, path) if path.ends_with(HELD) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": HELD, "uid": HELD}})
            }
            (&Method::GET, path) if path.ends_with(IDLE) => running(IDLE, true),
            (&Method::GET, path) if path.ends_with(BUSY) => running(BUSY, false),
            (&Method::GET, path) if path.ends_with("/secrets") => {
                json!({"kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})
            }
            (&Method::GET, _) => return refusal(404, "NotFound"),
            (_, path) if path.contains("/cudarunners/") => {
                serde_json::to_value(fixture::resource()).unwrap()
            }
            (_, path) if path.ends_with("/pods") => {
                let mut made = sent;
                made["metadata"]["uid"] = made["metadata"]["name"].clone();
                made
            }
            _ => sent,
        };
        Response::new(Body::from(answer.to_string().into_bytes()))
    }

    /// What a test has put where this list is read.
    fn listed(&self, method: &Method, path: &str) -> Option<Value> {
        let (_, kind) = path.split_once("/namespaces/ci/")?;
        if method != Method::GET {
            return None;
        }
        self.4.lock().unwrap().get(kind).cloned()
    }

    /// What the last write sent.
    pub(crate) fn last_sent(&self) -> Value {
        let all = self.0.lock().unwrap();
        all.last().map(|(_, _, sent)| sent.clone()).unwrap()
    }

    /// Method and last part of the path of each write since the last time.
    pub(crate) fn writes(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.0.lock().unwrap());
        all.iter()
            .map(|(method, path, _)| format!("{method} {}", path.rsplit('/').next().unwrap()))
            .collect()
    }

    fn condition(&self, type_: &str) -> Value {
        let all = self.0.lock().unwrap();
        let status = all
            .iter()
            .rev()
            .find(|(_, path, _)| path.ends_with("/status"))
            .expect("no status was written");
        let conditions = status.2["status"]["conditions"].as_array().unwrap().clone();
        conditions
            .into_iter()
            .find(|condition| condition["type"] == type_)
            .unwrap()
    }
}

/// A pod whose agent has been online, of the uid that is its name.
fn running(name: &str, is_idle: bool) -> Value {
    let agent = json!({
        "name": "runner", "image": "", "imageID": "", "ready": is_idle, "started": true, "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:06Z"}}
    });
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "uid": name, "resourceVersion": "7"},
        "spec": {"containers": [{"name": "runner"}]},
        "status": {
            "phase": "Running", "containerStatuses": [agent],
            "conditions": [{"type": "PodScheduled", "status": "True"}]
        }
    })
}

fn refusal(code: u16, reason: &str) -> Response<Body> {
    refusal_with(code, reason, "no")
}

fn refusal_with(code: u16, reason: &str, said: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": said, "reason": reason, "code": code});
    Response::builder()
        .status(code)
        .body(Body::from(status.to_string().into_bytes()))
        .unwrap()
}

pub(crate) async fn context(cluster: &Cluster) -> Arc<Context> {
    let client = cluster.client();
    let (waker, _) = Waker::new();
    let waker = Arc::new(waker);
    let ca = CaStore::open(client.clone(), "system", ServerNames::default())
        .await
        .unwrap();
    cluster.writes();
    let (pools, mut writer) = reflector::store();
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitApply(fixture::resource()));
    writer.apply_watcher_event(&Event::InitDone);
    Arc::new(Context {
        clients: Clients::new(Reach::default()),
        ownership: Ownership::new(OperatorStatus::default(), None, client.clone()),
        beside: Arc::default(),
        pools: vec![pools],
        pods: Arc::new(Pods::default()),
        nodes: None,
        shares: crate::shares::Shares::default(),
        marking: Marking::default(),
        tainting: None,
        devices: None,
        waker: Arc::clone(&waker),
        secrets: Objects::new(client.clone(), Arc::clone(&waker), Breadth::Object),
        config_maps: Objects::new(client.clone(), waker, Breadth::Object),
        specs: Specs::new(false),
        memory: Memory::default(),
        ended: EndedRunners::default(),
        listeners: Listeners::default(),
        status_writes: PerPool::default(),
        status_turns: Arc::new(Semaphore::new(STATUS_WRITES)),
        metrics: Metrics::default(),
        webhooks: None,
        events: Events::start(client.clone(), Reporter::from("test")),
        creations: Semaphore::new(CREATIONS),
        ca,
        ledger: Arc::default(),
        registrar_url: "https://10.96.0.7:8443".to_owned(),
        gate_image: "example/cuda-smoke:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        hung_after: SignedDuration::from_mins(10),
        insecure_github: false,
        client,
        fence: Fence::default(),
    })
}

/// A planned, and the Events that it has published: they are sent beside it.
async fn reconcile(resource: Arc<CudaRunner>, ctx: Arc<Context>) -> Result<Next, ReconcileError> {
    let done = super::reconcile(resource, ctx).await;
    // Nothing here waits for a clock or a network: every task gets as many turns as it needs.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    done
}

fn resource(change: impl FnOnce(&mut CudaRunner)) -> Arc<CudaRunner> {
    let mut resource = fixture::resource();
    let status = resource.status.get_or_insert_default();
    status.operator = Some(OperatorStatus::default());
    change(&mut resource);
    Arc::new(resource)
}

/// Puts what a pool needs for its way to this GitHub where it looks for that.
fn furnish(cluster: &Cluster, github: &Stub) {
    let data = json!({"token": "Z2hwX3Q="});
    let secret =
        json!({"metadata": {"name": "github", "namespace": "ci", "uid": "s"}, "data": data});
    let data = json!({"ca.crt": github.authority()});
    let ca = json!({"metadata": {"name": "ca", "namespace": "ci"}, "data": data});
    let objects = [("secrets", secret), ("configmaps", ca)];
    cluster.4.lock().unwrap().extend(objects);
}

/// A pool at this GitHub that wants no runners and has had some, as its status is stored.
fn stored(
    cluster: &Cluster,
    github: &Stub,
    change: impl FnOnce(&mut CudaRunner),
) -> Arc<CudaRunner> {
    resource(|resource| {
        let address = format!("https://{}/acme/widgets", github.address());
        let spec = &mut resource.spec;
        spec.github.url.clone_from(&address);
        let ca = json!({"name": "ca", "key": "ca.crt"});
        spec.github.ca_bundle_ref = Some(serde_json::from_value(ca).unwrap());
        spec.replicas = Some(0);
        change(resource);
        let stored = cluster.5.lock().unwrap().clone();
        let stored: Option<CudaRunnerStatus> = serde_json::from_value(stored).unwrap();
        resource.status = Some(CudaRunnerStatus {
            // It is this operator's.
            operator: resource.operator().cloned(),
            registered_at: Some(address),
            ..stored.unwrap_or_default()
        });
    })
}

#[tokio::test]
async fn a_pool_without_its_secret_says_so_once_and_makes_nothing() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let resource = resource(|_| {});
    reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap();
    let stalled = cluster.condition("Stalled");
    assert_eq!(
        (&stalled["status"], &stalled["reason"]),
        (&json!("True"), &json!("SecretNotFound"))
    );
    let writes = cluster.writes();
    assert!(writes.contains(&"PATCH status".to_owned()), "{writes:?}");
    assert!(
        writes
            .iter()
            .all(|write| write == "POST events" || write == "PATCH status"),
        "{writes:?}"
    );
    // The second reconcile finds nothing changed
    reconcile(resource, ctx).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_reconcile_waits_for_no_moment_from_before_the_clock_was_set_back() {
    // Given a pool that was reconciled when the clock was an hour ahead, and that waits for a moment since
    let ctx = context(&Cluster::default()).await;
    let (pool, ahead) = (
        fixture::pool(1),
        Timestamp::now() + SignedDuration::from_hours(1),
    );
    ctx.memory.with(&pool, |memory| {
        memory.begins(ahead, Instant::now());
        memory.hook.not_before = Some(ahead);
    });
    let waits = || ctx.memory.with(&pool, |memory| memory.hook.not_before);
    // When it is reconciled by the right time, then it waits no more
    assert!(waits().is_some());
    reconcile(resource(|_| {}), Arc::clone(&ctx)).await.unwrap();
    assert_eq!(waits(), None);
}

#[tokio::test]
async fn a_reconcile_that_panics_is_a_failed_reconcile_of_its_pool_alone() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let resource = resource(|_| {});

    // Given reconciles that panic
    let panicking = async { panic!("odd") };
    let error = guarded(&resource, &ctx, panicking).await.unwrap_err();

    // Then each is counted, and the next comes later
    assert!(matches!(error, ReconcileError::Panicked(_)), "{error}");
    let page = ctx.metrics.page(|_| true, vec![]);
    assert!(page.contains(r#"category="Panic""#), "{page}");
    let waits: Vec<_> = (0..3)
        .map(|_| on_error(Arc::clone(&resource), &error, Arc::clone(&ctx)))
        .collect();
    assert!(!waits.contains(&Next::await_change()));
    assert_ne!(waits[0], waits[2]);

    // And the operator goes on
    reconcile(resource, ctx).await.unwrap();
}

#[tokio::test]
async fn an_event_that_gets_no_answer_holds_up_nothing() {
    // Given an API server that answers no Event
    let cluster = Cluster::default();
    cluster.2.store(true, Ordering::Relaxed);
    let ctx = context(&cluster).await;
    // When a pool has something to tell, then its status is written all the same
    let planned = reconcile(resource(|_| {}), ctx);
    let limit = std::time::Duration::from_secs(10);
    tokio::time::timeout(limit, planned).await.unwrap().unwrap();
    let writes = cluster.writes();
    for write in ["POST events", "PATCH status"] {
        assert!(writes.contains(&write.to_owned()), "{writes:?}");
    }
}

#[tokio::test]
async fn a_new_pool_gets_its_finalizer_before_anything_else() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let resource = resource(|resource| resource.metadata.finalizers = None);
    reconcile(resource, ctx).await.unwrap();
    let all = cluster.0.lock().unwrap().clone();
    let patch = all
        .iter()
        .find(|(_, path, _)| path.ends_with("/cudarunners/pool"))
        .expect("no finalizer was set");
    assert_eq!(patch.2["metadata"]["finalizers"], json!([FINALIZER]));
    assert!(
        !all.iter().any(|(_, path, _)| path.ends_with("/pods")),
        "a pod was made without a finalizer"
    );
}

#[tokio::test]
async fn a_pool_that_never_registered_is_let_go_at_once() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let resource = resource(|resource| {
        resource.metadata.finalizers =
            Some(vec!["example.com/other".to_owned(), FINALIZER.to_owned()]);
        resource.status.as_mut().unwrap().registered_at = None;
        resource.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
    });
    reconcile(resource, ctx).await.unwrap();
    let all = cluster.0.lock().unwrap().clone();
    let patch = all
        .iter()
        .find(|(_, path, _)| path.ends_with("/cudarunners/pool"))
        .expect("it is held");
    assert_eq!(
        patch.2["metadata"]["finalizers"],
        json!(["example.com/other"]),
        "another's finalizer stays"
    );
    assert!(
        !all.iter().any(|(_, path, _)| path.ends_with("/status")),
        "a status was written to what is gone"
    );
}

/// Whether the metrics have this line; all of them if not.
pub(crate) fn shows(ctx: &Context, line: &str) -> Result<(), String> {
    let page = ctx.metrics_page();
    let found = page.lines().any(|l| l == line);
    found.then_some(()).ok_or(page)
}

/// The watch shows a pod of the pool.
fn show_pod(ctx: &Context, name: &str, status: &Value) {
    ctx.pods.apply(&pod_of(name, status), true).unwrap();
}

/// The watch shows that the pod is gone.
fn hide_pod(ctx: &Context, name: &str, status: &Value) {
    ctx.pods.delete(&pod_of(name, status), true);
}

fn pod_of(name: &str, status: &Value) -> Pod {
    let pod = json!({
        "metadata": {
            "name": name,
            "uid": name,
            "namespace": "ci",
            "labels": {"cudarunner.dev/pool": "pool"},
            "ownerReferences": [{"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": "pool", "uid": fixture::pool(1).uid}],
        },
        // One whose container was started a second time was let in.
        "spec": {
            "initContainers": [{
                "name": "gpu",
                "image": if status["initContainerStatuses"][0]["restartCount"] == 1 { "runner:1" } else { "gate:1" },
            }],
            "containers": [{"name": "main", "image": "gate:1"}],
        },
        "status": status,
    });
    serde_json::from_value(pod).unwrap()
}

#[tokio::test]
async fn a_runners_pod_goes_when_the_status_has_its_job_and_no_sooner() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let resource = resource(|_| {});
    let mark = json!({"mark": "completed", "job": "build", "run": "none"});
    show_pod(
        &ctx,
        "pool-aaaaa",
        &json!({"phase": "Succeeded", "initContainerStatuses": [{
            "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 0, "message": mark.to_string()}},
        }]}),
    );
    // Given a status that cannot be written, then the pod stays, and nothing is told of its job
    cluster.1.store(true, Ordering::Relaxed);
    reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap_err();
    let before = cluster.writes();
    assert!(before.contains(&"PATCH status".to_owned()), "{before:?}");
    assert!(!before.iter().any(|write| write.starts_with("DELETE")));

    // When it can be written, then the job is reported after that, and the pod goes at the next planned, which is at
    // once
    cluster.1.store(false, Ordering::Relaxed);
    let next = reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap();
    assert_eq!(next, Next::requeue(std::time::Duration::ZERO));
    let reported = cluster.0.lock().unwrap().last().unwrap().2.clone();
    assert_eq!(
        (&reported["reason"], &reported["note"]),
        (&json!("JobCompleted"), &json!("build: ended on pool-aaaaa"))
    );
    let writes = cluster.writes();
    assert_eq!(writes[writes.len() - 2..], ["PATCH status", "POST events"]);
    reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap();
    assert_eq!(cluster.writes(), ["DELETE pool-aaaaa"]);

    // And what was asked for is not asked for again while the watch still shows the pod
    reconcile(resource, ctx).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn each_runner_that_fails_has_an_event_of_its_own() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    for (name, code) in [("pool-aaaaa", 12), ("pool-bbbbb", 13)] {
        show_pod(
            &ctx,
            name,
            &json!({"phase": "Failed", "initContainerStatuses": [{
                "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code}},
            }]}),
        );
    }
    reconcile(resource(|_| {}), ctx).await.unwrap();
    let all = cluster.0.lock().unwrap().clone();
    let about: Vec<_> = all
        .iter()
        .filter(|(method, _, sent)| *method == Method::POST && sent["reason"] == "GateFailed")
        .map(|(_, _, sent)| sent["related"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(about, ["pool-aaaaa", "pool-bbbbb"], "not one with a count");
}

#[tokio::test]
async fn a_finalizer_that_meets_a_conflict_is_tried_again() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let leaving = resource(|resource| {
        resource.metadata.deletion_timestamp = Some(Time(Timestamp::now()));
        resource.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        resource.metadata.resource_version = Some(STALE.to_owned());
        resource.status.as_mut().unwrap().registered_at = None;
    });
    reconcile(leaving, ctx).await.unwrap_err();
    assert_eq!(cluster.writes(), ["PATCH pool"]);
}

#[tokio::test]
async fn a_failure_is_counted_once_when_the_status_holds_it() {
    let cluster = Cluster::default();
    let ctx = context(&cluster).await;
    let resource = resource(|_| {});
    show_pod(
        &ctx,
        "pool-aaaaa",
        &json!({"phase": "Failed", "initContainerStatuses": [{
            "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 12}},
        }]}),
    );
    let counted = r#"cudarunner_runner_failures_total{namespace="ci",pool="pool",class="device",reason="GateFailed"} 1"#;
    let error =
        r#"cudarunner_reconcile_errors_total{namespace="ci",pool="pool",category="Status"} 1"#;

    // Given a status that cannot be written
    cluster.1.store(true, Ordering::Relaxed);
    reconcile(Arc::clone(&resource), Arc::clone(&ctx))
        .await
        .unwrap_err();
    shows(&ctx, error).unwrap();
    shows(&ctx, counted).unwrap_err();

    // When it can, then the failure is counted, and not again at the next reconcile
    cluster.1.store(false, Ordering::Relaxed);
    for _ in 0..2 {
        reconcile(Arc::clone(&resource), Arc::clone(&ctx))
            .await
            .unwrap();
        shows(&ctx, counted).unwrap();
    }
    shows(&ctx, "cudarunner_reconcile_duration_seconds_count 3").unwrap();
    shows(
        &ctx,
        r#"cudarunner_runners{namespace="ci",pool="pool",phase="Failed"} 1"#,
    )
    .unwrap();
    shows(
        &ctx,
        r#"cudarunner_pool_condition{namespace="ci",pool="pool",condition="Stalled"} 1"#,
    )
    .unwrap();
}
