//! One condition: what it says, and how it is set.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::reason::Stored;
use super::{health, shown};

pub use super::kind;

/// What a condition says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ConditionState {
    pub(super) status: &'static str,
    pub(super) reason: Stored,
    pub(super) message: String,
}

pub(super) fn condition_state(
    status: &'static str,
    reason: impl Into<Stored>,
    message: impl Into<String>,
) -> ConditionState {
    ConditionState {
        status,
        reason: reason.into(),
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
            && c.reason == said.reason.as_str()
            && c.observed_generation == Some(generation)
            && said.reason.known().is_some_and(health::is_kubernetes_word)
    });
    let message = shown::steady(before.map(|c| c.message.as_str()), said.message);
    let new = Condition {
        type_: type_.to_owned(),
        status: said.status.to_owned(),
        reason: said.reason.into(),
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
