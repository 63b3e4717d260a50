//! Credentials and runners over a real TLS socket.
#![allow(missing_docs)]

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::{REPO, Simulator, jwt};
use serde_json::{Value, json};

#[tokio::test]
async fn an_app_gets_a_token_and_a_jit_configuration() {
    let github = Simulator::start().await;
    let app = github.app().await;
    let jwt = jwt(&app, 60, 540);
    let installation = app.installation.unwrap();
    let shown = github.send("GET", "/api/v3/app", &jwt, None).await;
    assert_eq!(shown.body["slug"], "cuda-runner");
    let path = format!("/api/v3/app/installations/{installation}/access_tokens");
    let narrowed =
        json!({"repositories": ["craton-tensor-wasm"], "permissions": {"administration": "write"}});
    let made = github.send("POST", &path, &jwt, Some(narrowed)).await;
    assert_eq!(made.status, 201, "{made:?}");
    let token = made.body["token"].as_str().unwrap();

    let ask =
        json!({"name": "pool-abcde", "runner_group_id": 1, "labels": ["self-hosted", "cuda"]});
    let path = format!("/api/v3{REPO}/actions/runners/generate-jitconfig");
    let made = github.send("POST", &path, token, Some(ask.clone())).await;
    assert_eq!(made.status, 201, "{made:?}");
    let encoded = made.body["encoded_jit_config"].as_str().unwrap();
    let files: Value = serde_json::from_slice(&STANDARD.decode(encoded).unwrap()).unwrap();
    let settings = STANDARD.decode(files[".runner"].as_str().unwrap()).unwrap();
    let settings: Value = serde_json::from_slice(&settings).unwrap();
    assert_eq!(settings["AgentName"], "pool-abcde");

    let again = github.send("POST", &path, token, Some(ask)).await;
    assert_eq!(again.status, 409, "the name is taken: {again:?}");
    let id = &made.body["runner"]["id"];
    let list = format!("/api/v3{REPO}/actions/runners?name=pool-abcde");
    let listed = github.send("GET", &list, token, None).await;
    assert_eq!(listed.body["total_count"], 1);
    assert_eq!(listed.body["runners"][0]["status"], "offline");
    assert_eq!(listed.body["runners"][0]["version"], Value::Null);
    let one = format!("{REPO}/actions/runners/{id}");
    assert_eq!(github.send("GET", &one, token, None).await.status, 200);
    assert_eq!(github.send("DELETE", &one, token, None).await.status, 204);
    assert_eq!(github.send("GET", &one, token, None).await.status, 404);
    github.assert_clean().await;
}

#[tokio::test]
async fn an_older_server_refuses_a_dispatch_that_asks_for_its_run() {
    let github = Simulator::start().await;
    let token = github.admin().await;
    let path = format!("/api/v3{REPO}/actions/workflows/cuda.yml/dispatches");
    for (version, asked, status) in [
        (
            "3.20.4",
            json!({"ref": "main", "return_run_details": true}),
            422,
        ),
        ("3.20.4", json!({"ref": "main"}), 204),
        (
            "3.21.0",
            json!({"ref": "main", "return_run_details": true}),
            200,
        ),
        ("", json!({"ref": "main", "return_run_details": true}), 200),
    ] {
        let settings = json!({"serverVersion": version});
        github.control.change_settings(&settings).await.unwrap();
        let answer = github.send("POST", &path, &token, Some(asked)).await;
        assert_eq!(answer.status, status, "{version}: {answer:?}");
    }
    github.assert_clean().await;
}
