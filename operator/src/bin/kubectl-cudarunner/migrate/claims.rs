//! Claims of the runner's, by dynamic resource allocation: that of the GPUs goes to `spec.gpu`.

use serde_json::{Map, Value, json};

use super::Draft;
use super::fields::{Fields, Notes};
use super::pod::name_of;

/// The field of a pod's claim that names what it is made from.
const TEMPLATE: &str = "resourceClaimTemplateName";

/// Takes the claim that is for GPUs; others stay in the template. Where no one can say which it is, all do.
pub(super) fn take_over(
    pod: &mut Fields,
    path: &str,
    agent: &mut Map<String, Value>,
    draft: &mut Draft,
    notes: &mut Notes,
) {
    let claimed = claimed(agent);
    if claimed.is_empty() || !draft.gpu.is_empty() {
        return;
    }
    let path = format!("{path}.resources.claims");
    let of_pod = pod.get("resourceClaims").and_then(Value::as_array);
    let of_pod = of_pod.into_iter().flatten().filter_map(Value::as_object);
    let candidates: Vec<(String, Value)> = of_pod
        .filter(|claim| claimed.iter().any(|(name, _)| name == name_of(claim)))
        .filter_map(|claim| Some((name_of(claim).to_owned(), claim.get(TEMPLATE)?.clone())))
        .collect();
    let Some((name, template)) = of_gpus(&candidates) else {
        draft.unclear_gpu = true;
        notes.say(&path, "which of these is for the GPUs, and from which ResourceClaimTemplate, is not clear: name that in spec.gpu.claimTemplate, and remove the claim from spec.template; claims for other devices stay there");
        return;
    };
    if claimed.iter().any(|(of, request)| of == name && *request) {
        notes.say(&path, "the runner has the whole claim, all requests of it");
    }
    draft
        .gpu
        .insert("claimTemplate".to_owned(), template.clone());
    without(pod, agent, name);
}

/// The names of the claims that a container has, and whether it has one request of it alone.
fn claimed(agent: &Map<String, Value>) -> Vec<(String, bool)> {
    let claims = agent.get("resources").and_then(|r| r.get("claims"));
    let claims = claims.and_then(Value::as_array).into_iter().flatten();
    let claims = claims.filter_map(Value::as_object);
    claims
        .map(|claim| (name_of(claim).to_owned(), claim.contains_key("request")))
        .collect()
}

/// The only one, or the only one that says so by its name or by that of its template.
fn of_gpus(candidates: &[(String, Value)]) -> Option<&(String, Value)> {
    if let [only] = candidates {
        return Some(only);
    }
    let says = |(name, template): &&(String, Value)| {
        let words = [name.as_str(), template.as_str().unwrap_or_default()];
        words.iter().any(|word| word.to_lowercase().contains("gpu"))
    };
    let mut those = candidates.iter().filter(says);
    those.next().filter(|_| those.next().is_none())
}

/// Takes a claim out of the pod, and out of its container.
fn without(pod: &mut Fields, agent: &mut Map<String, Value>, name: &str) {
    let others = |claims: Vec<Map<String, Value>>| -> Vec<_> {
        let others = claims.into_iter().filter(|claim| name_of(claim) != name);
        others.collect()
    };
    let of_pod = others(pod.objects("resourceClaims"));
    if !of_pod.is_empty() {
        pod.put("resourceClaims", json!(of_pod));
    }
    if let Some(Value::Object(resources)) = agent.remove("resources") {
        let mut resources = Fields::new(String::new(), resources);
        let of_agent = others(resources.objects("claims"));
        if !of_agent.is_empty() {
            resources.put("claims", json!(of_agent));
        }
        let rest = resources.into_rest();
        if !rest.is_empty() {
            agent.insert("resources".to_owned(), Value::Object(rest));
        }
    }
}
