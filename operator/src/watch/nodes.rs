//! The nodes, as far as they offer devices.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};

use super::{Events, log_error};

/// How many of which extended resource each node offers.
#[derive(Debug, Default)]
pub struct Nodes {
    offers: RwLock<HashMap<String, BTreeMap<String, u32>>>,
}

impl Nodes {
    /// Nodes that offer at least `count` of `resource`, taken or not.
    #[must_use]
    pub fn offering(&self, resource: &str, count: u32) -> usize {
        let offers = self.offers.read().unwrap_or_else(PoisonError::into_inner);
        offers
            .values()
            .filter(|offer| offer.get(resource).is_some_and(|n| *n >= count))
            .count()
    }

    fn apply(&self, node: &Node) {
        let mut offers = self.offers.write().unwrap_or_else(PoisonError::into_inner);
        offers.insert(node.name_any(), extended_resources(node));
    }
}

/// Allocatable extended resources: those with a domain in their name.
fn extended_resources(node: &Node) -> BTreeMap<String, u32> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    allocatable
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/'))
        .filter_map(|(name, quantity)| Some((name.clone(), quantity.0.parse().ok()?)))
        .collect()
}

/// Follows the nodes for good.
pub async fn follow(client: Client, nodes: Arc<Nodes>) {
    let api = Api::<Node>::all(client);
    let mut events: Events<Node> = watch(api, watcher::Config::default())
        .default_backoff()
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            // A node that vanished while the watch was broken must not be counted for ever.
            Ok(Event::Init) => nodes
                .offers
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .clear(),
            Ok(Event::InitApply(node) | Event::Apply(node)) => nodes.apply(&node),
            Ok(Event::Delete(node)) => {
                let mut offers = nodes.offers.write().unwrap_or_else(PoisonError::into_inner);
                offers.remove(&node.name_any());
            }
            Ok(Event::InitDone) => {}
            Err(error) => log_error("nodes", &error),
        }
    }
}
