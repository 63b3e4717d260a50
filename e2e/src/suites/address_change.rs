//! A pool whose address changes: its jobs go on where they are, and in the end nothing of it stays there.

use anyhow::{Context as _, Result, ensure};
use github_simulator::control::NewRepository;
use serde_json::{Value, json};

use super::{Ctx, SOON};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let new = Ctx {
        repository: format!("{}-new", ctx.repository),
        ..ctx.clone()
    };
    let repository = NewRepository {
        full_name: new.repository.clone(),
        ..NewRepository::default()
    };
    new.github.create_repository(&repository).await?;
    let by_name = json!({"labels": ["self-hosted", "plain"], "replicas": 2});
    let by_set = json!({
        "labels": ["self-hosted", "set"],
        "registration": "ScaleSet",
        "scaling": {"minRunners": 1, "maxRunners": 2},
    });
    moves(ctx, &new, "plain", &by_name).await?;
    moves(ctx, &new, "set", &by_set).await
}

async fn moves(ctx: &Ctx, new: &Ctx, name: &str, spec: &Value) -> Result<()> {
    // Given a pool with a runner that has a job
    ctx.apply(&ctx.pool(name, spec.clone())).await?;
    let labels = ["self-hosted", name];
    let job = ctx.queue_for("long", &labels, "true", true).await?;
    let runner = ctx.picked_up(job).await?.runner.context("no runner")?;

    // When its address is another one
    new.apply(&new.pool(name, spec.clone())).await?;

    // Then there are runners at the new one, and at the old one the job goes on alone
    ctx.wait_for("a runner at the new address", SOON, async || {
        Ok((!new.entries().await?.is_empty()).then_some(()))
    })
    .await?;
    ctx.wait_for("the other runners to leave the old one", SOON, async || {
        Ok((ctx.entries().await? == [runner.clone()]).then_some(()))
    })
    .await?;
    let left = ctx.status(name).await?.left_at;
    let urls: Vec<&str> = left.iter().map(|left| left.url.as_str()).collect();
    let before = format!("{}/{}", ctx.cluster.github, ctx.repository);
    ensure!(urls == [before], "it is not remembered: {urls:?}");

    // When the job has ended, then it ended well, and nothing is left there
    ctx.github.release(job).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(view.assignments == 1, "{view:?}");
    ctx.wait_for("the old address to be forgotten", SOON, async || {
        let is_forgotten = ctx.status(name).await?.left_at.is_empty();
        Ok(is_forgotten.then_some(()))
    })
    .await?;
    ensure!(ctx.entries().await?.is_empty(), "runners are left");
    ensure!(ctx.scale_sets().await?.is_empty(), "a scale set is left");

    // When the pool is deleted, then nothing is left at the new one either
    ctx.delete(name).await?;
    ensure!(new.entries().await?.is_empty(), "runners are left");
    ensure!(new.scale_sets().await?.is_empty(), "a scale set is left");
    Ok(())
}
