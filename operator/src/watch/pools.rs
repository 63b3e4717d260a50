//! The `CudaRunner` resources.

use std::collections::HashMap;
use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, Resource as _, ResourceExt as _};

use super::{Events, PAGE, Scope, Waker, log_error};
use crate::pool::PoolKey;

/// What of a resource makes a visit worthwhile: not its status, which we write ourselves.
#[derive(Eq, PartialEq)]
struct Trigger {
    uid: Option<String>,
    generation: Option<i64>,
    deleted: Option<Timestamp>,
    finalizers: Vec<String>,
    annotations: Vec<(String, String)>,
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

fn quarantined_nodes(resource: &CudaRunner) -> Vec<String> {
    let entries = resource.status.iter().flat_map(|s| &s.quarantine);
    entries.map(|e| e.node.clone()).collect()
}

fn wake_others(seen: &HashMap<PoolKey, Trigger>, key: &PoolKey, waker: &Waker) {
    let others = seen.keys().filter(|other| *other != key);
    others.for_each(|other| waker.wake(other));
    waker.marks.notify_one();
}

/// Follows the resources of a scope for good.
pub async fn follow(
    client: Client,
    scope: Scope,
    mut store: Writer<CudaRunner>,
    waker: Arc<Waker>,
) {
    let api = scope.api::<CudaRunner>(&client);
    let mut events: Events<CudaRunner> = watch(api, watcher::Config::default().page_size(PAGE))
        .default_backoff()
        .boxed();
    let mut seen: HashMap<PoolKey, Trigger> = HashMap::new();
    let mut quarantined: HashMap<PoolKey, Vec<String>> = HashMap::new();
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event.modify(|r| r.managed_fields_mut().clear()),
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
                }
                // Nodes that one pool leaves alone, or no longer does, concern all.
                let nodes = quarantined_nodes(&resource);
                if quarantined.get(&key).map_or(&[][..], Vec::as_slice) != nodes {
                    quarantined.insert(key.clone(), nodes);
                    wake_others(&seen, &key, &waker);
                }
            }
            Event::Delete(resource) => {
                let key = key_of(&resource);
                seen.remove(&key);
                // Nobody visits it, and what it leaves is let go.
                waker.wake(&key);
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
                waker.marks.notify_one();
            }
        }
    }
}
