//! The operator's metrics say what has happened, and nothing of a pool that is gone.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::LOOK_AGAIN;
use serde_json::json;

use super::{Ctx, SOON};
use crate::deploy;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    // Given a runner that has had its job, and the next one
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    let first = ctx.idle("pool", 1).await?.remove(0);
    let job = ctx.queue("job", "true").await?;
    ctx.succeeded(job).await?;
    ctx.other_idle("pool", &first).await?;
    ctx.gone(&first).await?;

    // Then two gates have passed, two registrations were made, and one runner waits
    for (metric, labels, count) in [
        ("runners", r#",phase="Idle""#, 1),
        ("runners_wanted", "", 1),
        ("pool_condition", r#",condition="Ready""#, 1),
        ("breaker_open", "", 0),
        (
            "gate_outcomes_total",
            r#",class="",code="",product="NVIDIA A100-SXM4-40GB""#,
            2,
        ),
        ("gate_duration_seconds_count", "", 2),
        ("registrations_total", r#",result="ok""#, 2),
        ("jobs_total", r#",conclusion="success""#, 1),
        ("job_queued_seconds_count", "", 1),
        ("job_duration_seconds_count", "", 1),
    ] {
        let series = series(ctx, metric, "pool", labels);
        shown(ctx, &series, |value| value == count).await?;
    }
    shown(ctx, "cudarunner_first_online_seconds_count", |value| {
        value >= 1
    })
    .await?;
    // And as many requests are counted as GitHub has seen
    requests_are_those_that_github_saw(ctx, mark).await?;

    what_waits(ctx).await?;
    a_failed_gate(ctx).await?;
    what_a_pool_can_run(ctx).await
}

async fn what_waits(ctx: &Ctx) -> Result<()> {
    // Given a busy runner, and a job that waits for it; when somebody has the queue read
    let held = ctx.hold("held").await?;
    ctx.picked_up(held).await?;
    let waits = ctx.queue("waits", "true").await?;
    ctx.annotate("pool", LOOK_AGAIN, "now").await?;
    // Then one job waits, and for how long
    shown(ctx, &series(ctx, "queued_jobs", "pool", ""), |jobs| {
        jobs == 1
    })
    .await?;
    let age = series(ctx, "oldest_queued_job_seconds", "pool", "");
    shown(ctx, &age, |age| age >= 1).await?;
    // And when it is over, then none does
    ctx.github.release(held).await?;
    ctx.succeeded(waits).await?;
    ctx.annotate("pool", LOOK_AGAIN, "again").await?;
    shown(ctx, &series(ctx, "queued_jobs", "pool", ""), |jobs| {
        jobs == 0
    })
    .await?;
    ensure!(
        value(&page(ctx).await?, &age).is_none(),
        "no job waits, and the oldest has an age"
    );
    Ok(())
}

async fn what_a_pool_can_run(ctx: &Ctx) -> Result<()> {
    // Given a pool that scales, to one runner at most
    let one = json!({"scaling": {"maxRunners": 1}});
    ctx.apply(&ctx.pool("elastic", one)).await?;
    // Then it says how many jobs it can run, and why no more
    for (metric, labels) in [
        ("job_capacity", ""),
        ("job_capacity_limit", r#",limit="MaxRunners""#),
    ] {
        let series = series(ctx, metric, "elastic", labels);
        shown(ctx, &series, |value| value == 1).await?;
    }
    // When it may have more than there are GPUs, then these are what limits it
    let many = json!({"scaling": {"maxRunners": 64}});
    ctx.apply(&ctx.pool("elastic", many)).await?;
    let limit = series(ctx, "job_capacity_limit", "elastic", r#",limit="GPUs""#);
    shown(ctx, &limit, |value| value == 1).await?;
    let page = page(ctx).await?;
    let can_run = value(&page, &series(ctx, "job_capacity", "elastic", ""));
    ensure!(can_run.is_some_and(|jobs| jobs < 64), "{can_run:?}");
    ctx.delete("elastic").await
}

async fn a_failed_gate(ctx: &Ctx) -> Result<()> {
    // When another pool's gate fails
    ctx.devices(|device| {
        let fault = json!({"call": "cuModuleLoadDataEx", "code": 222});
        device.faults.push(fault);
    })?;
    ctx.apply(&ctx.pool("broken", json!({}))).await?;
    ctx.condition("broken", "Stalled", "True", "GateFailed")
        .await?;

    // Then it is counted by class, code and product
    for (metric, labels) in [
        (
            "gate_outcomes_total",
            r#",class="config",code="CUDA_ERROR_UNSUPPORTED_PTX_VERSION",product="NVIDIA A100-SXM4-40GB""#,
        ),
        (
            "runner_failures_total",
            r#",class="config",reason="GateFailed""#,
        ),
        ("pool_condition", r#",condition="Stalled""#),
    ] {
        let series = series(ctx, metric, "broken", labels);
        shown(ctx, &series, |value| value >= 1).await?;
    }

    // And when that pool is deleted, then nothing is left of it
    ctx.delete("broken").await?;
    ctx.wait_for(
        "the metrics of a deleted pool to be gone",
        SOON,
        async || {
            let page = page(ctx).await?;
            Ok((!page.contains(r#"pool="broken""#)).then_some(()))
        },
    )
    .await
}

pub(super) fn series(ctx: &Ctx, metric: &str, pool: &str, labels: &str) -> String {
    let namespace = &ctx.namespace;
    format!(r#"cudarunner_{metric}{{namespace="{namespace}",pool="{pool}"{labels}}}"#)
}

/// The metrics of the only operator there is.
pub(super) async fn page(ctx: &Ctx) -> Result<String> {
    let pages = deploy::metrics(&ctx.client).await?;
    pages.into_iter().next().context("no operator is ready")
}

pub(super) fn value(page: &str, series: &str) -> Option<u64> {
    let mut lines = page.lines();
    lines.find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Waits until a series has such a value: a reconcile may yet have to see what happened.
pub(super) async fn shown(ctx: &Ctx, series: &str, is_right: impl Fn(u64) -> bool) -> Result<()> {
    let mut last = None;
    let found = ctx
        .wait_for(series, SOON, async || {
            last = value(&page(ctx).await?, series);
            Ok(last.is_some_and(&is_right).then_some(()))
        })
        .await;
    found.with_context(|| format!("it has the value {last:?}"))
}

async fn requests_are_those_that_github_saw(ctx: &Ctx, mark: u64) -> Result<()> {
    let namespace = &ctx.namespace;
    let info = format!(r#"cudarunner_pool_info{{namespace="{namespace}",pool="pool",credential=""#);
    let page = page(ctx).await?;
    let credential = page
        .lines()
        .find_map(|line| line.strip_prefix(&info)?.split('"').next())
        .context("the pool has no credential")?
        .to_owned();
    ensure!(
        credential.len() == 8,
        "{credential} is no hash of eight digits"
    );
    let mut last = (0, 0);
    let equal = ctx
        .wait_for("equal counts of requests", SOON, async || {
            // GitHub's count last: a request that comes between is counted there alone, and asked for again.
            let page = self::page(ctx).await?;
            let prefix = format!(r#"cudarunner_github_requests_total{{credential="{credential}""#);
            let counted = page.lines().filter(|line| line.starts_with(&prefix));
            let counted: u64 = counted
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum();
            let seen = u64::try_from(ctx.calls(mark).await?.len())?;
            last = (counted, seen);
            Ok((counted == seen).then_some(()))
        })
        .await;
    equal.with_context(|| format!("counted {}, GitHub has seen {}", last.0, last.1))
}
