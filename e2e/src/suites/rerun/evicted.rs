//! Jobs whose pods are evicted: several of a run are run again at once, when it is over; none that a newer commit has
//! outrun, none beyond the limit, and no more than a pool may hide behind.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{RerunCause, RerunState, RerunStatus};
use futures::future::try_join_all;
use github_simulator::{
    control::{JobView, NewBranch, NewRun, NewWorkflow, UpdateRepository},
    state::{JobTemplate, Seen},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::EvictParams};
use serde_json::json;

use super::{entry, is_rerun};
use crate::suites::{Ctx, SOON, context::job};

const POOL: &str = "evicted";
/// Devices of the node.
const DEVICES: usize = 20;
/// Jobs that a pool runs again within an hour.
const MOST: usize = 16;
/// Jobs of other runs: with the two of one run they are more than that.
const OTHERS: usize = 15;
/// So that a step has begun, and with it the job's mark is written.
const STEP: &str = "echo begun";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a node with many devices, and runners for three jobs of a run, and for one of another
    for number in 0..DEVICES {
        ctx.device(number, |_| {})?;
    }
    let spec = json!({
        "replicas": 4, "smoke": {"timeoutSeconds": 120}, "rerun": {"onNodeLoss": true}, "deletionPolicy": "Now",
    });
    ctx.apply(&ctx.pool(POOL, spec)).await?;
    ctx.idle(POOL, 4).await?;
    let mark = ctx.last_call().await?;
    let [left, right, stays] = three_of_a_run(ctx).await?;
    let outrun = begun(ctx, hold(ctx, "outrun").await?).await?;

    let others = the_run_goes_on(ctx, mark, [&left, &right]).await?;
    one_request_for_both(ctx, mark, [&left, &right], &stays, &outrun).await?;
    no_more_than_a_pool_may_hide_behind(ctx, &left, &others).await?;
    ctx.delete(POOL).await
}

/// Two jobs wait for the end of their run, as a third one of it goes on. Meanwhile the branch gets a commit, for which the
/// workflow of the other run runs: gives these runs' jobs.
async fn the_run_goes_on(ctx: &Ctx, mark: u64, both: [&JobView; 2]) -> Result<Vec<u64>> {
    // When the pods of two are evicted
    evict(ctx, both).await?;
    for job in both {
        let entry = entry(ctx, POOL, runner(job)?, RerunState::Waiting).await?;
        ensure!(entry.cause == RerunCause::NodeLoss, "{entry:#?}");
    }
    push(ctx).await?;
    ctx.scale(POOL, OTHERS + 4).await?;
    let names = (0..OTHERS).map(|number| format!("other-{number}"));
    let others = try_join_all(names.map(async |name| hold(ctx, &name).await)).await?;
    // Then GitHub is asked how the run is, and for nothing else
    let read = format!("/actions/runs/{}", both[0].run);
    ctx.wait_for("the run to be read", SOON, async || {
        let calls = ctx.own_calls(mark).await?;
        let mut reads = calls.iter().filter(|call| call.method == "GET");
        Ok(reads.any(|call| call.path.ends_with(&read)).then_some(()))
    })
    .await?;
    let asked = reruns(ctx, mark).await?;
    ensure!(asked.is_empty(), "{asked:#?}");
    Ok(others)
}

async fn one_request_for_both(
    ctx: &Ctx,
    mark: u64,
    both: [&JobView; 2],
    stays: &JobView,
    outrun: &JobView,
) -> Result<()> {
    // When the other run's pod is evicted, too, and the third job ends
    evict(ctx, [outrun]).await?;
    let over = ctx.last_call().await?;
    ctx.github.release(stays.id).await?;
    ctx.succeeded(stays.id).await?;
    // Then the two are run again, by one request, which comes after that
    for job in both {
        let entry = entry(ctx, POOL, runner(job)?, RerunState::Started).await?;
        ensure!(entry.attempt == Some(1), "{entry:#?}");
    }
    // ... and the one of an older commit is not, and its entry says why
    let skipped = entry(ctx, POOL, runner(outrun)?, RerunState::Skipped).await?;
    is_for(&skipped, "RerunNotNeeded", "newer commit")?;
    let asked = reruns(ctx, mark).await?;
    let path = format!("/actions/runs/{}/rerun-failed-jobs", stays.run);
    ensure!(
        matches!(&asked[..], [one] if one.n > over && one.path.ends_with(&path)),
        "{asked:#?}"
    );
    // ... nor the third one, which went well
    let all = attempts(ctx, stays.run).await?;
    let again: Vec<&str> = all
        .iter()
        .filter(|job| job.attempt == 2)
        .map(|job| job.key.as_str())
        .collect();
    ensure!(again == ["left", "right"], "{all:#?}");
    Ok(())
}

async fn no_more_than_a_pool_may_hide_behind(
    ctx: &Ctx,
    first: &JobView,
    others: &[u64],
) -> Result<()> {
    // Given the second attempts of the two, and the jobs of many runs
    let mut again = attempts(ctx, first.run).await?;
    again.retain(|job| job.attempt == 2);
    let [goes_well, dies] = &again[..] else {
        anyhow::bail!("{again:#?}");
    };
    begun(ctx, goes_well.id).await?;
    let dies = begun(ctx, dies.id).await?;
    let others = others.iter().map(async |job| begun(ctx, *job).await);
    let others = try_join_all(others).await?;
    // When the pods of all but one are evicted, all others at once; nobody needs more in their places
    ctx.scale(POOL, 0).await?;
    evict(ctx, [&dies]).await?;
    entry(ctx, POOL, runner(&dies)?, RerunState::Waiting).await?;
    evict(ctx, &others).await?;
    ctx.github.release(goes_well.id).await?;
    ctx.succeeded(goes_well.id).await?;

    // Then a second attempt is left at that
    let last = entry(ctx, POOL, runner(&dies)?, RerunState::Skipped).await?;
    is_for(&last, "RerunLimit", "attempt 2")?;
    let all = attempts(ctx, first.run).await?;
    ensure!(all.iter().all(|job| job.attempt <= 2), "{all:#?}");
    // ... and of the others all are listed, some of which are not run again: the pool looks as sick as it is
    let runners: Vec<&str> = others.iter().map(runner).collect::<Result<_>>()?;
    let listed = ctx
        .wait_for("the jobs of all pods to be listed", SOON, async || {
            let mut listed = ctx.status(POOL).await?.reruns;
            listed.retain(|entry| runners.contains(&entry.runner.as_str()));
            Ok((listed.len() == OTHERS).then_some(listed))
        })
        .await?;
    let (paused, counted): (Vec<_>, Vec<_>) = listed
        .iter()
        .partition(|entry| entry.state == RerunState::Skipped);
    ensure!(
        !paused.is_empty() && counted.len() <= MOST - 2,
        "{listed:#?}"
    );
    for entry in &paused {
        is_for(entry, "RerunsPaused", "as sick as it is")?;
        let job = others
            .iter()
            .find(|job| job.runner.as_ref() == Some(&entry.runner));
        let run = job.context("its job")?.run;
        ensure!(attempts(ctx, run).await?.len() == 1, "{entry:#?}");
    }
    ctx.wait_for("an Event of it", SOON, async || {
        let told = ctx.events("RerunsPaused").await?;
        Ok((!told.is_empty()).then_some(()))
    })
    .await
}

/// A run of three jobs, each of which has begun.
async fn three_of_a_run(ctx: &Ctx) -> Result<[JobView; 3]> {
    let held = |key| JobTemplate {
        hold: true,
        ..job(key, &["self-hosted", "cuda"], STEP)
    };
    let workflow = NewWorkflow {
        file: "three.yml".to_owned(),
        events: ["push".to_owned()].into(),
        jobs: ["left", "right", "stays"].map(held).into(),
        ..NewWorkflow::default()
    };
    ctx.write_workflow(workflow).await?;
    let run = NewRun {
        repository: ctx.repository.clone(),
        workflow: "three.yml".to_owned(),
        ..NewRun::default()
    };
    let jobs = ctx.github.start_run(&run).await?.jobs;
    let mut jobs = try_join_all(jobs.into_iter().map(async |job| begun(ctx, job).await)).await?;
    jobs.sort_by(|one, other| one.key.cmp(&other.key));
    let jobs: Result<[JobView; 3], _> = jobs.try_into();
    jobs.map_err(|jobs| anyhow::anyhow!("{jobs:#?}"))
}

/// Queues a job of a run of its own, which runs until it is released.
async fn hold(ctx: &Ctx, name: &str) -> Result<u64> {
    ctx.queue_for(name, &["self-hosted", "cuda"], STEP, true)
        .await
}

/// Waits for a job's own step.
async fn begun(ctx: &Ctx, job: u64) -> Result<JobView> {
    let what = format!("the step of the job {job}");
    ctx.wait_for(&what, SOON, async || {
        let log = ctx.github.job_log(job).await?;
        Ok(log.contains("begun").then_some(()))
    })
    .await?;
    Ok(ctx.github.job(job).await?)
}

/// Another commit on the default branch.
async fn push(ctx: &Ctx) -> Result<()> {
    let update = UpdateRepository {
        branches: vec![NewBranch {
            name: "main".to_owned(),
            ..NewBranch::default()
        }],
        ..UpdateRepository::default()
    };
    ctx.github
        .update_repository(&ctx.repository, &update)
        .await?;
    Ok(())
}

/// `kubectl drain`, of the pods of these jobs.
async fn evict(ctx: &Ctx, jobs: impl IntoIterator<Item = &JobView>) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    let evicted = jobs.into_iter().map(async |job| {
        pods.evict(runner(job)?, &EvictParams::default()).await?;
        anyhow::Ok(())
    });
    try_join_all(evicted).await.map(drop)
}

fn runner(job: &JobView) -> Result<&str> {
    job.runner.as_deref().context("the job has no runner")
}

/// All attempts of a run's jobs, by their keys.
async fn attempts(ctx: &Ctx, run: u64) -> Result<Vec<JobView>> {
    let mut jobs = ctx.github.jobs().await?;
    jobs.retain(|job| job.run == run);
    jobs.sort_by(|one, other| (&one.key, one.attempt).cmp(&(&other.key, other.attempt)));
    Ok(jobs)
}

/// The requests that ask GitHub to run jobs again.
async fn reruns(ctx: &Ctx, mark: u64) -> Result<Vec<Seen>> {
    let mut calls = ctx.own_calls(mark).await?;
    calls.retain(is_rerun);
    Ok(calls)
}

fn is_for(entry: &RerunStatus, reason: &str, words: &str) -> Result<()> {
    let message = entry.message.as_deref().unwrap_or_default();
    ensure!(
        entry.reason.as_deref() == Some(reason) && message.contains(words),
        "{entry:#?}"
    );
    Ok(())
}
