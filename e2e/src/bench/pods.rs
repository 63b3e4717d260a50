//! The pods of a namespace, followed by a watch: many of them come within a second.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result};
use cudarunner_crds::POOL_LABEL;
use futures::StreamExt as _;
use gate_report::contract::{GPU, PREPARE};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

/// How many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Made and not gone.
    pub(super) there: usize,
    /// Of these, ready.
    pub(super) ready: usize,
}

/// Follows pods for as long as it lives.
pub(super) struct Pods {
    count: watch::Receiver<Count>,
    task: JoinHandle<()>,
}

impl Pods {
    /// Follows those with this label; waits until the first list is there.
    pub(super) async fn follow(api: Api<Pod>, label: &str) -> Result<Self> {
        let (sender, count) = watch::channel(Count::default());
        let config = watcher::Config::default().labels(label);
        let task = tokio::spawn(async move {
            let mut pods: HashMap<String, bool> = HashMap::new();
            let mut events = watcher(api, config).default_backoff().boxed();
            while let Some(event) = events.next().await {
                match event {
                    // A watch that broke is followed by a new list.
                    Ok(Event::Init) => pods.clear(),
                    Ok(Event::InitApply(ref pod) | Event::Apply(ref pod)) => {
                        pods.insert(pod.name_any(), is_ready(pod));
                    }
                    Ok(Event::Delete(ref pod)) => {
                        pods.remove(&pod.name_any());
                    }
                    Ok(Event::InitDone) | Err(_) => {}
                }
                if !matches!(
                    event,
                    Ok(Event::Apply(_) | Event::Delete(_) | Event::InitDone)
                ) {
                    continue;
                }
                sender.send_replace(Count {
                    there: pods.len(),
                    ready: pods.values().filter(|ready| **ready).count(),
                });
            }
        });
        let mut pods = Self { count, task };
        timeout(Duration::from_secs(30), pods.count.changed())
            .await
            .context("the watch of the pods did not begin within 30 s")??;
        Ok(pods)
    }

    /// Waits until the count satisfies; gives the moment.
    pub(super) async fn until(
        &self,
        what: &str,
        limit: Duration,
        satisfies: impl FnMut(&Count) -> bool,
    ) -> Result<Instant> {
        let mut count = self.count.clone();
        let waited = timeout(limit, count.wait_for(satisfies)).await;
        let reached = Instant::now();
        waited.with_context(|| {
            format!(
                "waited {} s for {what}, in vain: {:?}",
                limit.as_secs(),
                *self.count.borrow()
            )
        })??;
        Ok(reached)
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// The label of a bare client's pods: as long as the pools', so that nothing but the name differs.
pub(super) const BARE_LABEL: &str = "cudarunner.dev/bare";

/// A pod of the operator's as it would make it again, under another name and out of its watch's sight.
pub(super) fn bare(sample: &Pod, name: String) -> Pod {
    let mut pod = afresh(sample);
    if let Some(labels) = &mut pod.metadata.labels
        && let Some(value) = labels.remove(POOL_LABEL)
    {
        labels.insert(BARE_LABEL.to_owned(), value);
    }
    pod.metadata.name = Some(name);
    pod
}

/// A pod of the operator's as it would make it again.
pub(super) fn afresh(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    pod.status = None;
    pod.metadata = ObjectMeta {
        name: pod.metadata.name,
        namespace: pod.metadata.namespace,
        labels: pod.metadata.labels,
        annotations: pod.metadata.annotations,
        owner_references: pod.metadata.owner_references,
        ..ObjectMeta::default()
    };
    if let Some(spec) = &mut pod.spec {
        spec.node_name = None;
        let init = spec.init_containers.get_or_insert_default();
        // The image of the runner comes when the gate has passed: a request more for whoever plays that.
        let gate = init.iter().find(|c| c.name == PREPARE);
        let gate = gate.and_then(|prepare| prepare.image.clone());
        if let Some(gpu) = init.iter_mut().find(|c| c.name == GPU) {
            gpu.image = gate.or(gpu.image.take());
        }
    }
    pod
}
