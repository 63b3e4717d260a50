//! A runner's container `gpu`, read: the gate runs in it first, then the agent.
//!
//! The registrar changes its image in between. The kubelet starts it again with that, and in no other case without an end:
//! so the container that was made first is the gate, and the one after the change is the agent.
//!
//! Where jobs bring their containers, the agent is in the main one, and the pod's annotations tell that the gate has passed.

use cuda_runner_plan::model::runner::{
    GPU, JOB_ANNOTATION, MAIN, PASSED_ANNOTATION, REPORT_ANNOTATION, RUNNER,
};
use gate_report::Report;
use gate_report::contract::command;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, ContainerStatus, Pod};

use super::status::{annotation, container, init_container, is_over, spec_of, terminated};

/// The container of the GPUs, as its pod shows it.
#[derive(Clone, Copy, Debug)]
pub struct Gpu<'a> {
    status: Option<&'a ContainerStatus>,
    let_in: bool,
    /// The number of the first start that is the agent's, or its job's.
    agents: i32,
    /// Where jobs bring their containers.
    jobs: Option<Jobs<'a>>,
}

/// What only such pods have.
#[derive(Clone, Copy, Debug)]
struct Jobs<'a> {
    /// The agent's container.
    main: Option<&'a ContainerStatus>,
    /// Whether an end of that is the agent's, whatever became of the gate.
    is_over: bool,
    /// When the gate has passed.
    passed: Option<Timestamp>,
    /// Its report, in short.
    report: Option<&'a str>,
}

impl<'a> Gpu<'a> {
    /// That of this pod.
    #[must_use]
    pub fn of(pod: &'a Pod) -> Self {
        if let Some(agent) = started_of_an_older_version(pod) {
            return Self {
                status: Some(agent),
                let_in: true,
                agents: 0,
                jobs: None,
            };
        }
        let status = init_container(pod, GPU);
        if !is_for_containers(pod) {
            return Self {
                status,
                let_in: is_let_in(pod),
                agents: 1,
                jobs: None,
            };
        }
        let passed = annotation(pod, PASSED_ANNOTATION).and_then(|time| time.parse().ok());
        Self {
            status,
            let_in: passed.is_some(),
            agents: 1,
            jobs: Some(Jobs {
                main: container(pod, MAIN),
                is_over: is_over(pod),
                passed,
                report: annotation(pod, REPORT_ANNOTATION),
            }),
        }
    }

    /// Whether the gate has passed, and the registrar has said so: from now on the agent may be there.
    #[must_use]
    pub fn is_let_in(&self) -> bool {
        self.let_in
    }

    /// When the gate has passed, where the pod says that; else the agent's container is no older.
    pub(super) fn passed_at(&self) -> Option<Timestamp> {
        self.jobs?.passed
    }

    /// The name of the agent's container.
    pub(super) fn agents_name(&self) -> &'static str {
        if self.jobs.is_some() { MAIN } else { GPU }
    }

    /// What the kubelet shows of the agent's container, once that was made.
    pub(super) fn agent(&self) -> Option<&'a ContainerStatus> {
        match self.jobs {
            Some(jobs) => jobs.main.filter(|_| self.let_in),
            None => self
                .status
                .filter(|s| self.let_in && s.restart_count >= self.agents),
        }
    }

    /// How the agent ended.
    pub(super) fn agent_end(&self) -> Option<&'a ContainerStateTerminated> {
        if let Some(jobs) = self.jobs {
            // With a gate that fails the agent's container ends, too, and may be shown first.
            return terminated(jobs.main).filter(|_| self.let_in || jobs.is_over);
        }
        let ends = self.ends();
        let ends = ends.filter(|(number, _)| self.let_in && *number >= self.agents);
        first(ends)
    }

    /// How the gate ended, whatever became of it: also where only the change of the image ended it.
    #[must_use]
    pub fn gate_end(&self) -> Option<&'a ContainerStateTerminated> {
        let ends = self.ends();
        first(ends.filter(|(number, _)| !self.let_in || *number < self.agents))
    }

    /// The end of a gate that did not pass.
    pub(super) fn gate_failure(&self) -> Option<&'a ContainerStateTerminated> {
        let end = self.gate_end().filter(|_| !self.let_in);
        end.filter(|end| end.exit_code != 0)
    }

    /// Since when the gate runs, if it does.
    pub(super) fn gate_runs_since(&self, bound: Timestamp) -> Option<Timestamp> {
        let waits_for_a_job = self.jobs.is_some() && self.let_in;
        let status = self
            .status
            .filter(|_| !waits_for_a_job && self.agent().is_none())?;
        running_since(status, bound)
    }

    /// The report of a gate that has ended, or that waits for a job.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        let noted = self.jobs.and_then(|jobs| jobs.report);
        let ended = || self.gate_end()?.message.as_deref();
        Report::read(noted.or_else(ended)?.as_bytes()).ok()
    }

    /// Which containers have ended, by their number. The one that is shown is the last one; while the next is awaited, the
    /// last one is shown as the one before.
    pub(super) fn ends(
        &self,
    ) -> impl Iterator<Item = (i32, &'a ContainerStateTerminated)> + use<'a> {
        let status = self.status;
        let last = status.map_or(0, |s| s.restart_count);
        let state = status.and_then(|s| s.state.as_ref());
        let before = status.and_then(|s| s.last_state.as_ref());
        let waits = state.is_some_and(|s| s.waiting.is_some());
        let before_number = if waits { last } else { last.saturating_sub(1) };
        let before = before.and_then(|s| s.terminated.as_ref());
        let now = state.and_then(|s| s.terminated.as_ref());
        let before = before.map(|end| (before_number, end));
        before.into_iter().chain(now.map(|end| (last, end)))
    }
}

/// Whether jobs bring their containers: then our program brings the agent up in the main one.
pub(super) fn is_for_containers(pod: &Pod) -> bool {
    let main = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut main = main.filter(|c| c.name == MAIN);
    let command = main.next().and_then(|main| main.command.as_ref());
    command.is_some_and(|command| command.get(1).is_some_and(|word| word == command::AGENT))
}

/// The image that the container of the GPUs was given for a job.
pub(super) fn jobs_image(pod: &Pod) -> Option<&str> {
    annotation(pod, JOB_ANNOTATION)?;
    spec_of(pod, GPU)?.image.as_deref()
}

/// What follows the first end only carries it on.
fn first<'a>(
    ends: impl Iterator<Item = (i32, &'a ContainerStateTerminated)>,
) -> Option<&'a ContainerStateTerminated> {
    ends.min_by_key(|(number, _)| *number).map(|(_, end)| end)
}

/// Since when a container runs, if it does.
pub(super) fn running_since(status: &ContainerStatus, bound: Timestamp) -> Option<Timestamp> {
    let running = status.state.as_ref()?.running.as_ref()?;
    Some(running.started_at.as_ref().map_or(bound, |t| t.0))
}

/// The agent's container in a pod that an operator before this version made, once it was started: its job goes on, and its
/// gate had a container of its own.
fn started_of_an_older_version(pod: &Pod) -> Option<&ContainerStatus> {
    let agent = container(pod, RUNNER)?;
    let waits = agent.state.as_ref().is_none_or(|s| s.waiting.is_some());
    let before = agent
        .last_state
        .as_ref()
        .and_then(|s| s.terminated.as_ref());
    (!waits || before.is_some()).then_some(agent)
}

/// The main container's image is the gate's for ever, whatever name a mirror gives it.
fn is_let_in(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let image = |all: &[Container], name: &str| {
        let found = all.iter().find(|c| c.name == name);
        found.and_then(|c| c.image.clone())
    };
    let gpu = spec.init_containers.as_deref().unwrap_or_default();
    let (gpu, main) = (image(gpu, GPU), image(&spec.containers, MAIN));
    gpu.is_some() && main.is_some() && gpu != main
}
