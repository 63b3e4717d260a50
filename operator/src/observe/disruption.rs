//! Pods that Kubernetes takes away by itself: a drain, a taint, a node that is gone.

use gate_report::Class;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::end::Failure;
use super::pod::{Runner, condition};

/// The reason of a runner whose pod was taken off its node.
pub const EVICTED: &str = "Evicted";
/// The reason of a runner whose node stopped answering.
pub const NODE_LOST: &str = "NodeLost";
/// Why the garbage collector removes a pod: its node does not exist any more.
const NODE_IS_GONE: &str = "DeletionByPodGC";

/// What Kubernetes says of a pod that it takes away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disruption {
    /// Kubernetes' word, see
    /// <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>.
    pub reason: String,
    /// Kubernetes' sentence.
    pub message: String,
}

impl Disruption {
    /// The pod's condition `DisruptionTarget`.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let target = condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
        Some(Self {
            reason: target.reason.clone().unwrap_or_default(),
            message: target.message.clone().unwrap_or_default(),
        })
    }
}

/// Reason, class and sentence of a pod that ended because somebody else than its containers wanted it.
pub(super) fn of_ended(
    pod: &Pod,
    status: &PodStatus,
    cut_text: &str,
) -> Option<(&'static str, Class, String)> {
    let (reason, message) = match (status.reason.as_deref(), Disruption::of(pod)) {
        (Some(reason), _) => (
            reason.to_owned(),
            status.message.as_deref().unwrap_or("no message").to_owned(),
        ),
        (None, Some(disruption)) => (disruption.reason, disruption.message),
        (None, None) => return None,
    };
    Some(match reason.as_str() {
        NODE_LOST | NODE_IS_GONE => (NODE_LOST, Class::Node, lost(&message, cut_text)),
        "Evicted"
        | "Preempting"
        | "NodeShutdown"
        | "Terminated"
        | "DeletionByTaintManager"
        | "EvictionByEvictionAPI"
        | "PreemptionByScheduler"
        | "TerminationByKubelet" => (
            EVICTED,
            Class::Transient,
            format!("Kubernetes removed the pod from its node ({reason}: {message}).{cut_text}"),
        ),
        _ if status.reason.is_none() => return None,
        _ => (
            "PodRejected",
            Class::Node,
            format!(
                "The node refused the pod ({reason}: {message}); look at the node's device plugin and its kubelet."
            ),
        ),
    })
}

fn lost(message: &str, cut_text: &str) -> String {
    format!("The node stopped answering ({message}).{cut_text}")
}

/// The failure of a runner whose node never confirmed that the pod is gone, once its time for that is over.
#[must_use]
pub fn unconfirmed(runner: &Runner, now: Timestamp) -> Option<Failure> {
    let disruption = runner.disruption.as_ref()?;
    let at = runner.gone_by.filter(|by| *by <= now)?;
    let message = lost(
        &format!("{}: {}", disruption.reason, disruption.message),
        " If its runner had a job, GitHub fails that after a while.",
    );
    Some(Failure::new(NODE_LOST, Class::Node, message, at, true))
}
