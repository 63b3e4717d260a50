//! `report`: what a gate found.

use cuda_runner_operator::observe::gpu::Gpu;
use cuda_runner_plan::model::runner::GPU;
use cudarunner_crds::POOL_LABEL;
use gate_report::{Report, clean_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::Value;

use crate::connect::{Pools, said};
use crate::text::{span, wrap};

/// The report of a gate that has ended.
#[derive(Debug)]
pub(crate) struct Found {
    namespace: String,
    pod: String,
    node: String,
    ended: Option<Timestamp>,
    /// The command that shows the gate's log.
    log: String,
    report: Report,
    /// As the gate wrote it.
    pub(crate) json: Value,
}

/// The report of that runner, or the newest one of that node.
pub(crate) async fn find(pools: &Pools, name: &str) -> Result<Found, String> {
    let namespace = &pools.namespace;
    let pods = Api::<Pod>::namespaced(pools.client.clone(), namespace);
    let pod = pods
        .get_opt(name)
        .await
        .map_err(|e| format!("the pod {namespace}/{name} cannot be read: {}", said(&e)))?;
    if let Some(pod) = pod {
        return read(&pod);
    }
    let on_node = ListParams::default()
        .labels(POOL_LABEL)
        .fields(&format!("spec.nodeName={name}"));
    let (pods, everywhere) = pools.list::<Pod>(&on_node).await?;
    newest(&pods).ok_or_else(|| {
        let place = if everywhere { "any namespace" } else { "this namespace" };
        format!(
            "there is no runner {namespace}/{name}, and no pod of {place} on a node of that name has the report of a gate; what remains of pods that are gone is in the status of their pool: kubectl cudarunner status"
        )
    })
}

/// The report of the gate that ended last.
fn newest(pods: &[Pod]) -> Option<Found> {
    let found = pods.iter().filter_map(|pod| read(pod).ok());
    found.max_by_key(|f| f.ended)
}

/// The report of a pod's gate, or why there is none.
fn read(pod: &Pod) -> Result<Found, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let name = pod.name_any();
    let init = pod
        .status
        .as_ref()
        .and_then(|s| s.init_container_statuses.as_ref());
    let Some(gpu) = init.into_iter().flatten().find(|c| c.name == GPU) else {
        return Err(format!("no gate has started in the pod {namespace}/{name}"));
    };
    let log = log(&namespace, &name, gpu.restart_count > 0);
    let Some(ended) = Gpu::of(pod).gate_end() else {
        return Err(format!("the gate of {namespace}/{name} has not ended"));
    };
    let Some((json, report)) = parse(ended) else {
        return Err(format!(
            "the gate of {namespace}/{name} ended with code {} ({}) and left no report; its log may tell more: {}",
            ended.exit_code,
            ended.reason.as_deref().unwrap_or("no reason given"),
            log
        ));
    };
    let spec = pod.spec.as_ref();
    Ok(Found {
        node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        namespace,
        pod: name,
        ended: ended.finished_at.as_ref().map(|t| t.0),
        log,
        report,
        json,
    })
}

fn parse(ended: &ContainerStateTerminated) -> Option<(Value, Report)> {
    let mut json: Value = serde_json::from_str(ended.message.as_deref()?).ok()?;
    clean_all(&mut json, 4_096);
    let report = serde_json::from_value(json.clone()).ok()?;
    Some((json, report))
}

/// What followed in the gate's container has a log of its own.
fn log(namespace: &str, pod: &str, is_before: bool) -> String {
    let previous = if is_before { " --previous" } else { "" };
    format!("kubectl logs --namespace {namespace} {pod} --container {GPU}{previous}")
}

impl Found {
    /// The report for people.
    pub(crate) fn text(&self, now: Timestamp) -> String {
        /// What the report's own text indents by.
        const HANG: usize = 10;
        let mut out = String::new();
        let ago = self
            .ended
            .map(|ended| format!(", {} ago", span(ended, now)));
        let head = format!(
            "{}/{} on {}{}",
            self.namespace,
            self.pod,
            self.node,
            ago.unwrap_or_default()
        );
        wrap(&mut out, "", 0, &head);
        out.push('\n');
        for line in self.report.text().lines() {
            wrap(&mut out, "", HANG, line);
        }
        out.push_str("\nThe whole report is in the log of the gate, while the pod exists:\n");
        out.push_str(&self.log);
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, NOW};
    use crate::played::{Step, play};
    use serde_json::json;

    /// A runner's pod whose gate has not passed, in this state.
    fn pod(name: &str, state: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ci", "labels": {POOL_LABEL: "my-pool"}},
            "spec": {"nodeName": "gpu-node-2", "containers": []},
            "status": {"initContainerStatuses": [{
                "name": GPU, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }]},
        }))
        .unwrap()
    }

    fn ended(at: &str, code: i32, message: &str) -> Value {
        json!({"terminated": {"exitCode": code, "finishedAt": at, "reason": "Error", "message": message}})
    }

    const FAILED: &str = include_str!("fixtures/failed-report.json");

    #[test]
    fn a_report_as_text() {
        let pod = pod("my-pool-b7n3q", &ended("2026-03-02T09:21:30Z", 12, FAILED));
        let found = read(&pod).unwrap();
        let text = found.text(NOW);
        fixture::fits(&text);
        insta::assert_snapshot!(text);
        fixture::in_the_reference(&text);
        assert_eq!(found.json, serde_json::from_str::<Value>(FAILED).unwrap());
    }

    #[test]
    fn a_nodes_newest_report_counts_and_gates_without_one_do_not() {
        let running = json!({"running": {"startedAt": "2026-03-02T09:29:00Z"}});
        let pods = [
            pod("old", &ended("2026-03-02T09:00:00Z", 12, FAILED)),
            pod("new", &ended("2026-03-02T09:10:00Z", 12, FAILED)),
            pod("killed", &ended("2026-03-02T09:20:00Z", 137, "")),
            pod("running", &running),
        ];
        assert_eq!(newest(&pods).unwrap().pod, "new");
        assert!(newest(&pods[2..]).is_none());
    }

    /// An answer to the question for a pod of that name.
    fn no_pod(name: &str) -> Step {
        Step::Refused(format!("GET {PODS}/{name}"), 404)
    }

    const PODS: &str = "/api/v1/namespaces/ci/pods";

    #[tokio::test]
    async fn a_name_is_a_runners_first_and_then_a_nodes() {
        let pod = |name| {
            let pod = pod(name, &ended("2026-03-02T09:21:30Z", 12, FAILED));
            serde_json::to_value(pod).unwrap()
        };
        let runner = Step::Object(format!("GET {PODS}/my-pool-b7n3q"), pod("my-pool-b7n3q"));
        let (pools, server) = play(vec![runner]);
        let found = find(&pools, "my-pool-b7n3q").await.unwrap();
        assert_eq!(found.pod, "my-pool-b7n3q");
        server.await.unwrap();

        let (pools, server) = play(vec![
            no_pod("gpu-node-2"),
            Step::Refused("GET /api/v1/pods".to_owned(), 403),
            Step::List(PODS.to_owned(), vec![pod("a")]),
        ]);
        assert_eq!(find(&pools, "gpu-node-2").await.unwrap().pod, "a");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_name_of_nothing_says_where_to_look() {
        let (pools, server) = play(vec![
            no_pod("nothing"),
            Step::List("/api/v1/pods".to_owned(), vec![]),
        ]);
        let message = find(&pools, "nothing").await.unwrap_err();
        assert!(
            message.contains("no runner ci/nothing")
                && message.contains("kubectl cudarunner status")
        );
        server.await.unwrap();
    }

    #[test]
    fn a_pod_without_a_report_says_why() {
        let why = |state| read(&pod("p", &state)).unwrap_err();
        assert!(why(json!({"running": {}})).contains("has not ended"));
        let killed = why(ended("2026-03-02T09:20:00Z", 137, ""));
        assert!(killed.contains("code 137 (Error)") && killed.contains("kubectl logs"));
        let mut new = pod("p", &json!({}));
        new.status = None;
        assert!(read(&new).unwrap_err().contains("no gate has started"));
    }
}
