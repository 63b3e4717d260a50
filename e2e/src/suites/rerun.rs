//! A job that a broken GPU or an evicted pod ended is run again and is green; what ended by itself, or by somebody's wish,
//! is not run again.

mod evicted;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{RerunCause, RerunState, RerunStatus};
use github_simulator::{
    control::{JobView, NewRun},
    state::{Conclusion, Seen},
};
use serde_json::{Value, json};

use super::{Ctx, SOON, metrics};
use crate::device_plugin::state::{self, Device};

const POOL: &str = "again";

/// Red when its GPU vanishes; green in another attempt.
const JOB: &str = r#"
[ "$GITHUB_RUN_ATTEMPT" = 1 ] || exit 0
echo begun
while : </dev/nvidiactl; do sleep 0.1; done 2>/dev/null
exit 1
"#;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool that has all four GPUs of the node: the next gate meets the one that is free
    let rerun = json!({"onGpuFault": true, "onNodeLoss": true});
    let spec = json!({"replicas": 4, "rerun": rerun});
    ctx.apply(&ctx.pool(POOL, spec)).await?;
    ctx.idle(POOL, 4).await?;
    red_by_itself(ctx).await?;
    by_somebodys_wish(ctx).await?;
    a_gpu_breaks(ctx).await?;
    ctx.delete(POOL).await?;
    ctx.devices(|_| {})?;
    evicted::run(ctx).await?;
    ctx.no_violations().await
}

/// The last attempt of a job's run, by the job's number in the first one.
pub(super) async fn last_attempt(ctx: &Ctx, job: u64) -> Result<JobView> {
    let run = ctx.github.job(job).await?.run;
    let jobs = ctx.github.jobs().await?.into_iter();
    let of_run = jobs.filter(|job| job.run == run);
    of_run
        .max_by_key(|job| job.attempt)
        .context("the run has no job")
}

/// Waits until the status has an entry of a runner in one of these states.
pub(super) async fn entry(
    ctx: &Ctx,
    pool: &str,
    runner: &str,
    state: RerunState,
) -> Result<RerunStatus> {
    let what = format!("the job of {runner} to be {state:?}");
    ctx.wait_for(&what, SOON, async || {
        let reruns = ctx.status(pool).await?.reruns;
        Ok(reruns
            .into_iter()
            .find(|entry| entry.runner == runner && entry.state == state))
    })
    .await
}

/// Whether a call asks GitHub to run jobs again.
pub(super) fn is_rerun(call: &Seen) -> bool {
    call.path.ends_with("/rerun") || call.path.ends_with("/rerun-failed-jobs")
}

/// Nothing was asked of GitHub, and nothing is in the status.
async fn nothing_is_run_again(ctx: &Ctx, mark: u64, job: u64) -> Result<()> {
    let reruns = ctx.status(POOL).await?.reruns;
    ensure!(reruns.is_empty(), "{reruns:#?}");
    let calls = ctx.own_calls(mark).await?;
    ensure!(!calls.iter().any(is_rerun), "{calls:#?}");
    ensure!(last_attempt(ctx, job).await?.attempt == 1);
    Ok(())
}

async fn red_by_itself(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    // When a job is red, and the next gate on its device passes
    let job = ctx.queue("red", "exit 1").await?;
    let runner = ctx.ended(job).await?.runner.unwrap_or_default();
    ctx.gone(&runner).await?;
    ctx.idle(POOL, 4).await?;
    ctx.concluded(POOL, 1).await?;
    // Then that is all
    nothing_is_run_again(ctx, mark, job).await
}

async fn by_somebodys_wish(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    let job = ctx.hold("unwanted").await?;
    let view = ctx.picked_up(job).await?;
    ctx.github.cancel_run(view.run).await?;
    let view = ctx.ended(job).await?;
    ensure!(view.conclusion == Some(Conclusion::Cancelled), "{view:?}");
    ctx.concluded(POOL, 2).await?;
    ctx.idle(POOL, 4).await?;
    nothing_is_run_again(ctx, mark, job).await
}

async fn a_gpu_breaks(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    // Given a job in the middle of its work
    let job = ctx.queue("train", JOB).await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    ctx.wait_for("the job's own steps", SOON, async || {
        let log = ctx.github.job_log(job).await?;
        Ok(log.contains("begun").then_some(()))
    })
    .await?;
    // When its GPU vanishes, and computes wrongly from then on
    let devices = ctx.devices_of(POOL, &runner).await?;
    let uuid = devices.into_iter().next().context("no device")?;
    let number = number(&uuid)?;
    ctx.device(number, Device::compute_wrongly)?;
    state::take(&ctx.cluster.devices(), &uuid)?;
    // ... while the same workflow runs for a stranger, whose fork has a branch of the same name
    let theirs = NewRun {
        repository: ctx.repository.clone(),
        workflow: "ad-hoc.yml".to_owned(),
        event: "pull_request".to_owned(),
        fork: Some("stranger/cuda".to_owned()),
        conclusion: Some(Conclusion::Success),
        ..NewRun::default()
    };
    ctx.github.start_run(&theirs).await?;
    let view = ctx.ended(job).await?;
    ensure!(view.conclusion == Some(Conclusion::Failure), "{view:?}");

    // Then the next gate finds that, and the job is run again, on another device
    let entry = entry(ctx, POOL, &runner, RerunState::Started).await?;
    ensure!(
        entry.cause == RerunCause::GpuFault
            && entry.device.as_ref() == Some(&uuid)
            && entry.code_name.as_deref() == Some("WrongResult")
            && entry.attempt == Some(1),
        "{entry:#?}"
    );
    let second = last_attempt(ctx, job).await?;
    ensure!(second.attempt == 2, "{second:?}");
    let second = ctx.succeeded(second.id).await?;
    ensure!(second.runner.is_some_and(|other| other != runner));
    // ... by one request for that job alone, and it is counted
    let calls = ctx.own_calls(mark).await?;
    let asked: Vec<&Seen> = calls.iter().filter(|call| is_rerun(call)).collect();
    let own = format!("/actions/jobs/{job}/rerun");
    ensure!(
        matches!(&asked[..], [one] if one.path.ends_with(&own)),
        "{asked:#?}"
    );
    let labels = r#",cause="GpuFault",result="Started""#;
    let series = metrics::series(ctx, "reruns_total", POOL, labels);
    metrics::shown(ctx, &series, |count| count == 1).await?;
    // ... and the status has how each attempt ended
    ctx.wait_for("both attempts with their ends", SOON, async || {
        let jobs = ctx.status(POOL).await?.last_jobs.into_iter();
        let run = jobs.filter(|job| job.run_id == Some(entry.run_id));
        let ends: BTreeMap<_, _> = run.map(|job| (job.attempt, job.conclusion)).collect();
        let as_said = [(1, "failure"), (2, "success")];
        Ok(ends
            .into_iter()
            .eq(as_said.map(|(n, end)| (Some(n), Some(end.to_owned()))))
            .then_some(()))
    })
    .await?;
    told(ctx, &uuid).await
}

/// In an Event, and on the commit.
async fn told(ctx: &Ctx, uuid: &str) -> Result<()> {
    ctx.wait_for("an Event of it", SOON, async || {
        let mut events = ctx.events("JobRunAgain").await?.into_iter();
        Ok(events.find(|e| e.note.as_ref().is_some_and(|note| note.contains("train"))))
    })
    .await?;
    let state = ctx.github.state().await?;
    let notes = state.passing["notes"].as_array().cloned();
    let own = |note: &&Value| note["repository"] == ctx.repository;
    let notes: Vec<Value> = notes.iter().flatten().filter(own).cloned().collect();
    let [note] = notes.as_slice() else {
        anyhow::bail!("the notes on the commit are {notes:#?}");
    };
    let summary = note["summary"].as_str().unwrap_or_default();
    // Device, what was found, and the report
    let parts = [
        format!("- Device: {uuid}"),
        "- Found: WrongResult".to_owned(),
        "- Report: The next gate on the job's device failed: ".to_owned(),
    ];
    let is_told = parts.iter().all(|part| summary.contains(part));
    ensure!(note["conclusion"] == "neutral" && is_told, "{note:#}");
    Ok(())
}

/// The number of a device of the node, by its UUID.
fn number(uuid: &str) -> Result<usize> {
    let last = uuid.rsplit('-').next().unwrap_or_default();
    Ok(usize::from_str_radix(last, 16)?)
}
