//! What GitHub has, as plain values: no client, no wire form.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::url::{GitHubUrl, Scope, is_name};

/// A repository's path in the API, such as `/repos/OWNER/NAME`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Repository {
    full_name: String,
}

impl Repository {
    /// The repository `OWNER/NAME`; `None` where that has another form.
    #[must_use]
    pub fn new(full_name: &str) -> Option<Self> {
        let (owner, name) = full_name.split_once('/')?;
        let ok = !owner.is_empty() && !name.is_empty() && !name.contains('/');
        ok.then(|| Self {
            full_name: full_name.to_owned(),
        })
    }

    /// `OWNER/NAME`.
    #[must_use]
    pub fn full_name(&self) -> &str {
        &self.full_name
    }

    /// The repository that a job there says it is of: one of the address's own, whatever the job says.
    #[must_use]
    pub fn within(url: &GitHubUrl, said: &str) -> Option<Self> {
        let said = Self::new(said).filter(|r| r.full_name.split('/').all(is_name));
        let owner = |r: &Self| r.full_name.split('/').next().map(str::to_ascii_lowercase);
        match url.scope() {
            Scope::Repository { owner, name } => {
                let own = format!("{owner}/{name}");
                said.filter(|r| r.full_name.eq_ignore_ascii_case(&own))
                    .or_else(|| Self::new(&own))
            }
            Scope::Organization { name } => said.filter(|r| owner(r).as_ref() == Some(name)),
            Scope::Enterprise { .. } => said,
        }
    }

    /// The page of a run, of its attempt where that is not the first.
    #[must_use]
    pub fn run_page(&self, url: &GitHubUrl, run: u64, attempt: Option<u32>) -> String {
        let page = format!("{}/{}/actions/runs/{run}", url.origin(), self.full_name);
        match attempt {
            Some(attempt) if attempt > 1 => format!("{page}/attempts/{attempt}"),
            _ => page,
        }
    }

    /// The page of a job of a run.
    #[must_use]
    pub fn job_page(&self, url: &GitHubUrl, run: u64, job: u64) -> String {
        format!("{}/job/{job}", self.run_page(url, run, None))
    }

    /// `OWNER` and `NAME`.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        self.full_name.split_once('/').unwrap_or_default()
    }
}

/// What is to be started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workflow {
    /// Where.
    pub repository: Repository,
    /// Name of its file.
    pub file: String,
    /// Branch or tag.
    pub git_ref: String,
}

/// A run of a workflow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Run {
    /// GitHub's number for it.
    pub id: u64,
    /// `queued`, `pending`, `waiting`, `in_progress`, `completed`, or what GitHub adds some day.
    pub status: String,
    /// How it ended.
    pub conclusion: Option<String>,
    /// Its page.
    pub html_url: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The suite of its checks.
    pub check_suite_id: Option<u64>,
    /// The commit.
    pub head_sha: Option<String>,
    /// The workflow's number.
    pub workflow_id: Option<u64>,
    /// The branch or tag of the commit. That of a fork's pull request is the fork's, whose name says nothing here.
    pub head_branch: Option<String>,
    /// Number of the repository that the commit is of: a fork, or the run's own; none where the fork was deleted.
    pub head_repository: Option<u64>,
    /// What started it: `push`, `pull_request`, and many more.
    pub event: Option<String>,
    /// Its last attempt, counted from 1.
    pub attempt: u32,
}

/// A job of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RunJob {
    /// GitHub's number for it.
    pub id: u64,
    /// Its name, which is the context of its check.
    pub name: String,
    /// `queued`, `waiting`, `pending`, `in_progress`, `completed`, or what GitHub adds some day.
    pub status: String,
    /// How it ended.
    pub conclusion: Option<String>,
    /// When it was queued; servers of old do not say.
    pub created_at: Option<Timestamp>,
    /// When it started. GitHub fills this in before the job starts, too.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// The runner that took it.
    pub runner_name: Option<String>,
    /// The labels that its `runs-on` asks for.
    pub labels: Vec<String>,
    /// Its page.
    pub html_url: Option<String>,
    /// The attempt of the run that it is of.
    pub attempt: u32,
}

/// The results that a log reports, in cargo's form `test result: ok. N passed; …`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TestSum {
    /// Lines of that form.
    pub results: u32,
    /// Sum of the passed tests.
    pub passed: u64,
}

/// A scale set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleSet {
    /// GitHub's number for it.
    pub id: u64,
    /// Its name, unique within its runner group.
    pub name: String,
    /// The labels that a job may ask for. Some servers keep the name alone, whatever was asked for.
    pub labels: Vec<String>,
}

/// What a scale set is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewScaleSet {
    /// Its name.
    pub name: String,
    /// The name of its runner group; `None` is the default one.
    pub group: Option<String>,
    /// The labels that a job may ask for.
    pub labels: Vec<String>,
}

/// A runner, as the service lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// GitHub's number for it.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The scale set that it belongs to, if any.
    pub scale_set: Option<u64>,
}

/// How many jobs a scale set has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Jobs that its runners could take, and that are not assigned to it.
    pub available: usize,
    /// Jobs that are assigned to it, those that run included.
    pub assigned: usize,
    /// Jobs that run.
    pub running: usize,
}

/// A job that waits for a runner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuedJob {
    /// GitHub's number for the job; a scale set is not told it.
    pub id: Option<u64>,
    /// GitHub's number for the workflow run.
    pub run: u64,
    /// Name of the job.
    pub name: String,
    /// The workflow: its name, or the file where nothing tells its name.
    pub workflow: Option<String>,
    /// `OWNER/NAME`; `None` for the repository of the address.
    pub repository: Option<String>,
    /// The labels that its `runs-on` asks for.
    pub labels: Vec<String>,
    /// When it was queued; servers of old do not say.
    pub created_at: Option<Timestamp>,
}

impl QueuedJob {
    /// Whether it may come to a runner with these labels: to one that has every label it asks for.
    #[must_use]
    pub fn is_served_by(&self, labels: &[String]) -> bool {
        self.labels.iter().all(|wanted| has_label(labels, wanted))
    }

    /// The labels that it asks for and that are not among these.
    #[must_use]
    pub fn lacks(&self, labels: &[String]) -> Vec<&str> {
        let wanted = self
            .labels
            .iter()
            .filter(|wanted| !has_label(labels, wanted));
        wanted.map(String::as_str).collect()
    }

    /// What it takes in memory, in bytes: an empty label takes some, too.
    #[must_use]
    pub fn size(&self) -> usize {
        let texts = [
            Some(&self.name),
            self.workflow.as_ref(),
            self.repository.as_ref(),
        ];
        let all = texts.into_iter().flatten().chain(&self.labels);
        let labels = size_of_val(self.labels.as_slice());
        let own = size_of::<Self>().saturating_add(labels);
        all.map(String::len).fold(own, usize::saturating_add)
    }
}

/// Whether a label is among these; case does not matter, in whichever script.
#[must_use]
pub fn has_label(labels: &[String], wanted: &str) -> bool {
    let wanted = wanted.to_lowercase();
    labels.iter().any(|label| label.to_lowercase() == wanted)
}

/// When GitHub stops to serve a version of the agent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Lifecycle {
    /// From then on it cannot be registered.
    pub registration_ends: Option<Timestamp>,
    /// From then on it gets no jobs.
    pub runtime_ends: Option<Timestamp>,
}

impl Lifecycle {
    /// Since when the version is refused, for one thing or another.
    #[must_use]
    pub fn refused_since(&self, now: Timestamp) -> Option<Timestamp> {
        let ends = [self.runtime_ends, self.registration_ends];
        ends.into_iter().flatten().filter(|end| *end <= now).min()
    }
}

/// A check as GitHub reports it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Check {
    /// Its name.
    pub context: String,
    /// Number of the App that reports it.
    pub app_id: Option<i64>,
}

/// What the protection of a branch requires.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Protection {
    /// These contexts.
    Requires(Vec<String>),
    /// It is protected, and requires no status checks: this part of its protection is off.
    WithoutChecks,
    /// It has no protection of its own.
    Unprotected,
    /// There is no such branch.
    NoBranch,
    /// The owner's plan has no protection for such a repository, in GitHub's words.
    NotInPlan(String),
}

/// A rule that holds for a branch, whatever ruleset it comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BranchRule {
    /// Such as `required_status_checks` or `merge_queue`.
    pub kind: String,
    /// The ruleset's number.
    pub ruleset_id: Option<i64>,
}

/// A ruleset that requires checks on branches.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ruleset {
    /// Its name, unique in the repository.
    pub name: String,
    /// Names of the branches.
    pub branches: BTreeSet<String>,
    /// The checks.
    pub checks: BTreeSet<Check>,
}

/// A workflow file, as far as it decides which checks are reported when.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Triggers {
    /// It starts for a merge queue.
    pub merge_group: bool,
    /// Pull requests start it only for some paths or branches.
    pub is_filtered: bool,
}

/// A job that a runner has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobOf {
    /// The runner.
    pub runner: String,
    /// The job's name.
    pub name: String,
    /// The run that it is of.
    pub run: u64,
    /// `OWNER/NAME` of its repository.
    pub repository: String,
}

/// GitHub's list of the entries that bear our ownership label.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// When it was read.
    pub at: Timestamp,
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether these are all that the pool has there. Only then does one that is empty prove that nothing is left.
    pub is_whole: bool,
}

/// A runner's entry on GitHub.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// GitHub's id.
    pub id: u64,
    /// The runner's name.
    pub name: String,
    /// Whether it runs a job.
    pub busy: bool,
    /// Whether its agent is connected; unknown of a runner of a scale set that is not on the runners page.
    pub online: Option<bool>,
    /// Version of its agent, once one has connected.
    pub version: Option<String>,
    /// Whether it is of the pool's scale set.
    pub of_scale_set: bool,
}

impl Entry {
    /// A runner of the pool's scale set. Whether it is busy shows when it is to go.
    #[must_use]
    pub fn of_scale_set(agent: Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            busy: false,
            online: None,
            version: None,
            of_scale_set: true,
        }
    }
}
