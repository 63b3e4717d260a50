//! Workflow runs and their jobs.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use workflow_file::Text;

/// A job as its workflow describes it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct JobTemplate {
    /// Its key in the file, which is `GITHUB_JOB`.
    pub key: String,
    /// Its name, which is the context; `caller / called` for a reusable workflow. The key if empty.
    pub name: String,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// Its commands.
    pub steps: Vec<StepTemplate>,
    /// Runs until it is released by the control API.
    pub hold: bool,
    /// The job as its file has it; the rest is made from this then.
    pub written: Option<workflow_file::Job>,
}

impl From<workflow_file::Job> for JobTemplate {
    fn from(job: workflow_file::Job) -> Self {
        let step = |step: &workflow_file::Step| StepTemplate {
            name: step.title(),
            run: step.run.clone().unwrap_or_default(),
        };
        Self {
            key: job.key.clone(),
            name: job.name.clone(),
            labels: job.runs_on.clone(),
            steps: job.steps.iter().map(step).collect(),
            hold: false,
            written: Some(job),
        }
    }
}

impl JobTemplate {
    /// What its agent gets.
    #[must_use]
    pub fn job(&self) -> workflow_file::Job {
        let step = |step: &StepTemplate| workflow_file::Step {
            name: Some(Text(step.name.clone())),
            run: Some(step.run.clone()),
            ..workflow_file::Step::default()
        };
        self.written.clone().unwrap_or_else(|| workflow_file::Job {
            key: self.key.clone(),
            name: self.name.clone(),
            runs_on: self.labels.clone(),
            steps: self.steps.iter().map(step).collect(),
            ..workflow_file::Job::default()
        })
    }
}

/// One command of a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct StepTemplate {
    /// Its name.
    pub name: String,
    /// A bash script.
    pub run: String,
}

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// All well.
    Success,
    /// Not well.
    Failure,
    /// Stopped.
    Cancelled,
    /// Not run.
    Skipped,
}

impl Conclusion {
    /// GitHub's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobPhase {
    /// Held back by its concurrency group.
    Pending,
    /// Waits for a runner.
    Queued,
    /// Given to a runner that has not picked it up yet.
    Assigned {
        /// The runner.
        runner: u64,
        /// When it was given.
        since: Timestamp,
    },
    /// Runs.
    InProgress {
        /// The runner.
        runner: u64,
    },
    /// Ended.
    Completed(Conclusion),
}

/// A step of a job.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it is.
    pub template: StepTemplate,
    /// When it started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// What it wrote into its summary.
    pub summary: String,
}

/// A job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number, which is also that of its check run.
    pub id: u64,
    /// Its run.
    pub run: u64,
    /// The attempt of the run that it is of.
    pub attempt: u32,
    /// `owner/name`, lower case.
    pub repository: String,
    /// What it is.
    pub template: JobTemplate,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Where it stands.
    pub phase: JobPhase,
    /// The scale set that it was assigned to.
    pub scale_set: Option<u64>,
    /// When it was assigned to the scale set.
    pub scale_set_assigned_at: Option<Timestamp>,
    /// How often it was taken back from a scale set.
    pub taken_back: u32,
    /// It is not assigned to a scale set again before.
    pub not_before: Option<Timestamp>,
    /// Number, name and group of the runner that picked it up.
    pub runner: Option<(u64, String, u64)>,
    /// How often it was given to a runner.
    pub assignments: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was queued, the last time.
    pub queued_at: Timestamp,
    /// When it was picked up.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// It has to stop, and why.
    pub cancel: Option<String>,
    /// A held job may end.
    pub released: bool,
    /// What it printed.
    pub log: String,
    /// What is shown at its head.
    pub annotations: Vec<String>,
    /// What its hooks wrote into its summary. That of a step is the step's.
    pub summary: String,
}

impl Job {
    /// Its name, which is the context of its check.
    #[must_use]
    pub fn name(&self) -> &str {
        if self.template.name.is_empty() {
            &self.template.key
        } else {
            &self.template.name
        }
    }

    /// Its `timeout-minutes`.
    pub(crate) fn timeout(&self) -> Option<SignedDuration> {
        let minutes = self.template.written.as_ref()?.timeout_minutes.as_ref()?;
        minutes.0.parse().ok().map(SignedDuration::from_mins)
    }

    /// GitHub's word for where it stands.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match self.phase {
            JobPhase::Pending => "pending",
            JobPhase::Queued | JobPhase::Assigned { .. } => "queued",
            JobPhase::InProgress { .. } => "in_progress",
            JobPhase::Completed(_) => "completed",
        }
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn conclusion(&self) -> Option<Conclusion> {
        match self.phase {
            JobPhase::Completed(conclusion) => Some(conclusion),
            _ => None,
        }
    }
}

/// A check run that an App has made.
#[derive(Debug, Clone)]
pub struct Note {
    /// Its number.
    pub id: u64,
    /// `owner/name`, lower case.
    pub repository: String,
    /// The App.
    pub app: u64,
    /// The check suite: of this App and commit.
    pub check_suite: u64,
    /// The commit.
    pub sha: String,
    /// What the App calls it.
    pub external_id: String,
    /// Its name.
    pub name: String,
    /// How it ended, in GitHub's word.
    pub conclusion: String,
    /// Its heading.
    pub title: String,
    /// Its text.
    pub summary: String,
    /// Where more is to be read.
    pub details_url: Option<String>,
    /// When it was made.
    pub at: Timestamp,
}

/// A run of a workflow.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its number.
    pub id: u64,
    /// `owner/name`, lower case.
    pub repository: String,
    /// The workflow; a single job that a test queued has one too.
    pub workflow: u64,
    /// The workflow's name.
    pub workflow_name: String,
    /// The workflow's file.
    pub path: String,
    /// Counts per workflow.
    pub number: u64,
    /// `workflow_dispatch`, `push`, `pull_request`.
    pub event: String,
    /// The branch.
    pub branch: String,
    /// The commit.
    pub sha: String,
    /// Number of the check suite.
    pub check_suite: u64,
    /// The jobs of its last attempt; those that were not run again are of an earlier one.
    pub jobs: BTreeSet<u64>,
    /// Its last attempt.
    pub attempt: u32,
    /// The concurrency group, expanded.
    pub concurrency: Option<String>,
    /// The pull request it belongs to.
    pub pull_request: Option<u64>,
    /// The fork that its code is from, `owner/name`.
    pub fork: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
