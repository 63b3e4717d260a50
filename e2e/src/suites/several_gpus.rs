//! Runners with several GPUs: their gates let the devices talk, and a pool may ask that they can.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Ctx;

/// The devices of the node.
const DEVICES: usize = 4;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    they_talk(ctx).await?;
    they_must(ctx).await
}

fn pool(ctx: &Ctx, name: &str, peer_access: &str) -> Value {
    ctx.pool(
        name,
        json!({"gpu": {"count": 2, "peerAccess": peer_access}}),
    )
}

async fn they_talk(ctx: &Ctx) -> Result<()> {
    // Given a pool whose runners have two GPUs each
    ctx.apply(&pool(ctx, "pairs", "Require")).await?;
    let runner = ctx.idle("pairs", 1).await?.remove(0);
    // Then the gate has tried both ways between them, by copies and by kernels that answer one another
    let report = ctx.report(&runner).await?;
    let devices = report["devices"].as_array().context("devices")?;
    ensure!(devices.len() == 2, "{report:#}");
    let peers = &report["peers"];
    ensure!(
        peers["pairs"] == 2 && peers["withAccess"] == 2,
        "{report:#}"
    );
    let copied = peers["copiedBytes"].as_u64().unwrap_or_default();
    let answered = peers["roundTrips"].as_u64().unwrap_or_default();
    ensure!(copied > 0 && answered > 0, "{report:#}");
    ctx.delete("pairs").await
}

async fn they_must(ctx: &Ctx) -> Result<()> {
    // Given GPUs that do not reach one another's memory
    for number in 0..DEVICES {
        ctx.device(number, |device| {
            device.properties.insert("peers".to_owned(), json!(false));
        })?;
    }
    // When a pool asks that they do, then its gates fail in the gate's words, and its pods keep off the node
    ctx.apply(&pool(ctx, "together", "Require")).await?;
    let failed = ctx
        .wait_for("a gate without peer access", super::SOON, async || {
            let mut failures = ctx.status("together").await?.last_failures;
            Ok((!failures.is_empty()).then(|| failures.remove(0)))
        })
        .await?;
    ensure!(
        failed.class.as_str() == "unsupported"
            && failed.code_name.as_deref() == Some("NoPeerAccess"),
        "{failed:?}"
    );
    // And a pool that does not ask has its runners there all the same
    ctx.apply(&pool(ctx, "apart", "Report")).await?;
    let runner = ctx.idle("apart", 1).await?.remove(0);
    let report = ctx.report(&runner).await?;
    ensure!(report["peers"]["withAccess"] == 0, "{report:#}");
    for pool in ["together", "apart"] {
        ctx.delete(pool).await?;
    }
    Ok(())
}
