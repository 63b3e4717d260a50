//! Runners and what registers them.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// Where a runner belongs; names are lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `owner/name`.
    Repository(String),
    /// A login.
    Organization(String),
    /// A slug.
    Enterprise(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(name) | Self::Organization(name) => formatter.write_str(name),
            Self::Enterprise(name) => write!(formatter, "enterprises/{name}"),
        }
    }
}

/// A label of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Its number, where GitHub gave it one.
    pub id: Option<u64>,
    /// Its name.
    pub name: String,
    /// Given by GitHub itself.
    pub read_only: bool,
}

/// An entry on the runners page.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Its number.
    pub id: u64,
    /// Where it belongs.
    pub scope: Scope,
    /// Its name.
    pub name: String,
    /// The operating system, known from the start here.
    pub os: String,
    /// Its labels.
    pub labels: Vec<Label>,
    /// Its group; 1 in repositories.
    pub group: u64,
    /// Gone after one job.
    pub ephemeral: bool,
    /// Made by a JIT configuration.
    pub jit: bool,
    /// The scale set that it belongs to.
    pub scale_set: Option<u64>,
    /// The agent's version, once it connected.
    pub version: Option<String>,
    /// What its agent proves itself with.
    pub secret: String,
    /// When the entry was made.
    pub created_at: Timestamp,
    /// The agent's session.
    pub session: Option<Session>,
    /// The job that was assigned to it, picked up or not.
    pub job: Option<u64>,
}

/// A connected agent.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its name.
    pub id: String,
    /// Calls that are open right now.
    pub open_calls: u32,
    /// When the agent was last heard of.
    pub last_seen: Timestamp,
}

impl Runner {
    /// Whether an agent is connected.
    #[must_use]
    pub fn online(&self, now: Timestamp, grace_seconds: u32) -> bool {
        self.session.as_ref().is_some_and(|session| {
            session.open_calls > 0
                || now.duration_since(session.last_seen)
                    <= SignedDuration::from_secs(i64::from(grace_seconds))
        })
    }

    /// Whether it has every one of `labels`, whatever their case.
    #[must_use]
    pub fn fits(&self, labels: &[String]) -> bool {
        covers(self.labels.iter().map(|label| label.name.as_str()), labels)
    }
}

/// Whether all `wanted` labels are among its `own`, whatever their case.
pub(super) fn covers<'a>(own: impl Iterator<Item = &'a str>, wanted: &[String]) -> bool {
    let own: Vec<String> = own.map(str::to_lowercase).collect();
    wanted
        .iter()
        .all(|label| own.contains(&label.to_lowercase()))
}

/// A token that registers or removes runners for an hour.
#[derive(Debug, Clone)]
pub struct RegistrationToken {
    /// Where it is good.
    pub scope: Scope,
    /// For removing, not for adding.
    pub removal: bool,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How often it was used.
    pub uses: u32,
}
