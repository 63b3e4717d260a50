//! What the cluster sees of a quarantined node, beside what others have on it.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::{Ctx, SOON};
use crate::{audit::Audit, node};

const CONDITION: &str = "CudaSmoke";
/// Key of the taint.
pub(super) const TAINT: &str = "cudarunner.dev/cuda-smoke-failed";
/// Type of a condition, and key of a taint, of somebody else.
const FOREIGN: &str = "example.com/foreign";

async fn get(ctx: &Ctx, name: &str) -> Result<Node> {
    Ok(Api::<Node>::all(ctx.client.clone()).get(name).await?)
}

fn condition(node: &Node, kind: &str) -> Option<NodeCondition> {
    let mut all = node
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    all.find(|c| c.type_ == kind).cloned()
}

fn taint(node: &Node, key: &str) -> Option<Taint> {
    let mut all = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    all.find(|t| t.key == key).cloned()
}

/// Somebody else's condition and taint come to the node.
pub(super) async fn foreign(ctx: &Ctx) -> Result<()> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let said = json!({"status": {"conditions": [{
        "type": FOREIGN, "status": "True", "reason": "Foreign", "message": "somebody else's",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let by_somebody = PatchParams::default();
    nodes
        .patch_status(node::NAME, &by_somebody, &Patch::Strategic(said))
        .await?;
    let tainted = json!({"spec": {"taints": [{"key": FOREIGN, "effect": "PreferNoSchedule"}]}});
    nodes
        .patch(node::NAME, &by_somebody, &Patch::Strategic(tainted))
        .await?;
    Ok(())
}

/// Takes off the node what the suite has brought, and the product may have left.
pub(super) async fn clear(ctx: &Ctx) -> Result<()> {
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    for kind in [FOREIGN, CONDITION] {
        let gone = json!({"status": {"conditions": [{"type": kind, "$patch": "delete"}]}});
        nodes
            .patch_status(node::NAME, &PatchParams::default(), &Patch::Strategic(gone))
            .await?;
    }
    let gone = json!({"spec": {"taints": null}});
    nodes
        .patch(node::NAME, &PatchParams::default(), &Patch::Merge(gone))
        .await?;
    Ok(())
}

/// Waits until the node has both marks, or the condition for this reason and no taint; what is others' stays as it is.
pub(super) async fn wait(ctx: &Ctx, status: &str, reason: &str) -> Result<String> {
    let what = format!("the condition {CONDITION}={status} for the reason {reason} of the node");
    let node = ctx
        .wait_for(&what, SOON, async || {
            let node = get(ctx, node::NAME).await?;
            let said = condition(&node, CONDITION);
            let says =
                said.is_some_and(|c| c.status == status && c.reason.as_deref() == Some(reason));
            Ok((says && taint(&node, TAINT).is_some() == (status == "False")).then_some(node))
        })
        .await?;
    let foreign = condition(&node, FOREIGN).context("somebody else's condition is lost")?;
    ensure!(
        foreign.status == "True" && foreign.reason.as_deref() == Some("Foreign"),
        "somebody else's condition has changed: {foreign:?}"
    );
    let foreign = taint(&node, FOREIGN).context("somebody else's taint is lost")?;
    ensure!(foreign.effect == "PreferNoSchedule", "{foreign:?}");
    let ready = condition(&node, "Ready").context("the kubelet's condition is lost")?;
    ensure!(ready.status == "True", "{ready:?}");
    let said = condition(&node, CONDITION).and_then(|c| c.message);
    said.context("the condition has no message")
}

/// Fails where a node that never failed has a mark.
pub(super) async fn none(ctx: &Ctx, name: &str) -> Result<()> {
    let node = get(ctx, name).await?;
    let marks = (condition(&node, CONDITION), taint(&node, TAINT));
    ensure!(matches!(marks, (None, None)), "{name} is marked: {marks:?}");
    Ok(())
}

/// How often the operator has written to a node.
pub(super) fn writes(audit: &mut Audit) -> Result<usize> {
    let requests = audit.new_requests()?;
    Ok(requests
        .iter()
        .filter(|r| r.resource.starts_with("nodes") && r.verb == "patch")
        .count())
}
