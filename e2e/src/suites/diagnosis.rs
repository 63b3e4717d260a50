//! What is shown of a suite that has failed.

use std::fmt::Write as _;

use anyhow::Result;
use cudarunner_crds::CudaRunner;
use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};
use serde_json::json;

use super::Ctx;
use crate::{deploy, process::tail};

/// What a person would look at when a suite has failed.
pub(super) async fn diagnosis(ctx: &Ctx) -> String {
    let mut text = String::new();
    let mut add = |title: &str, what: Result<String>| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "--- {title}\n{}\n",
            what.unwrap_or_else(|error| format!("{error:#}"))
        );
    };
    add("the cluster itself", cluster(ctx));
    add("pools", pools(ctx).await);
    add("pods", pods(ctx).await);
    add("events", events(ctx).await);
    add(
        "GitHub's runners",
        ctx.entries().await.map(|names| names.join("\n")),
    );
    add("calls to GitHub, the last 15", calls(ctx).await);
    add("operator", operator(ctx).await);
    text
}

/// Whether what everything else is asked through still stands.
fn cluster(ctx: &Ctx) -> Result<String> {
    for program in ["etcd", "kube-apiserver", "github-simulator"] {
        ctx.cluster.supervisor.check(program)?;
    }
    match &ctx.cluster.link {
        Some(link) => link.show(),
        None => Ok("runs".to_owned()),
    }
}

async fn pools(ctx: &Ctx) -> Result<String> {
    let pools: Api<CudaRunner> = ctx.api();
    let all = pools.list(&ListParams::default()).await?.items;
    let shown: Vec<_> = all
        .iter()
        .map(|pool| json!({"name": pool.metadata.name, "status": pool.status}))
        .collect();
    Ok(serde_json::to_string_pretty(&shown)?)
}

async fn pods(ctx: &Ctx) -> Result<String> {
    let shown: Vec<_> = ctx
        .pods()
        .await?
        .into_iter()
        .map(|pod| json!({"name": pod.metadata.name, "deleted": pod.metadata.deletion_timestamp, "status": pod.status}))
        .collect();
    Ok(serde_json::to_string_pretty(&shown)?)
}

async fn events(ctx: &Ctx) -> Result<String> {
    let events: Api<Event> = ctx.api();
    let lines = events
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .map(|event| {
            format!(
                "{} {}: {}",
                event.involved_object.name.unwrap_or_default(),
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default()
            )
        });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

async fn calls(ctx: &Ctx) -> Result<String> {
    let all: Vec<_> = ctx
        .github
        .requests(0)
        .await?
        .into_iter()
        .map(|seen| {
            format!(
                "{} {} {} -> {:?} {}",
                seen.at, seen.method, seen.path, seen.status, seen.credential
            )
        })
        .collect();
    Ok(tail(&all.join("\n"), 15))
}

async fn operator(ctx: &Ctx) -> Result<String> {
    if ctx.cluster.link.is_none() {
        return Ok(tail(
            &std::fs::read_to_string(ctx.cluster.supervisor.log("operator"))?,
            60,
        ));
    }
    Ok(deploy::operator_log(&ctx.client, Some(60))
        .await?
        .join("\n"))
}
