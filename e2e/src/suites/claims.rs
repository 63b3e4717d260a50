//! GPUs that are claimed: the scheduler gives each runner devices of its own, in the one container that is the gate's first
//! and the agent's then.
//!
//! The node is a simulated one, and no container runs there: what is shown is what Kubernetes makes of the pod.

use anyhow::{Context as _, Result, bail, ensure};
use gate_report::contract::GPU;
use k8s_openapi::api::{
    core::v1::Pod,
    resource::v1::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::{Value, json};

use super::{Ctx, SOON};
use crate::kwok;

/// A driver of which the node has one device.
const DRIVER: &str = "gpu.claims.example";
const TEMPLATE: &str = "one-gpu";

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    kwok::add_nodes(&ctx.client, 1).await?;
    let outcome = with_devices(ctx).await;
    let slices: Api<ResourceSlice> = Api::all(ctx.client.clone());
    let classes: Api<DeviceClass> = Api::all(ctx.client.clone());
    // What a failed run did not make is not there.
    let _ = slices.delete(DRIVER, &DeleteParams::default()).await;
    let _ = classes.delete(DRIVER, &DeleteParams::default()).await;
    kwok::remove_node(&ctx.client, 0).await?;
    outcome
}

async fn with_devices(ctx: &Ctx) -> Result<()> {
    // Given one device, and a pool of two runners that claim one each
    let slices: Api<ResourceSlice> = Api::all(ctx.client.clone());
    let classes: Api<DeviceClass> = Api::all(ctx.client.clone());
    let templates: Api<ResourceClaimTemplate> = ctx.api();
    let new = PostParams::default();
    classes.create(&new, &from(class())?).await?;
    slices.create(&new, &from(slice())?).await?;
    templates.create(&new, &from(template())?).await?;
    let spec = json!({
        "replicas": 2,
        "gpu": {"claimTemplate": TEMPLATE},
        "template": {"spec": {
            "nodeSelector": {"type": "kwok"},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}],
        }},
    });
    ctx.apply(&ctx.pool("pool", spec)).await?;

    // Then one of them has the node, and a claim that is allocated, reserved for it, and listed by one container
    let pod = ctx.wait_for("a runner with a node", SOON, async || {
        let pods = ctx.pods().await?;
        let bound = |pod: &Pod| pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        Ok(pods.into_iter().find(bound))
    });
    let pod = serde_json::to_value(pod.await?)?;
    ensure!(pod["spec"]["nodeName"] == kwok::name(0), "{pod:#}");
    holds_its_claim(ctx, &pod).await?;

    // And the resource says what the other one waits for
    let message = ctx
        .condition("pool", "RunnersOnline", "True", "Unschedulable")
        .await?;
    ensure!(message.contains(TEMPLATE), "{message}");
    let status = ctx.status("pool").await?;
    ensure!(status.gpu == format!("claim {TEMPLATE}"), "{}", status.gpu);
    ensure!(
        !status
            .conditions
            .iter()
            .any(|c| c.type_ == "SpecSupported" && c.status != "True"),
        "{:?}",
        status.conditions
    );

    // And the claims go with the pods
    ctx.delete("pool").await?;
    let claims: Api<ResourceClaim> = ctx.api();
    ctx.wait_for("the claims to be gone", SOON, async || {
        let left = claims.list(&ListParams::default()).await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await
}

/// The pod's claim is allocated, reserved for it, and listed by the container of the GPUs alone.
async fn holds_its_claim(ctx: &Ctx, pod: &Value) -> Result<()> {
    let claims: Api<ResourceClaim> = ctx.api();
    let name = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"]
        .as_str()
        .context("the pod has no claim")?;
    let claim = serde_json::to_value(claims.get(name).await?)?;
    let given = &claim["status"]["allocation"]["devices"]["results"][0];
    ensure!(
        given["driver"] == DRIVER && given["device"] == "gpu-0",
        "{claim:#}"
    );
    ensure!(
        claim["status"]["reservedFor"][0]["uid"] == pod["metadata"]["uid"],
        "{claim:#}"
    );
    let of_pod = &pod["spec"]["resourceClaims"][0]["name"];
    let containers = ["/spec/initContainers", "/spec/containers"].map(|list| pod.pointer(list));
    let containers = containers.into_iter().flatten();
    let claiming: Vec<&Value> = containers
        .filter_map(Value::as_array)
        .flatten()
        .filter(|container| !container["resources"]["claims"].is_null())
        .collect();
    let [gpu] = claiming.as_slice() else {
        bail!("not one container has the claim: {claiming:#?}");
    };
    ensure!(
        gpu["name"] == GPU
            && gpu["resources"]["claims"] == json!([{"name": of_pod}])
            && gpu["resources"]["limits"]["nvidia.com/gpu"].is_null(),
        "{gpu:#}"
    );
    Ok(())
}

fn from<K: serde::de::DeserializeOwned>(value: Value) -> Result<K> {
    Ok(serde_json::from_value(value)?)
}

fn class() -> Value {
    let expression = format!("device.driver == '{DRIVER}'");
    json!({
        "metadata": {"name": DRIVER},
        "spec": {"selectors": [{"cel": {"expression": expression}}]},
    })
}

fn slice() -> Value {
    let node = kwok::name(0);
    json!({
        "metadata": {"name": DRIVER},
        "spec": {
            "driver": DRIVER,
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": [{"name": "gpu-0"}],
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
