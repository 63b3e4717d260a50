//! After a deletion GitHub holds what it held before, byte for byte; a job in progress is waited for.

use anyhow::{Result, ensure};
use cudarunner_crds::CudaRunner;
use github_simulator::control::NewRunner;
use kube::{Api, api::DeleteParams};
use serde_json::json;

use super::Ctx;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a repository with a runner of its user's, and a pool of three with one at work
    let own = NewRunner {
        scope: ctx.repository.clone(),
        name: "by-hand".to_owned(),
        labels: vec!["cuda".to_owned()],
    };
    let own = ctx.github.create_runner(&own).await?;
    let job = ctx.hold("long").await?;
    let before = ctx.github.state().await?.lasting;
    ctx.apply(&ctx.pool("pool", json!({"replicas": 3}))).await?;
    ctx.picked_up(job).await?;
    ctx.idle("pool", 2).await?;

    // When the pool is deleted
    let pools: Api<CudaRunner> = ctx.api();
    pools.delete("pool", &DeleteParams::default()).await?;

    // Then the idle ones go and the busy one finishes its job
    ctx.wait_for("the idle runners to go", super::SOON, async || {
        Ok((ctx.entries().await?.len() == 2).then_some(()))
    })
    .await?;
    ensure!(
        pools.get_opt("pool").await?.is_some(),
        "the resource is gone while a job runs"
    );
    ensure!(
        ctx.github.job(job).await?.conclusion.is_none(),
        "the job was cut short"
    );
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    ctx.wait_for("the pool to be gone", super::SOON, async || {
        Ok(pools.get_opt("pool").await?.is_none().then_some(()))
    })
    .await?;

    // And how the last job ended was reported
    ctx.wait_for("an Event of the last job", super::SOON, async || {
        let reported = ctx.events("JobCompleted").await?;
        let mut notes = reported.iter().filter_map(|event| event.note.as_deref());
        Ok(notes.any(|note| note.contains("long")).then_some(()))
    })
    .await?;

    // And everything is as before, the user's own runner included
    let after = ctx.github.state().await?.lasting;
    ensure!(after == before, "before {before:#}, after {after:#}");
    ctx.wait_for("the pods to be gone", super::SOON, async || {
        Ok(ctx.pods().await?.is_empty().then_some(()))
    })
    .await?;
    ctx.github.delete_runner(own).await?;
    the_policy_now_does_not_wait(ctx).await
}

async fn the_policy_now_does_not_wait(ctx: &Ctx) -> Result<()> {
    // Given a pool that may not wait for jobs
    ctx.apply(&ctx.pool("now", json!({"deletionPolicy": "Now"})))
        .await?;
    ctx.idle("now", 1).await?;
    let job = ctx.hold("endless").await?;
    ctx.picked_up(job).await?;
    // When it is deleted, then it goes at once, and so does its entry
    ctx.delete("now").await?;
    ctx.wait_for("the entry to go", super::SOON, async || {
        Ok(ctx.entries().await?.is_empty().then_some(()))
    })
    .await?;
    Ok(())
}
