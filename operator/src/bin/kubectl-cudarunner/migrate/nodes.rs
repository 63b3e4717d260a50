//! Which architecture the nodes have that a template asks for.

use cudarunner_crds::{ARCH_LABEL, Arch};
use serde_json::{Map, Value};

/// The label, and what it was called before Kubernetes 1.14.
const LABELS: [&str; 2] = [ARCH_LABEL, "beta.kubernetes.io/arch"];

/// The architectures of nodes that the selector and the required node affinity of a template allow.
pub(super) fn architectures(template: &Map<String, Value>) -> Vec<Arch> {
    let Some(pod) = template.get("spec") else {
        return vec![Arch::Amd64, Arch::Arm64];
    };
    let both = [Arch::Amd64, Arch::Arm64].into_iter();
    both.filter(|arch| selects(pod, *arch) && has_term_for(pod, *arch))
        .collect()
}

fn selects(pod: &Value, arch: Arch) -> bool {
    let mut wanted = LABELS
        .iter()
        .filter_map(|label| pod.get("nodeSelector")?.get(label));
    wanted.all(|wanted| wanted == arch.as_str())
}

/// Terms are alternatives; without any, all nodes will do.
fn has_term_for(pod: &Value, arch: Arch) -> bool {
    let path =
        "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = pod.pointer(path).and_then(Value::as_array);
    terms.is_none_or(|terms| terms.is_empty() || terms.iter().any(|term| matches(term, arch)))
}

fn matches(term: &Value, arch: Arch) -> bool {
    let expressions = term.get("matchExpressions").and_then(Value::as_array);
    let mut expressions = expressions.into_iter().flatten();
    expressions.all(|expression| {
        let text = |field: &str| {
            expression
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        if !LABELS.contains(&text("key")) {
            return true;
        }
        let values = expression.get("values").and_then(Value::as_array);
        let is_named = values.is_some_and(|values| values.iter().any(|v| v == arch.as_str()));
        match text("operator") {
            "In" => is_named,
            "NotIn" => !is_named,
            "DoesNotExist" => false,
            _ => true,
        }
    })
}
