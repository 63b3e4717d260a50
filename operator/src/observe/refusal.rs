//! Pods that the kubelet does not take: what each of its words means for the next attempt.
//!
//! The words are those of
//! <https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/lifecycle/predicate.go> and of the kubelet's other
//! admission handlers. A word that is not in the table speaks against nobody: it is tried again, with a pause.

use cuda_runner_plan::model::runner::{KubernetesWord, NOT_ALLOCATED, NOT_OFFERED};
use gate_report::Class;

/// Who has to act, and how.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) class: Class,
    /// What to do, as the end of a sentence.
    pub(super) advice: &'static str,
    /// What a device plugin has to do with it, where it has.
    pub(super) name: Option<&'static str>,
}

impl Verdict {
    fn of_the_pod(advice: &'static str) -> Self {
        Self {
            class: Class::Config,
            advice,
            name: None,
        }
    }
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

/// What a device plugin answers that shares GPUs, to a request for more than one share. See
/// <https://github.com/NVIDIA/k8s-device-plugin#shared-access-to-gpus>.
const ONE_SHARE: &str = "maximum request size for shared resources is 1";
/// With this begins what a device plugin answered, in the words of gRPC.
const ANSWER: &str = "rpc error: code = ";
/// Such words of a plugin that is not there, or was not in time.
const NO_ANSWER: [&str; 3] = ["Unavailable", "Canceled", "DeadlineExceeded"];
/// What the kubelet's device manager says of devices whose plugin has given them up, or is gone, or has not come back yet to
/// a kubelet that was restarted. Each is the same then.
const NOT_OFFERING: [&str; 4] = [
    "no healthy devices present",
    "cannot allocate unregistered device",
    "previously allocated devices are no longer healthy",
    "has been stopped",
];

/// Judges a refusal.
pub(super) fn judge(word: &KubernetesWord, message: &str) -> Verdict {
    let reason = word.as_str();
    let of_the_pod = OF_THE_POD.iter().find(|(word, _)| reason.starts_with(word));
    if let Some((_, advice)) = of_the_pod {
        return Verdict::of_the_pod(advice);
    }
    if reason.starts_with("OutOf") && can_never_fit(message) {
        return Verdict::of_the_pod(
            "the node has less of it than spec.gpu and spec.template ask for: ask for less, or let the scheduler choose another node",
        );
    }
    let by_plugin = reason == "UnexpectedAdmissionError";
    if by_plugin && message.contains(ONE_SHARE) {
        return Verdict::of_the_pod(
            "a runner gets one share of a GPU: set spec.gpu.count to 1, or leave it out",
        );
    }
    let name = by_plugin.then(|| of_plugin(message)).flatten();
    Verdict {
        class: Class::Transient,
        advice: match name {
            Some(_) => {
                "another attempt follows. If it happens again, look at the device plugin on the node, and at its GPUs"
            }
            None => {
                "another attempt follows. If it happens again, look at the kubelet's log on the node"
            }
        },
        name,
    }
}

/// What a device plugin has to do with a refusal, in the words of the kubelet's device manager. See
/// <https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/cm/devicemanager/manager.go>.
fn of_plugin(message: &str) -> Option<&'static str> {
    if let Some((_, answer)) = message.split_once(ANSWER) {
        let is_gone = NO_ANSWER.iter().any(|word| answer.starts_with(word));
        return Some(if is_gone { NOT_OFFERED } else { NOT_ALLOCATED });
    }
    let offers_none = NOT_OFFERING.iter().any(|words| message.contains(words));
    offers_none.then_some(NOT_OFFERED)
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
    fn no_refusal_speaks_against_the_node_by_itself() {
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
            ("UnexpectedAdmissionError", unhealthy, Class::Transient),
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

    #[test]
    fn what_a_device_plugin_has_to_do_with_it_is_told_apart() {
        let lost = "Allocate failed due to device plugin GetPreferredAllocation rpc failed with err: rpc error: code = Unknown desc = Unable to retrieve list of available devices: error creating nvml.Device 5: nvml: GPU is lost, which is unexpected";
        let gone = "Allocate failed due to rpc error: code = Unavailable desc = transport is closing, which is unexpected";
        let shares = "Allocate failed due to rpc error: code = Unknown desc = request for 'nvidia.com/gpu: 2' too large: maximum request size for shared resources is 1, which is unexpected";
        let restarted = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu, which is unexpected";
        let taken = "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. Requested: 1, Available: 0, which is unexpected";
        let late = "Allocate failed due to rpc error: code = DeadlineExceeded desc = context deadline exceeded, which is unexpected";
        let ended = "Allocate failed due to rpc error: code = Canceled desc = grpc: the client connection is closing, which is unexpected";
        let unknown = "Allocate failed due to cannot allocate unregistered device nvidia.com/gpu, which is unexpected";
        let given_up = "Allocate failed due to previously allocated devices are no longer healthy; cannot allocate unhealthy devices nvidia.com/gpu, which is unexpected";
        let stopped =
            "Allocate failed due to endpoint 0xc000 has been stopped, which is unexpected";
        let unexpected = "UnexpectedAdmissionError";
        for (reason, message, class, name) in [
            (unexpected, lost, Class::Transient, Some(NOT_ALLOCATED)),
            (unexpected, gone, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, restarted, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, late, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, ended, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, unknown, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, given_up, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, stopped, Class::Transient, Some(NOT_OFFERED)),
            (unexpected, shares, Class::Config, None),
            (unexpected, taken, Class::Transient, None),
            ("TopologyAffinityError", lost, Class::Transient, None),
        ] {
            let verdict = judge(&reason.into(), message);
            assert_eq!((verdict.class, verdict.name), (class, name), "{message}");
        }
    }
}
