//! The seam between the registrar and the rest of the operator.

use std::{future::Future, time::Duration};

use gate_report::Report;
use secrecy::SecretString;

use super::{Decision, PodIdentity, Policy};
use cuda_runner_plan::model::key::PoolKey;

/// What the registrar asks the rest of the operator.
///
/// The registrar has checked the identity before it asks anything here, and calls [`register`](Self::register) at
/// most once for a pod, or again after an error.
pub trait Backend: Send + Sync + 'static {
    /// Whose runner the pod is. Answered from stores, without a request.
    ///
    /// Names come back with other pods in them: compare [`PodIdentity::uid`], too.
    fn runner(&self, pod: &PodIdentity) -> impl Future<Output = RunnerLookup> + Send;

    /// Lets the runner in: its container goes on with the agent's image. Where it does already, nothing is done.
    fn let_in(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
    ) -> impl Future<Output = Result<(), RegisterError>> + Send;

    /// Registers the runner with GitHub.
    fn register(
        &self,
        pod: &PodIdentity,
        runner: &KnownRunner,
    ) -> impl Future<Output = Result<Registration, RegisterError>> + Send;

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
    /// Whether its container has that image.
    pub let_in: bool,
}

/// Whose runner a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunnerLookup {
    /// The stores have not caught up: ask again soon.
    NotYetKnown,
    /// No pod of ours.
    Unknown,
    /// The pod, or its pool, is being removed.
    Closing,
    /// A runner of ours that has been online: it had its registration, whatever the books say.
    Served,
    /// A runner of ours.
    Known(KnownRunner),
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
