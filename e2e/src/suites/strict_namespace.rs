//! A namespace with rules: Pod Security *restricted*, a quota that every container must answer, and a `LimitRange`. A
//! runner comes up there by the template of the guide, and what Kubernetes refuses is reported with what to change.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{LimitRange, Namespace, ResourceQuota};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::Ctx;
use crate::{example, paths};

/// The guide whose template passes.
const GUIDE: &str = "docs/guides/teams-and-quotas.md";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given such a namespace
    rules(ctx).await?;

    // When the template says nothing, then Pod Security's own words are reported, and where to answer them
    ctx.apply(&ctx.pool("open", json!({}))).await?;
    let message = refused(ctx, "open").await?;
    for words in ["violates PodSecurity \"restricted", "give runner"] {
        ensure!(message.contains(words), "no {words:?} in {message}");
    }
    ctx.delete("open").await?;

    // When it is the guide's, then the runner comes up, and its job has the shared memory that was asked for
    let spec = json!({"template": guides_template()?, "sharedMemory": "48Mi"});
    ctx.apply(&ctx.pool("first", spec.clone())).await?;
    ctx.idle("first", 1).await?;
    let job = ctx
        .queue("shared-memory", "echo as $(id -u); df -k /dev/shm")
        .await?;
    ctx.succeeded(job).await?;
    let log = ctx.github.job_log(job).await?;
    for words in ["as 1001", " 49152 "] {
        ensure!(log.contains(words), "no {words:?} in {log}");
    }
    ctx.idle("first", 1).await?;

    // When the quota has no room for another, then its name is reported
    let mut second = ctx.pool("second", spec);
    second["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "3"}, "limits": {"cpu": "3"}});
    ctx.apply(&second).await?;
    let message = refused(ctx, "second").await?;
    for words in ["exceeded quota: team,", "raise the quota"] {
        ensure!(message.contains(words), "no {words:?} in {message}");
    }
    // And a later one that does is taken by it
    second["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "1"}});
    ctx.apply(&second).await?;
    ctx.idle("second", 1).await?;
    Ok(())
}

async fn refused(ctx: &Ctx, pool: &str) -> Result<String> {
    ctx.condition(pool, "RunnersOnline", "False", "PodNotCreated")
        .await
}

async fn rules(ctx: &Ctx) -> Result<()> {
    let range = json!({"metadata": {"name": "usual"}, "spec": {"limits": [{
        "type": "Container",
        "default": {"cpu": "1", "memory": "512Mi"},
        "defaultRequest": {"cpu": "20m", "memory": "32Mi"},
        "min": {"cpu": "5m", "memory": "8Mi"},
        "max": {"cpu": "4", "memory": "1Gi"},
    }]}});
    ctx.api::<LimitRange>()
        .create(&PostParams::default(), &serde_json::from_value(range)?)
        .await?;
    let quota = json!({"metadata": {"name": "team"}, "spec": {"hard": {
        "requests.cpu": "1", "requests.memory": "2Gi",
        "limits.cpu": "20", "limits.memory": "8Gi",
        "requests.nvidia.com/gpu": "4",
    }}});
    ctx.api::<ResourceQuota>()
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    let namespaces: Api<Namespace> = Api::all(ctx.client.clone());
    let restricted =
        json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    namespaces
        .patch(
            &ctx.namespace,
            &PatchParams::default(),
            &Patch::Merge(restricted),
        )
        .await?;
    Ok(())
}

/// The template of the guide's pool with a security context, with the image that is here.
fn guides_template() -> Result<Value> {
    let text = std::fs::read_to_string(paths::repository().join(GUIDE))?;
    let block = text
        .split("```yaml\n")
        .filter_map(|rest| rest.split("```").next())
        .find(|block| block.contains("allowPrivilegeEscalation"))
        .with_context(|| format!("{GUIDE} has no pool with a security context"))?;
    let pool: Value = serde_saphyr::from_str(block)?;
    let mut template = pool["spec"]["template"].clone();
    template["spec"]["containers"][0]["image"] = json!(example::AGENT);
    Ok(template)
}
