//! Runners on devices that they claimed: a real kubelet and containerd hand them over by CDI, for gate and job alike.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaimTemplate};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, container_jobs, second_node::with_node_that_offers};
use crate::{
    cluster::Offer,
    device_plugin::state::{self, Device},
    dra_plugin::DRIVER,
    node::{self, Machine},
};

/// The template of claims, of one device each.
pub(super) const TEMPLATE: &str = "one-gpu";
/// What a job prints of the devices that it sees.
const LIST: &str = "nvidia-smi -L";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    with_claimed_node(ctx, async |machine| {
        each_has_its_own(ctx).await?;
        for_jobs_with_containers(ctx, &machine).await?;
        by_number(ctx).await
    })
    .await
}

/// Works with a second node, whose two devices are to be claimed. Whatever comes of it, the next suite finds one node.
pub(super) async fn with_claimed_node(
    ctx: &Ctx,
    work: impl AsyncFnOnce(Machine) -> Result<()>,
) -> Result<()> {
    let classes: Api<DeviceClass> = Api::all(ctx.client.clone());
    let templates: Api<ResourceClaimTemplate> = ctx.api();
    let new = PostParams::default();
    classes
        .create(&new, &serde_json::from_value(class())?)
        .await?;
    templates
        .create(&new, &serde_json::from_value(template())?)
        .await?;
    let outcome = with_node_that_offers(ctx, 2, Offer::Claims, async |machine| {
        // Not those of the first node.
        for number in 0..2 {
            state::write(&machine.devices(), number, &Device::healthy(number, 2))?;
        }
        ctx.cluster.published(&machine).await?;
        work(machine).await
    })
    .await;
    classes.delete(DRIVER, &DeleteParams::default()).await?;
    outcome
}

/// A pool on that node.
pub(super) fn pool(ctx: &Ctx, name: &str, mut spec: Value) -> Value {
    spec["template"] = json!({"spec": {
        "nodeSelector": {"kubernetes.io/hostname": node::SECOND},
        "containers": [{"name": "runner", "image": crate::example::AGENT}],
    }});
    ctx.pool(name, spec)
}

async fn each_has_its_own(ctx: &Ctx) -> Result<()> {
    // Given two runners that claim one device each
    let spec = json!({"replicas": 2, "gpu": {"claimTemplate": TEMPLATE}});
    ctx.apply(&pool(ctx, "claimed", spec)).await?;
    let runners = ctx.idle("claimed", 2).await?;
    // Then each gate has proven another device
    let mut proven = BTreeSet::new();
    for runner in &runners {
        proven.insert(the_device(ctx, runner).await?);
    }
    let devices = (0..2).map(|number| Device::healthy(number, 2).uuid);
    ensure!(proven == devices.collect(), "{runners:?} have {proven:?}");
    // And a job runs on the device that its runner's gate has proven
    a_job_has_its_runners_device(ctx).await?;
    ctx.delete("claimed").await
}

/// The one device of a runner's report.
async fn the_device(ctx: &Ctx, runner: &str) -> Result<String> {
    let report = ctx.report(runner).await?;
    let devices = report["devices"].as_array().context("devices")?;
    ensure!(devices.len() == 1, "{report:#}");
    let uuid = devices[0]["uuid"].as_str();
    Ok(uuid.context("the report names no device")?.to_owned())
}

async fn a_job_has_its_runners_device(ctx: &Ctx) -> Result<()> {
    let job = ctx
        .queue_for("list", &["self-hosted", "cuda"], LIST, true)
        .await?;
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let proven = the_device(ctx, &runner).await?;
    ctx.github.release(job).await?;
    ctx.succeeded(job).await?;
    let log = ctx.github.job_log(job).await?;
    ensure!(
        log.matches("UUID: ").count() == 1 && log.contains(&proven),
        "the gate has proven {proven}, and the job says: {log}"
    );
    Ok(())
}

async fn for_jobs_with_containers(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // Given a pool whose jobs bring their containers, and claim a device
    container_jobs::images_on(ctx, machine)?;
    let spec = json!({"gpu": {"claimTemplate": TEMPLATE}, "jobContainers": {}});
    ctx.apply(&pool(ctx, "containers", spec)).await?;
    // Then the container of a job has the claim's device, which the gate has proven
    container_jobs::the_proven_device_is_the_jobs(ctx).await?;
    ctx.delete("containers").await
}

async fn by_number(ctx: &Ctx) -> Result<()> {
    // Given a pool that asks for a number of `nvidia.com/gpu`, which the class of the devices serves on this node
    ctx.apply(&pool(ctx, "counted", json!({"gpu": {"count": 1}})))
        .await?;
    let runner = ctx.idle("counted", 1).await?.remove(0);
    // Then Kubernetes has claimed a device for its runner
    let claimed = |pod: &Value| !pod["status"]["extendedResourceClaimStatus"].is_null();
    let pods = ctx.pods().await?;
    let pods = serde_json::to_value(pods)?;
    let pod = pods.as_array().into_iter().flatten();
    let mut pod = pod.filter(|pod| pod["metadata"]["name"] == runner.as_str());
    ensure!(pod.next().is_some_and(claimed), "{pods:#}");
    // And a job runs on it
    a_job_has_its_runners_device(ctx).await?;
    ctx.delete("counted").await
}

fn class() -> Value {
    let expression =
        format!("device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == 'gpu'");
    json!({
        "metadata": {"name": DRIVER},
        "spec": {
            "selectors": [{"cel": {"expression": expression}}],
            "extendedResourceName": "nvidia.com/gpu",
        },
    })
}

fn template() -> Value {
    json!({
        "metadata": {"name": TEMPLATE},
        "spec": {"spec": {"devices": {"requests": [
            {"name": "gpu", "exactly": {"deviceClassName": DRIVER}},
        ]}}},
    })
}
