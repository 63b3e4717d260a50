//! `kubectl cudarunner why` on a cluster: true, and at once, also where no runner can come. The words of each situation are
//! tested beside the operator's plan; here are those that more than the plan takes part in.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cudarunner_crds::CudaRunner;
use github_simulator::faults::{Action, Fault};
use kube::{Api, api::DeleteParams};
use serde_json::json;

use super::{Ctx, SOON, plugin::plugin};
use crate::{
    deploy,
    helm::{NAMESPACE, RELEASE},
};

/// How long GitHub takes for an answer where it is silent, in milliseconds: longer than the plugin waits.
const SILENCE: u64 = 8_000;
const LIST: &str = "actions/list-self-hosted-runners-for-repo";
/// By then there is an answer, whoever does not answer. The plugin waits for nobody longer than half a second, which is tested
/// beside it; the rest is for a machine with other things to do. The bench's row `why` measures what it takes by itself.
const AT_ONCE: Duration = Duration::from_secs(3);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    a_stalled_pool(ctx).await?;
    no_runner_is_wanted(ctx).await?;
    more_runners_than_gpus(ctx).await?;
    fewer_gpus_than_jobs(ctx).await?;
    github_does_not_answer(ctx).await?;
    github_is_silent(ctx).await?;
    without_an_operator(ctx).await?;
    in_deletion_around_a_job(ctx).await?;
    without_the_page(ctx).await?;
    let on = ["fleetPage.enabled=true"];
    deploy::with_values(&ctx.cluster, &on, async || a_job(ctx).await).await
}

/// What is said of a pool; the lines of a paragraph are one.
async fn why(ctx: &Ctx, arguments: &[&str]) -> Result<String> {
    let arguments = [&["why"], arguments].concat();
    Ok(plugin(ctx, 0, &arguments).await?.replace("\n  ", " "))
}

/// Waits until these words are said of a pool, of which the operator has looked at GitHub, however long that takes here.
async fn says(ctx: &Ctx, pool: &str, words: &str) -> Result<String> {
    ctx.wait_for(&format!("{words:?} of {pool}"), SOON, async || {
        let said = why(ctx, &[pool, "--wait", "30"]).await?;
        Ok(said.contains(words).then_some(said))
    })
    .await
}

/// Waits until this is answered at once. Where the plugin waits for somebody it does so each time.
async fn is_at_once(ctx: &Ctx, arguments: &[&str]) -> Result<()> {
    let what = format!("an answer to {arguments:?} within {AT_ONCE:?}");
    ctx.wait_for(&what, SOON, async || {
        let start = Instant::now();
        why(ctx, arguments).await?;
        let took = start.elapsed();
        println!("why {}: {} ms", arguments.join(" "), took.as_millis());
        Ok((took < AT_ONCE).then_some(()))
    })
    .await
}

async fn a_stalled_pool(ctx: &Ctx) -> Result<()> {
    let credentials = json!({"github": {"credentialsRef": {"name": "nowhere"}}});
    ctx.apply(&ctx.pool("stalled", credentials)).await?;
    ctx.condition("stalled", "Stalled", "True", "SecretNotFound")
        .await?;
    // Nobody is waited for, and the operator is not blamed
    let said = says(ctx, "stalled", "Stalled (SecretNotFound): ").await?;
    ensure!(
        said.matches("nowhere").count() == 1
            && said.contains("create it with the keys")
            && !said.contains("operator"),
        "{said}"
    );
    // Nor among all pools
    let said = why(ctx, &[]).await?;
    let heading = format!("{}/stalled", ctx.namespace);
    ensure!(said.contains(&heading), "{said}");
    is_at_once(ctx, &["stalled"]).await?;
    is_at_once(ctx, &[]).await?;
    ctx.delete("stalled").await
}

async fn no_runner_is_wanted(ctx: &Ctx) -> Result<()> {
    let labels = ["self-hosted", "none"];
    ctx.apply(&ctx.pool("none", json!({"replicas": 0, "labels": labels})))
        .await?;
    ctx.queue_for("in-vain", &labels, "true", false).await?;
    let said = says(ctx, "none", "1 job waits, and spec.replicas is 0").await?;
    is_at_once(ctx, &["none"]).await?;
    // What it says helps
    let command = said.split('`').nth(1).unwrap_or_default();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    ctx.kubectl(&words).await?;
    ctx.wait_for("the job to be done", SOON, async || {
        let jobs = ctx.github.jobs().await?;
        let done = jobs
            .iter()
            .any(|job| job.name == "in-vain" && job.conclusion.is_some());
        Ok(done.then_some(()))
    })
    .await?;
    ctx.delete("none").await
}

async fn more_runners_than_gpus(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("many", json!({"replicas": 5}))).await?;
    let said = says(ctx, "many", "Runners are online, though not all").await?;
    ensure!(
        said.contains("RunnersOnline (Unschedulable)")
            && said.contains("nvidia.com/gpu")
            && said.contains(
                "they are taken, or the node selector, tolerations or other requests of spec.template exclude them"
            ),
        "{said}"
    );
    ensure!(said.matches("Insufficient").count() == 1, "{said}");
    is_at_once(ctx, &["many"]).await?;
    ctx.delete("many").await
}

/// GitHub is offered no more runners of a scale set than there are GPUs for.
async fn fewer_gpus_than_jobs(ctx: &Ctx) -> Result<()> {
    // Given two jobs, and runners each of which takes all GPUs of the node
    let labels = ["self-hosted", "starved"];
    for name in ["one", "another"] {
        ctx.queue_for(name, &labels, "true", true).await?;
    }
    let spec = json!({
        "scaling": {"maxRunners": 2}, "gpu": {"count": 4}, "labels": labels, "deletionPolicy": "Now",
    });
    ctx.apply(&ctx.pool("starved", spec)).await?;
    // When one of them runs, then it is said what the other one waits for
    let said = says(ctx, "starved", "No node has 4 x nvidia.com/gpu free").await?;
    ensure!(
        said.contains("RunnersOnline (Unschedulable): ") && said.contains("they are taken, or "),
        "{said}"
    );
    is_at_once(ctx, &["starved"]).await?;
    ctx.delete("starved").await
}

async fn github_does_not_answer(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    ctx.idle("pool", 1).await?;
    let outage = Action::Answer {
        status: 503,
        body: None,
        headers: [].into(),
        after_handling: false,
    };
    ctx.inject(LIST, 2, outage).await?;
    let said = says(ctx, "pool", "503").await?;
    ensure!(said.starts_with("CredentialsValid ("), "{said}");
    ensure!(
        said.matches("503").count() == 1
            && said.contains("it is tried again, see https://www.githubstatus.com"),
        "{said}"
    );
    says(ctx, "pool", "Nothing holds this pool.").await?;
    Ok(())
}

/// Whoever asks is told so in time, and the operator is not said to be gone.
async fn github_is_silent(ctx: &Ctx) -> Result<()> {
    let silence = Fault {
        delay_millis: SILENCE,
        ..ctx.fault(LIST, 1)
    };
    ctx.github.inject(&silence).await?;
    let said = why(ctx, &["pool"]).await?.replace('\n', " ");
    ensure!(
        said.contains("The operator runs and has not looked at GitHub since you asked")
            && said.contains("--wait 30 gives it more time"),
        "{said}"
    );
    says(ctx, "pool", "Nothing holds this pool.").await?;
    Ok(())
}

/// What the pool's status says is old, and that is said first.
async fn without_an_operator(ctx: &Ctx) -> Result<()> {
    deploy::without(&ctx.client, async || {
        let said = why(ctx, &["pool"]).await?.replace('\n', " ");
        let parts = [
            format!("The operator {NAMESPACE}/{RELEASE}, which served this pool, does not run: "),
            "So all of this is old. No other operator runs that could take it over".to_owned(),
            format!("`kubectl get pods --namespace {NAMESPACE}` shows what became of it"),
        ];
        ensure!(parts.iter().all(|part| said.contains(part)), "{said}");
        // Among all pools, too
        let said = why(ctx, &[]).await?.replace('\n', " ");
        let first = format!(
            "No operator serves {}/pool: nothing is done there",
            ctx.namespace
        );
        ensure!(said.contains(&first), "{said}");
        is_at_once(ctx, &["pool"]).await?;
        is_at_once(ctx, &[]).await
    })
    .await?;
    // Another one has the word
    says(ctx, "pool", "Nothing holds this pool.").await?;
    Ok(())
}

async fn in_deletion_around_a_job(ctx: &Ctx) -> Result<()> {
    let job = ctx.hold("long").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    ctx.wait_for("the runner to be busy", SOON, async || {
        Ok((ctx.status("pool").await?.busy == 1).then_some(()))
    })
    .await?;
    let pools: Api<CudaRunner> = ctx.api();
    pools.delete("pool", &DeleteParams::default()).await?;
    let said = why(ctx, &["pool"]).await?;
    ensure!(
        said.starts_with("Deletion: ")
            && said.contains("those that wait need another pool with their labels")
            && said.contains(&format!(
                "The jobs on {runner} are waited for (spec.deletionPolicy: WaitForJobs), until "
            )),
        "{said}"
    );
    is_at_once(ctx, &["pool"]).await?;
    ctx.github.release(job).await?;
    ctx.wait_for("the pool to be gone", SOON, async || {
        Ok(pools.get_opt("pool").await?.is_none().then_some(()))
    })
    .await
}

/// Of a job that no status tells of, the pools for its repository are told, and what holds them.
async fn without_the_page(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("full", json!({"replicas": 0}))).await?;
    ctx.condition("full", "RunnersOnline", "True", "ScaledToZero")
        .await?;
    let page = format!(
        "{}/{}/actions/runs/404/job/404",
        ctx.cluster.github, ctx.repository
    );
    let said = why(ctx, &[&page]).await?;
    ensure!(
        said.contains(&format!("{}/full, for [", ctx.namespace))
            && said.contains("spec.replicas: ")
            && said.contains("`kubectl scale cudarunner full --replicas 1")
            && said.contains("fleetPage.enabled=true"),
        "{said}"
    );
    is_at_once(ctx, &[&page]).await?;
    ctx.delete("full").await
}

/// One job: by its address while it waits, runs and has ended, and one that no pool takes.
async fn a_job(ctx: &Ctx) -> Result<()> {
    // Given a pool that is busy, a job that waits for it, and one that asks for what nobody has
    ctx.apply(&ctx.pool("jobs", json!({"labels": ["self-hosted", "jobs"]})))
        .await?;
    ctx.idle("jobs", 1).await?;
    let queued = async |name: &str, labels: &[&str], hold: bool| {
        let job = ctx.queue_for(name, labels, "true", hold).await?;
        let view = ctx.github.job(job).await?;
        let page = format!(
            "{}/{}/actions/runs/{}/job/{job}",
            ctx.cluster.github, ctx.repository, view.run
        );
        anyhow::Ok((job, page))
    };
    let (long, _) = queued("long", &["jobs"], true).await?;
    let runner = ctx.picked_up(long).await?.runner.unwrap_or_default();
    let (waits, page) = queued("waits", &["jobs"], false).await?;
    let (_, lost) = queued("lost", &["jobs", "b300"], false).await?;
    // When the operator has read the queue, then both are known by their addresses
    why(ctx, &["jobs", "--wait", "30"]).await?;
    let key = format!("{}/jobs", ctx.namespace);
    // ... and that the runner is busy is in the status a moment later
    let said = says_of_job(ctx, &page, "spec.replicas is 1, and all are busy").await?;
    ensure!(
        said.starts_with("The job waits of run ") && said.contains(&format!("{key} would take it")),
        "{said}"
    );
    let said = says_of_job(ctx, &lost, "no pool takes it").await?;
    ensure!(
        said.contains(&format!("{key} comes nearest, and lacks b300"))
            && said.contains("Add what is missing to spec.labels of the pool that should run it"),
        "{said}"
    );
    is_at_once(ctx, &[&page]).await?;
    // ... and by name; a pool of the same name comes first, unless a job is meant
    let said = why(ctx, &["waits"]).await?;
    ensure!(said.contains("would take it"), "{said}");
    let said = why(ctx, &["jobs"]).await?;
    ensure!(said.contains(" queued, "), "{said}");

    // When it is over, then it is said where and how it ended
    ctx.github.release(long).await?;
    ctx.succeeded(waits).await?;
    let said = says_of_job(ctx, &page, ": success").await?;
    ensure!(
        said.contains("has ended at") && !said.contains(&runner),
        "{said}"
    );
    a_job_of_a_scale_set(ctx).await?;
    ctx.delete("jobs").await
}

/// Its listener knows which job waits, and which runs where.
async fn a_job_of_a_scale_set(ctx: &Ctx) -> Result<()> {
    // Given a set whose runners never come, as nobody has their image
    let labels = json!(["self-hosted", "stuck"]);
    let image =
        json!({"spec": {"containers": [{"name": "runner", "image": "localhost/nowhere:1"}]}});
    let stuck = json!({"scaling": {"maxRunners": 1}, "labels": labels, "template": image});
    ctx.apply(&ctx.pool("stuck", stuck)).await?;
    ctx.queue_for("in-time", &["stuck"], "true", false).await?;
    let said = says_of_job(ctx, "in-time", "would take it").await?;
    let key = format!("{}/stuck would take it", ctx.namespace);
    ensure!(
        said.contains(&key) && said.contains("It asks for [stuck]"),
        "{said}"
    );
    says_of_job(ctx, "in-time", "check its name and the imagePullSecrets").await?;
    ctx.delete("stuck").await?;
    // And one that has a runner
    ctx.apply(&ctx.pool("set", json!({"scaling": {"maxRunners": 1}})))
        .await?;
    let job = ctx.hold("at-work").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let said = says_of_job(ctx, "at-work", " runs since ").await?;
    let place = format!("on the runner {runner} of {}/set", ctx.namespace);
    ensure!(said.contains(&place), "{said}");
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    ctx.delete("set").await
}

/// Waits until these words are said of a job. What is not known of it yet is an error, in words.
async fn says_of_job(ctx: &Ctx, job: &str, words: &str) -> Result<String> {
    ctx.wait_for(&format!("{words:?} of {job}"), SOON, async || {
        Ok(why(ctx, &[job, "--job"])
            .await
            .ok()
            .filter(|said| said.contains(words)))
    })
    .await
}
