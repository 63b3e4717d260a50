use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::played::{Answered, Late, Step, answers, play, pools_of};
use cuda_runner_plan::Queue;
use cuda_runner_plan::fleet::Pool;
use cuda_runner_plan::model::github::QueuedJob;
use jiff::SignedDuration;
use std::sync::Arc;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const DOCUMENT: &str =
    "GET /api/v1/namespaces/cuda-runner-system/services/operator-fleet:fleet/proxy/api/fleet";

pub(crate) fn service() -> Value {
    page_of("cuda-runner-system", "operator-fleet")
}

/// The Service of a fleet page.
fn page_of(namespace: &str, name: &str) -> Value {
    let label = json!({"app.kubernetes.io/component": "fleet-page"});
    json!({"metadata": {"name": name, "namespace": namespace, "labels": label}})
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
        "status": {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-03-02T09:00:00Z"}],
        },
    })
}

pub(crate) fn of_operator(leads: bool) -> Value {
    let operator = cuda_runner_plan::fleet::Operator {
        name: "operator-1".to_owned(),
        version: "0.1.0".to_owned(),
        since: fixture::NOW,
        leads,
    };
    let mut builder = Builder::new(fixture::NOW, Some(operator), None, None);
    builder.pool(&fixture::pool("my-pool"), Waiting::default());
    serde_json::to_value(builder.finish()).unwrap()
}

const LEASES: &str = "GET /apis/coordination.k8s.io/v1/leases";
const PODS: &str = "GET /api/v1/pods";
const POOLS: &str = "/apis/cudarunner.dev/v1alpha1/cudarunners";

fn resource(name: &str) -> Value {
    served(name, "cuda-runner-system")
}

/// A pool with an operator in this namespace.
fn served(name: &str, namespace: &str) -> Value {
    serde_json::to_value(fixture::served(name, namespace)).unwrap()
}

#[tokio::test]
async fn the_operator_that_leads_is_asked_where_its_page_is_on() {
    // Given two replicas, of which the first to answer stands by
    let (pools, server) = play(vec![
        Step::List(SERVICES.to_owned(), vec![service()]),
        Step::List(POOLS.to_owned(), vec![resource("my-pool")]),
        Step::Refused(LEASES.to_owned(), 403),
        Step::Refused(PODS.to_owned(), 403),
        Step::Object(DOCUMENT.to_owned(), of_operator(false)),
        Step::Object(DOCUMENT.to_owned(), of_operator(true)),
    ]);
    let fleet = fleet(&pools, fixture::NOW).await.unwrap();
    server.await.unwrap();
    assert!(fleet.operator.as_ref().is_some_and(|o| o.leads));
    assert_eq!(fleet.not_read, Vec::<String>::new());
    assert!(text(&fleet).contains("From the operator operator-1"));
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
            POOLS.to_owned(),
            vec![resource("my-pool"), resource("spare")],
        ),
        Step::Refused(LEASES.to_owned(), 403),
        Step::Refused(PODS.to_owned(), 403),
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
    let fleet = fleet(&pools, fixture::NOW).await.unwrap();
    server.await.unwrap();
    assert_eq!(fleet.devices[&DeviceState::NotOurs], 2);
    assert_eq!(fleet.devices.values().sum::<u32>(), 8);
    let screen = text(&fleet);
    fixture::fits(&screen);
    insta::assert_snapshot!(screen);
    fixture::in_the_reference(&screen);
}

#[tokio::test]
async fn who_may_see_one_namespace_sees_that() {
    let server = Late::default()
        .on(&format!("GET {SERVICES}"), Answered::Refused(403))
        .on("GET /api/v1/namespaces/ci/services", Answered::Refused(403))
        .on(&format!("GET {POOLS}"), Answered::Refused(403))
        .on(
            &format!("GET {}", pools_of("ci")),
            Answered::List(vec![resource("spare")]),
        )
        .on("GET /api/v1/pods", Answered::Refused(403))
        .on("GET /api/v1/namespaces/ci/pods", Answered::List(vec![]))
        .on("GET /api/v1/nodes", Answered::Refused(403));
    let fleet = fleet(&answers(server), fixture::NOW).await.unwrap();
    assert!(!fleet.nodes_visible);
    let screen = text(&fleet).replace('\n', " ");
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
    let known = Waiting {
        read: Some(&queue),
        heard: None,
    };
    builder.pool(&fixture::pool("my-pool"), known);
    let screen = text(&builder.finish());
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

/// Two operators: what is answered to each request. The first serves my-pool, the second spare, with an idle runner each on a
/// node of eight GPUs, where another pod holds one.
fn two_operators() -> Late {
    let label = |pool: &str| json!({POOL_LABEL: pool});
    let own = pod("my-pool-aaaaa", &label("my-pool"), "1");
    let mut theirs = pod("spare-bbbbb", &label("spare"), "1");
    theirs["metadata"]["ownerReferences"][0]["name"] = json!("spare");
    theirs["metadata"]["ownerReferences"][0]["uid"] = resource("spare")["metadata"]["uid"].clone();
    Late::default()
        .on(
            &format!("GET {SERVICES}"),
            Answered::List(vec![
                page_of("gpu-b", "op-fleet"),
                page_of("gpu-a", "op-fleet"),
            ]),
        )
        .on(
            &format!("GET {POOLS}"),
            Answered::List(vec![served("my-pool", "gpu-a"), served("spare", "gpu-b")]),
        )
        .on(
            &page("gpu-a"),
            Answered::Object(document("a", "my-pool", &own)),
        )
        .on(
            &page("gpu-b"),
            Answered::Object(document("b", "spare", &theirs)),
        )
        .on("GET /api/v1/nodes", Answered::List(vec![node()]))
}

fn page(namespace: &str) -> String {
    format!("GET /api/v1/namespaces/{namespace}/services/op-fleet:fleet/proxy/api/fleet")
}

/// What an operator says that serves one pool with one runner, and sees that others hold two GPUs of its node.
fn document(letter: &str, pool: &str, runner: &Value) -> Value {
    let operator = Operator {
        name: format!("operator-{letter}"),
        version: "0.1.0".to_owned(),
        since: fixture::NOW,
        leads: true,
    };
    let node: KubeNode = serde_json::from_value(node()).unwrap();
    let nodes = [facts(&node).into()];
    let others = [(
        "gpu-node-1".to_owned(),
        [("nvidia.com/gpu".to_owned(), 2)].into(),
    )];
    let mut builder = Builder::new(
        fixture::NOW,
        Some(operator),
        Some(&nodes),
        Some(&others.into()),
    );
    builder.pool(&fixture::pool(pool), Waiting::default());
    let runner: Pod = serde_json::from_value(runner.clone()).unwrap();
    builder.runner(&read(&runner), None);
    serde_json::to_value(builder.finish()).unwrap()
}

#[tokio::test]
async fn of_several_operators_each_is_asked_and_a_device_is_whose_it_is() {
    let fleet = fleet(&answers(two_operators()), fixture::NOW)
        .await
        .unwrap();
    // Then the pools of both are there, and one device is of neither
    let pools: Vec<_> = fleet.pools.iter().map(Pool::key).collect();
    assert_eq!(pools, ["ci/my-pool", "ci/spare"]);
    assert_eq!(fleet.devices[&DeviceState::NotOurs], 1);
    assert_eq!(fleet.devices.values().sum::<u32>(), 8);
    let runners = fleet.nodes[0].devices.iter().filter(|d| d.runner.is_some());
    assert_eq!(runners.count(), 2);
    // And it is said whose word it is
    let screen = text(&fleet);
    fixture::fits(&screen);
    let screen = screen.replace('\n', " ");
    for words in [
        "From the operator operator-a",
        "From the operator operator-b",
    ] {
        assert!(screen.contains(words), "{screen}");
    }
    assert!(!screen.contains("resources alone"), "{screen}");
}

#[tokio::test(start_paused = true)]
async fn of_an_operator_that_does_not_answer_the_resources_are_read_and_that_is_said() {
    // Given that the second operator's page is refused, or does not answer
    let label = json!({POOL_LABEL: "spare"});
    let mut runner = pod("spare-bbbbb", &label, "1");
    runner["metadata"]["ownerReferences"][0]["name"] = json!("spare");
    runner["metadata"]["ownerReferences"][0]["uid"] = resource("spare")["metadata"]["uid"].clone();
    for (answer, words) in [
        (
            Answered::Refused(503),
            "gpu-b/op-fleet does not answer: you may not",
        ),
        (Answered::Never, "gpu-b/op-fleet does not answer in time"),
    ] {
        let pods = vec![
            runner.clone(),
            pod("my-pool-aaaaa", &json!({POOL_LABEL: "my-pool"}), "1"),
            pod("train", &json!({}), "1"),
        ];
        let server = two_operators()
            .on(&page("gpu-b"), answer)
            .on("GET /api/v1/pods", Answered::List(pods));
        let fleet = fleet(&answers(server), fixture::NOW).await.unwrap();
        // Then its pool is there all the same, and its runner is no stranger's
        let pools: Vec<_> = fleet.pools.iter().map(Pool::key).collect();
        assert_eq!(pools, ["ci/my-pool", "ci/spare"]);
        let of_b = fleet.nodes[0].devices.iter();
        let of_b = of_b.filter(|d| d.pool.as_deref() == Some("ci/spare"));
        assert_eq!(of_b.count(), 1);
        assert_eq!(fleet.devices[&DeviceState::NotOurs], 1);
        assert_eq!(fleet.devices.values().sum::<u32>(), 8);
        let screen = text(&fleet).replace('\n', " ");
        assert!(screen.contains("From the operator operator-a"), "{screen}");
        let says =
            "What these do not tell is from the resources alone, because the operator's fleet page";
        assert!(screen.contains(says) && screen.contains(words), "{screen}");
    }
}

#[tokio::test]
async fn a_pool_that_no_operator_shows_is_shown_as_its_resource_is() {
    let only_a = page_of("gpu-a", "op-fleet");
    let server = two_operators()
        .on(&format!("GET {SERVICES}"), Answered::List(vec![only_a]))
        .on("GET /api/v1/pods", Answered::List(vec![]));
    let fleet = fleet(&answers(server), fixture::NOW).await.unwrap();
    assert_eq!(fleet.pools.len(), 2);
    let screen = text(&fleet).replace('\n', " ");
    assert!(
        screen.contains("because no operator shows ci/spare on its fleet page"),
        "{screen}"
    );
}

#[tokio::test]
async fn who_may_make_services_tells_nobody_anything() {
    // Given somebody who has made a Service with the label of a page, and who tells of the pools of others, of tomorrow
    let mut forgery = document("x", "my-pool", &pod("my-pool-aaaaa", &json!({}), "1"));
    forgery["pools"][0]["queue"]["asOf"] = json!("2999-01-01T00:00:00Z");
    forgery["pools"][0]["runners"] = json!(4711);
    let mut pages = vec![page_of("team-x", "op-fleet")];
    let forges = |pages: Vec<Value>, page_of: &str| {
        two_operators()
            .on(&format!("GET {SERVICES}"), Answered::List(pages))
            .on(&page(page_of), Answered::Object(forgery.clone()))
            .on("GET /api/v1/pods", Answered::List(vec![]))
    };
    let shown = async |server: Late| fleet(&answers(server), fixture::NOW).await.unwrap();
    // When no operator is in its namespace by the status of a pool, then it is not asked
    let alone = shown(forges(pages.clone(), "team-x")).await;
    assert_eq!(alone.operator, None);
    let screen = text(&alone).replace('\n', " ");
    assert!(
        screen.contains("the operator's fleet page is off"),
        "{screen}"
    );
    pages.extend([page_of("gpu-a", "op-fleet"), page_of("gpu-b", "op-fleet")]);
    let beside = shown(forges(pages.clone(), "team-x")).await;
    let names: Vec<_> = beside.operators().map(|o| &*o.name).collect();
    assert_eq!(names, ["operator-a", "operator-b"]);
    // When it has a pool's operator itself, then it tells of that pool alone
    let other = shown(forges(pages, "gpu-b")).await;
    let runners: Vec<_> = other.pools.iter().map(|p| (p.key(), p.runners)).collect();
    let usual = shown(two_operators()).await;
    let usual: Vec<_> = usual.pools.iter().map(|p| (p.key(), p.runners)).collect();
    assert_eq!(runners, usual);
    // When no pool names an operator, then nobody is asked
    let mut nameless = resource("my-pool");
    nameless["status"]["operator"] = Value::Null;
    let server = forges(vec![page_of("team-x", "op-fleet")], "team-x")
        .on(&format!("GET {POOLS}"), Answered::List(vec![nameless]));
    let screen = text(&fleet(&answers(server), fixture::NOW).await.unwrap());
    let screen = screen.replace('\n', " ");
    assert!(
        screen.contains("no pool that may be seen names its operator"),
        "{screen}"
    );
}

#[tokio::test]
async fn nobody_writes_on_the_readers_terminal_or_fills_its_memory() {
    let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}";
    let server = |answer: Answered| {
        two_operators()
            .on(&page("gpu-b"), answer)
            .on("GET /api/v1/pods", Answered::List(vec![]))
    };
    // Given a document with such texts everywhere, or a refusal
    let mut all = document("b", "spare", &pod("spare-bbbbb", &json!({}), "1"));
    all["operator"]["name"] = json!(hostile);
    all["nodes"][0]["name"] = json!(hostile);
    all["pools"][0]["held"] = json!([{"type": hostile, "reason": hostile, "message": hostile}]);
    let mut wrong = all.clone();
    wrong["apiVersion"] = json!(hostile);
    let mut unread = all.clone();
    unread["devices"] = json!({hostile: hostile});
    let words = Answered::Said(503, hostile.to_owned());
    let long = Answered::Object(json!("x".repeat(33 * 1024 * 1024)));
    let documents = [all, wrong, unread].map(Answered::Object);
    // Then its words are shown, and nothing happens to the terminal
    for (index, answer) in documents.into_iter().chain([words, long]).enumerate() {
        let fleet = fleet(&answers(server(answer)), fixture::NOW).await.unwrap();
        let screen = text(&fleet);
        let is_hidden = |c: char| c != '\n' && gate_report::is_hidden(c);
        assert!(!screen.contains(is_hidden), "{index} {screen:?}");
        let said = if index == 4 { "32 MiB" } else { "owned" };
        assert!(screen.replace('\n', " ").contains(said), "{index} {screen}");
    }
}
