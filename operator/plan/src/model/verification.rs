//! What GitHub says of the run of a verification.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::github::{Run, RunJob, TestSum};
use crate::reason::Reason;

/// What GitHub says of the run of a verification.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerificationFacts {
    /// The verification that this belongs to.
    pub since: Option<Timestamp>,
    /// What is known of its start.
    pub dispatch: Dispatch,
    /// When it was sent.
    pub sent: Option<Timestamp>,
    /// How often it was sent.
    pub times_sent: u32,
    /// The run's number.
    pub run_id: Option<u64>,
    /// The run.
    pub run: Option<Run>,
    /// Its jobs.
    pub jobs: Vec<RunJob>,
    /// What logs say of tests, by job.
    pub sums: BTreeMap<u64, TestSum>,
    /// The run does not exist any more.
    pub is_gone: bool,
    /// Since when GitHub does not show the run.
    pub missing_since: Option<Timestamp>,
    /// When the run was last seen held back, by its concurrency group or an approval.
    pub held_until: Option<Timestamp>,
    /// Why it could not be read.
    pub trouble: Option<String>,
    /// Not looked at before.
    pub next_look: Option<Timestamp>,
}

/// What is known of the start of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Dispatch {
    /// A process before this one may have sent it.
    #[default]
    Unknown,
    /// It certainly was not sent, or was not carried out.
    Open,
    /// It was sent, and the answer named no run.
    Sent,
    /// GitHub refused it.
    Refused {
        /// One word.
        reason: Reason,
        /// What happened, and what to do.
        message: String,
    },
}

impl VerificationFacts {
    /// Whether a run may exist whose number is not known.
    #[must_use]
    pub fn is_to_be_found(&self) -> bool {
        matches!(self.dispatch, Dispatch::Unknown | Dispatch::Sent)
    }
}
