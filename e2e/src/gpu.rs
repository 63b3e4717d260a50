//! The container of the GPUs in a runner's pod, as suites and players read it: first the gate's, then the agent's.

use gate_report::contract::{GPU, MAIN, command};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

/// What the operator notes on such a pod: when its gate has passed, and the short form of its report.
const PASSED_ANNOTATION: &str = "cudarunner.dev/gate-passed";
const REPORT_ANNOTATION: &str = "cudarunner.dev/gate-report";

/// What the kubelet shows of it.
pub fn status(pod: &Pod) -> Option<&ContainerStatus> {
    let all = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    all.iter().find(|status| status.name == GPU)
}

/// It as it was made, with its image of now.
pub fn container(pod: &Pod) -> Option<&Container> {
    let all = pod.spec.as_ref()?.init_containers.as_ref()?;
    all.iter().find(|container| container.name == GPU)
}

/// Whether its image is the runner's by now: the main container's is the gate's for ever. Where jobs bring their containers,
/// the agent is in the main container, and the operator notes the pass.
pub fn is_let_in(pod: &Pod) -> bool {
    if is_for_containers(pod) {
        return annotation(pod, PASSED_ANNOTATION).is_some();
    }
    let main = pod.spec.iter().flat_map(|spec| &spec.containers);
    let main = main
        .filter(|container| container.name == MAIN)
        .find_map(|container| container.image.as_ref());
    let own = container(pod).and_then(|container| container.image.as_ref());
    own.is_some() && main.is_some() && own != main
}

/// Whether it runs, and the image has not been changed yet.
pub fn gate_runs(pod: &Pod) -> bool {
    let state = status(pod).and_then(|status| status.state.as_ref());
    !is_let_in(pod) && state.is_some_and(|state| state.running.is_some())
}

/// Its own starts, without the change of its image.
pub fn restarts(pod: &Pod) -> i32 {
    let all = status(pod).map_or(0, |status| status.restart_count);
    all - i32::from(is_let_in(pod))
}

/// What the gate has left: it was ended by the change of the image, or by itself. One that waits for a job has told it.
pub fn report(pod: &Pod) -> Option<&str> {
    if is_for_containers(pod) && is_let_in(pod) {
        return annotation(pod, REPORT_ANNOTATION);
    }
    let status = status(pod)?;
    let state = if is_let_in(pod) {
        status.last_state.as_ref()
    } else {
        status.state.as_ref()
    };
    state?.terminated.as_ref()?.message.as_deref()
}

fn is_for_containers(pod: &Pod) -> bool {
    let arguments = container(pod).and_then(|gpu| gpu.command.as_ref());
    arguments.is_some_and(|command| command.iter().any(|word| word == command::JOB))
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let all = pod.metadata.annotations.as_ref()?;
    all.get(name).map(String::as_str)
}
