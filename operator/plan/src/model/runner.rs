//! A runner: how far it has come, and how it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use cudarunner_crds::RunnerPhase;
pub use gate_report::contract::{GPU, MAIN, PREPARE, RUNNER};
use gate_report::usage::GpuUsage;
use gate_report::wire::ContainerState;
use gate_report::{Class, Finding, clean};
use jiff::Timestamp;
use serde::Deserialize;

use super::github::JobOf;
use super::hardware::Hardware;
use super::hung::Doubt;
use super::life::Life;
use super::observed::Observed;
use super::pool::Spec;
use crate::reason::Reason;

/// Annotation: fingerprint of the spec that the pod was made from.
pub const TEMPLATE_ANNOTATION: &str = "cudarunner.dev/template";
/// Annotation: present, with this value, on the pod of a runner that runs many jobs.
pub const LIFETIME_ANNOTATION: &str = "cudarunner.dev/lifetime";
/// The value of [`LIFETIME_ANNOTATION`].
pub const PERSISTENT: &str = "Persistent";
/// Annotation: the address at which the pod's runner registers.
pub const URL_ANNOTATION: &str = "cudarunner.dev/github-url";
/// Annotation: names of the nodes that the pod was told to keep off, with commas between.
pub const AVOIDS_ANNOTATION: &str = "cudarunner.dev/avoids";
/// Annotation: UUID of the device that the pod tries again, in spite of our taint.
pub const RETESTS_ANNOTATION: &str = "cudarunner.dev/retests";
/// Annotation: the image of the pod's agent. Its container begins in the gate's.
pub const IMAGE_ANNOTATION: &str = "cudarunner.dev/runner-image";
/// Annotation: when the gate has passed, in a pod whose jobs bring their containers. There no image tells it.
pub const PASSED_ANNOTATION: &str = "cudarunner.dev/gate-passed";
/// Annotation: the summary of that gate's report.
pub const REPORT_ANNOTATION: &str = "cudarunner.dev/gate-report";
/// Annotation: which start of the container of the GPUs is the first in its job's image.
pub const JOB_ANNOTATION: &str = "cudarunner.dev/job-start";
/// What the names of a job's services begin with; a number follows.
pub const SERVICE_PREFIX: &str = "svc-";
/// The kubelet's word for an image that it could not pull and will try again.
pub const IMAGE_PULL_BACK_OFF: &str = "ImagePullBackOff";
/// Kubernetes' word for a pod that no scheduler looks at, because its `spec.schedulingGates` are not empty.
pub const SCHEDULING_GATED: &str = "SchedulingGated";
/// The word for a gate that the node could not start, in the place of a code's name.
pub const NOT_RUN: &str = "StartError";
/// The word for a device plugin that answered the kubelet with an error, in the same place.
pub const NOT_ALLOCATED: &str = "AllocationFailed";
/// The word for a device plugin that has no devices to give, as also a kubelet says before the plugin has come back to it.
pub const NOT_OFFERED: &str = "DevicesUnavailable";
/// The longest name that is kept of a job, a workflow or a repository.
const LONGEST_NAME: usize = 140;

/// What the plan needs to know of a runner pod: a small part of a pod's many thousand bytes.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own: all of them together are possible"
)]
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
    /// Nodes that it was told to keep off.
    pub avoids: BTreeSet<String>,
    /// UUID of the device that it tries again, in spite of our taint.
    pub retests: Option<String>,
    /// The address at which it registers; unknown of a pod that an older version of the operator made.
    pub url: Option<String>,
    /// The registrar that its pod knows.
    pub registrar: Option<Box<KnownRegistrar>>,
    /// Whether nobody answers there any more whom its pod knows: it is another operator's address, or none of the authorities
    /// signs any more. The watch does not tell; the observation does.
    pub is_stranded: bool,
    /// What was told of it; unknown before this process has stored a status. The watch does not tell; the memory does.
    pub told: Option<Told>,
    /// Uid of the resource that owns it.
    pub owner: String,
    /// How far it had come, whoever deletes the pod since.
    pub reached: RunnerPhase,
    /// How far it has come.
    pub phase: RunnerPhase,
    /// Since when it is in that phase.
    pub since: Timestamp,
    /// What it waits for, as Kubernetes says it: a scheduler's or an image's message.
    pub waiting: Option<Waiting>,
    /// Since when its container is known to wait for that. The watch does not tell; the memory does.
    pub waiting_since: Option<Timestamp>,
    /// Where GitHub says something else of it than its pod, for how long. The watch does not tell; the memory does.
    pub doubt: Option<Doubt>,
    /// Whether the agent's process runs, online or not.
    pub agent_running: bool,
    /// Whether the gate has passed, and the registrar has changed the image for the agent's.
    pub gate_passed: bool,
    /// The agent's image, as the pod names it.
    pub image: Option<String>,
    /// UUIDs of the devices, as the gate saw them.
    pub devices: Vec<String>,
    /// Products and driver, as the gate saw them.
    pub hardware: Option<Hardware>,
    /// How it ended.
    pub end: Option<End>,
    /// Whether Kubernetes says that its pod has ended. Until then it holds its GPUs.
    pub is_over: bool,
    /// The extended resources that it holds, as its pod asks for them.
    pub devices_held: BTreeMap<String, u32>,
    /// The last job that has ended on it; known once its container has ended.
    pub done: Option<Box<EndedJob>>,
    /// The job that was under way when its container ended, as its marks name it.
    pub under_way: Option<Box<Job>>,
    /// The job that GitHub has given it, as a scale set hears it or a repository's list has it; nothing of the pod's.
    pub heard: Option<Box<Job>>,
    /// What Kubernetes says where it takes the pod away by itself.
    pub disruption: Option<Disruption>,
    /// How far its job's containers are, where jobs bring their own.
    pub job_pod: Option<Box<JobPod>>,
    /// The moments of its life, from which its hours are counted.
    pub life: Life,
}

// A cluster has thousands of them in memory: what few have is boxed.
const _: () = assert!(size_of::<Runner>() <= 1024);

/// What a stored status was planned with of a runner: that is told, whether the lists of the status have room for it or not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Told {
    /// Whether its end, as it was seen: why it failed, if it did.
    pub end: bool,
    /// Whether a failure of it that was there yet: it hung, or was late.
    pub late: bool,
    /// When the last job had ended on it.
    pub job: Option<Timestamp>,
}

/// A runner whose pod is gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Gone {
    /// The runner, as it was last seen.
    pub runner: Runner,
    /// When its pod was found to be gone.
    pub at: Timestamp,
}

/// The containers that a job brings into its runner's pod.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct JobPod {
    /// The image that the container of the GPUs was given for the job.
    pub image: Option<String>,
    /// How often that container was started again, in whichever image.
    pub starts: i32,
    /// The names of its services, in the job's order, and how far each is.
    pub services: Vec<(String, ContainerState)>,
    /// How far the job's own container is.
    pub container: Option<ContainerState>,
}

/// A word of Kubernetes' own, of the scheduler or a kubelet: none of our reasons, and tomorrow there may be others.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KubernetesWord(String);

impl KubernetesWord {
    /// The word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, word: &str) -> bool {
        self.0 == word
    }
}

impl From<&str> for KubernetesWord {
    fn from(word: &str) -> Self {
        Self(word.to_owned())
    }
}

impl fmt::Display for KubernetesWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a pod waits for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// Kubernetes' word, for example `Unschedulable` or `ImagePullBackOff`.
    pub reason: KubernetesWord,
    /// Kubernetes' sentence.
    pub message: String,
    /// The container, where one waits.
    pub container: Option<String>,
    /// Its image.
    pub image: Option<String>,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(container) = &self.container {
            write!(f, "container {container}")?;
            if let Some(image) = self.image.as_ref().filter(|image| !image.is_empty()) {
                write!(f, ", image {image}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}", self.reason)?;
        if self.message.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.message)
    }
}

/// The registrar as a pod was made with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KnownRegistrar {
    /// Its address.
    pub url: String,
    /// The authorities that sign for it, see [`authorities`].
    pub authorities: BTreeSet<u64>,
}

/// A hash of each certificate of a bundle, by which bundles are compared within a process.
#[must_use]
pub fn authorities(bundle: &str) -> BTreeSet<u64> {
    /// No bundle of ours has more.
    const MOST: usize = 8;
    const END: &str = "-----END CERTIFICATE-----";
    let all = bundle.split_inclusive(END).map(str::trim);
    let whole = all.filter(|pem| pem.ends_with(END)).take(MOST);
    let hash = |pem: &str| {
        let mut hasher = DefaultHasher::new();
        pem.hash(&mut hasher);
        hasher.finish()
    };
    whole.map(hash).collect()
}

impl Runner {
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

    /// Whether it has ended, and its pod holds its GPUs for a moment yet.
    #[must_use]
    pub fn is_ending(&self, now: Timestamp) -> bool {
        self.end.is_some() && !self.is_over && self.gone_by.is_none_or(|by| now < by)
    }

    /// Whether it registers at another address than the spec's, as far as its pod says.
    #[must_use]
    pub fn is_elsewhere(&self, spec: &Spec) -> bool {
        let url = self.url.as_ref();
        url.is_some_and(|url| *url != spec.url.to_string())
    }

    /// Whether it is what would be made now: of the spec's template, and with a registrar that answers where it needs one.
    #[must_use]
    pub fn is_current(&self, spec: &Spec) -> bool {
        // An agent that listens needs none, unless its jobs bring containers.
        let needs_registrar = !self.is_online() || self.job_pod.is_some();
        self.template == spec.template_hash && !(self.is_stranded && needs_registrar)
    }

    /// What keeps one of its containers from being made or started, an image or something else.
    #[must_use]
    pub fn container_trouble(&self) -> Option<&Waiting> {
        let waiting = self.waiting.as_ref();
        waiting.filter(|waiting| waiting.container.is_some())
    }

    /// Whether a scheduling gate keeps the scheduler from it.
    #[must_use]
    pub fn is_gated(&self) -> bool {
        let waiting = self.waiting.as_ref();
        self.phase == RunnerPhase::Unscheduled
            && waiting.is_some_and(|waiting| waiting.reason.is(SCHEDULING_GATED))
    }

    /// Whether the agent is connected to GitHub.
    #[must_use]
    pub fn is_online(&self) -> bool {
        matches!(self.phase, RunnerPhase::Idle | RunnerPhase::Busy)
    }
}

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
    pub reason: Reason,
    /// Who has to act.
    pub class: Class,
    /// The driver's code, or a container's exit code.
    pub code: Option<i32>,
    /// Name of the driver's code, or of what the gate found.
    pub code_name: Option<String>,
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
    /// Whether the gate saw that other pods use the device too.
    pub shared: bool,
    /// The agent's version, where GitHub refused it.
    pub refused: Option<RefusedVersion>,
}

impl Failure {
    /// One that is no device's and no version's.
    #[must_use]
    pub fn new(
        reason: Reason,
        class: Class,
        message: String,
        at: Timestamp,
        registered: bool,
    ) -> Self {
        Self {
            reason,
            class,
            code: None,
            code_name: None,
            device: None,
            message,
            at,
            registered,
            at_start: false,
            shared: false,
            refused: None,
        }
    }

    /// Whether the gate found this.
    #[must_use]
    pub fn is(&self, finding: Finding) -> bool {
        self.code_name.as_deref() == Some(finding.name())
    }

    /// The end of a pod that somebody deleted by force: nobody saw its containers end.
    #[must_use]
    pub fn deleted(runner: &Runner, now: Timestamp) -> Option<Self> {
        let (reason, what) = match runner.reached {
            RunnerPhase::Idle | RunnerPhase::Finished | RunnerPhase::Failed => return None,
            RunnerPhase::Busy => (
                Reason::JobCutShort,
                "in the middle of a job; GitHub fails that after a while",
            ),
            _ => (
                Reason::PodDeleted,
                "before its agent was online. If that goes on, look for who deletes pods here: a descheduler, a preemption, a clean-up of the namespace",
            ),
        };
        let by = runner.disruption.as_ref();
        let by = by.map_or_else(String::new, |by| {
            format!(" ({}: {})", by.reason, by.message)
        });
        let message = format!("The pod was deleted{by}, not by this operator, {what}.");
        Some(Self::new(reason, Class::Transient, message, now, true))
    }

    /// Whether it is worth a word even of a runner that is leaving: nobody here asked for it.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        matches!(
            self.reason,
            Reason::JobCutShort
                | Reason::Evicted
                | Reason::NodeLost
                | Reason::PodDeleted
                | Reason::PodRejected
        )
    }
}

/// A version of the agent that GitHub refused, in the agent's words.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RefusedVersion {
    /// The version.
    pub version: Option<String>,
    /// The least that would do.
    pub minimum: Option<String>,
}

/// A job, as the hooks noted it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct Job {
    /// The job's id in its workflow.
    pub job: String,
    /// Id of the workflow run.
    pub run: String,
    /// Which attempt of that run.
    pub attempt: String,
    /// Name of the workflow.
    pub workflow: String,
    /// `OWNER/NAME`.
    pub repository: String,
    /// When the hook ran, in seconds since 1970.
    pub at: String,
}

impl Job {
    /// What GitHub says of it to whoever listens.
    #[must_use]
    pub fn heard(job: &JobOf) -> Self {
        let heard = Self {
            job: job.name.clone(),
            run: job.run.to_string(),
            repository: job.repository.clone(),
            ..Self::default()
        };
        heard.bounded()
    }

    /// With every field cut to a name's length, and without what a terminal would trip over.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            job: bounded(&self.job),
            run: bounded(&self.run),
            attempt: bounded(&self.attempt),
            workflow: bounded(&self.workflow),
            repository: bounded(&self.repository),
            at: bounded(&self.at),
        }
    }

    /// When the hook ran, if that can be.
    #[must_use]
    pub fn time(&self, after: Timestamp, before: Timestamp) -> Option<Timestamp> {
        let at = Timestamp::from_second(self.at.parse().ok()?).ok()?;
        (after <= at && at <= before).then_some(at)
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "job {} of run {} in {}",
            self.job, self.run, self.repository
        )
    }
}

/// A name without what a terminal or a sentence would trip over.
fn bounded(text: &str) -> String {
    clean(text, LONGEST_NAME)
}

/// A job that has ended on a runner, whatever became of either.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndedJob {
    /// The job.
    pub job: Job,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
    /// Why the pool did not take it, where it was ended before its first step.
    pub refused: Option<String>,
    /// What its GPUs did, as the pod says it.
    pub gpus: Vec<GpuUsage>,
    /// The minutes that it was allowed, where it was ended because it took longer.
    pub exceeded_minutes: Option<i32>,
}

/// What Kubernetes says of a pod that it takes away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disruption {
    /// Kubernetes' word, see
    /// <https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions>.
    pub reason: KubernetesWord,
    /// Kubernetes' sentence.
    pub message: String,
    /// Since when.
    pub at: Option<Timestamp>,
    /// Whether what the pod itself has used may be the cause: a node that is short of something evicts whoever has most.
    pub by_own_use: bool,
}

/// The failure of a runner whose node never confirmed that the pod is gone, once its time for that is over.
#[must_use]
pub fn unconfirmed(runner: &Runner, observed: &Observed, now: Timestamp) -> Option<Failure> {
    let disruption = runner.disruption.as_ref()?;
    let at = observed.lost_by(runner).filter(|by| *by <= now)?;
    let message = lost(
        &format!("{}: {}", disruption.reason, disruption.message),
        " If its runner had a job, GitHub fails that after a while.",
    );
    Some(Failure::new(
        Reason::NodeLost,
        Class::Node,
        message,
        at,
        true,
    ))
}

/// The sentence of a runner whose node stopped answering.
#[must_use]
pub fn lost(message: &str, cut_text: &str) -> String {
    format!("The node stopped answering ({message}).{cut_text}")
}
