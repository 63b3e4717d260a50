//! Jobs that ended here, and what GitHub says of the runs of those that are to be run again.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::github::{Repository, Run, RunJob};
use super::jobs::RunKey;
use crate::reason::Reason;

/// A job that ended on a runner with GPUs, by itself or with its runner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// The runner.
    pub runner: String,
    /// Node that the runner was on.
    pub node: String,
    /// UUIDs of its devices, as its gate saw them.
    pub devices: Vec<String>,
    /// The job, as its runner names it.
    pub job: NamedJob,
    /// When it ended.
    pub at: Timestamp,
    /// Where the agent ended in the middle of it: a reboot of the node may have been why.
    pub cut: Option<Cut>,
}

/// An agent that ended in the middle of its job, and nobody says why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cut {
    /// The boot id of the node while the agent ran.
    pub boot: String,
    /// When its end was first seen.
    pub seen: Timestamp,
}

/// A job as its runner's marks name it, or GitHub's message: which one it was, and no more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedJob {
    /// Its id in the workflow.
    pub name: String,
    /// Its run: of the pool's own GitHub, whatever a mark says.
    pub run: RunKey,
    /// Which attempt of the run.
    pub attempt: Option<i32>,
}

/// A gate that passed, whether its pod is still there or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pass {
    /// Node of its pod.
    pub node: String,
    /// UUIDs of its devices; none where its pod went before they were known.
    pub devices: Vec<String>,
    /// When its pod got the node, and with it the devices.
    pub bound: Timestamp,
}

/// The gates that passed lately.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Passes {
    /// From when on all are known. Pods may have come and gone before that.
    pub since: Timestamp,
    /// The gates, in no order.
    pub all: Vec<Pass>,
}

/// What is known of jobs that are to be run again, or may be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RerunFacts {
    /// Jobs that ended a short while ago.
    pub ended: Vec<Ended>,
    /// The gates that passed lately, of all pools; unknown where nobody is blamed, or no pods have been listed.
    pub passes: Option<Passes>,
    /// The boot ids of the nodes of jobs that were cut, as the nodes tell them.
    pub boots: BTreeMap<String, String>,
    /// The runs of jobs that are to be run again, as last read.
    pub runs: BTreeMap<RunKey, RunFacts>,
    /// What GitHub said when it was asked to run jobs again, by run.
    pub answers: BTreeMap<RunKey, Answer>,
    /// Why the runs cannot be read, where a person has to change something first.
    pub denied: BTreeMap<RunKey, String>,
    /// When runs are read next.
    pub next_look: Option<Timestamp>,
}

/// A run, as GitHub shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFacts {
    /// When it was read.
    pub read: Timestamp,
    /// The run; `None` where GitHub shows none.
    pub run: Option<Run>,
    /// The jobs of its last attempt, as far as runners here ran them; read when it is over.
    pub jobs: Vec<RunJob>,
    /// The last runs of the same workflow and event on branches of the same name, here and in forks; read when it is over.
    pub latest: Vec<Run>,
}

/// What GitHub said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// They are run again.
    Started,
    /// They are not, and will not be.
    Refused {
        /// One word.
        reason: Reason,
        /// What happened, and what to do.
        message: String,
    },
}

/// Jobs of one run that are to be run again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewAttempt {
    /// Where.
    pub repository: Repository,
    /// The run.
    pub run: u64,
    /// The job, where it is one; several are run again with all that failed.
    pub job: Option<u64>,
    /// What is said of it on the commit.
    pub note: CheckNote,
}

/// What is to be said of jobs that are run again, where that was found out by the run's attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Untold {
    /// Where.
    pub repository: Repository,
    /// What. The operator that asked may have said it.
    pub note: CheckNote,
}

/// A check run that tells something and requires nothing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckNote {
    /// What it tells of: no two notes on a commit have the same.
    pub id: String,
    /// The commit.
    pub sha: String,
    /// Its heading.
    pub title: String,
    /// What happened, as Markdown.
    pub summary: String,
    /// Where more is to be read.
    pub url: Option<String>,
}
