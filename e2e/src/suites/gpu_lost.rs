//! A GPU that vanishes from a running container takes its runner out before a job comes; a job that runs is left alone.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::FailureStatus;
use serde_json::json;

use super::{Ctx, SOON};

/// The GPU vanishes while the job runs: the job sees that the look of the readiness probe leaves its agent alone.
const JOB: &str = r"
echo begun
while : </dev/nvidiactl; do sleep 0.1; done 2>/dev/null
for look in 1 2 3; do
  if sh /run/cuda-runner/gpu.sh idle; then exit 1; fi
done
";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    an_idle_runner_is_replaced(ctx).await?;
    a_busy_one_finishes_its_job(ctx).await?;
    a_persistent_one_is_replaced_between_jobs(ctx).await
}

async fn an_idle_runner_is_replaced(ctx: &Ctx) -> Result<()> {
    // Given an idle runner
    ctx.apply(&ctx.pool("idle", json!({}))).await?;
    let first = ctx.idle("idle", 1).await?.remove(0);
    // When its container loses the GPU
    ctx.take_gpu("idle", &first).await?;
    let failure = lost(ctx, "idle", &first).await?;
    ensure!(failure.message.contains("took none"), "{failure:?}");
    // Then the job runs on another one, on the same node: nobody has put that into quarantine
    let job = ctx.queue("after", "true").await?;
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.runner.is_some_and(|runner| runner != first) && view.assignments == 1,
        "the job was not kept from {first}"
    );
    let quarantine = ctx.status("idle").await?.quarantine;
    ensure!(quarantine.is_empty(), "{quarantine:?}");
    ctx.delete("idle").await
}

async fn a_busy_one_finishes_its_job(ctx: &Ctx) -> Result<()> {
    // Given a runner with a job
    ctx.apply(&ctx.pool("busy", json!({}))).await?;
    ctx.idle("busy", 1).await?;
    let job = ctx.queue("during", JOB).await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    // Before, the hook would find the GPU gone, and fail the job.
    ctx.wait_for("the job's own steps", SOON, async || {
        let log = ctx.github.job_log(job).await?;
        Ok(log.contains("begun").then_some(()))
    })
    .await?;
    // When its container loses the GPU
    ctx.take_gpu("busy", &runner).await?;
    // Then the job goes on to its end, and that is what is told: the mark alone could be the job's own
    ctx.succeeded(job).await?;
    ctx.other_idle("busy", &runner).await?;
    ctx.wait_for("the job to be told of", SOON, async || {
        let jobs = ctx.status("busy").await?.last_jobs;
        Ok(jobs.iter().any(|j| j.runner == runner).then_some(()))
    })
    .await?;
    let failures = ctx.status("busy").await?.last_failures;
    ensure!(failures.is_empty(), "{failures:?}");
    ctx.delete("busy").await
}

async fn a_persistent_one_is_replaced_between_jobs(ctx: &Ctx) -> Result<()> {
    // Given a runner that has run a job
    ctx.apply(&ctx.pool("pool", json!({"lifetime": "Persistent"})))
        .await?;
    ctx.idle("pool", 1).await?;
    let one = ctx.queue("one", "true").await?;
    ctx.succeeded(one).await?;
    ctx.idle("pool", 1).await?;
    // When its container loses the GPU before the next
    ctx.take_gpu("pool", "pool-0").await?;
    lost(ctx, "pool", "pool-0").await?;
    let two = ctx.queue("two", "true").await?;
    // Then its successor runs that
    let view = ctx.succeeded(two).await?;
    ensure!(view.assignments == 1, "the job was taken and lost");
    ctx.delete("pool").await
}

/// Waits until the runner's failure is on the resource and in an Event.
async fn lost(ctx: &Ctx, pool: &str, runner: &str) -> Result<FailureStatus> {
    let failure = ctx
        .wait_for("the lost GPU to be told of", SOON, async || {
            let failures = ctx.status(pool).await?.last_failures;
            Ok(failures
                .into_iter()
                .find(|f| f.runner == runner && f.reason == "GpuLost"))
        })
        .await?;
    ensure!(failure.class.as_str() == "transient", "{failure:?}");
    ctx.wait_for("an Event of it", SOON, async || {
        let mut reported = ctx.events("GpuLost").await?.into_iter();
        Ok(reported.find(|event| event.note.as_ref().is_some_and(|n| n.contains(runner))))
    })
    .await
    .context(runner.to_owned())?;
    Ok(failure)
}
