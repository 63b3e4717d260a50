//! Jobs with containers that meet trouble: a step that was cut off is never green, the log says what happened in
//! Kubernetes' own words, the runner is replaced, and nobody is blamed.

use std::time::Duration;

use anyhow::{Result, ensure};
use gate_report::contract::GPU;
use github_simulator::{
    control::JobView,
    state::Conclusion::{Cancelled, Failure, Success},
};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    core::v1::{Pod, Secret},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    container_jobs::{ended, images, pool, start, workflow},
    late_registration::{arrives, nobody_is_blamed},
};
use crate::deploy::{self, is_ready};

/// An image that every node here has.
const IMAGE: &str = "nvidia/cuda:12.4.1-devel-ubuntu22.04";
/// One that comes late, and one that never does.
const LATE: &str = "localhost/late-job:dev";
const ABSENT: &str = "localhost/absent-job:dev";
/// A policy, and its words.
const POLICY: &str = "fixed-images";
const RULE: &str = "images of running pods are fixed here";
/// How long a step may go on after its end was asked for.
const CANCELLED: Duration = Duration::from_secs(30);
/// A step that lasts until it is released.
const HOLD: &str = r#"while [ ! -e "$RUNNER_TEMP/released" ]; do sleep 0.2; done"#;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    images(ctx)?;
    ctx.apply(&pool(ctx, "faults", 2)).await?;
    no_image(ctx).await?;
    no_memory(ctx).await?;
    cancelled(ctx).await?;
    out_of_time(ctx).await?;
    no_operator(ctx).await?;
    kubelet_restarted(ctx).await?;
    container_ended(ctx).await?;
    service_failed(ctx).await?;
    forbidden(ctx).await?;
    evicted(ctx).await?;
    nobody_is_blamed(ctx, "faults").await?;
    // What jobs needed went with their pods.
    ctx.delete("faults").await?;
    ctx.wait_for("the jobs' Secrets to be gone", SOON, async || {
        let secrets: Api<Secret> = ctx.api();
        let all = secrets.list(&ListParams::default()).await?.items;
        let mut names = all.iter().filter_map(|s| s.metadata.name.as_deref());
        Ok(names.all(|name| !name.ends_with("-job")).then_some(()))
    })
    .await
}

/// Starts a job with a step of this script.
async fn job(ctx: &Ctx, name: &str, image: &str, script: &str) -> Result<(u64, u64)> {
    let text = include_str!("container_faults/workflow.yml")
        .replace("JOB", name)
        .replace("IMAGE", image)
        .replace("SCRIPT", script);
    let file = format!("{name}.yml");
    ctx.write_workflow(workflow(&file, &text)).await?;
    let run = start(ctx, &file).await?;
    Ok((run.run, run.jobs[0]))
}

/// Starts one that lasts until it is released, and waits until its step runs.
async fn held(ctx: &Ctx, name: &str) -> Result<(u64, u64, String)> {
    let (run, id) = job(ctx, name, IMAGE, HOLD).await?;
    let runner = ctx.picked_up(id).await?.runner.unwrap_or_default();
    began(ctx, id).await?;
    Ok((run, id, runner))
}

async fn began(ctx: &Ctx, job: u64) -> Result<()> {
    ctx.wait_for(&format!("job {job} to begin its work"), SOON, async || {
        let log = ctx.github.job_log(job).await?;
        Ok(log.contains("it has begun").then_some(()))
    })
    .await
}

/// Waits for the end of a job that has to be red, with these words in its log; gives how long it took.
async fn red(ctx: &Ctx, job: u64, words: &[&str]) -> Result<JobView> {
    let view = ended(ctx, job).await?;
    let log = ctx.github.job_log(job).await?;
    let missing: Vec<_> = words.iter().filter(|w| !log.contains(**w)).collect();
    ensure!(
        view.conclusion == Some(Failure) && missing.is_empty(),
        "{} ended with {:?}, and its log lacks {missing:?}: {log}",
        view.name,
        view.conclusion
    );
    Ok(view)
}

async fn no_image(ctx: &Ctx) -> Result<()> {
    // An image that cannot be pulled is said in the job's log within seconds, in the kubelet's words
    let (_, id) = job(ctx, "no-image", ABSENT, "true").await?;
    let view = red(ctx, id, &[ABSENT, "ImagePullBackOff"]).await?;
    let times = view.started_at.zip(view.completed_at);
    let took = times.map(|(start, end)| end.duration_since(start).as_secs());
    ensure!(took.is_some_and(|took| took < 20), "it took {took:?} s");
    Ok(())
}

async fn no_memory(ctx: &Ctx) -> Result<()> {
    // Given a pool whose jobs may have 400 MiB, as the gate before them
    let mut small = pool(ctx, "small", 1);
    small["spec"]["jobContainers"] = json!({"resources": {"limits": {"memory": "400Mi"}}});
    small["spec"]["labels"] = json!(["self-hosted", "small"]);
    ctx.apply(&small).await?;
    // When a step takes more
    let text = include_str!("container_faults/workflow.yml")
        .replace("JOB", "no-memory")
        .replace("IMAGE", IMAGE)
        .replace("cuda]", "small]")
        .replace("SCRIPT", "tail /dev/zero; echo \"this must not run\"");
    ctx.write_workflow(workflow("no-memory.yml", &text)).await?;
    let run = start(ctx, "no-memory.yml").await?;
    // Then the job is red
    red(ctx, run.jobs[0], &["it has begun"]).await?;
    nobody_is_blamed(ctx, "small").await?;
    ctx.delete("small").await
}

async fn cancelled(ctx: &Ctx) -> Result<()> {
    // When the run of a job is cancelled
    let (run, id, _) = held(ctx, "cancelled").await?;
    ctx.github.cancel_run(run).await?;
    // Then its step ends, what always runs does, and the job is cancelled
    let view = ctx
        .wait_for("the job to be cancelled", CANCELLED, async || {
            let view = ctx.github.job(id).await?;
            Ok(view.conclusion.is_some().then_some(view))
        })
        .await?;
    let log = ctx.github.job_log(id).await?;
    ensure!(
        view.conclusion == Some(Cancelled) && log.contains("the report is written"),
        "{:?}: {log}",
        view.conclusion
    );
    Ok(())
}

async fn out_of_time(ctx: &Ctx) -> Result<()> {
    // When a step takes longer than it may
    let text = include_str!("container_faults/workflow.yml")
        .replace("JOB", "out-of-time")
        .replace("IMAGE", IMAGE)
        .replace(
            "- name: Work\n",
            "- name: Work\n        timeout-minutes: 0.1\n",
        )
        .replace("SCRIPT", "sleep 300");
    ctx.write_workflow(workflow("out-of-time.yml", &text))
        .await?;
    let run = start(ctx, "out-of-time.yml").await?;
    // Then it is ended, what always runs does, and the job is red
    red(ctx, run.jobs[0], &["Z the report is written"]).await?;
    Ok(())
}

async fn no_operator(ctx: &Ctx) -> Result<()> {
    // Given a job whose image is not there yet
    let (_, id) = job(ctx, "no-operator", LATE, "true").await?;
    let runner = ctx.picked_up(id).await?.runner.unwrap_or_default();
    // When the operator is killed as soon as the job has come, and the image arrives
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    arrives(ctx, LATE)?;
    // Then the job runs where it began
    let view = ended(ctx, id).await?;
    let log = ctx.github.job_log(id).await?;
    let is_same = view.runner.as_deref() == Some(&runner) && view.assignments == 1;
    // A pull that was tried before ends the job in the kubelet's words, as on any day.
    ensure!(
        is_same && (view.conclusion == Some(Success) || log.contains(LATE)),
        "{view:?}: {log}"
    );
    Ok(())
}

async fn kubelet_restarted(ctx: &Ctx) -> Result<()> {
    // When the kubelet is restarted in the middle of a step
    let (_, id, runner) = held(ctx, "kubelet").await?;
    ctx.cluster.restart_kubelet().await?;
    // Then the step goes on
    ctx.github.release(id).await?;
    let view = ctx.succeeded(id).await?;
    ensure!(
        view.runner.as_deref() == Some(&runner) && view.assignments == 1,
        "{view:?}"
    );
    Ok(())
}

async fn container_ended(ctx: &Ctx) -> Result<()> {
    // When a step's shell is killed, then its code says so
    let script = "kill -9 $$; echo \"this must not run\"";
    let (_, id) = job(ctx, "killed", IMAGE, script).await?;
    red(ctx, id, &["it has begun", "exit code 137"]).await?;
    // When the job ends its container, then the step is red, and so is each that would come after it
    let script = "kill 1; sleep 30; echo \"this must not run\"";
    let (_, id) = job(ctx, "init", IMAGE, script).await?;
    red(ctx, id, &["it has begun", "The job's container"]).await?;
    let log = ctx.github.job_log(id).await?;
    // The script's own line is in the log, as GitHub shows it.
    let ran = log
        .lines()
        .any(|line| line.ends_with("Z this must not run"));
    let reported = log
        .lines()
        .any(|line| line.ends_with("Z the report is written"));
    ensure!(!ran && !reported, "{log}");
    Ok(())
}

async fn service_failed(ctx: &Ctx) -> Result<()> {
    // When a service does not start, then the job says so before its first step
    let text = include_str!("container_faults/workflow.yml")
        .replace("JOB", "service")
        .replace(
            "    container: IMAGE\n",
            &format!("    container: {IMAGE}\n    services:\n      db:\n        image: postgres:16\n        ports: [5432]\n"),
        )
        .replace("SCRIPT", "true");
    ctx.write_workflow(workflow("service.yml", &text)).await?;
    let run = start(ctx, "service.yml").await?;
    red(ctx, run.jobs[0], &["Image postgres:16: Error"]).await?;
    Ok(())
}

async fn forbidden(ctx: &Ctx) -> Result<()> {
    // Given a policy of the cluster by which images of running pods are fixed
    ctx.idle("faults", 2).await?;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(ctx.client.clone());
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(ctx.client.clone());
    let params = PostParams::default();
    policies
        .create(&params, &serde_json::from_value(policy(&ctx.namespace))?)
        .await?;
    let binding = json!({
        "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    });
    bindings
        .create(&params, &serde_json::from_value(binding)?)
        .await?;
    in_force(ctx, true).await?;
    // When a job names its image, then its log has the policy's words
    let (_, id) = job(ctx, "forbidden", IMAGE, "true").await?;
    red(ctx, id, &["could not be changed to the job's", RULE]).await?;
    // And so has the status of a pool whose agent's image cannot come
    let mut plain = ctx.pool("plain", json!({}));
    plain["spec"]["labels"] = json!(["plain"]);
    ctx.apply(&plain).await?;
    ctx.wait_for("the pool to say what forbids its image", SOON, async || {
        let failures = ctx.status("plain").await?.last_failures;
        let said = failures
            .iter()
            .any(|failure| failure.message.contains(RULE));
        Ok(said.then_some(()))
    })
    .await?;
    nobody_is_blamed(ctx, "plain").await?;
    ctx.delete("plain").await?;
    let gone = DeleteParams::default();
    bindings.delete(POLICY, &gone).await?;
    policies.delete(POLICY, &gone).await?;
    in_force(ctx, false).await
}

/// Waits until the API server refuses a change of an image, or does not any more.
async fn in_force(ctx: &Ctx, wanted: bool) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let patch =
        json!({"spec": {"initContainers": [{"name": GPU, "image": "localhost/another:dev"}]}});
    let what = format!("that the policy is in force: {wanted}");
    ctx.wait_for(&what, SOON, async || {
        let Some(pod) = ctx.pods().await?.into_iter().find(is_ready) else {
            return Ok(None);
        };
        let answer = pods
            .patch(&pod.name_any(), &params, &Patch::Strategic(&patch))
            .await;
        let refused = answer.is_err_and(|error| error.to_string().contains(RULE));
        Ok((refused == wanted).then_some(()))
    })
    .await
}

fn policy(namespace: &str) -> Value {
    let same = "object.spec.initContainers.all(c, oldObject.spec.initContainers.exists(o, o.name == c.name && o.image == c.image))";
    json!({
        "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [{
                    "apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods"],
                }],
            },
            "validations": [{
                "expression": format!("!has(oldObject.spec.initContainers) || {same}"),
                "message": RULE,
            }],
        },
    })
}

async fn evicted(ctx: &Ctx) -> Result<()> {
    // When the pod of a job is evicted
    let (_, id, runner) = held(ctx, "evicted").await?;
    let pods: Api<Pod> = ctx.api();
    pods.evict(&runner, &EvictParams::default()).await?;
    // Then the job is not green, and the runner is replaced
    let view = ended(ctx, id).await?;
    ensure!(view.conclusion != Some(Success), "{view:?}");
    ctx.gone(&runner).await?;
    ctx.idle("faults", 2).await?;
    Ok(())
}
