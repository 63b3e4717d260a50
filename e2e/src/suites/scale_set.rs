//! A pool whose runners follow the queue of its scale set: from none to as many as there are GPUs, and back.

use anyhow::{Context as _, Result, ensure};
use github_simulator::control::{NewOrganization, NewRunnerGroup, ScaleSetView};
use serde_json::{Value, json};

use super::{Ctx, SOON, context::merge};
use crate::deploy;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a node with four GPUs, and a pool of up to six runners
    let since = ctx.last_call().await?;
    let pool = ctx.pool("pool", json!({"scaling": {"maxRunners": 6}}));
    ctx.apply(&pool).await?;

    // Then no runner is there, and GitHub has a scale set that may have as many jobs as there are GPUs
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;
    let set = listened(ctx, 4).await?;
    ensure!(
        set.labels == ["self-hosted", "Linux", "X64", "cuda", "pool"],
        "{set:?}"
    );
    ensure!(
        ctx.pods().await?.is_empty(),
        "a runner is there for nothing"
    );
    let status = ctx.status("pool").await?.scale_set;
    let status = status.context("the status names no scale set")?;
    ensure!(
        u64::try_from(status.id) == Ok(set.id) && status.capacity == 4,
        "{status:?}"
    );

    // When six jobs are queued
    let mut jobs = vec![];
    for number in 0..6 {
        jobs.push(ctx.hold(&format!("job-{number}")).await?);
    }

    // Then four of them run, and two wait where another pool may find them, with pods that ask for more GPUs
    for job in &jobs[..4] {
        ctx.picked_up(*job).await?;
    }
    ctx.wait_for("pods for the jobs that wait", SOON, async || {
        Ok((ctx.pods().await?.len() == 6).then_some(()))
    })
    .await?;
    for job in &jobs[4..] {
        let view = ctx.github.job(*job).await?;
        ensure!(view.scale_set.is_none(), "assigned without a GPU: {view:?}");
    }
    ctx.wait_for("two jobs to wait", SOON, async || {
        let status = ctx.status("pool").await?;
        Ok(((status.busy, status.queued) == (4, 2)).then_some(()))
    })
    .await?;
    ensure!(
        ctx.registrations(since).await? == 0,
        "a runner was registered beside the scale set"
    );

    // When two GPUs more come
    ctx.device(4, |_| {})?;
    ctx.device(5, |_| {})?;

    // Then these run, too
    for job in &jobs[4..] {
        ctx.picked_up(*job).await?;
    }
    killed(ctx, &set, &jobs).await?;
    vanished(ctx, &set).await?;

    // When the pool is deleted, then its scale set goes with it
    ctx.delete("pool").await?;
    let left = one(ctx).await?;
    ensure!(left.is_none(), "a scale set is left: {left:?}");
    organization(ctx).await
}

/// An organization's scale set is in its runner group; and a pool may give its scale set up.
async fn organization(ctx: &Ctx) -> Result<()> {
    let login = ctx.repository.split('/').next().unwrap_or_default();
    let admitted = NewRunnerGroup {
        name: "gpus".to_owned(),
        selected: Some([ctx.repository.clone()].into()),
    };
    let default = NewOrganization {
        login: login.to_owned(),
        ..NewOrganization::default()
    };
    let with_group = NewOrganization {
        groups: vec![admitted],
        ..default.clone()
    };
    ctx.github.create_organization(&with_group).await?;
    let pool = |size: Value| {
        let github =
            json!({"url": format!("{}/{login}", ctx.cluster.github), "runnerGroup": "gpus"});
        let mut pool = ctx.pool("group", size);
        merge(&mut pool["spec"]["github"], github);
        pool
    };
    let sets = async || -> Result<Vec<ScaleSetView>> {
        let mut sets = ctx.github.scale_sets().await?;
        sets.retain(|set| set.scope == login);
        Ok(sets)
    };

    // Given a pool of an organization, then its scale set runs jobs of the repositories that its group admits
    ctx.apply(&pool(json!({"scaling": {"maxRunners": 1}})))
        .await?;
    ctx.condition("group", "QueueServed", "True", "Listening")
        .await?;
    let job = ctx.queue("of-the-organization", "true").await?;
    ctx.succeeded(job).await?;
    let set = sets().await?.pop().context("there is no scale set")?;
    ensure!(set.group != 1, "it is in the default group: {set:?}");

    // When the pool registers its runners itself, then they come and the scale set goes
    ctx.apply(&pool(json!({"replicas": 1}))).await?;
    ctx.condition("group", "RunnersOnline", "True", "Online")
        .await?;
    ctx.wait_for("the scale set to go", SOON, async || {
        Ok(sets().await?.is_empty().then_some(()))
    })
    .await?;
    ctx.delete("group").await?;
    ctx.github.create_organization(&default).await?;
    Ok(())
}

/// The operator is killed while jobs run, and some end before it is back.
async fn killed(ctx: &Ctx, set: &ScaleSetView, jobs: &[u64]) -> Result<()> {
    let session = |set: &ScaleSetView| set.session.clone();
    let listener = session(set);
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    for job in &jobs[..3] {
        ctx.github.release(*job).await?;
    }

    // Then the next one goes on with the same scale set: nothing waits until the old session has run out
    let again = ctx
        .wait_for("the next operator to listen", SOON, async || {
            let found = one(ctx).await?;
            Ok(found.filter(|found| found.session.is_some() && session(found) != listener))
        })
        .await?;
    ensure!(again.id == set.id, "another scale set was made: {again:?}");
    for job in &jobs[3..] {
        ctx.github.release(*job).await?;
    }
    for job in jobs {
        let view = ctx.succeeded(*job).await?;
        ensure!(view.assignments == 1, "{view:?}");
    }

    // And nothing is left when nothing waits
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;
    ctx.wait_for("the runners to go", SOON, async || {
        Ok((ctx.pods().await?.is_empty() && ctx.entries().await?.is_empty()).then_some(()))
    })
    .await
}

/// Somebody removes the scale set, or ends its session.
async fn vanished(ctx: &Ctx, set: &ScaleSetView) -> Result<()> {
    ctx.github.end_session(set.id).await?;
    let job = ctx.queue("after-the-session", "true").await?;
    ctx.succeeded(job).await?;
    ctx.github.delete_scale_set(set.id).await?;
    let job = ctx.queue("after-the-scale-set", "true").await?;
    ctx.succeeded(job).await?;
    let other = listened(ctx, 6).await?;
    ensure!(other.id != set.id, "the scale set was not removed");
    Ok(())
}

/// The suite's scale set, where there is one.
async fn one(ctx: &Ctx) -> Result<Option<ScaleSetView>> {
    let mut sets = ctx.scale_sets().await?;
    ensure!(sets.len() < 2, "more than one scale set: {sets:#?}");
    Ok(sets.pop())
}

/// Waits until somebody listens, and lets so many jobs come.
async fn listened(ctx: &Ctx, capacity: usize) -> Result<ScaleSetView> {
    let what = format!("somebody to listen, for {capacity} jobs");
    ctx.wait_for(&what, SOON, async || {
        let set = one(ctx).await?;
        Ok(set.filter(|set| set.session.is_some() && set.capacity == capacity))
    })
    .await
}

/// The queue of a repository is read instead.
pub(super) async fn polled(ctx: &Ctx) -> Result<()> {
    // Given a pool of up to two runners that reads the queue
    let scaling = json!({"scaling": {"maxRunners": 2, "source": "Poll"}});
    ctx.apply(&ctx.pool("pool", scaling)).await?;
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;

    // When three jobs are queued, then two run at a time, and the third comes after them
    let mut jobs = vec![];
    for number in 0..3 {
        jobs.push(ctx.hold(&format!("job-{number}")).await?);
    }
    ctx.picked_up(jobs[0]).await?;
    ctx.picked_up(jobs[1]).await?;
    ensure!(ctx.pods().await?.len() == 2, "more runners than two");
    ctx.github.release(jobs[0]).await?;
    ctx.picked_up(jobs[2]).await?;
    for job in &jobs[1..] {
        ctx.github.release(*job).await?;
    }
    for job in jobs {
        ctx.succeeded(job).await?;
    }

    // And none is left when nothing waits
    ctx.wait_for("the runners to go", SOON, async || {
        Ok((ctx.pods().await?.is_empty() && ctx.entries().await?.is_empty()).then_some(()))
    })
    .await?;
    ctx.condition("pool", "Ready", "True", "ScaledToZero")
        .await?;
    ensure!(one(ctx).await?.is_none(), "a scale set was made");
    Ok(())
}
