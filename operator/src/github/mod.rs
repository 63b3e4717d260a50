//! GitHub, as far as the operator needs it. GitHub's wire forms stop here; its things as plain values are the plan's
//! ([`cuda_runner_plan::model::github`]).
//!
//! - [`GitHubUrl`]: whose runners, on which server.
//! - [`Credentials`]: how the operator shows who it is; [`CaBundle`]: what else it trusts.
//! - [`Clients`]: gives one [`Client`] for each address, credential and bundle.
//! - [`Client`]: what can be asked. One file per subject: `runners`, `groups`, `queue`, `runs`, `reruns`, `checks`,
//!   `versions`, `access`; `scale_sets` and `messages` by way of `service`.
//! - [`Error`]: what can go wrong, sorted by who has to act.
//! - [`budget`]: keeps all pools of one credential within GitHub's limits.

mod access;
mod app;
mod ask;
mod barred;
mod body;
pub mod budget;
mod ca;
mod checks;
mod client;
mod clients;
mod connect;
mod credentials;
mod error;
mod event;
mod groups;
mod hooks;
mod last;
mod logs;
mod messages;
mod pages;
mod proxy;
mod queue;
mod reruns;
mod room;
mod runners;
mod runs;
mod scale_sets;
mod service;
mod single;
#[cfg(test)]
pub(crate) mod tests;
mod token;
mod transport;
mod versions;

pub use cuda_runner_plan::model::github::{
    Agent, BranchRule, Check, JobOf, Lifecycle, NewScaleSet, Protection, QueuedJob, Repository,
    Ruleset, Run, RunJob, ScaleSet, Statistics, TestSum, Triggers, Workflow,
};
pub use cuda_runner_plan::model::proxy::{Proxy, ProxyError};
pub use cuda_runner_plan::model::url::{GitHubUrl, Scope, UrlError};

pub use access::AccessCheck;
pub use ca::{CaBundle, CaBundleError};
pub use checks::Reported;
pub use client::Client;
pub use clients::Clients;
pub use connect::Reach;
pub use credentials::{
    APP_ID, CREDENTIAL_KEYS, Credentials, CredentialsError, Fingerprint, INSTALLATION_ID,
    PRIVATE_KEY, TOKEN,
};
pub use error::Error;
pub use event::JobEvent;
pub use last::LastClients;
pub use messages::{Message, Queued, Session};
pub use proxy::{PROXY_USER_KEYS, ProxyUser, ProxyUserError, ProxyWay};
pub use queue::{QueuedJobs, RepositoryJobs};
pub use room::Held;
pub use runners::{Deletion, HeldLabels, JitConfig, JitRequest, ListedRunner, RunnerList};
