//! The seam between the registrar and the rest of the operator.

use std::{future::Future, time::Duration};

use cudarunner_crds::JobContainers;
use gate_report::Report;
use gate_report::wire::JobContainer;
use k8s_openapi::api::core::v1::SecurityContext;
use secrecy::SecretString;

use super::{Decision, PodIdentity, Policy};
use cuda_runner_plan::model::key::PoolKey;
use cuda_runner_plan::model::runner::JobPod;

/// What the registrar asks the rest of the operator.
///
/// The registrar has checked the identity before it asks anything here, and calls [`register`](Self::register) at
/// most once for a pod, or again after an error.
pub trait Backend: Send + Sync + 'static {
    /// Whose runner the pod is. Answered from stores, without a request.
    ///
    /// Names come back with other pods in them: compare [`PodIdentity::uid`], too.
    fn runner(&self, pod: &PodIdentity) -> impl Future<Output = RunnerLookup> + Send;

    /// Lets the runner in, of whose report this is the summary: its container goes on with the agent's image or, where jobs
    /// bring their containers, its pod says that the gate has passed. Where it does already, nothing is done.
    fn let_in(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
        summary: &str,
    ) -> impl Future<Output = Result<(), RegisterError>> + Send;

    /// Registers the runner with GitHub.
    fn register(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
    ) -> impl Future<Output = Result<Registration, RegisterError>> + Send;

    /// Whose pod asks for a job's container. Answered from stores; a runner that is online is no less known for that.
    fn job_runner(&self, pod: &PodIdentity)
    -> impl Future<Output = RunnerLookup<JobRunner>> + Send;

    /// Brings a job's container into its runner's pod, and the job's services. Safe to repeat.
    fn bring(
        &self,
        pod: &PodIdentity,
        runner: &JobRunner,
        wanted: &JobContainer,
    ) -> impl Future<Output = Result<(), RegisterError>> + Send;

    /// Takes notice of a report, good or bad, and of what was decided on it. Comes before anything else is done.
    fn note_report(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
        report: &Report,
        decision: &Decision,
    ) -> impl Future<Output = ()> + Send;
}

/// A pod that is a runner of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRunner {
    /// Its pool.
    pub pool: PoolKey,
    /// What its report must show.
    pub policy: Policy,
    /// The agent's image, as its pod names it.
    pub image: Option<String>,
    /// Whether its container has that image, or its pod says that the gate has passed.
    pub let_in: bool,
    /// Whether jobs bring their containers.
    pub takes_containers: bool,
    /// Whether the GPUs of its node are shared with other pods.
    pub shared: bool,
}

/// A pod into which a job may bring its container.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRunner {
    /// Its pool.
    pub pool: PoolKey,
    /// Whether its gate has passed.
    pub let_in: bool,
    /// How far its job's containers are.
    pub pod: JobPod,
    /// What the pool says of such containers.
    pub containers: JobContainers,
    /// Their rights, where the pool's template says some.
    pub rights: Option<SecurityContext>,
}

/// Whose runner a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerLookup<T = KnownRunner> {
    /// The stores have not caught up: ask again soon.
    NotYetKnown,
    /// No pod of ours.
    Unknown,
    /// The pod, or its pool, is being removed.
    Closing,
    /// A runner of ours that has been online: it had its registration, whatever the books say.
    Served,
    /// A runner of ours.
    Known(T),
}

impl<T> RunnerLookup<T> {
    /// The same of something else, where the pod is known.
    pub fn and_then<U>(self, next: impl FnOnce(T) -> RunnerLookup<U>) -> RunnerLookup<U> {
        match self {
            Self::Known(found) => next(found),
            Self::NotYetKnown => RunnerLookup::NotYetKnown,
            Self::Unknown => RunnerLookup::Unknown,
            Self::Closing => RunnerLookup::Closing,
            Self::Served => RunnerLookup::Served,
        }
    }
}

/// What makes a pod a runner on GitHub.
#[derive(Clone, Debug)]
pub enum Registration {
    /// A JIT configuration, base64.
    JitConfig(SecretString),
    /// A registration token, for `config.sh`.
    RegistrationToken(SecretString),
}

/// Why there is no registration, or no image for it. The words go to the gate, and so into the pod's status: no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Not now.
    #[error("{message}")]
    Retry {
        /// When to ask again.
        after: Duration,
        /// One word in `PascalCase`, for machines.
        reason: String,
        /// One sentence, for people.
        message: String,
    },
    /// Never.
    #[error("{message}")]
    Refused {
        /// One word in `PascalCase`, for machines.
        reason: String,
        /// One sentence, for people.
        message: String,
    },
}
