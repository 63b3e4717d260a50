//! The moments of a pod's life, as its status tells them.

use cudarunner_crds::RunnerPhase;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::gpu::{Gpu, running_since};
use super::marks::Marks;
use super::status::{annotation, condition, ended_at, is_over, terminated, transition};
use cuda_runner_plan::model::life::Life;
use cuda_runner_plan::model::runner::{LIFETIME_ANNOTATION, PERSISTENT};

/// The moments of a pod that has come to this phase, and when it did.
pub(super) fn of(pod: &Pod, reached: RunnerPhase, since: Timestamp) -> Life {
    let at = |phase| (reached == phase).then_some(since);
    let idle = at(RunnerPhase::Idle);
    Life {
        bound: bound(pod),
        online: idle.or_else(|| was_online(pod, reached)),
        idle,
        busy: at(RunnerPhase::Busy),
        was_busy: 0,
        over: is_over(pod).then(|| over(pod)).flatten(),
        asked: pod.metadata.deletion_timestamp.is_some(),
        is_persistent: annotation(pod, LIFETIME_ANNOTATION) == Some(PERSISTENT),
    }
}

/// When the scheduler gave it a node.
fn bound(pod: &Pod) -> Option<Timestamp> {
    let scheduled = condition(pod, "PodScheduled").filter(|c| c.status == "True");
    let started = || pod.status.as_ref()?.start_time.as_ref().map(|t| t.0);
    scheduled.and_then(transition).or_else(started)
}

/// When its agent was first online, where nobody saw it idle: it is, or has left a mark of it, and the start of its container
/// is nearest.
fn was_online(pod: &Pod, reached: RunnerPhase) -> Option<Timestamp> {
    let gpu = Gpu::of(pod);
    let started = if let Some(end) = gpu.agent_end() {
        let marks = Marks::of(Some(end));
        let is_marked = marks.online || marks.started.is_some() || marks.completed.is_some();
        end.started_at.as_ref().filter(|_| is_marked)?.0
    } else {
        let agent = gpu.agent().filter(|_| reached == RunnerPhase::Busy)?;
        running_since(agent, Timestamp::UNIX_EPOCH)?
    };
    // The agent's container may be there before its gate has passed.
    Some(
        gpu.passed_at()
            .map_or(started, |passed| started.max(passed)),
    )
}

/// When the last container ended.
fn over(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let all = init.chain(status.container_statuses.iter().flatten());
    let ends = all.filter_map(|status: &ContainerStatus| terminated(Some(status)));
    let last = ends.filter_map(|end| end.finished_at.as_ref()).map(|t| t.0);
    last.max().max(ended_at(pod))
}
