//! Another version of the charts and back, while jobs run.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::core::v1::Pod,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

use super::Ctx;
use crate::{
    deploy, gpu,
    helm::{self, NAMESPACE, RELEASE},
    node::Machine,
};

const VERSION: &str = "0.1.0";
const NEXT: &str = "0.2.0";
/// What is different in the next version's CRD.
const SAID: &str = "What the operator says of a pool.";
const SAID_NEXT: &str = "What the next operator says of a pool.";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let charts = next_version(ctx)?;
    let tags = ["image", "gateImage"].map(|image| format!("{image}.tag={NEXT}"));
    let tags = tags.each_ref().map(String::as_str);

    // Given a pool of three, one of them busy
    ctx.apply(&ctx.pool("pool", json!({"replicas": 3}))).await?;
    ctx.idle("pool", 3).await?;
    let job = ctx.hold("over-the-upgrade").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();

    // When both charts are upgraded, then no runner notices
    let before = runners(ctx).await?;
    deploy::upgrade_from(&ctx.cluster, &charts, &tags).await?;
    let outcome = upgraded(ctx, &before, job, &runner).await;

    // When they are downgraded again, then neither
    let before = runners(ctx).await?;
    deploy::upgrade_from(&ctx.cluster, &helm::charts(), &[]).await?;
    let second = outcome?;
    is_at_work(ctx, "dev", SAID).await?;
    ensure!(runners(ctx).await? == before, "runners changed");
    ends_well(ctx, second.0, &second.1).await?;
    ctx.delete("pool").await?;
    ensure!(ctx.entries().await?.is_empty(), "entries are left");
    Ok(())
}

/// With the next version at work: the job goes on, ends, its runner is replaced by one of the next version, and that one
/// or another takes the next job, which runs on.
async fn upgraded(
    ctx: &Ctx,
    before: &BTreeMap<String, (String, i32)>,
    job: u64,
    runner: &str,
) -> Result<(u64, String)> {
    is_at_work(ctx, NEXT, SAID_NEXT).await?;
    ensure!(runners(ctx).await? == *before, "runners changed");
    ends_well(ctx, job, runner).await?;
    ctx.gone(runner).await?;
    let names = ctx.idle("pool", 3).await?;
    let new = names.iter().find(|&name| !before.contains_key(name));
    let new: Pod = ctx.api().get(new.context("no new runner")?).await?;
    let ours = new.spec.into_iter().flat_map(|spec| spec.containers);
    let ours: Vec<_> = ours.filter_map(|container| container.image).collect();
    ensure!(
        ours.iter().all(|image| image.ends_with(NEXT)),
        "its gate is not of the next version: {ours:?}"
    );
    let job = ctx.hold("over-the-downgrade").await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    Ok((job, runner))
}

/// Releases the job: it was never given to another runner.
async fn ends_well(ctx: &Ctx, job: u64, runner: &str) -> Result<()> {
    ctx.github.release(job).await?;
    let view = ctx.succeeded(job).await?;
    ensure!(
        view.assignments == 1 && view.runner.as_deref() == Some(runner),
        "{view:?}"
    );
    Ok(())
}

/// The uid and the restarts of each runner's pod.
pub(super) async fn runners(ctx: &Ctx) -> Result<BTreeMap<String, (String, i32)>> {
    let pods = ctx.pods().await?.into_iter();
    let runners = pods.map(|pod| {
        let status = pod.status.iter();
        let main = status.flat_map(|s| s.container_statuses.iter().flatten());
        let restarts: i32 = main.map(|container| container.restart_count).sum();
        let all = restarts + gpu::restarts(&pod);
        (pod.name_any(), (pod.uid().unwrap_or_default(), all))
    });
    Ok(runners.collect())
}

/// The operator and the CRD are of this version.
async fn is_at_work(ctx: &Ctx, tag: &str, said: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), NAMESPACE);
    for pod in pods.list(&ListParams::default()).await? {
        let containers = pod.spec.iter().flat_map(|spec| spec.containers.iter());
        let images: Vec<_> = containers.filter_map(|c| c.image.clone()).collect();
        ensure!(
            images.iter().all(|image| image.ends_with(tag)),
            "the operator is {images:?}, not {tag}"
        );
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(ctx.client.clone());
    let definition = definitions.get("cudarunners.cudarunner.dev").await?;
    let text = serde_json::to_string(&definition)?;
    ensure!(text.contains(said), "the CRD is another version's");
    Ok(())
}

/// Makes charts of the next version, and images by its name; gives the charts' folder.
fn next_version(ctx: &Ctx) -> Result<PathBuf> {
    let node = Machine::first(&ctx.cluster.dir);
    for image in ["cuda-runner-operator", "cuda-smoke"] {
        let name = format!("localhost/{image}");
        let (own, next) = (format!("{name}:dev"), format!("{name}:{NEXT}"));
        node.tag(&ctx.cluster.tools, &own, &next)?;
    }
    let folder = ctx.cluster.dir.join("next-charts");
    for chart in [deploy::CRDS, RELEASE] {
        for part in ["", "templates", "files"] {
            let from = helm::charts().join(chart).join(part);
            let to = folder.join(chart).join(part);
            if from.is_dir() {
                copy(&from, &to)?;
            }
        }
    }
    Ok(folder)
}

/// Copies the files of a folder, with the next version's words in them.
fn copy(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let text = fs::read_to_string(entry.path())?;
            let next = text
                .replace(&format!("ersion: {VERSION}"), &format!("ersion: {NEXT}"))
                .replace(SAID, SAID_NEXT);
            fs::write(to.join(entry.file_name()), next)?;
        }
    }
    Ok(())
}
