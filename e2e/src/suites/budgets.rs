//! What a runner costs, by counting requests, and that an idle pool costs nothing.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;

use super::Ctx;
use crate::audit::{Audit, Request};

/// Runners that are counted.
const RUNNERS: usize = 8;
/// Kubernetes requests of ours for one runner, its whole life long, its share of the status included.
const KUBERNETES: usize = 4;
/// Calls to GitHub for one runner.
const GITHUB: usize = 1;
/// How long nothing must happen.
const IDLE: Duration = Duration::from_mins(1);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool at rest
    ctx.apply(&ctx.pool("pool", json!({"replicas": 2}))).await?;
    ctx.idle("pool", 2).await?;
    let mut audit = Audit::from_now(&ctx.cluster)?;
    settled(ctx, &mut audit).await?;

    // When runners come and go
    let mark = ctx.last_call().await?;
    for number in 0..RUNNERS {
        let job = ctx.queue(&format!("job-{number}"), "true").await?;
        ctx.succeeded(job).await?;
    }
    ctx.idle("pool", 2).await?;
    let requests = settled(ctx, &mut audit).await?;

    // Then each has cost what it may
    let shown = summary(&requests);
    ensure!(
        requests.len() <= KUBERNETES * RUNNERS,
        "{} Kubernetes requests for {RUNNERS} runners: {shown}",
        requests.len()
    );
    let calls = ctx.calls(mark).await?;
    ensure!(
        calls.len() <= GITHUB * RUNNERS,
        "{} calls to GitHub for {RUNNERS} runners: {calls:#?}",
        calls.len()
    );
    // As many as there were runners, or something was not counted.
    ensure!(ctx.registrations(mark).await? == RUNNERS, "{calls:#?}");
    ensure!(
        requests
            .iter()
            .filter(|request| request.is_review())
            .count()
            == RUNNERS,
        "{shown}"
    );

    // When nothing happens for a while
    let mark = ctx.last_call().await?;
    audit.new_requests()?;
    tokio::time::sleep(IDLE).await;

    // Then neither is asked anything
    let requests = ours(audit.new_requests()?);
    ensure!(
        requests.is_empty(),
        "requests of an idle pool: {}",
        summary(&requests)
    );
    let calls = ctx.calls(mark).await?;
    ensure!(calls.is_empty(), "calls of an idle pool: {calls:#?}");
    Ok(())
}

/// Waits until ten seconds have passed without a request: the last status is written. Gives what came until then.
async fn settled(ctx: &Ctx, audit: &mut Audit) -> Result<Vec<Request>> {
    let mut all = Vec::new();
    let mut last = tokio::time::Instant::now();
    ctx.wait_for(
        "the operator to have nothing left to do",
        super::SOON,
        async || {
            let new = ours(audit.new_requests()?);
            if !new.is_empty() {
                last = tokio::time::Instant::now();
            }
            all.extend(new);
            Ok((last.elapsed() > Duration::from_secs(10)).then_some(()))
        },
    )
    .await?;
    Ok(all)
}

/// Watches are long-lived and shared by all pools; the server ends and we renew each every few minutes.
fn ours(requests: Vec<Request>) -> Vec<Request> {
    requests
        .into_iter()
        .filter(|request| request.verb != "watch")
        .collect()
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
