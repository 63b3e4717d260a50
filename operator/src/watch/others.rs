//! What pods that are no runners hold of a node's GPUs. It takes a watch on every pod of the cluster, since no selector knows of
//! resources; of pods without an extended resource nothing is kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};

use tokio::sync::watch as flag;

use super::{Events, PAGE, Pauses, Waker, log_error, refused};
use crate::observe::pod::is_over;
use cuda_runner_plan::fleet::Others;
use cuda_runner_plan::model::quantity::devices;
use cuda_runner_plan::model::runner::Runner;

/// Pods that have not ended, as a field selector.
pub const ALIVE: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Extended resources, by name.
pub(super) type Counts = BTreeMap<String, u32>;

/// The pods of others that hold extended resources: node and counts, by uid. Of other pods nothing is kept.
#[derive(Debug, Default)]
pub struct Held(Mutex<Inside>);

#[derive(Debug, Default)]
struct Inside {
    pods: HashMap<String, (String, Counts)>,
    /// Whether all have been read.
    is_whole: bool,
}

impl Held {
    /// What is held on each node; `None` until all pods have been read.
    #[must_use]
    pub fn by_node(&self) -> Option<Others> {
        let inside = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inside.is_whole.then(|| by_node(inside.pods.values()))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inside) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One that has read all pods there are: none.
    #[cfg(test)]
    pub(crate) fn whole() -> Self {
        let held = Self::default();
        held.with(|inside| inside.is_whole = true);
        held
    }

    /// Takes in a pod; whether what it holds is news.
    pub(crate) fn take(&self, pod: &Pod) -> bool {
        self.put(pod.uid().unwrap_or_default(), held_of(pod))
    }

    fn put(&self, uid: String, has: Option<(String, Counts)>) -> bool {
        self.with(|inside| match has {
            Some(has) => inside.pods.insert(uid, has.clone()).as_ref() != Some(&has),
            None => inside.pods.remove(&uid).is_some(),
        })
    }
}

/// What pods hold on each node.
fn by_node<'a>(pods: impl Iterator<Item = &'a (String, Counts)>) -> Others {
    let mut others = Others::new();
    add_all(&mut others, pods.map(|(node, held)| (node, held)));
    others
}

/// Adds what is held on nodes.
pub(crate) fn add_all<'a>(
    others: &mut Others,
    held: impl IntoIterator<Item = (&'a String, &'a Counts)>,
) {
    for (node, held) in held {
        add(others.entry(node.clone()).or_default(), held);
    }
}

/// What these pods hold on each node.
#[must_use]
pub fn held_by<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Others {
    let held: Vec<_> = pods.into_iter().filter_map(held_of).collect();
    by_node(held.iter())
}

/// Adds what somebody holds.
fn add<'a>(sum: &mut Counts, more: impl IntoIterator<Item = (&'a String, &'a u32)>) {
    for (name, count) in more {
        let all = sum.entry(name.clone()).or_default();
        *all = all.saturating_add(*count);
    }
}

/// Adds what a runner holds of resources other than `apart`, until its pod is over.
pub(crate) fn add_runner(sum: &mut Others, runner: &Runner, apart: Option<&str>) {
    let held = runner.devices_held.iter();
    let mut held = held
        .filter(|(name, _)| Some(name.as_str()) != apart)
        .peekable();
    let node = runner.node.as_ref().filter(|_| !runner.is_over);
    if let Some(node) = node.filter(|_| held.peek().is_some()) {
        add(sum.entry(node.clone()).or_default(), held);
    }
}

/// The node of a pod, and the extended resources that it holds there until it is over, if it does.
pub(super) fn held_of(pod: &Pod) -> Option<(String, Counts)> {
    if is_over(pod) {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let node = spec.node_name.clone()?;
    let held = asked(spec);
    (!held.is_empty()).then_some((node, held))
}

/// The extended resources that a pod is granted: what its containers ask for together, or one that runs before them, with the
/// sidecars that were started before that, if that is more. See
/// <https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers>.
pub(crate) fn asked(spec: &PodSpec) -> Counts {
    let (mut sidecars, mut before) = (Counts::new(), Counts::new());
    for container in spec.init_containers.iter().flatten() {
        let mut beside = sidecars.clone();
        add(&mut beside, &limits(container));
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = beside;
        } else {
            at_least(&mut before, beside);
        }
    }
    let mut held = sidecars;
    for container in &spec.containers {
        add(&mut held, &limits(container));
    }
    at_least(&mut held, before);
    held
}

fn at_least(counts: &mut Counts, least: Counts) {
    for (name, count) in least {
        let most = counts.entry(name).or_default();
        *most = count.max(*most);
    }
}

/// The extended resources of a container: those with a domain in their name.
fn limits(container: &Container) -> Counts {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    limits
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.contains('/'))
        .filter_map(|(name, quantity)| Some((name.clone(), devices(quantity)?)))
        .collect()
}

/// Follows the pods of the cluster that are no runners, permanently; `filled` turns true after the first list.
pub async fn follow(
    client: Client,
    held: Arc<Held>,
    waker: Arc<Waker>,
    filled: flag::Sender<bool>,
) {
    let config = watcher::Config::default()
        .labels(&format!("!{}", cudarunner_crds::POOL_LABEL))
        .fields(ALIVE)
        .page_size(PAGE);
    let mut events: Events<Pod> = watch(Api::<Pod>::all(client), config)
        .backoff(Pauses::default())
        .boxed();
    let mut listed = HashMap::new();
    while let Some(event) = events.next().await {
        let is_news = match event {
            Ok(Event::Init) => {
                listed.clear();
                false
            }
            Ok(Event::InitApply(pod)) => {
                listed.extend(pod.uid().zip(held_of(&pod)));
                false
            }
            Ok(Event::InitDone) => {
                let pods = std::mem::take(&mut listed);
                held.with(|inside| {
                    *inside = Inside {
                        pods,
                        is_whole: true,
                    };
                });
                filled.send_replace(true);
                true
            }
            Ok(Event::Apply(pod)) => held.take(&pod),
            Ok(Event::Delete(pod)) => held.put(pod.uid().unwrap_or_default(), None),
            Err(error) => {
                // Without the right to see pods there is nothing to wait for.
                if refused(&error) == Some(403) {
                    filled.send_replace(true);
                }
                log_error("pods of others", &error);
                false
            }
        };
        if is_news {
            waker.shares.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_holds_what_its_containers_ask_for_together() {
        let gpus = |n: u32| json!({"limits": {"nvidia.com/gpu": n.to_string(), "cpu": "1"}});
        let pod = |phase: &str, node: Option<&str>, before: u32| -> Pod {
            let spec = json!({
                "nodeName": node,
                "initContainers": [
                    {"name": "warm-up", "resources": gpus(2)},
                    {"name": "sidecar", "restartPolicy": "Always", "resources": gpus(1)},
                    {"name": "check", "resources": gpus(before)},
                ],
                "containers": [{"name": "a", "resources": gpus(1)}, {"name": "b", "resources": gpus(1)}],
            });
            let pod = json!({"metadata": {"name": "a"}, "spec": spec, "status": {"phase": phase}});
            serde_json::from_value(pod).unwrap()
        };
        // Given a pod with a node, one that waits, and one that is over
        let pods = [
            pod("Running", Some("node-1"), 1),
            pod("Pending", None, 1),
            pod("Succeeded", Some("node-1"), 1),
        ];
        let others = held_by(&pods);
        assert_eq!(others.len(), 1);
        assert_eq!(
            others["node-1"],
            Counts::from([("nvidia.com/gpu".to_owned(), 3)])
        );
        // One that runs before them has the sidecar beside it
        let others = held_by(&[pod("Running", Some("node-1"), 3)]);
        assert_eq!(others["node-1"]["nvidia.com/gpu"], 4);
    }
}
