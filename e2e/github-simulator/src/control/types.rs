//! What the control API takes and gives; the same types on both sides.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::state::{Conclusion, JobTemplate, Level, Statistics, StepTemplate};

/// Why the control API refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Problem {
    /// In words.
    pub error: String,
}

/// The state, see [`crate::dump`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// What must be as before when a test is over.
    pub lasting: Value,
    /// What a test leaves behind by nature.
    pub passing: Value,
}

/// A repository to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRepository {
    /// `owner/name`; the owner becomes an organization where there is none.
    pub full_name: String,
    /// Hidden from strangers.
    pub private: bool,
    /// The owner's plan lacks branch protection for private repositories.
    pub free_plan: bool,
    /// Its branches; the first is the default; `main` where there is none.
    pub branches: Vec<NewBranch>,
    /// Its workflows.
    pub workflows: Vec<NewWorkflow>,
}

/// A branch to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewBranch {
    /// Its name.
    pub name: String,
    /// Whether it is protected.
    pub protected: bool,
    /// Its required checks; none means that this part of protection is off.
    pub required_checks: Option<Vec<String>>,
}

/// A workflow to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewWorkflow {
    /// Its `name:`.
    pub name: String,
    /// Its file below `.github/workflows/`.
    pub file: String,
    /// Events that start it; `workflow_dispatch` where there is none.
    pub events: BTreeSet<String>,
    /// Branches that have it; none means all.
    pub branches: BTreeSet<String>,
    /// Its concurrency group; `${{ github.ref }}` is replaced.
    pub concurrency: Option<String>,
    /// Its jobs.
    pub jobs: Vec<JobTemplate>,
    /// The text of the file; made from the rest where it is absent. Without `jobs` it is read: its name, events,
    /// concurrency group and jobs are the workflow's.
    pub content: Option<String>,
}

/// An organization to be made or changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewOrganization {
    /// Its name.
    pub login: String,
    /// Its runner groups beside the default one.
    pub groups: Vec<NewRunnerGroup>,
}

/// An enterprise to be made or changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewEnterprise {
    /// Its name in URLs.
    pub slug: String,
    /// Its organizations.
    pub organizations: BTreeSet<String>,
    /// Its runner groups beside the default one.
    pub groups: Vec<NewRunnerGroup>,
}

/// A runner group to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRunnerGroup {
    /// Its name.
    pub name: String,
    /// Repositories (of an organization) or organizations (of an enterprise) that see it; none
    /// means all.
    pub selected: Option<BTreeSet<String>>,
}

/// A GitHub App to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewApp {
    /// Its name in URLs.
    pub slug: String,
    /// Its owner.
    pub owner: String,
    /// What it asks for; none means what the operator needs.
    pub permissions: Option<BTreeMap<String, Level>>,
    /// Where it is installed at once, with all that it asks for; nowhere if empty.
    pub install_on: String,
    /// Only these repositories (full names).
    pub repositories: Option<BTreeSet<String>>,
}

/// An App that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedApp {
    /// Its number.
    pub id: u64,
    /// Its other name.
    pub client_id: String,
    /// Its private key as GitHub gives it, PEM, PKCS#1.
    pub private_key: String,
    /// Its installation, where one was asked for.
    pub installation: Option<u64>,
}

/// An installation that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PublishedInstallation {
    /// Its number.
    pub id: u64,
}

/// What may change about an installation; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateInstallation {
    /// Switched off, or on again.
    pub suspended: Option<bool>,
    /// What is granted.
    pub permissions: Option<BTreeMap<String, Level>>,
    /// All tokens end at once.
    pub revoke_tokens: bool,
}

/// A personal token to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewCredential {
    /// What the request log calls it; a token of that name is replaced.
    pub name: String,
    /// Scopes make it a classic token.
    pub scopes: Option<BTreeSet<String>>,
    /// Its owner administers what it reaches (classic only).
    pub admin: bool,
    /// Permissions make it a fine-grained token.
    pub permissions: Option<BTreeMap<String, Level>>,
    /// Only these repositories (full names).
    pub repositories: Option<BTreeSet<String>>,
}

/// A token that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishedToken {
    /// The secret.
    pub token: String,
}

/// A single job to be queued.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewJob {
    /// `owner/name`.
    pub repository: String,
    /// Its name.
    pub name: String,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// Its commands.
    pub steps: Vec<StepTemplate>,
    /// Runs until it is released.
    pub hold: bool,
    /// The branch; the default one if absent.
    pub branch: Option<String>,
}

/// A run to be started, by whatever event.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRun {
    /// `owner/name`.
    pub repository: String,
    /// Number, file or path of the workflow.
    pub workflow: String,
    /// The branch; the default one if absent.
    pub branch: Option<String>,
    /// `push` if empty.
    pub event: String,
    /// The pull request that started it.
    pub pull_request: Option<u64>,
    /// The fork that its code is from, `owner/name`.
    pub fork: Option<String>,
    /// It is over at once, without a runner.
    pub conclusion: Option<Conclusion>,
}

/// A run that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartedRun {
    /// The run.
    pub run: u64,
    /// Its jobs.
    pub jobs: Vec<u64>,
}

/// A job, as suites see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    /// Its number.
    pub id: u64,
    /// Its run.
    pub run: u64,
    /// The attempt of the run that it is of.
    pub attempt: u32,
    /// `owner/name`, lower case.
    pub repository: String,
    /// Its key in the workflow.
    pub key: String,
    /// Its name.
    pub name: String,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// GitHub's word for where it stands.
    pub status: String,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// Name of the runner that picked it up.
    pub runner: Option<String>,
    /// Number of the runner that picked it up.
    pub runner_id: Option<u64>,
    /// The scale set that it was assigned to.
    pub scale_set: Option<u64>,
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
    /// The steps of its file.
    pub steps: Vec<StepView>,
    /// What is shown at its head.
    pub annotations: Vec<String>,
    /// What its hooks wrote into its summary. That of a step is the step's.
    pub summary: String,
}

/// A step of a job, as suites see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// What it wrote into its summary.
    pub summary: String,
}

/// A runner scale set, as suites see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScaleSetView {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// `owner/name`, a login, or `enterprises/slug`, lower case.
    pub scope: String,
    /// Its runner group.
    pub group: u64,
    /// The names of its labels.
    pub labels: Vec<String>,
    /// The capacity that its listener advertised last; 0 without a session.
    pub capacity: usize,
    /// The session, if one is open.
    pub session: Option<String>,
    /// Its jobs and runners in numbers.
    pub statistics: Statistics,
    /// Messages that were handed out and not acknowledged.
    pub unacknowledged: usize,
}

/// What a job printed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Log {
    /// All of it.
    pub log: String,
}

/// A runner that a user registered by hand; it never comes online.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct NewRunner {
    /// `owner/name`, a login, or `enterprises/slug`.
    pub scope: String,
    /// Its name.
    pub name: String,
    /// Its labels beside the default ones.
    pub labels: Vec<String>,
}

/// What may change about a repository; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateRepository {
    /// Hidden from strangers.
    pub private: Option<bool>,
    /// The owner's plan lacks branch protection for private repositories.
    pub free_plan: Option<bool>,
    /// Branches to make or to replace.
    pub branches: Vec<NewBranch>,
    /// Branches to remove.
    pub remove_branches: Vec<String>,
    /// Workflows to add, or to replace by their file.
    pub workflows: Vec<NewWorkflow>,
    /// Secrets to set.
    pub secrets: BTreeMap<String, String>,
}

/// What may change about a workflow; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateWorkflow {
    /// `active`, `disabled_manually`.
    pub state: Option<String>,
}

/// A budget to be set, such as one that is used up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// The credential, as the request log names it.
    pub credential: String,
    /// What is left of the hour.
    pub remaining: u32,
    /// When the hour ends, in seconds from now.
    pub reset_seconds: u32,
}

/// Time that passes at once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Clock {
    /// So much.
    pub advance_seconds: u32,
}
