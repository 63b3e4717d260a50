//! The operator is killed at ten moments of a pool's life: no second runner, no lost one, nothing left behind.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::CudaRunner;
use futures::TryStreamExt as _;
use github_simulator::faults::Fault;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::json;

use super::{
    Ctx, SOON,
    context::{agent_with, labels},
};
use crate::{deploy, gpu};

/// Runners with which it is tried to see a gate at work.
const ROUNDS: usize = 5;

/// The largest crowd of pods that were there at the same time and had not ended, by name.
#[derive(Debug, Default)]
struct Most(Mutex<Vec<String>>);

impl Most {
    fn at_most(&self, allowed: usize) -> Result<()> {
        let crowd = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            crowd.len() <= allowed,
            "a pool of {allowed} had these pods at a time: {crowd:?}"
        );
        Ok(())
    }

    fn see(&self, crowd: Vec<String>) {
        let mut most = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if crowd.len() > most.len() {
            *most = crowd;
        }
    }
}

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // So that the workflow of single jobs is there already.
    ctx.queue_for("nobody", &["nobody"], "true", false).await?;
    let before = ctx.github.state().await?.lasting;
    let most = Arc::new(Most::default());
    let count = tokio::spawn(count_pods(ctx.api(), Arc::clone(&most)));
    let outcome = moments(ctx, &most).await;
    count.abort();
    outcome?;
    let after = ctx.github.state().await?.lasting;
    ensure!(after == before, "before {before:#}, after {after:#}");
    Ok(())
}

async fn moments(ctx: &Ctx, most: &Most) -> Result<()> {
    while_runners_come(ctx).await?;
    while_a_job_runs(ctx).await?;
    most.at_most(1)?;
    while_the_pool_changes(ctx, most).await?;
    while_the_spec_cannot_be_read(ctx).await
}

/// What it was before no process remembers, and what was made of it goes all the same.
async fn while_the_spec_cannot_be_read(ctx: &Ctx) -> Result<()> {
    // Given a pool with a runner, and a spec that nothing can be made of any more
    ctx.apply(&ctx.pool("unreadable", json!({}))).await?;
    ctx.idle("unreadable", 1).await?;
    let mut template = agent_with("SETTING", "wrong");
    template["spec"]["containers"][0]["resource"] = json!({"limits": {"cpu": "1"}});
    ctx.apply(&ctx.pool("unreadable", json!({"template": template})))
        .await?;
    ctx.wait_for("the template to be refused", SOON, async || {
        let conditions = ctx.status("unreadable").await?.conditions;
        let refused = conditions.iter().any(|c| c.reason == "InvalidTemplate");
        Ok(refused.then_some(()))
    })
    .await?;
    // When the operator is killed, and the pool deleted, then nothing is left at GitHub
    kill(ctx).await?;
    ctx.delete("unreadable").await?;
    ensure!(ctx.entries().await?.is_empty(), "entries are left");
    Ok(())
}

async fn while_runners_come(ctx: &Ctx) -> Result<()> {
    let some_pod = async |what: &str, seen: &dyn Fn(&Pod) -> bool| {
        ctx.wait_for(what, SOON, async || {
            Ok(ctx.pods().await?.iter().any(seen).then_some(()))
        })
        .await
    };

    // 1: the resource is new
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    kill(ctx).await?;
    // 2: the pod exists
    some_pod("a pod", &|_| true).await?;
    kill(ctx).await?;
    let mut used = ctx.idle("pool", 1).await?;

    // 3: the gate is at work, on the next runner
    a_gate_at_work(ctx, &mut used).await?;
    kill(ctx).await?;
    used.extend(ctx.idle("pool", 1).await?);

    // 4: GitHub has made a registration, and its answer is under way
    let slow = ctx
        .github
        .inject(&Fault {
            path: Some("generate-jitconfig$".to_owned()),
            delay_millis: 3000,
            times: Some(1),
            ..Fault::default()
        })
        .await?;
    let job = ctx.queue("fourth", "true").await?;
    ctx.succeeded(job).await?;
    ctx.wait_for("the registration to be under way", SOON, async || {
        Ok(ctx
            .github
            .faults()
            .await?
            .iter()
            .all(|fault| fault.id != slow)
            .then_some(()))
    })
    .await?;
    kill(ctx).await?;
    // 5: the runner is idle, and there is an entry of the pool's that no pod has, and one of somebody else's
    used.extend(ctx.idle("pool", 1).await?);
    let leftover = leave_behind(ctx, &used).await?;
    kill(ctx).await?;
    ctx.wait_for("the leftover to be swept", SOON, async || {
        Ok((!ctx.entries().await?.contains(&"pool-gone1".to_owned())).then_some(()))
    })
    .await?;
    ctx.github
        .delete_runner(leftover)
        .await
        .context("another's runner was swept, too")?;
    Ok(())
}

/// Waits until the gate of a next runner is at work. That takes it a second or two, which a busy machine may not see: then it
/// is tried with the runner after it.
async fn a_gate_at_work(ctx: &Ctx, used: &mut Vec<String>) -> Result<()> {
    for round in 1..=ROUNDS {
        let job = ctx.queue(&format!("third-{round}"), "true").await?;
        ctx.succeeded(job).await?;
        let is_at_work = ctx.wait_for("a gate at work, or done", SOON, async || {
            let mut pods = ctx.pods().await?;
            pods.retain(|pod| !used.contains(&name(pod)));
            let is_at_work = pods.iter().any(gpu::gate_runs);
            let is_done = pods.iter().any(gpu::is_let_in);
            Ok((is_at_work || is_done).then_some(is_at_work))
        });
        if is_at_work.await? {
            return Ok(());
        }
        used.extend(ctx.idle("pool", 1).await?);
    }
    bail!("in {ROUNDS} rounds no gate was seen at work")
}

async fn while_a_job_runs(ctx: &Ctx) -> Result<()> {
    // 6: the runner has a job
    let job = ctx.hold("sixth").await?;
    ctx.picked_up(job).await?;
    kill(ctx).await?;
    ensure!(
        ctx.github.job(job).await?.conclusion.is_none(),
        "the job was cut short"
    );
    // 7: the job is done
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    kill(ctx).await?;
    ctx.idle("pool", 1).await?;
    Ok(())
}

async fn while_the_pool_changes(ctx: &Ctx, most: &Most) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    // 8: some of the further runners exist
    ctx.scale("pool", 3).await?;
    ctx.wait_for("further pods", SOON, async || {
        Ok((pods.list(&ListParams::default()).await?.items.len() > 1).then_some(()))
    })
    .await?;
    kill(ctx).await?;
    ctx.idle("pool", 3).await?;
    most.at_most(3)?;
    // 9: one of the surplus has left GitHub
    ctx.scale("pool", 1).await?;
    ctx.wait_for("an entry to go", SOON, async || {
        Ok((ctx.entries().await?.len() < 3).then_some(()))
    })
    .await?;
    kill(ctx).await?;
    ctx.idle("pool", 1).await?;
    ctx.wait_for("one entry", SOON, async || {
        Ok((ctx.entries().await?.len() == 1).then_some(()))
    })
    .await?;
    // 10: the pool is being deleted
    let pools: Api<CudaRunner> = ctx.api();
    pools.delete("pool", &DeleteParams::default()).await?;
    kill(ctx).await?;
    ctx.wait_for("the pool to be gone", SOON, async || {
        Ok(pools.get_opt("pool").await?.is_none().then_some(()))
    })
    .await
}

/// Adds an entry with the pool's own label, as a crash would leave it, and one of somebody else's; gives the latter.
async fn leave_behind(ctx: &Ctx, own: &[String]) -> Result<u64> {
    let runners = ctx.runners().await?;
    let ours = runners
        .iter()
        .find(|runner| own.iter().any(|name| runner["name"] == name.as_str()));
    let labels = labels(ours.context("the pool has no runner")?);
    ensure!(
        labels.iter().any(|label| label.starts_with("cudarunner-")),
        "no label of ours: {labels:?}"
    );
    ctx.leave_behind("pool-gone1", labels).await?;
    ctx.leave_behind("pool-other", vec!["cuda".to_owned()])
        .await
}

/// Kills the operator where it stands; another is started in its place.
async fn kill(ctx: &Ctx) -> Result<()> {
    deploy::kill(&ctx.cluster, &ctx.client).await
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

/// Keeps the largest crowd of pods.
async fn count_pods(pods: Api<Pod>, most: Arc<Most>) {
    let mut live: BTreeMap<String, bool> = BTreeMap::new();
    let mut stream = Box::pin(watcher(pods, watcher::Config::default()));
    loop {
        match stream.try_next().await {
            Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) => {
                let phase = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref());
                let ended = matches!(phase, Some("Succeeded" | "Failed"))
                    || pod.metadata.deletion_timestamp.is_some();
                live.insert(name(&pod), !ended);
            }
            Ok(Some(Event::Delete(pod))) => {
                live.remove(&name(&pod));
            }
            // A new list has what is left, and only that.
            Ok(Some(Event::Init)) => live.clear(),
            Ok(Some(Event::InitDone)) | Err(_) => {}
            Ok(None) => return,
        }
        let crowd = live
            .iter()
            .filter(|(_, live)| **live)
            .map(|(name, _)| name.clone());
        most.see(crowd.collect());
    }
}
