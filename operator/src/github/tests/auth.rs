//! Who we say we are.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::stub::{NOW, Reply, Seen, Stub, error, page, reply};
use crate::github::{APP_ID, Credentials, Error, credentials::tests::data};

fn minted(token: &str, minutes: i64) -> Reply {
    let expires_at = Timestamp::now() + SignedDuration::from_mins(minutes);
    reply(
        201,
        &json!({"token": token, "expires_at": expires_at.to_string(), "permissions": {"administration": "write"}}),
    )
}

/// The header, 0, or the claims, 1, of the JWT with which this was asked.
fn jwt_part(seen: &Seen, n: usize) -> Value {
    let header = seen.header("authorization").unwrap();
    let jwt = header.strip_prefix("Bearer ").unwrap();
    let part = jwt.split('.').nth(n).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn is_mint(seen: &Seen) -> bool {
    seen.path.ends_with("/access_tokens")
}

#[tokio::test]
async fn every_request_says_which_answer_it_wants_and_who_asks() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[]))).await;
    stub.client("o/r").list_runners(NOW).await.unwrap();
    let seen = &stub.seen()[0];
    assert_eq!(
        seen.path,
        "/api/v3/repos/o/r/actions/runners?per_page=100&page=1"
    );
    assert_eq!(seen.header("authorization"), Some("Bearer ghp_t"));
    assert_eq!(seen.header("accept"), Some("application/vnd.github+json"));
    assert_eq!(seen.header("x-github-api-version"), Some("2022-11-28"));
    assert!(
        seen.header("user-agent")
            .unwrap()
            .starts_with("cuda-runner-operator/")
    );
}

#[tokio::test]
async fn an_app_signs_as_github_wants_it_and_works_with_the_token_it_gets() {
    let stub = Stub::start(|seen, _| {
        if is_mint(seen) {
            minted("ghs_installation", 60)
        } else {
            reply(200, &page(0, &[]))
        }
    })
    .await;
    stub.app_client("o/r").list_runners(NOW).await.unwrap();

    let [mint, list] = stub.seen().try_into().unwrap();
    assert_eq!(
        (mint.method.as_str(), mint.path.as_str()),
        ("POST", "/api/v3/app/installations/34/access_tokens")
    );
    let part = |n| jwt_part(&mint, n);
    assert_eq!(part(0)["alg"], "RS256");
    let claims = part(1);
    let now = Timestamp::now().as_second();
    let (issued, expires) = (
        claims["iat"].as_i64().unwrap(),
        claims["exp"].as_i64().unwrap(),
    );
    assert_eq!(claims["iss"], 12);
    assert!(
        (now - 65..=now - 60).contains(&issued),
        "a minute in the past, for clocks that are ahead"
    );
    assert!(expires - issued <= 600, "at most ten minutes");
    assert_eq!(
        list.header("authorization"),
        Some("Bearer ghs_installation")
    );
}

/// Installations are found at these paths, with these numbers; tokens are minted for all.
async fn installed_at(paths: &'static [(&'static str, u64)]) -> Stub {
    Stub::start(move |seen, _| {
        if is_mint(seen) {
            return minted("ghs", 60);
        }
        if !seen.path.ends_with("/installation") {
            return reply(200, &page(0, &[]));
        }
        let found = paths.iter().find(|(path, _)| seen.path.ends_with(path));
        found.map_or_else(
            || error(404, "Not Found"),
            |(_, id)| reply(200, &json!({"id": id, "app_id": 12})),
        )
    })
    .await
}

#[tokio::test]
async fn an_installation_that_is_not_named_is_looked_up_once_as_the_app() {
    let stub = installed_at(&[("/repos/o/r/installation", 77)]).await;
    let client = stub.app_client_with("o/r", &[(APP_ID, "Iv23liAbCdEfGh012345")]);
    client.list_runners(NOW).await.unwrap();
    // Another repository of the account is of the same installation
    let neighbour = stub.app_client_with("O/other", &[(APP_ID, "Iv23liAbCdEfGh012345")]);
    neighbour.list_runners(NOW).await.unwrap();

    let seen = stub.seen();
    let [lookup, mint, list, other] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert_eq!(lookup.path, "/api/v3/repos/o/r/installation");
    for asked in [lookup, mint] {
        assert_eq!(jwt_part(asked, 1)["iss"], "Iv23liAbCdEfGh012345");
    }
    assert_eq!(mint.path, "/api/v3/app/installations/77/access_tokens");
    for asked in [list, other] {
        assert_eq!(asked.header("authorization"), Some("Bearer ghs"));
    }
    assert_eq!(client.usage().sent, 4, "all of it within the budget");
}

#[tokio::test]
async fn an_account_is_asked_where_the_app_does_not_have_the_repository() {
    const OF_ORGANIZATION: &[(&str, u64)] = &[("/orgs/o/installation", 77)];
    const OF_USER: &[(&str, u64)] = &[("/users/o/installation", 77)];
    for (owner, paths) in [
        ("o/r", OF_ORGANIZATION),
        ("o/r", OF_USER),
        ("o", OF_ORGANIZATION),
    ] {
        let stub = installed_at(paths).await;
        let client = stub.app_client_with(owner, &[(APP_ID, "12")]);
        client.list_runners(NOW).await.unwrap();
        let mints: Vec<_> = stub.seen().into_iter().filter(is_mint).collect();
        assert!(mints[0].path.contains("/77/"), "{owner} {paths:?}");
    }
}

#[tokio::test]
async fn an_app_that_is_not_installed_there_is_named() {
    let stub = installed_at(&[]).await;
    for (owner, category, words) in [
        (
            "o/r",
            "NotFound",
            "installation of App 12 at repository o/r",
        ),
        ("o", "NotFound", "install the App there"),
        ("enterprises/e", "Forbidden", "manage_runners:enterprise"),
    ] {
        let client = stub.app_client_with(owner, &[(APP_ID, "12")]);
        let error = client.list_runners(NOW).await.unwrap_err();
        assert_eq!(error.category(), category);
        assert!(error.to_string().contains(words), "{error}");
    }
    assert!(!stub.seen().iter().any(is_mint));
}

#[tokio::test]
async fn twenty_first_calls_at_once_mint_one_token() {
    let stub = Stub::start(|seen, _| {
        if is_mint(seen) {
            minted("ghs_one", 60)
        } else {
            reply(
                200,
                &page(1, &[super::stub::runner(1, "a", "online", false)]),
            )
        }
    })
    .await;
    // Different repositories, so that the listing is not shared either.
    let clients: Vec<_> = (0..20)
        .map(|n| stub.app_client(&format!("o/r{n}")))
        .collect();
    let answers =
        futures::future::join_all(clients.iter().map(|client| client.find_runner("a"))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap().is_some()));
    assert_eq!(stub.seen().iter().filter(|seen| is_mint(seen)).count(), 1);
    assert_eq!(clients[0].usage().sent, 21, "one budget for all of them");
}

#[tokio::test]
async fn a_token_about_to_expire_is_not_used() {
    let mut next = 0;
    let stub = Stub::start(move |seen, _| {
        if is_mint(seen) {
            next += 1;
            minted(&format!("ghs_{next}"), if next == 1 { 4 } else { 60 })
        } else {
            reply(200, &page(0, &[]))
        }
    })
    .await;
    let client = stub.app_client("o/r");
    for _ in 0..3 {
        client.list_runners(NOW).await.unwrap();
    }
    let used: Vec<_> = stub
        .seen()
        .into_iter()
        .filter(|seen| !is_mint(seen))
        .collect();
    assert_eq!(
        used.iter()
            .map(|seen| seen.header("authorization").unwrap())
            .collect::<Vec<_>>(),
        ["Bearer ghs_1", "Bearer ghs_2", "Bearer ghs_2"]
    );
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_once() {
    let mut mints = 0;
    let stub = Stub::start(move |seen, _| {
        if is_mint(seen) {
            mints += 1;
            return minted(&format!("ghs_{mints}"), 60);
        }
        match seen.header("authorization") {
            Some("Bearer ghs_2") => reply(200, &page(0, &[])),
            _ if seen.header("authorization") == Some("Bearer ghs_1") && mints == 1 => {
                if seen.path.contains("/r/") {
                    reply(200, &page(0, &[]))
                } else {
                    error(401, "Bad credentials")
                }
            }
            _ => error(401, "Bad credentials"),
        }
    })
    .await;
    stub.app_client("o/r").list_runners(NOW).await.unwrap();

    // Refused while young: another token would be as young, so nothing is minted.
    let other = stub.app_client("o/other");
    assert_eq!(
        other.list_runners(NOW).await.unwrap_err().category(),
        "Unauthorized"
    );
    assert_eq!(stub.seen().iter().filter(|seen| is_mint(seen)).count(), 1);

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    other.list_runners(NOW).await.unwrap();
    assert_eq!(stub.seen().iter().filter(|seen| is_mint(seen)).count(), 2);
}

#[tokio::test]
async fn what_is_wrong_with_an_app_is_named() {
    for (status, message, category, advice) in [
        (
            401,
            "A JSON web token could not be decoded",
            "Unauthorized",
            "private-key is a key of App 12",
        ),
        (
            401,
            "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued",
            "Unauthorized",
            "clock",
        ),
        (404, "Not Found", "NotFound", "check installation-id"),
        (
            403,
            "This installation has been suspended",
            "Forbidden",
            "suspended",
        ),
    ] {
        let stub = Stub::start(move |_, _| error(status, message)).await;
        let error = stub.app_client("o/r").list_runners(NOW).await.unwrap_err();
        assert_eq!(error.category(), category);
        assert!(error.to_string().contains(advice), "{error}");
        assert_eq!(stub.seen().len(), 1, "asked once");
    }
}

#[tokio::test]
async fn twenty_calls_at_once_with_a_bad_key_ask_once() {
    let stub = Stub::start(|_, _| error(401, "A JSON web token could not be decoded")).await;
    let client = stub.app_client("o/r");
    let answers = futures::future::join_all((0..20).map(|_| client.find_runner("a"))).await;
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(Error::Unauthorized { .. })))
    );
    assert_eq!(stub.seen().len(), 1);
}

#[tokio::test]
async fn access_names_the_permission_that_an_app_lacks() {
    for (permissions, owner, lack) in [
        (
            json!({"administration": "read"}),
            "o/r",
            "Administration: write",
        ),
        (
            json!({"metadata": "read"}),
            "o/r",
            "lacks administration: write",
        ),
        (
            json!({"administration": "write"}),
            "o",
            "Self-hosted runners: write",
        ),
        (
            json!({"administration": "write"}),
            "enterprises/e",
            "manage_runners:enterprise",
        ),
    ] {
        let stub = Stub::start(move |_, _| {
            reply(
                201,
                &json!({"token": "ghs", "expires_at": "2999-01-01T00:00:00Z", "permissions": permissions}),
            )
        })
        .await;
        let error = stub.app_client(owner).check_access(NOW).await.unwrap_err();
        assert_eq!(error.category(), "Forbidden");
        assert!(error.to_string().contains(lack), "{error}");
        assert_eq!(stub.seen().len(), 1, "the token's answer is enough");
    }
}

#[tokio::test]
async fn access_needs_the_listing_to_work_too() {
    let stub = Stub::start(|seen, _| {
        if is_mint(seen) {
            minted("ghs", 60)
        } else {
            error(404, "Not Found")
        }
    })
    .await;
    let error = stub.app_client("o/r").check_access(NOW).await.unwrap_err();
    assert_eq!(error.category(), "NotFound");
    assert!(error.to_string().contains("repository o/r"), "{error}");
    assert!(error.to_string().contains("spec.github.url"), "{error}");
}

#[tokio::test]
async fn a_rotated_secret_is_used_at_once_and_shares_nothing() {
    let stub = Stub::start(|_, _| reply(200, &page(0, &[])).with("etag", "\"one\"")).await;
    for token in ["ghp_old", "ghp_new"] {
        let credentials = Credentials::from_secret_data(&data(&[("token", token)])).unwrap();
        stub.client_as("o/r", &credentials)
            .list_runners(Duration::MAX)
            .await
            .unwrap();
    }
    let seen = stub.seen();
    assert_eq!(seen[1].header("authorization"), Some("Bearer ghp_new"));
    assert_eq!(seen[1].header("if-none-match"), None);
}
