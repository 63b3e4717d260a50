//! Webhooks and what they are told, over real sockets.
#![allow(
    missing_docs,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test, with its helpers"
)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{REPO, Simulator};
use github_simulator::{
    control::{NewCredential, NewJob},
    deliver::signature,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Mutex,
};

const SECRET: &str = "0123456789abcdef";

/// What a receiver got: number, event, action, and whether it was signed.
type Got = Arc<Mutex<Vec<(String, String, String, bool)>>>;

/// Answers every delivery with this status.
async fn receiver(status: u16) -> (String, Got) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hooks/x", listener.local_addr().unwrap());
    let got = Got::default();
    let all = Arc::clone(&got);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let all = Arc::clone(&all);
            tokio::spawn(async move {
                let mut read = Vec::new();
                let (head, body) = loop {
                    let mut piece = [0; 4096];
                    let length = stream.read(&mut piece).await.unwrap();
                    read.extend_from_slice(&piece[..length]);
                    let text = String::from_utf8_lossy(&read).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        continue;
                    };
                    let length: usize = header(head, "content-length").parse().unwrap();
                    if body.len() >= length {
                        break (head.to_owned(), body.to_owned());
                    }
                };
                let payload: Value = serde_json::from_str(&body).unwrap();
                all.lock().await.push((
                    header(&head, "x-github-delivery"),
                    header(&head, "x-github-event"),
                    payload["action"].as_str().unwrap_or_default().to_owned(),
                    header(&head, "x-hub-signature-256") == signature(SECRET, body.as_bytes()),
                ));
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (url, got)
}

fn header(head: &str, name: &str) -> String {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.to_owned()).unwrap_or_default()
}

/// The actions that came, once there are so many.
async fn actions(got: &Got, count: usize) -> Vec<String> {
    for _ in 0..100 {
        let all = got.lock().await;
        if all.len() >= count {
            let told = |(_, event, action, _): &(String, String, String, bool)| {
                if action.is_empty() {
                    event.clone()
                } else {
                    action.clone()
                }
            };
            return all.iter().map(told).collect();
        }
        drop(all);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{:?}", got.lock().await);
}

fn body(url: &str) -> Value {
    json!({
        "name": "web",
        "active": true,
        "events": ["workflow_job"],
        "config": {"url": url, "content_type": "json", "secret": SECRET, "insecure_ssl": "0"},
    })
}

async fn queue(github: &Simulator) -> u64 {
    let job = NewJob {
        repository: REPO.trim_start_matches("/repos/").to_owned(),
        name: "train".to_owned(),
        labels: vec!["cuda".to_owned()],
        ..NewJob::default()
    };
    github.control.queue(&job).await.unwrap().run
}

#[tokio::test]
async fn a_webhook_is_made_told_of_jobs_and_removed() {
    let github = Simulator::start().await;
    let token = github.admin().await;
    let hooks = format!("{REPO}/hooks");
    let (url, got) = receiver(202).await;

    // Given a webhook, then a ping comes, and its secret is told to nobody
    let made = github.send("POST", &hooks, &token, Some(body(&url))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.body["config"]["secret"], "********");
    assert_eq!(actions(&got, 1).await, ["ping"]);
    let same = github.send("POST", &hooks, &token, Some(body(&url))).await;
    assert_eq!(same.status, 422);
    let listed = github.send("GET", &hooks, &token, None).await.body;
    assert_eq!(listed[0]["config"]["url"], url);

    // When a job is queued and cancelled, then both are told, signed
    let run = queue(&github).await;
    assert_eq!(actions(&got, 2).await, ["ping", "queued"]);
    let cancel = format!("{REPO}/actions/runs/{run}/cancel");
    github.send("POST", &cancel, &token, None).await;
    assert_eq!(actions(&got, 3).await, ["ping", "queued", "completed"]);
    assert!(got.lock().await.iter().all(|(_, _, _, signed)| *signed));

    // And it can be asked for again, by the same number
    let hook = format!("{hooks}/{}", made.body["id"]);
    let deliveries = format!("{hook}/deliveries?per_page=1");
    let last = github.send("GET", &deliveries, &token, None).await.body;
    assert_eq!(last[0]["action"], "completed");
    let attempts = format!("{hook}/deliveries/{}/attempts", last[0]["id"]);
    assert_eq!(
        github.send("POST", &attempts, &token, None).await.status,
        202
    );
    actions(&got, 4).await;
    let numbers: Vec<String> = got
        .lock()
        .await
        .iter()
        .map(|(guid, ..)| guid.clone())
        .collect();
    assert_eq!(numbers[2], numbers[3]);

    // When it is switched off or removed, then nothing comes
    let off = Some(json!({"active": false}));
    assert_eq!(
        github.send("PATCH", &hook, &token, off).await.body["active"],
        false
    );
    queue(&github).await;
    assert_eq!(github.send("DELETE", &hook, &token, None).await.status, 204);
    assert_eq!(github.send("GET", &hook, &token, None).await.status, 404);
    assert_eq!(got.lock().await.len(), 4);
    github.assert_clean().await;
}

#[tokio::test]
async fn deliveries_are_lost_repeated_reordered_and_forged_where_a_test_wants_it() {
    let github = Simulator::start().await;
    let token = github.admin().await;
    let hooks = format!("{REPO}/hooks");
    let (url, got) = receiver(202).await;
    github.send("POST", &hooks, &token, Some(body(&url))).await;
    actions(&got, 1).await;
    let next = async |troubles: Value, count: usize| {
        got.lock().await.clear();
        let settings = json!({"deliveries": troubles});
        github.control.change_settings(&settings).await.unwrap();
        queue(&github).await;
        actions(&got, count).await
    };
    assert_eq!(next(json!({"repeat": 2}), 3).await, ["queued"; 3]);
    let approved = next(json!({"approvals": true, "holdMillis": 500}), 3).await;
    let mut sorted = approved.clone();
    sorted.sort();
    assert_eq!(sorted, ["queued", "queued", "waiting"]);
    next(json!({"forge": true}), 1).await;
    assert!(!got.lock().await[0].3);
    assert_eq!(next(json!({"lose": true}), 0).await, [""; 0]);
    github.assert_clean().await;
}

#[tokio::test]
async fn an_organizations_webhook_is_told_of_its_repositories_jobs() {
    let github = Simulator::start().await;
    let new = NewCredential {
        name: "owner".to_owned(),
        scopes: Some(["admin:org_hook".to_owned()].into()),
        admin: true,
        ..NewCredential::default()
    };
    let token = github.control.create_token(&new).await.unwrap();
    let hooks = "/orgs/craton-co/hooks";
    let (url, got) = receiver(202).await;
    let made = github.send("POST", hooks, &token, Some(body(&url))).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(made.body["type"], "Organization");
    queue(&github).await;
    assert_eq!(actions(&got, 2).await, ["ping", "queued"]);
    assert!(got.lock().await.iter().all(|(_, _, _, signed)| *signed));
    // Who administers runners alone administers no webhooks
    let admin = github.admin().await;
    let refused = github.send("GET", hooks, &admin, None).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    let hook = format!("{hooks}/{}", made.body["id"]);
    assert_eq!(github.send("DELETE", &hook, &token, None).await.status, 204);
    github.assert_clean().await;
}

#[tokio::test]
async fn what_failed_is_listed() {
    let github = Simulator::start().await;
    let token = github.admin().await;
    let hooks = format!("{REPO}/hooks");
    let (url, got) = receiver(401).await;
    let made = github.send("POST", &hooks, &token, Some(body(&url))).await;
    actions(&got, 1).await;
    let failed = format!(
        "{hooks}/{}/deliveries?status=failure&per_page=100",
        made.body["id"]
    );
    for _ in 0..50 {
        let listed = github.send("GET", &failed, &token, None).await.body;
        if listed[0]["status_code"] == 401 {
            return github.assert_clean().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nothing failed");
}
