//! Jobs that are run again, and what is said of that on the commit.

use http::Method;
use serde_json::{Value, json};

use super::stub::{Stub, error, reply};
use crate::github::{Error, Repository, Run};
use cuda_runner_plan::model::rerun::{CheckNote, NewAttempt};

fn repository() -> Repository {
    Repository::new("acme/widgets").unwrap()
}

fn attempt(job: Option<u64>) -> NewAttempt {
    NewAttempt {
        repository: repository(),
        run: 7,
        job,
        note: CheckNote {
            id: "rerun-7-1".into(),
            sha: "5ca1ab1e".into(),
            title: "GPU fault, job run again".into(),
            summary: "what was found".into(),
            url: None,
        },
    }
}

fn run(workflow: Option<u64>, branch: &str) -> Run {
    Run {
        id: 7,
        status: "completed".into(),
        conclusion: None,
        html_url: String::new(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        check_suite_id: None,
        head_sha: Some("5ca1ab1e".into()),
        workflow_id: workflow,
        head_branch: Some(branch.into()),
        head_repository: Some(1),
        event: Some("pull_request".into()),
        attempt: 1,
    }
}

#[tokio::test]
async fn one_job_is_run_again_by_its_number_and_several_by_their_runs() {
    let running = "The workflow run containing this job is already running";
    let stub = Stub::start(move |_, before| match before {
        0 | 1 => reply(201, &json!({})),
        _ => error(403, running),
    })
    .await;
    let client = stub.client("acme/widgets");
    client.run_again(&attempt(Some(5))).await.unwrap();
    client.run_again(&attempt(None)).await.unwrap();
    let refused = client.run_again(&attempt(Some(5))).await.unwrap_err();
    let is_said = matches!(&refused, Error::Forbidden { message, .. } if message == running);
    assert!(is_said, "{refused:?}");
    let seen: Vec<(Method, String)> = stub
        .seen()
        .into_iter()
        .take(2)
        .map(|seen| (seen.method, seen.path))
        .collect();
    let path = |rest: &str| format!("/api/v3/repos/acme/widgets/actions/{rest}");
    assert_eq!(
        seen,
        [
            (Method::POST, path("jobs/5/rerun")),
            (Method::POST, path("runs/7/rerun-failed-jobs")),
        ]
    );
}

#[tokio::test]
async fn a_commit_is_told_by_a_check_that_requires_nothing() {
    let stub = Stub::start(|_, _| reply(201, &json!({}))).await;
    let client = stub.client("acme/widgets");
    let note = attempt(None).note;
    client.tell(&repository(), &note).await.unwrap();
    let seen = &stub.seen()[0];
    assert!(seen.path.ends_with("/repos/acme/widgets/check-runs"));
    assert_eq!(seen.body["head_sha"], "5ca1ab1e");
    assert_eq!(seen.body["external_id"], "rerun-7-1");
    assert_eq!(seen.body["conclusion"], "neutral");
    assert_eq!(seen.body["output"]["summary"], "what was found");
}

#[tokio::test]
async fn a_commit_that_may_have_been_told_is_looked_at_first() {
    for (there, posts) in [("rerun-7-1", 0), ("rerun-6-1", 1)] {
        let stub = Stub::start(move |seen, _| match seen.method {
            Method::GET => reply(
                200,
                &json!({"total_count": 1, "check_runs": [{"id": 1, "external_id": there}]}),
            ),
            _ => reply(201, &json!({})),
        })
        .await;
        let note = attempt(None).note;
        let client = stub.client("acme/widgets");
        client.tell_once(&repository(), &note).await.unwrap();
        let seen = stub.seen();
        assert!(
            seen[0].path.contains(
                "/commits/5ca1ab1e/check-runs?check_name=cuda-runner-operator&filter=all"
            )
        );
        assert_eq!(seen.len() - 1, posts, "{there}");
    }
}

#[tokio::test]
async fn the_last_runs_are_those_of_the_same_workflow_event_and_name_of_the_branch() {
    // Given runs of ours, of a fork, and of a fork that was deleted
    let shown = |id: u64, head: Value| {
        json!({
            "id": id, "status": "queued", "conclusion": null, "html_url": "", "head_sha": "0ddba11",
            "created_at": "2026-01-01T00:00:00Z", "run_attempt": 2, "event": "pull_request",
            "head_repository": head,
        })
    };
    let heads = [
        json!({"id": 1, "fork": false}),
        json!({"id": 9}),
        json!(null),
    ];
    let runs: Vec<Value> = heads
        .into_iter()
        .zip(7..)
        .map(|(h, id)| shown(id, h))
        .collect();
    let body = json!({"total_count": 3, "workflow_runs": runs});
    let stub = Stub::start(move |_, _| reply(200, &body)).await;
    let client = stub.client("acme/widgets");
    let older = run(Some(3), "fix/a&b");
    let found = client.latest_runs(&repository(), &older).await.unwrap();
    // Then each says whose it is
    let said = found.iter().map(|run| (run.id, run.head_repository));
    let said: Vec<_> = said.collect();
    assert_eq!(said, [(7, Some(1)), (8, Some(9)), (9, None)]);
    assert_eq!(found[0].event.as_deref(), Some("pull_request"));
    let path = &stub.seen()[0].path;
    let wanted = "/actions/workflows/3/runs?branch=fix%2Fa%26b&event=pull_request&per_page=30";
    assert!(path.ends_with(wanted), "{path}");
    // Where the workflow is not known, nothing is asked
    let found = client.latest_runs(&repository(), &run(None, "main")).await;
    assert_eq!((found.unwrap(), stub.seen().len()), (vec![], 1));
}
