//! Where a pod may go: terms of node affinity, merged into the user's own.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use cudarunner_crds::{ARCH_LABEL, Arch};
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
    Taint, Toleration,
};

use crate::NodeFacts;
use crate::model::pool::fingerprint;
use crate::pod::our_tolerations;

/// Labels by which GPU feature discovery names a node's compute capability. See
/// <https://github.com/NVIDIA/k8s-device-plugin/blob/main/docs/gpu-feature-discovery/README.md>.
const MAJOR: &str = "nvidia.com/gpu.compute.major";
const MINOR: &str = "nvidia.com/gpu.compute.minor";

/// The most that a preference may weigh.
const HEAVIEST: i32 = 100;

/// What a pool says of its nodes, as JSON, is kept of another operator's pool up to so many bytes.
const LONGEST: usize = 4096;

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

/// Where a pool's pods may go, as far as its spec says. Pools that say the same are alike.
#[derive(Clone, Debug)]
pub struct Place {
    arch: Arch,
    min_capability: String,
    selector: BTreeMap<String, String>,
    required: Option<NodeSelector>,
    tolerations: Vec<Toleration>,
    /// Changes when the nodes would differ.
    hash: String,
    /// Bytes of the terms, as JSON.
    length: usize,
}

impl Place {
    /// The place of pods that are made from this template.
    pub(crate) fn new(template: Option<&PodSpec>, arch: Arch, min_capability: &str) -> Self {
        let selector = template.and_then(|pod| pod.node_selector.clone());
        let required = template.and_then(required).cloned();
        let tolerations = template.and_then(|pod| pod.tolerations.clone());
        let terms = (&selector, &required, &tolerations);
        let terms = (terms, min_capability, arch.as_str());
        let text = serde_json::to_string(&terms).unwrap_or_default();
        Self {
            arch,
            min_capability: min_capability.to_owned(),
            selector: selector.unwrap_or_default(),
            required,
            tolerations: tolerations.unwrap_or_default(),
            hash: fingerprint(&text),
            length: text.len(),
        }
    }

    /// What other operators know of it: of long terms no more than the architecture and the capability, so that what is kept
    /// of a pool is bounded.
    pub(crate) fn bounded(&self) -> Self {
        if self.length > LONGEST {
            return Self::new(None, self.arch, &self.min_capability);
        }
        self.clone()
    }

    fn selects(&self, node: &NodeFacts) -> bool {
        let mut selector = self.selector.iter();
        node.is_of(self.arch)
            && selector.all(|(label, value)| node.labels.get(label) == Some(value))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
    }
}

/// Whether a pod of the pool may start on a node, by what the scheduler looks at that lasts: readiness, cordon, labels,
/// required affinity to nodes, and taints. Other requests are for the scheduler to know.
pub(crate) fn admits(place: &Place, node: &NodeFacts) -> bool {
    node.ready_since.is_some()
        && !node.is_cordoned
        && place.selects(node)
        && is_required(place.required.as_ref(), node)
        && is_capable(&place.min_capability, node)
        && is_tolerated(&place.tolerations, node)
}

/// Whether a node is one that the template's required affinity takes in.
fn is_required(required: Option<&NodeSelector>, node: &NodeFacts) -> bool {
    required.is_none_or(|required| {
        let mut terms = required.node_selector_terms.iter();
        terms.any(|term| is_matched(term, node))
    })
}

/// What a pod requires of its node.
pub(crate) fn required(pod: &PodSpec) -> Option<&NodeSelector> {
    let affinity = pod.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()
}

/// An empty term matches nothing.
fn is_matched(term: &NodeSelectorTerm, node: &NodeFacts) -> bool {
    let labels = term.match_expressions.iter().flatten();
    let mut labels = labels.map(|wanted| is_met(wanted, node.labels.get(&wanted.key)));
    // There is no field but the name.
    let fields = term.match_fields.iter().flatten();
    let mut fields = fields.map(|wanted| is_met(wanted, Some(&node.name)));
    let says = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    (says(&term.match_expressions) || says(&term.match_fields))
        && labels.all(|met| met)
        && fields.all(|met| met)
}

/// See <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#operators>.
fn is_met(wanted: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let number = |text: &String| text.parse::<i64>().ok();
    let compared = |holds: fn(i64, i64) -> bool| {
        let bound = values.first().and_then(number);
        let pair = value.and_then(number).zip(bound);
        pair.is_some_and(|(value, bound)| holds(value, bound))
    };
    match wanted.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(|value, bound| value > bound),
        "Lt" => compared(|value, bound| value < bound),
        _ => false,
    }
}

fn is_capable(minimum: &str, node: &NodeFacts) -> bool {
    let mut alternatives = capable(minimum).into_iter();
    alternatives.any(|all| {
        let mut all = all.iter();
        all.all(|wanted| is_met(wanted, node.labels.get(&wanted.key)))
    })
}

fn is_tolerated(theirs: &[Toleration], node: &NodeFacts) -> bool {
    if node.taints.is_empty() {
        return true;
    }
    let ours = our_tolerations();
    let all = || ours.iter().chain(theirs);
    let mut taints = node.taints.iter();
    taints.all(|taint| all().any(|toleration| tolerates(toleration, taint)))
}

/// See <https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/>.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let has_effect = said(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let has_key = said(&toleration.key).is_none_or(|key| key == taint.key);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let has_value =
        exists || said(&toleration.key).is_some() && said(&toleration.value) == said(&taint.value);
    has_effect && has_key && has_value
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

    /// Whether a pod of this spec, merged into a template, may start on a node with two labels and a taint.
    fn is_admitted(pod: &serde_json::Value) -> bool {
        let mut resource = crate::fixture::resource();
        resource.spec.template = Some(json!({"spec": pod}));
        let spec = crate::model::pool::Spec::read(&resource, false).unwrap();
        let mut node = NodeFacts::clone(&crate::fixture::node("node-1"));
        node.labels = [("zone", "a"), (MAJOR, "8"), (ARCH_LABEL, "amd64")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let taint = json!([{"key": "team", "value": "b", "effect": "NoSchedule"}, {"key": "nvidia.com/gpu", "effect": "NoSchedule"}]);
        node.taints = serde_json::from_value(taint).unwrap();
        admits(&spec.needs.unwrap().place, &node)
    }

    #[test]
    fn a_pod_may_go_where_labels_affinity_and_taints_let_it() {
        let team =
            json!([{"key": "team", "operator": "Equal", "value": "b", "effect": "NoSchedule"}]);
        let with = |terms: serde_json::Value| {
            json!({"tolerations": team, "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
            }}})
        };
        let label = |key: &str, operator: &str, values: &[&str]| {
            with(
                json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]),
            )
        };
        let name = |operator: &str| {
            with(json!([{"matchFields": [
                {"key": "metadata.name", "operator": operator, "values": ["node-1"]},
            ]}]))
        };
        for (pod, admitted) in [
            (json!({}), false),
            (json!({"tolerations": team}), true),
            (json!({"tolerations": [{"operator": "Exists"}]}), true),
            (
                json!({"tolerations": [{"key": "team", "operator": "Exists"}]}),
                true,
            ),
            (
                json!({"tolerations": [{"key": "team", "value": "c"}]}),
                false,
            ),
            (
                json!({"tolerations": [{"key": "team", "value": "b", "effect": "NoExecute"}]}),
                false,
            ),
            (
                json!({"tolerations": team, "nodeSelector": {"zone": "a"}}),
                true,
            ),
            (
                json!({"tolerations": team, "nodeSelector": {"zone": "b"}}),
                false,
            ),
            (label("zone", "In", &["a", "b"]), true),
            (label("zone", "In", &["b"]), false),
            (label("zone", "NotIn", &["a"]), false),
            (label("rack", "NotIn", &["a"]), true),
            (label("rack", "Exists", &[]), false),
            (label("rack", "DoesNotExist", &[]), true),
            (label(MAJOR, "Gt", &["7"]), true),
            (label(MAJOR, "Lt", &["8"]), false),
            (label("zone", "Gt", &["1"]), false),
            (name("In"), true),
            (name("NotIn"), false),
            (
                with(json!([{}, {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}])),
                true,
            ),
            (with(json!([{}])), false),
        ] {
            assert_eq!(is_admitted(&pod), admitted, "{pod}");
        }
    }
}
