//! A device that failed is tainted, and not its node: the pool goes on with the other one, and tries that one again by a claim
//! of its own. So it is for a pool that asks for a number; and a rule may only tell.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::{CudaRunner, QuarantineStatus, TaintedDeviceStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    resource::v1::{DeviceTaintRule, ResourceClaim},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON,
    claimed_devices::{TEMPLATE, pool, with_claimed_node},
    plugin::plugin,
    side_by_side,
};
use crate::{
    deploy,
    device_plugin::state::{self, Device},
    dra_plugin::DRIVER,
    helm,
    node::{self, Machine},
};

const POOL: &str = "claimed";
/// The node's devices, and the one that something is wrong with.
const ALL: &[&str] = &["gpu-0", "gpu-1"];
const FIRST: &[&str] = &["gpu-0"];
const UUID: &str = "cudarunner.dev/device-uuid";
/// The annotation of a pod that tries a device again.
const RETESTS: &str = "cudarunner.dev/retests";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    with_claimed_node(ctx, async |machine| {
        let on = ["deviceTaints.enabled=true"];
        deploy::with_values(&ctx.cluster, &on, async || {
            the_pool_goes_on(ctx, &machine).await?;
            the_drivers_word_is_shown(ctx, &machine).await?;
            its_rule_stays_where_it_fails_again(ctx, &machine).await?;
            its_rule_goes_when_it_passes(ctx, &machine).await?;
            the_rule_moves_with_the_device(ctx, &machine).await?;
            ctx.delete(POOL).await
        })
        .await?;
        a_rule_may_only_tell(ctx, &machine).await?;
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
    device.compute_wrongly();
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
    let entry = the_entry(ctx).await?;
    ensure!(entry.is_of_device(), "{entry:?}");
    Ok(())
}

/// The one that the pool has in quarantine.
async fn the_entry(ctx: &Ctx) -> Result<QuarantineStatus> {
    let entries = ctx.status(POOL).await?.quarantine;
    let [entry] = entries.as_slice() else {
        anyhow::bail!("not one entry: {entries:?}");
    };
    Ok(entry.clone())
}

async fn the_drivers_word_is_shown(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // When the driver itself taints devices, with a value and without one, then the status has its word
    let mut device = broken(0);
    device.healthy = false;
    write(machine, 0, &device)?;
    tainted(ctx, ALL, "gpu.nvidia.com/gpu-lost:NoSchedule").await?;
    device.healthy = true;
    for (xid, effect) in [(13, "None"), (79, "NoSchedule")] {
        device.xid = Some(xid);
        write(machine, 0, &device)?;
        tainted(ctx, FIRST, &format!("gpu.nvidia.com/xid={xid}:{effect}")).await?;
    }
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

/// Waits until the status has this taint of the driver's, of these devices of the node and of no others.
async fn tainted(ctx: &Ctx, devices: &[&str], taint: &str) -> Result<()> {
    let mut last = vec![];
    let what = format!("{taint} in the status");
    let said = ctx.wait_for(&what, SOON, async || {
        last = ctx.status(POOL).await?.tainted_devices;
        let names: Vec<&str> = last.iter().map(|device| device.name.as_str()).collect();
        let has_it =
            |device: &TaintedDeviceStatus| device.node == node::SECOND && device.taints == [taint];
        Ok((names == devices && last.iter().all(has_it)).then_some(()))
    });
    said.await.with_context(|| format!("it has {last:?}"))
}

async fn its_rule_stays_where_it_fails_again(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // Given a device that is broken yet, of which its driver says nothing any more
    let rule = the_rule(ctx, "gpu-0").await?;
    let before = failures(ctx).await?;
    write(machine, 0, &broken(0))?;
    ctx.cluster.published(machine).await?;
    // When its time is over
    time_is_over(ctx).await?;
    let tried = ctx.wait_for("the device to be tried again", SOON, async || {
        let entry = the_entry(ctx).await?;
        Ok((entry.failures == 2).then_some(entry))
    });
    let entry = tried.await?;
    // Then one pod has tried it, and no other has had it, because the rule was never gone
    let after = failures(ctx).await?;
    let [pod] = &retests(ctx).await?[..] else {
        anyhow::bail!("not one pod has tried the device");
    };
    ensure!(
        after.len() == before.len() + 1 && after[0] == pod.name_any(),
        "{before:?}, then {after:?}; {} tried it",
        pod.name_any()
    );
    ensure!(
        the_rule(ctx, "gpu-0").await?.uid() == rule.uid(),
        "the rule was gone for a while"
    );
    // And its time is longer
    let lasts = entry
        .until
        .as_ref()
        .map(|until| until.0.duration_since(entry.since.0));
    ensure!(
        entry.retest && lasts.is_some_and(|lasts| lasts > SignedDuration::from_mins(55)),
        "{entry:?}"
    );
    Ok(())
}

async fn its_rule_goes_when_it_passes(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // When it is fixed, and its time is over once more
    write(machine, 0, &well(0))?;
    ctx.cluster.published(machine).await?;
    time_is_over(ctx).await?;
    // Then the rule goes, and both runners have a device: the one that has tried this one by a claim of its own
    no_rule(ctx).await?;
    let idle = ctx.idle(POOL, 2).await?;
    ctx.condition(POOL, "GpuHealthy", "True", "GatePassed")
        .await?;
    let tried: Vec<Pod> = retests(ctx).await?;
    let mut tried = tried.into_iter().filter(|p| idle.contains(&p.name_any()));
    let pod = tried.next().context("no idle runner has tried it")?;
    let report = ctx.report(&pod.name_any()).await?;
    ensure!(report["devices"][0]["uuid"] == well(0).uuid, "{report:#}");
    let claims: Api<ResourceClaim> = ctx.api();
    let all = claims.list(&ListParams::default()).await?.items;
    let own = format!("{}-retest-", pod.name_any());
    let mut own = all.iter().filter(|c| c.name_any().starts_with(&own));
    let belongs = |c: &ResourceClaim| {
        c.owner_references()
            .iter()
            .any(|o| Some(&o.uid) == pod.uid().as_ref())
    };
    ensure!(own.next().is_some_and(belongs), "{all:?}");
    // And the claims go with the pods
    ctx.delete(POOL).await?;
    ctx.wait_for("the claims to be gone", SOON, async || {
        let left = claims.list(&ListParams::default()).await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await
}

/// The runners that the device has failed, the last one first.
async fn failures(ctx: &Ctx) -> Result<Vec<String>> {
    let failures = ctx.status(POOL).await?.last_failures.into_iter();
    let of_device = failures.filter(|f| f.device == Some(well(0).uuid));
    Ok(of_device.map(|f| f.runner).collect())
}

/// The pods that try, or have tried, the device again.
async fn retests(ctx: &Ctx) -> Result<Vec<Pod>> {
    let mut pods = ctx.pods().await?;
    pods.retain(|pod| pod.annotations().get(RETESTS) == Some(&well(0).uuid));
    Ok(pods)
}

/// Ends the time of what the pool has in quarantine, for an operator that starts then.
async fn time_is_over(ctx: &Ctx) -> Result<()> {
    deploy::freeze(&ctx.cluster, &ctx.client).await?;
    let mut status = ctx.status(POOL).await?;
    for entry in &mut status.quarantine {
        entry.until = Some(Time(Timestamp::now() - SignedDuration::from_secs(1)));
    }
    let patch =
        json!({"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "status": status});
    let pools: Api<CudaRunner> = ctx.api();
    // As the operator, whose the status is.
    let params = PatchParams::apply(helm::RELEASE).force();
    pools
        .patch_status(POOL, &params, &Patch::Apply(patch))
        .await?;
    deploy::kill(&ctx.cluster, &ctx.client).await
}

async fn the_rule_moves_with_the_device(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // Given a device that is tainted again, for a pool that asks for a number, and whose runner then has the other one
    write(machine, 0, &broken(0))?;
    ctx.apply(&pool(ctx, POOL, json!({"gpu": {"count": 1}})))
        .await?;
    the_rule(ctx, "gpu-0").await?;
    let entry = the_entry(ctx).await?;
    ensure!(entry.is_of_device() && !entry.retest, "{entry:?}");
    let runner = ctx.idle(POOL, 1).await?.remove(0);
    let report = ctx.report(&runner).await?;
    ensure!(report["devices"][0]["uuid"] == well(1).uuid, "{report:#}");
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
    // And a person ends it
    ctx.annotate(POOL, "cudarunner.dev/release", node::SECOND)
        .await?;
    no_rule(ctx).await
}

/// With the effect `None` the node is quarantined, as without rules, and a rule tells which device it was.
async fn a_rule_may_only_tell(ctx: &Ctx, machine: &Machine) -> Result<()> {
    // Given a broken device, and another node that may have some: of one node alone none is quarantined
    write(machine, 0, &broken(0))?;
    write(machine, 1, &well(1))?;
    ctx.cluster.published(machine).await?;
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    nodes
        .create(&PostParams::default(), &side_by_side::elsewhere()?)
        .await?;
    let on = ["deviceTaints.enabled=true", "deviceTaints.effect=None"];
    let outcome = deploy::with_values(&ctx.cluster, &on, async || {
        ctx.apply(&ctx.pool(POOL, spec(2))).await?;
        // Then the rule keeps nobody off
        let rule = the_rule(ctx, "gpu-0").await?;
        ensure!(rule.spec.taint.effect == "None", "{rule:?}");
        // And the node is quarantined, for that device
        let message = ctx
            .condition(POOL, "GpuHealthy", "False", "NodesQuarantined")
            .await?;
        ensure!(message.contains(node::SECOND), "{message}");
        let entry = the_entry(ctx).await?;
        ensure!(
            entry.scope.is_none() && entry.device == Some(well(0).uuid),
            "{entry:?}"
        );
        ctx.delete(POOL).await
    })
    .await;
    let node = side_by_side::OTHER_NODE;
    let removed = nodes.delete(node, &DeleteParams::default()).await;
    outcome.and(removed.map(drop).map_err(Into::into))
}
