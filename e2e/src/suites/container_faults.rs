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
    container_jobs::{LIMIT, images, pool},
    context::workflow,
    late_registration::nobody_is_blamed,
};
use crate::deploy::{self, is_ready};

/// An image that every node here has.
const IMAGE: &str = "nvidia/cuda:12.4.1-devel-ubuntu22.04";
/// One that no node has.
const ABSENT: &str = "localhost/absent-job:dev";
/// A policy, and its words.
const POLICY: &str = "fixed-images";
const RULE: &str = "images of running pods are fixed here";
/// By then a job has said that its image cannot be pulled: before anyone would look for it.
const SAID: i64 = 60;
/// How long a step may go on after its end was asked for.
const CANCELLED: Duration = Duration::from_secs(90);
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

/// Starts a job with a step of this script; gives its run, and its own number.
async fn job(ctx: &Ctx, name: &str, image: &str, script: &str) -> Result<(u64, u64)> {
    job_with(ctx, name, image, script, |text| text).await
}

/// Starts one whose file is changed before.
async fn job_with(
    ctx: &Ctx,
    name: &str,
    image: &str,
    script: &str,
    change: fn(String) -> String,
) -> Result<(u64, u64)> {
    let text = include_str!("container_faults/workflow.yml")
        .replace("JOB", name)
        .replace("SCRIPT", script);
    let text = change(text).replace("IMAGE", image);
    let file = format!("{name}.yml");
    ctx.write_workflow(workflow(&file, &text)).await?;
    let run = ctx.dispatch(&file).await?;
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

/// Waits for the end of a job that has to be red, with these words in its log, and without what may not run.
async fn red(ctx: &Ctx, job: u64, words: &[&str]) -> Result<JobView> {
    let view = ctx.ended_within(job, LIMIT).await?;
    let log = ctx.github.job_log(job).await?;
    let missing: Vec<_> = words.iter().filter(|w| !log.contains(**w)).collect();
    ensure!(
        view.conclusion == Some(Failure) && missing.is_empty() && !said(&log, "this must not run"),
        "{} ended with {:?}, and its log lacks {missing:?}: {log}",
        view.name,
        view.conclusion
    );
    Ok(view)
}

/// Whether a log has this line. The command that prints it is there, too.
fn said(log: &str, line: &str) -> bool {
    log.lines()
        .filter_map(|all| all.split_once(' '))
        .any(|(_, text)| text == line)
}

async fn no_image(ctx: &Ctx) -> Result<()> {
    // An image that cannot be pulled is said in the job's log soon, in the kubelet's words
    let (_, id) = job(ctx, "no-image", ABSENT, "true").await?;
    let view = red(ctx, id, &[ABSENT, "ImagePullBackOff"]).await?;
    let times = view.started_at.zip(view.completed_at);
    let took = times.map(|(start, end)| end.duration_since(start).as_secs());
    ensure!(took.is_some_and(|took| took < SAID), "it took {took:?} s");
    Ok(())
}

async fn no_memory(ctx: &Ctx) -> Result<()> {
    // Given a pool whose jobs may have 400 MiB, as the gate before them
    let mut small = pool(ctx, "small", 1);
    small["spec"]["jobContainers"] = json!({"resources": {"limits": {"memory": "400Mi"}}});
    small["spec"]["labels"] = json!(["self-hosted", "small"]);
    ctx.apply(&small).await?;
    // When a step takes more
    let script = "tail /dev/zero; echo \"this must not run\"";
    let for_small = |text: String| text.replace("cuda]", "small]");
    let (_, id) = job_with(ctx, "no-memory", IMAGE, script, for_small).await?;
    // Then the job is red
    red(ctx, id, &["it has begun"]).await?;
    nobody_is_blamed(ctx, "small").await?;
    ctx.delete("small").await
}

async fn cancelled(ctx: &Ctx) -> Result<()> {
    // When the run of a job is cancelled
    let (run, id, _) = held(ctx, "cancelled").await?;
    ctx.github.cancel_run(run).await?;
    // Then its step ends, what always runs does, and the job is cancelled
    let view = ctx.ended_within(id, CANCELLED).await?;
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
    let limited = |text: String| {
        let name = "- name: Work\n";
        text.replace(name, &format!("{name}        timeout-minutes: 0.1\n"))
    };
    let (_, id) = job_with(ctx, "out-of-time", IMAGE, "sleep 300", limited).await?;
    // Then it is ended, what always runs does, and the job is red
    red(ctx, id, &["Z the report is written"]).await?;
    Ok(())
}

async fn no_operator(ctx: &Ctx) -> Result<()> {
    // Given an operator that does nothing any more
    ctx.idle("faults", 2).await?;
    deploy::freeze(&ctx.cluster, &ctx.client).await?;
    // When a job asks for its container, and the operator is killed
    let with_gpus = |text: String| text.replace("IMAGE", "{image: IMAGE, options: --gpus all}");
    let (_, id) = job_with(ctx, "no-operator", IMAGE, "true", with_gpus).await?;
    ctx.wait_for("the hook's first line", SOON, async || {
        let log = ctx.github.job_log(id).await?;
        Ok(log.contains("options: --gpus").then_some(()))
    })
    .await?;
    let log = ctx.github.job_log(id).await?;
    ensure!(!log.contains(": asked for."), "it was answered: {log}");
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    // Then its successor brings the container, and the job ends well where it began
    let view = ctx.ended_within(id, LIMIT).await?;
    let log = ctx.github.job_log(id).await?;
    ensure!(
        view.assignments == 1 && view.conclusion == Some(Success),
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
    ensure!(!said(&log, "the report is written"), "{log}");
    Ok(())
}

async fn service_failed(ctx: &Ctx) -> Result<()> {
    // When a service does not start, then the job says so before its first step
    let beside = |text: String| {
        let image = "    container: IMAGE\n";
        let service = "    services: {db: {image: postgres:16, ports: [5432]}}\n";
        text.replace(image, &format!("{image}{service}"))
    };
    let (_, id) = job_with(ctx, "service", IMAGE, "true", beside).await?;
    red(ctx, id, &["Image postgres:16: Error"]).await?;
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
    let view = ctx.ended_within(id, LIMIT).await?;
    ensure!(view.conclusion != Some(Success), "{view:?}");
    ctx.gone(&runner).await?;
    ctx.idle("faults", 2).await?;
    Ok(())
}
