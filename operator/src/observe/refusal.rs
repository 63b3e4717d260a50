//! Pods that the kubelet does not take: what each of its words means for the next attempt.
//!
//! The words are those of
//! <https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/lifecycle/predicate.go> and of the kubelet's other
//! admission handlers. A word that is not in the table speaks against nobody: it is tried again, with a pause.

use cuda_runner_plan::model::runner::KubernetesWord;
use gate_report::Class;

/// Who has to act, and how.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) class: Class,
    /// What to do, as the end of a sentence.
    pub(super) advice: &'static str,
}

/// What of the pod the node cannot or may not do: every node of this kind says the same.
const OF_THE_POD: [(&str, &str); 9] = [
    (
        "SysctlForbidden",
        "remove the sysctl from spec.template, or allow it with --allowed-unsafe-sysctls of the node's kubelet",
    ),
    (
        "AppArmor",
        "name an AppArmor profile in spec.template that is loaded on the node, or none",
    ),
    (
        "Seccomp",
        "name a seccomp profile in spec.template that is on the node, or RuntimeDefault",
    ),
    (
        "SMTAlignmentError",
        "ask for whole cores in spec.template, as the node's CPU policy wants it",
    ),
    (
        "PodOSSelectorNodeLabelDoesNotMatch",
        "correct the operating system in spec.template",
    ),
    (
        "PodOSNotSupported",
        "correct the operating system in spec.template",
    ),
    (
        "PodFeatureUnsupported",
        "the node's kubelet does not know a field of spec.template; remove it, or update the node",
    ),
    (
        "PodLevelResourcesNotAdmitted",
        "the node's kubelet does not know resources of whole pods; give them to the containers in spec.template",
    ),
    (
        "InitContainerRestartPolicyForbidden",
        "the node's kubelet does not know restartable init containers; update the node",
    ),
];

/// What the device manager says of devices that its plugin has given up.
const UNHEALTHY: &str = "no healthy devices present";

/// Judges a refusal.
pub(super) fn judge(word: &KubernetesWord, message: &str) -> Verdict {
    let reason = word.as_str();
    let of_the_pod = OF_THE_POD.iter().find(|(word, _)| reason.starts_with(word));
    if let Some((_, advice)) = of_the_pod {
        return Verdict {
            class: Class::Config,
            advice,
        };
    }
    if reason.starts_with("OutOf") && can_never_fit(message) {
        return Verdict {
            class: Class::Config,
            advice: "the node has less of it than spec.gpu and spec.template ask for: ask for less, or let the scheduler choose another node",
        };
    }
    if reason == "UnexpectedAdmissionError" && message.contains(UNHEALTHY) {
        return Verdict {
            class: Class::Node,
            advice: "look at the node's device plugin: it reports its devices as unhealthy",
        };
    }
    Verdict {
        class: Class::Transient,
        advice: "another attempt follows. If it happens again, look at the kubelet's log on the node",
    }
}

/// Whether the kubelet's figures show a request that is more than the node has at all.
fn can_never_fit(message: &str) -> bool {
    let figure = |name: &str| -> Option<u64> {
        let (_, rest) = message.split_once(name)?;
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
    };
    let (asked, has) = (figure("requested: "), figure("capacity: "));
    asked.zip(has).is_some_and(|(asked, has)| asked > has)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Given what kubelets say, then this is what it means.
    #[test]
    fn only_a_device_plugin_that_gives_up_its_devices_speaks_against_the_node() {
        let too_many =
            "Node didn't have enough resource: nvidia.com/gpu, requested: 8, used: 0, capacity: 2";
        let taken =
            "Node didn't have enough resource: nvidia.com/gpu, requested: 1, used: 2, capacity: 2";
        let unhealthy = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu, which is unexpected";
        let not_back = "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. Requested: 1, Available: 0, which is unexpected";
        for (reason, message, class) in [
            (
                "SysctlForbidden",
                "forbidden sysctl: \"net.core.somaxconn\" not allowlisted",
                Class::Config,
            ),
            (
                "AppArmor",
                "Cannot enforce AppArmor: profile \"x\" is not loaded",
                Class::Config,
            ),
            ("SeccompNotSupported", "", Class::Config),
            ("PodOSNotSupported", "", Class::Config),
            ("OutOfnvidia.com/gpu", too_many, Class::Config),
            ("OutOfnvidia.com/gpu", taken, Class::Transient),
            (
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 64000, used: 100, capacity: 8000",
                Class::Config,
            ),
            ("OutOfmemory", "", Class::Transient),
            (
                "OutOfpods",
                "requested: 1, used: 110, capacity: 110",
                Class::Transient,
            ),
            (
                "NodeAffinity",
                "Predicate NodeAffinity failed",
                Class::Transient,
            ),
            ("NodePorts", "", Class::Transient),
            ("TaintToleration", "", Class::Transient),
            (
                "TopologyAffinityError",
                "Resources cannot be allocated with Topology locality",
                Class::Transient,
            ),
            ("UnexpectedAdmissionError", unhealthy, Class::Node),
            ("UnexpectedAdmissionError", not_back, Class::Transient),
            (
                "UnexpectedAdmissionError",
                "failed to write checkpoint file",
                Class::Transient,
            ),
            ("SomethingNew", "", Class::Transient),
        ] {
            assert_eq!(
                judge(&reason.into(), message).class,
                class,
                "{reason}: {message}"
            );
        }
    }
}
