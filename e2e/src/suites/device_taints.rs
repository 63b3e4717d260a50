//! A device that failed is tainted, and not its node: the pool goes on with the other one.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::QuarantineScope;
use k8s_openapi::api::resource::v1::DeviceTaintRule;
use kube::{Api, api::ListParams};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    claimed_devices::{TEMPLATE, pool, with_claimed_node},
    plugin::plugin,
};
use crate::{
    deploy,
    device_plugin::state::{self, Device},
    dra_plugin::DRIVER,
    node::{self, Machine},
};

const POOL: &str = "claimed";
const UUID: &str = "cudarunner.dev/device-uuid";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    with_claimed_node(ctx, async |machine| {
        let on = ["deviceTaints.enabled=true"];
        deploy::with_values(&ctx.cluster, &on, async || {
            the_pool_goes_on(ctx, &machine).await?;
            the_drivers_word_is_shown(ctx, &machine).await?;
            a_fixed_device_comes_back(ctx, &machine).await?;
            the_rule_moves_with_the_device(ctx, &machine).await
        })
        .await?;
        // Then Kubernetes removes those that are left, with the right to make them
        no_rule(ctx).await
    })
    .await
}

fn spec(replicas: usize) -> Value {
    json!({"replicas": replicas, "gpu": {"claimTemplate": TEMPLATE}})
}

fn write(machine: &Machine, number: usize, device: &Device) -> Result<()> {
    state::write(&machine.devices(), number, device)
}

fn well(number: usize) -> Device {
    Device::healthy(number, 2)
}

/// It computes wrongly.
fn broken(number: usize) -> Device {
    let mut device = well(number);
    device
        .store_faults
        .push(json!({"kernel": "vector_add", "nth": 7, "flipBit": 3, "device": 0}));
    device
}

async fn rules(ctx: &Ctx) -> Result<Vec<DeviceTaintRule>> {
    let rules: Api<DeviceTaintRule> = Api::all(ctx.client.clone());
    Ok(rules.list(&ListParams::default()).await?.items)
}

/// Waits until there is one rule, for the device of this name.
async fn the_rule(ctx: &Ctx, device: &str) -> Result<DeviceTaintRule> {
    ctx.wait_for(&format!("one rule, for {device}"), SOON, async || {
        let rules = rules(ctx).await?;
        let selects = |rule: &DeviceTaintRule| {
            let selector = rule.spec.device_selector.as_ref();
            selector.is_some_and(|s| s.device.as_deref() == Some(device))
        };
        Ok((rules.len() == 1 && selects(&rules[0])).then(|| rules[0].clone()))
    })
    .await
}

async fn no_rule(ctx: &Ctx) -> Result<()> {
    ctx.wait_for("the rule to be gone", SOON, async || {
        Ok(rules(ctx).await?.is_empty().then_some(()))
    })
    .await
}

async fn the_pool_goes_on(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // Given that the first of the node's two devices computes wrongly
    write(machine, 0, &broken(0))?;
    ctx.cluster.published(machine).await?;
    // When two runners claim one device each, then one is idle, on the other device
    ctx.apply(&pool(ctx, POOL, spec(2))).await?;
    let runner = ctx.idle(POOL, 1).await?.remove(0);
    let report = ctx.report(&runner).await?;
    ensure!(report["devices"][0]["uuid"] == well(1).uuid, "{report:#}");
    // And the one that failed is tainted, by its UUID and for what was found
    let rule = the_rule(ctx, "gpu-0").await?;
    let rule = serde_json::to_value(rule)?;
    let (selector, taint) = (&rule["spec"]["deviceSelector"], &rule["spec"]["taint"]);
    ensure!(
        rule["metadata"]["annotations"][UUID] == well(0).uuid
            && selector["driver"] == DRIVER
            && selector["pool"] == node::SECOND
            && taint["key"] == "cudarunner.dev/cuda-smoke-failed"
            && taint["value"] == "WrongResult"
            && taint["effect"] == "NoSchedule",
        "{rule:#}"
    );
    // And the resource says so of the device, and of no node
    let message = ctx
        .condition(POOL, "GpuHealthy", "False", "DevicesQuarantined")
        .await?;
    ensure!(message.contains(&well(0).uuid), "{message}");
    let entries = ctx.status(POOL).await?.quarantine;
    let [entry] = entries.as_slice() else {
        anyhow::bail!("not one entry: {entries:?}");
    };
    ensure!(entry.scope == Some(QuarantineScope::Device), "{entry:?}");
    Ok(())
}

async fn the_drivers_word_is_shown(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // When the driver itself taints the device
    let mut device = broken(0);
    device.xid = Some(79);
    write(machine, 0, &device)?;
    // Then the status has its word
    let said = ctx.wait_for("the driver's taint in the status", SOON, async || {
        let tainted = ctx.status(POOL).await?.tainted_devices;
        Ok(tainted.into_iter().next())
    });
    let said = said.await?;
    ensure!(
        said.name == "gpu-0"
            && said.node == node::SECOND
            && said.taints == ["gpu.nvidia.com/xid=79:NoSchedule"],
        "{said:?}"
    );
    let shown = plugin(ctx, 0, &["status", POOL]).await?;
    ensure!(
        shown.contains("TAINTED BY THEIR DRIVER") && shown.contains("gpu.nvidia.com/xid=79"),
        "{shown}"
    );
    // And so does whoever asks why a runner waits
    let message = ctx.wait_for("a runner that waits", SOON, async || {
        let status = ctx.status(POOL).await?;
        let online = status
            .conditions
            .into_iter()
            .find(|c| c.type_ == "RunnersOnline");
        let message = online.context("no such condition")?.message;
        Ok(message.contains("gpu.nvidia.com/xid=79").then_some(()))
    });
    message.await?;
    let why = plugin(ctx, 0, &["why", POOL]).await?;
    ensure!(why.contains("gpu.nvidia.com/xid=79"), "{why}");
    Ok(())
}

async fn a_fixed_device_comes_back(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // When it is fixed, and a person says so
    write(machine, 0, &well(0))?;
    ctx.cluster.published(machine).await?;
    ctx.annotate(POOL, "cudarunner.dev/release", node::SECOND)
        .await?;
    // Then the taint is gone, and both runners have a device
    no_rule(ctx).await?;
    ctx.idle(POOL, 2).await?;
    ctx.condition(POOL, "GpuHealthy", "True", "GatePassed")
        .await
        .map(drop)
}

async fn the_rule_moves_with_the_device(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // Given a device that is tainted again
    ctx.delete(POOL).await?;
    write(machine, 0, &broken(0))?;
    ctx.apply(&pool(ctx, POOL, spec(1))).await?;
    the_rule(ctx, "gpu-0").await?;
    // When the devices change places
    write(machine, 0, &well(1))?;
    write(machine, 1, &broken(0))?;
    // Then the rule names the other place
    let rule = the_rule(ctx, "gpu-1").await?;
    let uuid = rule
        .metadata
        .annotations
        .and_then(|mut all| all.remove(UUID));
    ensure!(uuid == Some(well(0).uuid), "{uuid:?}");
    Ok(())
}
