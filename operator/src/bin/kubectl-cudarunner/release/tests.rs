use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::played::{Step, play, pools_of};

const ALL: &str = "/apis/cudarunner.dev/v1alpha1/cudarunners";

/// A pool that holds gpu-node-2, or one that holds nothing.
fn pool(namespace: &str, name: &str, holds: bool) -> Value {
    let mut pool = serde_json::to_value(fixture::pool("my-pool")).unwrap();
    pool["metadata"]["namespace"] = json!(namespace);
    pool["metadata"]["name"] = json!(name);
    if !holds {
        pool["status"]["quarantine"] = json!([]);
    }
    pool
}

/// The requests that release gpu-node-2 in the pool.
fn letting_go(namespace: &str, name: &str) -> Vec<Step> {
    let path = pools_of(namespace);
    let [holds, lets_go] = [true, false].map(|holds| pool(namespace, name, holds));
    vec![
        Step::Object(format!("PATCH {path}/{name}"), holds.clone()),
        Step::List(path.clone(), vec![holds.clone()]),
        Step::Watch(path, vec![holds, lets_go]),
    ]
}

async fn run(node: &str, script: Vec<Step>) -> (Result<(), String>, String, Vec<Value>) {
    let (pools, server) = play(script);
    let mut reported = String::new();
    let tell = &mut |text: &str| reported.push_str(text);
    let result = release(&pools, "my-pool", node, "now", tell).await;
    drop(pools);
    (result, reported, server.await.unwrap())
}

#[tokio::test]
async fn the_pool_that_holds_the_node_is_asked_whichever_it_is() {
    let mut script = vec![Step::List(
        ALL.to_owned(),
        vec![pool("ci", "my-pool", false), pool("other", "big", true)],
    )];
    script.extend(letting_go("other", "big"));
    let (result, reported, sent) = run("gpu-node-2", script).await;
    assert_eq!(result, Ok(()));
    assert_eq!(reported, "other/big lets gpu-node-2 go\n");
    assert_eq!(
        sent,
        [json!({"metadata": {"annotations": {RELEASE: "gpu-node-2 now"}}})]
    );
}

#[tokio::test]
async fn who_may_see_one_namespace_releases_there() {
    let mut script = vec![
        Step::Refused(format!("GET {ALL}"), 403),
        Step::List(pools_of("ci"), vec![pool("ci", "my-pool", true)]),
    ];
    script.extend(letting_go("ci", "my-pool"));
    let (result, reported, _) = run("gpu-node-2", script).await;
    assert_eq!(result, Ok(()));
    assert_eq!(reported, "ci/my-pool lets gpu-node-2 go\n");
}

#[tokio::test]
async fn a_holder_that_may_not_be_asked_is_named_and_the_others_let_go() {
    let mut script = vec![
        Step::List(
            ALL.to_owned(),
            vec![pool("other", "big", true), pool("ci", "my-pool", true)],
        ),
        Step::Refused(format!("PATCH {}/big", pools_of("other")), 403),
    ];
    script.extend(letting_go("ci", "my-pool"));
    let (result, reported, _) = run("gpu-node-2", script).await;
    assert_eq!(reported, "ci/my-pool lets gpu-node-2 go\n");
    let message = result.unwrap_err();
    assert!(
        message.contains("other/big cannot be asked: you may not"),
        "{message}"
    );
}

#[tokio::test]
async fn a_node_that_nobody_holds_and_a_pool_that_is_not_there_are_said() {
    let list = || {
        vec![Step::List(
            ALL.to_owned(),
            vec![pool("ci", "my-pool", true)],
        )]
    };
    let (result, _, sent) = run("gpu-node-9", list()).await;
    assert_eq!(
        result.unwrap_err(),
        "no pool has gpu-node-9 in quarantine; in quarantine: gpu-node-2"
    );
    assert!(sent.is_empty());
    let elsewhere = vec![Step::List(
        ALL.to_owned(),
        vec![pool("other", "my-pool", true)],
    )];
    let (result, _, sent) = run("gpu-node-2", elsewhere).await;
    assert_eq!(result.unwrap_err(), "there is no CudaRunner ci/my-pool");
    assert!(sent.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_does_not_answer_is_not_waited_for_for_ever() {
    let mut script = vec![Step::List(
        ALL.to_owned(),
        vec![pool("ci", "my-pool", true)],
    )];
    let mut asking = letting_go("ci", "my-pool");
    asking.truncate(2);
    script.extend(asking);
    script.push(Step::Silence(pools_of("ci")));
    let (result, reported, _) = run("gpu-node-2", script).await;
    assert!(
        result
            .unwrap_err()
            .contains("still holds gpu-node-2 after 30 seconds")
    );
    assert!(reported.is_empty());
}

#[test]
fn an_entry_of_a_later_failure_is_another_one() {
    let holder = &holders(&[fixture::pool("my-pool")], "gpu-node-2")[0];
    let gone = |pool: &CudaRunner| without("gpu-node-2", holder.since).matches_object(Some(pool));
    let mut pool = fixture::pool("my-pool");
    assert!(!gone(&pool));
    let entry = &mut pool.status.as_mut().unwrap().quarantine[0];
    entry.since.0 += jiff::SignedDuration::from_secs(1);
    assert!(gone(&pool));
}
