//! Runners: listing, finding, removing, and the JIT configuration.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/actions/self-hosted-runners?apiVersion=2022-11-28>.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;

use super::{Client, Error};

/// One runner's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// GitHub's number for it.
    pub id: u64,
    /// Its name, unique within the scope.
    pub name: String,
    /// Whether an agent is connected.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// Version of its agent, once one has connected.
    pub version: Option<String>,
}

/// All runners of a scope, at one time. Listing lags: absence is no proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In GitHub's order.
    pub runners: Vec<Runner>,
    /// When the listing was begun.
    pub at: Timestamp,
}

/// What became of an entry that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is removed.
    Deleted,
    /// It was not there.
    Gone,
    /// It has a job and stays.
    Busy,
}

/// What a JIT configuration is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JitRequest {
    /// Name of the runner.
    pub name: String,
    /// All its labels, `self-hosted` too: GitHub adds none.
    pub labels: Vec<String>,
    /// From [`Client::runner_group_id`].
    pub group_id: u64,
    /// Folder for the job's files, `_work` by custom.
    pub work_folder: String,
}

/// A registered runner, and what its agent needs to be it.
#[derive(Clone, Debug)]
pub struct JitConfig {
    /// GitHub's number for the runner.
    pub runner_id: u64,
    /// The agent's configuration, base64, as GitHub gave it.
    pub encoded: SecretString,
}

impl Client {
    /// All runners of the scope, at most `max_age` old.
    ///
    /// Pools of one scope share the answer; a question that is unchanged costs nothing at GitHub.
    pub async fn list_runners(&self, max_age: Duration) -> Result<Arc<Listing>, Error> {
        todo!("{max_age:?}")
    }

    /// The runner of this name, asked afresh.
    pub async fn find_runner(&self, name: &str) -> Result<Option<Runner>, Error> {
        todo!("{name}")
    }

    /// Removes a runner's entry. One that has a job stays.
    pub async fn delete_runner(&self, id: u64) -> Result<Deletion, Error> {
        todo!("{id}")
    }

    /// Registers a runner that takes one job.
    ///
    /// An answer that got lost, or an entry that an earlier try left behind, is found by name, removed and made anew.
    /// An entry of this name that is online or busy is a [`Error::Conflict`].
    pub async fn generate_jit_config(&self, request: &JitRequest) -> Result<JitConfig, Error> {
        todo!("{request:?}")
    }
}
