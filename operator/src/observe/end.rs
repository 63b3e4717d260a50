//! Why a runner pod ended.

use gate_report::{Class, Report, Step, preflight};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::agent::{AgentEnd, RefusedVersion};
use super::disruption::{self, EVICTED, NODE_LOST};
use super::marks::{Job, Marks};
use super::pod::{
    GATE, LIFETIME_ANNOTATION, PERSISTENT, PREFLIGHT, RUNNER, container, init_container, terminated,
};

/// How a runner ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It ran a job to its end, whatever the job's own result.
    JobDone(Job),
    /// It ended otherwise.
    Failed(Failure),
}

/// Why a runner ended without a finished job.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// One word, as in Events.
    pub reason: &'static str,
    /// Who has to act.
    pub class: Class,
    /// The driver's code.
    pub code: Option<i32>,
    /// UUID of the device at fault.
    pub device: Option<String>,
    /// What happened, and what to do.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// Whether GitHub may still hold the runner's entry.
    pub registered: bool,
    /// Whether the gate met it before it reached a device: a driver that still starts looks like that.
    pub at_start: bool,
    /// The agent's version, where GitHub refused it.
    pub refused: Option<RefusedVersion>,
}

/// `CUDA_ERROR_NO_DEVICE`: also what a driver says that has not found its devices yet.
const NO_DEVICE: i32 = 100;
/// The reason of a runner whose image or network lacks something.
const PREFLIGHT_FAILED: &str = "PreflightFailed";
/// The reason of a runner whose job ended with it.
pub(super) const JOB_CUT_SHORT: &str = "JobCutShort";

/// The reason of a runner whose container could not open its GPU any more.
const GPU_LOST: &str = "GpuLost";

impl Failure {
    /// One that is no device's and no version's.
    #[must_use]
    pub fn new(
        reason: &'static str,
        class: Class,
        message: String,
        at: Timestamp,
        registered: bool,
    ) -> Self {
        Self {
            reason,
            class,
            code: None,
            device: None,
            message,
            at,
            registered,
            at_start: false,
            refused: None,
        }
    }

    /// Whether it is worth a word even of a runner that is leaving: nobody here asked for it.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        [JOB_CUT_SHORT, EVICTED, NODE_LOST].contains(&self.reason)
    }
}

/// How a pod ended; `None` while it has not.
pub(super) fn end_of(pod: &Pod, created: Timestamp) -> Option<End> {
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().unwrap_or_default();
    if phase != "Succeeded" && phase != "Failed" {
        return None;
    }
    let gate = terminated(init_container(pod, GATE));
    let runner = terminated(container(pod, RUNNER));
    let at = ended_at(pod).unwrap_or(created);
    let registered = gate.is_some_and(|g| g.exit_code == 0);
    let failure = |reason, class, message| Failure::new(reason, class, message, at, registered);
    let failed = |reason, class, message| Some(End::Failed(failure(reason, class, message)));

    let marks = Marks::of(runner);
    let persistent = pod
        .annotations()
        .get(LIFETIME_ANNOTATION)
        .is_some_and(|lifetime| lifetime == PERSISTENT);
    // A job can write this mark, too: where the agent ended well after its job, the job is what is told.
    let ended_well =
        !persistent && marks.completed.is_some() && runner.is_some_and(|r| r.exit_code == 0);
    if let Some(when) = marks.lost.as_ref().filter(|_| !ended_well) {
        let job = marks.started.as_ref().or(marks.completed.as_ref());
        return failed(GPU_LOST, Class::Transient, gpu_lost(when, job));
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
    if let Some((reason, class, message)) = disruption::of_ended(pod, status, &cut_text) {
        return failed(reason, class, message);
    }
    let preflight = terminated(init_container(pod, PREFLIGHT));
    if let Some(ended) = preflight.filter(|p| p.exit_code != 0) {
        return failed(
            PREFLIGHT_FAILED,
            Class::Config,
            format!(
                "The runner's image could not be looked at: its container preflight ended with code {} ({}). The image needs a POSIX shell at /bin/sh; `kubectl logs -c {PREFLIGHT}` of the pod tells more.",
                ended.exit_code,
                ended.reason.as_deref().unwrap_or("no reason given")
            ),
        );
    }
    if let Some(gate) = gate.filter(|g| g.exit_code != 0) {
        return Some(End::Failed(gate_failure(
            gate.exit_code,
            gate.reason.as_deref(),
            gate.message.as_deref(),
            at,
        )));
    }
    let Some(runner) = runner else {
        return failed(
            "PodLost",
            Class::Transient,
            "The pod ended before its containers did.".to_owned(),
        );
    };
    let agent = AgentEnd {
        container: runner,
        cut_text: &cut_text,
        persistent,
        conflict: marks.conflict,
    };
    Some(End::Failed(agent.failure(failure)))
}

/// A gate that ended with another code than 0: the report in the termination message says why, the code at least who must act.
fn gate_failure(code: i32, reason: Option<&str>, message: Option<&str>, at: Timestamp) -> Failure {
    let report = message.and_then(|m| serde_json::from_str::<Report>(m).ok());
    let class = Class::from_exit_code(code).unwrap_or(Class::Transient);
    let found = report.and_then(|r| r.failure);
    let reason_word = match class {
        _ if found
            .as_ref()
            .is_some_and(|f| f.code_name == preflight::FAILED) =>
        {
            PREFLIGHT_FAILED
        }
        Class::Refused => "RegistrationRefused",
        _ if code == i32::from(gate_report::exit::UNREACHABLE) => "RegistrarUnreachable",
        _ => "GateFailed",
    };
    let message = match &found {
        Some(failure) if failure.advice.is_empty() => failure.message.clone(),
        Some(failure) => format!("{} {}", failure.message, failure.advice),
        None => format!(
            "The gate ended with code {code} ({}) and left no report; `kubectl logs -c {GATE}` of the pod tells more.",
            reason.unwrap_or("no reason given")
        ),
    };
    Failure {
        reason: reason_word,
        class,
        code: found.as_ref().and_then(|f| f.code),
        at_start: found.as_ref().is_some_and(is_at_start),
        device: found.and_then(|f| f.uuid),
        message,
        at,
        registered: false,
        refused: None,
    }
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

/// When the last of the pod's containers ended.
pub(super) fn ended_at(pod: &Pod) -> Option<Timestamp> {
    terminated(container(pod, RUNNER))
        .or_else(|| terminated(init_container(pod, GATE)))
        .and_then(|t| t.finished_at.as_ref())
        .map(|t| t.0)
}
