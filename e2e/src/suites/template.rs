//! The pod template: what takes something of the operator's is refused, at apply or in the status, in words that say what
//! to write instead; all else works, what teams bring along from elsewhere included.

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ResourceQuota};
use kube::api::PostParams;
use serde_json::{Value, json};

use super::Ctx;
use crate::example;

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    refused(ctx).await?;
    stalled(ctx).await?;
    works(ctx).await
}

/// A template whose runner has these fields.
fn runner(fields: &Value) -> Value {
    let mut container = json!({"name": "runner", "image": example::AGENT});
    super::context::merge(&mut container, fields.clone());
    json!({"spec": {"containers": [container]}})
}

/// What CEL can see.
async fn refused(ctx: &Ctx) -> Result<()> {
    let sidecar = json!({"name": "dind", "image": example::AGENT});
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 5});
    let table = [
        (
            json!({"spec": {"containers": [{"name": "runner"}, sidecar]}}),
            "restartPolicy: Always",
        ),
        (
            json!({"spec": {"containers": [{"name": "main"}]}}),
            "named runner",
        ),
        (
            runner(&json!({"command": ["/home/runner/run.sh"]})),
            "remove command and args",
        ),
        (
            runner(&json!({"readinessProbe": probe})),
            "livenessProbe is free",
        ),
        (json!({"spec": {"restartPolicy": "Always"}}), "it is Never"),
        (json!({"spec": {"nodeName": "node"}}), "write nodeSelector"),
        (
            json!({"spec": {"activeDeadlineSeconds": 60}}),
            "timeout-minutes",
        ),
        (
            json!({"spec": {"shareProcessNamespace": true}}),
            "remove it",
        ),
        (
            json!({"spec": {"automountServiceAccountToken": true}}),
            "projected volume",
        ),
        (
            json!({"metadata": {"name": "mine"}}),
            "labels and annotations only",
        ),
        (
            json!({"metadata": {"annotations": {"cudarunner.dev/avoids": "x"}}}),
            "choose another prefix",
        ),
    ];
    for (template, words) in table {
        let mut pool = ctx.pool("refused", json!({}));
        pool["spec"]["template"] = template.clone();
        match ctx.apply(&pool).await {
            Ok(()) => bail!("{template} was taken"),
            Err(error) => ensure!(
                format!("{error:#}").contains(words),
                "{words:?} is not in: {error:#}"
            ),
        }
    }
    Ok(())
}

/// What only the operator can see.
async fn stalled(ctx: &Ctx) -> Result<()> {
    let table = [
        (
            "devices",
            runner(&json!({"resources": {"limits": {"nvidia.com/gpu": 2}}})),
            "set spec.gpu.resource and spec.gpu.count",
        ),
        (
            "visible",
            runner(&json!({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]})),
            "set spec.gpu.count",
        ),
        (
            "volume",
            runner(&json!({"volumeMounts": [{"name": "registration", "mountPath": "/r"}]})),
            "remove the mount",
        ),
        (
            "own-gpu",
            json!({"spec": {"initContainers": [{"name": "gpu", "image": "example/gate:1"}]}}),
            "choose another one",
        ),
        (
            "owner",
            json!({"metadata": {"finalizers": ["example.com/keep"]}}),
            "labels and annotations only",
        ),
        (
            "large",
            runner(&json!({"env": [{"name": "A", "value": "x".repeat(70_000)}]})),
            "the most",
        ),
    ];
    for (name, template, _) in &table {
        let mut pool = ctx.pool(name, json!({}));
        pool["spec"]["template"] = template.clone();
        ctx.apply(&pool).await?;
    }
    for (name, _, words) in &table {
        let message = ctx
            .condition(name, "Stalled", "True", "InvalidTemplate")
            .await?;
        ensure!(
            message.contains(words),
            "{words:?} is not in {name}: {message}"
        );
    }
    // And no runner came of any
    ensure!(ctx.pods().await?.is_empty(), "there are pods");
    Ok(())
}

/// A team's image with its own user, hooks, sidecar, tolerations and probes, in a namespace that demands limits.
async fn works(ctx: &Ctx) -> Result<()> {
    // Given a quota, which takes only pods whose containers all have limits
    let quota = json!({"metadata": {"name": "quota"}, "spec": {"hard": {"limits.cpu": "5", "limits.memory": "4Gi"}}});
    ctx.api::<ResourceQuota>()
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    let scripts = json!({"metadata": {"name": "team-hooks"}, "data": {
        "started.sh": "echo the team has started $GITHUB_JOB\n",
        "completed.sh": "echo the team has completed it\n",
    }});
    ctx.api::<ConfigMap>()
        .create(&PostParams::default(), &serde_json::from_value(scripts)?)
        .await?;
    let mut pool = ctx.pool("team", json!({}));
    pool["spec"]["template"] = template();

    // When such a pool is applied
    ctx.apply(&pool).await?;

    // Then its runner comes, tolerates what both sides say, and takes a job as the image's own user
    let first = ctx.idle("team", 1).await?.remove(0);
    let pods = serde_json::to_value(ctx.pods().await?)?;
    for key in [
        "dedicated",
        "nvidia.com/gpu",
        "cudarunner.dev/cuda-smoke-failed",
    ] {
        ensure!(
            pods.to_string().contains(&format!("\"key\":\"{key}\"")),
            "{key} is not tolerated: {pods:#}"
        );
    }
    let job = ctx
        .queue(
            "team",
            "echo I am $(id -u); [ ! -s /run/cuda-runner/jitconfig ]",
        )
        .await?;
    ctx.succeeded(job).await?;
    let log = ctx.github.job_log(job).await?;
    for words in [
        "I am 1000",
        "the team has started",
        "the team has completed it",
    ] {
        ensure!(log.contains(words), "{words:?} is not in {log}");
    }

    // And the pod ends with the job, its sidecar with it, and the job is reported as what it was
    ctx.gone(&first).await?;
    let jobs = ctx.concluded("team", 1).await?;
    ensure!(jobs[0].conclusion.as_deref() == Some("success"), "{jobs:?}");
    ctx.other_idle("team", &first).await?;
    let status = ctx.status("team").await?;
    ensure!(
        status.last_failures.is_empty(),
        "{:?}",
        status.last_failures
    );
    Ok(())
}

fn template() -> Value {
    // What Helm and kubectl write, and what other images read, changes nothing.
    let brought_along = json!({
        "name": null, "creationTimestamp": null, "labels": {"app.kubernetes.io/managed-by": "Helm"},
    });
    json!({"metadata": brought_along, "spec": {
        "nodeName": null,
        "activeDeadlineSeconds": null,
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "ci", "effect": "NoSchedule"}],
        "initContainers": [{
            "name": "dind",
            "image": example::AGENT,
            "restartPolicy": "Always",
            "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"],
            "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
            // The pod is never ready as a whole.
            "readinessProbe": {"exec": {"command": ["false"]}},
        }],
        "containers": [{
            "name": "runner",
            "image": example::UID_1000_AGENT,
            "resources": {"requests": {"cpu": "10m"}, "limits": {"cpu": "1", "memory": "512Mi"}},
            "livenessProbe": {"exec": {"command": ["true"]}},
            "command": null,
            "env": [
                {"name": "RUNNER_LABELS", "value": "self-hosted"},
                {"name": "ACTIONS_RUNNER_HOOK_JOB_STARTED", "value": "/hooks/started.sh"},
                {"name": "ACTIONS_RUNNER_HOOK_JOB_COMPLETED", "value": "/hooks/completed.sh"},
            ],
            "volumeMounts": [{"name": "hooks", "mountPath": "/hooks"}],
        }],
        "volumes": [{"name": "hooks", "configMap": {"name": "team-hooks"}}],
    }})
}
