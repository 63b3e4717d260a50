//! The parts of a pod's status, and what is said of them in the same words everywhere.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerStateTerminated, ContainerStatus, Pod, PodCondition,
};

use super::gpu::Gpu;
use cuda_runner_plan::model::runner::{GPU, PREPARE, RUNNER};

/// The kubelet's word for a container that was killed at its limit of memory.
pub(super) const OOM_KILLED: &str = "OOMKilled";

pub(super) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == type_)
}

pub(super) fn transition(condition: &PodCondition) -> Option<Timestamp> {
    condition.last_transition_time.as_ref().map(|t| t.0)
}

/// Whether all containers are ready. The pod's own word waits for its readiness gates, too, which say nothing of the agent.
pub(super) fn all_ready(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, "ContainersReady").or_else(|| condition(pod, "Ready"))
}

pub(super) fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == name)
}

pub(super) fn init_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == name)
}

/// A container as the pod's spec has it.
pub(super) fn spec_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let mut all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    all.find(|c| c.name == name)
}

/// The first init container that has failed: the pod goes no further. One that is restarted with the pod is none.
pub(super) fn failed_init(pod: &Pod) -> Option<&ContainerStatus> {
    let plain = |status: &&ContainerStatus| {
        spec_of(pod, &status.name).is_none_or(|c| c.restart_policy.is_none()) && status.name != GPU
    };
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let mut failed = statuses
        .iter()
        .filter(|status| terminated(Some(status)).is_some_and(|t| t.exit_code != 0));
    failed.find(plain)
}

pub(super) fn terminated(status: Option<&ContainerStatus>) -> Option<&ContainerStateTerminated> {
    status?.state.as_ref()?.terminated.as_ref()
}

/// Kubernetes' own words, in one line and of a sentence's length: parts of them come from registries and from specs.
pub(super) fn words(text: Option<&str>) -> String {
    const LONGEST: usize = 400;
    let line = text.unwrap_or_default().split_whitespace();
    gate_report::clean(&line.collect::<Vec<_>>().join(" "), LONGEST)
}

/// When the pod's last container ended; of a pod none of whose containers ran, when it was last heard of.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let gpu = Gpu::of(pod);
    gpu.agent_end()
        .or_else(|| terminated(failed_init(pod)))
        .or_else(|| gpu.gate_end())
        .and_then(|t| t.finished_at.as_ref())
        .map(|t| t.0)
        .or_else(|| last_heard(pod))
}

/// The newest of the times in a pod's status: a pod may have waited for days before a node refused it.
fn last_heard(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let started = status.start_time.as_ref().map(|t| t.0);
    let conditions = status.conditions.iter().flatten();
    conditions.filter_map(transition).chain(started).max()
}

/// The last line that says anything and is no mark of ours, cut to a sentence's length.
pub(super) fn last_line(words: &str) -> String {
    let mut lines = words.lines().rev().map(str::trim);
    let line = lines.find(|l| !l.is_empty() && !l.starts_with("{\"mark\""));
    gate_report::clean(line.unwrap_or("it left no message"), 300)
}

/// Whether the container runtime could not start a container.
pub(super) fn could_not_start(ended: &ContainerStateTerminated) -> bool {
    matches!(
        ended.reason.as_deref(),
        Some("StartError" | "ContainerCannotRun")
    )
}

/// What became of a container at its limit, and where the limit comes from.
pub(super) fn out_of_memory(container: &str, limit: Option<&str>, cut_text: &str) -> String {
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    let place = match container {
        PREPARE => "limits.memory in spec.smoke.resources".to_owned(),
        // The template's name for it.
        GPU => of_the_template(RUNNER),
        other => of_the_template(other),
    };
    format!(
        "The container {container} was killed at its memory limit{limit}. Raise {place}; where it names none, a LimitRange of the namespace sets it.{cut_text}"
    )
}

fn of_the_template(container: &str) -> String {
    format!("resources.limits.memory of the container `{container}` in spec.template")
}
