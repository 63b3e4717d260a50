//! Repositories, organizations, enterprises, and who may ask for what.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::JobTemplate;

/// How far a permission goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Look.
    Read,
    /// Look and change.
    Write,
}

/// A repository.
#[derive(Debug)]
pub struct Repository {
    /// Its number.
    pub id: u64,
    /// `owner/name` as written by its owner.
    pub full_name: String,
    /// Hidden from strangers.
    pub private: bool,
    /// Whether the owner's plan has branch protection for private repositories.
    pub paid_plan: bool,
    /// The branch that a clone checks out.
    pub default_branch: String,
    /// Branches by name.
    pub branches: BTreeMap<String, Branch>,
    /// Workflows by number.
    pub workflows: BTreeMap<u64, Workflow>,
    /// Rulesets by number, as GitHub shows them.
    pub rulesets: BTreeMap<u64, Value>,
    /// Contexts that some App reported before.
    pub reported: BTreeSet<String>,
    /// Secrets of its workflows.
    pub secrets: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Repository {
    /// The part before the slash.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.full_name.split('/').next().unwrap_or_default()
    }

    /// The part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        self.full_name.split('/').nth(1).unwrap_or_default()
    }

    /// The workflow of that number, file name or path.
    #[must_use]
    pub fn workflow(&self, key: &str) -> Option<&Workflow> {
        self.workflows.values().find(|workflow| {
            workflow.id.to_string() == key
                || workflow.path == key
                || workflow.path.rsplit('/').next() == Some(key)
        })
    }
}

/// The number of a fork that a run names: no repository here has it.
#[must_use]
pub fn fork_id(full_name: &str) -> u64 {
    let mixed = |sum: u64, byte: u8| (sum * 31 + u64::from(byte)) % 100_000_000;
    900_000_000 + full_name.bytes().fold(0, mixed)
}

/// A branch.
#[derive(Debug)]
pub struct Branch {
    /// The commit at its head.
    pub sha: String,
    /// Classic branch protection.
    pub protection: Option<Protection>,
}

/// Classic branch protection.
#[derive(Debug, Clone, Default)]
pub struct Protection {
    /// The part that names required checks.
    pub required_status_checks: Option<RequiredStatusChecks>,
    /// Everything else, as GitHub shows it.
    pub rest: Map<String, Value>,
}

/// The required checks of a branch.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RequiredStatusChecks {
    /// Whether a branch must be up to date to be merged.
    pub strict: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

/// One required check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub context: String,
    /// The App that has to report it.
    pub app_id: Option<i64>,
}

/// A workflow file.
#[derive(Debug, Clone)]
pub struct Workflow {
    /// Its number.
    pub id: u64,
    /// Its `name:`.
    pub name: String,
    /// `.github/workflows/…`.
    pub path: String,
    /// The file itself.
    pub content: String,
    /// `active`, `disabled_manually` and so on.
    pub state: String,
    /// Events that start it.
    pub events: BTreeSet<String>,
    /// Branches that have the file; none means all.
    pub branches: BTreeSet<String>,
    /// Its concurrency group; `${{ github.ref }}` is replaced.
    pub concurrency: Option<String>,
    /// Its jobs.
    pub jobs: Vec<JobTemplate>,
    /// Number of the last run.
    pub runs: u64,
    /// When it was added.
    pub created_at: Timestamp,
}

/// An organization.
#[derive(Debug)]
pub struct Organization {
    /// Its number.
    pub id: u64,
    /// Its name as written.
    pub login: String,
    /// Runner groups by number; 1 is the default group.
    pub groups: BTreeMap<u64, RunnerGroup>,
}

/// An enterprise.
#[derive(Debug)]
pub struct Enterprise {
    /// Its number.
    pub id: u64,
    /// Its name in URLs.
    pub slug: String,
    /// Logins of its organizations, lower case.
    pub organizations: BTreeSet<String>,
    /// Runner groups by number; 1 is the default group.
    pub groups: BTreeMap<u64, RunnerGroup>,
}

/// A group of runners of an organization or an enterprise.
#[derive(Debug, Clone)]
pub struct RunnerGroup {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Full names of the repositories (or organizations) that see it, lower case; none means all.
    pub selected: Option<BTreeSet<String>>,
}

impl RunnerGroup {
    /// The group that always exists.
    #[must_use]
    pub fn default_group() -> Self {
        Self {
            id: 1,
            name: "Default".to_owned(),
            selected: None,
        }
    }

    /// Whether a repository or organization sees the group.
    #[must_use]
    pub fn visible_to(&self, name: &str) -> bool {
        self.selected
            .as_ref()
            .is_none_or(|selected| selected.contains(&name.to_lowercase()))
    }
}

/// A GitHub App.
#[derive(Debug)]
pub struct App {
    /// Its number.
    pub id: u64,
    /// The other name that a JWT may carry.
    pub client_id: String,
    /// Its name in URLs.
    pub slug: String,
    /// Login of its owner.
    pub owner: String,
    /// Public halves of its keys, PEM.
    pub public_keys: Vec<String>,
    /// What it asks for.
    pub permissions: BTreeMap<String, Level>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An App that was installed on an account.
#[derive(Debug)]
pub struct Installation {
    /// Its number.
    pub id: u64,
    /// The App.
    pub app_id: u64,
    /// Login of the account.
    pub account: String,
    /// Full names of its repositories, lower case; none means all of the account.
    pub repositories: Option<BTreeSet<String>>,
    /// What was granted.
    pub permissions: BTreeMap<String, Level>,
    /// Switched off since.
    pub suspended_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A token of an installation.
#[derive(Debug, Clone)]
pub struct InstallationToken {
    /// The installation.
    pub installation: u64,
    /// The repositories it was narrowed to, lower case.
    pub repositories: Option<BTreeSet<String>>,
    /// What it may do.
    pub permissions: BTreeMap<String, Level>,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// A personal token.
#[derive(Debug, Clone)]
pub struct Credential {
    /// What tests and logs call it.
    pub name: String,
    /// Whose it is.
    pub login: String,
    /// What it may do.
    pub kind: CredentialKind,
    /// Full names of the repositories its owner reaches, lower case; none means all.
    pub repositories: Option<BTreeSet<String>>,
}

/// The two kinds of personal tokens.
#[derive(Debug, Clone)]
pub enum CredentialKind {
    /// With scopes such as `repo`; its owner is an administrator, or not.
    Classic {
        /// The scopes.
        scopes: BTreeSet<String>,
        /// Whether its owner administers what it reaches.
        admin: bool,
    },
    /// With permissions by name.
    FineGrained {
        /// The permissions.
        permissions: BTreeMap<String, Level>,
    },
}
