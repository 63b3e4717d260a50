//! What is known of the scale set of a pool, and what was heard of it.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::github::{NewScaleSet, ScaleSet, Statistics};
use crate::reason::Reason;

/// What is known of the scale set of a pool that has one, or should.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScaleSetFacts {
    /// The scale set itself.
    pub known: Known,
    /// What it was last asked to be; unknown after a restart.
    pub asked: Option<NewScaleSet>,
    /// Whether the last change of it failed.
    pub is_unwritten: bool,
    /// Why it could not be read or changed.
    pub trouble: Option<Trouble>,
    /// When that may be tried again.
    pub not_before: Option<Timestamp>,
    /// Who listens for its jobs.
    pub listening: Option<Listening>,
    /// Jobs that have ended here, and of whose end GitHub has not reported yet: it still counts them.
    pub ended: usize,
    /// When the first of them is not waited for any more.
    pub recount: Option<Timestamp>,
    /// Runners whose job has ended, as GitHub tells, and that still run here.
    pub finishing: BTreeSet<String>,
    /// Until when jobs that were taken back are awaited again; only in the future.
    pub awaited_until: Option<Timestamp>,
}

/// What is known of a scale set.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Known {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// This one.
    Present(ScaleSet),
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq)]
pub struct Trouble {
    /// One word.
    pub reason: Reason,
    /// What happened, and what to do.
    pub message: String,
}

/// Who listens for the jobs of a scale set, and what was heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listening {
    /// The scale set.
    pub set: u64,
    /// How many jobs may be assigned to it.
    pub capacity: usize,
    /// What was heard.
    pub heard: Heard,
}

/// What was heard of a scale set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// Counts what was heard: a message is acknowledged once it was acted on.
    pub number: u64,
    /// The session.
    pub session: Option<String>,
    /// When it was opened.
    pub opened: Option<Timestamp>,
    /// Where the scale set stands; unknown until there is a session.
    pub statistics: Option<Statistics>,
    /// Whether a poll has brought nothing since, though GitHub could have assigned a job: what waited then does not any more.
    pub is_quiet: bool,
    /// Since when the oldest job waits of those whose messages were heard.
    pub oldest: Option<Timestamp>,
    /// When jobs were last taken back that no runner had begun: GitHub assigns them again.
    pub taken_back: Option<Timestamp>,
    /// Whether a poll was answered since the session was opened.
    pub is_settled: bool,
    /// A session of this pool's is open whose name nobody knows, and the scale set has neither jobs nor runners.
    pub is_lost: bool,
    /// Why nothing is heard.
    pub trouble: Option<Trouble>,
}

impl Heard {
    /// Notes where the scale set stands, where that is said, after the jobs of so many runners have ended.
    pub fn stands(&mut self, statistics: Option<Statistics>, ended: usize, now: Timestamp) {
        let Some(new) = statistics else { return };
        let before = self.statistics.map_or(0, |last| last.assigned);
        if new.assigned.saturating_add(ended) < before {
            self.taken_back = Some(now);
        }
        self.statistics = Some(new);
        self.is_quiet = false;
    }
}
