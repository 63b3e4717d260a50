use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::fixture;
use crate::played::{Step, play, pools_of};

const ASKED: &str = "2026-03-02T09:30:00Z";
const RUN: &str = "https://github.com/acme/widgets/actions/runs/9127463519";

/// The pool with its status changed.
fn pool(change: impl FnOnce(&mut Value)) -> Value {
    let mut pool = serde_json::to_value(fixture::pool("my-pool")).unwrap();
    change(&mut pool["status"]);
    pool
}

/// The pool with the verification that was asked for.
fn verifies(verification: &Value) -> Value {
    pool(|status| {
        let mut ours = json!({"fingerprint": "f", "asked": ASKED, "since": ASKED, "runId": 9_127_463_519_i64, "url": RUN});
        ours.as_object_mut()
            .unwrap()
            .extend(verification.as_object().unwrap().clone());
        status["verification"] = ours;
    })
}

/// The requests up to the annotation, and the ones with which a watch starts.
fn script(seen: Vec<Value>) -> Vec<Step> {
    let pool = pool(|_| {});
    let path = pools_of("ci");
    vec![
        Step::Object(format!("GET {path}/my-pool"), pool.clone()),
        Step::Object(format!("PATCH {path}/my-pool"), pool.clone()),
        Step::List(path.clone(), vec![pool]),
        Step::Watch(path, seen),
    ]
}

async fn verify(script: Vec<Step>) -> (Result<Verdict, String>, String, Vec<Value>) {
    let (pools, server) = play(script);
    let mut reported = String::new();
    let verdict = match ask(&pools, "my-pool", ASKED).await {
        Ok(()) => {
            let tell = &mut |text: &str| reported.push_str(text);
            follow(&pools, "my-pool", ASKED, Duration::from_mins(1), tell).await
        }
        Err(message) => Err(message),
    };
    drop(pools);
    (verdict, reported, server.await.unwrap())
}

#[tokio::test]
async fn a_green_run_is_asked_for_and_each_change_told_once() {
    let job = |more: Value| {
        let mut job = json!({"name": "unified-memory", "url": format!("{RUN}/job/1"), "runner": "my-pool-p9d4s", "queuedSeconds": 3});
        job.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        vec![job]
    };
    let done = job(json!({"conclusion": "success", "passed": 46}));
    let (verdict, reported, sent) = verify(script(vec![
        // The operator has not seen the annotation: the run before it ended red.
        pool(|_| {}),
        verifies(&json!({"state": "Requested", "url": null, "runId": null})),
        verifies(&json!({"state": "Running"})),
        verifies(&json!({"state": "Running", "jobs": job(json!({}))})),
        verifies(&json!({"state": "Running", "jobs": job(json!({}))})),
        verifies(&json!({"state": "Running", "jobs": done})),
        verifies(&json!({"state": "Succeeded", "jobs": done, "ended": ASKED})),
    ]))
    .await;
    assert_eq!(verdict, Ok(Verdict::Green));
    assert_eq!(
        sent,
        [json!({"metadata": {"annotations": {VERIFY: ASKED}}})]
    );
    fixture::fits(&reported);
    insta::assert_snapshot!(reported);
    fixture::in_the_reference(&reported);
}

#[tokio::test]
async fn a_red_run_says_why() {
    let (verdict, reported, _) = verify(script(vec![verifies(&json!({
        "state": "Failed", "reason": "TestsMissing", "message": "45 tests passed, and 46 should", "ended": ASKED,
    }))]))
    .await;
    assert_eq!(verdict, Ok(Verdict::Red));
    assert!(
        reported.ends_with("red (TestsMissing): 45 tests passed, and 46 should\n"),
        "{reported}"
    );
}

#[tokio::test]
async fn a_workflow_that_cannot_be_started_is_neither_green_nor_red() {
    let (verdict, reported, _) = verify(script(vec![verifies(&json!({
        "state": "Failed", "reason": "WorkflowNotFound", "message": "no cuda.yml", "runId": null, "url": null, "ended": ASKED,
    }))]))
    .await;
    assert_eq!(verdict, Ok(Verdict::NotRun));
    assert!(
        reported.ends_with("not run (WorkflowNotFound): no cuda.yml\n"),
        "{reported}"
    );
}

#[tokio::test]
async fn a_pool_without_a_runner_says_what_it_waits_for_and_goes_on_when_one_comes() {
    let without = pool(|status| {
        status["online"] = json!(0);
        let online = &mut status["conditions"][4];
        assert_eq!(online["type"], "RunnersOnline");
        online["status"] = json!("False");
        online["reason"] = json!("Unschedulable");
    });
    let mut script = script(vec![without.clone(), without]);
    script.push(Step::Watch(
        pools_of("ci"),
        vec![verifies(&json!({"state": "Succeeded"}))],
    ));
    let (verdict, reported, _) = verify(script).await;
    assert_eq!(verdict, Ok(Verdict::Green));
    assert_eq!(
        reported.matches("waits for a runner to be online").count(),
        1,
        "{reported}"
    );
    assert!(
        reported.contains("RunnersOnline (Unschedulable)"),
        "{reported}"
    );
    assert!(
        !reported.contains("WorkflowVerified"),
        "an earlier run's verdict: {reported}"
    );
}

#[tokio::test]
async fn a_pool_that_github_refuses_is_not_waited_for() {
    let refused = pool(|status| status["conditions"][2]["status"] = json!("False"));
    let (verdict, reported, _) = verify(script(vec![refused])).await;
    assert_eq!(verdict, Ok(Verdict::NotRun));
    assert!(reported.contains("CredentialsValid"), "{reported}");
}

#[tokio::test]
async fn another_verification_is_waited_for() {
    let other = pool(|status| status["verification"]["state"] = json!("Running"));
    let (_, reported, _) = verify(script(vec![
        other,
        verifies(&json!({"state": "Succeeded"})),
    ]))
    .await;
    assert!(
        reported.contains("waits for the verification before it:"),
        "{reported}"
    );
}

#[tokio::test]
async fn a_pool_without_a_workflow_is_not_annotated() {
    let mut pool = pool(|_| {});
    pool["spec"]["verify"] = Value::Null;
    let (verdict, _, sent) = verify(vec![Step::Object(
        format!("GET {}/my-pool", pools_of("ci")),
        pool,
    )])
    .await;
    assert!(verdict.unwrap_err().contains("spec.verify"));
    assert!(sent.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_verification_that_does_not_end_is_given_up() {
    let mut script = script(vec![verifies(&json!({"state": "Running"}))]);
    script.push(Step::Silence(pools_of("ci")));
    let (verdict, _, _) = verify(script).await;
    assert!(verdict.unwrap_err().contains("not ended within 60 seconds"));
}

#[tokio::test]
async fn who_may_not_watch_is_told() {
    let mut script = script(vec![]);
    script.truncate(2);
    script.push(Step::Refused(format!("GET {}", pools_of("ci")), 403));
    let (verdict, _, _) = verify(script).await;
    assert!(
        verdict
            .unwrap_err()
            .contains("cannot be watched: you may not")
    );
}

#[test]
fn exit_codes_are_as_documented() {
    let codes = [Verdict::Green, Verdict::Red, Verdict::NotRun].map(Verdict::exit_code);
    assert_eq!(codes, [0, 1, 2]);
}
