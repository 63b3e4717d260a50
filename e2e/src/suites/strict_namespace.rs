//! A namespace with rules: a quota alone, which every container must answer by itself; then Pod Security *restricted*, a quota
//! and a `LimitRange`. A runner comes up there by the template of the guide, and what Kubernetes refuses is reported with
//! what to change.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{LimitRange, Namespace, Pod, ResourceQuota};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, SOON};
use crate::{example, paths};

/// The guide whose template passes.
const GUIDE: &str = "docs/guides/teams-and-quotas.md";
/// The quota that is there alone.
const QUOTA: &str = "alone";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    a_quota_alone(ctx).await?;
    with_all_rules(ctx).await
}

/// Nothing fills in what a container does not say.
async fn a_quota_alone(ctx: &Ctx) -> Result<()> {
    // Given a quota on requests, which keeps out who asks for nothing
    let mut hard = json!({"requests.cpu": "2", "requests.memory": "2Gi"});
    quota(ctx, &hard, "requests.cpu for: silent").await?;

    // Then a pool that says nothing of it has its runner, by what each of its containers asks for
    let mut pool = ctx.pool("plain", json!({}));
    ctx.apply(&pool).await?;
    ctx.idle("plain", 1).await?;
    ctx.delete("plain").await?;

    // When the quota is on limits, too, then what the template has to say is reported, and is enough
    hard["limits.cpu"] = json!("4");
    hard["limits.memory"] = json!("2Gi");
    quota(ctx, &hard, "limits.cpu for: silent").await?;
    ctx.apply(&pool).await?;
    let message = refused(ctx, "plain").await?;
    ensure!(message.contains("limits.cpu for: gpu;"), "{message}");
    pool["spec"]["template"]["spec"]["containers"][0]["resources"] =
        json!({"limits": {"cpu": "1", "memory": "512Mi"}});
    ctx.apply(&pool).await?;
    ctx.idle("plain", 1).await?;
    ctx.delete("plain").await?;
    let quotas = ctx.api::<ResourceQuota>();
    quotas.delete(QUOTA, &DeleteParams::default()).await?;
    Ok(())
}

/// Makes or changes the quota, and waits until it counts: a pod that says nothing is refused in these words.
async fn quota(ctx: &Ctx, hard: &Value, words: &str) -> Result<()> {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": QUOTA}, "spec": {"hard": hard},
    });
    let params = PatchParams::apply("administrator");
    ctx.api::<ResourceQuota>()
        .patch(QUOTA, &params, &Patch::Apply(quota))
        .await?;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "silent"},
        "spec": {"containers": [{"name": "silent", "image": example::AGENT}]},
    }))?;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut last = "let in".to_owned();
    let counts = ctx.wait_for("the quota to count", SOON, async || {
        let answer = ctx.api::<Pod>().create(&dry, &pod).await;
        last = answer.err().map_or("let in".to_owned(), |e| e.to_string());
        Ok(last.contains(words).then_some(()))
    });
    counts
        .await
        .with_context(|| format!("a pod that says nothing: {last}"))
}

async fn with_all_rules(ctx: &Ctx) -> Result<()> {
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
