//! What the story repeats in other words: a gate's report, and the Events of pools.

use std::collections::BTreeSet;

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use gate_report::Report;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};

use super::{EVENT, NAMESPACE, SOON};
use crate::{gpu, report::Story, wait::wait_for};

/// Words that are worth saying once, in bytes.
const LONG: usize = 40;

/// The gate's verdict in a few lines.
pub(super) fn told(report: &Report) -> Vec<String> {
    let driver = report.driver.clone().unwrap_or_default();
    let unknown = || "unknown".to_owned();
    let mut lines = vec![format!(
        "driver for CUDA {}, {}",
        driver.cuda_version.unwrap_or_else(unknown),
        driver.library.unwrap_or_else(unknown)
    )];
    lines.extend(report.devices.iter().map(|device| {
        format!(
            "device {}: {}, {}, compute capability {}, {} GiB, {} concurrent managed access",
            device.ordinal,
            device.name,
            device.uuid,
            device.compute_capability,
            device.memory_bytes >> 30,
            if device.concurrent_managed_access {
                "with"
            } else {
                "without"
            }
        )
    }));
    lines.push(format!(
        "{:?} in {:.0} ms",
        report.outcome, report.timings.total_ms
    ));
    lines
}

/// The gate's report in a pod's termination message. The kubelet writes it to the API a moment after the gate has ended, and a
/// runner can be idle by then.
pub(super) async fn report(pods: &Api<Pod>, pod: &str) -> Result<Report> {
    wait_for("the gate's report in the pod", SOON, async || {
        let shown = pods.get(pod).await?;
        Ok(gpu::report(&shown).map(serde_json::from_str).transpose()?)
    })
    .await
}

/// Tells the Events of the namespace as they come, until it is stopped.
pub(super) async fn recount(client: Client, story: Story) {
    let events: Api<Event> = Api::namespaced(client, NAMESPACE);
    let about_pools = watcher::Config::default().fields("involvedObject.kind=CudaRunner");
    let mut stream = watcher(events, about_pools)
        .default_backoff()
        .applied_objects()
        .into_stream()
        .boxed();
    let (mut told, mut said) = (BTreeSet::new(), vec![]);
    loop {
        let Ok(Some(event)) = stream.try_next().await else {
            continue;
        };
        if event.metadata.uid.is_some_and(|uid| told.insert(uid)) {
            let (reason, message) = (
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default(),
            );
            story.step(&format!(
                "{EVENT}{reason}: {}",
                shortened(&message, &mut said)
            ));
        }
    }
}

/// An Event's message without what another has told: a gate's words are in those of its node and its pool as well.
fn shortened(message: &str, said: &mut Vec<String>) -> String {
    let known = said.iter().find(|said| message.contains(said.as_str()));
    let short = known.map(|said| message.replace(said.as_str(), "(as above)"));
    // Of `RUNNER on NODE: WORDS` the words come again.
    let words = message.split_once(": ").map_or(message, |(_, words)| words);
    if short.is_none() && words.len() >= LONG {
        said.push(words.to_owned());
    }
    short.unwrap_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_has_told_the_next_one_does_not() {
        let mut said = vec![];
        let words = "the device computed, reported success, and the result is wrong";
        let first = format!("pool-aaaaa on node-1: {words}");
        assert_eq!(shortened(&first, &mut said), first);
        let second =
            format!("node-1 is quarantined for 30 minutes: {words}. To end it now: annotate");
        assert_eq!(
            shortened(&second, &mut said),
            "node-1 is quarantined for 30 minutes: (as above). To end it now: annotate"
        );
        assert_eq!(shortened("Online: yes", &mut said), "Online: yes");
        assert_eq!(
            shortened("Again: Online: yes", &mut said),
            "Again: Online: yes"
        );
    }
}
