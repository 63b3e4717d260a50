//! The charts and examples for GitOps on a cluster: health as kstatus tells it, and a state that never differs from what
//! was written down.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use k8s_openapi::{
    api::{core::v1::Pod, networking::v1::NetworkPolicy},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

use super::{Ctx, context::merge};
use crate::{
    deploy,
    helm::{Helm, NAMESPACE, RELEASE},
    paths,
};

const FLEET: &str = "fleet";
const CHART: &str = "cuda-runner";
const INSTALL: [&str; 6] = ["upgrade", "--install", "--wait", "--timeout", "180s", FLEET];

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    fleet(ctx).await?;
    overlay(ctx).await?;
    network_policy(ctx).await
}

/// The example's fleet by Helm, which waits by kstatus as Flux does.
async fn fleet(ctx: &Ctx) -> Result<()> {
    let pools: Api<CudaRunner> = ctx.api();
    let before = pools.list(&ListParams::default()).await?.metadata;
    let before = before.resource_version.unwrap_or_default();

    // When the fleet of the example is installed, and Helm has waited for it
    let values = values(ctx)?;
    helm(ctx, &INSTALL, &values).await?;

    // Then its pools are ready
    for name in ["build", "train"] {
        ensure!(
            ready(&pools.get(name).await?) == Some(true),
            "{name} is not ready"
        );
    }

    // And before the operator had seen them they were not: nobody takes them for ready without it
    let mut events = pools
        .watch(&WatchParams::default().timeout(60), &before)
        .await?
        .boxed();
    let first = loop {
        let event = events.next().await.context("no pool was added")??;
        if let WatchEvent::Added(pool) = event {
            break pool;
        }
    };
    ensure!(
        ready(&first) == Some(false),
        "ready from the start: {:?}",
        first.status
    );

    // And nothing that was asked for differs from what is there
    let manifest = helm(ctx, &["template", FLEET], &values).await?;
    no_difference(ctx, &manifest).await?;
    scaled_by_hand(ctx, &values, &manifest).await?;

    // When a pool gets credentials that do not exist
    let mut broken = values.clone();
    broken["pools"]["build"]["github"] = json!({"credentialsRef": {"name": "absent"}});

    // Then Helm does not wait in vain: it says which pool has failed
    let failure = helm(ctx, &INSTALL, &broken).await;
    let failure = failure
        .err()
        .context("Helm took a stalled pool for ready")?
        .to_string();
    ensure!(
        failure.contains("CudaRunner/charts/build not ready. status: Failed")
            && failure.contains("The Secret absent does not exist"),
        "it does not name the pool and the reason: {failure}"
    );

    // And with the old values all is well again
    helm(ctx, &INSTALL, &values).await?;
    definition_stays(ctx).await?;
    removed(ctx).await
}

/// What somebody has scaled by hand, an upgrade leaves, or it says that it would change it.
async fn scaled_by_hand(ctx: &Ctx, values: &Value, manifest: &str) -> Result<()> {
    let pools: Api<CudaRunner> = ctx.api();
    // When a pool without `replicas` is scaled by hand, and the fleet is upgraded
    ctx.kubectl(&["scale", "cudarunner", "train", "--replicas=0"])
        .await?;
    let generations = generations(ctx).await?;
    helm(ctx, &INSTALL, values).await?;

    // Then the upgrade changes nothing, and there is still no difference
    ensure!(
        pools.get("train").await?.spec.replicas == Some(0),
        "the upgrade scaled it back"
    );
    ensure!(
        self::generations(ctx).await? == generations,
        "the upgrade wrote what was there"
    );
    no_difference(ctx, manifest).await?;

    // When one with `replicas` is scaled by hand, then the upgrade is refused and names the field
    ctx.kubectl(&["scale", "cudarunner", "build", "--replicas=1"])
        .await?;
    let conflict = helm(ctx, &INSTALL, values).await.err();
    let conflict = conflict.map(|error| error.to_string()).unwrap_or_default();
    ensure!(
        conflict.contains("conflict with") && conflict.contains(".spec.replicas"),
        "no conflict: {conflict}"
    );
    ctx.kubectl(&["scale", "cudarunner", "build", "--replicas=2"])
        .await?;
    Ok(())
}

/// When the release is removed, its pools and runners go with it.
async fn removed(ctx: &Ctx) -> Result<()> {
    let pools: Api<CudaRunner> = ctx.api();
    let (cluster, namespace) = (ctx.cluster.clone(), ctx.namespace.clone());
    let uninstall = tokio::task::spawn_blocking(move || {
        Helm::new(&cluster.tools, &cluster.dir).uninstall(FLEET, &namespace)
    });
    uninstall.await??;
    ensure!(
        pools.list(&ListParams::default()).await?.items.is_empty(),
        "pools are left"
    );
    ensure!(
        ctx.entries().await?.is_empty(),
        "runners are left on GitHub"
    );
    Ok(())
}

/// The chart of the CRD may be uninstalled by mistake: CRD and pools stay, and it can be installed again.
async fn definition_stays(ctx: &Ctx) -> Result<()> {
    let cluster = ctx.cluster.clone();
    let definitions: Api<CustomResourceDefinition> = Api::all(ctx.client.clone());
    let definition = definitions.get("cudarunners.cudarunner.dev").await?;
    tokio::task::spawn_blocking(move || {
        let helm = Helm::new(&cluster.tools, &cluster.dir);
        helm.uninstall(deploy::CRDS, NAMESPACE)?;
        helm.install(deploy::CRDS, &[])
    })
    .await??;
    let after = definitions.get("cudarunners.cudarunner.dev").await?;
    ensure!(
        after.uid() == definition.uid(),
        "the CRD went, and all pools with it"
    );
    Ok(())
}

/// The example's fleet by Kustomize.
async fn overlay(ctx: &Ctx) -> Result<()> {
    let folder = paths::repository().join("docs/examples/gitops/kustomize");
    let built = ctx
        .kubectl(&["kustomize", &folder.to_string_lossy()])
        .await?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&built)?;
    let ours = ctx.pool("", json!({}));
    for object in &mut objects {
        object["metadata"]["namespace"] = json!(ctx.namespace);
        merge(&mut object["spec"], ours["spec"].clone());
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let file = written(ctx, &list)?;
    ctx.kubectl(&["apply", "--server-side", "--filename", &file])
        .await?;
    for name in ["build-pool", "train-pool"] {
        let resource = format!("cudarunner/{name}");
        ctx.kubectl(&["wait", "--for=condition=Ready", &resource, "--timeout=180s"])
            .await?;
    }
    no_difference(ctx, &list).await
}

/// The policy selects the operator's pods, and lets in the pods of pools.
async fn network_policy(ctx: &Ctx) -> Result<()> {
    let on = ["networkPolicy.enabled=true"];
    deploy::with_values(&ctx.cluster, &on, async || selectors(ctx).await).await
}

async fn selectors(ctx: &Ctx) -> Result<()> {
    let policies: Api<NetworkPolicy> = Api::namespaced(ctx.client.clone(), NAMESPACE);
    let spec = policies
        .get(RELEASE)
        .await?
        .spec
        .context("an empty policy")?;
    let operators = Api::<Pod>::namespaced(ctx.client.clone(), NAMESPACE);
    let all = operators.list(&ListParams::default()).await?.items.len();
    let selector = spec.pod_selector.context("no selector")?.match_labels;
    let found = labelled(&operators, selector, None).await?;
    ensure!(
        found == all && found > 0,
        "{found} of {all} operators are selected"
    );

    let peers = spec
        .ingress
        .into_iter()
        .flatten()
        .filter_map(|rule| rule.from);
    let runners = peers.flatten().find_map(|peer| peer.pod_selector);
    let runners = runners.context("no pods are let in")?;
    let exists = runners.match_expressions.and_then(|mut list| list.pop());
    let pods: Api<Pod> = ctx.api();
    let all = ctx.pods().await?.len();
    let found = labelled(&pods, runners.match_labels, exists.map(|e| e.key)).await?;
    ensure!(
        found == all && found > 0,
        "{found} of {all} runners are let in"
    );
    Ok(())
}

/// How many pods have these labels, and this one with any value.
async fn labelled(
    pods: &Api<Pod>,
    labels: Option<BTreeMap<String, String>>,
    exists: Option<String>,
) -> Result<usize> {
    let terms = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"));
    let selector: Vec<_> = terms.chain(exists).collect();
    let params = ListParams::default().labels(&selector.join(","));
    Ok(pods.list(&params).await?.items.len())
}

/// The values of the example, for this GitHub and this agent.
fn values(ctx: &Ctx) -> Result<Value> {
    let path = paths::repository().join("docs/examples/gitops/flux/releases.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(path)?)?;
    let fleet = objects
        .into_iter()
        .find(|object| object["metadata"]["name"] == FLEET);
    let mut values = fleet.context("the example has no fleet")?["spec"]["values"].clone();
    values["pools"]["train"]["verify"] = Value::Null;
    merge(
        &mut values["defaults"],
        ctx.pool("", json!({}))["spec"].clone(),
    );
    Ok(values)
}

fn ready(pool: &CudaRunner) -> Option<bool> {
    let conditions = &pool.status.as_ref()?.conditions;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    Some(ready.status == "True")
}

async fn generations(ctx: &Ctx) -> Result<Vec<Option<i64>>> {
    let pools: Api<CudaRunner> = ctx.api();
    let all = pools.list(&ListParams::default()).await?.items;
    Ok(all
        .into_iter()
        .map(|pool| pool.metadata.generation)
        .collect())
}

/// `kubectl diff` ends with 1 where there is one, by the server's merge or by its own.
async fn no_difference(ctx: &Ctx, manifest: &str) -> Result<()> {
    let file = written(ctx, manifest)?;
    for way in ["--server-side=true", "--server-side=false"] {
        let diff = ctx.kubectl(&["diff", way, "--filename", &file]).await;
        diff.with_context(|| format!("what was asked for differs from what is there ({way})"))?;
    }
    Ok(())
}

fn written(ctx: &Ctx, manifest: &str) -> Result<String> {
    let path = ctx.cluster.dir.join("gitops.yaml");
    fs::write(&path, manifest)?;
    Ok(path.to_string_lossy().into_owned())
}

async fn helm(ctx: &Ctx, arguments: &[&str], values: &Value) -> Result<String> {
    let helm = Helm::new(&ctx.cluster.tools, &ctx.cluster.dir);
    let arguments: Vec<_> = arguments
        .iter()
        .map(|&argument| argument.to_owned())
        .collect();
    let (namespace, values) = (ctx.namespace.clone(), values.clone());
    tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        helm.run(&arguments, CHART, &namespace, &values)
    })
    .await?
}
