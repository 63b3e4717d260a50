//! A pool proves itself by running its repository's workflow: green, a test too few, and a job that nobody picks up.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{VerificationState, VerificationStatus};
use github_simulator::control::{NewRun, NewWorkflow};
use serde_json::json;

use super::context::job;
use super::{
    Ctx,
    plugin::{plugin, shown_in},
};

/// The request that starts a run.
const DISPATCH: &str = "actions/create-workflow-dispatch";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a workflow with two jobs, and a pool of one runner that is to prove itself by it
    workflow(ctx, 46, &["self-hosted", "cuda"]).await?;
    let mark = ctx.last_call().await?;
    ctx.apply(&pool(ctx)).await?;

    // Then one run is started, both jobs are picked up here, and all tests are counted
    let reported = ctx
        .condition("pool", "WorkflowVerified", "True", "Verified")
        .await?;
    ensure!(reported.contains("unified-memory (46 tests)"), "{reported}");
    let verification = verification(ctx).await?;
    ensure!(verification.jobs.len() == 2, "{verification:?}");
    for job in &verification.jobs {
        let runner = job.runner.as_deref().unwrap_or_default();
        ensure!(runner.starts_with("pool-"), "{} ran on {runner}", job.name);
        ensure!(
            job.pickup_seconds.is_some_and(|seconds| seconds <= 60),
            "{job:?}"
        );
    }
    ensure!(dispatches(ctx, mark).await? == 1, "more than one run");

    // When a test is missing, and another verification is asked for
    workflow(ctx, 45, &["self-hosted", "cuda"]).await?;
    ctx.idle("pool", 1).await?;
    let followed = plugin(ctx, 1, &["verify", "pool", "--follow"]).await?;
    // Then it is not green, the sentence has both numbers, and the runners stay
    ensure!(
        followed.contains("unified-memory: picked up by pool-")
            && followed.contains("red (TestsMissing)"),
        "{followed}"
    );
    shown_in(ctx, "guides/verification.md", "pool", &followed)?;
    let reported = ctx
        .condition("pool", "WorkflowVerified", "False", "TestsMissing")
        .await?;
    ensure!(reported.contains("45 of 46"), "{reported}");
    ctx.idle("pool", 1).await?;

    // When a job asks for a label that nobody has
    workflow(ctx, 46, &["self-hosted", "cuda", "a100"]).await?;
    plugin(ctx, 0, &["verify", "pool"]).await?;
    // Then it is the cause
    let reported = ctx
        .condition("pool", "WorkflowVerified", "False", "JobNotPickedUp")
        .await?;
    ensure!(reported.contains("lacks a100"), "{reported}");

    a_run_without_a_name(ctx).await?;
    its_own_concurrency_group(ctx).await?;
    ctx.delete("pool").await
}

async fn verification(ctx: &Ctx) -> Result<VerificationStatus> {
    let status = ctx.status("pool").await?;
    status.verification.context("no verification in the status")
}

/// All is well again, on a server that does not name the run that it starts.
async fn a_run_without_a_name(ctx: &Ctx) -> Result<()> {
    workflow(ctx, 46, &["self-hosted", "cuda"]).await?;
    let mark = ctx.last_call().await?;
    ctx.github
        .change_settings(&json!({"dispatchDetails": false}))
        .await?;
    let followed = plugin(ctx, 0, &["verify", "pool", "--follow", "--timeout", "120"]).await;
    ctx.github
        .change_settings(&json!({"dispatchDetails": true}))
        .await?;
    // Then the run that waits is stopped, another is found, and all is well
    let followed = followed?;
    ensure!(
        followed.contains("waits for the verification before it") && followed.contains("green"),
        "{followed}"
    );
    ctx.condition("pool", "WorkflowVerified", "True", "Verified")
        .await?;
    ensure!(dispatches(ctx, mark).await? == 1, "more than one run");
    let history = verification(ctx).await?.history;
    let green: Vec<bool> = history
        .iter()
        .map(|past| past.state == VerificationState::Succeeded)
        .collect();
    ensure!(green == [true, false, false, true], "{history:?}");
    Ok(())
}

/// One run at a time for each ref: while another one is at work, more runners do not help, and that is said.
async fn its_own_concurrency_group(ctx: &Ctx) -> Result<()> {
    let mut held = workflow_of(46, &["self-hosted", "cuda"]);
    held.concurrency = Some("cuda-${{ github.ref }}".to_owned());
    let free = held.clone();
    held.jobs.iter_mut().for_each(|job| job.hold = true);
    ctx.write_workflow(held).await?;
    let run = NewRun {
        repository: ctx.repository.clone(),
        workflow: "cuda.yml".to_owned(),
        event: "push".to_owned(),
        ..NewRun::default()
    };
    let other = ctx.github.start_run(&run).await?;
    let first = *other.jobs.first().context("the run has no job")?;
    ctx.picked_up(first).await?;
    ctx.write_workflow(free).await?;
    plugin(ctx, 0, &["verify", "pool"]).await?;
    let reported = ctx
        .condition(
            "pool",
            "WorkflowVerified",
            "Unknown",
            "HeldByConcurrencyGroup",
        )
        .await?;
    ensure!(reported.contains("more runners do not help"), "{reported}");

    // When the other run is over
    for job in other.jobs {
        ctx.github.release(job).await?;
    }
    // Then this one has its turn
    ctx.condition("pool", "WorkflowVerified", "True", "Verified")
        .await?;
    Ok(())
}

fn pool(ctx: &Ctx) -> serde_json::Value {
    ctx.pool(
        "pool",
        json!({"verify": {
            "workflow": "cuda.yml",
            "ref": "main",
            "pickupSeconds": 60,
            "jobs": [
                {"name": "unified-memory", "tests": {"passed": 46}},
                {"name": "compile"},
            ],
        }}),
    )
}

/// The repository's workflow: the tests of its first job, and the labels of the second.
async fn workflow(ctx: &Ctx, tests: u32, labels: &[&str]) -> Result<()> {
    ctx.write_workflow(workflow_of(tests, labels)).await
}

fn workflow_of(tests: u32, labels: &[&str]) -> NewWorkflow {
    let result = format!("echo 'test result: ok. {tests} passed; 0 failed; 0 ignored'");
    NewWorkflow {
        name: "cuda".to_owned(),
        file: "cuda.yml".to_owned(),
        jobs: vec![
            job("unified-memory", &["self-hosted", "cuda"], &result),
            job("compile", labels, "true"),
        ],
        ..NewWorkflow::default()
    }
}

/// Runs that were started. An older server first refuses to say which one it would start.
async fn dispatches(ctx: &Ctx, since: u64) -> Result<usize> {
    let calls = ctx.calls(since).await?;
    let own = format!("/{}/", ctx.repository);
    Ok(calls
        .iter()
        .filter(|call| call.path.contains(&own))
        .filter(|call| call.operation_id.as_deref() == Some(DISPATCH))
        .filter(|call| call.status.is_some_and(|status| status < 300))
        .count())
}
