//! Why a runner pod ended.

use gate_report::{Class, Finding, Report, Step, preflight};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::agent::AgentEnd;
use super::disruption;
use super::gpu::Gpu;
use super::marks::Marks;
use super::status::{
    self, OOM_KILLED, all_ready, arch_of, container, could_not_start, ended_at, failed_init,
    last_line, memory_limit, out_of_memory, terminated, transition,
};
use cuda_runner_plan::architecture;
use cuda_runner_plan::model::runner::{
    End, Failure, GPU, Job, LIFETIME_ANNOTATION, MAIN, NOT_RUN, PERSISTENT, PREPARE,
};
use cuda_runner_plan::reason::Reason;

/// `CUDA_ERROR_NO_DEVICE`: also what a driver says that has not found its devices yet.
const NO_DEVICE: i32 = 100;
/// A container's exit code where the container runtime could not start it.
const NO_START: i32 = 128;

/// Whether the runner is over. Its pod says so some seconds after the container.
fn has_ended(pod: &Pod) -> bool {
    let gpu = Gpu::of(pod);
    status::is_over(pod)
        || gpu.agent_end().is_some()
        || gpu.gate_failure().is_some()
        || failed_init(pod).is_some()
}

/// How a pod ended; `None` while it has not.
pub(super) fn end_of(pod: &Pod, created: Timestamp) -> Option<End> {
    let status = pod.status.as_ref().filter(|_| has_ended(pod))?;
    let gpu = Gpu::of(pod);
    let agent = gpu.agent_end();
    let at = ended_at(pod).unwrap_or(created);
    let registered = gpu.is_let_in();
    let failure = |reason, class, message| Failure::new(reason, class, message, at, registered);
    let failed = |reason, class, message| Some(End::Failed(failure(reason, class, message)));

    let marks = Marks::of(agent);
    let persistent = pod
        .annotations()
        .get(LIFETIME_ANNOTATION)
        .is_some_and(|lifetime| lifetime == PERSISTENT);
    // A job can write this mark, too: where the agent ended well after its job, the job is what is told.
    let ended_well =
        !persistent && marks.completed.is_some() && agent.is_some_and(|a| a.exit_code == 0);
    if let Some(when) = marks.lost.as_ref().filter(|_| !ended_well) {
        let job = marks.started.as_ref().or(marks.completed.as_ref());
        return failed(Reason::GpuLost, Class::Transient, gpu_lost(when, job));
    }
    // A persistent runner's job is not its end.
    if let Some(job) = marks.completed.as_ref().filter(|_| !persistent) {
        return Some(End::JobDone(job.clone()));
    }
    let cut = marks
        .started
        .as_ref()
        .map(|job| format!(" Its {job} was cut short."));
    let cut_text = cut.unwrap_or_default();
    // Before the containers: they end with it, each in its own way.
    if let Some((reason, class, message, name)) = disruption::of_ended(pod, status, &cut_text) {
        return Some(End::Failed(Failure {
            code_name: name.map(str::to_owned),
            ..failure(reason, class, message)
        }));
    }
    if let Some(init) = failed_init(pod) {
        return Some(End::Failed(init_failure(pod, init, failure)));
    }
    if let Some(gate) = gpu.gate_failure() {
        return Some(End::Failed(gate_failure(pod, GPU, gate, failure)));
    }
    let Some(agent) = agent else {
        return failed(
            Reason::PodLost,
            Class::Transient,
            "The pod ended before its containers did.".to_owned(),
        );
    };
    let was_online = marks.online || was_online(pod, agent);
    if let Some(found) = not_started(agent).filter(|_| !was_online) {
        let class = class_of(agent.exit_code);
        return failed(reason_of(Some(&found), class, agent), class, told(&found));
    }
    let agent = AgentEnd {
        container: agent,
        cut_text: &cut_text,
        persistent,
        conflict: marks.conflict,
        was_online,
        pod,
        name: gpu.agents_name(),
    };
    Some(End::Failed(agent.failure(failure)))
}

/// Why the agent was not started, as our own program says it in the agent's container: the image lacks something, or there
/// was no registration. An image can write the same: so neither a node nor a device is ever at fault.
fn not_started(agent: &ContainerStateTerminated) -> Option<gate_report::Failure> {
    let report = Report::read(agent.message.as_deref()?.as_bytes()).ok()?;
    let is_ours = matches!(
        Class::from_exit_code(agent.exit_code)?,
        Class::Config | Class::Refused | Class::Transient | Class::Internal
    );
    report.failure.filter(|_| is_ours)
}

/// Whether an agent was ever online: a pod that became unready after the agent's start was ready in between, and the main
/// container is started by it.
fn was_online(pod: &Pod, agent: &ContainerStateTerminated) -> bool {
    let unready = all_ready(pod).and_then(transition);
    let started = agent.started_at.as_ref().map(|t| t.0);
    unready
        .zip(started)
        .is_some_and(|(unready, started)| unready > started)
        || container(pod, MAIN).is_some_and(|main| main.started == Some(true))
}

/// An init container that failed: what ours says by itself, or who it was, and what it said last.
fn init_failure(
    pod: &Pod,
    init: &ContainerStatus,
    failure: impl Fn(Reason, Class, String) -> Failure,
) -> Failure {
    let name = init.name.as_str();
    let Some(ended) = terminated(Some(init)) else {
        return failure(
            Reason::InitContainerFailed,
            Class::Transient,
            format!("{name} has failed."),
        );
    };
    if name == PREPARE {
        return gate_failure(pod, PREPARE, ended, failure);
    }
    if ended.reason.as_deref() == Some(OOM_KILLED) {
        let message = out_of_memory(pod, name, "");
        return failure(Reason::OutOfMemory, Class::Config, message);
    }
    let (code, why) = (ended.exit_code, why(ended));
    Failure {
        code: Some(code),
        ..failure(
            Reason::InitContainerFailed,
            Class::Config,
            format!(
                "The init container {name} of spec.template ended with code {code} ({why}): {}. `kubectl logs -c {name}` of the pod may tell more.",
                last_line(ended.message.as_deref().unwrap_or_default())
            ),
        )
    }
}

/// A gate that did not pass, or what prepares for it: the report in the termination message says why, the code at least who
/// must act.
fn gate_failure(
    pod: &Pod,
    name: &str,
    ended: &ContainerStateTerminated,
    failure: impl Fn(Reason, Class, String) -> Failure,
) -> Failure {
    if ended.reason.as_deref() == Some(OOM_KILLED) {
        let message = out_of_memory(pod, name, "");
        return failure(Reason::OutOfMemory, Class::Config, message);
    }
    let words = ended.message.as_deref().unwrap_or_default();
    let report = Report::read(words.as_bytes()).ok();
    let found = report.and_then(|r| r.failure);
    if let Some(killed) = found.as_ref().filter(|found| was_killed(found)) {
        return killed_failure(pod, killed, failure);
    }
    let is_foreign = architecture::is_mismatch(words);
    if found.is_none() && !is_foreign && (could_not_start(ended) || ended.exit_code == NO_START) {
        return not_run(pod, name, ended, failure);
    }
    if found.is_none() && is_foreign {
        let message = format!(
            "The image of the gate is for another architecture ({}); {}. The operator's option --gate-image names it.",
            last_line(words).trim_end_matches('.'),
            architecture::advice(arch_of(pod))
        );
        return failure(Reason::WrongArchitecture, Class::Config, message);
    }
    let class = class_of(ended.exit_code);
    let reason = reason_of(found.as_ref(), class, ended);
    let message = match &found {
        Some(failure) => told(failure),
        None => format!(
            "The gate ended with code {} ({}) and left no report: {}. `kubectl logs -c {name}` of the pod may tell more.",
            ended.exit_code,
            why(ended),
            last_line(words)
        ),
    };
    Failure {
        code: found.as_ref().and_then(|f| f.code),
        code_name: found.as_ref().map(|f| f.code_name.clone()),
        at_start: found.as_ref().is_some_and(is_at_start),
        shared: found.as_ref().is_some_and(|f| f.shared),
        device: found.and_then(|f| f.uuid),
        registered: false,
        ..failure(reason, class, message)
    }
}

/// Who must act, by the exit code of a program of ours.
fn class_of(code: i32) -> Class {
    Class::from_exit_code(code).unwrap_or(Class::Transient)
}

fn reason_of(
    found: Option<&gate_report::Failure>,
    class: Class,
    ended: &ContainerStateTerminated,
) -> Reason {
    match class {
        _ if found.is_some_and(|f| f.code_name == preflight::FAILED) => Reason::PreflightFailed,
        Class::Refused => Reason::RegistrationRefused,
        _ if ended.exit_code == i32::from(gate_report::exit::UNREACHABLE) => {
            Reason::RegistrarUnreachable
        }
        _ => Reason::GateFailed,
    }
}

/// What a report says of a failure, and what to do.
fn told(failure: &gate_report::Failure) -> String {
    let advice = failure.advice.as_str();
    let space = if advice.is_empty() { "" } else { " " };
    format!("{}{space}{advice}", failure.message)
}

fn why(ended: &ContainerStateTerminated) -> &str {
    ended.reason.as_deref().unwrap_or("no reason given")
}

/// A gate that the node could not start: the runtime's hooks for GPUs mostly. Which node's fault that is, the plan sees
/// when it happens again.
fn not_run(
    pod: &Pod,
    name: &str,
    ended: &ContainerStateTerminated,
    failure: impl Fn(Reason, Class, String) -> Failure,
) -> Failure {
    let words = ended.message.as_deref().unwrap_or_default();
    // The runtime says so where the limit is too low for the container's very first process.
    if words.contains("OOM-killed") {
        let message = out_of_memory(pod, name, "");
        return failure(Reason::OutOfMemory, Class::Config, message);
    }
    let message = format!(
        "The node could not start the gate: {}. Another attempt follows. If it happens again, look at the node's container runtime and its NVIDIA toolkit.",
        last_line(words).trim_end_matches('.')
    );
    Failure {
        code_name: Some(NOT_RUN.to_owned()),
        // A node that has just come may still get its toolkit.
        at_start: true,
        ..failure(Reason::GateFailed, Class::Transient, message)
    }
}

/// Whether the gate saw its test process die of a signal that nobody but the kernel, for memory, sends it. Where a
/// container's processes are killed one by one (cgroup v1), the container itself lives on.
fn was_killed(found: &gate_report::Failure) -> bool {
    let is = |what: Finding| found.code_name == what.name();
    is(Finding::OutOfMemoryKill)
        || is(Finding::Crash) && found.message.contains("died of signal 9 ")
}

/// The gate's test process was killed: at the limit of its container, or because the node was short of memory.
fn killed_failure(
    pod: &Pod,
    found: &gate_report::Failure,
    failure: impl Fn(Reason, Class, String) -> Failure,
) -> Failure {
    if memory_limit(pod, GPU).is_none() {
        let message = format!(
            "{} Something killed it, most likely for want of memory on the node; the gate tries again.",
            found.message
        );
        return failure(Reason::GateFailed, Class::Transient, message);
    }
    failure(
        Reason::OutOfMemory,
        Class::Config,
        out_of_memory(pod, GPU, ""),
    )
}

/// What became of a runner whose GPU vanished, and of its job. The node is not blamed: the next runner's gate tells.
fn gpu_lost(when: &str, job: Option<&Job>) -> String {
    let job = job.map_or_else(|| "its job".to_owned(), Job::to_string);
    let fate = match when {
        "started" => format!("{job} was failed before its first step: run it again"),
        "completed" => format!("{job} was left to finish, and may have missed it"),
        _ => "the runner had no job and took none".to_owned(),
    };
    format!(
        "The GPU vanished from the running container, as after a systemctl daemon-reload on the node; {fate}. The runner is replaced. If it happens again, let the node's container runtime give GPUs out by CDI."
    )
}

/// Whether a failure is of the driver's start.
fn is_at_start(failure: &gate_report::Failure) -> bool {
    matches!(failure.step, Step::Load | Step::Init) || failure.code == Some(NO_DEVICE)
}
