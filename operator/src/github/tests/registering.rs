//! JIT configurations, and answers that get lost.

use secrecy::ExposeSecret;
use serde_json::json;

use super::stub::{Reply, Stub, error, hang_up, page, raw, registered, reply, runner};
use crate::github::{Error, JitConfig, JitRequest};

fn request() -> JitRequest {
    JitRequest {
        name: "pool-abcde".into(),
        labels: vec!["self-hosted".into(), "cuda".into()],
        ownership_label: "cudarunner-1b4e28ba".into(),
        group_id: 1,
        work_folder: "_work".into(),
    }
}

/// Answers each request with the next reply.
async fn script(replies: Vec<Reply>) -> (Stub, Result<JitConfig, Error>) {
    let mut replies = replies.into_iter();
    let stub = Stub::start(move |_, _| {
        replies
            .next()
            .unwrap_or_else(|| error(418, "not in the script"))
    })
    .await;
    let result = stub.client("o/r").generate_jit_config(&request()).await;
    (stub, result)
}

const POST: &str = "POST /generate-jitconfig";
const FIND: &str = "GET ?name=pool-abcde&per_page=100&page=1";
const DELETE: &str = "DELETE /9";

fn taken() -> Reply {
    error(
        409,
        "Already exists - A runner with the name *** already exists.",
    )
}

fn found(status: &str, busy: bool) -> Reply {
    reply(200, &page(1, &[runner(9, "pool-abcde", status, busy)]))
}

fn nothing() -> Reply {
    reply(200, &page(0, &[]))
}

#[tokio::test]
async fn the_good_path_is_one_request() {
    let (stub, result) = script(vec![registered(9, "pool-abcde")]).await;
    let config = result.unwrap();
    assert_eq!(
        (config.runner_id, config.encoded.expose_secret()),
        (9, "c2VjcmV0")
    );
    assert!(!format!("{config:?}").contains("c2VjcmV0"));
    assert_eq!(stub.lines(), [POST]);
    assert_eq!(
        stub.seen()[0].body,
        json!({"name": "pool-abcde", "runner_group_id": 1, "labels": ["self-hosted", "cuda"], "work_folder": "_work"})
    );
}

#[tokio::test]
async fn a_name_that_an_earlier_try_left_behind_is_made_free() {
    let (stub, result) = script(vec![
        taken(),
        found("offline", false),
        raw(204, ""),
        registered(10, "pool-abcde"),
    ])
    .await;
    assert_eq!(result.unwrap().runner_id, 10);
    assert_eq!(stub.lines(), [POST, FIND, DELETE, POST]);
}

#[tokio::test]
async fn a_lost_answer_is_looked_for_before_anything_is_asked_again() {
    for lost in [
        hang_up(),
        error(502, "Bad Gateway"),
        raw(201, "{\"runner\": {\"id\": 9}, \"encoded_jit"),
        registered(9, "pool-abcde").cut(),
        reply(
            201,
            &json!({"runner": {"id": 9}, "encoded_jit_config": "not base64!"}),
        ),
    ] {
        let (stub, result) = script(vec![
            lost,
            found("offline", false),
            raw(204, ""),
            registered(10, "pool-abcde"),
        ])
        .await;
        assert_eq!(result.unwrap().runner_id, 10);
        assert_eq!(stub.lines(), [POST, FIND, DELETE, POST]);
    }
}

#[tokio::test]
async fn a_lost_answer_whose_entry_is_not_listed_yet_shows_as_a_taken_name() {
    let (stub, result) = script(vec![
        hang_up(),
        nothing(),
        taken(),
        found("offline", false),
        raw(204, ""),
        registered(10, "pool-abcde"),
    ])
    .await;
    assert_eq!(result.unwrap().runner_id, 10);
    assert_eq!(stub.lines(), [POST, FIND, POST, FIND, DELETE, POST]);
}

#[tokio::test]
async fn an_outage_ends_after_two_registrations() {
    let (stub, result) = script(vec![error(503, "down"), nothing(), error(503, "down")]).await;
    assert_eq!(result.unwrap_err().category(), "Server");
    assert_eq!(stub.lines(), [POST, FIND, POST]);
}

#[tokio::test]
async fn a_taken_name_that_is_not_listed_yet_is_a_conflict_for_now() {
    let (stub, result) = script(vec![taken(), nothing()]).await;
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }) && error.is_transient());
    assert_eq!(stub.lines(), [POST, FIND]);
}

#[tokio::test]
async fn a_name_that_stays_taken_is_not_fought_over() {
    let (stub, result) = script(vec![
        taken(),
        found("offline", false),
        raw(204, ""),
        taken(),
    ])
    .await;
    assert_eq!(result.unwrap_err().category(), "Conflict");
    assert_eq!(stub.lines(), [POST, FIND, DELETE, POST]);
}

#[tokio::test]
async fn a_runner_that_is_online_or_busy_is_left_alone() {
    for (status, busy, why) in [
        ("online", false, "is online"),
        ("offline", true, "has a job"),
    ] {
        let (stub, result) = script(vec![taken(), found(status, busy)]).await;
        let error = result.unwrap_err();
        assert_eq!(error.category(), "Conflict");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(stub.lines(), [POST, FIND]);
    }
    // It took a job between the two requests.
    let (_, result) = script(vec![
        taken(),
        found("offline", false),
        error(422, "is still running a job"),
    ])
    .await;
    assert_eq!(result.unwrap_err().category(), "Conflict");
}

#[tokio::test]
async fn an_entry_of_another_pool_is_not_removed() {
    for (label, is_removed) in [
        ("cudarunner-1b4e28ba", true),
        ("cudarunner-0a1b2c3d", false),
        // A label of the user's, whatever it begins with
        ("cudarunner-large", true),
    ] {
        let mut entry = runner(9, "pool-abcde", "offline", false);
        entry["labels"] = json!([{"name": "cuda"}, {"name": label}]);
        let (stub, result) = script(vec![
            taken(),
            reply(200, &page(1, &[entry])),
            raw(204, ""),
            registered(10, "pool-abcde"),
        ])
        .await;
        if is_removed {
            assert_eq!(result.unwrap().runner_id, 10, "{label}");
            continue;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.contains(label), "{error}");
        assert_eq!(stub.lines(), [POST, FIND]);
    }
}

#[tokio::test]
async fn what_can_never_work_is_not_asked_again() {
    for (status, category) in [
        (422, "Validation"),
        (404, "NotFound"),
        (403, "Forbidden"),
        (401, "Unauthorized"),
    ] {
        let (stub, result) = script(vec![error(status, "no")]).await;
        assert_eq!(result.unwrap_err().category(), category);
        assert_eq!(stub.lines(), [POST]);
    }
}

#[tokio::test]
async fn a_registration_token_is_asked_for_where_the_runners_belong() {
    for (owner, path) in [
        (
            "o/r",
            "/api/v3/repos/o/r/actions/runners/registration-token",
        ),
        ("o", "/api/v3/orgs/o/actions/runners/registration-token"),
        (
            "enterprises/e",
            "/api/v3/enterprises/e/actions/runners/registration-token",
        ),
    ] {
        let token = json!({"token": "AABBCC", "expires_at": "2026-01-01T01:00:00.000Z"});
        let stub = Stub::start(move |_, _| reply(201, &token)).await;
        let given = stub.client(owner).registration_token().await.unwrap();
        assert_eq!(given.expose_secret(), "AABBCC");
        let seen = stub.seen();
        assert_eq!(
            (seen[0].method.as_str(), seen[0].path.as_str()),
            ("POST", path)
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_token_is_no_token() {
    let stub = Stub::start(|_, _| reply(201, &json!({"token": ""}))).await;
    let error = stub.client("o/r").registration_token().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}
