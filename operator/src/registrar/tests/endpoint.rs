//! Every answer of the endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gate_report::wire::MAX_BODY;
use gate_report::{Outcome, Report};
use http::{StatusCode, header};
use serde_json::Value;
use tokio::sync::Notify;

use super::kubernetes::Secrets;
use super::stub::{HONEST, JIT, body, limits, outcome, registrar, report};
use crate::registrar::{CaStore, Decision, Limits, Rate, RegisterError, ServerNames};

#[tokio::test]
async fn a_pod_that_passed_gets_one_registration() {
    let registrar = registrar(limits(), None).await;
    let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let given: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(
        (given["kind"].as_str(), given["encodedJitConfig"].as_str()),
        (Some("JitConfig"), Some(JIT))
    );
    // With another report it gets no second one
    let other = Report {
        version: "another".to_owned(),
        ..report("pool-a")
    };
    assert_eq!(
        outcome(&registrar.send(Some("good"), body(&other)).await),
        (403, "AlreadyRegistered".to_owned())
    );
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_given_again() {
    // Given a gate that has hung up before GitHub had answered
    let go = Arc::new(Notify::new());
    let registrar = Arc::new(registrar(limits(), Some(Arc::clone(&go))).await);
    let first = tokio::spawn({
        let registrar = Arc::clone(&registrar);
        async move { registrar.ask("good").await }
    });
    registrar.comes_to_the_desk().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    go.notify_one();
    // When it asks again, with the same report
    let answer = loop {
        let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
        if outcome(&answer) != (503, "UnderWay".to_owned()) {
            break answer;
        }
    };
    // Then it gets what GitHub has made once
    let given: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(given["encodedJitConfig"].as_str(), Some(JIT), "{given}");
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn who_is_not_a_runner_is_told_apart() {
    let registrar = registrar(limits(), None).await;
    for (token, status, reason, reviews) in [
        // Who cannot be a runner costs no review
        ("forged", 401, "TokenNotAccepted", 0),
        ("other-audience", 401, "TokenNotAccepted", 0),
        ("expired", 401, "TokenNotAccepted", 0),
        ("long", 401, "TokenNotAccepted", 0),
        ("no-pod", 403, "NoPod", 0),
        ("stranger", 403, "NoRunner", 0),
        ("closing", 403, "Closing", 0),
        ("served", 403, "AlreadyRegistered", 0),
        ("new", 503, "NotYetKnown", 0),
        // Who says to be one has to be vouched for
        ("unsigned", 401, "TokenNotAccepted", 1),
        ("all-audiences", 401, "TokenNotAccepted", 1),
        ("outage", 503, "IdentityUnavailable", 1),
    ] {
        let before = registrar.reviews.load(Ordering::SeqCst);
        assert_eq!(
            registrar.ask(token).await,
            (status, reason.to_owned()),
            "{token}"
        );
        let asked = registrar.reviews.load(Ordering::SeqCst) - before;
        assert_eq!(asked, reviews, "{token}");
    }
    // What the token says of itself counts for nothing
    assert_eq!(
        registrar.ask("other-pod").await,
        (200, String::new()),
        "the token is pool-a's, whatever it claims"
    );
    let nameless = registrar.send(None, body(&report("pool-a"))).await;
    assert_eq!(outcome(&nameless), (401, "NoToken".to_owned()));
}

#[tokio::test]
async fn what_can_be_tried_again_says_when() {
    let registrar = registrar(limits(), None).await;
    *registrar.backend.fails.lock().unwrap() = Some(RegisterError::Retry {
        after: Duration::from_millis(6500),
        reason: "RateLimited".into(),
        message: "later".into(),
    });
    let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
    assert_eq!(outcome(&answer), (503, "RateLimited".to_owned()));
    assert_eq!(answer.headers()[header::RETRY_AFTER], "7");
    // The failure has not used the pod's registration up
    assert_eq!(registrar.ask("good").await.0, 200);
}

#[tokio::test]
async fn reports_are_judged_before_anything_is_registered() {
    let registrar = registrar(limits(), None).await;
    let failed = Report {
        outcome: Outcome::Failed,
        ..report("pool-a")
    };
    assert_eq!(
        registrar.send(Some("good"), body(&failed)).await.status(),
        StatusCode::ACCEPTED
    );
    let other = registrar.send(Some("good"), body(&report("pool-b"))).await;
    assert_eq!(outcome(&other), (403, "OtherPod".to_owned()));
    let garbled = registrar.send(Some("good"), "{").await;
    assert_eq!(outcome(&garbled), (400, "ReportInvalid".to_owned()));
    let long = registrar.send(Some("good"), vec![b' '; MAX_BODY + 1]).await;
    assert_eq!(outcome(&long), (400, "ReportNotRead".to_owned()));
    assert_eq!(registrar.registered(), 0);
    let notes = registrar.backend.notes.lock().unwrap();
    assert!(
        matches!(
            notes.as_slice(),
            [Decision::Failed, Decision::Refuse { .. }]
        ),
        "{notes:?}"
    );
}

#[tokio::test]
async fn requests_of_one_pod_at_the_same_time_register_it_once() {
    let go = Arc::new(Notify::new());
    let registrar = Arc::new(registrar(limits(), Some(Arc::clone(&go))).await);
    let first = tokio::spawn({
        let registrar = Arc::clone(&registrar);
        async move { registrar.ask("good").await }
    });
    registrar.comes_to_the_desk().await;
    assert_eq!(registrar.ask("good").await, (503, "UnderWay".to_owned()));
    go.notify_one();
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn a_pool_that_asks_too_often_waits_and_a_slow_answer_ends() {
    let never = Some(Arc::new(Notify::new()));
    let short = Limits {
        pool: Rate {
            burst: 2,
            per_minute: 1,
        },
        request_timeout: Duration::from_millis(200),
        ..limits()
    };
    let registrar = registrar(short, never).await;
    assert_eq!(registrar.ask("good").await, (503, "Timeout".to_owned()));
    assert_eq!(
        registrar.ask("also-good").await.0,
        403,
        "the report is another pod's"
    );
    let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
    assert_eq!(outcome(&answer), (429, "TooManyRequests".to_owned()));
    let wait: u64 = answer.headers()[header::RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((30..=60).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_client_with_another_authority_does_not_speak_to_us() {
    let registrar = registrar(limits(), None).await;
    let other = CaStore::open(
        Secrets::default().client(),
        "system",
        ServerNames::default(),
    )
    .await
    .unwrap();
    assert!(registrar.connect(&other.bundle(), HONEST).await.is_err());
}
