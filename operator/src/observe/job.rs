//! The containers that a job brings into its runner's pod, as the kubelet shows them.

use cuda_runner_plan::model::runner::{GPU, JOB_ANNOTATION, JobPod, SERVICE_PREFIX};
use gate_report::wire::ContainerState;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::gpu::{Gpu, is_for_containers, jobs_image};
use super::pod::waiting_of_container;
use super::status::{
    OOM_KILLED, annotation, could_not_start, init_container, last_line, out_of_memory, terminated,
};

/// What a kubelet says that puts off a pull by its own limit: it pulls a moment later.
const TOO_MANY_PULLS: &str = "pull QPS exceeded";
/// The most services of a pod that are read.
const MOST_SERVICES: usize = gate_report::wire::MAX_SERVICES;

/// What there is of a job's containers; `None` in a pod whose jobs run in the agent's.
pub(super) fn of(pod: &Pod) -> Option<JobPod> {
    if !is_for_containers(pod) {
        return None;
    }
    let image = jobs_image(pod);
    let gpu = init_container(pod, GPU);
    Some(JobPod {
        image: image.map(str::to_owned),
        starts: gpu.map_or(0, |status| status.restart_count),
        container: image.map(|_| own(pod, gpu)),
        services: services(pod),
    })
}

/// The job's own container: it was started once, and never again.
fn own(pod: &Pod, status: Option<&ContainerStatus>) -> ContainerState {
    let first = annotation(pod, JOB_ANNOTATION).and_then(|number| number.parse().ok());
    let first = first.unwrap_or(1);
    let ends = Gpu::of(pod).ends().filter(|(number, _)| *number >= first);
    let end = ends.min_by_key(|(number, _)| *number);
    if let Some((_, end)) = end {
        return ended(pod, GPU, end);
    }
    let Some(status) = status else {
        return ContainerState::Pulling;
    };
    let runs = status.state.as_ref().is_some_and(|s| s.running.is_some());
    if runs && status.restart_count >= first {
        return ContainerState::Running;
    }
    waits(pod, status)
}

fn services(pod: &Pod) -> Vec<(String, ContainerState)> {
    let spec = pod.spec.iter().flat_map(|spec| &spec.ephemeral_containers);
    let names = spec.flatten().map(|c| &c.name);
    let names = names.filter(|name| name.starts_with(SERVICE_PREFIX));
    let of_pod = pod.status.iter();
    let statuses = of_pod.flat_map(|status| &status.ephemeral_container_statuses);
    let statuses: Vec<&ContainerStatus> = statuses.flatten().collect();
    let all = names.take(MOST_SERVICES).map(|name| {
        let status = statuses.iter().find(|status| status.name == *name);
        let state = status.map_or(ContainerState::Pulling, |status| service(pod, status));
        (name.clone(), state)
    });
    all.collect()
}

fn service(pod: &Pod, status: &ContainerStatus) -> ContainerState {
    if let Some(end) = terminated(Some(status)) {
        return ended(pod, &status.name, end);
    }
    let runs = status.state.as_ref().is_some_and(|s| s.running.is_some());
    if runs {
        return ContainerState::Running;
    }
    waits(pod, status)
}

/// A container that waits for anything but its ordinary start.
fn waits(pod: &Pod, status: &ContainerStatus) -> ContainerState {
    match waiting_of_container(pod, status) {
        Some(waiting) if !waiting.message.contains(TOO_MANY_PULLS) => ContainerState::Failed {
            reason: waiting.reason.to_string(),
            message: waiting.message,
        },
        _ => ContainerState::Pulling,
    }
}

fn ended(pod: &Pod, name: &str, end: &ContainerStateTerminated) -> ContainerState {
    let message = if end.reason.as_deref() == Some(OOM_KILLED) {
        out_of_memory(pod, name, "")
    } else if could_not_start(end) {
        last_line(end.message.as_deref().unwrap_or_default())
    } else {
        format!("The container {name} ended with code {}.", end.exit_code)
    };
    ContainerState::Failed {
        reason: end.reason.clone().unwrap_or_else(|| "Ended".to_owned()),
        message,
    }
}
