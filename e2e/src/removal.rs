//! Clusters taken away: whole ones, half made ones, and those that a killed run left.

use std::{fs, path::Path, time::Duration};

use anyhow::Result;
use rustix::process::Signal;

use crate::{
    network::Link,
    node, paths,
    process::{self, Identity},
    supervisor::Supervisor,
};

/// The file in a cluster's folder that holds its link to the machine.
pub const LINK: &str = "link.json";

/// Takes away whatever there is of the cluster in this folder: running, half made, or left by a killed run.
pub fn remove(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let supervisor = Supervisor::at(dir).identity();
    let link: Option<Link> = fs::read(dir.join(LINK))
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok())
        .flatten();
    // First the one that starts others.
    if let Some(supervisor) = supervisor {
        supervisor.signal(Signal::KILL);
    }
    process::poll(
        "the cluster's processes to end",
        Duration::from_mins(2),
        || {
            let left = process::marked(dir);
            for process in &left {
                process.signal(Signal::KILL);
            }
            left.is_empty() && !supervisor.is_some_and(Identity::alive)
        },
    )?;
    if let Some(link) = link {
        link.disconnect();
    }
    node::remove_cgroup(&node::cgroup(dir))?;
    process::remove_dir(dir)
}

/// The names of all clusters that have a folder.
pub fn names() -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(paths::clusters()?) else {
        return Ok(Vec::new());
    };
    let mut names: Vec<_> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Takes away clusters whose run was killed: those that belong to a process that is gone.
pub fn remove_orphans() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in names()? {
        let dir = paths::clusters()?.join(&name);
        let owner: Option<Identity> = fs::read(dir.join("owner.json"))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .flatten();
        if owner.is_some_and(|owner| !owner.alive()) {
            remove(&dir)?;
            removed.push(name);
        }
    }
    Ok(removed)
}
