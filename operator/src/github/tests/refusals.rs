//! What GitHub's refusals mean.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::stub::{NOW, Reply, Stub, error, hang_up, here, page, raw, reply};
use crate::github::{
    Clients, Credentials, Error, GitHubUrl, Reach, Repository, credentials::tests::data,
};

async fn listing(owner: &str, answer: impl Fn() -> Reply + Send + 'static) -> Error {
    let stub = Stub::start(move |_, _| answer()).await;
    stub.client(owner).list_runners(NOW).await.unwrap_err()
}

#[tokio::test]
async fn each_status_has_its_category_and_its_advice() {
    for (status, category, advice) in [
        (400, "Validation", "the reason"),
        (401, "Unauthorized", "spec.github.credentialsRef"),
        (403, "Forbidden", "Administration: write"),
        (404, "NotFound", "spec.github.url"),
        (409, "Conflict", "the reason"),
        (410, "NotFound", "the reason"),
        (422, "Validation", "the reason"),
        (500, "Server", "githubstatus"),
        (418, "Malformed", "418"),
    ] {
        let error = listing("o/r", move || error(status, "the reason")).await;
        assert_eq!(error.category(), category, "{status}");
        assert!(error.to_string().contains(advice), "{error}");
    }
}

#[tokio::test]
async fn the_missing_permission_is_the_scopes_or_what_github_hints_at() {
    let plain = |owner| {
        listing(owner, || {
            error(403, "Resource not accessible by personal access token")
        })
    };
    assert!(
        plain("o")
            .await
            .to_string()
            .contains("Self-hosted runners: write")
    );
    assert!(
        plain("enterprises/e")
            .await
            .to_string()
            .contains("manage_runners:enterprise")
    );
    let hinted = listing("o/r", || {
        error(403, "Resource not accessible by integration")
            .with("x-accepted-github-permissions", "administration=write")
            .with("x-ratelimit-remaining", "4999")
    })
    .await;
    assert!(
        hinted.to_string().contains("administration=write"),
        "{hinted}"
    );
    let sso = listing("o", || {
        error(403, "Resource protected by organization SAML enforcement").with(
            "x-github-sso",
            "required; url=https://github.com/orgs/o/sso",
        )
    })
    .await;
    assert!(sso.to_string().contains("single sign-on"), "{sso}");
}

#[tokio::test]
async fn what_no_permission_helps_against_has_its_own_advice() {
    for (words, advice) in [
        (
            "Although you appear to have the correct authorization credentials, the `o` organization has an IP allow list enabled, and your IP address is not permitted to access this resource.",
            "to the IP allow list",
        ),
        ("Repository was archived so is read-only.", "unarchive it"),
        (
            "Repository level self-hosted runners are disabled on this repository.",
            "self-hosted runners off",
        ),
        (
            "Self-hosted runners are disabled for this organization by an enterprise owner.",
            "self-hosted runners off",
        ),
        (
            "Actions has been disabled for this repository.",
            "Actions are switched off",
        ),
        (
            "Resource protected by organization SAML enforcement. You must grant your Personal AccessCheck token access to this organization.",
            "single sign-on",
        ),
    ] {
        let stub = Stub::start(move |_, _| error(403, words)).await;
        let client = stub.client("o/r");
        let repository = Repository::new("o/r").unwrap();
        for said in [
            client.list_runners(NOW).await.unwrap_err(),
            client.cancel_run(&repository, 7).await.unwrap_err(),
            client.registration_token().await.unwrap_err(),
        ] {
            assert_eq!(said.category(), "Forbidden");
            let said = said.to_string();
            assert!(said.contains(advice), "{said}");
            assert!(!said.contains("; grant "), "{said}");
        }
    }
}

#[tokio::test]
async fn a_server_that_sends_byte_by_byte_is_ended_by_the_deadline() {
    // Given a server that never comes to the end of an answer
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n";
        stream.write_all(head).await.unwrap();
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let url = GitHubUrl::parse(&format!("http://{address}/o/r"), true).unwrap();
    let credentials = Credentials::from_secret_data(&data(&[("token", "t")])).unwrap();
    let client = Clients::new(here()).client("ci", &url, &credentials, None, None);
    let client = client.unwrap();
    // When it is asked, with a clock that runs ahead once nothing is to be done
    let asked = tokio::spawn(async move { client.list_runners(NOW).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    tokio::time::pause();
    let error = asked.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("too slowly"), "{error}");
}

#[tokio::test]
async fn the_fields_at_fault_are_named() {
    for (errors, words) in [
        (json!(["name is too long"]), "name is too long"),
        (
            json!([{"message": "labels are too many"}]),
            "labels are too many",
        ),
        (
            json!([{"resource": "Runner", "field": "labels", "code": "invalid"}]),
            "labels is invalid",
        ),
        (json!(null), "Validation Failed"),
    ] {
        let error = listing("o/r", move || {
            reply(
                422,
                &json!({"message": "Validation Failed", "errors": errors, "documentation_url": ""}),
            )
        })
        .await;
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn limits_pause_every_holder_of_the_credential_without_another_request() {
    for (status, headers) in [
        (
            429,
            [("retry-after", "40"), ("x-ratelimit-remaining", "10")],
        ),
        (
            403,
            [("retry-after", "40"), ("x-ratelimit-remaining", "10")],
        ),
    ] {
        let stub = Stub::start(move |_, _| {
            let mut reply = error(status, "You have exceeded a secondary rate limit");
            for (name, value) in headers {
                reply = reply.with(name, value);
            }
            reply
        })
        .await;
        let error = stub.client("o/r").list_runners(NOW).await.unwrap_err();
        let wait = error.retry_after(Timestamp::now()).unwrap();
        assert!(
            wait > Duration::from_secs(35) && wait <= Duration::from_secs(40),
            "{wait:?}"
        );

        let neighbour = stub.client("o/other");
        let error = neighbour.delete_runner(1).await.unwrap_err();
        assert_eq!(error.category(), "RateLimited");
        assert_eq!(stub.seen().len(), 1);
        assert_eq!(
            (neighbour.usage().limited, neighbour.usage().held_back),
            (1, 1)
        );
    }
}

#[tokio::test]
async fn a_used_up_hour_pauses_until_its_reset() {
    let reset = (Timestamp::now().as_second() + 600).to_string();
    let stub = Stub::start(move |_, _| {
        reply(200, &page(0, &[]))
            .with("x-ratelimit-limit", "5000")
            .with("x-ratelimit-remaining", "0")
            .with("x-ratelimit-reset", &reset)
    })
    .await;
    let client = stub.client("o/r");
    client.list_runners(NOW).await.unwrap();
    let error = client.list_runners(NOW).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("5000 requests an hour are used up"),
        "{error}"
    );
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn answers_that_are_none_are_told_apart() {
    type Case = (fn() -> Reply, &'static str, &'static str);
    let cases: [Case; 4] = [
        (
            || raw(200, "{\"total_count\": 1, \"runn"),
            "Malformed",
            "cut off",
        ),
        (|| raw(200, "<html>login</html>"), "Malformed", "not JSON"),
        (
            || raw(200, "{\"total_count\": \"hunter2\"}"),
            "Malformed",
            "not what GitHub documents",
        ),
        (
            || reply(200, &page(0, &[])).cut(),
            // With the head of the answer or without: how far it comes is up to the network.
            "Unreachable",
            "gave no answer",
        ),
    ];
    for (answer, category, words) in cases {
        let error = listing("o/r", answer).await;
        assert_eq!(error.category(), category);
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }
    assert_eq!(listing("o/r", hang_up).await.category(), "Unreachable");
}

#[tokio::test]
async fn what_is_not_githubs_is_not_repeated() {
    for body in [
        "<html>hunter2</html>",
        r#"{"kind": "Status", "message": "hunter2"}"#,
    ] {
        let error = listing("o/r", move || raw(403, body)).await;
        assert!(
            error.to_string().contains("403 Forbidden") && !error.to_string().contains("hunter2"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_is_longer_than_any_answer_of_githubs_is_not_read() {
    let tiny = |count: usize| page(count, &vec![json!({"id": 1, "name": ""}); count]);
    for (answer, words) in [
        (reply(200, &tiny(101)), "not what GitHub documents"),
        (reply(200, &tiny(883_000)), "longer than"),
        (raw(200, &"[".repeat(5 * 1024 * 1024)), "longer than"),
    ] {
        let answer = std::sync::Mutex::new(Some(answer));
        let error = listing("o/r", move || answer.lock().unwrap().take().unwrap()).await;
        assert!(error.to_string().contains(words), "{error}");
    }
    // Of a refusal the start is read, and what is no JSON says nothing
    let long = format!("{{\"message\": \"{}\"}}", "x".repeat(16 * 1024 * 1024));
    let error = listing("o/r", move || raw(500, &long)).await;
    assert_eq!(error.category(), "Server");
}

#[tokio::test]
async fn an_address_of_the_operators_own_place_is_not_asked() {
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let open = stub.address().rsplit(':').next().unwrap().to_owned();
    let credentials = Credentials::from_secret_data(&data(&[("token", "t")])).unwrap();
    let mut said = BTreeSet::new();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"] {
        for port in [&closed.to_string(), &open] {
            let url = GitHubUrl::parse(&format!("https://{host}:{port}/o/r"), false).unwrap();
            let client =
                Clients::new(Reach::default()).client("ci", &url, &credentials, None, None);
            let error = client.unwrap().list_runners(NOW).await.unwrap_err();
            assert!(!error.leaves_doubt(), "{error}");
            let words = error.to_string();
            said.insert(words.replace(&format!("{host}:{port}"), ""));
        }
    }
    // And no word of it tells an open port from a closed one
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said.first().unwrap().contains("--allow-github-address"));
    assert_eq!(stub.seen().len(), 0);
}

#[tokio::test]
async fn a_server_that_is_not_there_was_certainly_not_reached() {
    // A port that nobody gets.
    let url = GitHubUrl::parse("https://127.0.0.1:1/o/r", false).unwrap();
    let credentials = Credentials::from_secret_data(&data(&[("token", "t")])).unwrap();
    let client = Clients::new(here())
        .client("ci", &url, &credentials, None, None)
        .unwrap();
    let error = client.list_runners(NOW).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unreachable {
                undelivered: true,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn an_unknown_authority_is_named_with_the_field_that_mends_it() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    let url = GitHubUrl::parse(&format!("https://{}/o/r", stub.address()), false).unwrap();
    let credentials = Credentials::from_secret_data(&data(&[("token", "t")])).unwrap();
    let client = Clients::new(here())
        .client("ci", &url, &credentials, None, None)
        .unwrap();
    let error = client.list_runners(NOW).await.unwrap_err();
    assert!(
        error.to_string().contains("spec.github.caBundleRef"),
        "{error}"
    );
    assert!(!error.leaves_doubt());
    assert_eq!(stub.seen().len(), 0);
}
