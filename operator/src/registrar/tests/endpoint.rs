//! Every answer of the endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gate_report::wire::{MAX_BODY, REGISTRATIONS, REPORTS, TICKETS};
use gate_report::{Outcome, Report};
use http::{StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::sync::Notify;

use super::kubernetes::Secrets;
use super::stub::{HONEST, JIT, body, known_as, limits, outcome, registrar, report};
use crate::registrar::{
    CaStore, Decision, Limits, PodIdentity, Purpose, Rate, RegisterError, ServerNames,
};

#[tokio::test]
async fn a_pod_that_passed_gets_its_image_and_then_one_registration() {
    let registrar = registrar(limits(), None).await;
    // Given a pod that has shown its token, and not brought a report
    let ticket = registrar.fetch_ticket("good").await;
    let early = registrar.post(REGISTRATIONS, Some(&ticket), "{}").await;
    assert_eq!(outcome(&early), (503, "NotAdmitted".to_owned()));
    assert_eq!(early.headers()[header::RETRY_AFTER], "1");
    // When its gate has passed
    let passed = body(&report("pool-a"));
    let answer = registrar.post(REPORTS, Some(&ticket), passed).await;
    assert_eq!(
        (answer.status(), answer.body().as_ref()),
        (StatusCode::OK, &b"{}"[..])
    );
    assert_eq!(registrar.backend.let_in.load(Ordering::SeqCst), 1);
    assert_eq!(registrar.registered(), 0, "an image may take long to come");
    // Then it gets its registration
    let answer = registrar.post(REGISTRATIONS, Some(&ticket), "{}").await;
    let given: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(
        (given["kind"].as_str(), given["encodedJitConfig"].as_str()),
        (Some("JitConfig"), Some(JIT))
    );
    // And no second one, with whatever other ticket of the same pod
    let until = Timestamp::now() + SignedDuration::from_secs(9);
    let pod = PodIdentity {
        namespace: "ci".into(),
        name: "pool-a".into(),
        uid: "u-a".into(),
        node: None,
    };
    let other = registrar
        .ca
        .ticket_key()
        .issue(&pod, Purpose::Runner, until);
    let other = Some(other.expose_secret());
    let answer = registrar.post(REGISTRATIONS, other, "{}").await;
    assert_eq!(outcome(&answer), (403, "AlreadyRegistered".to_owned()));
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn a_restarted_operator_knows_tickets_and_what_the_pods_show() {
    // Given an operator that has just started, and a pod whose image was changed before that
    let registrar = registrar(limits(), None).await;
    let answer = registrar.register("pool-a").await;
    assert_eq!(outcome(&answer), (503, "NotAdmitted".to_owned()));
    registrar.backend.shown.store(true, Ordering::SeqCst);
    // Then its ticket is good, and it gets its registration
    assert_eq!(registrar.register("pool-a").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_given_again() {
    // Given an agent's container that has hung up before GitHub had answered
    let go = Arc::new(Notify::new());
    let registrar = Arc::new(registrar(limits(), Some(Arc::clone(&go))).await);
    let ticket = registrar.fetch_ticket("good").await;
    let passed = body(&report("pool-a"));
    registrar.post(REPORTS, Some(&ticket), passed).await;
    let first = tokio::spawn({
        let (registrar, ticket) = (Arc::clone(&registrar), ticket.clone());
        async move { registrar.post(REGISTRATIONS, Some(&ticket), "{}").await }
    });
    registrar.comes_to_the_desk().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    go.notify_one();
    // When it asks again, with the same ticket
    let answer = loop {
        let answer = registrar.post(REGISTRATIONS, Some(&ticket), "{}").await;
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
        let outcome = registrar.show(token).await;
        assert_eq!(outcome, (status, reason.to_owned()), "{token}");
        let asked = registrar.reviews.load(Ordering::SeqCst) - before;
        assert_eq!(asked, reviews, "{token}");
    }
    // What the token says of itself counts for nothing
    assert_eq!(
        registrar.ask("other-pod").await,
        (200, String::new()),
        "the token is pool-a's, whatever it claims"
    );
    for path in [TICKETS, REPORTS, REGISTRATIONS] {
        let nameless = registrar.post(path, None, body(&report("pool-a"))).await;
        assert_eq!(outcome(&nameless), (401, "NoToken".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn a_ticket_is_a_pods_own_and_is_looked_up_each_time() {
    let registrar = registrar(limits(), None).await;
    for path in [REPORTS, REGISTRATIONS] {
        for (pod, status, reason) in [
            ("stranger", 403, "NoRunner"),
            ("closing", 403, "Closing"),
            ("served", 403, "AlreadyRegistered"),
            ("new", 503, "NotYetKnown"),
        ] {
            let ticket = registrar.ticket_of(pod);
            let answer = registrar.post(path, Some(&ticket), "{}").await;
            assert_eq!(outcome(&answer), (status, reason.to_owned()), "{path}");
        }
        // What is no ticket of this operator, a token among it
        let token = known_as("good");
        let longest = "x".repeat(9000);
        for bearer in ["", ".", "a.b", &token, &longest] {
            let answer = registrar.post(path, Some(bearer), "{}").await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{bearer}");
        }
    }
    // And a ticket is no token
    let ticket = registrar.ticket_of("pool-a");
    let answer = registrar.post(TICKETS, Some(&ticket), "").await;
    assert_eq!(outcome(&answer), (401, "TokenNotAccepted".to_owned()));
    assert_eq!(registrar.reviews.load(Ordering::SeqCst), 0);
    assert_eq!(registrar.backend.let_in.load(Ordering::SeqCst), 0);
    assert_eq!(registrar.registered(), 0);
}

#[tokio::test]
async fn what_can_be_tried_again_says_when() {
    let registrar = registrar(limits(), None).await;
    let later = || RegisterError::Retry {
        after: Duration::from_millis(6500),
        reason: "RateLimited".into(),
        message: "later".into(),
    };
    // Given an image that cannot be changed now, then the report is to be brought again
    *registrar.backend.fails.lock().unwrap() = Some(later());
    let answer = registrar.bring("pool-a", body(&report("pool-a"))).await;
    assert_eq!(outcome(&answer), (503, "RateLimited".to_owned()));
    assert_eq!(answer.headers()[header::RETRY_AFTER], "7");
    let answer = registrar.bring("pool-a", body(&report("pool-a"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    // Given a registration that cannot be made now
    *registrar.backend.fails.lock().unwrap() = Some(later());
    let answer = registrar.register("pool-a").await;
    assert_eq!(outcome(&answer), (503, "RateLimited".to_owned()));
    // The failure has not used the pod's registration up
    assert_eq!(registrar.register("pool-a").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn reports_are_judged_before_an_image_is_changed() {
    let registrar = registrar(limits(), None).await;
    let failed = Report {
        outcome: Outcome::Failed,
        ..report("pool-a")
    };
    let answer = registrar.bring("pool-a", body(&failed)).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let other = registrar.bring("pool-a", body(&report("pool-b"))).await;
    assert_eq!(outcome(&other), (403, "OtherPod".to_owned()));
    let garbled = registrar.bring("pool-a", "{").await;
    assert_eq!(outcome(&garbled), (400, "ReportInvalid".to_owned()));
    let long = registrar.bring("pool-a", vec![b' '; MAX_BODY + 1]).await;
    assert_eq!(outcome(&long), (400, "ReportNotRead".to_owned()));
    assert_eq!(registrar.backend.let_in.load(Ordering::SeqCst), 0);
    // And none of them opens the way to a registration
    let answer = registrar.register("pool-a").await;
    assert!(
        matches!(outcome(&answer).0, 429 | 503),
        "{:?}",
        outcome(&answer)
    );
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
    registrar.backend.shown.store(true, Ordering::SeqCst);
    let first = tokio::spawn({
        let registrar = Arc::clone(&registrar);
        async move { registrar.register("pool-a").await }
    });
    registrar.comes_to_the_desk().await;
    let second = registrar.register("pool-a").await;
    assert_eq!(outcome(&second), (503, "UnderWay".to_owned()));
    go.notify_one();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn a_pool_that_asks_too_often_waits_and_a_slow_answer_ends() {
    let never = Some(Arc::new(Notify::new()));
    let short = Limits {
        request_timeout: Duration::from_millis(200),
        ..limits()
    };
    let hurried = registrar(short, never).await;
    hurried.backend.shown.store(true, Ordering::SeqCst);
    let slow = hurried.register("pool-a").await;
    assert_eq!(outcome(&slow), (503, "Timeout".to_owned()));
    let few = Limits {
        pool: Rate {
            burst: 3,
            per_minute: 1,
        },
        ..limits()
    };
    let registrar = registrar(few, None).await;
    registrar.backend.shown.store(true, Ordering::SeqCst);
    let first = registrar.register("pool-a").await;
    assert_eq!(first.status(), StatusCode::OK);
    // Whatever is asked counts, of whichever pod of the pool
    assert_eq!(registrar.show("also-good").await.0, 200);
    let other = registrar.bring("pool-b", body(&report("pool-a"))).await;
    assert_eq!(other.status(), StatusCode::FORBIDDEN);
    for answer in [
        registrar.bring("pool-a", body(&report("pool-a"))).await,
        registrar.register("pool-a").await,
    ] {
        assert_eq!(outcome(&answer), (429, "TooManyRequests".to_owned()));
        let wait: u64 = answer.headers()[header::RETRY_AFTER]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!((30..=60).contains(&wait), "{wait}");
    }
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
