//! The programs that a cluster is made of, and those that check the project: Debian packages, Go programs built from
//! their modules, programs from crates.io and PyPI.
//!
//! Built programs are kept under `tools/NAME-VERSION` of the cache folder and never built twice; two runs that need
//! the same one meet at a lock.

mod debian;
mod golang;
mod installed;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{paths, process, report::Story};

pub use debian::ensure as ensure_packages;
pub use installed::{cargo_deny, grafana_sdk, mdbook, zizmor};

const KUBERNETES: &str = "1.37.2";

/// The built Go programs.
#[derive(Clone, Debug)]
pub struct Tools {
    dir: PathBuf,
}

impl Tools {
    /// Builds what is not there yet.
    pub fn ensure(story: &Story) -> Result<Self> {
        let dir = folder()?;
        for tool in golang::tools() {
            ensure(&dir, &tool, story)?;
        }
        Ok(Self { dir })
    }

    /// etcd.
    pub fn etcd(&self) -> PathBuf {
        self.program("etcd", "etcd")
    }

    /// One of Kubernetes' programs.
    pub fn kubernetes(&self, program: &str) -> PathBuf {
        self.program("kubernetes", program)
    }

    /// Helm.
    pub fn helm(&self) -> PathBuf {
        self.program("helm", "helm")
    }

    /// KWOK's controller.
    pub fn kwok(&self) -> PathBuf {
        self.program("kwok", "kwok")
    }

    /// A file of KWOK's collection of stages.
    pub fn kwok_stage(&self, path: &str) -> PathBuf {
        self.program("kwok", "stage").join(path)
    }

    fn program(&self, name: &str, file: &str) -> PathBuf {
        let tools = golang::tools();
        let tool = tools.iter().find(|tool| tool.name == name);
        let folder = tool.map_or_else(String::new, golang::GoTool::folder);
        self.dir.join(folder).join(file)
    }
}

fn ensure(dir: &Path, tool: &golang::GoTool, story: &Story) -> Result<()> {
    once(dir, &tool.folder(), story, |partial| {
        golang::build(tool, partial)
    })
}

/// Where all of them are.
fn folder() -> Result<PathBuf> {
    Ok(paths::cache()?.join("tools"))
}

/// Lua as Argo CD has it: `glua`.
pub fn lua(story: &Story) -> Result<PathBuf> {
    alone(&golang::LUA, story)
}

/// actionlint, for the workflows.
pub fn actionlint(story: &Story) -> Result<PathBuf> {
    alone(&golang::ACTIONLINT, story)
}

/// The checker of Prometheus' rules.
pub fn promtool(story: &Story) -> Result<PathBuf> {
    alone(&golang::PROMTOOL, story)
}

/// The one program of a tool that no cluster needs.
fn alone(tool: &golang::GoTool, story: &Story) -> Result<PathBuf> {
    let dir = folder()?;
    ensure(&dir, tool, story)?;
    let [(_, program)] = tool.programs else {
        anyhow::bail!("{} has several programs", tool.name);
    };
    Ok(dir.join(tool.folder()).join(program))
}

/// Helm alone, for what needs no cluster.
pub fn helm(story: &Story) -> Result<PathBuf> {
    alone(&golang::HELM, story)
}

/// Fills the folder `dir/name` with `build`, unless it exists. It is filled under another name and then renamed, so a
/// killed build leaves nothing that looks finished.
fn once(
    dir: &Path,
    name: &str,
    story: &Story,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let finished = dir.join(name);
    if finished.is_dir() {
        return Ok(());
    }
    let _lock = lock(dir, name, story)?;
    if finished.is_dir() {
        return Ok(()); // Whoever held the lock built it.
    }
    story.step(&format!("building {name}, once: this takes some minutes"));
    let partial = dir.join(format!("{name}.partial"));
    process::remove_dir(&partial)?;
    fs::create_dir_all(&partial)?;
    build(&partial).with_context(|| {
        format!(
            "cannot build {name}; what was tried is in {}",
            partial.display()
        )
    })?;
    fs::rename(&partial, &finished)?;
    Ok(())
}

/// Holds the lock `dir/NAME.lock` until dropped; says so when it has to wait.
pub fn lock(dir: &Path, name: &str, story: &Story) -> Result<File> {
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        story.step(&format!("waiting for whoever holds {}", path.display()));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_build_leaves_nothing_finished_and_a_good_one_is_not_repeated() {
        let dir = std::env::temp_dir().join(format!("e2e-once-{}", std::process::id()));
        let story = Story::silent();
        assert!(once(&dir, "x", &story, |_| anyhow::bail!("no")).is_err());
        assert!(!dir.join("x").exists());
        once(&dir, "x", &story, |partial| {
            Ok(fs::write(partial.join("f"), "1")?)
        })
        .unwrap();
        once(&dir, "x", &story, |_| anyhow::bail!("built twice")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("x/f")).unwrap(), "1");
        process::remove_dir(&dir).unwrap();
    }
}
