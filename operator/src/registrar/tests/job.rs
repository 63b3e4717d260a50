//! What a job with a container of its own asks, and what it is told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cuda_runner_plan::model::runner::JobPod;
use gate_report::wire::{
    ContainerState, JOB_CONTAINER, JobContainer, JobContainerState, MAX_BODY, MAX_SERVICES,
    REGISTRATIONS, REPORTS, TICKETS,
};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::stub::{Registrar, body, limits, outcome, registrar, report};
use crate::registrar::RegisterError;

/// A registrar that knows pods whose jobs bring their containers, and whose gates have passed.
async fn with_containers() -> Registrar {
    let registrar = registrar(limits(), None).await;
    *registrar.backend.job.lock().unwrap() = Some(JobPod::default());
    registrar.backend.shown.store(true, Ordering::SeqCst);
    registrar
}

fn wanted(image: &str, services: usize) -> String {
    let service = json!({"image": "redis:7", "env": {"TOKEN": "s3cret"}});
    json!({"image": image, "services": vec![service; services]}).to_string()
}

#[tokio::test]
async fn a_jobs_ticket_comes_with_its_pods_and_is_good_for_the_jobs_requests_alone() {
    let registrar = with_containers().await;
    let tickets = registrar.fetch_tickets("good").await;
    let job = tickets.job.unwrap();
    // Given the job's ticket, then it is none at the runner's paths
    for path in [TICKETS, REPORTS, REGISTRATIONS] {
        let answer = registrar
            .post(path, Some(&job), body(&report("pool-a")))
            .await;
        assert_eq!(
            outcome(&answer),
            (401, "TokenNotAccepted".to_owned()),
            "{path}"
        );
    }
    // And the runner's ticket none at the job's
    for bearer in [Some(tickets.ticket.as_str()), Some("a.b"), None] {
        let asked = registrar
            .post(JOB_CONTAINER, bearer, wanted("cuda:13", 0))
            .await;
        assert_eq!(asked.status(), StatusCode::UNAUTHORIZED);
        let looked = registrar.get(JOB_CONTAINER, bearer).await;
        assert_eq!(looked.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(registrar.registered(), 0);
    assert!(registrar.backend.brought.lock().unwrap().is_empty());
    let answer = registrar
        .post(JOB_CONTAINER, Some(&job), wanted("cuda:13", 0))
        .await;
    assert_eq!(
        (answer.status(), answer.body().as_ref()),
        (StatusCode::OK, &b"{}"[..])
    );
    // Where jobs run in the agent's container there is no such ticket
    *registrar.backend.job.lock().unwrap() = None;
    assert_eq!(registrar.fetch_tickets("good").await.job, None);
    let answer = registrar
        .post(JOB_CONTAINER, Some(&job), wanted("cuda:13", 0))
        .await;
    assert_eq!(outcome(&answer), (403, "NoRunner".to_owned()));
}

#[tokio::test]
async fn a_pod_gets_one_jobs_container_however_often_it_is_asked_for() {
    let registrar = with_containers().await;
    let ask = async |body: String| {
        let ticket = registrar.job_ticket_of("pool-a");
        outcome(&registrar.post(JOB_CONTAINER, Some(&ticket), body).await)
    };
    let chosen = (403, "JobContainerChosen".to_owned());
    assert_eq!(ask(wanted("cuda:13", 1)).await.0, 200);
    // The answer was lost
    assert_eq!(ask(wanted("cuda:13", 1)).await.0, 200);
    assert_eq!(ask(wanted("cuda:12", 1)).await, chosen);
    assert_eq!(ask(wanted("cuda:13", 2)).await, chosen);
    // An operator that has just started goes by what the pod shows
    let restarted = with_containers().await;
    let shown = JobPod {
        image: Some("cuda:13".to_owned()),
        ..JobPod::default()
    };
    *restarted.backend.job.lock().unwrap() = Some(shown);
    for (image, expected) in [
        ("cuda:12", (403, "JobContainerChosen")),
        ("cuda:13", (200, "")),
    ] {
        let ticket = restarted.job_ticket_of("pool-a");
        let answer = restarted
            .post(JOB_CONTAINER, Some(&ticket), wanted(image, 0))
            .await;
        assert_eq!(
            outcome(&answer),
            (expected.0, expected.1.to_owned()),
            "{image}"
        );
    }
    let brought = registrar.backend.brought.lock().unwrap().clone();
    let brought: Vec<&str> = brought.iter().map(|wanted| wanted.image.as_str()).collect();
    assert_eq!(brought, ["cuda:13", "cuda:13"]);
}

#[tokio::test]
async fn what_a_job_may_not_have_is_refused_with_a_sentence() {
    let registrar = with_containers().await;
    let long = "x".repeat(MAX_BODY);
    for (pod, body, status, reason) in [
        ("pool-a", "{".to_owned(), 400, "JobContainerInvalid"),
        ("pool-a", wanted("", 0), 400, "JobContainerInvalid"),
        ("pool-a", wanted("two words", 0), 400, "JobContainerInvalid"),
        (
            "pool-a",
            wanted("cuda:13", MAX_SERVICES + 1),
            400,
            "JobContainerInvalid",
        ),
        ("pool-a", wanted(&long, 0), 400, "JobContainerNotRead"),
        ("pool-b", wanted("cuda:13", 1), 403, "ServicesNotAllowed"),
        ("closing", wanted("cuda:13", 0), 403, "Closing"),
        ("stranger", wanted("cuda:13", 0), 403, "NoRunner"),
        ("new", wanted("cuda:13", 0), 503, "NotYetKnown"),
    ] {
        let ticket = registrar.job_ticket_of(pod);
        let answer = registrar.post(JOB_CONTAINER, Some(&ticket), body).await;
        assert_eq!(outcome(&answer), (status, reason.to_owned()), "{pod}");
        let said: Value = serde_json::from_slice(answer.body()).unwrap();
        assert!(said["message"].as_str().unwrap().len() > 20, "{said}");
    }
    // What was wrong is not repeated: it has secrets
    let ticket = registrar.job_ticket_of("pool-a");
    let odd = r#"{"image": "a", "services": [{"image": "b", "env": {"A": {"s3cret": "s3cret"}}}]}"#;
    let answer = registrar.post(JOB_CONTAINER, Some(&ticket), odd).await;
    assert!(!String::from_utf8_lossy(answer.body()).contains("s3cret"));
    // Nothing of it was done, and a runner that is online is served
    assert!(registrar.backend.brought.lock().unwrap().is_empty());
    let ticket = registrar.job_ticket_of("served");
    let answer = registrar
        .post(JOB_CONTAINER, Some(&ticket), wanted("cuda:13", 0))
        .await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn no_job_comes_before_the_gate_has_passed_and_what_can_be_tried_again_says_when() {
    let registrar = with_containers().await;
    registrar.backend.shown.store(false, Ordering::SeqCst);
    let ticket = registrar.job_ticket_of("pool-a");
    let early = registrar
        .post(JOB_CONTAINER, Some(&ticket), wanted("cuda:13", 0))
        .await;
    assert_eq!(outcome(&early), (503, "NotAdmitted".to_owned()));
    // When its report is admitted, then it may, whatever the watch shows
    let passed = registrar.bring("pool-a", body(&report("pool-a"))).await;
    assert_eq!(passed.status(), StatusCode::OK);
    *registrar.backend.fails.lock().unwrap() = Some(RegisterError::Retry {
        after: Duration::from_secs(3),
        reason: "ImageNotChanged".into(),
        message: "later".into(),
    });
    let later = registrar
        .post(JOB_CONTAINER, Some(&ticket), wanted("cuda:13", 0))
        .await;
    assert_eq!(outcome(&later), (503, "ImageNotChanged".to_owned()));
    assert_eq!(later.headers()[header::RETRY_AFTER], "3");
    let again = registrar
        .post(JOB_CONTAINER, Some(&ticket), wanted("cuda:13", 0))
        .await;
    assert_eq!(again.status(), StatusCode::OK);
    let brought: Vec<JobContainer> = registrar.backend.brought.lock().unwrap().clone();
    assert_eq!(brought.len(), 2);
}

#[tokio::test]
async fn a_job_is_told_how_far_its_containers_are_and_may_ask_so_often() {
    let registrar = with_containers().await;
    let ticket = registrar.job_ticket_of("served");
    let look = async || {
        let answer = registrar.get(JOB_CONTAINER, Some(&ticket)).await;
        serde_json::from_slice::<JobContainerState>(answer.body()).unwrap()
    };
    assert_eq!(look().await.container, ContainerState::Pulling);
    let failed = ContainerState::Failed {
        reason: "ErrImagePull".to_owned(),
        message: "manifest unknown".to_owned(),
    };
    *registrar.backend.job.lock().unwrap() = Some(JobPod {
        container: Some(failed.clone()),
        services: vec![("svc-0".to_owned(), ContainerState::Running)],
        ..JobPod::default()
    });
    let state = look().await;
    assert_eq!(
        (state.container, state.services),
        (failed, vec![ContainerState::Running])
    );
    // One that asks without a pause is told to wait, and nobody else
    let third = registrar.get(JOB_CONTAINER, Some(&ticket)).await;
    assert_eq!(third.status(), StatusCode::OK);
    let often = registrar.get(JOB_CONTAINER, Some(&ticket)).await;
    assert_eq!(outcome(&often), (429, "TooManyRequests".to_owned()));
    let other = registrar.job_ticket_of("pool-a");
    assert_eq!(
        registrar.get(JOB_CONTAINER, Some(&other)).await.status(),
        StatusCode::OK
    );
    let closing = registrar.job_ticket_of("closing");
    let gone = registrar.get(JOB_CONTAINER, Some(&closing)).await;
    assert_eq!(outcome(&gone), (403, "Closing".to_owned()));
}
