//! What a workflow wishes for a container, beside its image, after a look at every word of it.

use crate::job::request::{Host, Ulimit};

use super::Env;
use super::input::Mount;

/// What the container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Job,
    Service,
}

/// What the pool has.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    /// Size of `/dev/shm` in the job's container.
    pub(super) shm_bytes: Option<u64>,
    /// Paths of the template's volumes in the job's container.
    pub(super) volumes: Vec<String>,
}

/// What can be done, and what is said of the rest. No `Debug`: there are secrets in it.
#[derive(Default)]
pub(super) struct Wishes {
    pub(super) env: Env,
    pub(super) workdir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) ulimits: Vec<Ulimit>,
    pub(super) hosts: Vec<Host>,
    /// Names for the container itself.
    pub(super) names: Vec<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) entry_point: Option<String>,
    /// Whoever depends on the container wants it to be healthy first.
    pub(super) has_health_check: bool,
    /// Sentences of what is otherwise than on GitHub's own machines.
    pub(super) said: Vec<String>,
    /// Sentences of what cannot be. Where there is one, nothing is done.
    pub(super) refused: Vec<String>,
}
