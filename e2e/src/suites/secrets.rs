//! No credential in anything that the whole run has written: logs, Events, objects, argument lists.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use github_simulator::control::NewCredential;
use http::{Method, StatusCode};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use regex::bytes::Regex;
use serde_json::{Value, json};

use super::{Ctx, recorder};
use crate::{cluster::Cluster, deploy, example};

/// What credentials look like: tokens of GitHub's, registration tokens, private keys, and JSON in base64, which is what
/// service-account tokens, the scale-set service's tokens and just-in-time configurations are.
const SHAPES: [&str; 4] = [
    r"\bA[0-9A-F]{28}\b",
    r"gh[a-z]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:\\n|\s)+[A-Za-z0-9+/]{16}",
    r"eyJ[A-Za-z0-9_+/=-]{40,}",
];

/// How the API server's marks in long lists begin, `{"v":"meta.k8s.io/`: JSON in base64, too, and no secret.
const CONTINUE: &[u8] = b"eyJ2IjoibWV0YS5rOHMuaW8v";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a runner that has had a job, after all suites before this
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    let runner = ctx.idle("pool", 1).await?.remove(0);
    let job = ctx.queue("job", "true").await?;
    ctx.succeeded(job).await?;
    ctx.gone(&runner).await?;
    let shapes = shapes()?;
    the_shapes_are_right(ctx, &shapes).await?;

    // When everything that was recorded on any cluster is searched, then no credential is in it
    let mut found = Vec::new();
    for cluster in &ctx.clusters {
        found.extend(in_record(cluster, &shapes)?);
        found.extend(in_metrics(&cluster.client().await?, &shapes).await?);
    }
    ensure!(found.is_empty(), "credentials were written: {found:#?}");
    Ok(())
}

/// What looks like a credential in objects, logs, Events and argument lists.
fn in_record(cluster: &Cluster, shapes: &[Regex]) -> Result<Vec<String>> {
    let record = recorder::folder(cluster);
    let files = files_below(&[record.clone(), cluster.dir.join("logs")])?;
    let has = |part: &str| {
        files
            .iter()
            .any(|file| file.to_string_lossy().contains(part))
    };
    for part in [
        "objects.jsonl",
        "arguments",
        "kubelet.log",
        "_prepare_",
        "_gpu_",
        "_main_",
        "_operator_",
    ] {
        ensure!(has(part), "nothing of {part} was recorded: {files:?}");
    }
    let arguments = std::fs::read_to_string(record.join("arguments"))?;
    ensure!(
        arguments.contains("run.sh"),
        "the agent's arguments were not recorded: {arguments}"
    );
    let mut found = Vec::new();
    for file in files {
        let content = std::fs::read(&file)?;
        for shape in shapes {
            let hits = shape.find_iter(&content);
            let hits = hits.filter(|hit| !hit.as_bytes().starts_with(CONTINUE));
            found.extend(hits.map(|hit| {
                let start = hit.start().saturating_sub(80);
                format!(
                    "{}: {}",
                    file.display(),
                    String::from_utf8_lossy(&content[start..hit.start() + 12])
                )
            }));
        }
    }
    Ok(found)
}

/// The same in what the operator counts.
async fn in_metrics(client: &Client, shapes: &[Regex]) -> Result<Vec<String>> {
    let pages = deploy::metrics(client).await?;
    ensure!(
        pages.iter().any(|page| page.contains("cudarunner_")),
        "the operator has no metrics: {pages:?}"
    );
    let found = pages.iter().flat_map(|page| in_text(page, shapes));
    Ok(found.map(|found| format!("metrics: {found}")).collect())
}

/// What credentials look like.
pub(super) fn shapes() -> Result<Vec<Regex>> {
    let shapes = SHAPES.iter().map(|shape| Regex::new(shape));
    Ok(shapes.collect::<Result<_, _>>()?)
}

/// The beginning of whatever looks like a credential in a text.
pub(super) fn in_text(text: &str, shapes: &[Regex]) -> Vec<String> {
    let hits = shapes
        .iter()
        .flat_map(|shape| shape.find_iter(text.as_bytes()));
    hits.map(|hit| text[hit.start()..hit.start() + 12].to_owned())
        .collect()
}

/// The shapes fit the real thing, or the search would find nothing whatever was written.
async fn the_shapes_are_right(ctx: &Ctx, shapes: &[Regex]) -> Result<()> {
    let accounts: Api<ServiceAccount> = ctx.api();
    let request = TokenRequest {
        spec: Some(TokenRequestSpec::default()),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await?;
    let service_account = answer
        .status
        .and_then(|status| status.token)
        .unwrap_or_default();
    let personal = ctx
        .github
        .create_token(&NewCredential {
            name: "shape".to_owned(),
            scopes: Some(["repo".to_owned()].into()),
            admin: true,
            ..NewCredential::default()
        })
        .await?;
    let registration = registration_token(ctx, &personal).await?;
    ctx.github.delete_token("shape").await?;
    let secrets: Api<Secret> = ctx.api();
    let app = secrets.get(example::SECRET).await?.data.unwrap_or_default();
    let key = app
        .get("private-key")
        .map(|key| String::from_utf8_lossy(&key.0).into_owned())
        .unwrap_or_default();
    for (what, text) in [
        ("a personal token", personal),
        ("a registration token", registration),
        ("a private key", key),
        ("a service-account token", service_account),
    ] {
        ensure!(
            shapes.iter().any(|shape| shape.is_match(text.as_bytes())),
            "no shape fits {what}"
        );
    }
    Ok(())
}

async fn registration_token(ctx: &Ctx, personal: &str) -> Result<String> {
    let path = format!(
        "/api/v3/repos/{}/actions/runners/registration-token",
        ctx.repository
    );
    let bearer = format!("Bearer {personal}");
    let headers = [("authorization", bearer.as_str()), ("user-agent", "shape")];
    let (status, _, answer) = ctx.github.send(Method::POST, &path, &headers, None).await?;
    ensure!(
        status == StatusCode::CREATED,
        "no registration token: {status}"
    );
    let answer: Value = serde_json::from_slice(&answer)?;
    Ok(answer["token"].as_str().unwrap_or_default().to_owned())
}

fn files_below(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = folders.to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir::<&Path>(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    Ok(files)
}
