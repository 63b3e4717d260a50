//! A runner that fails after it has registered, whenever the operator is killed meanwhile: told once, and never forgotten.

use super::*;
use crate::github::tests::stub::{Reply, Seen, error, here, page, reply};

/// The runner, whose agent ends without a job.
const RUNNER: &str = "pool-aaaaa";
/// More reconciles than it takes.
const MANY: u32 = 5;

/// When the operator is killed.
#[derive(Clone, Copy, Debug)]
enum Kill {
    Never,
    /// After so many reconciles.
    After(u32),
    /// After one whose status cannot be stored.
    Unstored(u32),
}

/// An operator that has just been started, and the pod, if that is still there.
async fn operator(cluster: &Cluster, has_pod: bool) -> Arc<Context> {
    let mut ctx = context(cluster).await;
    Arc::get_mut(&mut ctx).unwrap().clients = Clients::new(here());
    if has_pod {
        let agent = json!({
            "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 1, "finishedAt": Timestamp::now()}},
        });
        let status = json!({"phase": "Failed", "initContainerStatuses": [agent]});
        show_pod(&ctx, RUNNER, &status);
    }
    ctx
}

/// Whether the pod was asked to go since the last time.
fn has_gone(cluster: &Cluster) -> bool {
    let writes = cluster.writes();
    writes.contains(&format!("DELETE {RUNNER}"))
}

/// A GitHub without a runner.
fn answer(seen: &Seen, _: usize) -> Reply {
    let path = seen.path.split('?').next().unwrap_or_default();
    if path.ends_with("/actions/runners") {
        reply(200, &page(0, &[]))
    } else {
        error(404, "Not Found")
    }
}

#[tokio::test]
async fn a_runner_that_failed_is_told_once_whenever_the_operator_is_killed() {
    let kills = (1..MANY).map(Kill::After);
    let unstored = (1..MANY).map(Kill::Unstored);
    for kill in kills.chain(unstored).chain([Kill::Never]) {
        let github = Stub::start(answer).await;
        let cluster = Cluster::default();
        furnish(&cluster, &github);
        let mut ctx = operator(&cluster, true).await;
        let mut has_pod = true;
        for number in 1..=MANY {
            // Given an operator that is killed, and another one that finds what is stored
            let fails = matches!(kill, Kill::Unstored(which) if which == number);
            cluster.1.store(fails, Ordering::Relaxed);
            let done = reconcile(stored(&cluster, &github, |_| {}), Arc::clone(&ctx)).await;
            assert!(done.is_ok() || fails, "{done:?}");
            has_pod &= !has_gone(&cluster);
            if fails || matches!(kill, Kill::After(which) if which == number) {
                ctx = operator(&cluster, has_pod).await;
            }
        }
        // Then the failure is in the status, once, and the pod is gone
        let status = cluster.5.lock().unwrap().clone();
        let failures = status["lastFailures"].as_array().cloned();
        let runners: Vec<Value> = failures
            .iter()
            .flatten()
            .map(|f| f["runner"].clone())
            .collect();
        assert_eq!(runners, [json!(RUNNER)], "{kill:?}");
        assert_eq!(status["consecutiveFailures"], 1, "{kill:?}");
        assert!(!has_pod, "{kill:?}");
    }
}

#[tokio::test]
async fn each_of_many_runners_that_a_drained_node_takes_is_told_once() {
    // Given fifteen runners that are evicted, and whose pods are gone before anybody has looked
    let github = Stub::start(answer).await;
    let cluster = Cluster::default();
    furnish(&cluster, &github);
    let ctx = operator(&cluster, false).await;
    let names: Vec<String> = (0..15).map(|n| format!("pool-{n:05}")).collect();
    for name in &names {
        let target = json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]);
        let agent = json!({
            "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"terminated": {"exitCode": 1, "finishedAt": Timestamp::now()}},
        });
        let status =
            json!({"phase": "Failed", "conditions": target, "initContainerStatuses": [agent]});
        show_pod(&ctx, name, &status);
        hide_pod(&ctx, name, &status);
    }
    // When the pool is looked at again and again, and a status cannot be stored in between
    for number in 0..MANY {
        let fails = number == 0;
        cluster.1.store(fails, Ordering::Relaxed);
        let done = reconcile(stored(&cluster, &github, |_| {}), Arc::clone(&ctx)).await;
        assert!(done.is_ok() || fails, "{done:?}");
    }
    // Then all of them are counted, once
    let status = cluster.5.lock().unwrap().clone();
    assert_eq!(status["lastFailures"].as_array().unwrap().len(), 10);
    let page = ctx.metrics.page(|_| true, vec![]);
    let mut counts = page
        .lines()
        .filter(|line| line.starts_with("cudarunner_runner_failures_total{"));
    let counted = counts.find(|line| line.contains("Evicted")).unwrap();
    assert!(counted.ends_with(" 15"), "{counted}");
}

#[tokio::test]
async fn a_failure_is_remembered_by_our_clock_and_beside_the_status() {
    // Given a runner that failed just now, on a node whose clock is an hour ahead
    let github = Stub::start(answer).await;
    let cluster = Cluster::default();
    furnish(&cluster, &github);
    let ctx = operator(&cluster, false).await;
    let ahead = Timestamp::now().as_second() + 3600;
    let ahead = Timestamp::from_second(ahead).unwrap();
    let agent = json!({
        "name": "gpu", "image": "", "imageID": "", "ready": false, "restartCount": 1,
        "state": {"terminated": {"exitCode": 1, "finishedAt": ahead}},
    });
    let status = json!({"phase": "Failed", "initContainerStatuses": [agent]});
    let mut pod = pod_of(RUNNER, &status);
    pod.spec.as_mut().unwrap().node_name = Some("node-1".to_owned());
    ctx.pods.apply(&pod, true).unwrap();

    // When the pool is looked at
    let resource = stored(&cluster, &github, |_| {});
    reconcile(resource, Arc::clone(&ctx)).await.unwrap();

    // Then it failed by now, as the status says and the memory does
    let pool = fixture::pool(1);
    let (stored, remembered) = ctx.memory.with(&pool, |memory| {
        let status = memory.status.clone().unwrap();
        (status.last_failures, memory.failures.clone())
    });
    for failures in [stored, remembered] {
        let [failure] = failures.as_slice() else {
            panic!("{failures:?}")
        };
        assert!(failure.at.0 <= Timestamp::now(), "{failure:?}");
        assert_eq!(failure.node.as_deref(), Some("node-1"));
    }
}
