//! What the rest of the cluster sees of a quarantined node: a condition and a taint, where that is switched on.
//!
//! A node is no pool's own, so this is decided for all pools at once: a node is marked while any of them quarantines
//! it.

use gate_report::Class;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::Passed;
use super::quarantine::{is_fact, is_of_node};
use crate::model::node_marks::Quarantined;
use crate::reason::{Reason, Stored};

/// Type of the condition.
pub const CONDITION: &str = "CudaSmoke";
/// Key of the taint.
pub const TAINT: &str = "cudarunner.dev/cuda-smoke-failed";
/// Its effect: what runs stays.
const EFFECT: &str = "NoSchedule";

/// Which marks are made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Marking {
    /// The condition.
    pub condition: bool,
    /// The taint.
    pub taint: bool,
}

/// What the condition of a node says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeCondition {
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: Stored,
    /// A sentence.
    pub message: String,
    /// Since when it has this status.
    pub since: Timestamp,
}

/// The marks of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Marked {
    /// Its name.
    pub name: String,
    /// Its uid: a namesake is another node.
    pub uid: String,
    /// Our condition.
    pub said: Option<NodeCondition>,
    /// Whether it has our taint.
    pub tainted: bool,
}

/// One write to a node. Each is safe to repeat.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MarkNode {
    /// Name of the node.
    pub name: String,
    /// Uid of the node.
    pub uid: String,
    /// What changes.
    pub change: Change,
}

impl MarkNode {
    /// Whether it takes a mark off.
    #[must_use]
    pub fn frees(&self) -> bool {
        match &self.change {
            Change::Condition(said) => said.status == "True",
            Change::Taint(is_there) => !is_there,
        }
    }
}

/// What changes on a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Our condition.
    Condition(NodeCondition),
    /// Our taint: whether it is to be there.
    Taint(bool),
}

/// The taint.
#[must_use]
pub fn taint() -> Taint {
    Taint {
        key: TAINT.to_owned(),
        effect: EFFECT.to_owned(),
        ..Taint::default()
    }
}

/// Whether a taint is ours.
#[must_use]
pub fn is_ours(taint: &Taint) -> bool {
    taint.key == TAINT && taint.effect == EFFECT
}

/// With this a runner tries a node at the end of its quarantine; until then its affinity keeps it off.
pub(super) fn toleration() -> Toleration {
    Toleration {
        key: Some(TAINT.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some(EFFECT.to_owned()),
        ..Toleration::default()
    }
}

/// The marks that have to change.
#[must_use]
pub fn plan(
    marking: Marking,
    held: &[Quarantined],
    nodes: &[Marked],
    passed: &[Passed],
    now: Timestamp,
) -> Vec<MarkNode> {
    let mut changes = vec![];
    for node in nodes {
        let holder = holder(held, &node.name);
        let mut change = |change| {
            changes.push(MarkNode {
                name: node.name.clone(),
                uid: node.uid.clone(),
                change,
            });
        };
        if marking.condition
            && let Some(said) = condition(node, holder, passed, now)
        {
            change(Change::Condition(said));
        }
        if marking.taint && node.tainted != holder.is_some() {
            change(Change::Taint(holder.is_some()));
        }
    }
    changes
}

/// The first that quarantines the node for a fault that no pool's author can make: a mark is seen by the whole cluster.
fn holder<'a>(held: &'a [Quarantined], node: &str) -> Option<&'a Quarantined> {
    held.iter()
        .filter(|h| h.entry.node == node && is_fact(&h.entry) && is_of_node(&h.entry))
        .min_by_key(|h| (h.entry.since.0, &h.pool))
}

/// What the condition has to say, if that is not what it says. A node that never failed has none.
fn condition(
    node: &Marked,
    holder: Option<&Quarantined>,
    passed: &[Passed],
    now: Timestamp,
) -> Option<NodeCondition> {
    let before = node.said.as_ref();
    let (status, (reason, message)) = match (holder, before) {
        (Some(held), _) => ("False", fault(held)),
        (None, Some(before)) if before.status != "True" => {
            ("True", let_go(node, before.since, passed))
        }
        (None, _) => return None,
    };
    let kept = before.filter(|b| b.status == status);
    if kept.is_some_and(|b| b.reason == reason && b.message == message) {
        return None;
    }
    Some(NodeCondition {
        status: status.to_owned(),
        reason: reason.into(),
        message,
        since: kept.map_or(now, |b| b.since),
    })
}

fn fault(held: &Quarantined) -> (Reason, String) {
    let entry = &held.entry;
    let reason = if entry.class == Class::Device {
        Reason::DeviceFailed
    } else {
        Reason::NodeFailed
    };
    let device = entry.device.as_ref().map(|uuid| format!("{uuid}: "));
    let code = entry.code.map(|code| format!(" (code {code})"));
    let message = format!(
        "{}{}{}. The CudaRunner {} quarantines the node",
        device.unwrap_or_default(),
        entry.message.trim_end_matches('.'),
        code.unwrap_or_default(),
        held.pool,
    );
    (reason, message)
}

/// Why a node that failed is well: somebody looked, or nobody did.
fn let_go(node: &Marked, failed: Timestamp, passed: &[Passed]) -> (Reason, String) {
    let mut here = passed.iter().filter(|p| p.node == node.name);
    if here.any(|p| p.created > failed) {
        return (
            Reason::Passed,
            "The gate has passed here since the failure".to_owned(),
        );
    }
    (
        Reason::Released,
        "No pool quarantines the node any more: a person, a restart or time has ended that, and no gate has passed yet"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests;
