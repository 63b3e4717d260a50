//! A `CudaRunner`, validated once: later steps cannot fail on it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cudarunner_crds::{
    Arch, ContainerResources, CudaRunner, CudaRunnerSpec, CudaRunnerStatus, DeletionPolicy,
    Enforcement, Gpu, JobContainers, KeyReference, Lifetime, RequiredChecks, Rerun, ScalingSource,
    Smoke, Telemetry, Verify,
};
use gate_report::allow::Policy;
use gate_report::contract::gate;
use gate_report::preflight::Wanted;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::{Resource as _, ResourceExt as _};

mod fields;
pub mod owned;
mod template;

/// The label, on GitHub's entries, by which a pool knows its own: this and the first part of the pool's uid.
const OWNERSHIP_PREFIX: &str = "cudarunner-";
/// The length of that part, in hexadecimal digits.
const OWNERSHIP_DIGITS: usize = 8;

use fields::{
    gate_settings, job_containers, max_job_minutes, needs, proxy, read_allow, read_gpu,
    read_preflight, registration, schedule, size, teardown_timeout, telemetry, verify_every,
    webhook,
};

use super::github::Repository;
pub use super::key::PoolKey;
use super::observed::NodeFacts;
use super::proxy::{Proxy, ProxyError};
use super::url::{GitHubUrl, Scope, UrlError};
use crate::reason::Reason;
use crate::schedule::Window;
use crate::shares::Needs;
pub(crate) use fields::repository;

/// A pool as the steps of a reconcile see it.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Namespace and name.
    pub key: PoolKey,
    /// Uid of the resource.
    pub uid: String,
    /// Generation of the resource that this was read from.
    pub generation: i64,
    /// When the resource was created.
    pub created: Timestamp,
    /// Since when the resource is being deleted.
    pub deleting: Option<Timestamp>,
    /// Whether our finalizer is on the resource.
    pub finalizer: bool,
    /// All finalizers on the resource.
    pub finalizers: Vec<String>,
    /// Version of the resource that this was read from.
    pub resource_version: Option<String>,
    /// Value of the annotation that asks for another look at GitHub.
    pub look_again: Option<String>,
    /// Value of the annotation that ends quarantines.
    pub release: Option<String>,
    /// Value of the annotation that asks for another verification.
    pub verify_asked: Option<String>,
    /// What becomes of running jobs at the end.
    pub deletion_policy: DeletionPolicy,
    /// How long a deletion may take.
    pub teardown_timeout: SignedDuration,
    /// The status as last found.
    pub status: CudaRunnerStatus,
    /// The status that was found instead, where it speaks of another resource.
    pub foreign: Option<Arc<CudaRunnerStatus>>,
    /// What the user asks for, or why it cannot be done.
    pub spec: Result<Arc<Spec>, SpecError>,
}

/// A spec that can be carried out.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Where runners register.
    pub url: GitHubUrl,
    /// Name of the Secret with the credentials.
    pub secret: String,
    /// The ConfigMap's key with certificate authorities.
    pub ca_bundle: Option<KeyReference>,
    /// The proxy on the way to GitHub.
    pub proxy: Option<Proxy>,
    /// Name of the runner group.
    pub runner_group: Option<String>,
    /// Labels that jobs ask for.
    pub labels: Vec<String>,
    /// How runners register.
    pub registration: RegistrationKind,
    /// Whether runners keep their name, and run many jobs.
    pub persistent: bool,
    /// How many runners there are.
    pub size: Size,
    /// The architecture of its nodes.
    pub arch: Arch,
    /// Windows of time in which more runners wait.
    pub schedule: Vec<Window>,
    /// The webhook by which GitHub says that jobs wait.
    pub webhook: Option<Webhook>,
    /// GPUs of one runner.
    pub gpu: GpuRequest,
    /// What the gate demands.
    pub gate: GateSettings,
    /// What the runner's image and network must offer.
    pub preflight: Option<Wanted>,
    /// Which jobs it takes, where not all.
    pub allow: Option<Policy>,
    /// Whether it is looked at what GPUs do during jobs.
    pub telemetry: Telemetry,
    /// How many minutes a job may take, where there is a limit.
    pub max_job_minutes: Option<u32>,
    /// The size of `/dev/shm` where jobs run, where it is not the node's.
    pub shared_memory: Option<String>,
    /// The containers that jobs bring, where they may.
    pub job_containers: Option<JobContainers>,
    /// What the gate may use, where it is not the operator's own numbers.
    pub gate_resources: Option<ContainerResources>,
    /// How long a node that failed is quarantined, the first time.
    pub quarantine: SignedDuration,
    /// The user's template.
    pub template: PodTemplateSpec,
    /// Changes when a pod made from this spec would differ.
    pub template_hash: String,
    /// What it needs of the GPUs that pools share; `None` where devices are claimed.
    pub needs: Option<Arc<Needs>>,
    /// The workflow that proves the pool.
    pub verify: Option<Verify>,
    /// How long after a verification the next one runs.
    pub verify_every: Option<SignedDuration>,
    /// The repository with that workflow, where it is known.
    pub repository: Option<Repository>,
    /// Where its jobs become required.
    pub required_checks: Option<RequiredChecks>,
    /// Which jobs are run again.
    pub rerun: Option<Rerun>,
}

/// How a runner of the pool becomes known to GitHub.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RegistrationKind {
    /// By a just-in-time configuration.
    JitConfig,
    /// By a registration token and `config.sh`.
    Token,
    /// By a just-in-time configuration of the pool's scale set.
    ScaleSet,
}

impl RegistrationKind {
    /// For the fingerprint of pods, which an upgrade of the operator does not change.
    fn shape(self) -> serde_json::Value {
        match self {
            Self::JitConfig => false.into(),
            Self::Token => true.into(),
            Self::ScaleSet => "ScaleSet".into(),
        }
    }
}

/// How many runners a pool has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size {
    /// Runners that are there whatever waits.
    pub min: usize,
    /// Runners at most.
    pub max: usize,
}

impl Size {
    /// Whether the number follows the queue.
    #[must_use]
    pub fn is_elastic(&self) -> bool {
        self.min < self.max
    }
}

/// A webhook that wakes a pool.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Webhook {
    /// Name of the Secret with its secret; `None` where the operator makes one.
    pub secret: Option<String>,
}

/// The agent's folder for the files of jobs, below its own.
pub const WORK_FOLDER: &str = "_work";

/// GPUs of one runner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum GpuRequest {
    /// So many of an extended resource.
    Resource {
        /// Its name.
        name: String,
        /// How many.
        count: u32,
    },
    /// What this ResourceClaimTemplate asks for. How many devices that is, is the template's to know.
    Claim(String),
}

impl GpuRequest {
    /// How many devices a runner has, where that is known.
    #[must_use]
    pub fn count(&self) -> Option<u32> {
        match self {
            Self::Resource { count, .. } => Some(*count),
            Self::Claim(_) => None,
        }
    }

    /// The extended resource that it is of, where it is of one.
    #[must_use]
    pub fn resource_name(&self) -> Option<&str> {
        match self {
            Self::Resource { name, .. } => Some(name),
            Self::Claim(_) => None,
        }
    }

    /// For the fingerprint of pods. A resource's name has a slash, a template's none.
    fn shape(&self) -> (&str, u32) {
        match self {
            Self::Resource { name, count } => (name, *count),
            Self::Claim(template) => (template, 0),
        }
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource { name, count } => write!(f, "{count} x {name}"),
            Self::Claim(template) => write!(f, "claim {template}"),
        }
    }
}

/// What the gate demands of the devices.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GateSettings {
    /// `MAJOR.MINOR`.
    pub min_compute_capability: String,
    /// `MAJOR.MINOR`.
    pub min_cuda_version: String,
    /// Whether concurrent managed access is demanded.
    pub managed_memory: Enforcement,
    /// Percent of a device's memory that must be free.
    pub min_free_memory_percent: u32,
    /// Whether the devices must reach one another's memory.
    pub peer_access: Enforcement,
    /// Seconds for the whole test.
    pub timeout_seconds: u32,
}

/// Why a spec cannot be carried out: for the condition `Stalled`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SpecError {
    /// The address is of no use.
    #[error("spec.github.url: {0}")]
    Url(#[from] UrlError),
    /// The proxy is of no use.
    #[error("spec.github.proxy.url: {0}")]
    Proxy(#[from] ProxyError),
    /// The template is no pod template, or takes what is the operator's.
    #[error("spec.template{0}")]
    Template(String),
    /// A window of time is of no use.
    #[error("spec.scaling.schedule{0}")]
    Schedule(String),
    /// The queue cannot be read there.
    #[error(
        "spec.scaling.source: {0:?} reads the queue of a repository, and GitHub lists none for {1}; set spec.scaling.source to ScaleSet"
    )]
    NoQueue(ScalingSource, Scope),
}

impl SpecError {
    /// The condition's reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Url(_) => Reason::InvalidUrl,
            Self::Proxy(_) => Reason::InvalidProxy,
            Self::Template(_) => Reason::InvalidTemplate,
            Self::Schedule(_) => Reason::InvalidSchedule,
            Self::NoQueue(..) => Reason::NoQueue,
        }
    }
}

/// The status of a resource, and what was found instead where that speaks of another one: a backup that was restored in another
/// cluster brings it. What it names is the other resource's. Who serves the pool is the operators' to say, and stays. A status
/// without a uid is of an older version.
fn own_status(resource: &CudaRunner) -> (CudaRunnerStatus, Option<Arc<CudaRunnerStatus>>) {
    let status = resource.status.clone().unwrap_or_default();
    let is_own = status.uid.is_none() || status.uid == resource.meta().uid;
    if is_own {
        return (status, None);
    }
    let fresh = CudaRunnerStatus {
        operator: status.operator.clone(),
        ..CudaRunnerStatus::default()
    };
    (fresh, Some(Arc::new(status)))
}

/// The ownership label of another pool on an entry with these labels. `None` where the entry has ours, or none at all: labels
/// can be edited on GitHub, so one without is known by its name alone.
#[must_use]
pub fn another_owner<'a>(labels: &'a [String], own: &str) -> Option<&'a str> {
    let is_ownership = |label: &&String| {
        let digits = label.strip_prefix(OWNERSHIP_PREFIX);
        digits.is_some_and(|digits| {
            digits.len() == OWNERSHIP_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    let is_ours = labels.iter().any(|label| label == own);
    let other = labels.iter().find(is_ownership).filter(|_| !is_ours);
    other.map(String::as_str)
}

/// The finalizer that holds a resource until its runners are gone from GitHub.
pub const FINALIZER: &str = "cudarunner.dev/teardown";

impl Pool {
    /// Reads a resource. Never fails as a whole: a spec that cannot be carried out still can be torn down.
    #[must_use]
    pub fn read(resource: &CudaRunner, insecure_github: bool) -> Self {
        let spec = Spec::read(resource, insecure_github).map(Arc::new);
        Self::with(resource, spec)
    }

    /// The same with a spec that was read before.
    #[must_use]
    pub fn with(resource: &CudaRunner, spec: Result<Arc<Spec>, SpecError>) -> Self {
        let meta = resource.meta();
        let (status, foreign) = own_status(resource);
        Self {
            key: PoolKey {
                namespace: resource.namespace().unwrap_or_default(),
                name: resource.name_any(),
            },
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            created: meta
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            deleting: meta.deletion_timestamp.as_ref().map(|t| t.0),
            finalizers: resource.finalizers().to_vec(),
            resource_version: meta.resource_version.clone(),
            finalizer: resource.finalizers().iter().any(|f| f == FINALIZER),
            look_again: resource
                .annotations()
                .get(cudarunner_crds::LOOK_AGAIN)
                .cloned(),
            release: resource
                .annotations()
                .get(cudarunner_crds::RELEASE)
                .cloned(),
            verify_asked: resource.annotations().get(cudarunner_crds::VERIFY).cloned(),
            deletion_policy: resource.spec.deletion_policy,
            teardown_timeout: teardown_timeout(&resource.spec.teardown_timeout),
            status,
            foreign,
            spec,
        }
    }

    /// The spec, to be changed by tests.
    #[cfg(any(test, feature = "fixture"))]
    #[expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "for tests")]
    pub fn spec_mut(&mut self) -> &mut Spec {
        Arc::make_mut(self.spec.as_mut().unwrap())
    }

    /// The label by which this pool knows its entries on GitHub.
    #[must_use]
    pub fn ownership_label(&self) -> String {
        format!("{OWNERSHIP_PREFIX}{}", self.short_uid())
    }

    /// The pool of which the status speaks that was found here instead of ours.
    #[must_use]
    pub(crate) fn original(&self) -> Option<Self> {
        let foreign = self.foreign.as_deref()?;
        Some(Self {
            uid: foreign.uid.clone().unwrap_or_default(),
            status: foreign.clone(),
            foreign: None,
            ..self.clone()
        })
    }

    /// All labels of the pool's entries on GitHub.
    #[must_use]
    pub fn registered_labels(&self, spec: &Spec) -> Vec<String> {
        let mut labels = spec.labels.clone();
        labels.push(self.ownership_label());
        labels
    }

    /// The name of the pool's scale set: of a namesake in another cluster it is another.
    #[must_use]
    pub fn scale_set_name(&self) -> String {
        format!("{}-{}", self.key.name, self.short_uid())
    }

    fn short_uid(&self) -> &str {
        self.uid.split('-').next().unwrap_or_default()
    }
}

impl Spec {
    /// Reads the spec of a resource.
    pub fn read(resource: &CudaRunner, insecure_github: bool) -> Result<Self, SpecError> {
        let spec = &resource.spec;
        let url = GitHubUrl::parse(&spec.github.url, insecure_github)?;
        let proxy = proxy(spec)?;
        let gpu = read_gpu(&spec.gpu);
        let rest = template::Rest {
            arch: spec.arch,
            gpu: &gpu,
            proxy: proxy.is_some(),
            authorities: spec.github.ca_bundle_ref.is_some(),
            job_containers: spec.job_containers.is_some(),
            shared_memory: spec.shared_memory.as_deref(),
        };
        // Nothing is made of a pool that goes: the way to GitHub is enough to undo what was made.
        let goes = resource.meta().deletion_timestamp.is_some();
        let template = template::read(spec.template.as_ref(), rest).map_err(SpecError::Template);
        let template = unless(goes, template)?;
        let persistent = spec.lifetime == Lifetime::Persistent;
        let registration = registration(spec, persistent);
        let size = size(spec.replicas, spec.scaling.as_ref());
        let reads_queue = size.is_elastic() && registration != RegistrationKind::ScaleSet;
        if let Some(scaling) = spec.scaling.as_ref().filter(|_| reads_queue && !goes)
            && !url.is_repository()
        {
            return Err(SpecError::NoQueue(scaling.source, url.scope().clone()));
        }
        let mut read = Self {
            secret: spec.github.credentials_ref.name.clone(),
            ca_bundle: spec.github.ca_bundle_ref.clone(),
            proxy,
            runner_group: spec.github.runner_group.clone(),
            labels: resource.runner_labels(),
            registration,
            persistent,
            size,
            schedule: unless(goes, schedule(spec.scaling.as_ref()))?,
            webhook: webhook(spec.scaling.as_ref()),
            quarantine: SignedDuration::from_mins(i64::from(spec.smoke.quarantine_minutes.max(1))),
            repository: repository(spec.verify.as_ref(), &url),
            verify: spec.verify.clone(),
            verify_every: verify_every(spec.verify.as_ref()),
            required_checks: spec.required_checks.clone(),
            rerun: spec.rerun.clone(),
            template_hash: String::new(),
            needs: needs(&template, spec, &gpu, (registration, size)),
            url,
            arch: spec.arch,
            gpu,
            gate: gate_settings(&spec.gpu, &spec.smoke),
            gate_resources: spec.smoke.resources.clone(),
            allow: read_allow(spec),
            telemetry: telemetry(spec),
            max_job_minutes: max_job_minutes(spec),
            job_containers: job_containers(spec),
            shared_memory: spec.shared_memory.clone(),
            preflight: spec.preflight.as_ref().map(read_preflight),
            template,
        };
        read.template_hash = fingerprint(&read.shape(spec));
        Ok(read)
    }

    /// Everything that decides how a pod looks, as text. `spec` is what this was read from.
    fn shape(&self, spec: &CudaRunnerSpec) -> String {
        let gate = &self.gate;
        let authorities = spec.github.ca_bundle_ref.as_ref();
        let shape = (
            (self.persistent, self.registration.shape()),
            self.url.to_string(),
            &spec.labels,
            &spec.github.runner_group,
            authorities.map(|r| (&r.name, &r.key)),
            self.gpu.shape(),
            (
                &gate.min_compute_capability,
                &gate.min_cuda_version,
                gate.managed_memory == Enforcement::Require,
                gate.timeout_seconds,
            ),
            &spec.template,
            spec.github.proxy.as_ref(),
            &self.preflight,
        );
        let mut shape = serde_json::to_string(&shape).unwrap_or_default();
        // Fields that older versions did not have: with their defaults no pod is made anew.
        let demands = (gate.min_free_memory_percent, gate.peer_access);
        let default = gate_settings(&Gpu::default(), &Smoke::default());
        if demands != (default.min_free_memory_percent, default.peer_access) {
            shape += &serde_json::to_string(&demands).unwrap_or_default();
        }
        if let Some(resources) = &spec.smoke.resources {
            shape += &serde_json::to_string(resources).unwrap_or_default();
        }
        if let Some(containers) = &spec.job_containers {
            shape += &serde_json::to_string(containers).unwrap_or_default();
        }
        if let Some(allow) = &self.allow {
            shape += &serde_json::to_string(allow).unwrap_or_default();
        }
        if self.arch != Arch::default() {
            shape += self.arch.as_str();
        }
        if self.telemetry == Telemetry::Disabled {
            shape += gate::TELEMETRY;
        }
        if let Some(size) = &self.shared_memory {
            shape += " shared memory: ";
            shape += size;
        }
        if let Some(minutes) = self.max_job_minutes {
            shape += " minutes of a job: ";
            shape += &minutes.to_string();
        }
        shape
    }
}

impl Spec {
    /// Whether the pool's pods may go to a node by its labels, as far as the architecture and the template's node selector say.
    #[must_use]
    pub fn selects(&self, node: &NodeFacts) -> bool {
        let template = self.template.spec.as_ref();
        let selector = template.and_then(|t| t.node_selector.as_ref());
        let mut selector = selector.into_iter().flatten();
        self.is_for(node) && selector.all(|(label, value)| node.labels.get(label) == Some(value))
    }

    /// Whether a node has the pool's architecture.
    #[must_use]
    pub fn is_for(&self, node: &NodeFacts) -> bool {
        node.is_of(self.arch)
    }

    /// Whether the number of runners follows the queue as it is read.
    #[must_use]
    pub fn reads_queue(&self) -> bool {
        self.size.is_elastic() && self.registration != RegistrationKind::ScaleSet
    }
}

/// What was read, or nothing of it where it is of no use any more.
fn unless<T: Default, E>(is_of_no_use: bool, read: Result<T, E>) -> Result<T, E> {
    read.or_else(|error| {
        if is_of_no_use {
            Ok(T::default())
        } else {
            Err(error)
        }
    })
}

/// A short, stable fingerprint (FNV-1a, 64 bits): for telling templates apart, never for security.
#[must_use]
pub fn fingerprint(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Labels of a pool's runner pods.
#[must_use]
pub fn labels_of(key: &PoolKey) -> BTreeMap<String, String> {
    cudarunner_crds::pod_labels(&key.name)
}

#[cfg(test)]
mod tests;
