//! What only a real node shows: how long until a runner is idle, and until a job's own container takes its steps.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use github_simulator::state::Conclusion;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::{
    Run,
    bed::PROFILE,
    figure::{Budget, Figure},
};
use crate::{
    cluster::{Cluster, Options},
    deploy, example, gpu,
    node::PAUSE,
    report::Story,
    suites::{Ctx, context::workflow},
    wait::wait_for,
};

/// Longest wait for one thing.
const LIMIT: Duration = Duration::from_mins(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// What the way to the first step may take beside the pull, and the way to the status, in seconds.
const BUDGET: Budget = Budget::AtMost(2.0);
/// Ends at the first signal, as ours does.
const SLEEP: &str = "trap 'exit 143' TERM; sleep infinity & wait";
/// The workflow, whose image is on the node.
const FILE: &str = "job.yml";
const WORKFLOW: &str = "
on: workflow_dispatch
jobs:
  job:
    runs-on: [self-hosted, cuda]
    container:
      image: localhost/job-cuda:dev
      options: --gpus all
    steps:
      - run: echo \"first step\"
";
/// The hook's first line, and the step's.
const MOMENTS: [&str; 2] = ["options: --gpus", "first step"];

/// From `kubectl apply` of a plain pool to its idle runner. The floor is a pod of the same containers that nobody looks at:
/// to the moment at which its second image runs.
pub(super) async fn idle(run: &Run) -> Result<Vec<Figure>> {
    let figure = on_a_node(async |ctx| {
        let mut figure = figure("apply → idle runner", None);
        for number in 0..run.runs {
            let name = format!("pool-{number}");
            let start = Instant::now();
            ctx.apply(&ctx.pool(&name, json!({}))).await?;
            ctx.idle(&name, 1).await?;
            figure.ours.push(start.elapsed().as_secs_f64());
            ctx.delete(&name).await?;
            let start = Instant::now();
            let (pod, _) = changed(ctx, example::AGENT).await?;
            figure.floor.push(start.elapsed().as_secs_f64());
            gone(ctx, &pod).await?;
        }
        Ok(figure)
    })
    .await?;
    Ok(vec![figure])
}

/// From the first line of the agent's hook to that of the job's first step, with an image that is there: what a pull takes
/// comes on top, and is the node's. The floor is the change of a bare container's image, to the moment at which it runs.
pub(super) async fn container_job(run: &Run) -> Result<Vec<Figure>> {
    let figure = on_a_node(async |ctx| {
        let mut figure = figure("hook's call → first step of a container job", Some(BUDGET));
        ctx.write_workflow(workflow(FILE, WORKFLOW)).await?;
        ctx.apply(&ctx.pool("pool", json!({"jobContainers": {}})))
            .await?;
        for _ in 0..run.runs {
            ctx.idle("pool", 1).await?;
            figure.ours.push(first_step(ctx).await?);
            let (pod, took) = changed(ctx, example::JOB_CUDA).await?;
            figure.floor.push(took.as_secs_f64());
            gone(ctx, &pod).await?;
        }
        Ok(figure)
    })
    .await?;
    Ok(vec![figure])
}

/// From a job's start and end, as GitHub has them, to the status that says so, where no other job has ended lately. The floor is
/// the pod, as a bare client sees it: not ready while there is a job.
pub(super) async fn busy(run: &Run) -> Result<Vec<Figure>> {
    on_a_node(async |ctx| {
        let mut start = figure(
            "a job's start → the status shows its runner as busy",
            Some(BUDGET),
        );
        let mut end = figure("a job's end → the status shows it no longer", Some(BUDGET));
        for number in 0..run.runs {
            let name = format!("pool-{number}");
            ctx.apply(&ctx.pool(&name, json!({}))).await?;
            ctx.idle(&name, 1).await?;
            let job = ctx.hold("held").await?;
            let view = ctx.picked_up(job).await?;
            let runner = view.runner.context("nobody has the job")?;
            let moment = view.started_at.context("the job has no start")?;
            shows(ctx, &name, &runner, true, (&mut start, moment)).await?;
            ctx.github.release(job).await?;
            let moment = ctx.ended(job).await?.completed_at;
            let moment = moment.context("the job has no end")?;
            shows(ctx, &name, &runner, false, (&mut end, moment)).await?;
            ctx.delete(&name).await?;
        }
        Ok(vec![start, end])
    })
    .await
}

/// Measures how long after a moment the pod and the status say whether the runner is busy.
async fn shows(
    ctx: &Ctx,
    pool: &str,
    runner: &str,
    busy: bool,
    (figure, moment): (&mut Figure, Timestamp),
) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    let since = || Timestamp::now().duration_since(moment).as_secs_f64();
    let deadline = Instant::now() + LIMIT;
    let (mut by_pod, mut by_status) = (None, None);
    while by_pod.is_none() || by_status.is_none() {
        ensure!(Instant::now() < deadline, "{runner} is not shown as it is");
        if by_pod.is_none() {
            let pod = pods.get_opt(runner).await?;
            let ready = pod
                .as_ref()
                .and_then(gpu::status)
                .map(|status| status.ready);
            let is_over = pod
                .as_ref()
                .and_then(gpu::status)
                .is_none_or(|status| status.state.as_ref().is_none_or(|s| s.terminated.is_some()));
            let seen = if busy {
                ready == Some(false)
            } else {
                is_over || ready == Some(true)
            };
            by_pod = seen.then(since);
        }
        if by_status.is_none() {
            by_status = ((ctx.status(pool).await?.busy > 0) == busy).then(since);
        }
        tokio::time::sleep(LOOK).await;
    }
    figure.ours.extend(by_status);
    figure.floor.extend(by_pod);
    Ok(())
}

/// Works on a cluster with a real node and the operator.
async fn on_a_node<T>(work: impl AsyncFnOnce(&Ctx) -> Result<T>) -> Result<T> {
    let options = Options {
        profile: PROFILE,
        ..Options::default()
    };
    let name = format!("bench-{}", std::process::id());
    let cluster = Cluster::up(&name, options, &Story::silent()).await?;
    let outcome = async {
        deploy::install(&cluster, PROFILE, &[]).await?;
        work(&Ctx::new(&cluster, "bench").await?).await
    }
    .await;
    cluster.down()?;
    outcome
}

fn figure(name: &str, budget: Option<Budget>) -> Figure {
    Figure {
        name: name.to_owned(),
        unit: "s",
        ours: vec![],
        floor: vec![],
        budget,
    }
}

async fn first_step(ctx: &Ctx) -> Result<f64> {
    let job = ctx.dispatch(FILE).await?.jobs[0];
    let ended = ctx.ended(job).await?;
    let log = ctx.github.job_log(job).await?;
    ensure!(ended.conclusion == Some(Conclusion::Success), "{log}");
    let [called, ran] = MOMENTS.map(|words| at(&log, words));
    Ok(ran?.duration_since(called?).as_secs_f64())
}

/// When a line of a log was written that has these words, and is no command line.
fn at(log: &str, words: &str) -> Result<Timestamp> {
    let line = log
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, text)| text.trim_start().starts_with(words));
    let (time, _) = line.with_context(|| format!("the log does not say `{words}`: {log}"))?;
    Ok(time.parse()?)
}

/// Makes a bare pod in the gate's image, and changes that; gives its name, and how long the change took.
async fn changed(ctx: &Ctx, image: &str) -> Result<(String, Duration)> {
    let pods: Api<Pod> = ctx.api();
    let name = "bare".to_owned();
    let container = |name: &str, image: &str| json!({"name": name, "image": image, "imagePullPolicy": "Never", "command": ["sh", "-c", SLEEP]});
    let mut gpu = container("gpu", PAUSE);
    gpu["restartPolicy"] = json!("Always");
    let pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "initContainers": [gpu],
            "containers": [container("main", PAUSE)],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let runs = async |restarts: i32| {
        wait_for("the bare pod's container to run", LIMIT, async || {
            let pod = pods.get(&name).await?;
            let status = gpu::status(&pod);
            let runs = status.is_some_and(|status| {
                let state = status.state.as_ref();
                status.restart_count == restarts && state.is_some_and(|s| s.running.is_some())
            });
            Ok(runs.then_some(()))
        })
        .await
    };
    runs(0).await?;
    let start = Instant::now();
    let patch = json!({"spec": {"initContainers": [{"name": "gpu", "image": image}]}});
    pods.patch(&name, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    runs(1).await?;
    Ok((name, start.elapsed()))
}

async fn gone(ctx: &Ctx, pod: &str) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    pods.delete(pod, &DeleteParams::default()).await?;
    ctx.gone(pod).await
}
