//! What a runner costs, by counting requests, that an idle pool costs nothing, and that many pools read what one reads.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use cudarunner_crds::{CudaRunner, MAX_LAST_JOBS};
use futures::future::try_join_all;
use github_simulator::state::Seen;
use kube::{Api, api::ListParams};
use serde_json::json;

use super::context::is_read_of_jobs;
use super::{Ctx, SOON};
use crate::audit::{Audit, Request};

/// Runners that are counted. With fewer, what begins and ends such a series would count for much.
const RUNNERS: usize = 12;
/// Kubernetes requests of ours for one runner, its whole life long: its pod is made, the image is changed, the pod is deleted.
const KUBERNETES: usize = 3;
/// Kubernetes requests for what is gathered: the status, and the Event of jobs that have ended.
const GATHERED: usize = 2;
/// While jobs end one after another, that is written once in so many seconds.
const GATHER: u64 = 30;
/// Beside these: what comes before and after the series.
const AROUND: usize = 4;
/// Calls to GitHub for one runner.
const GITHUB: usize = 1;
/// Calls to GitHub for one run, to learn how its jobs ended.
const READS: usize = 1;
/// GitHub is read whatever happens once in so many seconds.
const SWEEP: u64 = 300;
/// How long nothing must happen.
const IDLE: Duration = Duration::from_mins(1);
/// Pools of one repository.
const POOLS: usize = 100;
/// Pools that start within this time share what they read.
const SHARED: u64 = 5;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool at rest
    ctx.apply(&ctx.pool("pool", json!({"replicas": 2}))).await?;
    ctx.idle("pool", 2).await?;
    let mut audit = Audit::from_now(&ctx.cluster)?;
    let swept = swept(ctx, &mut audit, "first").await?;

    // When runners come and go
    let begun = Instant::now();
    let mark = ctx.last_call().await?;
    for number in 0..RUNNERS {
        let job = ctx.queue(&format!("job-{number}"), "true").await?;
        ctx.succeeded(job).await?;
    }
    ctx.idle("pool", 2).await?;
    ctx.concluded("pool", RUNNERS.min(MAX_LAST_JOBS)).await?;
    let requests = audit.settled(SOON, async || Ok(true)).await?;
    let calls = ctx.calls(mark).await?;
    let seconds = begun.elapsed().as_secs();

    // Then each has cost what it may
    let shown = summary(&requests);
    let gathered = usize::try_from(seconds / GATHER)? + AROUND;
    ensure!(
        requests.len() <= KUBERNETES * RUNNERS + GATHERED * gathered,
        "{} Kubernetes requests for {RUNNERS} runners within {seconds} s: {shown}",
        requests.len()
    );
    let (reads, others): (Vec<_>, Vec<_>) = calls.iter().partition(|call| is_read_of_jobs(call));
    let sweeps = usize::try_from(seconds / SWEEP)?;
    ensure!(
        others.len() <= GITHUB * RUNNERS + swept * sweeps,
        "{} calls to GitHub for {RUNNERS} runners within {seconds} s: {others:#?}",
        others.len()
    );
    // Each job is a run of its own here.
    ensure!(
        reads.len() <= READS * RUNNERS,
        "{} reads of {RUNNERS} runs: {reads:#?}",
        reads.len()
    );
    // As many as there were runners, or something was not counted.
    ensure!(ctx.registrations(mark).await? == RUNNERS, "{calls:#?}");
    // A gate repeats its report until the change has come to it: the operator does not.
    let changes = requests.iter().filter(|request| request.is_image_change());
    ensure!(changes.count() == RUNNERS, "{shown}");

    idle(ctx, &mut audit).await?;
    many_pools(ctx).await
}

/// Has the operator read GitHub now, so that it does not do so by itself while something is counted; waits until it has
/// nothing left to do. Gives the number of its calls.
async fn swept(ctx: &Ctx, audit: &mut Audit, ask: &str) -> Result<usize> {
    let mark = ctx.last_call().await?;
    ctx.look_again("pool", ask).await?;
    audit.settled(SOON, async || Ok(true)).await?;
    Ok(ctx.calls(mark).await?.len())
}

async fn idle(ctx: &Ctx, audit: &mut Audit) -> Result<()> {
    // When nothing happens for a while
    swept(ctx, audit, "idle").await?;
    let mark = ctx.last_call().await?;
    audit.new_calls()?;
    tokio::time::sleep(IDLE).await;

    // Then neither is asked anything
    let requests = audit.new_calls()?;
    ensure!(
        requests.is_empty(),
        "requests of an idle pool: {}",
        summary(&requests)
    );
    let calls = ctx.calls(mark).await?;
    ensure!(calls.is_empty(), "calls of an idle pool: {calls:#?}");
    Ok(())
}

/// What is read at GitHub does not grow with the pools of a repository.
async fn many_pools(ctx: &Ctx) -> Result<()> {
    let one = start(ctx, "one", 1).await?.len();
    let started = Instant::now();
    let calls = start(ctx, "many", POOLS).await?;
    let times = usize::try_from(started.elapsed().as_secs() / SHARED + 1)?;
    ensure!(
        calls.len() <= one * times,
        "{POOLS} pools read {} times, one pool {one} times: {calls:#?}",
        calls.len()
    );
    Ok(())
}

/// Makes so many pools that want no runner; gives what was asked of GitHub until all of them have been let in.
async fn start(ctx: &Ctx, name: &str, count: usize) -> Result<Vec<Seen>> {
    let mark = ctx.last_call().await?;
    let pools: Vec<_> = (0..count)
        .map(|number| ctx.pool(&format!("{name}-{number}"), json!({"replicas": 0})))
        .collect();
    try_join_all(pools.iter().map(|pool| ctx.apply(pool))).await?;
    let api: Api<CudaRunner> = ctx.api();
    ctx.wait_for("all pools to be ready", SOON, async || {
        let mut all = api.list(&ListParams::default()).await?.items;
        all.retain(|pool| {
            let is_one = |of: &String| of.starts_with(&format!("{name}-"));
            pool.metadata.name.as_ref().is_some_and(is_one) && is_ready(pool)
        });
        Ok((all.len() == count).then_some(()))
    })
    .await?;
    ctx.calls(mark).await
}

fn is_ready(pool: &CudaRunner) -> bool {
    let conditions = pool.status.iter().flat_map(|status| &status.conditions);
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn summary(requests: &[Request]) -> String {
    let mut lines: Vec<_> = requests
        .iter()
        .map(|request| format!("{} {}", request.verb, request.resource))
        .collect();
    lines.sort();
    let mut shown = String::new();
    for group in lines.chunk_by(|one, other| one == other) {
        // Writing to a string cannot fail.
        let _ = write!(shown, "{} × {}; ", group.len(), group[0]);
    }
    shown
}
