//! The webhook that is ours among those of others.

use secrecy::SecretString;
use serde_json::{Value, json};

use super::stub::{Stub, error, raw, reply};
use crate::github::Error;
use cuda_runner_plan::model::webhook::Hook;

const URL: &str = "https://hooks.example.com/hooks/abc";

fn hook(id: u64, change: impl FnOnce(&mut Value)) -> Value {
    let mut hook = json!({
        "id": id, "active": true, "events": ["workflow_job"],
        "config": {"url": URL, "content_type": "json", "secret": "********", "insecure_ssl": "0"},
    });
    change(&mut hook);
    hook
}

#[tokio::test]
async fn it_is_found_by_its_address_and_what_is_wrong_with_it_is_seen() {
    type Change = fn(&mut Value);
    let cases: [(Change, bool); 7] = [
        (|_| {}, true),
        (|hook| hook["config"]["insecure_ssl"] = json!(0), true),
        (|hook| hook["config"]["insecure_ssl"] = json!("1"), false),
        (|hook| hook["active"] = json!(false), false),
        (
            |hook| hook["events"] = json!(["workflow_job", "push"]),
            false,
        ),
        (|hook| hook["events"] = json!(["*"]), false),
        (|hook| hook["config"]["content_type"] = json!("form"), false),
    ];
    for (change, is_right) in cases {
        let other = hook(1, |hook| {
            hook["config"]["url"] = json!("https://ci.example.com");
        });
        let all = json!([other, hook(2, change)]);
        let stub = Stub::start(move |_, _| reply(200, &all)).await;
        let client = stub.client("acme/widgets");
        let found = client.find_hook(URL).await.unwrap();
        let url = URL.to_owned();
        assert_eq!(
            found,
            Some(Hook {
                id: 2,
                url,
                is_right
            })
        );
        assert_eq!(client.find_hook("https://other").await.unwrap(), None);
    }
}

#[tokio::test]
async fn it_is_made_changed_and_removed_and_its_secret_goes_to_github_alone() {
    let stub = Stub::start(|_, before| match before {
        0 => reply(201, &hook(2, |_| {})),
        1 => reply(200, &hook(2, |_| {})),
        2 => raw(204, ""),
        3 => error(404, "Not Found"),
        _ => error(422, "Validation Failed"),
    })
    .await;
    let client = stub.client("acme/widgets");
    let secret = SecretString::from("0123456789abcdef".to_owned());
    client.create_hook(URL, &secret).await.unwrap();
    client.update_hook(2, URL, &secret).await.unwrap();
    client.delete_hook(2).await.unwrap();
    // One that is gone is removed
    client.delete_hook(2).await.unwrap();
    let refused = client.create_hook(URL, &secret).await.unwrap_err();
    assert!(matches!(refused, Error::Validation { .. }), "{refused:?}");
    assert!(!format!("{refused:?}").contains("0123456789abcdef"));
    let seen = stub.seen();
    for made in &seen[..2] {
        assert_eq!(made.body["config"]["secret"], "0123456789abcdef");
        assert_eq!(made.body["events"], json!(["workflow_job"]));
    }
}

#[tokio::test]
async fn a_delivery_that_failed_is_told_in_githubs_words() {
    for (status, word, told) in [
        (202, "OK", None),
        (
            502,
            "failed to connect\u{1b}[31m",
            Some("502 failed to connect[31m"),
        ),
        (302, "Found", Some("302 Found")),
        (0, "pending", None),
        (401, "Unauthorized", Some("401 Unauthorized")),
    ] {
        let last = json!([{"id": 1, "guid": "g", "status": word, "status_code": status}]);
        let stub = Stub::start(move |_, _| reply(200, &last)).await;
        let found = stub.client("acme/widgets").last_failure(2).await.unwrap();
        assert_eq!(found.as_deref(), told);
    }
}
