//! Pods that Kubernetes takes away by itself: a drain, a taint, a node that is gone.

use gate_report::Class;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::gpu::Gpu;
use super::refusal::{self, Verdict};
use super::status::{condition, ended_at, transition, words};
use cuda_runner_plan::model::runner::{Disruption, lost};
use cuda_runner_plan::reason::Reason;

/// The kubelet's word for a pod that ran into its own limit of time.
const DEADLINE: &str = "DeadlineExceeded";
/// The word of the controller of nodes for a pod whose node does not answer.
const NODE_LOST: &str = "NodeLost";
/// The kubelet's word for a pod that it evicts because the node is short of something, or the pod beyond a limit of its own.
const EVICTED: &str = "Evicted";
/// Why the garbage collector removes a pod: its node does not exist any more.
const NODE_IS_GONE: &str = "DeletionByPodGC";

/// The pod's condition `DisruptionTarget`.
pub(super) fn target(pod: &Pod) -> Option<Disruption> {
    let target = condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    Some(Disruption {
        reason: target.reason.as_deref().unwrap_or_default().into(),
        message: target.message.clone().unwrap_or_default(),
        at: transition(target),
        by_own_use: status_reason(pod) == Some(EVICTED),
    })
}

fn status_reason(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.reason.as_deref()
}

/// Reason, class, sentence, and the name of what was found, of a pod that ended because somebody else than its containers wanted it.
pub(super) fn of_ended(
    pod: &Pod,
    status: &PodStatus,
    cut_text: &str,
) -> Option<(Reason, Class, String, Option<&'static str>)> {
    let (reason, message) = match (status.reason.as_deref(), target(pod)) {
        (Some(reason), _) => (reason.into(), words(status.message.as_deref())),
        (None, Some(disruption)) => (disruption.reason, words(Some(&disruption.message))),
        (None, None) if is_past_deadline(pod) => (DEADLINE.into(), String::new()),
        (None, None) => return None,
    };
    if reason.is(DEADLINE) {
        let (reason, class, message) = deadline(pod, cut_text);
        return Some((reason, class, message, None));
    }
    Some(match reason.as_str() {
        NODE_LOST | NODE_IS_GONE => (
            Reason::NodeLost,
            Class::Node,
            lost(&message, cut_text),
            None,
        ),
        EVICTED
        | "Preempting"
        | "Shutdown"
        | "NodeShutdown"
        | "Terminated"
        | "DeletionByTaintManager"
        | "EvictionByEvictionAPI"
        | "PreemptionByScheduler"
        | "TerminationByKubelet" => (
            Reason::Evicted,
            Class::Transient,
            format!("Kubernetes removed the pod from its node ({reason}: {message}).{cut_text}"),
            None,
        ),
        _ if status.reason.is_none() => return None,
        _ => {
            let Verdict {
                class,
                advice,
                name,
            } = refusal::judge(&reason, &message);
            let sentence =
                format!("The node refused the pod ({reason}: {message}); {advice}.{cut_text}");
            (Reason::PodRejected, class, sentence, name)
        }
    })
}

/// Whether the pod's own limit of time is over: its containers end some seconds before the kubelet says why.
fn is_past_deadline(pod: &Pod) -> bool {
    let limit = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
    let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let (Some(limit), Some(started), Some(at)) = (limit, started, ended_at(pod)) else {
        return false;
    };
    at.duration_since(started.0).as_secs() >= limit
}

/// A limit that the template sets is nobody's fault, unless no agent can start within it.
fn deadline(pod: &Pod, cut_text: &str) -> (Reason, Class, String) {
    let limit = pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit} s"));
    let (class, when) = if Gpu::of(pod).agent_end().is_some() {
        (Class::Transient, "")
    } else {
        (Class::Config, " before its agent had started")
    };
    let message = format!(
        "The limit{limit} that activeDeadlineSeconds in spec.template sets ended the pod{when}. It counts while a runner waits for a job, too: remove it, and limit jobs by spec.jobs.maxMinutes, or by timeout-minutes in the workflow.{cut_text}"
    );
    (Reason::DeadlineExceeded, class, message)
}
