//! The nodes: what they offer, their labels, and when they were started.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus, Taint};
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};

use tokio::sync::watch as flag;

use super::pools::key_of;
use super::{Events, PAGE, Pauses, Waker, log_error, refused};
use cuda_runner_plan::NodeFacts;
use cuda_runner_plan::model::observed::HAS_GPU;
use cuda_runner_plan::model::quantity::devices;
use cuda_runner_plan::node_marks::{self, Marked, NodeCondition};
use cuda_runner_plan::reason::Stored;

/// What is kept of each node.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    /// Shared with every reconcile: there may be a thousand nodes, and as many reconciles at a time.
    facts: Arc<NodeFacts>,
    uid: String,
    said: Option<NodeCondition>,
    tainted: bool,
}

/// The nodes, by name.
#[derive(Debug, Default)]
pub struct Nodes {
    nodes: RwLock<BTreeMap<String, Kept>>,
}

impl Nodes {
    /// Nodes that offer at least `count` of `resource`, taken or not.
    #[must_use]
    pub fn offering(&self, resource: &str, count: u32) -> Vec<Arc<NodeFacts>> {
        self.facts(|node| node.offers.get(resource).is_some_and(|n| *n >= count))
    }

    /// Nodes that may have devices to claim: those that are labelled so, and those that are known from elsewhere. Which
    /// devices they have is for the scheduler to know.
    #[must_use]
    pub fn claimable(&self, known: &BTreeSet<&str>) -> Vec<Arc<NodeFacts>> {
        self.facts(|node| {
            known.contains(node.name.as_str())
                || node.labels.get(HAS_GPU).is_some_and(|v| v == "true")
        })
    }

    /// All nodes.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<NodeFacts>> {
        self.facts(|_| true)
    }

    /// The node of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<NodeFacts>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(name).map(|node| Arc::clone(&node.facts))
    }

    fn facts(&self, wanted: impl Fn(&NodeFacts) -> bool) -> Vec<Arc<NodeFacts>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let facts = nodes.values().map(|node| &node.facts);
        facts.filter(|node| wanted(node)).map(Arc::clone).collect()
    }

    /// The marks of all nodes.
    #[must_use]
    pub fn marked(&self) -> Vec<Marked> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let marked = nodes.iter().map(|(name, node)| Marked {
            name: name.clone(),
            uid: node.uid.clone(),
            said: node.said.clone(),
            tainted: node.tainted,
        });
        marked.collect()
    }

    /// Takes in all nodes; whether anything that we read has changed.
    fn replace(&self, list: BTreeMap<String, Kept>) -> bool {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *nodes != list;
        *nodes = list;
        changed
    }

    /// Takes in a node; whether anything that we read has changed.
    pub(crate) fn apply(&self, node: &Node) -> bool {
        let kept = Kept::of(node);
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let changed = nodes.get(&node.name_any()) != Some(&kept);
        nodes.insert(node.name_any(), kept);
        changed
    }
}

/// What is read of a node.
#[must_use]
pub fn facts(node: &Node) -> NodeFacts {
    let status = node.status.as_ref();
    let info = status.and_then(|s| s.node_info.as_ref());
    let conditions = status.and_then(|s| s.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "Ready" && c.status == "True");
    NodeFacts {
        name: node.name_any(),
        boot_id: info.map(|i| i.boot_id.clone()).filter(|id| !id.is_empty()),
        labels: node.labels().clone(),
        offers: extended_resources(node),
        is_cordoned: node
            .spec
            .as_ref()
            .is_some_and(|s| s.unschedulable == Some(true)),
        ready_since: ready
            .and_then(|c| c.last_transition_time.as_ref())
            .map(|t| t.0),
        taints: taints(node),
    }
}

/// The taints that keep pods off. Those of a node that is cordoned or not ready say what is known already.
fn taints(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    let hard = taints.into_iter().flatten().filter(|taint| {
        taint.effect != "PreferNoSchedule" && !taint.key.starts_with("node.kubernetes.io/")
    });
    hard.cloned()
        .map(|taint| Taint {
            time_added: None,
            ..taint
        })
        .collect()
}

impl Kept {
    fn of(node: &Node) -> Self {
        Self {
            facts: Arc::new(facts(node)),
            uid: node.uid().unwrap_or_default(),
            said: node.status.as_ref().and_then(said),
            tainted: has_taint(node),
        }
    }
}

/// What our condition says.
fn said(status: &NodeStatus) -> Option<NodeCondition> {
    let mut conditions = status.conditions.iter().flatten();
    let ours = conditions.find(|c| c.type_ == node_marks::CONDITION)?;
    let since = ours.last_transition_time.as_ref();
    Some(NodeCondition {
        status: ours.status.clone(),
        reason: Stored::parse(ours.reason.as_deref().unwrap_or_default()),
        message: ours.message.clone().unwrap_or_default(),
        since: since.map_or(Timestamp::UNIX_EPOCH, |t| t.0),
    })
}

fn has_taint(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().any(node_marks::is_ours)
}

/// Allocatable extended resources: those with a domain in their name.
fn extended_resources(node: &Node) -> BTreeMap<String, u32> {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    allocatable
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/'))
        .filter_map(|(name, quantity)| Some((name.clone(), devices(quantity)?)))
        .collect()
}

/// Follows the nodes permanently. A change wakes the pools that quarantined nodes: it may end that; those that tell
/// GitHub how many jobs can run; and whoever marks nodes.
pub async fn follow(
    client: Client,
    nodes: Arc<Nodes>,
    pools: Vec<Store<CudaRunner>>,
    waker: Arc<Waker>,
    filled: flag::Sender<bool>,
) {
    let api = Api::<Node>::all(client);
    let mut events: Events<Node> = watch(api, watcher::Config::default().page_size(PAGE))
        .backoff(Pauses::default())
        .boxed();
    // A node that vanished while the watch was broken must not be counted for ever, and until a new list is whole the old
    // one holds: half of it would be half of the GPUs.
    let mut list = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => list.clear(),
            Ok(Event::InitApply(node)) => {
                list.insert(node.name_any(), Kept::of(&node));
            }
            Ok(Event::InitDone) => {
                if nodes.replace(std::mem::take(&mut list)) {
                    wake_concerned(&pools, &waker);
                }
                filled.send_replace(true);
            }
            Ok(Event::Apply(node)) => {
                if nodes.apply(&node) {
                    wake_concerned(&pools, &waker);
                }
            }
            Ok(Event::Delete(node)) => {
                {
                    let mut nodes = nodes.nodes.write().unwrap_or_else(PoisonError::into_inner);
                    nodes.remove(&node.name_any());
                }
                wake_concerned(&pools, &waker);
            }
            Err(error) => {
                // Without the right to see nodes there is nothing to wait for.
                if refused(&error) == Some(403) {
                    filled.send_replace(true);
                }
                log_error("nodes", &error);
            }
        }
    }
}

fn wake_concerned(pools: &[Store<CudaRunner>], waker: &Waker) {
    let all = pools.iter().flat_map(Store::state);
    let concerned = all.filter(|p| {
        let status = p.status.as_ref();
        status.is_some_and(|s| !s.quarantine.is_empty() || s.scale_set.is_some())
    });
    for pool in concerned {
        waker.wake(&key_of(&pool));
    }
    waker.marks.notify_one();
    waker.shares.notify_one();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_may_go_where_a_label_says_so_and_where_one_has_been() {
        let nodes = Nodes::default();
        for (name, label) in [("labelled", "true"), ("met", "false"), ("other", "false")] {
            let node = json!({
                "metadata": {"name": name, "labels": {HAS_GPU: label}},
                "status": {"allocatable": {"nvidia.com/gpu": "4"}}
            });
            nodes.apply(&serde_json::from_value(node).unwrap());
        }
        let facts = nodes.claimable(&BTreeSet::from(["met", "gone"]));
        let names: Vec<&str> = facts.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["labelled", "met"]);
        assert_eq!(nodes.offering("nvidia.com/gpu", 4).len(), 3);
    }
}
