//! Jobs that are run again, and check runs of Apps, over a real TLS socket.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test, with its helpers")]

mod common;

use common::{REPO, Reply, Simulator, jwt};
use github_simulator::control::{NewRun, NewWorkflow, StartedRun, UpdateRepository};
use github_simulator::state::{Conclusion, JobTemplate};
use serde_json::json;

/// A run that is over, with all of its jobs red.
async fn red(github: &Simulator) -> StartedRun {
    let repository = REPO.trim_start_matches("/repos/");
    let job = |key: &str| JobTemplate {
        key: key.to_owned(),
        ..JobTemplate::default()
    };
    let workflow = NewWorkflow {
        file: "two.yml".to_owned(),
        jobs: vec![job("one"), job("other")],
        ..NewWorkflow::default()
    };
    let update = UpdateRepository {
        workflows: vec![workflow],
        ..UpdateRepository::default()
    };
    let written = github.control.update_repository(repository, &update);
    written.await.unwrap();
    let run = NewRun {
        repository: repository.to_owned(),
        workflow: "two.yml".to_owned(),
        conclusion: Some(Conclusion::Failure),
        ..NewRun::default()
    };
    github.control.start_run(&run).await.unwrap()
}

async fn post(github: &Simulator, path: &str, token: &str) -> Reply {
    let path = format!("{REPO}/actions{path}");
    github.send("POST", &path, token, None).await
}

#[tokio::test]
async fn a_job_is_run_again_in_another_attempt_and_no_other_with_it() {
    let github = Simulator::start().await;
    let token = github.admin().await;
    let run = red(&github).await;
    let first = run.jobs[0];

    let again = format!("/jobs/{first}/rerun");
    assert_eq!(post(&github, &again, &token).await.status, 201);
    let shown = format!("{REPO}/actions/runs/{}", run.run);
    let shown = github.send("GET", &shown, &token, None).await.body;
    assert_eq!(
        (&shown["run_attempt"], &shown["status"]),
        (&json!(2), &json!("in_progress"))
    );
    let shown = async |filter: &str| {
        let jobs = format!("{REPO}/actions/runs/{}/jobs?filter={filter}", run.run);
        let jobs = github.send("GET", &jobs, &token, None).await.body;
        jobs["jobs"].as_array().unwrap().clone()
    };
    let all = shown("all").await;
    assert_eq!(all.len(), run.jobs.len() + 1);
    assert!(
        all.iter()
            .any(|job| job["id"] == first && job["conclusion"] == "failure")
    );
    let jobs = shown("latest").await;
    assert_eq!(jobs.len(), run.jobs.len());
    let anew: Vec<_> = jobs.iter().filter(|job| job["run_attempt"] == 2).collect();
    assert!(anew.len() == 1 && anew[0]["id"] != first && anew[0]["conclusion"].is_null());

    // Nothing more is run again while it runs
    let refused = post(&github, &again, &token).await;
    let words = "The workflow run containing this job is already running";
    assert_eq!((refused.status, refused.message()), (403, words));
    github.assert_clean().await;
}

#[tokio::test]
async fn all_that_failed_is_run_again_at_once_and_what_went_well_is_not() {
    let github = Simulator::start().await;
    let token = github.admin().await;
    let run = red(&github).await;
    let all = format!("/runs/{}/rerun-failed-jobs", run.run);
    assert_eq!(post(&github, &all, &token).await.status, 201);
    assert_eq!(post(&github, &all, &token).await.status, 403);
    for id in run.jobs {
        let old = post(&github, &format!("/jobs/{id}/rerun"), &token).await;
        assert_eq!(old.status, 403, "{old:?}");
    }
    github.assert_clean().await;
}

#[tokio::test]
async fn an_app_tells_something_on_a_commit_and_nobody_else_may() {
    let github = Simulator::start().await;
    let admin = github.admin().await;
    let app = github.app().await;
    let path = format!(
        "/app/installations/{}/access_tokens",
        app.installation.unwrap()
    );
    let made = github.send("POST", &path, &jwt(&app, 60, 540), None).await;
    let token = made.body["token"].as_str().unwrap();
    let run = red(&github).await;
    let shown = format!("{REPO}/actions/runs/{}", run.run);
    let sha = github.send("GET", &shown, &admin, None).await.body["head_sha"].clone();

    let note = json!({
        "name": "a note", "head_sha": sha, "status": "completed", "conclusion": "neutral",
        "output": {"title": "Something", "summary": "happened"},
    });
    let path = format!("{REPO}/check-runs");
    let made = github.send("POST", &path, token, Some(note.clone())).await;
    assert_eq!(made.status, 201, "{made:?}");
    let refused = github.send("POST", &path, &admin, Some(note)).await;
    assert_eq!(refused.status, 403, "{refused:?}");
    let sha = sha.as_str().unwrap();
    let listed = format!("{REPO}/commits/{sha}/check-runs?check_name=a%20note");
    let listed = github.send("GET", &listed, &admin, None).await.body;
    assert_eq!(listed["check_runs"][0]["conclusion"], "neutral", "{listed}");
    github.assert_clean().await;
}

#[tokio::test]
async fn a_forks_pull_request_is_listed_by_the_name_of_its_branch_and_says_whose_it_is() {
    // Given a push to main, and a pull request from the branch main of a fork
    let github = Simulator::start().await;
    let token = github.admin().await;
    let ours = red(&github).await.run;
    let theirs = NewRun {
        repository: REPO.trim_start_matches("/repos/").to_owned(),
        workflow: "two.yml".to_owned(),
        event: "pull_request".to_owned(),
        fork: Some("stranger/widgets".to_owned()),
        conclusion: Some(Conclusion::Success),
        ..NewRun::default()
    };
    let theirs = github.control.start_run(&theirs).await.unwrap().run;

    // Then both are runs on a branch of that name, of two repositories and commits
    let listed = async |query: &str| {
        let path = format!("{REPO}/actions/workflows/two.yml/runs?branch=main{query}");
        let listed = github.send("GET", &path, &token, None).await.body;
        listed["workflow_runs"].as_array().unwrap().clone()
    };
    let both = listed("").await;
    let ids: Vec<_> = both.iter().map(|run| run["id"].as_u64()).collect();
    assert_eq!(ids, [Some(theirs), Some(ours)]);
    let [fork, own] = both.as_slice() else {
        panic!("{both:?}")
    };
    assert_eq!(own["head_repository"], own["repository"]);
    assert_eq!(fork["repository"], own["repository"]);
    let head = &fork["head_repository"];
    let said = (&head["full_name"], &head["fork"]);
    assert_eq!(said, (&json!("stranger/widgets"), &json!(true)));
    assert_ne!(head["id"], own["repository"]["id"]);
    assert_ne!(fork["head_sha"], own["head_sha"]);
    // ... and an event tells them apart
    let pushed = listed("&event=push").await;
    assert_eq!(pushed.iter().collect::<Vec<_>>(), [own]);
    github.assert_clean().await;
}
