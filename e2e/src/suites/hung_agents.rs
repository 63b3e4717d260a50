//! Agents that hang are ended, each kind by what GitHub and the pod say together; and so are jobs that take longer than the
//! pool lets them, but not a runner that waits for longer.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::RunnerPhase;
use github_simulator::{
    control::{JobView, StartedRun},
    state::Conclusion::{Failure, Success},
};
use k8s_openapi::{
    api::core::v1::Pod,
    jiff::{SignedDuration, Timestamp},
};
use kube::Api;
use serde_json::{Value, json};

use super::{
    Ctx, SOON, container_jobs,
    context::{agent_with, workflow},
    runner_ends::failed,
    sample::sample,
};
use crate::deploy;

/// A job that ends well below the limit of a minute, and one that does not, whatever it says.
const PLAIN: &str = r"
on: workflow_dispatch
jobs:
  in-time: {runs-on: [self-hosted, limited], steps: [{run: sleep 30}]}
  late:
    runs-on: [self-hosted, limited]
    steps:
      - {run: sleep 600}
      - {run: echo the step that always runs, if: always()}
";
/// The same in its own container.
const CONTAINER: &str = r"
on: workflow_dispatch
jobs:
  late:
    runs-on: [self-hosted, limited-containers]
    container: docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04
    steps:
      - {run: sleep 600}
      - {run: echo the step that always runs, if: always()}
";
const LIMITED: &str = "limited";
const CONTAINERS: &str = "limited-containers";
/// Kinds of a sample.
const SAMPLE: usize = 2;
/// The limit of the pools above.
const LIMIT: SignedDuration = SignedDuration::from_mins(1);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    container_jobs::images(ctx)?;
    ctx.write_workflow(workflow("plain.yml", PLAIN)).await?;
    ctx.write_workflow(workflow("container.yml", CONTAINER))
        .await?;
    let soon = ["hungAfterSeconds=20"];
    deploy::with_values(&ctx.cluster, &soon, async || all(ctx).await).await
}

async fn all(ctx: &Ctx) -> Result<()> {
    // Given pools whose jobs may take a minute
    let limited = |name: &str, more: Value| {
        let mut spec = json!({"labels": ["self-hosted", name], "jobs": {"maxMinutes": 1}});
        super::context::merge(&mut spec, more);
        ctx.pool(name, spec)
    };
    ctx.apply(&limited(LIMITED, json!({"replicas": 2}))).await?;
    ctx.apply(&limited(CONTAINERS, json!({"jobContainers": {}})))
        .await?;
    let waiting = [
        ctx.other_ready(LIMITED, "").await?,
        ctx.other_ready(CONTAINERS, "").await?,
    ];
    let since = Timestamp::now();

    let outcome = each_kind(ctx).await;
    ctx.github
        .change_settings(&json!({"acquireHangs": false}))
        .await?;
    outcome?;

    // When their runners have waited for longer than that, then they are still there
    ctx.wait_for("a minute to be over", SOON, async || {
        Ok((Timestamp::now().duration_since(since) > LIMIT).then_some(()))
    })
    .await?;
    for (pool, runner) in [LIMITED, CONTAINERS].into_iter().zip(&waiting) {
        let idle = ctx.status(pool).await?.runners;
        ensure!(
            idle.iter()
                .any(|r| r.name == *runner && r.phase == RunnerPhase::Idle),
            "{runner} has not lived on: {idle:?}"
        );
    }
    the_limit(ctx).await
}

/// The ways in which an agent hangs.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// It acquires a job, and never gets it.
    BegunByNobody,
    /// The same, as a scale set's messages tell it: GitHub is not asked for it.
    BegunByNobodyOfAScaleSet,
    /// Its process for the job stays when the job is over.
    OverAndThere,
    /// It is sent to where nobody is.
    Unheard,
}

async fn each_kind(ctx: &Ctx) -> Result<()> {
    let all = vec![
        ("begun-by-nobody", Kind::BegunByNobody),
        ("of-a-scale-set", Kind::BegunByNobodyOfAScaleSet),
        ("over-and-there", Kind::OverAndThere),
        ("unheard", Kind::Unheard),
    ];
    for (name, kind) in sample(&ctx.namespace, all, SAMPLE, |(name, _)| name) {
        let outcome = match kind {
            Kind::BegunByNobody => begun_by_nobody(ctx).await,
            Kind::BegunByNobodyOfAScaleSet => begun_by_nobody_of_a_scale_set(ctx).await,
            Kind::OverAndThere => over_and_there(ctx).await,
            Kind::Unheard => unheard(ctx).await,
        };
        outcome.context(name)?;
    }
    Ok(())
}

async fn begun_by_nobody(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("unstarted", json!({}))).await?;
    ctx.other_ready("unstarted", "").await?;
    let set = async |hangs: bool| {
        let settings = json!({"acquireHangs": hangs});
        ctx.github.change_settings(&settings).await
    };
    set(true).await?;
    let job = ctx.queue("unstarted", "echo a step has run").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    // What GitHub's list says is seen when it is read; without this, within five minutes.
    ctx.look_again("unstarted", "1").await?;
    ended(ctx, "unstarted", "JobNeverStarted", &runner).await?;
    set(false).await?;
    // And its job is over at GitHub, without a step
    let view = ctx.ended(job).await?;
    ensure!(view.conclusion == Some(Failure), "{view:?}");
    let log = ctx.github.job_log(job).await?;
    ensure!(!log.contains("a step has run"), "{log}");
    ctx.delete("unstarted").await
}

async fn begun_by_nobody_of_a_scale_set(ctx: &Ctx) -> Result<()> {
    let scaling = json!({"scaling": {"maxRunners": 1}});
    ctx.apply(&ctx.pool("scaled", scaling)).await?;
    ctx.condition("scaled", "Ready", "True", "ScaledToZero")
        .await?;
    let set = async |hangs: bool| {
        let settings = json!({"acquireHangs": hangs});
        ctx.github.change_settings(&settings).await
    };
    set(true).await?;
    let job = ctx.queue("scaled", "echo a step has run").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let failure = failed(ctx, "scaled", "JobNeverStarted", SOON).await?;
    set(false).await?;
    ensure!(
        failure.runner == runner
            && failure
                .message
                .contains("GitHub had given it the job scaled"),
        "{failure:?}"
    );
    ctx.gone(&runner).await?;
    ctx.ended(job).await?;
    ctx.delete("scaled").await
}

async fn over_and_there(ctx: &Ctx) -> Result<()> {
    let template = agent_with("SIMULATED_AGENT_HANGS_AFTER_JOB", "1");
    ctx.apply(&ctx.pool("stays", json!({"template": template})))
        .await?;
    ctx.other_ready("stays", "").await?;
    let job = ctx.queue("stays", "true").await?;
    let view = ctx.succeeded(job).await?;
    let runner = view.runner.unwrap_or_default();
    let pods: Api<Pod> = ctx.api();
    ctx.wait_for("the pod to say that it has a job", SOON, async || {
        Ok((!deploy::is_ready(&pods.get(&runner).await?)).then_some(()))
    })
    .await?;
    ctx.look_again("stays", "1").await?;
    ended(ctx, "stays", "JobOverAgentRunning", &runner).await?;
    ctx.delete("stays").await
}

async fn unheard(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("moved", json!({}))).await?;
    let runner = ctx.other_ready("moved", "").await?;
    let nowhere = json!({"brokerMigrations": {&runner: "http://127.0.0.1:1"}});
    ctx.github.change_settings(&nowhere).await?;
    ctx.wait_for("GitHub to call the runner offline", SOON, async || {
        let state = ctx.github.state().await?.passing;
        let mut runners = state["runners"].as_array().into_iter().flatten();
        let is_offline = |r: &Value| r["name"] == runner && r["online"] == false;
        Ok(runners.any(is_offline).then_some(()))
    })
    .await?;
    ctx.look_again("moved", "1").await?;
    ended(ctx, "moved", "AgentOffline", &runner).await?;
    ctx.delete("moved").await
}

/// The runner is ended, which the resource, an Event and a metric say, and another one comes.
async fn ended(ctx: &Ctx, pool: &str, reason: &str, runner: &str) -> Result<()> {
    let failure = failed(ctx, pool, reason, SOON).await?;
    ensure!(
        failure.runner == runner && failure.message.contains("for 20 seconds"),
        "{failure:?}"
    );
    ctx.gone(runner).await?;
    ctx.other_ready(pool, runner).await?;
    let namespace = &ctx.namespace;
    let counted = format!(
        r#"cudarunner_runner_failures_total{{namespace="{namespace}",pool="{pool}",class="transient",reason="{reason}"}} 1"#
    );
    ctx.wait_for("the hung agent to be counted", SOON, async || {
        let pages = deploy::metrics(&ctx.client).await?;
        Ok(pages
            .iter()
            .any(|page| page.contains(&counted))
            .then_some(()))
    })
    .await?;
    let quarantine = ctx.status(pool).await?.quarantine;
    ensure!(quarantine.is_empty(), "a node is blamed: {quarantine:?}");
    Ok(())
}

async fn the_limit(ctx: &Ctx) -> Result<()> {
    // When they have a job that ends in time, and jobs that do not
    let plain = ctx.dispatch("plain.yml").await?;
    let container = ctx.dispatch("container.yml").await?;
    let late = [
        (LIMITED, named(ctx, &plain, "late").await?),
        (CONTAINERS, named(ctx, &container, "late").await?),
    ];
    // Then these are ended at the limit, which is told, and nobody is blamed
    for (pool, job) in late {
        is_ended(ctx, pool, job).await?;
    }
    // And the other one has ended as it did
    let in_time = named(ctx, &plain, "in-time").await?;
    let view = ctx.github.job(in_time).await?;
    ensure!(view.conclusion == Some(Success), "{view:?}");
    let told = ctx.concluded(LIMITED, 2).await?;
    let in_time = told
        .iter()
        .find(|job| Some(&job.runner) == view.runner.as_ref());
    ensure!(
        in_time.is_some_and(|job| job.exceeded_minutes.is_none()),
        "{told:?}"
    );
    for pool in [LIMITED, CONTAINERS] {
        ctx.delete(pool).await?;
    }
    Ok(())
}

async fn named(ctx: &Ctx, run: &StartedRun, name: &str) -> Result<u64> {
    for job in &run.jobs {
        if ctx.github.job(*job).await?.name == name {
            return Ok(*job);
        }
    }
    None.with_context(|| format!("the run has no job {name}"))
}

async fn is_ended(ctx: &Ctx, pool: &str, job: u64) -> Result<()> {
    let view = ctx.ended_within(job, container_jobs::LIMIT).await?;
    let took = took(&view)?;
    // It is looked for each second, and the machine is busy.
    ensure!(
        view.conclusion == Some(Failure) && took >= LIMIT && took < LIMIT + LIMIT / 2,
        "{took}: {view:?}"
    );
    let sentence = "exceeded the maximum execution time of 1 minutes";
    ensure!(
        view.annotations.iter().any(|text| text.contains(sentence)),
        "the job's page does not say why: {view:?}"
    );
    let log = ctx.github.job_log(job).await?;
    ensure!(!log.contains("always runs"), "a step has run: {log}");
    let runner = view.runner.unwrap_or_default();
    ctx.wait_for("the end to be told on the resource", SOON, async || {
        let jobs = ctx.status(pool).await?.last_jobs;
        let told = jobs.iter().any(|job| {
            job.runner == runner
                && job.exceeded_minutes == Some(1)
                && job.conclusion.as_deref() == Some("failure")
        });
        Ok(told.then_some(()))
    })
    .await?;
    ctx.wait_for("the end's Event", SOON, async || {
        let events = ctx.events("JobTimedOut").await?;
        let mut notes = events.iter().filter_map(|event| event.note.as_deref());
        Ok(notes.any(|note| note.contains(&runner)).then_some(()))
    })
    .await?;
    ctx.other_ready(pool, &runner).await?;
    let status = ctx.status(pool).await?;
    ensure!(
        status.last_failures.is_empty() && status.consecutive_failures == 0,
        "{:?}",
        status.last_failures
    );
    Ok(())
}

fn took(view: &JobView) -> Result<SignedDuration> {
    let times = view.started_at.zip(view.completed_at);
    let (started, completed) = times.context("a job without times")?;
    Ok(completed.duration_since(started))
}
