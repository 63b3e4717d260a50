//! What GitHub says of jobs that have ended.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::github::RunJob;

/// A repository by its full name, and a run of it.
pub type RunKey = (String, u64);

/// What GitHub says of the runs whose jobs have ended here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobFacts {
    /// The jobs of each run that was asked for, as far as runners here ran them; `None` where there is no such run, or
    /// none that the credentials may see.
    pub runs: BTreeMap<RunKey, Option<Vec<RunJob>>>,
    /// How often a run was not found that is looked for again.
    pub missed: BTreeMap<RunKey, u32>,
    /// When there was time for a batch, whether anybody was to be asked or not.
    pub looked: Option<Timestamp>,
    /// No batch before.
    pub next_look: Option<Timestamp>,
    /// The credentials may not read runs; not tried again before.
    pub denied_until: Option<Timestamp>,
}
