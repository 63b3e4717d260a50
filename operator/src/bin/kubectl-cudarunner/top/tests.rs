use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::played::{Step, play};
use cuda_runner_plan::Queue;
use cuda_runner_plan::model::github::QueuedJob;
use jiff::SignedDuration;
use std::sync::Arc;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const DOCUMENT: &str =
    "GET /api/v1/namespaces/cuda-runner-system/services/operator-fleet:fleet/proxy/api/fleet";

pub(crate) fn service() -> Value {
    json!({"metadata": {"name": "operator-fleet", "namespace": "cuda-runner-system"}})
}

fn node() -> Value {
    json!({
        "metadata": {"name": "gpu-node-1"},
        "status": {
            "allocatable": {"nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-03-02T09:00:00Z"}],
        },
    })
}

fn pod(name: &str, labels: &Value, gpus: &str) -> Value {
    let owner = json!({
        "apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": "my-pool",
        "uid": "1b4e28ba-2fa1-11d2-883f-0016d3cca427", "controller": true,
    });
    json!({
        "metadata": {"name": name, "namespace": "ci", "labels": labels, "ownerReferences": [owner]},
        "spec": {
            "nodeName": "gpu-node-1",
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": gpus}}}],
        },
        "status": {"phase": "Running"},
    })
}

fn of_operator(leads: bool) -> Value {
    let operator = cuda_runner_plan::fleet::Operator {
        name: "operator-1".to_owned(),
        version: "0.1.0".to_owned(),
        since: fixture::NOW,
        leads,
    };
    let mut builder = Builder::new(fixture::NOW, Some(operator), None, None);
    builder.pool(&fixture::pool("my-pool"), Known::default());
    serde_json::to_value(builder.finish()).unwrap()
}

#[tokio::test]
async fn the_operator_that_leads_is_asked_where_its_page_is_on() {
    // Given two replicas, of which the first to answer stands by
    let (pools, server) = play(vec![
        Step::List(SERVICES.to_owned(), vec![service()]),
        Step::Object(DOCUMENT.to_owned(), of_operator(false)),
        Step::Object(DOCUMENT.to_owned(), of_operator(true)),
    ]);
    let (fleet, instead) = fleet(&pools, fixture::NOW).await.unwrap();
    server.await.unwrap();
    assert!(fleet.operator.as_ref().is_some_and(|o| o.leads));
    assert_eq!(instead, None);
    assert!(text(&fleet, None).contains("From the operator operator-1"));
}

#[tokio::test]
async fn without_the_page_the_resources_are_read() {
    // Given no page, a node with eight GPUs, a runner with one of them, a pod of others with one, and one that is no longer
    // a pool's
    let label = json!({POOL_LABEL: "my-pool"});
    let mut stray = pod("my-pool-bbbbb", &label, "1");
    stray["metadata"]["ownerReferences"] = json!([]);
    let (pools, server) = play(vec![
        Step::List(SERVICES.to_owned(), vec![]),
        Step::List(
            "/apis/cudarunner.dev/v1alpha1/cudarunners".to_owned(),
            vec![
                serde_json::to_value(fixture::pool("my-pool")).unwrap(),
                serde_json::to_value(fixture::pool("spare")).unwrap(),
            ],
        ),
        Step::List(
            "/api/v1/pods".to_owned(),
            vec![pod("my-pool-aaaaa", &label, "1"), stray],
        ),
        Step::List("/api/v1/nodes".to_owned(), vec![node()]),
        Step::List(
            "/api/v1/pods".to_owned(),
            vec![pod("train", &json!({}), "1")],
        ),
    ]);
    let (fleet, instead) = fleet(&pools, fixture::NOW).await.unwrap();
    server.await.unwrap();
    assert_eq!(fleet.devices[&DeviceState::NotOurs], 2);
    assert_eq!(fleet.devices.values().sum::<u32>(), 8);
    let screen = text(&fleet, instead.as_deref());
    fixture::fits(&screen);
    insta::assert_snapshot!(screen);
    fixture::in_the_reference(&screen);
}

#[tokio::test]
async fn who_may_see_one_namespace_sees_that() {
    let (pools, server) = play(vec![
        Step::Refused(format!("GET {SERVICES}"), 403),
        Step::Refused("GET /api/v1/namespaces/ci/services".to_owned(), 403),
        Step::Refused(
            "GET /apis/cudarunner.dev/v1alpha1/cudarunners".to_owned(),
            403,
        ),
        Step::List(
            crate::played::pools_of("ci"),
            vec![serde_json::to_value(fixture::pool("spare")).unwrap()],
        ),
        Step::Refused("GET /api/v1/pods".to_owned(), 403),
        Step::List("/api/v1/namespaces/ci/pods".to_owned(), vec![]),
        Step::Refused("GET /api/v1/nodes".to_owned(), 403),
    ]);
    let (fleet, instead) = fleet(&pools, fixture::NOW).await.unwrap();
    server.await.unwrap();
    assert!(!fleet.nodes_visible);
    let screen = text(&fleet, instead.as_deref()).replace('\n', " ");
    assert!(screen.contains("Nodes cannot be listed"), "{screen}");
    assert!(screen.contains("you may not"), "{screen}");
}

#[test]
fn jobs_that_wait_are_shown_and_those_that_no_pool_takes() {
    let waits = |run: u64, labels: &[&str]| QueuedJob {
        id: Some(run),
        run,
        name: "train".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        created_at: Some(fixture::NOW - SignedDuration::from_mins(4)),
        ..QueuedJob::default()
    };
    let mut jobs: Vec<_> = (1..9).map(|run| waits(run, &["cuda"])).collect();
    jobs.push(waits(9, &["cuda", "b300"]));
    let queue = Arc::new(Queue {
        at: fixture::NOW,
        asked: None,
        jobs: Ok(Some(jobs.into())),
        registered: Some([].into()),
        shut_out: None,
    });
    let mut builder = Builder::new(fixture::NOW, None, None, None);
    let known = Known {
        read: Some(&queue),
        heard: None,
    };
    builder.pool(&fixture::pool("my-pool"), known);
    let screen = text(&builder.finish(), None);
    fixture::fits(&screen);
    let page = "https://github.com/acme/widgets/actions/runs";
    let lines = screen.replace("\n      ", " ");
    assert!(
        lines.contains(&format!("train, for 4m, asks for [cuda] {page}/1/job/1\n")),
        "{screen}"
    );
    assert!(screen.contains("    and 3 more\n"), "{screen}");
    let none = lines.split("NO POOL TAKES").nth(1).unwrap();
    assert!(
        none.contains(&format!("asks for [cuda, b300] {page}/9/job/9")),
        "{screen}"
    );
}
