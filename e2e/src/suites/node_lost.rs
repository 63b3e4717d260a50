//! A machine dies under the jobs of three pools. GitHub has named the job of the one, by its scale set, and that of another,
//! by the list of jobs that run: they are run again on another node, once. The third's only its pod names, when the machine is
//! back: then it is run again, too.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::{RerunCause, RerunState, RerunStatus};
use github_simulator::{
    control::JobView,
    state::{Conclusion, Seen},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    rerun::{entry, is_rerun, last_attempt},
    runner_ends::failed,
    second_node::with_node_that_offers,
};
use crate::{
    cluster::{Cluster, Offer},
    node,
};

/// The pool with a scale set; one that has read which jobs run; and one that has not since its job began.
const NAMED: &str = "named";
const LISTED: &str = "listed";
const PLAIN: &str = "plain";
const POOLS: [&str; 3] = [NAMED, LISTED, PLAIN];
/// Kubernetes gives a silent node two minutes here, and taints one node in ten seconds.
const MISSED: Duration = Duration::from_mins(5);
/// How long a pod tolerates a node that does not answer, and how long it may take to end.
const SECONDS: u32 = 5;

/// Red when its node vanishes; green in another attempt.
const JOB: &str = r#"
[ "$GITHUB_RUN_ATTEMPT" = 1 ] || exit 0
echo begun
while :; do sleep 0.1; done
"#;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let outcome = with_node_that_offers(ctx, POOLS.len(), Offer::Resource, async |_| {
        let mark = ctx.last_call().await?;
        let jobs = jobs_on_the_second_node(ctx).await?;
        the_machine_dies(ctx, &jobs).await?;
        let [named, listed, _] = &jobs;
        the_known_ones_are_run_again(ctx, mark, [(NAMED, named), (LISTED, listed)]).await?;
        the_machine_is_back(ctx, &jobs).await?;
        each_is_run_again_once(ctx, mark, &jobs).await?;
        for pool in POOLS {
            ctx.delete(pool).await?;
        }
        Ok(())
    })
    .await;
    // Whatever came of it, the next suite finds a node
    outcome.and(Cluster::cordon(&ctx.client, node::NAME, false).await)
}

/// A pool that leaves a silent node at once, and has its jobs run again.
fn pool(ctx: &Ctx, name: &str, size: Value) -> Value {
    let silent = |what: &str| {
        json!({
            "key": format!("node.kubernetes.io/{what}"),
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": SECONDS,
        })
    };
    let mut pool = ctx.pool(name, size);
    let spec = &mut pool["spec"];
    spec["labels"] = json!(["self-hosted", name]);
    spec["rerun"] = json!({"onNodeLoss": true, "onGpuFault": true});
    spec["template"]["spec"]["tolerations"] = json!([silent("unreachable"), silent("not-ready")]);
    spec["template"]["spec"]["terminationGracePeriodSeconds"] = json!(SECONDS);
    pool
}

async fn jobs_on_the_second_node(ctx: &Ctx) -> Result<[JobView; 3]> {
    // Given that only the second node takes pods, and a job for each pool
    Cluster::cordon(&ctx.client, node::NAME, true).await?;
    let scaling = json!({"scaling": {"maxRunners": 1}});
    ctx.apply(&pool(ctx, NAMED, scaling)).await?;
    for name in [LISTED, PLAIN] {
        ctx.apply(&pool(ctx, name, json!({"replicas": 1}))).await?;
    }
    let begun = async |name: &str| {
        let labels = ["self-hosted", name];
        let job = ctx.queue_for(name, &labels, JOB, false).await?;
        ctx.wait_for(&format!("the step of {name}"), SOON, async || {
            let log = ctx.github.job_log(job).await?;
            Ok(log.contains("begun").then_some(()))
        })
        .await?;
        let view = ctx.github.job(job).await?;
        let runner = view.runner.as_ref().context("the job has no runner")?;
        ctx.wait_for(&format!("{runner} to be busy there"), SOON, async || {
            let status = ctx.status(name).await?;
            let mut its = status.runners.iter().filter(|r| r.name == *runner);
            let is_there = its.any(|r| r.node.as_deref() == Some(node::SECOND));
            Ok((is_there && status.busy == 1).then_some(()))
        })
        .await?;
        anyhow::Ok(view)
    };
    let (named, listed) = (begun(NAMED).await?, begun(LISTED).await?);
    // ... while one of them looks at GitHub's list
    let mark = ctx.last_call().await?;
    ctx.look_again(LISTED, "1").await?;
    ctx.wait_for("the list of jobs to be read", SOON, async || {
        let asked = ctx.own_calls(mark).await?;
        let of_jobs = |call: &Seen| call.path.contains(&format!("/runs/{}/jobs", listed.run));
        Ok(asked.iter().any(of_jobs).then_some(()))
    })
    .await?;
    let plain = begun(PLAIN).await?;
    Cluster::cordon(&ctx.client, node::NAME, false).await?;
    Ok([named, listed, plain])
}

/// Its processes are gone, and what they had in memory. GitHub notices first.
async fn the_machine_dies(ctx: &Ctx, jobs: &[JobView; 3]) -> Result<()> {
    ctx.cluster.lose_second_node()?;
    for job in jobs {
        let view = ctx.ended(job.id).await?;
        let log = ctx.github.job_log(job.id).await?;
        ensure!(
            view.conclusion == Some(Conclusion::Failure) && log.contains("lost communication"),
            "{view:?}: {log}"
        );
    }
    // That alone proves nothing: an agent that a job kills looks like that, too
    for pool in POOLS {
        let reruns = ctx.status(pool).await?.reruns;
        ensure!(reruns.is_empty(), "{reruns:#?}");
    }
    // Then Kubernetes misses the node, and that is said of all runners
    for (pool, job) in POOLS.into_iter().zip(jobs) {
        let failure = failed(ctx, pool, "NodeLost", MISSED).await?;
        ensure!(
            Some(&failure.runner) == job.runner.as_ref()
                && failure.node.as_deref() == Some(node::SECOND),
            "{failure:?}"
        );
        // ... and no GPU is blamed for it: the node is kept off, until it has been started anew
        let status = ctx.status(pool).await?;
        let [entry] = &status.quarantine[..] else {
            bail!("{:#?}", status.quarantine);
        };
        ensure!(
            entry.node == node::SECOND && entry.class.as_str() == "node" && entry.device.is_none(),
            "{entry:#?}"
        );
    }
    // ... and nobody has named the third one's job
    let reruns = ctx.status(PLAIN).await?.reruns;
    ensure!(reruns.is_empty(), "{reruns:#?}");
    Ok(())
}

async fn the_known_ones_are_run_again(
    ctx: &Ctx,
    mark: u64,
    known: [(&str, &JobView); 2],
) -> Result<()> {
    for (pool, job) in known {
        let runner = job.runner.as_deref().unwrap_or_default();
        let entry = entry(ctx, pool, runner, RerunState::Started).await?;
        is_by_the_node(&entry, job)?;
        ensure!(entry.code_name.as_deref() == Some("NodeLost"), "{entry:#?}");
        // ... and is green on the other node, while the first one is still silent
        green_elsewhere(ctx, pool, job).await?;
    }
    asked_for(ctx, mark, &known.map(|(_, job)| job)).await
}

fn is_by_the_node(entry: &RerunStatus, job: &JobView) -> Result<()> {
    ensure!(
        entry.cause == RerunCause::NodeLoss
            && entry.node.as_deref() == Some(node::SECOND)
            && entry.device.is_none()
            && entry.run_id == i64::try_from(job.run)?
            && entry.attempt == Some(1),
        "{entry:#?}"
    );
    Ok(())
}

/// The second attempt of a job.
async fn green_elsewhere(ctx: &Ctx, pool: &str, job: &JobView) -> Result<()> {
    let again = last_attempt(ctx, job.id).await?;
    ensure!(again.attempt == 2, "{again:?}");
    let again = ctx.succeeded(again.id).await?;
    let what = format!("the second attempt in the status of {pool}");
    ctx.wait_for(&what, SOON, async || {
        let jobs = ctx.status(pool).await?.last_jobs;
        let mut second = jobs.iter().filter(|job| job.attempt == Some(2));
        Ok(second
            .any(|job| {
                Some(&job.runner) == again.runner.as_ref()
                    && job.node.as_deref() == Some(node::NAME)
                    && job.conclusion.as_deref() == Some("success")
            })
            .then_some(()))
    })
    .await
}

/// GitHub was asked to run these jobs again, each once, and no others.
async fn asked_for(ctx: &Ctx, mark: u64, jobs: &[&JobView]) -> Result<()> {
    let mut asked = ctx.own_calls(mark).await?;
    asked.retain(is_rerun);
    let is_asked = |job: &&JobView| {
        let own = format!("/actions/jobs/{}/rerun", job.id);
        asked.iter().filter(|one| one.path.ends_with(&own)).count() == 1
    };
    ensure!(
        asked.len() == jobs.len() && jobs.iter().all(is_asked),
        "{asked:#?}"
    );
    Ok(())
}

async fn the_machine_is_back(ctx: &Ctx, jobs: &[JobView; 3]) -> Result<()> {
    // When it is switched on again, with what is on its disk
    ctx.cluster.bring_second_node_back().await?;
    // Then the pods are gone that it had
    for job in jobs {
        ctx.gone(job.runner.as_deref().unwrap_or_default()).await?;
    }
    // ... what the third one said of its job before is believed as if it had been said in time
    let [.., plain] = jobs;
    let runner = plain.runner.as_deref().unwrap_or_default();
    let entry = entry(ctx, PLAIN, runner, RerunState::Started).await?;
    is_by_the_node(&entry, plain)?;
    green_elsewhere(ctx, PLAIN, plain).await?;
    // ... and the node is kept off no longer
    for pool in POOLS {
        ctx.wait_for("the quarantine to end", SOON, async || {
            let status = ctx.status(pool).await?;
            Ok(status.quarantine.is_empty().then_some(()))
        })
        .await?;
    }
    takes_jobs(ctx).await
}

/// The node that is back runs another job.
async fn takes_jobs(ctx: &Ctx) -> Result<()> {
    Cluster::cordon(&ctx.client, node::NAME, true).await?;
    let labels = ["self-hosted", NAMED];
    let job = ctx.queue_for("afterwards", &labels, "true", false).await?;
    let runner = ctx.succeeded(job).await?.runner;
    Cluster::cordon(&ctx.client, node::NAME, false).await?;
    ctx.wait_for("that job in the status", SOON, async || {
        let jobs = ctx.status(NAMED).await?.last_jobs;
        let mut its = jobs
            .iter()
            .filter(|job| Some(&job.runner) == runner.as_ref());
        let is_there = its.any(|job| job.node.as_deref() == Some(node::SECOND));
        Ok(is_there.then_some(()))
    })
    .await
}

/// Each attempt was given to one runner, and no pod is left.
async fn each_is_run_again_once(ctx: &Ctx, mark: u64, jobs: &[JobView; 3]) -> Result<()> {
    asked_for(ctx, mark, &jobs.each_ref()).await?;
    for (pool, job) in POOLS.into_iter().zip(jobs) {
        let last = last_attempt(ctx, job.id).await?;
        ensure!(
            last.attempt == 2 && last.assignments == 1 && job.assignments == 1,
            "{last:?}"
        );
        let status = ctx.status(pool).await?;
        ensure!(status.reruns.len() == 1, "{:#?}", status.reruns);
        ensure!(status.quarantine.is_empty(), "{:#?}", status.quarantine);
        let mut blamed = status.last_failures.iter().filter(|f| f.device.is_some());
        ensure!(blamed.next().is_none(), "{:#?}", status.last_failures);
    }
    for pool in [LISTED, PLAIN] {
        ctx.idle(pool, 1).await?;
    }
    ctx.wait_for("the two idle runners' pods alone", SOON, async || {
        Ok((ctx.pods().await?.len() == 2).then_some(()))
    })
    .await
}
