//! A device whose gates pass and whose jobs fail: it is named, and used as before.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Ctx, SOON};

/// Runners, one for each device of the node: whichever is free is taken, so all get about as many jobs.
const RUNNERS: usize = 4;
/// Jobs: twice as many for each device as are looked at.
const JOBS: usize = RUNNERS * 16;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a runner on each of the node's devices
    ctx.apply(&ctx.pool("pool", json!({"replicas": RUNNERS})))
        .await?;
    ctx.idle("pool", RUNNERS).await?;
    let runners = ctx.status("pool").await?.runners;
    let runner = runners.first().context("no runner")?;
    let devices = ctx.devices_of("pool", &runner.name).await?;
    let bad = devices.first().context("no device")?;
    // When the jobs on one of them fail, and no others
    let script = format!(r#"case "$NVIDIA_VISIBLE_DEVICES" in *{bad}*) exit 1;; esac"#);
    for number in 0..JOBS {
        ctx.queue(&format!("job-{number}"), &script).await?;
    }
    // Then the pool's status counts them, and names that device and no other
    let what = format!("{bad} to be suspect");
    let suspects = ctx
        .wait_for(&what, Duration::from_mins(10), async || {
            let mut devices = ctx.status("pool").await?.devices;
            devices.retain(|device| device.suspect);
            Ok((!devices.is_empty()).then_some(devices))
        })
        .await?;
    let [suspect] = suspects.as_slice() else {
        anyhow::bail!("more than {bad} is suspect: {suspects:?}");
    };
    ensure!(
        suspect.uuid == *bad && suspect.jobs >= 8 && suspect.failed == suspect.jobs,
        "{suspect:?}"
    );
    // And an Event says so, once
    let told = ctx
        .wait_for("the Event DeviceSuspect", SOON, async || {
            let mut events = ctx.events("DeviceSuspect").await?;
            Ok(events.pop())
        })
        .await?;
    let note = told.note.unwrap_or_default();
    ensure!(note.contains(bad), "{note}");
    // And nothing else follows: how a job ends is for its user to say
    let status = ctx.status("pool").await?;
    ensure!(
        status.quarantine.is_empty() && status.last_failures.is_empty(),
        "{status:?}"
    );
    ctx.delete("pool").await
}
