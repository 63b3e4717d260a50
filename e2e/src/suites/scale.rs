//! `kubectl scale` up and down, while a job runs that must not be cut short.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Ctx;

/// So many runners at most; the node gets as many devices.
const MANY: usize = 20;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a node with many devices, and a pool of one runner
    for number in 0..MANY {
        ctx.device(number, |_| {})?;
    }
    // Twenty gates at a time, on whatever machine this is, are slow and not hung.
    let spec = json!({"replicas": 1, "smoke": {"timeoutSeconds": 120}});
    ctx.apply(&ctx.pool("pool", spec)).await?;
    let first = ctx.idle("pool", 1).await?.remove(0);
    let job = ctx.hold("long").await?;
    ensure!(
        ctx.picked_up(job).await?.runner.as_deref() == Some(first.as_str()),
        "another runner took the job"
    );

    // When the queue has grown and more are asked for
    scale(ctx, "pool", MANY).await?;

    // Then they come, and the busy one is counted
    ctx.idle("pool", MANY - 1).await?;
    let status = ctx.status("pool").await?;
    ensure!(
        (status.replicas, status.busy) == (20, 1),
        "20 and 1 busy expected: {status:?}"
    );

    // When one is enough again
    scale(ctx, "pool", 1).await?;

    // Then all idle ones go, there and on GitHub, and the busy one stays
    ctx.wait_for("one runner to be left", super::SOON, async || {
        let left: Vec<_> = ctx
            .pods()
            .await?
            .into_iter()
            .filter_map(|pod| pod.metadata.name)
            .collect();
        Ok((left == [first.clone()] && ctx.entries().await? == [first.clone()]).then_some(()))
    })
    .await?;
    ctx.github.release(job).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.assignments == 1,
        "the job was given out {} times",
        view.assignments
    );

    // And at zero none is left
    scale(ctx, "pool", 0).await?;
    ctx.idle("pool", 0).await?;
    ctx.wait_for("no pod to be left", super::SOON, async || {
        Ok(ctx.pods().await?.is_empty().then_some(()))
    })
    .await?;
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;
    Ok(())
}

/// `kubectl scale`.
async fn scale(ctx: &Ctx, pool: &str, replicas: usize) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    ctx.kubectl(&["scale", "cudarunner", pool, &replicas])
        .await
        .map(drop)
}
