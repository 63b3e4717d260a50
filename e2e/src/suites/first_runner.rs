//! One manifest, one runner: proven, idle, given a job, replaced.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Ctx;

/// By then the status knows that a pool's first job has ended: the kubelet and the operator take two seconds each, and the
/// machine has other things to do.
const NOTICED: Duration = Duration::from_secs(20);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let mark = ctx.last_call().await?;
    // When a maintainer applies one resource that names a repository and a Secret
    ctx.apply(&ctx.pool("pool", json!({}))).await?;

    // Then a runner waits for jobs, and the resource says how long that took
    let first = ctx.idle("pool", 1).await?.remove(0);
    let message = ctx
        .condition("pool", "RunnersOnline", "True", "Online")
        .await?;
    ensure!(
        message.contains(" s after the resource was created"),
        "no time in: {message}"
    );
    ctx.condition("pool", "Ready", "True", "Online").await?;

    // And the gate has proven the devices of this very pod: what nvidia-smi would say is in its report
    let uuid = &proven(ctx, &first).await?;

    // And exactly one registration was fetched, and it is in no object
    ensure!(
        ctx.registrations(mark).await? == 1,
        "more than one registration for one runner"
    );
    let pod = serde_json::to_string(&ctx.pods().await?)?;
    ensure!(
        !pod.contains("JITCONFIG=ey"),
        "the registration is in the pod"
    );

    // When a job is queued that looks at the registration from within
    let job = ctx.queue("look", "[ ! -e /run/cuda-runner/jitconfig ]; ls /var/run/secrets && exit 1; env | grep -i jitconfig && exit 1; LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check").await?;

    // Then it runs on this runner, sees no registration and no token, and the device computes
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.runner.as_deref() == Some(first.as_str()),
        "{:?} took the job of {first}",
        view.runner
    );
    let log = ctx.github.job_log(job).await?;
    ensure!(
        log.contains(uuid),
        "the job has not seen the device that was proven, {uuid}: {log}"
    );

    // And the status does not call it busy any more
    let what = "the status to say that no runner is busy";
    ctx.wait_for(what, NOTICED, async || {
        Ok((ctx.status("pool").await?.busy == 0).then_some(()))
    })
    .await?;

    // And the runner is replaced, its entry and its pod are gone
    let second = ctx.other_idle("pool", &first).await?;
    ensure!(
        ctx.entries().await? == [second],
        "the entry of {first} is left"
    );
    ctx.gone(&first).await?;

    // And a runner that ran a job is no failure
    let status = ctx.status("pool").await?;
    ensure!(
        status.last_failures.is_empty(),
        "{:?}",
        status.last_failures
    );
    Ok(())
}

/// The one device that the report and the status name.
async fn proven(ctx: &Ctx, runner: &str) -> Result<String> {
    let report = ctx.report(runner).await?;
    ensure!(
        report["driver"]["cudaVersion"].is_string(),
        "no CUDA version in {report:#}"
    );
    let device = &report["devices"][0];
    let uuid = device["uuid"]
        .as_str()
        .context("the report names no device")?;
    ensure!(
        device["concurrentManagedAccess"] == true,
        "no memory tier in {device:#}"
    );
    ensure!(
        device["computeCapability"].is_string(),
        "no compute capability in {device:#}"
    );
    let listed = ctx.devices_of("pool", runner).await?;
    ensure!(
        listed == [uuid],
        "the status lists {listed:?}, the gate saw {uuid}"
    );
    Ok(uuid.to_owned())
}

/// Every field of the example manifest is taken and acted on.
pub(super) async fn example(ctx: &Ctx) -> Result<()> {
    // Given the example of the documentation as it stands, pointed at this GitHub
    let path = crate::paths::repository().join("docs/examples/tensor-wasm.yaml");
    let mut example: Value = serde_saphyr::from_str(&std::fs::read_to_string(path)?)?;
    let ours = ctx.pool("tensor-wasm", json!({}));
    example["metadata"] = ours["metadata"].clone();
    example["spec"]["github"] = ours["spec"]["github"].clone();
    let container = &mut example["spec"]["template"]["spec"]["containers"][0];
    container["image"] = json!(crate::example::CUDA_AGENT);
    container["resources"] = json!({});
    // Its addresses are on the real internet.
    example["spec"]["preflight"]["egress"] = json!([ctx.cluster.github]);

    // When it is applied
    ctx.apply(&example).await?;

    // Then its runner comes, and nothing of it is left out
    ctx.idle("tensor-wasm", 1).await?;
    ctx.condition("tensor-wasm", "SpecSupported", "True", "AllFieldsActedOn")
        .await?;

    // And its repository has no such workflow, which is said
    let message = ctx
        .condition(
            "tensor-wasm",
            "WorkflowVerified",
            "False",
            "WorkflowNotFound",
        )
        .await?;
    ensure!(message.contains("cuda.yml"), "{message}");
    Ok(())
}
