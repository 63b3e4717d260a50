//! The operator may do what it needs, and nothing that it does not: by the audit log of the whole run.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::LOOK_AGAIN;
use k8s_openapi::api::{
    core::v1::Secret,
    rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use super::{Ctx, SOON, context::labels};
use crate::{
    audit::{Audit, Request},
    deploy, example, helm,
};

/// Granted, and not to be seen here.
const UNSEEN: [(bool, &str, &str); 3] = [
    // Not a request: the API server looks at it when a pod is created whose owner's deletion it blocks.
    (false, "update", "cudarunners/finalizers"),
    // Only where a pool names another operator: the suite `side-by-side`.
    (false, "get", "leases"),
    // The registrar's authority is rotated after months.
    (true, "update", "secrets"),
];

/// What the operator of an installation reads and writes whose rights a suite has taken away.
const SWITCHED_OFF: [&str; 6] = [
    "leases",
    "devicetaintrules",
    "resourceslices",
    "resourceclaimtemplates",
    "resourceclaims",
    "clusterroles",
];

/// What lets every service account read the keys that tokens are signed with.
const KEYS: &str = "system:service-account-issuer-discovery";

/// Whether it is about the operator's own namespace, the verb, and the resource.
type Right = (bool, String, String);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given everything that the suites before have had the operator do, and what is rare among it
    a_life(ctx).await?;

    // Then it had the right to all of it
    let mut requests = vec![];
    for cluster in &ctx.clusters {
        requests.extend(Audit::whole(cluster).new_requests()?);
    }
    let mut forbidden: Vec<_> = requests.iter().filter(|r| r.forbidden).collect();
    // A suite uninstalls the operator, whose rights are gone before it gives its Lease back, and another one switches the taints
    // of devices off, whose rules go while the last operator still looks at them. The keys of tokens are granted to every
    // service account by Kubernetes, and here they are hidden for a while.
    forbidden.retain(|request| {
        !SWITCHED_OFF.contains(&request.resource.as_str()) && !request.is_of_keys()
    });
    ensure!(forbidden.is_empty(), "not allowed: {forbidden:#?}");

    // And it has used each right that the chart gives it
    let used: BTreeSet<Right> = requests.into_iter().map(right).collect();
    let granted = granted(ctx).await?;
    let unused: Vec<_> = granted.difference(&used).collect();
    ensure!(unused.is_empty(), "granted and never used: {unused:?}");
    Ok(())
}

/// A runner, a job, an entry that nobody has a pod for, credentials that go and come back twice, and the end: enough
/// where this suite runs alone.
async fn a_life(ctx: &Ctx) -> Result<()> {
    ctx.apply(&ctx.pool("pool", json!({}))).await?;
    ctx.idle("pool", 1).await?;
    let job = ctx.queue("job", "true").await?;
    ctx.succeeded(job).await?;
    ctx.idle("pool", 1).await?;
    leftover(ctx).await?;
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
    without_keys(ctx).await?;
    ctx.delete("pool").await
}

/// A runner where service accounts may not read the keys that their tokens are signed with: its token is reviewed.
async fn without_keys(ctx: &Ctx) -> Result<()> {
    let bindings: Api<ClusterRoleBinding> = Api::all(ctx.client.clone());
    let mut binding = bindings.get(KEYS).await?;
    bindings.delete(KEYS, &DeleteParams::default()).await?;
    let outcome = reviewed(ctx).await;
    binding.metadata.resource_version = None;
    bindings.create(&PostParams::default(), &binding).await?;
    outcome
}

async fn reviewed(ctx: &Ctx) -> Result<()> {
    // What an operator has read it uses for an hour.
    deploy::kill(&ctx.cluster, &ctx.client).await?;
    let mut audit = Audit::from_now(&ctx.cluster)?;
    let job = ctx.queue("reviewed", "true").await?;
    ctx.succeeded(job).await?;
    ctx.idle("pool", 1).await?;
    let requests = audit.new_calls()?;
    ensure!(
        requests.iter().any(Request::is_of_keys),
        "the keys were not asked for"
    );
    ensure!(
        requests.iter().any(Request::is_review),
        "no token was reviewed"
    );
    Ok(())
}

/// The pool's own entry, without a pod, is swept.
async fn leftover(ctx: &Ctx) -> Result<()> {
    let left = "pool-gone1".to_owned();
    let runners = ctx.runners().await?;
    let own = runners.first().context("the pool has no runner")?;
    ctx.leave_behind(&left, labels(own)).await?;
    ctx.annotate("pool", LOOK_AGAIN, "leftover").await?;
    ctx.wait_for("the leftover to be swept", SOON, async || {
        Ok((!ctx.entries().await?.contains(&left)).then_some(()))
    })
    .await
}

fn right(request: Request) -> Right {
    let own = request.namespace.as_deref() == Some(helm::NAMESPACE);
    (own, request.verb, request.resource)
}

/// The rules of the operator's roles, one right each.
async fn granted(ctx: &Ctx) -> Result<BTreeSet<Right>> {
    let ours =
        ListParams::default().labels(&format!("app.kubernetes.io/instance={}", helm::RELEASE));
    let everywhere: Api<ClusterRole> = Api::all(ctx.client.clone());
    let own: Api<Role> = Api::namespaced(ctx.client.clone(), helm::NAMESPACE);
    let mut rules: Vec<(bool, PolicyRule)> = vec![];
    for role in everywhere.list(&ours).await?.items {
        let labels = role.metadata.labels.unwrap_or_default();
        // Those that are added to the roles of users.
        if !labels.keys().any(|label| label.contains("/aggregate-to-")) {
            rules.extend(role.rules.into_iter().flatten().map(|rule| (false, rule)));
        }
    }
    for role in own.list(&ours).await?.items {
        rules.extend(role.rules.into_iter().flatten().map(|rule| (true, rule)));
    }
    ensure!(!rules.is_empty(), "no role of the operator's was found");
    let mut rights = BTreeSet::new();
    for (own, rule) in rules {
        for resource in rule.resources.into_iter().flatten() {
            let verbs = rule.verbs.iter();
            rights.extend(verbs.map(|verb| (own, verb.clone(), resource.clone())));
        }
    }
    rights.retain(|(own, verb, resource)| {
        !UNSEEN.contains(&(*own, verb.as_str(), resource.as_str()))
    });
    Ok(rights)
}
