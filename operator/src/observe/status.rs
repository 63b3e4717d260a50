//! The parts of a pod's status, and what is said of them in the same words everywhere.

use cudarunner_crds::{ARCH_LABEL, Arch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerStateTerminated, ContainerStatus, Pod, PodCondition,
};
use kube::ResourceExt as _;

use super::gpu::{Gpu, is_for_containers};
use cuda_runner_plan::model::runner::{GPU, MAIN, PREPARE, RUNNER};

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

/// The architecture of a pod's nodes, by the affinity that we have given it.
pub(super) fn arch_of(pod: &Pod) -> Arch {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let affinity = affinity.and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| {
        a.required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let terms = required.into_iter().flat_map(|r| &r.node_selector_terms);
    let mut asked = terms.flat_map(|term| term.match_expressions.iter().flatten());
    let is_arm = asked.any(|one| {
        let values = one.values.iter().flatten();
        one.key == ARCH_LABEL && values.eq([Arch::Arm64.as_str()])
    });
    if is_arm { Arch::Arm64 } else { Arch::Amd64 }
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

/// The longest annotation that is kept, in bytes: names of a thousand nodes.
const LONGEST_ANNOTATION: usize = 64 * 1024;

/// An annotation of ours. Whoever may write pods can write it, too: one that is longer than ours ever are is none.
pub(super) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let text = pod.annotations().get(name)?;
    (text.len() <= LONGEST_ANNOTATION).then_some(text)
}

/// Whether Kubernetes says that the pod has ended.
pub(crate) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the container runtime could not start a container.
pub(super) fn could_not_start(ended: &ContainerStateTerminated) -> bool {
    matches!(
        ended.reason.as_deref(),
        Some("StartError" | "ContainerCannotRun")
    )
}

/// The memory limit of a container, also one that a `LimitRange` has set.
pub(super) fn memory_limit<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let resources = spec_of(pod, name)?.resources.as_ref()?;
    Some(resources.limits.as_ref()?.get("memory")?.0.as_str())
}

/// What became of a container at its limit, and where the limit comes from.
pub(super) fn out_of_memory(pod: &Pod, container: &str, cut_text: &str) -> String {
    let limit = memory_limit(pod, container);
    let limit = limit.map_or_else(String::new, |limit| format!(" of {limit}"));
    let has_job = is_for_containers(pod);
    let place = match container {
        PREPARE => "limits.memory in spec.smoke.resources".to_owned(),
        GPU if has_job => "limits.memory in spec.jobContainers.resources".to_owned(),
        // The template's name for it.
        GPU => of_the_template(RUNNER),
        MAIN if has_job => of_the_template(RUNNER),
        other => of_the_template(other),
    };
    format!(
        "The container {container} was killed at its memory limit{limit}. Raise {place}; where it names none, a LimitRange of the namespace sets it.{cut_text}"
    )
}

fn of_the_template(container: &str) -> String {
    format!("resources.limits.memory of the container `{container}` in spec.template")
}
