//! A runner pod, read: how far it has come.

use cudarunner_crds::RunnerPhase;
use gate_report::contract::gate;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use kube::ResourceExt as _;

use super::disruption;
use super::end::end_of;
use super::gpu::{Gpu, running_since};
use super::job;
use super::life;
use super::marks::{done, under_way};
pub(crate) use super::status::is_over;
use super::status::{
    all_ready, annotation, condition, container, ended_at, spec_of, transition, words,
};
use crate::watch::others::asked;
use cuda_runner_plan::model::hardware::Hardware;
use cuda_runner_plan::model::runner::{
    AVOIDS_ANNOTATION, End, IMAGE_ANNOTATION, IMAGE_PULL_BACK_OFF, KnownRegistrar, MAIN, PREPARE,
    RETESTS_ANNOTATION, RUNNER, Runner, SCHEDULING_GATED, TEMPLATE_ANNOTATION, URL_ANNOTATION,
    Waiting, authorities,
};

/// The most nodes that a pod can be known to keep off.
const MOST_AVOIDED: usize = 1024;

/// So many scheduling gates of a pod are named.
const MOST_GATES: usize = 4;

/// The label by which a pod names its queue of Kueue's. See <https://kueue.sigs.k8s.io/docs/tasks/run/plain_pods/>.
const QUEUE: &str = "kueue.x-k8s.io/queue-name";

/// The registrar, as the pod was made with it.
fn registrar(pod: &Pod) -> Option<Box<KnownRegistrar>> {
    let variables = spec_of(pod, PREPARE)?.env.as_ref()?;
    let value = |name| {
        let variable = variables.iter().find(|variable| variable.name == name)?;
        variable.value.as_deref()
    };
    Some(Box::new(KnownRegistrar {
        url: value(gate::REGISTRAR_URL)?.to_owned(),
        authorities: value(gate::REGISTRAR_CA)
            .map(authorities)
            .unwrap_or_default(),
    }))
}

/// Reads a pod. A pod without the parts that the API server always sets reads as new and waiting.
#[must_use]
pub fn read(pod: &Pod) -> Runner {
    let created = pod
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let reached = State::of(pod, created);
    let reached_phase = reached.phase;
    let life = life::of(pod, reached.phase, reached.since);
    let state = reached.leaving(pod);
    let gpu = Gpu::of(pod);
    let report = gpu.report();
    Runner {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        created,
        gone_by: pod.metadata.deletion_timestamp.as_ref().map(|t| t.0),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        template: annotation(pod, TEMPLATE_ANNOTATION)
            .unwrap_or_default()
            .to_owned(),
        avoids: annotation(pod, AVOIDS_ANNOTATION)
            .map(|names| names.split(',').take(MOST_AVOIDED))
            .map(|names| names.map(str::to_owned).collect())
            .unwrap_or_default(),
        retests: annotation(pod, RETESTS_ANNOTATION).map(str::to_owned),
        url: annotation(pod, URL_ANNOTATION).map(str::to_owned),
        registrar: registrar(pod),
        is_stranded: false,
        told: None,
        agent_running: gpu
            .agent()
            .is_some_and(|agent| running_since(agent, created).is_some()),
        gate_passed: gpu.is_let_in(),
        image: annotation(pod, IMAGE_ANNOTATION).map(str::to_owned),
        hardware: report.as_ref().map(Hardware::of),
        devices: report
            .map(|r| r.devices.into_iter().map(|d| d.uuid).collect())
            .unwrap_or_default(),
        owner: owner(pod),
        reached: reached_phase,
        phase: state.phase,
        since: state.since,
        waiting: state.waiting,
        waiting_since: None,
        doubt: None,
        end: state.end,
        is_over: is_over(pod),
        devices_held: pod.spec.as_ref().map(asked).unwrap_or_default(),
        done: done(pod, created).map(Box::new),
        under_way: under_way(pod).map(Box::new),
        heard: None,
        disruption: disruption::target(pod),
        job_pod: job::of(pod).map(Box::new),
        life,
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
                waiting: scheduled.map(|scheduled| waiting_of_condition(pod, scheduled)),
                ..at(RunnerPhase::Unscheduled, created)
            };
        };
        let bound = transition(scheduled).unwrap_or(created);
        Self::on_node(pod, bound)
    }

    /// The same of a pod that is being deleted, if it is.
    fn leaving(self, pod: &Pod) -> Self {
        match &pod.metadata.deletion_timestamp {
            Some(deletion) => Self {
                phase: RunnerPhase::Terminating,
                since: deletion.0,
                waiting: None,
                end: self.end,
            },
            None => self,
        }
    }

    /// The state of a pod that has a node and has not ended. Each phase has a beginning of its own.
    fn on_node(pod: &Pod, bound: Timestamp) -> Self {
        let at = |phase, since| Self {
            phase,
            since,
            waiting: None,
            end: None,
        };
        let gpu = Gpu::of(pod);
        if let Some(agent) = gpu.agent()
            && let Some(started) = running_since(agent, bound)
        {
            // The agent's container may be there before its gate has passed.
            let started = gpu
                .passed_at()
                .map_or(started, |passed| started.max(passed));
            // The agent's own word: the pod's takes in every sidecar.
            if agent.ready {
                return at(RunnerPhase::Idle, ready_since(pod).unwrap_or(started));
            }
            return match online_before(pod, started) {
                Some(since) => at(RunnerPhase::Busy, since),
                None => at(RunnerPhase::Starting, started),
            };
        }
        let waiting = first_waiting(pod);
        if gpu.is_let_in() {
            // The image is being changed: the gate may still be there, or its end may be, or nothing while one is pulled.
            let ended = gpu.gate_end().and_then(|end| end.finished_at.as_ref());
            let ended = gpu.passed_at().or(ended.map(|t| t.0));
            let since = ended.or_else(|| gpu.gate_runs_since(bound));
            return Self {
                waiting,
                ..at(RunnerPhase::Starting, since.unwrap_or(bound))
            };
        }
        if let Some(started) = gpu.gate_runs_since(bound) {
            return at(RunnerPhase::Gated, started);
        }
        Self {
            waiting,
            ..at(RunnerPhase::Preparing, bound)
        }
    }
}

/// Since when all containers are ready, if they are.
fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = all_ready(pod).filter(|c| c.status == "True");
    ready.and_then(transition)
}

/// Since when a running agent that is not ready has been so, if it was online before. A kubelet that was restarted shows
/// the main container, which is started by that, as not started for a moment; but a pod that became unready after the
/// agent's start was ready in between.
fn online_before(pod: &Pod, started: Timestamp) -> Option<Timestamp> {
    let unready = all_ready(pod).and_then(transition);
    let unready = unready.filter(|at| *at > started);
    // In a pod that an operator before this version made, the agent's own container says it.
    let says = container(pod, MAIN).or_else(|| container(pod, RUNNER));
    let was_online = || says?.started.filter(|started| *started);
    unready.or_else(|| was_online().map(|_| started))
}

fn owner(pod: &Pod) -> String {
    let mut owners = pod.owner_references().iter();
    let pool = owners.find(|owner| owner.kind == "CudaRunner");
    pool.map(|owner| owner.uid.clone()).unwrap_or_default()
}

fn waiting_of_condition(pod: &Pod, condition: &PodCondition) -> Waiting {
    let reason = condition.reason.as_deref().unwrap_or_default();
    let message = if reason == SCHEDULING_GATED {
        words(Some(&gates(pod)))
    } else {
        words(condition.message.as_deref())
    };
    Waiting {
        reason: reason.into(),
        message,
        container: None,
        image: None,
    }
}

/// The pod's scheduling gates by name, and the queue of Kueue's that it is in. Kubernetes' own sentence names neither.
fn gates(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let gates = spec.and_then(|spec| spec.scheduling_gates.as_deref());
    let names = gates.unwrap_or_default().iter();
    let names: Vec<&str> = names
        .map(|gate| gate.name.as_str())
        .take(MOST_GATES)
        .collect();
    let queue = pod.labels().get(QUEUE);
    let queue = queue.map_or_else(String::new, |queue| format!(" (queue {queue})"));
    format!("{}{queue}", names.join(", "))
}

/// What the first container waits for that waits for anything, ours or the user's.
fn first_waiting(pod: &Pod) -> Option<Waiting> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let mut all = init.chain(status.container_statuses.iter().flatten());
    all.find_map(|status| waiting_of_container(pod, status))
}

/// Why a container waits; the ordinary steps of a start are no reason.
pub(super) fn waiting_of_container(pod: &Pod, status: &ContainerStatus) -> Option<Waiting> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    if reason == "PodInitializing" || reason == "ContainerCreating" {
        return None;
    }
    // The kubelet changes between the attempt and the pause after it, and repeats the attempt's words in the pause.
    let (reason, message) = match waiting.message.as_deref() {
        Some(message) if reason == IMAGE_PULL_BACK_OFF => (
            reason,
            message
                .split_once("ErrImagePull: ")
                .map_or(message, |(_, m)| m),
        ),
        message if reason == "ErrImagePull" => (IMAGE_PULL_BACK_OFF, message.unwrap_or_default()),
        message => (reason, message.unwrap_or_default()),
    };
    Some(Waiting {
        reason: reason.into(),
        message: words(Some(message)),
        container: Some(status.name.clone()),
        // While a changed image is pulled, the status shows the one before.
        image: Some(words(Some(
            spec_of(pod, &status.name)
                .and_then(|c| c.image.as_ref())
                .unwrap_or(&status.image),
        ))),
    })
}
