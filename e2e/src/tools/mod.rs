//! The programs that a cluster is made of, and those that check the project: Debian packages, Go programs built from
//! their modules, programs from crates.io and PyPI.
//!
//! Built programs are kept under `tools/NAME-VERSION` of the cache folder and never built twice; two runs that need
//! the same one meet at a lock.

mod arm64;
mod debian;
mod golang;
mod installed;
mod once;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::report::Story;
use once::folder;

pub use arm64::Cross;
pub use debian::{ahead as packages_ahead, ensure as ensure_packages, ensure_browser, unpacked};
pub use golang::KUBERNETES;
pub use installed::{cargo_deny, grafana_sdk, mdbook, zizmor};
pub use once::{lock, once};

/// The built Go programs.
#[derive(Clone, Debug)]
pub struct Tools {
    dir: PathBuf,
    kubernetes: &'static str,
}

impl Tools {
    /// Builds what is not there yet, with this version of Kubernetes.
    pub fn ensure(kubernetes: &'static str, story: &Story) -> Result<Self> {
        let dir = folder()?;
        for tool in golang::tools(kubernetes) {
            ensure(&dir, &tool, story)?;
        }
        Ok(Self { dir, kubernetes })
    }

    /// The programs that are not there yet, each with the time that it takes to build on two cores.
    pub fn missing(kubernetes: &'static str) -> Result<Vec<(String, Duration)>> {
        let dir = folder()?;
        let tools = golang::tools(kubernetes).into_iter();
        let missing = tools.filter(|tool| !dir.join(tool.folder()).is_dir());
        Ok(missing
            .flat_map(|tool| tool.parts().collect::<Vec<_>>())
            .collect())
    }

    /// etcd.
    pub fn etcd(&self) -> PathBuf {
        self.program("etcd", "etcd")
    }

    /// One of Kubernetes' programs.
    pub fn kubernetes(&self, program: &str) -> PathBuf {
        self.program("kubernetes", program)
    }

    /// One of containerd's programs. Its shim lies beside it.
    pub fn containerd(&self, program: &str) -> PathBuf {
        self.program("containerd", program)
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
        let tools = golang::tools(self.kubernetes);
        let tool = tools.iter().find(|tool| tool.name == name);
        let folder = tool.map_or_else(String::new, golang::GoTool::folder);
        self.dir.join(folder).join(file)
    }
}

fn ensure(dir: &Path, tool: &golang::GoTool, story: &Story) -> Result<()> {
    once(dir, &tool.folder(), story, |partial| {
        golang::build(tool, partial, story)
    })
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

/// The folder with krew, and with what checks its manifests.
pub fn krew(story: &Story) -> Result<PathBuf> {
    let dir = folder()?;
    ensure(&dir, &golang::KREW, story)?;
    Ok(dir.join(golang::KREW.folder()))
}

/// The folder with the CRDs of the Gateway API, `gateway.networking.k8s.io_KINDS.yaml`.
pub fn gateway_api(story: &Story) -> Result<PathBuf> {
    let dir = folder()?;
    ensure(&dir, &golang::GATEWAY_API, story)?;
    Ok(dir.join(golang::GATEWAY_API.folder()).join("crds"))
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
