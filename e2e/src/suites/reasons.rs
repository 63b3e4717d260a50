//! What Kubernetes will not do for a pod: its own words are on the resource within seconds, nobody else is blamed, and a
//! fixed resource works at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::LimitRange;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};

use super::Ctx;
use crate::example;

/// An agent's image for another architecture.
const FOREIGN: &str = "localhost/simulated-agent-arm64:dev";

/// A mistake in a template, and what is said of it.
struct Case {
    name: &'static str,
    /// What the pool's spec has beside the agent's image.
    spec: Value,
    /// The reason that `Ready` gives.
    reason: &'static str,
    /// What its message has to say.
    words: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let agent = |more: Value| {
        let mut container = json!({"name": "runner", "image": example::AGENT});
        super::context::merge(&mut container, more);
        container
    };
    let from_secret = json!({"env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token"}}}]});
    vec![
        Case {
            name: "sysctl",
            spec: json!({"template": {"spec": {
                "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1024"}]},
                "containers": [agent(json!({}))],
            }}}),
            reason: "PodRejected",
            words: &["SysctlForbidden", "net.core.somaxconn"],
        },
        Case {
            name: "secret",
            spec: json!({"template": {"spec": {"containers": [agent(from_secret)]}}}),
            reason: "ContainerNotStarted",
            words: &["container gpu", r#"secret "hf-token" not found"#],
        },
        Case {
            name: "arm-image",
            spec: json!({"template": {"spec": {"containers": [agent(json!({"image": FOREIGN}))]}}}),
            reason: "WrongArchitecture",
            words: &["`gpu`", "Exec format error", "linux/amd64"],
        },
        Case {
            name: "arm-nodes",
            spec: json!({"arch": "arm64"}),
            reason: "Unschedulable",
            words: &["are amd64", "to be arm64 (spec.arch)"],
        },
        Case {
            name: "init",
            spec: json!({"template": {"spec": {
                "initContainers": [{
                    "name": "externals", "image": example::AGENT,
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "command": ["sh", "-c", "cp -r /absent/. /tmp/"],
                }],
                "containers": [agent(json!({}))],
            }}}),
            reason: "InitContainerFailed",
            words: &["externals", "code 1", "/absent"],
        },
    ]
}

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    for case in cases() {
        mistake(ctx, &case).await?;
    }
    hardly_starts(ctx).await?;
    limit_range(ctx).await
}

/// An image whose agent will not run as the user that the template chooses.
async fn hardly_starts(ctx: &Ctx) -> Result<()> {
    let as_root = json!({"template": {"spec": {"containers": [{
        "name": "runner", "image": example::AGENT, "securityContext": {"runAsUser": 0},
    }]}}});
    ctx.apply(&ctx.pool("root", as_root)).await?;
    // Given the third attempt, then the pool is stalled, with the agent's words
    let message = ctx
        .condition("root", "Stalled", "True", "AgentEndedAtOnce")
        .await?;
    ensure!(message.contains("Must not run"), "{message}");
    let failed = ctx.status("root").await?.last_failures[0].runner.clone();
    // And its pod is there for a look, with its log, and GitHub has no entry of it
    let log = ctx.kubectl(&["logs", &failed]).await?;
    ensure!(log.contains("Must not run"), "{log}");
    let limit = Duration::from_secs(30);
    ctx.wait_for("GitHub to have no entry of it", limit, async || {
        Ok((!ctx.entries().await?.contains(&failed)).then_some(()))
    })
    .await?;
    ensure!(!ctx.pods().await?.is_empty(), "the pod is gone");
    // When the pool is scaled to nothing, then nothing is kept of it
    ctx.scale("root", 0).await?;
    ctx.gone(&failed).await?;
    ctx.delete("root").await
}

async fn mistake(ctx: &Ctx, case: &Case) -> Result<()> {
    // Given a pool whose template has a mistake
    ctx.apply(&ctx.pool(case.name, case.spec.clone())).await?;
    // Then the resource says which, in Kubernetes' words, and no node is quarantined
    let message = ctx
        .condition(case.name, "Ready", "False", case.reason)
        .await?;
    for word in case.words {
        ensure!(message.contains(word), "{}: {message}", case.name);
    }
    let status = ctx.status(case.name).await?;
    ensure!(status.quarantine.is_empty(), "{:?}", status.quarantine);
    // And there is no storm of attempts
    let tried = status.last_failures.len();
    ensure!(tried <= 2, "{}: {tried} attempts", case.name);
    // When it is fixed, then a runner comes
    ctx.apply(&ctx.pool(case.name, json!({}))).await?;
    ctx.idle(case.name, 1).await?;
    ctx.delete(case.name).await
}

/// A namespace whose default limit is less than a gate needs: what the template says of the runner counts for the gate, which
/// is in its container, and our other containers have limits of their own.
async fn limit_range(ctx: &Ctx) -> Result<()> {
    let ranges: Api<LimitRange> = ctx.api();
    let range = json!({
        "metadata": {"name": "small"},
        "spec": {"limits": [{
            "type": "Container",
            "default": {"memory": "64Mi"}, "defaultRequest": {"memory": "32Mi"},
        }]},
    });
    let range = serde_json::from_value(range)?;
    ranges.create(&PostParams::default(), &range).await?;
    let agent = json!({
        "name": "runner", "image": example::AGENT, "resources": {"limits": {"memory": "512Mi"}},
    });
    let template = json!({"spec": {"containers": [agent]}});
    ctx.apply(&ctx.pool("small", json!({"template": template})))
        .await?;
    // Then the gate passes all the same
    ctx.idle("small", 1).await?;
    ranges.delete("small", &DeleteParams::default()).await?;
    ctx.delete("small").await
}
