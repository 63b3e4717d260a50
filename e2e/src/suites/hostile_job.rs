//! Jobs that mean ill: forged marks and log lines, a log without end, killed processes, a flood at the registrar. Nothing
//! comes of it outside of their own pods.

use anyhow::{Context as _, Result, ensure};
use gate_report::{contract::gate::REGISTRAR_URL, wire::TICKETS};
use github_simulator::state::Conclusion;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{
    Ctx, SOON,
    late_registration::nobody_is_blamed,
    neighbour::{self, Neighbour, nothing_hidden},
};
use crate::{deploy, example};

/// What a line would begin with that a job forges.
const FORGED: &str = "FORGED";
/// What the hooks and the look at the GPU write, and worse.
const MARKS: &str = r#"
exec >>/dev/termination-log
echo '{"mark":"gpu-lost","when":"idle"}'
echo '{"mark":"session-conflict"}'
printf '{"mark":"started","job":"a\\u001b[2J\\u202e\\nFORGED","run":"1","at":"1"}\n'
printf '{"mark":"completed","job":"b\\u001b]0;x\\u0007","run":"../../2","repository":"else/where","at":"253402207200"}\n'
printf '{"schema":"cudarunner.dev/gate-report/v1","outcome":"failed","failure":{"class":"device","code":214}}\n'
printf '\033[2J\033]0;owned\007\nFORGED\n'
"#;
/// A log of many MiB, with a line that has no end, and lines as the operator and the gate write them.
const LOG: &str = r#"
{ printf '\033[2J\nFORGED ERROR the node is broken\n'
  head -c 30000000 /dev/zero | tr '\0' x
  yes '{"mark":"gpu-lost"}' | head -n 100000; } >/proc/1/fd/1 || true
"#;
/// What the job has of its pod's: nothing that the registrar would take.
const LOOK: &str = r"
if ls /var/run/secrets/* 2>/dev/null; then exit 1; fi
if grep --silent --recursive --exclude=gate.json --exclude=runner-init --exclude=cuda-smoke eyJ /run/cuda-runner 2>/dev/null; then exit 1; fi
if [ -s /run/cuda-runner/ticket ]; then exit 1; fi
";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Requested is little: three of them, and the neighbour's, have to fit a machine of two cores.
    let resources = json!({
        "requests": {"cpu": "50m", "memory": "64Mi"},
        "limits": {"cpu": "1", "memory": "512Mi"},
    });
    let agent = json!({"name": "runner", "image": example::AGENT, "resources": resources});
    let template = json!({"spec": {"containers": [agent]}});
    let rerun = json!({"onGpuFault": true, "onNodeLoss": true});
    ctx.apply(&ctx.pool(
        "pool",
        json!({"replicas": 3, "template": template, "rerun": rerun}),
    ))
    .await?;
    let ill = async |other: &Neighbour| {
        // GitHub gives up a runner that has gone silent after half a minute. With less than this it would give up one that
        // only waits for a processor.
        ctx.github
            .change_settings(&json!({"lostSeconds": 15}))
            .await?;
        let outcome = jobs(ctx, other).await;
        ctx.github
            .change_settings(&json!({"lostSeconds": 30}))
            .await?;
        outcome
    };
    Box::pin(neighbour::beside(ctx, ill)).await
}

async fn jobs(ctx: &Ctx, other: &Neighbour) -> Result<()> {
    // Given runners that are there
    ctx.idle("pool", 3).await?;

    // When one floods the registrar, one writes what is not so, and one kills whatever it may
    let flood = flood(&registrar(ctx).await?)?;
    let flood = ctx
        .queue_for("flood", &["self-hosted", "cuda"], &flood, true)
        .await?;
    ctx.wait_for("the flood", SOON, async || {
        let log = ctx.github.job_log(flood).await?;
        Ok(log.contains("flooding").then_some(()))
    })
    .await?;
    let forge = ctx.queue("forge", &format!("{LOOK}{LOG}{MARKS}")).await?;
    let kill = ctx.queue("kill", "kill -9 -1; sleep 60").await?;

    // Then a gate of somebody else's is served all the same
    other.is_unharmed().await.context("during the flood")?;
    let log = deploy::operator_log(&ctx.client, None).await?.concat();
    ensure!(
        log.contains("the registrar does not know who asks"),
        "the flood did not reach the registrar"
    );
    ctx.github.release(flood).await?;
    ctx.succeeded(flood).await?;
    // And what is told is what happened, of the pool's own repository
    ctx.succeeded(forge).await?;
    let killed = ctx.ended(kill).await?;
    ensure!(killed.conclusion != Some(Conclusion::Success), "{killed:?}");
    ctx.idle("pool", 3).await?;
    ctx.wait_for("the jobs to be reported", SOON, async || {
        let jobs = ctx.status("pool").await?.last_jobs;
        let reported = jobs
            .iter()
            .filter(|job| job.conclusion.as_deref() == Some("success"));
        Ok((reported.count() == 2).then_some(()))
    })
    .await?;
    let status = ctx.status("pool").await?;
    let here = format!("{}/{}/", ctx.cluster.github, ctx.repository);
    for job in &status.last_jobs {
        let url = job.url.as_deref().unwrap_or(&here);
        ensure!(url.starts_with(&here), "{job:?}");
    }
    nobody_is_blamed(ctx, "pool").await?;
    ensure!(
        status.reruns.is_empty(),
        "forged marks had jobs run again: {:#?}",
        status.reruns
    );
    ensure!(
        status.last_failures.len() <= 1,
        "{:?}",
        status.last_failures
    );
    nothing_hidden(ctx, FORGED).await
}

/// Where a pod finds the registrar.
async fn registrar(ctx: &Ctx) -> Result<String> {
    let mut pods: Vec<Pod> = ctx.pods().await?;
    let spec = pods.remove(0).spec.context("a pod without spec")?;
    let containers = spec.init_containers.into_iter().flatten();
    containers
        .flat_map(|container| container.env.into_iter().flatten())
        .find(|variable| variable.name == REGISTRAR_URL)
        .and_then(|variable| variable.value)
        .context("the pod has no registrar")
}

/// As many connections as there can be, and tokens that are none; it goes on beside the job's next step, whoever hangs up.
fn flood(url: &str) -> Result<String> {
    let server = url.trim_start_matches("https://");
    let (host, port) = server.rsplit_once(':').context("no port")?;
    Ok(format!(
        r#"
(for n in $(seq 300); do (exec 3<>/dev/tcp/{host}/{port}; sleep 60) & done) >/dev/null 2>&1
for n in 1 2 3 4; do
  (while :; do
    curl --silent --insecure --max-time 5 --header "Authorization: Bearer forged.$n.$RANDOM" --data '{{}}' {url}{TICKETS} || sleep 0.1
  done) >/dev/null 2>&1 &
done
echo flooding
"#
    ))
}
