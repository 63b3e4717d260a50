//! Whether a GPU is shared with others: then it may be busy without being broken.

use super::NodeFacts;
use crate::labels;
use crate::model::pool::GpuRequest;

/// So ends the name of a resource that NVIDIA's device plugin offers by shares, where it was told to rename it. See
/// <https://github.com/NVIDIA/k8s-device-plugin#shared-access-to-gpus>.
const RESOURCE: &str = ".shared";
/// What of a resource's labels says how its devices are shared: `none`, `time-slicing` or `mps`.
const STRATEGY: &str = ".sharing-strategy";
/// In how many shares.
const REPLICAS: &str = ".replicas";
/// Google's own label, on nodes that share GPUs. See
/// <https://cloud.google.com/kubernetes-engine/docs/concepts/timesharing-gpus>.
const GKE: &str = "cloud.google.com/gke-gpu-sharing-strategy";

/// Whether a request gets shares of GPUs on a node, as its name and the node's labels say. Of claims nobody but the driver
/// knows; MPS the gate sees by itself, and says so in its failures.
#[must_use]
pub fn is_shared(gpu: &GpuRequest, node: Option<&NodeFacts>) -> bool {
    let GpuRequest::Resource { name, .. } = gpu else {
        return false;
    };
    if name.ends_with(RESOURCE) {
        return true;
    }
    let label = |key: &str| node?.labels.get(key).map(String::as_str);
    let of_resource = |field: &str| label(&format!("{name}{field}"));
    let replicas = of_resource(REPLICAS).and_then(|n| n.parse::<u32>().ok());
    label(GKE).is_some()
        || matches!(of_resource(STRATEGY), Some("time-slicing" | "mps"))
        || replicas.is_some_and(|n| n > 1)
        || of_resource(labels::OF_PRODUCT).is_some_and(|product| product.ends_with(labels::SHARED))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixture::node;

    #[test]
    fn the_name_or_a_label_of_the_resource_says_it() {
        let is_shared = |name: &str, labels: &[(&str, &str)]| {
            let gpu = GpuRequest::Resource {
                name: name.to_owned(),
                count: 1,
            };
            let mut node = node("node-1");
            let labels = labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Arc::make_mut(&mut node).labels = labels.collect();
            is_shared(&gpu, Some(&node))
        };
        let gpu = "nvidia.com/gpu";
        for (name, labels, shared) in [
            (gpu, &[][..], false),
            ("nvidia.com/gpu.shared", &[], true),
            ("nvidia.com/mig-1g.5gb.shared", &[], true),
            (gpu, &[("nvidia.com/gpu.sharing-strategy", "none")], false),
            (
                gpu,
                &[("nvidia.com/gpu.sharing-strategy", "time-slicing")],
                true,
            ),
            (gpu, &[("nvidia.com/gpu.sharing-strategy", "mps")], true),
            (gpu, &[("nvidia.com/gpu.replicas", "1")], false),
            (gpu, &[("nvidia.com/gpu.replicas", "4")], true),
            (gpu, &[("nvidia.com/gpu.replicas", "many")], false),
            (gpu, &[("nvidia.com/gpu.product", "Tesla-T4")], false),
            (gpu, &[("nvidia.com/gpu.product", "Tesla-T4-SHARED")], true),
            (
                gpu,
                &[("cloud.google.com/gke-gpu-sharing-strategy", "mps")],
                true,
            ),
            // Labels of another resource of the node
            (gpu, &[("nvidia.com/mig-1g.5gb.replicas", "2")], false),
            (
                "nvidia.com/mig-1g.5gb",
                &[("nvidia.com/mig-1g.5gb.replicas", "2")],
                true,
            ),
        ] {
            assert_eq!(is_shared(name, labels), shared, "{name} {labels:?}");
        }
    }

    #[test]
    fn a_node_that_is_not_known_and_a_claim_say_nothing() {
        let gpu = GpuRequest::Resource {
            name: "nvidia.com/gpu".to_owned(),
            count: 1,
        };
        assert!(!is_shared(&gpu, None));
        assert!(!is_shared(&GpuRequest::Claim("gpus".to_owned()), None));
    }
}
