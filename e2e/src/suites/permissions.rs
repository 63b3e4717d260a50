//! The operator may do what it needs, and nothing that it does not: by the audit log of the whole run.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use serde_json::json;

use super::Ctx;
use crate::{audit::Audit, example, helm};

/// Not a request: the API server looks at it when a pod is created whose owner's deletion it blocks.
const LOOKED_AT: &str = "cudarunners/finalizers";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given everything that the suites before have had the operator do, and what is rare among it
    a_life(ctx).await?;

    // Then nothing that it needs was refused
    let requests = Audit::whole(&ctx.cluster).new_requests()?;
    let refused: Vec<_> = requests.iter().filter(|r| r.status == Some(403)).collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");

    // And it has used each permission that the chart gives it
    let used: BTreeSet<(String, String)> = requests
        .into_iter()
        .map(|request| (request.verb, request.resource))
        .collect();
    let unused: Vec<_> = granted(ctx).await?.difference(&used).cloned().collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:?}");
    Ok(())
}

/// A runner, a job, credentials that go and come back twice, and the end: enough where this suite runs alone.
async fn a_life(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    ctx.idle("pool", 1).await?;
    let job = ctx.queue("job", "true").await?;
    ctx.succeeded(job).await?;
    let keys = example::app(&ctx.github, "permissions", &ctx.repository).await?;
    let secrets: Api<Secret> = ctx.api();
    for _ in 0..2 {
        // The second Event of the same words is counted on the first.
        secrets
            .delete(example::SECRET, &DeleteParams::default())
            .await?;
        ctx.condition("pool", "CredentialsValid", "False", "SecretNotFound")
            .await?;
        example::secret(&ctx.client, &ctx.namespace, example::SECRET, &keys).await?;
        ctx.condition("pool", "CredentialsValid", "True", "Accepted")
            .await?;
    }
    ctx.delete("pool").await
}

/// The rules of the operator's roles, one pair of verb and resource each.
async fn granted(ctx: &Ctx) -> Result<BTreeSet<(String, String)>> {
    let ours =
        ListParams::default().labels(&format!("app.kubernetes.io/instance={}", helm::RELEASE));
    let everywhere: Api<ClusterRole> = Api::all(ctx.client.clone());
    let own: Api<Role> = Api::namespaced(ctx.client.clone(), helm::NAMESPACE);
    let mut rules: Vec<PolicyRule> = vec![];
    for role in everywhere.list(&ours).await?.items {
        let labels = role.metadata.labels.unwrap_or_default();
        // Those that are added to the roles of users.
        if !labels.keys().any(|label| label.contains("/aggregate-to-")) {
            rules.extend(role.rules.unwrap_or_default());
        }
    }
    for role in own.list(&ours).await?.items {
        rules.extend(role.rules.unwrap_or_default());
    }
    ensure!(!rules.is_empty(), "no role of the operator's was found");
    rules.retain(|rule| {
        let resources = rule.resources.as_deref().unwrap_or_default();
        !resources.iter().any(|resource| resource == LOOKED_AT)
    });
    let pairs = rules.into_iter().flat_map(|rule| {
        let resources = rule.resources.unwrap_or_default();
        let pairs = resources.into_iter().flat_map(move |resource| {
            let pair = move |verb: &String| (verb.clone(), resource.clone());
            rule.verbs.iter().map(pair).collect::<Vec<_>>()
        });
        pairs.collect::<Vec<_>>()
    });
    Ok(pairs.collect())
}
