//! A runner pod, read: how far it has come, and why it ended.

use std::collections::BTreeMap;

use cudarunner_crds::RunnerPhase;
use gate_report::{Class, Report};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use kube::ResourceExt as _;
use serde::Deserialize;

/// Annotation: fingerprint of the spec that the pod was made from.
pub const TEMPLATE_ANNOTATION: &str = "cudarunner.dev/template";
/// Name of the init container that proves the GPU.
pub const GATE: &str = "gate";
/// Name of the agent's container.
pub const RUNNER: &str = "runner";

/// What the plan needs to know of a runner pod: a few hundred bytes of a pod's many thousand.
#[derive(Clone, Debug, PartialEq)]
pub struct Runner {
    /// Name of the pod and of the entry on GitHub.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// When the pod was created.
    pub created: Timestamp,
    /// By when a pod that is being deleted should be gone.
    pub gone_by: Option<Timestamp>,
    /// Node that it was bound to.
    pub node: Option<String>,
    /// Fingerprint of the spec that it was made from.
    pub template: String,
    /// How far it has come.
    pub phase: RunnerPhase,
    /// Since when it is in that phase.
    pub since: Timestamp,
    /// What it waits for, as Kubernetes says it: a scheduler's or an image's message.
    pub waiting: Option<Waiting>,
    /// Whether the agent's process runs, online or not.
    pub agent_running: bool,
    /// UUIDs of the devices, once the gate has passed.
    pub devices: Vec<String>,
    /// How it ended.
    pub end: Option<End>,
}

/// What a pod waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// Kubernetes' word, for example `Unschedulable` or `ImagePullBackOff`.
    pub reason: String,
    /// Kubernetes' sentence.
    pub message: String,
}

/// How a runner ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It ran a job to its end, whatever the job's own result.
    JobDone(Job),
    /// It ended otherwise.
    Failed(Failure),
}

/// The job that a runner ran, as the hooks noted it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct Job {
    /// The job's id in its workflow.
    pub job: String,
    /// Id of the workflow run.
    pub run: String,
    /// Name of the workflow.
    pub workflow: String,
    /// `OWNER/NAME`.
    pub repository: String,
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
}

impl Runner {
    /// Reads a pod. A pod without the parts that the API server always sets reads as new and waiting.
    #[must_use]
    pub fn read(pod: &Pod) -> Self {
        let created = pod
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        let state = State::of(pod, created);
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            created,
            gone_by: pod.metadata.deletion_timestamp.as_ref().map(|t| t.0),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
            template: pod
                .annotations()
                .get(TEMPLATE_ANNOTATION)
                .cloned()
                .unwrap_or_default(),
            agent_running: agent_running(pod),
            devices: gate_devices(pod),
            phase: state.phase,
            since: state.since,
            waiting: state.waiting,
            end: state.end,
        }
    }

    /// Whether the pod still takes up a place in the pool.
    #[must_use]
    pub fn is_active(&self, now: Timestamp) -> bool {
        match self.phase {
            RunnerPhase::Finished | RunnerPhase::Failed => false,
            // A pod on a lost node is never confirmed gone: after its grace it no longer counts.
            RunnerPhase::Terminating => {
                self.end.is_none() && self.gone_by.is_none_or(|by| now < by)
            }
            _ => true,
        }
    }

    /// Whether the agent is connected to GitHub.
    #[must_use]
    pub fn is_online(&self) -> bool {
        matches!(self.phase, RunnerPhase::Idle | RunnerPhase::Busy)
    }
}

/// Phase and what belongs to it.
struct State {
    phase: RunnerPhase,
    since: Timestamp,
    waiting: Option<Waiting>,
    end: Option<End>,
}

impl State {
    fn of(pod: &Pod, created: Timestamp) -> Self {
        let end = end_of(pod, created);
        let at = |phase, since| Self {
            phase,
            since,
            waiting: None,
            end: None,
        };
        if let Some(deletion) = &pod.metadata.deletion_timestamp {
            return Self {
                end,
                ..at(RunnerPhase::Terminating, deletion.0)
            };
        }
        if let Some(end) = end {
            let phase = match &end {
                End::JobDone(_) => RunnerPhase::Finished,
                End::Failed(_) => RunnerPhase::Failed,
            };
            return Self {
                end: Some(end),
                ..at(phase, ended_at(pod).unwrap_or(created))
            };
        }
        let scheduled = condition(pod, "PodScheduled");
        let Some(scheduled) = scheduled.filter(|c| c.status == "True") else {
            return Self {
                waiting: scheduled.map(waiting_of_condition),
                ..at(RunnerPhase::Unscheduled, created)
            };
        };
        let bound = transition(scheduled).unwrap_or(created);
        Self::on_node(pod, bound)
    }

    /// The state of a pod that has a node and has not ended.
    fn on_node(pod: &Pod, bound: Timestamp) -> Self {
        let at = |phase, since| Self {
            phase,
            since,
            waiting: None,
            end: None,
        };
        let ready = condition(pod, "Ready").filter(|c| c.status == "True");
        if let Some(ready) = ready {
            return at(RunnerPhase::Idle, transition(ready).unwrap_or(bound));
        }
        let runner = container(pod, RUNNER);
        let running = runner
            .and_then(|c| c.state.as_ref())
            .and_then(|s| s.running.as_ref());
        if let (Some(running), Some(runner)) = (running, runner) {
            let started = running.started_at.as_ref().map_or(bound, |t| t.0);
            let phase = if runner.started == Some(true) {
                RunnerPhase::Busy
            } else {
                RunnerPhase::Starting
            };
            return at(phase, started);
        }
        let gate = init_container(pod, GATE);
        let gate_state = gate.and_then(|c| c.state.as_ref());
        if let Some(done) = gate_state.and_then(|s| s.terminated.as_ref()) {
            return Self {
                waiting: runner.and_then(waiting_of_container),
                ..at(
                    RunnerPhase::Starting,
                    done.finished_at.as_ref().map_or(bound, |t| t.0),
                )
            };
        }
        if let Some(running) = gate_state.and_then(|s| s.running.as_ref()) {
            return at(
                RunnerPhase::Gated,
                running.started_at.as_ref().map_or(bound, |t| t.0),
            );
        }
        Self {
            waiting: gate.and_then(waiting_of_container),
            ..at(RunnerPhase::Preparing, bound)
        }
    }
}

/// How a pod ended; `None` while it has not.
fn end_of(pod: &Pod, created: Timestamp) -> Option<End> {
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().unwrap_or_default();
    if phase != "Succeeded" && phase != "Failed" {
        return None;
    }
    let gate = terminated(init_container(pod, GATE));
    let runner = terminated(container(pod, RUNNER));
    let at = ended_at(pod).unwrap_or(created);
    let failure = |reason, class, message| {
        End::Failed(Failure {
            reason,
            class,
            code: None,
            device: None,
            message,
            at,
            registered: gate.is_some_and(|g| g.exit_code == 0),
        })
    };

    let marks = runner
        .and_then(|r| r.message.as_deref())
        .map_or_else(Marks::default, Marks::read);
    if let Some(job) = marks.completed {
        return Some(End::JobDone(job));
    }
    if let Some(gate) = gate.filter(|g| g.exit_code != 0) {
        return Some(End::Failed(gate_failure(
            gate.exit_code,
            gate.reason.as_deref(),
            gate.message.as_deref(),
            at,
        )));
    }
    let cut = marks.started.map(|job| {
        format!(
            " Its job {} of run {} in {} was cut short.",
            job.job, job.run, job.repository
        )
    });
    let cut_text = cut.clone().unwrap_or_default();
    if let Some(reason) = status.reason.as_deref() {
        let message = status.message.as_deref().unwrap_or("no message");
        return Some(match reason {
            "Evicted" | "Preempting" | "NodeShutdown" | "Terminated" => failure(
                "Evicted",
                Class::Transient,
                format!("Kubernetes removed the pod from its node ({reason}: {message}).{cut_text}"),
            ),
            "NodeLost" => failure(
                "NodeLost",
                Class::Node,
                format!("The node stopped answering ({message}).{cut_text}"),
            ),
            _ => failure(
                "PodRejected",
                Class::Node,
                format!(
                    "The node refused the pod ({reason}: {message}); look at the node's device plugin and its kubelet."
                ),
            ),
        });
    }
    let Some(runner) = runner else {
        return Some(failure(
            "PodLost",
            Class::Transient,
            "The pod ended before its containers did.".to_owned(),
        ));
    };
    Some(match (runner.reason.as_deref(), runner.exit_code) {
        (Some("OOMKilled"), _) => failure(
            "OutOfMemory",
            Class::Config,
            format!(
                "The runner used more memory than its limit; raise resources.limits.memory of the container `runner` in spec.template.{cut_text}"
            ),
        ),
        (_, 7) => failure(
            "VersionRefused",
            Class::Config,
            "GitHub refuses the version of the agent (exit code 7); use a newer image in spec.template.".to_owned(),
        ),
        (_, code) if cut.is_some() => failure(
            "JobCutShort",
            Class::Transient,
            format!("The agent ended with code {code} in the middle of a job.{cut_text}"),
        ),
        (_, code) => failure(
            "EndedWithoutJob",
            Class::Transient,
            format!(
                "The agent ended with code {code} and ran no job; its registration may have been removed. `kubectl logs` of the pod tells more."
            ),
        ),
    })
}

/// A gate that ended with another code than 0: the report in the termination message says why, the code at least who must act.
fn gate_failure(code: i32, reason: Option<&str>, message: Option<&str>, at: Timestamp) -> Failure {
    let report = message.and_then(|m| serde_json::from_str::<Report>(m).ok());
    let class = Class::from_exit_code(code).unwrap_or(Class::Transient);
    let reason_word = match class {
        Class::Refused => "RegistrationRefused",
        _ if code == i32::from(gate_report::exit::UNREACHABLE) => "RegistrarUnreachable",
        _ => "GateFailed",
    };
    let found = report.and_then(|r| r.failure);
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
        device: found.and_then(|f| f.uuid),
        message,
        at,
        registered: false,
    }
}

/// What the hooks noted in the runner's termination message.
#[derive(Default)]
struct Marks {
    started: Option<Job>,
    completed: Option<Job>,
}

impl Marks {
    /// Lines that are no marks are passed over: the agent may write there, too.
    fn read(message: &str) -> Self {
        #[derive(Deserialize)]
        struct Mark {
            mark: String,
            #[serde(flatten)]
            job: Job,
        }
        let mut marks = Self::default();
        for line in message.lines() {
            let Ok(Mark { mark, job }) = serde_json::from_str(line) else {
                continue;
            };
            match mark.as_str() {
                "started" => marks.started = Some(job),
                "completed" => marks.completed = Some(job),
                _ => {}
            }
        }
        marks
    }
}

/// When the last of the pod's containers ended.
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    terminated(container(pod, RUNNER))
        .or_else(|| terminated(init_container(pod, GATE)))
        .and_then(|t| t.finished_at.as_ref())
        .map(|t| t.0)
}

fn agent_running(pod: &Pod) -> bool {
    let state = container(pod, RUNNER).and_then(|c| c.state.as_ref());
    state.is_some_and(|s| s.running.is_some())
}

/// UUIDs in the report of a gate that has passed.
fn gate_devices(pod: &Pod) -> Vec<String> {
    terminated(init_container(pod, GATE))
        .and_then(|t| t.message.as_deref())
        .and_then(|m| serde_json::from_str::<Report>(m).ok())
        .map(|report| report.devices.into_iter().map(|d| d.uuid).collect())
        .unwrap_or_default()
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == type_)
}

fn transition(condition: &PodCondition) -> Option<Timestamp> {
    condition.last_transition_time.as_ref().map(|t| t.0)
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == name)
}

fn init_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    statuses.iter().find(|c| c.name == name)
}

fn terminated(
    status: Option<&ContainerStatus>,
) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    status?.state.as_ref()?.terminated.as_ref()
}

fn waiting_of_condition(condition: &PodCondition) -> Waiting {
    Waiting {
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
    }
}

/// Why a container waits; the ordinary steps of a start are no reason.
fn waiting_of_container(status: &ContainerStatus) -> Option<Waiting> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone()?;
    (reason != "PodInitializing" && reason != "ContainerCreating").then(|| Waiting {
        reason,
        message: waiting.message.clone().unwrap_or_default(),
    })
}

/// The runners of each pool, kept current by the watch.
pub type Runners = BTreeMap<String, Runner>;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: &Value) -> Runner {
        let pod = json!({
            "metadata": {
                "name": "pool-aaaaa",
                "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {TEMPLATE_ANNOTATION: "t"}
            },
            "spec": {"containers": [], "nodeName": "node-1"},
            "status": status
        });
        Runner::read(&serde_json::from_value(pod).unwrap())
    }

    fn bound() -> Value {
        json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"})
    }

    fn gate(state: &Value) -> Value {
        json!([{"name": "gate", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state}])
    }

    fn agent(state: &Value, started: bool, ready: bool) -> Value {
        json!([{"name": "runner", "image": "", "imageID": "", "ready": ready, "started": started, "restartCount": 0, "state": state}])
    }

    fn passed() -> Value {
        json!({"terminated": {
            "exitCode": 0,
            "finishedAt": "2026-01-01T00:00:05Z",
            "message": r#"{"schema":"cudarunner.dev/gate-report/v1","outcome":"passed","devices":[{"uuid":"GPU-1"}]}"#
        }})
    }

    fn running() -> Value {
        json!({"running": {"startedAt": "2026-01-01T00:00:06Z"}})
    }

    /// A pod whose agent ended with `code` and these marks.
    fn ended(code: i32, reason: &str, message: &str) -> Runner {
        pod(&json!({
            "phase": if code == 0 { "Succeeded" } else { "Failed" },
            "conditions": [bound()],
            "initContainerStatuses": gate(&passed()),
            "containerStatuses": agent(&json!({"terminated": {
                "exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:01:00Z"
            }}), true, false)
        }))
    }

    fn failure(runner: &Runner) -> &Failure {
        match &runner.end {
            Some(End::Failed(failure)) => failure,
            other => panic!("no failure: {other:?}"),
        }
    }

    #[test]
    fn a_pod_without_a_node_says_what_the_scheduler_said() {
        let runner = pod(&json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
        ]}));
        assert_eq!(runner.phase, RunnerPhase::Unscheduled);
        assert_eq!(runner.waiting.unwrap().message, "no GPU");
    }

    #[test]
    fn each_step_on_the_node_is_a_phase() {
        let at = |gate_state: &Value, runner: &Value, ready: &str| {
            pod(&json!({
                "phase": "Pending",
                "conditions": [bound(), {"type": "Ready", "status": ready}],
                "initContainerStatuses": gate(gate_state),
                "containerStatuses": runner
            }))
            .phase
        };
        let waiting = json!({"waiting": {"reason": "PodInitializing"}});
        let idle_agent = agent(&waiting, false, false);
        assert_eq!(at(&waiting, &idle_agent, "False"), RunnerPhase::Preparing);
        assert_eq!(at(&running(), &idle_agent, "False"), RunnerPhase::Gated);
        assert_eq!(at(&passed(), &idle_agent, "False"), RunnerPhase::Starting);
        assert_eq!(at(&passed(), &agent(&running(), false, false), "False"), RunnerPhase::Starting);
        assert_eq!(at(&passed(), &agent(&running(), true, true), "True"), RunnerPhase::Idle);
        assert_eq!(at(&passed(), &agent(&running(), true, false), "False"), RunnerPhase::Busy);
    }

    #[test]
    fn the_gates_report_gives_the_devices() {
        let runner = ended(0, "Completed", "");
        assert_eq!(runner.devices, ["GPU-1"]);
    }

    #[test]
    fn a_completed_mark_is_a_job_done_whatever_the_code() {
        let marks = "noise\n{\"mark\":\"started\",\"job\":\"build\",\"run\":\"7\",\"repository\":\"a/b\"}\n{\"mark\":\"completed\",\"job\":\"build\",\"run\":\"7\",\"repository\":\"a/b\"}\n";
        for code in [0, 143] {
            let runner = ended(code, "Completed", marks);
            assert_eq!(runner.phase, RunnerPhase::Finished);
            assert!(matches!(runner.end, Some(End::JobDone(job)) if job.job == "build" && job.run == "7"));
        }
    }

    #[test]
    fn an_end_without_marks_is_no_job() {
        let runner = ended(0, "Completed", "");
        assert_eq!(runner.phase, RunnerPhase::Failed);
        assert_eq!(failure(&runner).reason, "EndedWithoutJob");
        assert!(failure(&runner).registered, "GitHub may still hold its entry");
    }

    #[test]
    fn ends_have_their_reason() {
        let started = r#"{"mark":"started","job":"build","run":"7","repository":"a/b"}"#;
        assert_eq!(failure(&ended(7, "Error", "")).reason, "VersionRefused");
        assert_eq!(failure(&ended(137, "OOMKilled", started)).reason, "OutOfMemory");
        let cut = ended(143, "Error", started);
        assert_eq!(failure(&cut).reason, "JobCutShort");
        assert!(failure(&cut).message.contains("build of run 7 in a/b"));
    }

    #[test]
    fn a_failed_gate_speaks_through_its_report() {
        let report = Report {
            failure: Some(gate_report::Failure {
                class: Class::Node,
                step: gate_report::Step::Init,
                code: Some(803),
                code_name: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH".into(),
                call: None,
                device: None,
                uuid: None,
                message: "Driver and library differ.".into(),
                advice: "Reboot the node.".into(),
                confidence: gate_report::Confidence::High,
            }),
            ..Report::new("1")
        }
        .summary();
        let runner = pod(&json!({
            "phase": "Failed",
            "conditions": [bound()],
            "initContainerStatuses": gate(&json!({"terminated": {
                "exitCode": 13, "message": report, "finishedAt": "2026-01-01T00:00:05Z"
            }}))
        }));
        let failure = failure(&runner);
        assert_eq!((failure.class, failure.code), (Class::Node, Some(803)));
        assert_eq!(failure.message, "Driver and library differ. Reboot the node.");
        assert!(!failure.registered);
    }

    #[test]
    fn a_gate_without_a_report_is_judged_by_its_code() {
        let runner = pod(&json!({
            "phase": "Failed",
            "conditions": [bound()],
            "initContainerStatuses": gate(&json!({"terminated": {"exitCode": 15, "reason": "Error"}}))
        }));
        assert_eq!(failure(&runner).reason, "RegistrationRefused");
        assert_eq!(failure(&runner).class, Class::Refused);
    }

    #[test]
    fn evictions_and_refusals_of_the_node_are_told_apart() {
        let with = |reason: &str| {
            pod(&json!({"phase": "Failed", "reason": reason, "message": "m", "conditions": [bound()]}))
        };
        assert_eq!(failure(&with("Evicted")).reason, "Evicted");
        assert_eq!(failure(&with("UnexpectedAdmissionError")).reason, "PodRejected");
        assert_eq!(failure(&with("NodeLost")).reason, "NodeLost");
    }

    #[test]
    fn a_pod_that_is_being_removed_keeps_its_end() {
        let mut done = serde_json::to_value(json!({
            "metadata": {"name": "pool-aaaaa", "deletionTimestamp": "2026-01-01T00:02:00Z"},
            "spec": {"containers": []},
            "status": {"phase": "Succeeded", "containerStatuses": agent(&json!({"terminated": {"exitCode": 0}}), false, false)}
        }))
        .unwrap();
        let runner = Runner::read(&serde_json::from_value(done.clone()).unwrap());
        assert_eq!(runner.phase, RunnerPhase::Terminating);
        assert!(!runner.is_active("2026-01-01T00:01:00Z".parse().unwrap()));
        done["status"]["phase"] = json!("Running");
        let runner = Runner::read(&serde_json::from_value(done).unwrap());
        assert!(runner.is_active("2026-01-01T00:01:00Z".parse().unwrap()));
        assert!(!runner.is_active("2026-01-01T00:03:00Z".parse().unwrap()));
    }
}
