//! Persistent runners: one name through many jobs, and through whatever ends the pod, and one pool for a name.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{RunnerPhase, RunnerStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::DeleteParams};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Ctx, SOON};
use crate::{deploy, process};

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // So that the workflow of single jobs is there already.
    ctx.queue_for("nobody", &["nobody"], "true", false).await?;
    let before = ctx.github.state().await?.lasting;

    // Given a pool of two
    ctx.apply(&ctx.pool("pool", json!({"lifetime": "Persistent", "replicas": 2})))
        .await?;
    let names = ctx.idle("pool", 2).await?;
    ensure!(names == ["pool-0", "pool-1"], "{names:?}");

    // When one is enough, the highest goes
    ctx.scale("pool", 1).await?;
    ctx.wait_for("pool-0 to be alone", SOON, async || {
        let pods = ctx.pods().await?.len();
        Ok((pods == 1 && ctx.entries().await? == ["pool-0"]).then_some(()))
    })
    .await?;

    // Then one pod runs job after job
    let uid = uid(ctx).await?;
    for name in ["one", "two"] {
        runs_a_job(ctx, name).await?;
    }
    // And a restart of the operator does not touch it
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    runs_a_job(ctx, "three").await?;
    ensure!(uid == self::uid(ctx).await?, "the pod was replaced");

    // When the device is another one, and the container is killed
    let devices = runner(ctx).await?.map(|r| r.devices).unwrap_or_default();
    for number in 0..4 {
        ctx.device(number, |device| {
            device.uuid = format!("GPU-5a4e0000-0000-4000-8000-{number:012x}");
        })?;
    }
    for process in process::in_pod(&ctx.cluster.cgroup(), &uid) {
        process.signal(Signal::KILL);
    }
    // Then the gate has run again, on the new device, under the old name
    let (uid, now) = replaced(ctx, &uid).await?;
    ensure!(now != devices, "the devices are still {now:?}");
    runs_a_job(ctx, "four").await?;

    // When somebody deletes the pod
    let pods: Api<Pod> = ctx.api();
    pods.delete("pool-0", &DeleteParams::default().grace_period(1))
        .await?;
    let (uid, _) = replaced(ctx, &uid).await?;
    runs_a_job(ctx, "five").await?;

    // When somebody removes its entry
    ctx.github.delete_runner(entry(ctx).await?).await?;
    replaced(ctx, &uid).await?;
    runs_a_job(ctx, "six").await?;

    // And nothing is left of it after a deletion
    ctx.delete("pool").await?;
    let after = ctx.github.state().await?.lasting;
    ensure!(after == before, "before {before:#}, after {after:#}");
    namesake(ctx).await
}

/// Another pool of this name, in another namespace and for the same repository.
async fn namesake(ctx: &Ctx) -> Result<()> {
    // Given a pool whose runner waits
    ctx.apply(&one(ctx)).await?;
    ctx.idle("pool", 1).await?;
    // When the same is applied in another namespace
    let theirs = Ctx::new(&ctx.cluster, &format!("{}-beside", ctx.namespace)).await?;
    let second = Ctx {
        repository: ctx.repository.clone(),
        ..theirs.clone()
    };
    let outcome = does_no_harm(ctx, &second).await;
    let tidied = theirs.tidy().await;
    outcome?;
    tidied.context("the namesake's namespace")?;
    ctx.delete("pool").await
}

async fn does_no_harm(ctx: &Ctx, second: &Ctx) -> Result<()> {
    let first = entry(ctx).await?;
    second.apply(&one(second)).await?;
    // Then the second one says that the name is another pool's
    ctx.wait_for("the namesake to be refused", SOON, async || {
        let failures = second.status("pool").await?.last_failures;
        let advice = "give this pool another name";
        let mut refused = failures.iter();
        let refused =
            refused.any(|f| f.reason == "RegistrationRefused" && f.message.contains(advice));
        Ok(refused.then_some(()))
    })
    .await?;
    // And the first one's runner is there and takes a job
    ensure!(entry(ctx).await? == first, "the entry is another one");
    runs_a_job(ctx, "seven").await?;
    // When the second one goes, then the entry stays
    second.delete("pool").await?;
    ensure!(
        entry(ctx).await? == first,
        "the entry went with another pool"
    );
    runs_a_job(ctx, "eight").await
}

fn one(ctx: &Ctx) -> Value {
    ctx.pool("pool", json!({"lifetime": "Persistent", "replicas": 1}))
}

async fn runs_a_job(ctx: &Ctx, name: &str) -> Result<()> {
    let job = ctx.queue(name, "true").await?;
    let view = ctx.succeeded(job).await?;
    ensure!(view.runner.as_deref() == Some("pool-0"), "{view:?}");
    Ok(())
}

/// Waits for another pod of the same name that is idle, with one entry on GitHub; gives its uid and devices.
async fn replaced(ctx: &Ctx, old: &str) -> Result<(String, Vec<String>)> {
    ctx.wait_for("another idle pool-0", SOON, async || {
        let Ok(now) = uid(ctx).await else {
            return Ok(None);
        };
        let idle = runner(ctx).await?.filter(|r| r.phase == RunnerPhase::Idle);
        let alone = ctx.entries().await? == ["pool-0"];
        Ok(idle
            .filter(|_| now != old && alone)
            .map(|runner| (now, runner.devices)))
    })
    .await
}

async fn runner(ctx: &Ctx) -> Result<Option<RunnerStatus>> {
    let status = ctx.status("pool").await?;
    Ok(status.runners.into_iter().find(|r| r.name == "pool-0"))
}

async fn uid(ctx: &Ctx) -> Result<String> {
    let pods: Api<Pod> = ctx.api();
    let pod = pods.get("pool-0").await?;
    pod.metadata.uid.context("a pod without uid")
}

/// GitHub's number of the runner.
async fn entry(ctx: &Ctx) -> Result<u64> {
    let runners = ctx.runners().await?;
    let id = runners.first().and_then(|runner| runner["id"].as_u64());
    id.context("GitHub has no runner")
}
