//! The cluster's own registry: nodes pull from it with its password and not without, it can be held, and says who asked. And
//! a runner's image that it has for another architecture alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStateWaiting, Pod};
use kube::{Api, api::PostParams};
use serde_json::json;
use tokio::time::timeout;

use super::{Ctx, SOON};
use crate::registry::{PASSWORD, Registry};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a registry with an image, and Secrets with a password that is right and one that is not
    let registry = Registry::start(&ctx.cluster).await?;
    let image = registry.push("job-alpine").await?;
    for (name, password) in [("right", PASSWORD), ("wrong", "a guess")] {
        registry
            .pull_secret(&ctx.client, &ctx.namespace, name, password)
            .await?;
    }

    // Then the kubelet pulls with the right one alone
    for (pod, secret, says) in [
        (
            "asks",
            None,
            "authorization failed: no basic auth credentials",
        ),
        ("guesses", Some("wrong"), "401 Unauthorized"),
    ] {
        start(ctx, pod, &image, secret).await?;
        ctx.wait_for("the pull to be refused", SOON, async || {
            let waiting = waiting(&pods(ctx).get(pod).await?);
            let message = waiting.and_then(|waiting| waiting.message);
            Ok(message.filter(|message| message.contains(says)))
        })
        .await?;
    }
    start(ctx, "knows", &image, Some("right")).await?;
    succeeded(ctx, "knows").await?;
    // And the registry tells who asked
    let asked = registry.answered()?;
    for status in [401, 200] {
        let mut pulls = asked.iter().filter(|a| a.status == status);
        ensure!(
            pulls.any(|a| a.path == "/v2/job-alpine/manifests/dev" && a.agent.contains("containerd")),
            "no node's pull had {status}: {asked:#?}"
        );
    }

    // When it holds its answers back, then nobody has one, and a pull waits until they are released
    registry.hold()?;
    let answer = timeout(Duration::from_secs(2), Registry::start(&ctx.cluster)).await;
    ensure!(answer.is_err(), "a registry that is held gave an answer");
    start(ctx, "waits", &image, Some("right")).await?;
    ctx.wait_for("the pull to begin", SOON, async || {
        Ok(waiting(&pods(ctx).get("waits").await?))
    })
    .await?;
    registry.release()?;
    succeeded(ctx, "waits").await?;
    for_another_architecture(ctx, &registry).await
}

/// A runner's image that the registry has for another architecture alone is named as that, and blames no node.
async fn for_another_architecture(ctx: &Ctx, registry: &Registry) -> Result<()> {
    // Given a pool with such an image
    let image = registry.push_for("arm64", "job-alpine").await?;
    let template = json!({"spec": {
        "imagePullSecrets": [{"name": "right"}],
        "containers": [{"name": "runner", "image": image}],
    }});
    ctx.apply(&ctx.pool("foreign", json!({"template": template})))
        .await?;
    // When its gate has passed, then the pull says so in the runtime's words, and the pool what to do
    let said = ctx
        .condition("foreign", "RunnersOnline", "False", "WrongArchitecture")
        .await?;
    for part in [
        image.as_str(),
        "no match for platform in manifest",
        "name an image that is built for linux/amd64",
    ] {
        ensure!(said.contains(part), "no {part}: {said}");
    }
    let status = ctx.status("foreign").await?;
    ensure!(status.quarantine.is_empty(), "{:#?}", status.quarantine);
    ctx.delete("foreign").await?;
    ctx.no_violations().await
}

fn pods(ctx: &Ctx) -> Api<Pod> {
    ctx.api()
}

async fn start(ctx: &Ctx, name: &str, image: &str, secret: Option<&str>) -> Result<()> {
    let secrets: Vec<_> = secret.iter().map(|name| json!({"name": name})).collect();
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "imagePullSecrets": secrets,
            "containers": [{"name": "job", "image": image, "imagePullPolicy": "Always", "command": ["true"]}],
        },
    }))?;
    pods(ctx).create(&PostParams::default(), &pod).await?;
    Ok(())
}

/// Why its container waits, in the kubelet's words.
fn waiting(pod: &Pod) -> Option<ContainerStateWaiting> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.first()?.state.as_ref()?.waiting.clone()
}

async fn succeeded(ctx: &Ctx, pod: &str) -> Result<()> {
    ctx.wait_for(&format!("{pod} to succeed"), SOON, async || {
        let status = pods(ctx).get(pod).await?.status.unwrap_or_default();
        Ok((status.phase.as_deref() == Some("Succeeded")).then_some(()))
    })
    .await
}
