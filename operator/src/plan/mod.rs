//! What to do: a pure function of the pool, of what was observed, and of the time.
//!
//! Nothing here has a client, a clock or randomness of its own, so that every decision can be tested as data.

pub mod checks;
pub mod conditions;
pub mod demand;
pub mod health;
pub mod jobs;
mod labels;
pub mod left;
pub mod node_marks;
mod placement;
pub mod pod;
mod preflight;
pub mod quarantine;
pub mod queue;
pub mod runners;
pub mod scale_set;
mod shown;
mod stable;
pub mod teardown;
pub mod verify;
pub mod version;

#[cfg(test)]
mod extremes;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, RunnerPhase};
use gate_report::Class;
use jiff::{SignedDuration, Timestamp};

use crate::github::{
    self, Agent, Lifecycle, NewScaleSet, QueuedJob, Repository, Ruleset, Workflow,
};
use crate::observe::pod::Runner;
use crate::pool::{Pool, Spec};

/// Everything that a decision depends on beside the pool itself.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The pool's pods.
    pub runners: Vec<Runner>,
    /// Runners that ended and whose pods somebody else took away at once; the status does not tell of them yet.
    pub vanished: Vec<Runner>,
    /// Names of pods that were created and that the watch does not show yet.
    pub expected: BTreeSet<String>,
    /// Names of pods whose creation got no answer and which are not there: they may still come.
    pub unanswered: BTreeSet<String>,
    /// When the API server is asked for those that are expected.
    pub ask_for_pods: Option<Timestamp>,
    /// What is known of the way to GitHub.
    pub access: Access,
    /// What was seen at addresses that the pool has left.
    pub left: BTreeMap<String, left::Left>,
    /// When GitHub may be asked again, after an attempt that failed.
    pub ask_again: Option<Timestamp>,
    /// GitHub's own list of our entries, as last read.
    pub listing: Option<Listing>,
    /// The jobs that wait at GitHub, as last read.
    pub queue: Option<Arc<Queue>>,
    /// The run of the verification that is on its way.
    pub verification: verify::Watched,
    /// The required checks.
    pub checks: checks::Watched,
    /// What GitHub says of jobs that have ended.
    pub jobs: jobs::Watched,
    /// What GitHub says of the versions of agents, where it says anything.
    pub lifecycles: BTreeMap<String, Lifecycle>,
    /// What other pools require.
    pub required_elsewhere: BTreeSet<checks::Elsewhere>,
    /// The scale set of a pool that has one, or should.
    pub scale_set: Option<scale_set::View>,
    /// Labels of the other pools of the same address; empty where no job waits.
    pub other_pools: Vec<Vec<String>>,
    /// When we last created or removed anything that such a list would show.
    pub last_change: Option<Timestamp>,
    /// The nodes with GPUs for the pool; `None` where nodes are not watched.
    pub nodes: Option<Vec<Arc<NodeFacts>>>,
    /// How many of the pool's extended resource the runners of other pools hold, by node; `None` where no other pool uses it.
    pub taken: Option<BTreeMap<String, u32>>,
    /// What the other pools have in quarantine.
    pub quarantined: Vec<node_marks::Held>,
    /// Gates of all pools that passed; empty where no node is blamed.
    pub passed: Vec<Passed>,
    /// Why Kubernetes refused the last pod.
    pub pod_refused: Option<String>,
    /// Fresh randomness for names.
    pub seed: u64,
}

impl Observed {
    /// What is known of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeFacts> {
        let mut nodes = self.nodes.iter().flatten();
        nodes.find(|node| node.name == name).map(Arc::as_ref)
    }
}

/// A node with GPUs for the pool, see [`crate::watch::nodes`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Changes with each start of the node.
    pub boot_id: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// How many of each extended resource it offers, taken or not.
    pub offers: BTreeMap<String, u32>,
    /// Since when it is there and ready.
    pub ready_since: Option<Timestamp>,
    /// Whether it takes no new pods: it is cordoned.
    pub is_cordoned: bool,
}

/// A gate that passed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Passed {
    /// The node.
    pub node: String,
    /// When its pod was made.
    pub created: Timestamp,
    /// UUIDs of the devices.
    pub devices: Vec<String>,
}

/// What is known of the way to GitHub.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing was tried yet.
    Unchecked,
    /// GitHub let us in.
    Granted,
    /// It cannot work, or does not now.
    Refused {
        /// The condition's reason.
        reason: String,
        /// What happened, and what to do.
        message: String,
        /// Whether time alone may mend it.
        transient: bool,
    },
}

/// The jobs that wait for a runner.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// When it was read.
    pub at: Timestamp,
    /// The request, by annotation, with which it was read.
    pub asked: Option<String>,
    /// The jobs, or why they could not be read. `None` where GitHub does not list them.
    pub jobs: Result<Option<Vec<QueuedJob>>, String>,
    /// Labels of the runners that are registered at that address, ours and others; none where no job waits.
    pub registered: Vec<Vec<String>>,
    /// The repository of the verification, where the pool's runner group does not admit it.
    pub shut_out: Option<String>,
}

impl Queue {
    /// Whether any job waits, as far as is known.
    #[must_use]
    pub fn has_jobs(&self) -> bool {
        matches!(&self.jobs, Ok(Some(jobs)) if !jobs.is_empty())
    }
}

/// GitHub's list of the entries that bear our ownership label.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// When it was read.
    pub at: Timestamp,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// A runner's entry on GitHub.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// GitHub's id.
    pub id: u64,
    /// The runner's name.
    pub name: String,
    /// Whether it runs a job.
    pub busy: bool,
    /// Version of its agent, once one has connected.
    pub version: Option<String>,
    /// Whether it is of the pool's scale set.
    pub of_scale_set: bool,
}

impl From<github::Runner> for Entry {
    fn from(runner: github::Runner) -> Self {
        Self {
            id: runner.id,
            name: runner.name,
            busy: runner.busy,
            version: runner.version,
            of_scale_set: false,
        }
    }
}

impl Entry {
    /// A runner of the pool's scale set. Whether it is busy shows when it is to go.
    #[must_use]
    pub fn of_scale_set(agent: Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            busy: false,
            version: None,
            of_scale_set: true,
        }
    }
}

/// What the pods need to know of the operator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodSettings {
    /// Image of the gate.
    pub gate_image: String,
    /// Pull policy of that image.
    pub image_pull_policy: String,
    /// Address of the registrar.
    pub registrar_url: String,
    /// Certificate authorities of the registrar, PEM.
    pub registrar_ca: String,
}

/// One write. Each is safe to repeat.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put our finalizer on the resource.
    AddFinalizer,
    /// Let the resource go.
    RemoveFinalizer,
    /// Create a runner pod, see [`pod::build`].
    CreatePod(NewRunner),
    /// Remove a pod whose entry on GitHub is gone by itself: it has ended after a job.
    DeletePod(Target),
    /// Remove the entry on GitHub, where there may be one, then the pod. A busy runner is left alone. That there is no entry
    /// is believed of the registrar's books and of GitHub, never of what a watch shows: it may be behind.
    Drain(Target),
    /// The same, but a busy runner's pod goes too: its job is cancelled.
    Evict(Target),
    /// Remove an idle pod if GitHub knows no runner of its name.
    ReplaceUnregistered(Target),
    /// Remove an entry on GitHub that has no pod.
    DeleteEntry(Entry),
    /// The same at an address that the pool has left.
    DeleteEntryAt(String, Entry),
    /// Remove the scale set that the pool had at an address that it has left.
    DeleteScaleSetAt(String, u64),
    /// Make the pool's scale set.
    CreateScaleSet(NewScaleSet),
    /// Make the pool's scale set what it should be.
    UpdateScaleSet(u64, NewScaleSet),
    /// Remove the pool's scale set.
    DeleteScaleSet(u64),
    /// Listen for jobs of the scale set, and let so many be assigned to it at a time.
    Listen {
        /// The scale set.
        set: u64,
        /// How many.
        capacity: usize,
        /// A session of ours that a process before this one may have left open.
        session: Option<String>,
    },
    /// Listen no more.
    StopListening,
    /// Start the workflow of the verification.
    DispatchWorkflow(Workflow),
    /// Stop a run of ours that nobody takes.
    CancelRun(Repository, u64),
    /// Add contexts to what a branch requires.
    RequireChecks(Repository, String, Vec<String>),
    /// Take contexts off what a branch requires.
    UnrequireChecks(Repository, String, Vec<String>),
    /// Make the pool's own ruleset.
    CreateRuleset(Repository, Ruleset),
    /// Make the pool's own ruleset what it should be.
    UpdateRuleset(Repository, i64, Ruleset),
    /// Remove the pool's own ruleset.
    DeleteRuleset(Repository, i64),
}

/// A runner to make. Its pod is built when its turn comes: hundreds of whole pods at once weigh more than all that the
/// operator keeps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewRunner {
    /// Name of the pod, and of the runner.
    pub name: String,
    /// Nodes that the pod keeps off.
    pub avoids: BTreeSet<String>,
}

/// A pod to remove: by uid, so that a namesake is never hit.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// When the pod was made.
    pub created: Timestamp,
    /// The address at which it registers, where its pod says so.
    pub url: Option<String>,
}

impl From<&Runner> for Target {
    fn from(runner: &Runner) -> Self {
        Self {
            name: runner.name.clone(),
            uid: runner.uid.clone(),
            created: runner.created,
            url: runner.url.clone(),
        }
    }
}

/// The longest note of an Event, in bytes; the API server refuses more.
pub const NOTE: usize = 1024;

/// Something that a person should hear.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// Whether it is a warning.
    pub warning: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub note: String,
    /// Whom it is about, beside the pool. Events of one reason are told apart by it: of others, only the first one's
    /// sentence is kept for some minutes, with a count.
    pub about: Option<About>,
}

impl Notice {
    /// The note, as much of it as the API server takes.
    #[must_use]
    pub fn cut(&self) -> String {
        const ELLIPSIS: &str = "…";
        if self.note.len() <= NOTE {
            return self.note.clone();
        }
        let end = self
            .note
            .floor_char_boundary(NOTE.saturating_sub(ELLIPSIS.len()));
        format!("{}{ELLIPSIS}", &self.note[..end])
    }
}

/// Whom a notice is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum About {
    /// A runner, by its name.
    Runner(String),
    /// A node, by its name.
    Node(String),
}

/// What to do, what to say, and when to look again.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Writes, in order of urgency; they do not depend on one another.
    pub actions: Vec<Action>,
    /// The status as it should be.
    pub status: CudaRunnerStatus,
    /// Events.
    pub notices: Vec<Notice>,
    /// Events for what the status tells for the first time: they wait until it is written.
    pub news: Vec<Notice>,
    /// Runners that have ended, and whose job the status does not hold yet: their pods stay until it does.
    pub unrecorded: BTreeSet<String>,
    /// When to look again, where nothing else wakes the pool.
    pub wake: Option<SignedDuration>,
    /// Whether GitHub's list should be read again soon.
    pub refresh: bool,
    /// The verification that is decided on at this visit.
    pub intent: Option<Timestamp>,
    /// Runners that the pool should have.
    pub desired: usize,
    /// The scale set, and up to which number what was heard of it is acted on with this.
    pub acted_on: Option<(u64, u64)>,
    /// The failures that the status did not have yet, in a class and a word each.
    pub failed: Vec<(Class, &'static str)>,
    /// How long the pool's first runner took to come online, at the visit that sees it.
    pub first_online: Option<SignedDuration>,
}

impl Plan {
    /// Looks again after `wait`, or sooner.
    fn wake_in(&mut self, wait: SignedDuration) {
        let wait = wait.max(SignedDuration::ZERO);
        self.wake = Some(self.wake.map_or(wait, |w| w.min(wait)));
    }

    /// Looks again at `moment`, or sooner.
    fn wake_at(&mut self, moment: Timestamp, now: Timestamp) {
        self.wake_in(moment.duration_since(now));
    }
}

/// Decides.
#[must_use]
pub fn plan(pool: &Pool, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = decided(pool, observed, now);
    shown::tidy(&mut plan);
    plan
}

fn decided(pool: &Pool, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan {
        status: counted(pool, observed, now),
        ..Plan::default()
    };
    let moments = [observed.ask_again, observed.ask_for_pods];
    for moment in moments.into_iter().flatten() {
        // One that is over woke this visit, or belongs to a spec that cannot be read any more.
        if moment > now {
            plan.wake_at(moment, now);
        }
    }
    left::note(pool, observed, &mut plan);
    left::plan(observed, now, &mut plan);
    if let Some(since) = pool.deleting {
        if !observed.runners.is_empty() {
            conditions::leaving(pool, now, &mut plan);
        }
        teardown::plan(pool, observed, since, now, &mut plan);
        return plan;
    }
    if !pool.finalizer {
        plan.actions.push(Action::AddFinalizer);
    }
    let health = health::assess(pool, observed, now);
    version::plan(pool, observed, now, &mut plan);
    jobs::plan(pool, observed, now, &mut plan);
    if let Ok(spec) = &pool.spec {
        scale_set::plan(pool, spec, observed, &health, now, &mut plan);
        runners::plan(pool, spec, observed, &health, now, &mut plan);
        verify::plan(pool, spec, observed, &health, now, &mut plan);
        checks::plan(pool, observed, now, &mut plan);
    } else {
        scale_set::stop_listening(observed, &mut plan);
    }
    plan.failed.clone_from(&health.failed);
    plan.status.consecutive_failures = health.consecutive;
    plan.status.last_failures.clone_from(&health.last_failures);
    plan.status
        .quarantine
        .clone_from(&health.quarantine.entries);
    plan.status.released.clone_from(&pool.release);
    plan.notices.extend(health.quarantine.notices.clone());
    if let Some(moment) = health.quarantine.wake {
        plan.wake_at(moment, now);
    }
    queue::plan(pool, observed, now, &mut plan);
    labels::plan(pool, observed, &mut plan);
    conditions::plan(pool, observed, &health, now, &mut plan);
    plan
}

/// The counts and lists of the status.
fn counted(pool: &Pool, observed: &Observed, now: Timestamp) -> CudaRunnerStatus {
    let runners = &observed.runners;
    let count = |wanted: &dyn Fn(&Runner) -> bool| {
        i32::try_from(runners.iter().filter(|r| wanted(r)).count()).unwrap_or(i32::MAX)
    };
    let phase = |phases: &'static [RunnerPhase]| move |r: &Runner| phases.contains(&r.phase);
    let mut listed: Vec<_> = runners.iter().filter(|r| r.end.is_none()).collect();
    listed.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let beyond = listed
        .len()
        .saturating_sub(cudarunner_crds::MAX_LISTED_RUNNERS);
    CudaRunnerStatus {
        observed_generation: Some(pool.generation),
        replicas: count(&|r| r.is_active(now)),
        pending: count(&phase(&[RunnerPhase::Unscheduled, RunnerPhase::Preparing])),
        gated: count(&phase(&[RunnerPhase::Gated])),
        online: count(&Runner::is_online),
        busy: count(&phase(&[RunnerPhase::Busy])),
        failed: count(&phase(&[RunnerPhase::Failed])),
        gpu: pool.spec.as_ref().map_or_else(
            |_| pool.status.gpu.clone(),
            |spec: &Spec| spec.gpu.to_string(),
        ),
        selector: format!("{}={}", cudarunner_crds::POOL_LABEL, pool.key.name),
        runners: listed
            .iter()
            .take(cudarunner_crds::MAX_LISTED_RUNNERS)
            .map(|r| cudarunner_crds::RunnerStatus {
                name: r.name.clone(),
                node: r.node.clone(),
                devices: r.devices.clone(),
                phase: r.phase,
                waiting: r.waiting.as_ref().map(ToString::to_string),
                since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(r.created),
            })
            .collect(),
        runners_not_listed: i32::try_from(beyond).unwrap_or(i32::MAX),
        ..pool.status.clone()
    }
}
