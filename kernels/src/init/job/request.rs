//! What the job's container is asked to do. No `Debug`: there are secrets in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One connection each.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    /// Once, before all steps. Answered with [`Begun`].
    Begin(Box<Begin>),
    /// A step.
    Run(Run),
    /// The job is over: nothing of it goes on running.
    Clean,
}

/// The job's wishes for its container.
#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Begin {
    /// For all steps.
    pub(crate) env: BTreeMap<String, String>,
    /// For steps that name no folder.
    pub(crate) workdir: Option<String>,
    /// As `docker --user` has it.
    pub(crate) user: Option<String>,
    pub(crate) ulimits: Vec<Ulimit>,
    /// Lines for `/etc/hosts`.
    pub(crate) hosts: Vec<Host>,
    /// Folders that must be there.
    pub(crate) folders: Vec<String>,
    /// Names for folders.
    pub(crate) links: Vec<Link>,
}

/// As `docker --ulimit` has it; `None` is no limit.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Ulimit {
    pub(crate) name: String,
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// A name, and what it stands for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) address: String,
}

/// `path` is to be the folder `target`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Link {
    pub(crate) path: String,
    pub(crate) target: String,
}

/// A step.
#[derive(Deserialize, Serialize)]
pub(crate) struct Run {
    pub(crate) argv: Vec<String>,
    /// Beside the container's.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: Option<String>,
    /// Folders before those of the container's `PATH`.
    pub(crate) path: Vec<String>,
}

/// What the job's container says of itself.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Begun {
    pub(crate) is_alpine: bool,
    /// Sentences for the job's log.
    pub(crate) notes: Vec<String>,
}
