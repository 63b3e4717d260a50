//! What a job's GPU did stands on the job's own page, in the status and in the metrics; and whatever the driver does, the job
//! goes on.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{JobGpuStatus, JobStatus};
use github_simulator::{control::JobView, state::Conclusion::Success};
use serde_json::{Value, json};

use super::{Ctx, SOON, container_jobs, context::workflow, hours, metrics, sample::sample};
use crate::deploy;

/// The devices of the node.
const DEVICES: usize = 4;
/// Cases of a sample.
const SAMPLE: usize = 3;
/// A job that is long enough to be said to have left its GPU alone, which takes ten seconds of watching: whatever watches it
/// comes late on a busy machine.
const LONG: &str = "sleep 25";
/// A job that is long enough for something to be told of it.
const WATCHED: &str = "sleep 8";
/// Nobody watches where the pool says so.
const UNWATCHED: &str = "[ ! -e /run/cuda-runner/bin/cuda-smoke ]";
/// A job that ends what watches it: that costs what would be told.
const ENDS_IT: &str = "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in *'cuda-smoke sample'*) kill -9 ${p#/proc/};; esac; done";
const CONTAINER: &str = r"
on: workflow_dispatch
jobs:
  test:
    runs-on: [self-hosted, cuda-containers]
    container: docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04
    steps: [{run: sleep 8}]
";

/// A device as the driver shows it, what goes wrong in the driver, and what is told of a job then.
struct Case {
    name: &'static str,
    properties: Value,
    faults: Value,
    script: &'static str,
    /// How the job's annotation begins, and what is in it; `None` where there is none.
    told: Option<(&'static str, &'static str)>,
}

/// A device with something to do: of another one it is told that it was never used, once it has been watched for ten seconds.
fn busy() -> Value {
    json!({"activity": {"utilization": [0, 80]}})
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let used =
        json!({"activity": {"utilization": [0, 80], "memoryUsed": 41_u64 << 30, "watts": 700}});
    let case = |name, properties, faults, script, told| Case {
        name,
        properties,
        faults,
        script,
        told,
    };
    let none = || json!([]);
    let fault = |call: &str, what: &str, value: Value| json!([{"call": call, what: value}]);
    vec![
        case(
            "used",
            used,
            none(),
            WATCHED,
            Some(("notice", "busy 80 % (max 80 %), 41 GiB, ")),
        ),
        case(
            "unused",
            json!({}),
            none(),
            LONG,
            Some(("warning", "this job never used its GPU")),
        ),
        case(
            "throttled",
            json!({"health": {"clockReasons": 0x40}}),
            none(),
            WATCHED,
            Some(("warning", "(heat ")),
        ),
        case(
            "ecc",
            json!({"activity": {"uncorrectedErrors": [3, 1]}}),
            none(),
            WATCHED,
            Some(("warning", " uncorrected ECC errors")),
        ),
        case(
            "absent",
            json!({}),
            fault("nvmlInit_v2", "code", json!(9)),
            "true",
            None,
        ),
        case(
            "hangs",
            json!({}),
            fault("nvmlDeviceGetHandleByUUID", "hang", json!(true)),
            WATCHED,
            None,
        ),
        case(
            "hangs-later",
            busy(),
            fault("nvmlDeviceGetTotalEnergyConsumption", "hang", json!(true)),
            WATCHED,
            Some(("notice", "no errors")),
        ),
        case(
            "crashes",
            json!({}),
            fault(
                "nvmlDeviceGetTotalEnergyConsumption",
                "crash",
                json!("segv"),
            ),
            WATCHED,
            None,
        ),
        case("ended", json!({}), none(), ENDS_IT, None),
    ]
}

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let mut others = cases();
    // Summary, log and metrics are looked at with the first.
    let first = others.remove(0);
    let others = sample(&ctx.namespace, others, SAMPLE - 1, |case| case.name);
    for case in [first].into_iter().chain(others) {
        told(ctx, &case).await.context(case.name)?;
    }
    of_devices(ctx, &json!({}), &json!([]))?;
    switched_off(ctx).await?;
    in_a_container(ctx).await
}

fn of_devices(ctx: &Ctx, properties: &Value, faults: &Value) -> Result<()> {
    for number in 0..DEVICES {
        ctx.device(number, |device| {
            device.properties = properties.as_object().cloned().unwrap_or_default();
            device.faults = faults.as_array().cloned().unwrap_or_default();
        })?;
    }
    Ok(())
}

async fn told(ctx: &Ctx, case: &Case) -> Result<()> {
    // Given a runner on such a device
    of_devices(ctx, &case.properties, &case.faults)?;
    ctx.apply(&ctx.pool(case.name, json!({}))).await?;
    ctx.idle(case.name, 1).await?;
    // When it runs a job
    let job = ctx.queue(case.name, case.script).await?;
    let view = ctx.succeeded(job).await?;
    // Then the job's own page says what there is to say, in one line
    let line = annotation(&view)?;
    let expected = case
        .told
        .map(|(level, _)| format!("{level} GPU: NVIDIA A100"));
    match (&line, &expected, case.told) {
        (Some(line), Some(begin), Some((_, text))) => {
            ensure!(line.starts_with(begin) && line.contains(text), "{line}");
        }
        (None, None, _) => {}
        _ => anyhow::bail!("{line:?}, not {:?}", case.told),
    }
    // And so does the status, of the runner's own device
    let noted = noted(ctx, case.name, view.runner.as_deref()).await?;
    ensure!(noted.gpu.len() == usize::from(line.is_some()), "{noted:?}");
    if let [gpu] = &noted.gpu[..] {
        ensure!(noted.devices == [gpu.uuid.clone()], "{noted:?}");
        is_as_told(case.name, gpu)?;
    }
    if case.name == "used" {
        summed_up(&view)?;
        billed(ctx, &noted).await?;
        logged(ctx, &noted).await?;
        measured(ctx, case.name).await?;
    }
    if noted.gpu.iter().any(|gpu| gpu.unused) {
        counted(ctx, case.name).await?;
    }
    // And nobody is blamed
    let status = ctx.status(case.name).await?;
    ensure!(
        status.last_failures.is_empty() && status.quarantine.is_empty(),
        "{status:?}"
    );
    ctx.delete(case.name).await
}

/// What the status says of each case, in figures.
fn is_as_told(case: &str, gpu: &JobGpuStatus) -> Result<()> {
    let throttled = gpu.throttled.map_or(0, |all| all.hardware_thermal_seconds);
    let well = match case {
        "used" => {
            gpu.busy_percent == Some(80)
                && gpu.peak_memory_mib == Some(41 << 10)
                && gpu.energy_joules.is_some_and(|joules| joules > 0)
                && !gpu.unused
        }
        "unused" => gpu.unused && gpu.watched_seconds >= 10,
        "throttled" => throttled > 0,
        "ecc" => gpu.uncorrected_ecc_errors.is_some_and(|errors| errors > 0),
        "hangs-later" => gpu.energy_joules.is_none(),
        _ => false,
    };
    ensure!(well, "{case}: {gpu:?}");
    Ok(())
}

/// The run's summary has a heading, and an item for the GPU with the same figures.
fn summed_up(view: &JobView) -> Result<()> {
    let text = &view.summary;
    let mut items = text.lines().filter(|line| line.starts_with("- "));
    let item = items.next().unwrap_or_default();
    ensure!(
        text.starts_with("### GPU\n")
            && item.contains("NVIDIA A100")
            && item.contains("busy 80 % (max 80 %), 41 GiB, ")
            && items.next().is_none(),
        "the summary is {text:?}"
    );
    Ok(())
}

/// The line of the log from which bills are made has the job's energy.
async fn billed(ctx: &Ctx, noted: &JobStatus) -> Result<()> {
    let line = hours::line(ctx, &noted.runner).await?;
    let joules = noted.gpu.iter().filter_map(|gpu| gpu.energy_joules);
    let joules: i64 = joules.sum();
    ensure!(line["energyJoules"] == joules, "{line:#}, not {joules}");
    Ok(())
}

/// The operator's log has one line with the same.
async fn logged(ctx: &Ctx, noted: &JobStatus) -> Result<()> {
    let logs = deploy::operator_log(&ctx.client, None).await?.concat();
    let about = |line: &&str| {
        line.contains("what the GPUs did during a job") && line.contains(&noted.runner)
    };
    let mut lines = logs.lines().filter(about);
    let line = lines.next().context("the log says nothing of it")?;
    ensure!(
        line.contains("busyPercent") && line.contains("energyJoules"),
        "{line}"
    );
    ensure!(lines.next().is_none(), "it is logged twice");
    Ok(())
}

/// The metrics have how busy the GPU was, and the most of its memory that was taken.
async fn measured(ctx: &Ctx, pool: &str) -> Result<()> {
    let mut last = vec![];
    let counted = ctx
        .wait_for("what the GPU did to be counted", SOON, async || {
            let page = deploy::metrics(&ctx.client).await?.concat();
            let names = [
                "watched_seconds_total",
                "busy_seconds_total",
                "memory_peak_bytes",
            ];
            last = names
                .map(|name| count(ctx, &page, pool, &format!("job_gpu_{name}")))
                .to_vec();
            let [watched, busy, memory] = last[..] else {
                return Ok(None);
            };
            let is_busy = watched
                .zip(busy)
                .is_some_and(|(watched, busy)| 0 < busy && busy < watched);
            Ok((is_busy && memory == Some(41 << 30)).then_some(()))
        })
        .await;
    counted.with_context(|| format!("they are {last:?}"))
}

/// The value of a pool's series.
fn count(ctx: &Ctx, page: &str, pool: &str, name: &str) -> Option<u64> {
    let namespace = &ctx.namespace;
    let series = format!(r#"cudarunner_{name}{{namespace="{namespace}",pool="{pool}"}}"#);
    metrics::value(page, &series)
}

/// What the job's page says of its GPU.
fn annotation(view: &JobView) -> Result<Option<String>> {
    let about = |line: &&String| line.contains(" GPU: ");
    let mut lines = view.annotations.iter().filter(about).cloned();
    let line = lines.next();
    ensure!(lines.next().is_none(), "{:?}", view.annotations);
    Ok(line)
}

/// The job that has ended on this runner, as the status has it.
async fn noted(ctx: &Ctx, pool: &str, runner: Option<&str>) -> Result<JobStatus> {
    ctx.wait_for("the job to be noted", SOON, async || {
        let jobs = ctx.status(pool).await?.last_jobs;
        let ours = |job: &JobStatus| Some(job.runner.as_str()) == runner;
        Ok(jobs.into_iter().find(ours))
    })
    .await
}

/// The metrics have what the job's GPU took, and that it was not used.
async fn counted(ctx: &Ctx, pool: &str) -> Result<()> {
    ctx.wait_for("the job to be counted", SOON, async || {
        let page = deploy::metrics(&ctx.client).await?.concat();
        let joules = count(ctx, &page, pool, "job_gpu_energy_joules_total");
        let unused = count(ctx, &page, pool, "jobs_without_gpu_use_total");
        Ok((joules.is_some_and(|joules| joules > 0) && unused == Some(1)).then_some(()))
    })
    .await
}

async fn switched_off(ctx: &Ctx) -> Result<()> {
    // Given a pool whose jobs are not watched
    let off = json!({"jobs": {"telemetry": "Disabled"}});
    ctx.apply(&ctx.pool("off", off)).await?;
    ctx.idle("off", 1).await?;
    // Then nothing is there that could, and nothing is told
    let job = ctx.queue("off", UNWATCHED).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(annotation(&view)?.is_none(), "{view:?}");
    let noted = noted(ctx, "off", view.runner.as_deref()).await?;
    ensure!(noted.gpu.is_empty(), "{noted:?}");
    ctx.delete("off").await
}

async fn in_a_container(ctx: &Ctx) -> Result<()> {
    // Given a pool whose jobs bring their containers, on devices that are busy
    of_devices(ctx, &busy(), &json!([]))?;
    container_jobs::images(ctx)?;
    let spec = json!({"jobContainers": {}, "labels": ["self-hosted", "cuda-containers"]});
    ctx.apply(&ctx.pool("containers", spec)).await?;
    ctx.idle("containers", 1).await?;
    // When a job runs in its own image
    ctx.write_workflow(workflow("container.yml", CONTAINER))
        .await?;
    let started = ctx.dispatch("container.yml").await?;
    let job = *started.jobs.first().context("the run has no job")?;
    let view = ctx.ended_within(job, container_jobs::LIMIT).await?;
    ensure!(view.conclusion == Some(Success), "{view:?}");
    // Then it is told all the same
    let line = annotation(&view)?.context("nothing was told")?;
    ensure!(line.starts_with("notice GPU: NVIDIA A100"), "{line}");
    let noted = noted(ctx, "containers", view.runner.as_deref()).await?;
    ensure!(noted.gpu.len() == 1, "{noted:?}");
    ctx.delete("containers").await
}
