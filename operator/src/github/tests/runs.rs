//! Starting a workflow, finding its run, and counting in its logs.

use std::sync::Arc;

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::stub::{NOW, Stub, error, raw, reply};
use crate::github::{Error, GitHubUrl, Repository, TestSum, Workflow};

fn workflow() -> Workflow {
    Workflow {
        repository: Repository::new("acme/widgets").unwrap(),
        file: "cuda.yml".into(),
        git_ref: "release/1".into(),
    }
}

#[test]
fn a_job_leads_to_a_repository_of_its_own_address_only() {
    let within = |address: &str, said: &str| {
        let url = GitHubUrl::parse(address, false).unwrap();
        let repository = Repository::within(&url, said)?;
        Some(repository.run_page(&url, 7, Some(2)))
    };
    let one = "https://github.com/acme/widgets";
    for said in ["acme/gadgets", "", "acme", "a/b/c", "acme/../x", "acme/<b>"] {
        assert_eq!(
            within(one, said).unwrap(),
            "https://github.com/acme/widgets/actions/runs/7/attempts/2",
            "{said}"
        );
    }
    assert!(
        within(one, "Acme/Widgets")
            .unwrap()
            .contains("/Acme/Widgets/")
    );
    let all = "https://github.com/acme";
    assert!(within(all, "ACME/gadgets").is_some());
    assert_eq!(within(all, "other/gadgets"), None);
    assert_eq!(within(all, "acme/.."), None);
    let enterprise = "https://octo.ghe.com/enterprises/e";
    let page = within(enterprise, "acme/gadgets").unwrap();
    assert!(page.starts_with("https://octo.ghe.com/acme/"), "{page}");
    assert_eq!(within(enterprise, "//evil.example/x"), None);
}

#[tokio::test]
async fn how_long_an_agent_is_served_is_asked_once_a_day_for_all() {
    let stub = Stub::start(|seen, _| {
        if seen.path.ends_with("/actions/runners/deprecations/2.330.0") {
            let ends = json!({"runner_version": "2.330.0", "registration_deprecates_at": null, "runtime_deprecates_at": "2026-09-01T00:00:00Z"});
            reply(200, &ends)
        } else {
            error(404, "Not Found")
        }
    })
    .await;
    let client = stub.client("acme/widgets");
    for _ in 0..3 {
        let ends = client.lifecycle("2.330.0").await.unwrap();
        assert_eq!(ends.registration_ends, None);
        let end = ends.runtime_ends.unwrap();
        assert_eq!(end.to_string(), "2026-09-01T00:00:00Z");
        assert_eq!(ends.refused_since(end), Some(end));
        assert_eq!(ends.refused_since(end - SignedDuration::from_secs(1)), None);
        // A server that does not say it is not asked again, either.
        assert_eq!(client.lifecycle("2.331.0").await, None);
    }
    assert_eq!(stub.seen().len(), 2);
}

#[tokio::test]
async fn requests_are_short_when_less_than_a_tenth_of_the_hours_is_left() {
    let stub = Stub::start(|_, before| {
        let left = if before == 0 { "500" } else { "499" };
        error(404, "Not Found")
            .with("x-ratelimit-limit", "5000")
            .with("x-ratelimit-remaining", left)
    })
    .await;
    let client = stub.client("acme/widgets");
    let repository = Repository::new("acme/widgets").unwrap();
    assert!(!client.is_short(), "nothing is known yet");
    for short in [false, true] {
        assert_eq!(client.run_jobs(&repository, 7).await.unwrap(), None);
        assert_eq!(client.is_short(), short);
    }
}

#[tokio::test]
async fn a_dispatch_names_its_run_where_the_server_can() {
    let unknown = "Invalid request.\n\n\"return_run_details\" is not a permitted key.";
    for status in [400, 422] {
        let stub = Stub::start(move |_, before| match before {
            0 => error(status, unknown),
            _ => raw(204, ""),
        })
        .await;
        let client = stub.client("acme/widgets");
        assert_eq!(
            client.dispatch(&workflow()).await.unwrap(),
            None,
            "{status}"
        );
        assert_eq!(stub.seen()[1].body, json!({"ref": "release/1"}));
    }
    let stub = Stub::start(|seen, before| {
        assert_eq!(seen.method, Method::POST);
        assert!(
            seen.path
                .ends_with("/repos/acme/widgets/actions/workflows/cuda.yml/dispatches")
        );
        match before {
            0 => reply(
                200,
                &json!({"workflow_run_id": 7, "run_url": "", "html_url": ""}),
            ),
            _ => raw(204, ""),
        }
    })
    .await;
    let client = stub.client("acme/widgets");
    assert_eq!(client.dispatch(&workflow()).await.unwrap(), Some(7));
    assert_eq!(client.dispatch(&workflow()).await.unwrap(), None);
    let bodies: Vec<_> = stub.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies[0]["return_run_details"], true);
}

#[tokio::test]
async fn a_workflow_that_cannot_be_started_is_refused_for_its_own_reason() {
    let stub = Stub::start(|_, _| error(422, "No ref found for: release/1")).await;
    let refused = stub.client("acme/widgets").dispatch(&workflow()).await;
    assert!(refused.unwrap_err().to_string().contains("No ref found"));
}

/// Items of a list, of which each page shows a part.
fn part(path: &str, items: &[Value]) -> Vec<Value> {
    let number = |name: &str, otherwise| {
        let value = path.split(['?', '&']).find_map(|p| p.strip_prefix(name));
        value.map_or(otherwise, |text| text.parse::<usize>().unwrap())
    };
    let (size, page) = (number("per_page=", 30), number("page=", 1));
    items
        .chunks(size)
        .nth(page - 1)
        .unwrap_or_default()
        .to_vec()
}

#[tokio::test]
async fn the_queue_is_read_to_its_end_whatever_is_over_or_waits() {
    let job = |n: usize, status: &str| json!({"id": n, "name": format!("job {n}"), "status": status, "labels": ["cuda"]});
    let jobs: Vec<Value> = (0..250)
        .map(|n| job(n, if n < 100 { "completed" } else { "queued" }))
        .collect();
    let stub = Stub::start(move |seen, _| {
        let path = &seen.path;
        let runs = |ids: &[u64]| {
            let runs: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
            reply(
                200,
                &json!({"total_count": runs.len(), "workflow_runs": runs}),
            )
        };
        if path.contains("/runs/1/jobs") {
            let jobs = json!({"total_count": jobs.len(), "jobs": part(path, &jobs)});
            reply(200, &jobs)
        } else if path.contains("/runs/2/jobs") {
            // Deleted since it was listed
            error(404, "Not Found")
        } else if path.contains("/runs/3/jobs") {
            let jobs = [job(900, "waiting"), job(901, "queued")];
            reply(200, &json!({"total_count": 2, "jobs": jobs}))
        } else if path.contains("status=queued") {
            runs(&[2])
        } else if path.contains("status=in_progress") {
            runs(&[1])
        } else {
            assert!(path.contains("status=waiting"), "{path}");
            runs(&[3])
        }
    })
    .await;
    let queue = stub
        .client("acme/widgets")
        .repository_jobs(NOW)
        .await
        .unwrap();
    assert_eq!(queue.unwrap().waiting.len(), 151);
}

#[tokio::test]
async fn jobs_that_run_are_known_by_their_runners() {
    // Given a run with a job of ours, one of GitHub's own runners, one of no runner, and one that waits
    let stub = Stub::start(move |seen, before| {
        let path = &seen.path;
        if path.contains("/jobs") {
            let job = |runner: Value| {
                json!({
                    "id": 1, "name": format!("train-{before}"), "status": "in_progress", "runner_name": runner, "run_attempt": 2,
                    "workflow_name": "nightly", "started_at": "2026-11-30T05:00:00Z",
                })
            };
            let waits = json!({"id": 2, "name": "later", "status": "queued", "runner_name": null});
            let runners = [json!("pool-aaaaa"), json!("GitHub Actions 7"), json!(""), json!(null)];
            let jobs = [&runners.map(job)[..], &[waits]].concat();
            return reply(200, &json!({"total_count": 5, "jobs": jobs}));
        }
        let runs = if path.contains("status=in_progress") { &[7][..] } else { &[] };
        let runs: Vec<Value> = runs.iter().map(|id| json!({"id": id})).collect();
        reply(200, &json!({"total_count": runs.len(), "workflow_runs": runs}))
    })
    .await;
    // Then ours is known with its run and attempt, whoever waits beside it
    let client = stub.client("acme/widgets");
    let jobs = client.repository_jobs(NOW).await.unwrap().unwrap();
    let [(runner, job)] = &jobs.running[..] else {
        panic!("{:?}", *jobs.running);
    };
    assert_eq!(runner, "pool-aaaaa");
    assert!(job.job.starts_with("train-"), "{}", job.job);
    let said = [&job.run, &job.attempt, &job.workflow, &job.repository];
    assert_eq!(said, ["7", "2", "nightly", "acme/widgets"]);
    assert_eq!(job.at, "1796014800");
    assert_eq!(jobs.waiting.len(), 1);
    // And where other jobs run, those that wait are kept once
    let again = client.repository_jobs(NOW).await.unwrap().unwrap();
    assert_ne!(again.running[0].1.job, job.job);
    assert!(Arc::ptr_eq(&jobs.waiting, &again.waiting));
}

#[tokio::test]
async fn in_a_long_queue_the_newest_and_the_oldest_jobs_are_seen() {
    // Given more runs than GitHub gives, and two of them with jobs of ours: the last that came, and the one that waits longest
    for (all, oldest) in [
        (0, 0),
        (1, 1),
        (100, 100),
        (150, 150),
        (777, 777),
        (5000, 1000),
    ] {
        let stub = Stub::start(move |seen, _| {
            let path = &seen.path;
            let runs: Vec<Value> = match path {
                path if path.contains("/jobs") => {
                    let run = path
                        .split("/runs/")
                        .nth(1)
                        .unwrap()
                        .split('/')
                        .next()
                        .unwrap();
                    let ours = [1, oldest].map(|n| n.to_string()).contains(&run.to_owned());
                    let labels = [if ours { "cuda" } else { "other" }];
                    let job = json!({"id": 1, "name": run, "status": "queued", "labels": labels});
                    return reply(200, &json!({"total_count": 1, "jobs": [job]}));
                }
                path if path.contains("status=queued") => {
                    (1..=all.min(1000)).map(|n| json!({"id": n})).collect()
                }
                _ => vec![],
            };
            let total = if runs.is_empty() { 0 } else { all };
            reply(
                200,
                &json!({"total_count": total, "workflow_runs": part(path, &runs)}),
            )
        })
        .await;
        // Then each is seen once
        let queue = stub
            .client("acme/widgets")
            .repository_jobs(NOW)
            .await
            .unwrap();
        let queue = queue.unwrap();
        let ours = queue.waiting.iter().filter(|job| job.labels == ["cuda"]);
        let ours: Vec<&str> = ours.map(|job| job.name.as_str()).collect();
        let mut expected = vec![1, oldest];
        expected.retain(|n| *n > 0 && all > 0);
        expected.dedup();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(ours, expected, "{all}");
        assert!(queue.waiting.len() <= 200, "{}", queue.waiting.len());
    }
}

#[tokio::test]
async fn a_list_without_an_end_is_given_up() {
    let stub = Stub::start(|_, before| {
        let jobs: Vec<Value> = (0..100)
            .map(|n| json!({"id": before * 100 + n, "name": "", "status": "queued"}))
            .collect();
        reply(200, &json!({"total_count": u32::MAX, "jobs": jobs}))
    })
    .await;
    let repository = Repository::new("acme/widgets").unwrap();
    let client = stub.client("acme/widgets");
    let failed = client.run_jobs(&repository, 7).await.unwrap_err();
    assert_eq!(failed.category(), "Malformed");
    assert_eq!(stub.seen().len(), 30);
}

#[tokio::test]
async fn a_tag_is_sent_with_the_token_that_it_was_given_for_alone() {
    let stub = Stub::start(|seen, before| {
        if seen.path.contains("access_tokens") {
            let token = format!("ghs_{before}");
            // In its last minutes, so that the next request has another one
            let ends = Timestamp::now() + SignedDuration::from_mins(4);
            let token = json!({"token": token, "expires_at": ends, "permissions": {}});
            return reply(201, &token);
        }
        assert_eq!(seen.header("if-none-match"), None);
        reply(200, &json!({"total_count": 0, "jobs": []})).with("etag", "\"one\"")
    })
    .await;
    let client = stub.app_client("acme/widgets");
    let repository = Repository::new("acme/widgets").unwrap();
    for _ in 0..2 {
        let jobs = client.run_jobs(&repository, 7).await.unwrap();
        assert_eq!(jobs, Some(vec![]));
    }
    assert_eq!(stub.seen().len(), 4);
}

#[tokio::test]
async fn a_dispatch_that_may_have_worked_is_not_sent_twice() {
    let stub = Stub::start(|_, _| error(502, "Bad gateway")).await;
    let client = stub.client("acme/widgets");
    let failed = client.dispatch(&workflow()).await.unwrap_err();
    assert!(failed.leaves_doubt());
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn the_missing_permission_is_the_one_for_actions() {
    let stub = Stub::start(|_, _| error(403, "Resource not accessible by integration")).await;
    let client = stub.client("acme/widgets");
    let refused = client.dispatch(&workflow()).await.unwrap_err();
    assert!(matches!(refused, Error::Forbidden { .. }));
    assert!(refused.to_string().contains("Actions: write"), "{refused}");
}

#[tokio::test]
async fn a_run_is_found_by_what_started_it_and_when() {
    let stub = Stub::start(|_, _| {
        let run = json!({
            "id": 7, "status": "queued", "conclusion": null, "html_url": "",
            "created_at": "1970-01-12T13:46:40Z",
        });
        reply(200, &json!({"total_count": 1, "workflow_runs": [run]}))
    })
    .await;
    let client = stub.client("acme/widgets");
    let at = Timestamp::from_second(1_000_000).unwrap();
    let found = client.find_dispatched(&workflow(), at).await.unwrap();
    assert_eq!(found.map(|run| run.id), Some(7));
    // What ran before is another's.
    let later = Timestamp::from_second(1_000_001).unwrap();
    assert_eq!(
        client.find_dispatched(&workflow(), later).await.unwrap(),
        None
    );
    let path = stub.seen()[0].path.clone();
    assert!(path.contains("event=workflow_dispatch"), "{path}");
    assert!(path.contains("branch=release%2F1"), "{path}");
}

#[tokio::test]
async fn a_log_of_another_server_is_read_without_our_credential() {
    let store = Stub::start(|_, _| {
        raw(
            200,
            "test result: ok. 40 passed; 0 failed\ntest result: ok. 6 passed; 0 failed\n",
        )
    })
    .await;
    let address = format!("https://{}/blob?sig=s", store.address());
    let stub = Stub::start(move |_, _| raw(302, "").with("location", &address)).await;
    let client = stub.client_trusting("acme/widgets", &store);
    let repository = Repository::new("acme/widgets").unwrap();
    let sum = client.test_sum(&repository, 9).await.unwrap();
    let expected = TestSum {
        results: 2,
        passed: 46,
    };
    assert_eq!(sum, Some(expected));
    assert_eq!(store.seen()[0].header("authorization"), None);
    assert!(stub.seen()[0].header("authorization").is_some());
}
