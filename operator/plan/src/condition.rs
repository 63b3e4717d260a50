//! One condition: its types, what it says, and how it is set.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{health, shown};

/// Condition types of a pool.
pub mod kind {
    /// The pool does what was asked. Read by kstatus.
    pub const READY: &str = "Ready";
    /// Somebody has to change something. Read by kstatus.
    pub const STALLED: &str = "Stalled";
    /// GitHub accepts the credentials.
    pub const CREDENTIALS_VALID: &str = "CredentialsValid";
    /// The gate passes.
    pub const GPU_HEALTHY: &str = "GpuHealthy";
    /// Runners are connected to GitHub.
    pub const RUNNERS_ONLINE: &str = "RunnersOnline";
    /// Every queued job that looks for runners like ours finds some.
    pub const QUEUE_SERVED: &str = "QueueServed";
    /// The verification is green.
    pub const WORKFLOW_VERIFIED: &str = "WorkflowVerified";
    /// The verified jobs are required.
    pub const CHECKS_REQUIRED: &str = "ChecksRequired";
    /// Every field of the spec is acted on.
    pub const SPEC_SUPPORTED: &str = "SpecSupported";
    /// All of them.
    pub const ALL: [&str; 9] = [
        READY,
        STALLED,
        CREDENTIALS_VALID,
        GPU_HEALTHY,
        RUNNERS_ONLINE,
        QUEUE_SERVED,
        WORKFLOW_VERIFIED,
        CHECKS_REQUIRED,
        SPEC_SUPPORTED,
    ];
}

/// What a condition says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ConditionState {
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
}

pub(super) fn condition_state(
    status: &'static str,
    reason: &str,
    message: impl Into<String>,
) -> ConditionState {
    ConditionState {
        status,
        reason: reason.to_owned(),
        message: message.into(),
    }
}

/// The status with which a condition of this type reports trouble.
#[must_use]
pub fn bad_status(type_: &str) -> &'static str {
    if type_ == kind::STALLED {
        "True"
    } else {
        "False"
    }
}

/// Sets a condition; the transition time moves only with the status. Where the sentence is Kubernetes' own, its counts
/// alone are no news.
pub(super) fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    said: ConditionState,
    generation: i64,
    now: Timestamp,
) {
    let before = conditions.iter().find(|c| c.type_ == type_);
    let before = before.filter(|c| {
        c.status == said.status
            && c.reason == said.reason
            && c.observed_generation == Some(generation)
            && health::is_kubernetes_word(&c.reason)
    });
    let message = shown::steady(before.map(|c| c.message.as_str()), said.message);
    let new = Condition {
        type_: type_.to_owned(),
        status: said.status.to_owned(),
        reason: said.reason,
        message,
        observed_generation: Some(generation),
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(old) if old.status == new.status => {
            let since = old.last_transition_time.clone();
            *old = Condition {
                last_transition_time: since,
                ..new
            };
        }
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}
