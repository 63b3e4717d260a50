//! The spine, with an API server that records what it is asked: what is written, in which order, and when nothing is.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use cudarunner_crds::CudaRunner;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::client::Body;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector;
use serde_json::{Value, json};

use super::reconcile;
use crate::context::Context;
use crate::github::Clients;
use crate::memory::Memory;
use crate::plan::fixture;
use crate::pool::FINALIZER;
use crate::registrar::{CaStore, ServerNames};
use crate::watch::Waker;
use crate::watch::objects::Objects;
use crate::watch::pods::Pods;

/// An API server with a namespace that holds no Secret and no ConfigMap.
#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Vec<(Method, String, Value)>>>);

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
        let answer = match (method, uri.path()) {
            (&Method::GET, path) if path.ends_with("/secrets") => {
                json!({"kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []})
            }
            (&Method::GET, _) => {
                let missing = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "NotFound", "code": 404});
                return Response::builder()
                    .status(404)
                    .body(Body::from(missing.to_string().into_bytes()))
                    .unwrap();
            }
            (_, path) if path.contains("/cudarunners/") => {
                serde_json::to_value(fixture::resource()).unwrap()
            }
            _ => sent,
        };
        Response::new(Body::from(answer.to_string().into_bytes()))
    }

    /// Method and last part of the path of each write since the last time.
    fn writes(&self) -> Vec<String> {
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

async fn context(cluster: &Cluster) -> Arc<Context> {
    let client = cluster.client();
    let (waker, _) = Waker::new();
    let waker = Arc::new(waker);
    let ca = CaStore::open(client.clone(), "system", ServerNames::default())
        .await
        .unwrap();
    cluster.writes();
    Arc::new(Context {
        clients: Clients::new(),
        pools: vec![reflector::store().0],
        pods: Arc::new(Pods::default()),
        nodes: None,
        secrets: Objects::new(client.clone(), Arc::clone(&waker)),
        config_maps: Objects::new(client.clone(), waker),
        memory: Memory::default(),
        recorder: Recorder::new(client.clone(), Reporter::from("test")),
        ca,
        registrar_url: "https://10.96.0.7:8443".to_owned(),
        gate_image: "example/cuda-smoke:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        insecure_github: false,
        client,
    })
}

fn resource(change: impl FnOnce(&mut CudaRunner)) -> Arc<CudaRunner> {
    let mut resource = fixture::resource();
    change(&mut resource);
    Arc::new(resource)
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
    assert_eq!(
        writes.last().map(String::as_str),
        Some("PATCH status"),
        "{writes:?}"
    );
    assert!(
        writes
            .iter()
            .all(|write| write == "POST events" || write == "PATCH status"),
        "{writes:?}"
    );
    // The second visit finds nothing changed
    reconcile(resource, ctx).await.unwrap();
    assert_eq!(cluster.writes(), Vec::<String>::new());
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
