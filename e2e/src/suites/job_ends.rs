//! How jobs ended, on the resource and in Events; and agents whose version has an end.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{JobStatus, LOOK_AGAIN};
use github_simulator::control::NewWorkflow;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{
    Ctx, SOON,
    context::{agent_with, is_read_of_jobs, job},
};
use crate::deploy;

const FILE: &str = "cuda.yml";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    ctx.write_workflow(NewWorkflow {
        name: "CUDA".to_owned(),
        file: FILE.to_owned(),
        jobs: vec![
            job("good", &["self-hosted", "cuda"], "true"),
            job("bad", &["self-hosted", "cuda"], "exit 3"),
        ],
        ..NewWorkflow::default()
    })
    .await?;
    ctx.apply(&ctx.pool("pool", json!({"replicas": 2}))).await?;
    ctx.idle("pool", 2).await?;

    one_run_is_read_for_all_its_jobs(ctx).await?;
    // And the next run, soon after, has Events of its own
    ctx.dispatch(FILE).await?;
    reported(ctx, &ctx.concluded("pool", 4).await?).await?;
    a_restart_loses_and_doubles_nothing(ctx).await?;
    ctx.delete("pool").await?;

    let outcome = a_version_whose_time_is_over(ctx).await;
    ctx.github
        .change_settings(&json!({"deprecations": {}}))
        .await?;
    outcome?;
    Ok(())
}

async fn one_run_is_read_for_all_its_jobs(ctx: &Ctx) -> Result<()> {
    // When a run has a job that succeeds and one that fails
    let mark = ctx.last_call().await?;
    let run = ctx.dispatch(FILE).await?.run;

    // Then the status says so of each, with its runner and its run
    let jobs = ctx.concluded("pool", 2).await?;
    let page = format!(
        "{}/{}/actions/runs/{run}",
        ctx.cluster.github, ctx.repository
    );
    let mut ends = vec![];
    for job in &jobs {
        ensure!(job.url.as_ref() == Some(&page), "{job:?}");
        ensure!(job.workflow == "CUDA" && job.node.is_some(), "{job:?}");
        let started = job.started_at.as_ref().context("a job without a start")?;
        ensure!(started.0 <= job.finished_at.0, "{job:?}");
        ends.push((job.job.as_str(), job.conclusion.as_deref()));
    }
    ends.sort_unstable();
    ensure!(
        ends == [("bad", Some("failure")), ("good", Some("success"))],
        "{ends:?}"
    );
    // And neither is a failure of its runner
    ensure!(ctx.status("pool").await?.last_failures.is_empty());

    // And each is reported once
    reported(ctx, &jobs).await?;

    // And that has cost one read of the run, or two where one of its jobs ended much later
    let calls = ctx.calls(mark).await?;
    let reads = calls.iter().filter(|call| is_read_of_jobs(call)).count();
    let registrations = ctx.registrations(mark).await?;
    ensure!(
        (1..=2).contains(&reads) && registrations == 2 && calls.len() == reads + registrations,
        "{calls:#?}"
    );
    Ok(())
}

async fn a_restart_loses_and_doubles_nothing(ctx: &Ctx) -> Result<()> {
    // Given two more jobs that have ended, and which the status does not have yet
    for job in ctx.dispatch(FILE).await?.jobs {
        ctx.ended(job).await?;
    }
    let noted = ctx.status("pool").await?.last_jobs.len();
    ensure!(noted == 4, "{noted} jobs are in the status already");
    // When the operator is killed
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    // Then they are concluded all the same, and reported once
    let jobs = ctx.concluded("pool", 6).await?;
    let mut runners: Vec<_> = jobs.iter().map(|job| &job.runner).collect();
    runners.sort_unstable();
    runners.dedup();
    ensure!(runners.len() == 6, "{jobs:#?}");
    reported(ctx, &jobs).await
}

/// Waits until each of these jobs is in one Event, once.
async fn reported(ctx: &Ctx, jobs: &[JobStatus]) -> Result<()> {
    ctx.wait_for("every job to be reported", SOON, async || {
        let reported = ctx.events("JobCompleted").await?;
        ensure!(
            reported
                .iter()
                .all(|event| event.type_.as_deref() == Some("Normal")),
            "a job that has ended is no warning: {reported:#?}"
        );
        let notes: Vec<String> = reported
            .into_iter()
            .filter_map(|event| event.note)
            .collect();
        let times = |job: &JobStatus| {
            let end = job.conclusion.as_deref().unwrap_or_default();
            let whole = notes.join("\n");
            let named = whole.matches(&job.runner).count();
            (named, whole.contains(&format!("{}: {end} after", job.job)))
        };
        let counts: Vec<_> = jobs.iter().map(times).collect();
        ensure!(
            counts.iter().all(|(times, _)| *times <= 1),
            "reported twice: {notes:#?}"
        );
        Ok(counts.iter().all(|count| *count == (1, true)).then_some(()))
    })
    .await
}

async fn a_version_whose_time_is_over(ctx: &Ctx) -> Result<()> {
    let pool = |version: &str| {
        let template = agent_with("SIMULATED_AGENT_VERSION", version);
        ctx.pool("agent", json!({"template": template}))
    };
    // Given a server that says when versions end: one has, the other will
    let soon = Timestamp::now() + SignedDuration::from_hours(24 * 7);
    let ends = json!({
        "2.330.0": {"registration": "2026-07-01T00:00:00Z", "runtime": "2026-08-01T00:00:00Z"},
        "2.336.0": {"registration": null, "runtime": soon},
    });
    ctx.github
        .change_settings(&json!({"deprecations": ends}))
        .await?;

    // When the image holds an agent whose time is over, then one refusal is enough to say so, with the date
    ctx.apply(&pool("2.330.0")).await?;
    let message = ctx
        .condition("agent", "Stalled", "True", "VersionRefused")
        .await?;
    for part in ["2.330.0", "2026-07-01", "newe"] {
        ensure!(message.contains(part), "{part} is not in: {message}");
    }
    let failures = ctx.status("agent").await?.last_failures;
    ensure!(
        failures.iter().all(|f| f.reason == "VersionRefused"),
        "{failures:#?}"
    );

    // When it is newer, its end is in the status before it comes
    ctx.apply(&pool("2.336.0")).await?;
    ctx.idle("agent", 1).await?;
    let mark = ctx.last_call().await?;
    for ask in ["1", "2", "3"] {
        ctx.annotate("agent", LOOK_AGAIN, ask).await?;
        ctx.wait_for("the operator to have looked", SOON, async || {
            let status = ctx.status("agent").await?;
            Ok((status.looked_again.as_deref() == Some(ask)).then_some(()))
        })
        .await?;
    }
    let status = ctx
        .wait_for("the version's end to be in the status", SOON, async || {
            let status = ctx.status("agent").await?;
            Ok(status.runner_version_ends.is_some().then_some(status))
        })
        .await?;
    ensure!(status.runner_version.as_deref() == Some("2.336.0"));
    let end = status.runner_version_ends.map(|t| t.0.as_second());
    ensure!(end == Some(soon.as_second()), "{end:?}");
    // And it was asked for once
    let calls = ctx.calls(mark).await?;
    let asked = calls.iter().filter(|c| c.path.contains("/deprecations/"));
    ensure!(asked.count() == 1, "{calls:#?}");
    ctx.delete("agent").await
}
