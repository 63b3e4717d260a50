//! What GitHub says of required checks, and what other pools require.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::github::{BranchRule, Check, Protection, Ruleset, Triggers};
use crate::reason::Reason;

/// What GitHub says of the checks, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckFacts {
    /// The green run that was read, and the checks that it reported.
    pub proven: Option<(i64, Vec<Check>)>,
    /// The green run that was last looked for.
    pub sought: Option<i64>,
    /// Names that pull requests have reported lately, of jobs that ran.
    pub reported: BTreeSet<String>,
    /// Names of jobs that pull requests have skipped lately.
    pub skipped: BTreeSet<String>,
    /// Names that other workflows report for the same commit.
    pub elsewhere: BTreeSet<String>,
    /// When the workflow starts.
    pub triggers: Option<Triggers>,
    /// The branches, by name.
    pub branches: BTreeMap<String, Branch>,
    /// The pool's own ruleset, with its number.
    pub ruleset: Option<(i64, Ruleset)>,
    /// When branches and ruleset were last read; `None` where something was changed since.
    pub read: Option<Timestamp>,
    /// Not looked at before.
    pub next_look: Option<Timestamp>,
    /// What GitHub did not do: one word, and a sentence.
    pub trouble: Option<(Reason, String)>,
    /// Refusals in a row since the pool has gone on, which time alone does not change.
    pub refusals: usize,
}

/// A branch, as GitHub shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Branch {
    /// What its protection requires.
    pub protection: Protection,
    /// What rulesets say of it, the pool's own included.
    pub rules: Vec<BranchRule>,
    /// When it was read.
    pub read: Timestamp,
}

/// A context that another pool requires, on a branch of a repository of a server.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Elsewhere {
    /// The server.
    pub origin: String,
    /// `OWNER/NAME`.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// The context.
    pub context: String,
    /// Whose word it is.
    pub word: Word,
}

/// What the record of another pool is worth.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Word {
    /// GitHub accepts that pool's credentials, and shows it the branches.
    Proven,
    /// This process has not asked GitHub for that pool yet.
    Unproven,
}
