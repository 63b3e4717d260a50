//! Each runner that has ended is one line of the operator's log, and its seconds add up to what its pod lived.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, ResourceExt as _,
    api::DeleteParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    metrics::{page, value},
};
use crate::deploy;

/// Seconds for which a job runs at least.
const RUNS: u64 = 3;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let pods = Pods::watch(ctx);
    // Given a runner that has run a job well, one whose job failed, and one that waits
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    let first = ctx.idle("pool", 1).await?.remove(0);
    let job = ctx.queue("good", &format!("sleep {RUNS}")).await?;
    let view = ctx.succeeded(job).await?;
    let second = ctx.other_ready("pool", &first).await?;
    let job = ctx.queue("bad", "exit 3").await?;
    ctx.ended(job).await?;
    let third = ctx.other_ready("pool", &second).await?;
    ctx.gone(&second).await?;
    // When that is removed
    ctx.scale("pool", 0).await?;

    // Then each is a line that says what it did
    let good = line(ctx, &first).await?;
    for (field, value) in [
        ("pool", json!("pool")),
        ("gpus", json!(1)),
        ("product", json!("NVIDIA A100-SXM4-40GB")),
        ("repository", json!(ctx.repository)),
        ("workflow", json!("ad-hoc")),
        ("runId", json!(view.run)),
        ("job", json!("good")),
        ("attempt", json!(1)),
        ("conclusion", json!("success")),
    ] {
        ensure!(good[field] == value, "{field} is not {value}: {good:#}");
    }
    ensure!(used(&good, "job")? >= RUNS, "{good:#}");
    ensure!(used(&good, "lost")? == 0, "{good:#}");
    ensure!(good["devices"].as_array().is_some_and(|all| all.len() == 1));
    let bad = line(ctx, &second).await?;
    ensure!(
        bad["conclusion"] == "failure" && bad["job"] == "bad",
        "{bad:#}"
    );
    ensure!(
        bad.get("reason").is_none(),
        "a job is no failure of its runner: {bad:#}"
    );
    let idle = line(ctx, &third).await?;
    ensure!(idle.get("job").is_none(), "{idle:#}");
    ensure!(used(&idle, "job")? + used(&idle, "lost")? == 0, "{idle:#}");
    // ... and adds up to the life of its pod, and all of them to the metrics
    let lines = [good, bad, idle];
    for line in &lines {
        pods.lived(ctx, line).await?;
    }
    counted(ctx, "pool").await?;
    let page = page(ctx).await?;
    for conclusion in ["success", "failure"] {
        let series = series(ctx, "jobs_total", "pool", "conclusion", conclusion);
        ensure!(value(&page, &series) == Some(1), "{series}: {page}");
    }

    a_failed_gate_is_lost(ctx, &pods).await?;
    an_operator_that_starts_anew_reports_each_once(ctx, &pods).await
}

async fn a_failed_gate_is_lost(ctx: &Ctx, pods: &Pods) -> Result<()> {
    // Given a pool whose gate fails
    ctx.devices(|device| {
        let fault = json!({"call": "cuModuleLoadDataEx", "code": 222});
        device.faults.push(fault);
    })?;
    ctx.apply(&ctx.pool("broken", json!({}))).await?;
    ctx.condition("broken", "Stalled", "True", "GateFailed")
        .await?;
    let failed = ctx.status("broken").await?.last_failures;
    let failed = &failed.first().context("no failure is noted")?.runner;
    // When its pod, which was kept for a look, is removed
    let api: Api<Pod> = ctx.api();
    api.delete(failed, &DeleteParams::default()).await?;
    // Then all of its time is lost
    let line = line(ctx, failed).await?;
    ensure!(line["reason"] == "GateFailed", "{line:#}");
    for nothing in ["gate", "idle", "job"] {
        ensure!(used(&line, nothing)? == 0, "{line:#}");
    }
    pods.lived(ctx, &line).await?;
    counted(ctx, "broken").await?;
    ctx.devices(|_| {})?;
    ctx.delete("broken").await
}

async fn an_operator_that_starts_anew_reports_each_once(ctx: &Ctx, pods: &Pods) -> Result<()> {
    // Given a runner that waits while the operator is killed
    ctx.scale("pool", 1).await?;
    let runner = ctx.idle("pool", 1).await?.remove(0);
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    // When it is removed after that, and its pool with it
    ctx.scale("pool", 0).await?;
    let line = line(ctx, &runner).await?;
    pods.lived(ctx, &line).await?;
    ctx.delete("pool").await?;
    // Then it, and none of those before, was reported, and once
    let mut all = BTreeMap::new();
    for line in lines(ctx).await? {
        let uid = line["uid"].as_str().context("a line without a uid")?;
        *all.entry(uid.to_owned()).or_insert(0) += 1;
    }
    ensure!(
        all.len() == 1 && all.values().all(|times| *times == 1),
        "{all:#?}"
    );
    Ok(())
}

/// The pods of the suite, as they were last seen.
#[derive(Clone, Default)]
struct Pods(Arc<Mutex<BTreeMap<String, Pod>>>);

impl Pods {
    /// Watches them until the runtime ends.
    fn watch(ctx: &Ctx) -> Self {
        let pods = Self::default();
        let seen = pods.clone();
        let stream = watcher(ctx.api::<Pod>(), watcher::Config::default());
        let mut stream = stream.default_backoff().touched_objects().boxed();
        tokio::spawn(async move {
            while let Some(pod) = stream.next().await {
                let Ok(pod) = pod else { continue };
                if let Ok(mut seen) = seen.0.lock() {
                    seen.insert(pod.name_any(), pod);
                }
            }
        });
        pods
    }

    /// Waits until a pod's life is known to its end, and compares.
    async fn lived(&self, ctx: &Ctx, line: &Value) -> Result<()> {
        let name = line["runner"].as_str().context("a line without a runner")?;
        let what = format!("the end of the pod {name}");
        let lived = ctx
            .wait_for(&what, SOON, async || {
                let seen = self.0.lock().ok().and_then(|seen| seen.get(name).cloned());
                Ok(seen.and_then(|pod| life(&pod)))
            })
            .await?;
        let parts = ["gate", "idle", "job", "lost"];
        let parts = parts.iter().map(|part| used(line, part));
        let sum: u64 = parts.sum::<Result<u64>>()?;
        ensure!(sum == lived, "the pod lived for {lived} s: {line:#}");
        Ok(())
    }
}

/// Seconds from the scheduler's decision to the end of the last container; `None` where one has not ended.
fn life(pod: &Pod) -> Option<u64> {
    let status = pod.status.as_ref()?;
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let conditions = status.conditions.iter().flatten();
    let mut bound = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "True");
    let bound = bound.next()?.last_transition_time.as_ref()?.0;
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    let ends = all.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let last: Timestamp = ends.map(|at| at.0).max().filter(|_| over)?;
    u64::try_from(last.as_second() - bound.as_second()).ok()
}

/// The lines of the suite's runners that the operator has written.
async fn lines(ctx: &Ctx) -> Result<Vec<Value>> {
    let logs = deploy::operator_log(&ctx.client, None).await?;
    let lines = logs.iter().flat_map(|log| log.lines());
    let read = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_ours =
        |line: &Value| line["target"] == "runner_ended" && line["namespace"] == *ctx.namespace;
    Ok(read.filter(is_ours).collect())
}

/// Waits for the line of a runner, the only one.
pub(super) async fn line(ctx: &Ctx, runner: &str) -> Result<Value> {
    let what = format!("the line of {runner} in the operator's log");
    let mut found = ctx
        .wait_for(&what, SOON, async || {
            let mut all = lines(ctx).await?;
            all.retain(|line| line["runner"] == runner);
            Ok((!all.is_empty()).then_some(all))
        })
        .await?;
    ensure!(found.len() == 1, "{found:#?}");
    found.pop().context("no line")
}

fn used(line: &Value, part: &str) -> Result<u64> {
    let seconds = line["seconds"][part].as_u64();
    seconds.with_context(|| format!("no seconds of {part}: {line:#}"))
}

/// Waits until the metrics of a pool are the sums of its lines.
async fn counted(ctx: &Ctx, pool: &str) -> Result<()> {
    let mut last = String::new();
    let what = format!("the lines of {pool} to add up to its metrics");
    let added_up = ctx
        .wait_for(&what, SOON, async || {
            let page = page(ctx).await?;
            let mut lines = lines(ctx).await?;
            lines.retain(|line| line["pool"] == pool);
            let mut is_same = true;
            last.clear();
            for part in ["gate", "idle", "job", "lost"] {
                let seconds = lines.iter().map(|line| used(line, part));
                let sum: u64 = seconds.sum::<Result<u64>>()?;
                let series = series(ctx, "gpu_seconds_total", pool, "use", part);
                let found = value(&page, &series);
                is_same &= found == Some(sum);
                // Writing to a string cannot fail.
                let _ = write!(last, "{series} is {found:?}, the lines have {sum}; ");
            }
            Ok(is_same.then_some(()))
        })
        .await;
    added_up.with_context(|| last)
}

fn series(ctx: &Ctx, metric: &str, pool: &str, label: &str, is: &str) -> String {
    let namespace = &ctx.namespace;
    format!(r#"cudarunner_{metric}{{namespace="{namespace}",pool="{pool}",{label}="{is}"}}"#)
}
