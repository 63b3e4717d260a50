//! Where reasons stand, and what the catalogue says of each.

use std::fmt;

use super::Reason;
use crate::kind;

/// Where a reason is said first. Others repeat it: see [`Entry::may_stand_in`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// A condition of the pool of this type; there is an Event when it changes.
    Condition(&'static str),
    /// A runner that failed, in the status and in an Event.
    Failure,
    /// An Event alone.
    Event,
    /// The condition that marks a node.
    Node,
}

/// The part of the guide in which a reason is explained.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Section {
    /// No operator has seen the pool.
    Unseen,
    /// The spec.
    Spec,
    /// Credentials, and the way to GitHub.
    GitHub,
    /// Pods that do not start.
    Pods,
    /// A pool that is not ready.
    Pool,
    /// The gate, and nodes that failed it.
    Gate,
    /// The agent.
    Agent,
    /// The queue, and the scale set.
    Queue,
    /// Jobs that are run again.
    Rerun,
    /// Verification and required checks.
    Verification,
    /// Deletion.
    Deletion,
    /// All is well, or on its way.
    Well,
}

/// A reason, with what is to be known of it.
#[derive(Debug)]
pub struct Entry {
    /// The reason.
    pub reason: Reason,
    /// Its word.
    pub word: &'static str,
    /// Where it is explained.
    pub section: Section,
    /// Where it is said.
    pub places: &'static [Place],
    /// What it means.
    pub means: &'static str,
    /// What to do; none where it is no trouble.
    pub advice: Option<&'static str>,
}

impl Section {
    /// All sections, in the order of the guide.
    pub const ALL: [Self; 12] = [
        Self::Unseen,
        Self::Spec,
        Self::GitHub,
        Self::Pods,
        Self::Pool,
        Self::Gate,
        Self::Agent,
        Self::Queue,
        Self::Rerun,
        Self::Verification,
        Self::Deletion,
        Self::Well,
    ];
}

impl Entry {
    /// Whether a condition of the pool may give this reason, first or as a repetition: `Ready` sums up others, and what
    /// keeps runners away shows in `RunnersOnline` and, where a person has to act, in `Stalled`.
    #[must_use]
    pub fn may_stand_in(&self, type_: &str) -> bool {
        let is_in = |type_: &str| {
            let mut places = self.places.iter();
            places.any(|place| matches!(place, Place::Condition(of) if *of == type_))
        };
        let keeps_runners_away = self.advice.is_some()
            && (self.places.contains(&Place::Failure) || is_in(kind::CREDENTIALS_VALID));
        let is_online = is_in(kind::RUNNERS_ONLINE) || keeps_runners_away;
        let is_stalled = is_in(kind::STALLED) || keeps_runners_away;
        match type_ {
            kind::READY => {
                is_in(kind::READY) || is_online || is_stalled || is_in(kind::CREDENTIALS_VALID)
            }
            kind::STALLED => is_stalled,
            kind::RUNNERS_ONLINE => is_online,
            _ => is_in(type_),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition(type_) => write!(f, "`{type_}`"),
            Self::Failure => f.write_str("`lastFailures`"),
            Self::Event => f.write_str("an Event"),
            Self::Node => f.write_str("`CudaSmoke` of a node"),
        }
    }
}
