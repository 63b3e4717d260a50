//! What branches require: read, told apart, added to and taken from.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};

use super::stub::{Stub, error, reply};
use crate::github::{Check, Error, Protection, Repository, Ruleset, Run, Triggers, Workflow};

fn repository() -> Repository {
    Repository::new("acme/widgets").unwrap()
}

fn workflow() -> Workflow {
    Workflow {
        repository: repository(),
        file: "cuda.yml".into(),
        git_ref: "main".into(),
    }
}

#[tokio::test]
async fn answers_that_look_alike_are_told_apart_and_slashes_are_encoded() {
    let upgrade = "Upgrade to GitHub Pro or make this repository public to enable this feature.";
    let stub = Stub::start(move |_, before| match before {
        0 => reply(200, &json!({"contexts": ["fmt"], "checks": []})),
        1 => error(404, "Branch not protected"),
        2 => error(404, "Required status checks not enabled"),
        3 => error(404, "Branch not found"),
        4 => error(403, upgrade),
        _ => error(404, "Not Found"),
    })
    .await;
    let client = stub.client("acme/widgets");
    let mut found = vec![];
    for _ in 0..5 {
        found.push(client.protection(&repository(), "release/1").await.unwrap());
    }
    assert_eq!(
        found,
        [
            Protection::Requires(vec!["fmt".into()]),
            Protection::Unprotected,
            Protection::WithoutChecks,
            Protection::NoBranch,
            Protection::NotInPlan(upgrade.trim_end_matches('.').into()),
        ]
    );
    let refused = client.protection(&repository(), "release/1").await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
    assert!(refused.to_string().contains("Administration"), "{refused}");
    let path = &stub.seen()[0].path;
    assert!(
        path.ends_with("/branches/release%2F1/protection/required_status_checks"),
        "{path}"
    );
}

#[tokio::test]
async fn contexts_are_added_and_removed_and_never_replaced() {
    let stub = Stub::start(|_, before| match before {
        0 | 1 => reply(200, &json!(["fmt", "gpu"])),
        _ => error(404, "Branch not protected"),
    })
    .await;
    let client = stub.client("acme/widgets");
    let names = ["gpu".to_owned()];
    let main = "main";
    client
        .require_checks(&repository(), main, &names)
        .await
        .unwrap();
    client
        .unrequire_checks(&repository(), main, &names)
        .await
        .unwrap();
    // Without protection there is nothing to take away, and nothing to add to
    client
        .unrequire_checks(&repository(), main, &names)
        .await
        .unwrap();
    client
        .require_checks(&repository(), main, &names)
        .await
        .unwrap_err();
    let seen = stub.seen();
    let methods: Vec<&Method> = seen.iter().map(|seen| &seen.method).collect();
    assert_eq!(
        methods,
        [Method::POST, Method::DELETE, Method::DELETE, Method::POST]
    );
    assert!(
        seen.iter()
            .all(|s| s.path.ends_with("/required_status_checks/contexts"))
    );
    assert!(seen.iter().all(|s| s.body == json!({"contexts": ["gpu"]})));
}

#[tokio::test]
async fn not_found_is_no_proof_that_nothing_is_left() {
    let stub = Stub::start(|_, _| error(404, "Not Found")).await;
    let client = stub.client("acme/widgets");
    let (repository, names) = (repository(), ["gpu".to_owned()]);
    let found = [
        client.find_ruleset(&repository, "ours").await.map(|_| ()),
        client.delete_ruleset(&repository, 9).await,
        client.branch_rules(&repository, "main").await.map(|_| ()),
        client.unrequire_checks(&repository, "main", &names).await,
    ];
    for (number, found) in found.into_iter().enumerate() {
        let refused = found.unwrap_err();
        assert!(matches!(refused, Error::NotFound { .. }), "{number}");
        assert!(refused.to_string().contains("Administration"), "{refused}");
    }
    // The list shows it, and it cannot be read
    let stub = Stub::start(|_, before| match before {
        0 => reply(200, &json!([{"id": 9, "name": "ours"}])),
        _ => error(404, "Not Found"),
    })
    .await;
    let client = stub.client("acme/widgets");
    let found = client.find_ruleset(&repository, "ours").await;
    assert!(found.is_err());
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table: what each page answers")]
async fn rules_rulesets_and_checks_are_read_to_the_last_page() {
    let many =
        |count: usize, item: fn(usize) -> Value| -> Vec<Value> { (0..count).map(item).collect() };
    let stub = Stub::start(move |seen, _| {
        let page = |all: &[Value]| {
            let second = seen.path.ends_with("&page=2");
            let (first, rest) = all.split_at(all.len().min(100));
            if second {
                rest.to_vec()
            } else {
                first.to_vec()
            }
        };
        if seen.path.contains("/rulesets/") {
            return reply(200, &json!({"enforcement": "active"}));
        }
        assert!(seen.path.contains("per_page=100"), "{}", seen.path);
        if seen.path.contains("/rules/branches/") {
            // A shorter page than was asked for, with a link
            let rules = many(36, |n| json!({"type": "deletion", "ruleset_id": n}));
            let rules = if seen.path.ends_with("&page=2") {
                &rules[30..]
            } else {
                &rules[..30]
            };
            let rules = reply(200, &json!(rules));
            let next = "<https://x/?page=2>; rel=\"next\"";
            let has_next = seen.path.ends_with("&page=1");
            return if has_next {
                rules.with("link", next)
            } else {
                rules
            };
        }
        if seen.path.contains("/check-runs") {
            let runs = many(
                120,
                |n| json!({"name": format!("job {n}"), "app": {"id": 1}}),
            );
            return reply(200, &json!({"total_count": 120, "check_runs": page(&runs)}));
        }
        assert!(seen.path.contains("includes_parents=false"));
        let mut all = many(
            110,
            |n| json!({"id": n, "name": format!("theirs {n}"), "source_type": "Repository"}),
        );
        all.insert(
            3,
            json!({"id": 555, "name": "ours", "source_type": "Organization"}),
        );
        all.push(json!({"id": 777, "name": "ours", "source_type": "Repository"}));
        reply(200, &json!(page(&all)))
    })
    .await;
    let client = stub.client("acme/widgets");
    let rules = client.branch_rules(&repository(), "main").await.unwrap();
    assert_eq!(rules.len(), 36);
    let run = Run {
        id: 7,
        status: String::new(),
        conclusion: None,
        html_url: String::new(),
        created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        check_suite_id: Some(8),
        head_sha: None,
        workflow_id: None,
        head_branch: None,
        head_repository: None,
        event: None,
        attempt: 1,
    };
    let checks = client.checks_of_run(&repository(), &run).await.unwrap();
    assert_eq!(checks.len(), 120);
    let found = client.find_ruleset(&repository(), "ours").await.unwrap();
    assert_eq!(
        found.map(|(id, _)| id),
        Some(777),
        "and not a namesake of the organization's"
    );
}

#[tokio::test]
async fn contexts_are_removed_in_either_form_that_a_server_takes() {
    let stub = Stub::start(|seen, _| match seen.body {
        Value::Array(_) => reply(200, &json!([])),
        _ => error(422, "Invalid request"),
    })
    .await;
    let client = stub.client("acme/widgets");
    let names = ["gpu".to_owned()];
    client
        .unrequire_checks(&repository(), "main", &names)
        .await
        .unwrap();
    assert_eq!(stub.seen()[1].body, json!(["gpu"]));
}

#[tokio::test]
async fn a_ruleset_is_found_by_its_name_and_comes_back_as_it_was_written() {
    let ruleset = Ruleset {
        name: "ours".into(),
        branches: ["main".to_owned(), "release/1".to_owned()].into(),
        checks: [("gpu", Some(15368)), ("build", None)]
            .map(|(context, app_id)| Check {
                context: context.into(),
                app_id,
            })
            .into(),
    };
    let stub = Stub::start(|seen, _| reply(201, &seen.body)).await;
    let client = stub.client("acme/widgets");
    client
        .create_ruleset(&repository(), &ruleset)
        .await
        .unwrap();
    let body = stub.seen()[0].body.clone();
    assert_eq!(
        body["conditions"]["ref_name"]["include"],
        json!(["refs/heads/main", "refs/heads/release/1"])
    );
    // As GitHub gives it back
    let whole = body;
    let stub = Stub::start(move |seen, _| {
        if seen.path.contains("/rulesets/9") {
            reply(200, &whole)
        } else {
            reply(
                200,
                &json!([{"id": 8, "name": "theirs"}, {"id": 9, "name": "ours"}]),
            )
        }
    })
    .await;
    let client = stub.client("acme/widgets");
    let found = client.find_ruleset(&repository(), "ours").await.unwrap();
    assert_eq!(found, Some((9, ruleset)));
    assert_eq!(
        client.find_ruleset(&repository(), "none").await.unwrap(),
        None
    );
}

#[tokio::test]
async fn the_workflows_file_says_when_it_starts() {
    for (file, triggers) in [
        ("on: [push, pull_request]\njobs: {}\n", Some((false, false))),
        (
            "on:\n  pull_request:\n    paths: ['src/**']\n  merge_group:\n",
            Some((true, true)),
        ),
        (
            "on:\n  pull_request:\n  workflow_dispatch:\n",
            Some((false, false)),
        ),
        ("on: workflow_dispatch\n", Some((false, false))),
        ("no: triggers\n", None),
        ("[", None),
    ] {
        let content = STANDARD.encode(file);
        let stub = Stub::start(move |_, _| reply(200, &json!({"content": content}))).await;
        let found = stub
            .client("acme/widgets")
            .triggers(&workflow(), "main")
            .await;
        let wanted = triggers.map(|(merge_group, is_filtered)| Triggers {
            merge_group,
            is_filtered,
        });
        assert_eq!(found.unwrap(), wanted, "{file}");
    }
    // Reading files may not be allowed: the warnings are left out then
    let stub = Stub::start(|_, _| error(403, "Resource not accessible by integration")).await;
    let found = stub
        .client("acme/widgets")
        .triggers(&workflow(), "main")
        .await;
    assert_eq!(found.unwrap(), None);
}
