//! What jobs that wait lack, and which conditions are why: most trouble holds a job only where it lacks a runner.

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, RunnerPhase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::condition::kind;
use crate::reason::{Reason, Stored};
use crate::scale_set;

/// What the jobs lack.
#[derive(Clone, Copy)]
pub(super) enum Lack {
    /// A larger number in the spec: all the runners that it allows are busy, or it allows none.
    Number,
    /// A GPU: GitHub is offered no more runners of the scale set than this, and all of these are busy.
    Gpus { capacity: i32 },
    /// No runner, as one is idle: something stands between the two.
    Nothing,
    /// A runner: it is on its way, or it cannot come. One that is wanted may have no node.
    Runner { has_no_node: bool },
}

impl Lack {
    /// What so many jobs lack, one at least.
    pub(super) fn of(resource: &CudaRunner, status: &CudaRunnerStatus, jobs: i32) -> Self {
        let (_, most) = most(resource);
        if status.busy >= most {
            return Self::Number;
        }
        let set = status.scale_set.as_ref();
        let set = set.filter(|set| scale_set::number(set).is_some());
        let capacity = set.map(|set| set.capacity);
        if let Some(capacity) = capacity.filter(|most_now| *most_now < most)
            && status.busy >= capacity
        {
            return Self::Gpus { capacity };
        }
        if status.online > status.busy {
            return Self::Nothing;
        }
        let wanted = most.min(status.busy.saturating_add(jobs));
        let placed = status.replicas.saturating_sub(without_node(status));
        Self::Runner {
            has_no_node: placed < wanted,
        }
    }

    /// Whether a condition that reports trouble is a reason for it.
    pub(super) fn is_because_of(self, condition: &Condition, status: &CudaRunnerStatus) -> bool {
        let reason = Stored::parse(&condition.reason);
        let lacks_runner = matches!(self, Self::Gpus { .. } | Self::Runner { .. });
        match condition.type_.as_str() {
            // Nothing is done for the pool, so no other runner comes after one that ends; and its queue is not read any more.
            kind::STALLED => true,
            kind::WORKFLOW_VERIFIED
            | kind::CHECKS_REQUIRED
            | kind::SPEC_SUPPORTED
            | kind::WEBHOOK_READY => false,
            _ if is_of_others(condition) => false,
            // Whose number of runners follows the queue has the same in `RunnersOnline`.
            kind::QUEUE_SERVED if reason == Reason::NotReadable => false,
            // No registration is made, and what is known of the queue is old.
            kind::CREDENTIALS_VALID | kind::QUEUE_SERVED => !matches!(self, Self::Number),
            kind::GPU_HEALTHY if is_quarantine(condition) => self.has_no_node(),
            kind::RUNNERS_ONLINE if matches!(self, Self::Nothing) => {
                reason.is_one_of(&NOT_LISTENING)
            }
            // It sums up the others. By itself it says no more than the numbers of those that come.
            kind::READY => lacks_runner && status.gated == 0 && status.pending == 0,
            _ => lacks_runner,
        }
    }

    fn has_no_node(self) -> bool {
        match self {
            Self::Gpus { .. } => true,
            Self::Runner { has_no_node } => has_no_node,
            Self::Number | Self::Nothing => false,
        }
    }
}

/// No job is heard of, whoever is idle.
const NOT_LISTENING: [Reason; 3] = [
    Reason::SessionHeld,
    Reason::ScaleSetRefused,
    Reason::ScaleSetUnavailable,
];

/// The field that says how many runners there may be, and its number.
pub(super) fn most(resource: &CudaRunner) -> (&'static str, i32) {
    match &resource.spec.scaling {
        Some(scaling) => ("spec.scaling.maxRunners", scaling.max_runners),
        None => ("spec.replicas", resource.spec.replicas.unwrap_or(1)),
    }
}

/// Whether a condition says that nodes or devices are quarantined: that keeps nobody from those that are well.
pub(super) fn is_quarantine(condition: &Condition) -> bool {
    let left_alone = [Reason::NodesQuarantined, Reason::DevicesQuarantined];
    condition.type_ == kind::GPU_HEALTHY && Stored::parse(&condition.reason).is_one_of(&left_alone)
}

/// Whether a condition is about jobs that wait for other labels than the pool's runners have.
pub(super) fn is_of_others(condition: &Condition) -> bool {
    let labels = [Reason::LabelMissing, Reason::LabelsNotHonoured];
    condition.type_ == kind::QUEUE_SERVED && Stored::parse(&condition.reason).is_one_of(&labels)
}

/// Runners whose pod waits for a node, of those that are listed: of others the condition `RunnersOnline` tells.
fn without_node(status: &CudaRunnerStatus) -> i32 {
    let all = status.runners.iter();
    let unscheduled = all.filter(|runner| runner.phase == RunnerPhase::Unscheduled);
    i32::try_from(unscheduled.count()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
