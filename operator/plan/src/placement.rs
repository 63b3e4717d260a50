//! Where a pod may go: terms of node affinity, merged into the user's own.

use std::collections::BTreeSet;

use cudarunner_crds::{ARCH_LABEL, Arch};
use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};

/// Labels by which GPU feature discovery names a node's compute capability. See
/// <https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md>.
const MAJOR: &str = "nvidia.com/gpu.compute.major";
const MINOR: &str = "nvidia.com/gpu.compute.minor";

/// The most that a preference may weigh.
const HEAVIEST: i32 = 100;

/// Keeps a pod on nodes of its architecture, off the nodes in `avoid`, and off those whose labels say that their GPUs are too
/// old. A node without such labels of its GPUs is tried: the gate decides there. Every kubelet tells its architecture.
pub(super) fn restrict(
    spec: &mut PodSpec,
    arch: Arch,
    avoid: &BTreeSet<String>,
    min_capability: &str,
) {
    let capable = capable(min_capability);
    let of_arch = requirement(ARCH_LABEL, "In", Some(arch));
    let off: Vec<NodeSelectorRequirement> = avoid.iter().map(|node| not_on(node)).collect();
    let required = spec
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    let mut given = std::mem::take(&mut required.node_selector_terms);
    if given.is_empty() {
        given.push(NodeSelectorTerm::default());
    }
    // Terms are alternatives: ours hold in each of the user's.
    for term in &given {
        for expressions in &capable {
            let mut term = term.clone();
            term.match_expressions
                .get_or_insert_default()
                .extend(expressions.iter().chain([&of_arch]).cloned());
            if !off.is_empty() {
                term.match_fields
                    .get_or_insert_default()
                    .extend(off.iter().cloned());
            }
            required.node_selector_terms.push(term);
        }
    }
}

/// Has the scheduler choose another node than these where one has room.
pub(super) fn prefer_others(spec: &mut PodSpec, shun: &BTreeSet<String>) {
    if shun.is_empty() {
        return;
    }
    spec.affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .preferred_during_scheduling_ignored_during_execution
        .get_or_insert_default()
        .push(PreferredSchedulingTerm {
            weight: HEAVIEST,
            preference: NodeSelectorTerm {
                match_fields: Some(shun.iter().map(|node| not_on(node)).collect()),
                ..NodeSelectorTerm::default()
            },
        });
}

/// The alternatives under which a node's labels allow a compute capability.
fn capable(minimum: &str) -> Vec<Vec<NodeSelectorRequirement>> {
    let (major, minor) = minimum.split_once('.').unwrap_or((minimum, "0"));
    let number = |text: &str| text.parse::<i64>().unwrap_or_default();
    let (major, minor) = (number(major), number(minor));
    let unlabelled = vec![requirement(MAJOR, "DoesNotExist", None::<i64>)];
    if minor == 0 {
        return vec![
            unlabelled,
            vec![requirement(MAJOR, "Gt", Some(major.saturating_sub(1)))],
        ];
    }
    vec![
        unlabelled,
        vec![requirement(MAJOR, "Gt", Some(major))],
        vec![
            requirement(MAJOR, "In", Some(major)),
            requirement(MINOR, "Gt", Some(minor.saturating_sub(1))),
        ],
    ]
}

fn requirement(key: &str, operator: &str, value: Option<impl ToString>) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: value.map(|value| vec![value.to_string()]),
    }
}

/// By the node's name: its hostname label may be another.
fn not_on(node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "NotIn".to_owned(),
        values: Some(vec![node.to_owned()]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn terms(spec: serde_json::Value, avoid: &[&str], minimum: &str) -> Vec<NodeSelectorTerm> {
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        let avoid = avoid.iter().map(|&name| name.to_owned()).collect();
        restrict(&mut spec, Arch::Arm64, &avoid, minimum);
        let affinity = spec.affinity.unwrap().node_affinity.unwrap();
        affinity
            .required_during_scheduling_ignored_during_execution
            .unwrap()
            .node_selector_terms
    }

    #[test]
    fn a_minimum_needs_two_labels_and_spares_nodes_without() {
        let found = terms(json!({"containers": []}), &[], "7.5");
        let arch = json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["arm64"]});
        assert_eq!(
            serde_json::to_value(found).unwrap(),
            json!([
                {"matchExpressions": [{"key": MAJOR, "operator": "DoesNotExist"}, arch]},
                {"matchExpressions": [{"key": MAJOR, "operator": "Gt", "values": ["7"]}, arch]},
                {"matchExpressions": [
                    {"key": MAJOR, "operator": "In", "values": ["7"]},
                    {"key": MINOR, "operator": "Gt", "values": ["4"]},
                    arch
                ]},
            ])
        );
    }

    #[test]
    fn what_the_user_asks_for_holds_in_every_alternative() {
        let own = json!({"containers": [], "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]},
        ]}}}});
        let found = terms(own, &["bad-1", "bad-2"], "8.0");
        assert_eq!(found.len(), 4);
        for term in &found {
            let off = term.match_fields.iter().flatten();
            assert_eq!(off.filter(|f| f.operator == "NotIn").count(), 2, "{term:?}");
        }
        let zones = |term: &&NodeSelectorTerm| {
            term.match_expressions
                .iter()
                .flatten()
                .any(|e| e.key == "zone")
        };
        assert_eq!(found.iter().filter(zones).count(), 2);
    }
}
