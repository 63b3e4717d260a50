//! Runner scale sets, their sessions, and what their listeners still have to hear.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Scope, runners::covers};

/// A runner scale set.
#[derive(Debug)]
pub struct ScaleSet {
    /// Its number.
    pub id: u64,
    /// Where it belongs.
    pub scope: Scope,
    /// Its name, unique in its group.
    pub name: String,
    /// Its runner group; 1 in repositories.
    pub group: u64,
    /// Its labels.
    pub labels: Vec<ScaleSetLabel>,
    /// Its runners do not update themselves.
    pub disable_update: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// The open session.
    pub session: Option<MessageSession>,
    /// Changes of jobs that no message tells of yet.
    pub changes: VecDeque<JobChange>,
    /// Messages that were not acknowledged, by number: their bodies.
    pub messages: BTreeMap<u64, String>,
    /// Number of the last message.
    pub last_message: u64,
    /// Jobs that were offered to it.
    pub offers: BTreeSet<u64>,
}

impl ScaleSet {
    /// Whether it has every one of `labels`, whatever their case.
    #[must_use]
    pub fn fits(&self, labels: &[String]) -> bool {
        covers(self.labels.iter().map(|label| label.name.as_str()), labels)
    }
}

/// A label of a scale set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleSetLabel {
    /// `System` or `User`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// The session of a listener with its message queue.
#[derive(Debug, Clone)]
pub struct MessageSession {
    /// Its name, a UUID.
    pub id: String,
    /// Who opened it.
    pub owner: String,
    /// The capacity that was advertised last.
    pub capacity: usize,
    /// Tokens of the queue with their ends.
    pub tokens: BTreeMap<String, Timestamp>,
    /// Polls that are open right now.
    pub open_calls: u32,
    /// When the listener polled last.
    pub last_seen: Timestamp,
}

impl MessageSession {
    /// Whether its listener stopped to poll.
    #[must_use]
    pub fn silent(&self, now: Timestamp, patience_seconds: u32) -> bool {
        self.open_calls == 0
            && now.duration_since(self.last_seen)
                > SignedDuration::from_secs(i64::from(patience_seconds))
    }
}

/// What happened to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is offered.
    Available,
    /// It belongs to the scale set.
    Assigned,
    /// A runner picked it up.
    Started,
    /// It ended.
    Completed,
    /// No runner picked it up in time.
    TakenBack,
}

impl ChangeKind {
    /// The type of the message.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "JobAvailable",
            Self::Assigned => "JobAssigned",
            Self::Started => "JobStarted",
            Self::Completed | Self::TakenBack => "JobCompleted",
        }
    }
}

/// A change that a message will tell of.
#[derive(Debug, Clone)]
pub struct JobChange {
    /// What happened.
    pub kind: ChangeKind,
    /// The message.
    pub body: Value,
}

/// Jobs and runners of a scale set in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Queued jobs that fit and belong to no scale set.
    pub total_available_jobs: usize,
    /// Acquired jobs that are not assigned yet; none here, as that takes no time.
    pub total_acquired_jobs: usize,
    /// Jobs that belong to the scale set, running ones included.
    pub total_assigned_jobs: usize,
    /// Jobs that run.
    pub total_running_jobs: usize,
    /// Its runners.
    pub total_registered_runners: usize,
    /// Its runners that run a job.
    pub total_busy_runners: usize,
    /// Its runners that are online and wait.
    pub total_idle_runners: usize,
}

/// A token for the scale sets of one scope.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// Where it is good.
    pub scope: Scope,
    /// When it ends.
    pub expires_at: Timestamp,
}
