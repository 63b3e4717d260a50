//! Runners that register with a token and `config.sh`: the same inputs as by hand, the token fetched when a gate has
//! passed, and an agent that GitHub refuses for its age.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Ctx, SOON, context::agent_with};
use crate::gpu;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a server that takes each token once
    let strict = |on: bool| json!({"singleUseRegistration": on});
    ctx.github.change_settings(&strict(true)).await?;
    let outcome = runners_come_and_go(ctx).await;
    ctx.github.change_settings(&strict(false)).await?;
    outcome?;
    an_agent_that_is_too_old(ctx).await?;
    Ok(())
}

async fn runners_come_and_go(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    ctx.apply(&ctx.pool("pool", json!({"registration": "RegistrationToken"})))
        .await?;
    let first = ctx.idle("pool", 1).await?.remove(0);

    // Then the runner's container has the arguments of `config.sh` in plain sight, and no token
    let pod = ctx
        .pods()
        .await?
        .into_iter()
        .find(|pod| pod.metadata.name.as_deref() == Some(&first))
        .context("the runner has no pod")?;
    let gpu = gpu::container(&pod).context("a pod without the container")?;
    let arguments = gpu.args.clone().unwrap_or_default().join(" ");
    let url = format!("{}/{}", ctx.cluster.github, ctx.repository);
    for part in [
        &format!("--url {url} --name {first} --labels self-hosted,Linux,X64,cuda,"),
        "--work _work --unattended --replace --ephemeral --disableupdate",
    ] {
        ensure!(arguments.contains(part), "{part} is not in {arguments}");
    }
    ensure!(!arguments.contains("--token"), "{arguments}");

    // And a job runs, without a sight of the token, and the next runner comes with a token of its own
    let job = ctx
        .queue("one", r#"test -z "$(env | grep ACTIONS_RUNNER_INPUT)""#)
        .await?;
    let view = ctx.succeeded(job).await?;
    ensure!(view.runner.as_deref() == Some(&first), "{view:?}");
    ctx.other_idle("pool", &first).await?;
    let tokens = tokens(ctx, mark).await?;
    ensure!(tokens == 2, "{tokens} tokens for two runners");
    ctx.delete("pool").await
}

async fn an_agent_that_is_too_old(ctx: &Ctx) -> Result<()> {
    let pool = |version: &str| {
        let template = agent_with("SIMULATED_AGENT_VERSION", version);
        ctx.pool(
            "old",
            json!({"registration": "RegistrationToken", "template": template}),
        )
    };
    // When the image holds an agent that the server refuses
    ctx.apply(&pool("2.319.1")).await?;
    // Then that is said once it was refused twice, with the version to use
    let message = ctx
        .condition("old", "Stalled", "True", "VersionRefused")
        .await?;
    for version in ["2.319.1", "2.329.0"] {
        ensure!(message.contains(version), "{version} is not in: {message}");
    }
    let failures = ctx.status("old").await?.last_failures;
    let classes: Vec<_> = failures.iter().rev().map(|f| f.class.as_str()).collect();
    ensure!(
        classes.starts_with(&["transient", "config"]),
        "{failures:#?}"
    );
    ensure!(
        ctx.entries().await?.is_empty(),
        "a refused agent has an entry"
    );

    // When the image is newer, the pool recovers
    ctx.apply(&pool("2.338.0")).await?;
    ctx.idle("old", 1).await?;
    ctx.condition("old", "Stalled", "False", "Progressing")
        .await?;
    ctx.delete("old").await?;
    ctx.wait_for("no pod to be left", SOON, async || {
        Ok(ctx.pods().await?.is_empty().then_some(()))
    })
    .await
}

/// How many registration tokens the operator has fetched after this request.
pub(super) async fn tokens(ctx: &Ctx, since: u64) -> Result<usize> {
    let calls = ctx.calls(since).await?;
    Ok(calls
        .iter()
        .filter(|call| call.path.ends_with("/registration-token"))
        .count())
}
