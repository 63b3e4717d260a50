//! Everything that the simulated GitHub knows, behind one lock.

mod accounts;
mod budget;
mod hooks;
mod jobs;
mod runners;
mod scale_sets;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use accounts::{
    App, Branch, Check, Credential, CredentialKind, Enterprise, Installation, InstallationToken,
    Level, Organization, Protection, Repository, RequiredStatusChecks, RunnerGroup, Workflow,
    fork_id,
};
pub use budget::Budget;
pub use hooks::{Delivery, Hook, Troubles};
pub use jobs::{Conclusion, Job, JobPhase, JobTemplate, Note, Run, Step, StepTemplate};
pub use runners::{Label, RegistrationToken, Runner, Scope, Session};
pub use scale_sets::{
    AdminToken, ChangeKind, JobChange, MessageSession, ScaleSet, ScaleSetLabel, Statistics,
};

use crate::faults::Fault;

/// What a test may turn; all of it can be changed while the simulator runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each of them is a switch of its own"
)]
pub struct Settings {
    /// An assigned job that its runner does not pick up within this time is queued again.
    pub pickup_seconds: u32,
    /// A runner that has not been heard of for this time is offline.
    pub offline_seconds: u32,
    /// The job of a runner that has not been heard of for this time fails.
    pub lost_seconds: u32,
    /// Agents below this version are neither registered nor given jobs.
    pub minimum_agent: String,
    /// Says when versions end, by version: registration, then running.
    pub deprecations: BTreeMap<String, Deprecation>,
    /// New runners show up in lists only after this time.
    pub listing_lag_millis: u32,
    /// Requests an hour for a credential.
    pub hourly_limit: u32,
    /// The number of the App that reports the checks of workflows.
    pub actions_app_id: u64,
    /// The version that `/meta` reports as an Enterprise Server; empty for github.com.
    pub server_version: String,
    /// Whether a dispatch can answer with the ids of its run. Where not, and on Enterprise Servers up to 3.20, whoever asks
    /// for them is refused.
    pub dispatch_details: bool,
    /// Registration tokens work once only, stricter than GitHub.
    pub single_use_registration: bool,
    /// The life of a token for the scale sets of a scope.
    pub admin_token_seconds: u32,
    /// The life of a token for a message queue.
    pub queue_token_seconds: u32,
    /// A job that no runner of its scale set has begun after this time is taken back, up to three times.
    pub assignment_seconds: u32,
    /// It is assigned again after this time, which doubles each time.
    pub assigned_again_seconds: u32,
    /// A poll for a message ends after this time.
    pub message_wait_seconds: u32,
    /// The session of a listener that has not polled for this time is over.
    pub session_seconds: u32,
    /// Whether a scale set has the labels that it was made with, and not only its name as on older
    /// servers.
    pub honour_labels: bool,
    /// Jobs are offered to scale sets, which have to acquire them, as in former times.
    pub scale_sets_offer: bool,
    /// Whether agents may use container hooks: without the server's consent they ask Docker.
    pub allow_container_hooks: bool,
    /// A job that an agent acquires is that agent's, which never gets it: the answer is kept back, and has nothing in it.
    pub acquire_hangs: bool,
    /// The addresses at which runners are to ask for jobs from now on, by their names.
    pub broker_migrations: BTreeMap<String, String>,
    /// What becomes of the deliveries of webhooks.
    pub deliveries: Troubles,
}

/// When GitHub stops to accept a version of the agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Deprecation {
    /// From then on it cannot be registered.
    pub registration: Option<Timestamp>,
    /// From then on it gets no jobs.
    pub runtime: Option<Timestamp>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pickup_seconds: 60,
            offline_seconds: 10,
            lost_seconds: 30,
            minimum_agent: "2.329.0".to_owned(),
            deprecations: BTreeMap::new(),
            listing_lag_millis: 0,
            hourly_limit: 5000,
            actions_app_id: 15_368,
            server_version: "3.21.0".to_owned(),
            dispatch_details: true,
            single_use_registration: false,
            admin_token_seconds: 3600,
            queue_token_seconds: 3600,
            assignment_seconds: 300,
            assigned_again_seconds: 30,
            message_wait_seconds: 50,
            session_seconds: 120,
            honour_labels: true,
            scale_sets_offer: false,
            allow_container_hooks: true,
            acquire_hangs: false,
            broker_migrations: BTreeMap::new(),
            deliveries: Troubles::default(),
        }
    }
}

impl Settings {
    /// Whether a dispatch can answer with the ids of its run.
    #[must_use]
    pub fn names_dispatched_runs(&self) -> bool {
        let mut parts = self.server_version.split('.').map(str::parse::<u32>);
        let is_old = match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor) <= (3, 20),
            _ => false,
        };
        self.dispatch_details && !is_old
    }
}

/// One REST request as it was seen, for suites that count.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Running number from 1.
    pub n: u64,
    /// When it came.
    pub at: Timestamp,
    /// The method.
    pub method: String,
    /// The path with its query, as sent.
    pub path: String,
    /// GitHub's name of the operation, where there is one.
    pub operation_id: Option<String>,
    /// The status answered; absent where the connection was dropped.
    pub status: Option<u16>,
    /// Who asked, never the secret itself.
    pub credential: String,
    /// The `User-Agent`.
    pub user_agent: String,
    /// The address that it came from.
    pub from: IpAddr,
    /// Whether it counts against the hourly limit.
    pub counted: bool,
    /// The fault that was injected, in words.
    pub fault: Option<String>,
}

/// A request or an answer that GitHub's description does not allow.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Number of the request, see [`Seen::n`].
    pub request: u64,
    /// `request` or `answer`.
    pub side: Side,
    /// Method and path.
    pub what: String,
    /// GitHub's name of the operation, where there is one.
    pub operation_id: Option<String>,
    /// What is wrong.
    pub complaint: String,
}

/// Who broke the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// The client: a fault of the product.
    Request,
    /// The simulator: a fault of ours.
    Answer,
}

/// The whole state.
#[derive(Debug)]
pub struct World {
    /// Where the server is reached, without a slash at the end.
    pub public_url: String,
    /// What a test may turn.
    pub settings: Settings,
    /// Repositories by lower-case full name.
    pub repositories: BTreeMap<String, Repository>,
    /// Organizations by lower-case login.
    pub organizations: BTreeMap<String, Organization>,
    /// Enterprises by lower-case slug.
    pub enterprises: BTreeMap<String, Enterprise>,
    /// GitHub Apps by number.
    pub apps: BTreeMap<u64, App>,
    /// Their installations by number.
    pub installations: BTreeMap<u64, Installation>,
    /// Tokens of installations by secret.
    pub installation_tokens: BTreeMap<String, InstallationToken>,
    /// Classic and fine-grained tokens by secret.
    pub credentials: BTreeMap<String, Credential>,
    /// Registration and removal tokens by secret.
    pub registration_tokens: BTreeMap<String, RegistrationToken>,
    /// Runners by number.
    pub runners: BTreeMap<u64, Runner>,
    /// Runner scale sets by number.
    pub scale_sets: BTreeMap<u64, ScaleSet>,
    /// Tokens for scale sets by secret.
    pub admin_tokens: BTreeMap<String, AdminToken>,
    /// The scale set of every session that there ever was, by the session's name.
    pub message_sessions: BTreeMap<String, u64>,
    /// Workflow runs by number.
    pub runs: BTreeMap<u64, Run>,
    /// Jobs by number.
    pub jobs: BTreeMap<u64, Job>,
    /// Check runs of Apps by number.
    pub notes: BTreeMap<u64, Note>,
    /// Webhooks by number.
    pub hooks: BTreeMap<u64, Hook>,
    /// The status of each job that webhooks were last told, while there are any.
    pub told: BTreeMap<u64, &'static str>,
    /// Deliveries to be made: webhook, delivery, and not before.
    pub outbox: Vec<(u64, u64, Timestamp)>,
    /// Faults that wait for their request.
    pub faults: Vec<Fault>,
    /// Hourly budgets by credential.
    pub budgets: BTreeMap<String, Budget>,
    /// What was asked; the oldest are forgotten.
    pub seen: VecDeque<Seen>,
    /// What broke the contract.
    pub violations: Vec<Violation>,
    last_id: u64,
    requests: u64,
    offset: SignedDuration,
}

/// So many requests are remembered.
const REMEMBERED: usize = 200_000;

impl World {
    /// An empty GitHub.
    #[must_use]
    pub fn new(public_url: &str, settings: Settings) -> Self {
        Self {
            public_url: public_url.trim_end_matches('/').to_owned(),
            settings,
            repositories: BTreeMap::new(),
            organizations: BTreeMap::new(),
            enterprises: BTreeMap::new(),
            apps: BTreeMap::new(),
            installations: BTreeMap::new(),
            installation_tokens: BTreeMap::new(),
            credentials: BTreeMap::new(),
            registration_tokens: BTreeMap::new(),
            runners: BTreeMap::new(),
            scale_sets: BTreeMap::new(),
            admin_tokens: BTreeMap::new(),
            message_sessions: BTreeMap::new(),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            notes: BTreeMap::new(),
            hooks: BTreeMap::new(),
            told: BTreeMap::new(),
            outbox: Vec::new(),
            faults: Vec::new(),
            budgets: BTreeMap::new(),
            seen: VecDeque::new(),
            violations: Vec::new(),
            last_id: 1000,
            requests: 0,
            offset: SignedDuration::ZERO,
        }
    }

    /// A number that was never used before.
    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The number of the next request.
    pub fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// The simulated time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        now.checked_add(self.offset).unwrap_or(now)
    }

    /// Lets time pass at once, for tests of what expires.
    pub fn advance(&mut self, by: SignedDuration) {
        self.offset = self.offset.checked_add(by).unwrap_or(self.offset);
    }

    /// Remembers a request.
    pub fn remember(&mut self, seen: Seen) {
        if self.seen.len() >= REMEMBERED {
            self.seen.pop_front();
        }
        self.seen.push_back(seen);
    }

    /// The repository of that owner and name.
    #[must_use]
    pub fn repository(&self, full_name: &str) -> Option<&Repository> {
        self.repositories.get(&full_name.to_lowercase())
    }

    /// The repository of that owner and name.
    pub fn repository_mut(&mut self, full_name: &str) -> Option<&mut Repository> {
        self.repositories.get_mut(&full_name.to_lowercase())
    }
}
