//! The `CudaRunner` resources.

use std::collections::HashMap;
use std::sync::Arc;

use cudarunner_crds::{CudaRunner, CudaRunnerSpec, OperatorStatus, QuarantineStatus};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, Resource as _, ResourceExt as _};

use super::{Events, PAGE, Pauses, Scope, Waker, log_error};
use crate::selector::PoolSelector;
use cuda_runner_plan::model::pool::PoolKey;

/// Where `kubectl apply` keeps the whole resource once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What of a resource makes a reconcile worthwhile: not what we write of its status ourselves.
#[derive(Eq, PartialEq)]
struct Trigger {
    uid: Option<String>,
    generation: Option<i64>,
    deleted: Option<Timestamp>,
    finalizers: Vec<String>,
    annotations: Vec<(String, String)>,
    /// Another operator may write it.
    operator: Option<OperatorStatus>,
}

impl Trigger {
    fn of(resource: &CudaRunner) -> Self {
        let annotations = resource.annotations().iter();
        Self {
            uid: resource.uid(),
            generation: resource.meta().generation,
            deleted: resource.meta().deletion_timestamp.as_ref().map(|t| t.0),
            finalizers: resource.finalizers().to_vec(),
            annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
            operator: resource.operator().cloned(),
        }
    }
}

/// Namespace and name of a resource.
#[must_use]
pub fn key_of(resource: &CudaRunner) -> PoolKey {
    PoolKey {
        namespace: resource.namespace().unwrap_or_default(),
        name: resource.name_any(),
    }
}

/// Drops what is kept for those that write the resource: it may be as large as the rest.
fn forget_writers(resource: &mut CudaRunner) {
    resource.managed_fields_mut().clear();
    resource.annotations_mut().remove(LAST_APPLIED);
}

/// What a pool quarantines: nodes, and devices until when, and whether for longer.
type Quarantined = Vec<(String, Option<String>, Option<Time>, bool)>;

fn quarantined_by(resource: &CudaRunner) -> Quarantined {
    let entries = resource.status.iter().flat_map(|s| &s.quarantine);
    let kept = |e: &QuarantineStatus| {
        let of_device = e.device.is_some();
        let until = e.until.clone().filter(|_| of_device);
        (e.node.clone(), e.device.clone(), until, e.retest)
    };
    entries.map(kept).collect()
}

fn wake_others(seen: &HashMap<PoolKey, Trigger>, key: &PoolKey, waker: &Waker) {
    let others = seen.keys().filter(|other| *other != key);
    others.for_each(|other| waker.wake(other));
    waker.quarantine_changed();
}

/// What an event says of a resource that can be read. One that cannot, because an operator or a CRD of another
/// version has stored it, must not take the others out of sight.
pub(super) fn readable(event: Event<DeserializeGuard<CudaRunner>>) -> Option<Event<CudaRunner>> {
    let read = |guarded: DeserializeGuard<CudaRunner>| match guarded.0 {
        Ok(resource) => Some(resource),
        Err(error) => {
            let (namespace, name) = (&error.metadata.namespace, &error.metadata.name);
            tracing::error!(namespace, name, %error, "a CudaRunner cannot be read, and its pool is left as it is; compare it with `kubectl explain cudarunner`, and the version of the CRD with that of the operator");
            None
        }
    };
    Some(match event {
        Event::Apply(resource) => Event::Apply(read(resource)?),
        Event::InitApply(resource) => Event::InitApply(read(resource)?),
        // What goes is known by its name.
        Event::Delete(DeserializeGuard(Err(gone))) => {
            let mut resource = CudaRunner::new("", CudaRunnerSpec::default());
            resource.metadata = gone.metadata;
            Event::Delete(resource)
        }
        Event::Delete(DeserializeGuard(Ok(resource))) => Event::Delete(resource),
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
    })
}

/// Follows the resources of a scope permanently: those that the selector takes in, if there is one. To the watch, one whose
/// labels have changed so that it is not among them is gone.
pub async fn follow(
    client: Client,
    (scope, selector): (Scope, Option<PoolSelector>),
    mut store: Writer<CudaRunner>,
    waker: Arc<Waker>,
) {
    let api = scope.api::<DeserializeGuard<CudaRunner>>(&client);
    let mut config = watcher::Config::default().page_size(PAGE);
    config.label_selector = selector.map(|selector| selector.to_string());
    let mut events: Events<DeserializeGuard<CudaRunner>> =
        watch(api, config).backoff(Pauses::default()).boxed();
    let mut seen: HashMap<PoolKey, Trigger> = HashMap::new();
    let mut quarantined: HashMap<PoolKey, Quarantined> = HashMap::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => match readable(event) {
                Some(event) => event.modify(forget_writers),
                None => continue,
            },
            Err(error) => {
                log_error("cudarunners", &error);
                continue;
            }
        };
        // The store first: whoever is woken reads it.
        store.apply_watcher_event(&event);
        match event {
            Event::Apply(resource) | Event::InitApply(resource) => {
                let key = key_of(&resource);
                let trigger = Trigger::of(&resource);
                if seen.get(&key) != Some(&trigger) {
                    seen.insert(key.clone(), trigger);
                    waker.wake(&key);
                    waker.shares.notify_one();
                }
                // Nodes that one pool leaves alone, or no longer does, concern all.
                let nodes = quarantined_by(&resource);
                if quarantined.get(&key).map_or(&[][..], Vec::as_slice) != nodes {
                    quarantined.insert(key.clone(), nodes);
                    wake_others(&seen, &key, &waker);
                }
            }
            Event::Delete(resource) => {
                let key = key_of(&resource);
                seen.remove(&key);
                // Nobody reconciles it, and what it leaves is let go.
                waker.wake(&key);
                waker.shares.notify_one();
                if quarantined.remove(&key).is_some() {
                    wake_others(&seen, &key, &waker);
                }
            }
            Event::Init => {}
            // The store shows a new list only now: wake again those that were woken before it did.
            Event::InitDone => {
                for key in seen.keys() {
                    waker.wake(key);
                }
                waker.quarantine_changed();
                waker.shares.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube::client::Body;
    use kube::runtime::reflector;
    use serde_json::json;
    use std::convert::Infallible;

    #[tokio::test]
    async fn a_resource_that_cannot_be_read_hides_no_other() {
        // Given an API server whose list holds a resource of some other version, before a good one
        let github =
            json!({"url": "https://github.com/acme/widgets", "credentialsRef": {"name": "app"}});
        let service = tower::service_fn(move |request: Request<Body>| {
            let github = github.clone();
            async move {
                if request.uri().to_string().contains("watch=true") {
                    std::future::pending::<()>().await;
                }
                let list = json!({
                    "kind": "CudaRunnerList", "apiVersion": "cudarunner.dev/v1alpha1",
                    "metadata": {"resourceVersion": "1"},
                    "items": [
                        {"metadata": {"name": "odd", "namespace": "a"}, "spec": {"github": 5}},
                        {"metadata": {"name": "good", "namespace": "b"}, "spec": {"github": github}},
                    ],
                });
                Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
            }
        });
        let client = Client::new(service, "default");

        // When the resources are followed
        let (store, writer) = reflector::store();
        let waker = Arc::new(Waker::new().0);
        let following = follow(client, (Scope::Cluster, None), writer, waker);
        let filled =
            tokio::time::timeout(std::time::Duration::from_secs(10), store.wait_until_ready());
        tokio::select! {
            ready = filled => ready.expect("the list is read").unwrap(),
            () = following => panic!("the watch ended"),
        }

        // Then the good one is there
        let names: Vec<String> = store.state().iter().map(|r| r.name_any()).collect();
        assert_eq!(names, ["good"]);
    }
}
