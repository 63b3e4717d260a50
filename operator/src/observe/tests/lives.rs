//! Given a pod's status, then these are the moments of its life.

use cuda_runner_plan::model::life::Life;
use jiff::Timestamp;

use super::*;

fn at(second: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
}

fn unready(second: &str) -> Value {
    json!({"type": "ContainersReady", "status": "False", "lastTransitionTime": second})
}

#[test]
fn a_pod_holds_its_gpus_from_its_node_to_the_end_of_its_last_container() {
    // Given one whose agent has ended, and whose main container ended a second later
    let mut status = json!({
        "phase": "Running",
        "conditions": [bound(), unready("2026-01-01T00:00:40Z")],
        "initContainerStatuses": agent(&json!({"terminated": {
            "exitCode": 0, "startedAt": "2026-01-01T00:00:20Z", "finishedAt": "2026-01-01T00:01:00Z",
            "message": r#"{"mark":"completed","job":"build","run":"7","repository":"a/b"}"#
        }}), false),
        "containerStatuses": [{
            "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {
                "exitCode": 0, "startedAt": "2026-01-01T00:00:02Z", "finishedAt": "2026-01-01T00:01:01Z"
            }}
        }]
    });
    let ended = Life {
        bound: Some(at(1)),
        online: Some(at(20)),
        ..Life::default()
    };
    assert_eq!(pod(&status).life, ended, "a sidecar may hold them still");
    status["phase"] = json!("Succeeded");
    let over = Some(at(61));
    assert_eq!(pod(&status).life, Life { over, ..ended });
}

#[test]
fn an_agent_is_idle_and_busy_since_the_pod_says_so() {
    let status = |ready: &str, since: &str| {
        pod(&json!({
            "phase": "Running",
            "conditions": [bound(), {
                "type": "ContainersReady", "status": ready, "lastTransitionTime": since
            }],
            "initContainerStatuses": agent(&running(), ready == "True"),
            "containerStatuses": main(true)
        }))
    };
    let idle = status("True", "2026-01-01T00:00:20Z");
    assert_eq!((idle.life.idle, idle.life.busy), (Some(at(20)), None));
    assert_eq!(idle.life.online, Some(at(20)));
    // Busy, and nobody has seen it idle: the start of its agent is nearest
    let mut busy = status("False", "2026-01-01T00:00:40Z");
    assert_eq!((busy.life.idle, busy.life.busy), (None, Some(at(40))));
    assert_eq!(busy.life.online, Some(at(6)));
    // ... but who has seen it knows better
    busy.follow(&idle);
    assert_eq!(busy.life.online, Some(at(20)));
}

#[test]
fn an_agent_that_left_no_mark_was_not_online() {
    let ended = |message: &str| {
        let end = json!({"terminated": {
            "exitCode": 1, "startedAt": "2026-01-01T00:00:20Z", "finishedAt": "2026-01-01T00:01:00Z",
            "message": message
        }});
        let status = json!({
            "phase": "Failed", "conditions": [bound()], "initContainerStatuses": agent(&end, false)
        });
        pod(&status).life.online
    };
    assert_eq!(ended("no access"), None);
    for mark in ["online", "started", "completed"] {
        assert_eq!(
            ended(&format!(r#"{{"mark":"{mark}"}}"#)),
            Some(at(20)),
            "{mark}"
        );
    }
}

#[test]
fn a_pod_without_a_node_holds_nothing() {
    let waits = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"});
    let runner = pod(&json!({"phase": "Pending", "conditions": [waits]}));
    assert_eq!(runner.life, Life::default());
}
