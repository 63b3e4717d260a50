//! GitHub, as far as the operator needs it. GitHub's types stop here.
//!
//! - [`GitHubUrl`]: whose runners, on which server.
//! - [`Credentials`]: how the operator shows who it is; [`CaBundle`]: what else it trusts.
//! - [`Clients`]: gives one [`Client`] for each address, credential and bundle.
//! - [`Client`]: what can be asked. One file per subject: `runners`, `groups`, `queue`, `runs`, `checks`,
//!   `versions`, `access`; `scale_sets` and `messages` by way of `service`.
//! - [`Error`]: what can go wrong, sorted by who has to act.
//! - [`budget`]: keeps all pools of one credential within GitHub's limits.

mod access;
mod ask;
mod body;
pub mod budget;
mod ca;
mod checks;
mod client;
mod clients;
mod connect;
mod credentials;
mod error;
mod groups;
mod logs;
mod messages;
mod pages;
mod proxy;
mod queue;
mod runners;
mod runs;
mod scale_sets;
mod service;
mod single;
#[cfg(test)]
pub(crate) mod tests;
mod token;
mod transport;
mod url;
mod versions;

pub use access::Access;
pub use ca::{CaBundle, CaBundleError};
pub use checks::{BranchRule, Check, Protection, Reported, Ruleset, Triggers};
pub use client::Client;
pub use clients::Clients;
pub use connect::Reach;
pub use credentials::{
    APP_ID, Credentials, CredentialsError, Fingerprint, INSTALLATION_ID, PRIVATE_KEY, TOKEN,
};
pub use error::Error;
pub use logs::TestSum;
pub use messages::{JobOf, Message, Session, Statistics};
pub use proxy::{Proxy, ProxyError};
pub use queue::QueuedJob;
pub use runners::{Deletion, JitConfig, JitRequest, Listing, Runner};
pub use runs::{Repository, Run, RunJob, Workflow};
pub use scale_sets::{Agent, NewScaleSet, ScaleSet};
pub use url::{GitHubUrl, Scope, UrlError};
pub use versions::Lifecycle;
