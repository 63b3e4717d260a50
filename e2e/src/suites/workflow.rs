//! The four jobs of the first repository's workflow are picked up, and pass on the simulated device.

use anyhow::{Context as _, Result, ensure};
use github_simulator::control::NewRun;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::Ctx;
use crate::{example, simulator};

/// Within which time a job must have been picked up, once the runner could take it.
const PICKUP: SignedDuration = SignedDuration::from_secs(30);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool of one runner for the repository, with credentials of its owner
    example::credentials(
        &ctx.cluster,
        &ctx.client,
        &ctx.github,
        &ctx.namespace,
        simulator::REPOSITORY,
    )
    .await?;
    let before = ctx.github.state().await?.lasting;
    let url = format!("{}/{}", ctx.cluster.github, simulator::REPOSITORY);
    ctx.apply(&ctx.pool("pool", json!({"github": {"url": url}})))
        .await?;
    ctx.condition("pool", "RunnersOnline", "True", "Online")
        .await?;

    // When the workflow is started on dev
    let run = NewRun {
        repository: simulator::REPOSITORY.to_owned(),
        workflow: "cuda.yml".to_owned(),
        branch: Some("dev".to_owned()),
        event: "workflow_dispatch".to_owned(),
        ..NewRun::default()
    };
    let run = ctx.github.start_run(&run).await?;
    ensure!(
        run.jobs.len() == 4,
        "the workflow has {} jobs",
        run.jobs.len()
    );

    // Then all four are picked up in time, each by a runner of its own, and pass
    passed(ctx, run.jobs).await?;

    // And after the deletion the repository is as it was
    ctx.delete("pool").await?;
    let after = ctx
        .wait_for("the repository to be as before", super::SOON, async || {
            let now = ctx.github.state().await?.lasting;
            Ok((now["repositories"][simulator::REPOSITORY]
                == before["repositories"][simulator::REPOSITORY])
                .then_some(()))
        })
        .await;
    after.context("the deletion left something behind")
}

async fn passed(ctx: &Ctx, jobs: Vec<u64>) -> Result<()> {
    let mut views = Vec::new();
    for job in jobs {
        views.push(ctx.succeeded(job).await?);
    }
    views.sort_by_key(|view| view.started_at);
    let mut runners = Vec::new();
    // One runner takes one after the other: a job waits from the end of the one before.
    let mut free = Timestamp::MIN;
    for view in views {
        let started = view.started_at.context("a job without a start")?;
        let waited = started.duration_since(view.queued_at.max(free));
        ensure!(waited < PICKUP, "{} waited {waited}", view.name);
        free = view.completed_at.context("a job without an end")?;
        runners.extend(view.runner);
    }
    runners.sort();
    runners.dedup();
    ensure!(runners.len() == 4, "four jobs ran on {runners:?}");
    Ok(())
}
