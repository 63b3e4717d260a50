//! A job that no pool can serve is named, with the label that is missing.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Ctx,
    plugin::{plugin, shown_in},
};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool with the default labels
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    ctx.idle("pool", 1).await?;
    ctx.condition("pool", "QueueServed", "True", "EveryJobHasAPool")
        .await?;

    // When a job is queued that also wants a100, and somebody asks why it waits
    ctx.queue_for("train", &["self-hosted", "cuda", "a100"], "true", false)
        .await?;
    let why = plugin(ctx, 0, &["why", "pool", "--wait", "30"]).await?;

    // Then the answer and the condition name the label and the job
    let message = ctx
        .condition("pool", "QueueServed", "False", "LabelMissing")
        .await?;
    for text in [&why, &message] {
        ensure!(
            text.contains("a100") && text.contains("train"),
            "neither label nor job in: {text}"
        );
    }
    shown_in(ctx, "guides/troubleshooting.md", "pool", &why)?;

    // When a pool has the label
    ctx.apply(&ctx.pool("big", json!({"labels": ["self-hosted", "cuda", "a100"]})))
        .await?;

    // Then it takes the job, and nothing is missing any more
    ctx.wait_for("the job to be done", super::SOON, async || {
        let done = ctx
            .github
            .jobs()
            .await?
            .into_iter()
            .any(|job| job.name == "train" && job.conclusion.is_some());
        Ok(done.then_some(()))
    })
    .await?;
    plugin(ctx, 0, &["why", "pool", "--wait", "30"]).await?;
    ctx.condition("pool", "QueueServed", "True", "EveryJobHasAPool")
        .await?;
    Ok(())
}
