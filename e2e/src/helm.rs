//! Installing the project's charts with real Helm.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{paths, process::output, tools::Tools};

/// The namespace of the operator.
pub const NAMESPACE: &str = "cuda-runner-system";
/// The release of the operator's chart.
pub const RELEASE: &str = "cuda-runner-operator";

/// Helm, for one cluster.
#[derive(Clone, Debug)]
pub struct Helm {
    program: std::path::PathBuf,
    dir: std::path::PathBuf,
}

impl Helm {
    /// Helm for the cluster in this folder.
    pub fn new(tools: &Tools, dir: &Path) -> Self {
        Self {
            program: tools.helm(),
            dir: dir.to_path_buf(),
        }
    }

    fn command(&self, namespace: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--kubeconfig")
            .arg(self.dir.join("kubeconfig"))
            .args(["--namespace", namespace]);
        // Its own files go with the cluster.
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(variable, self.dir.join("helm"));
        }
        command
    }

    /// Installs or upgrades a chart of this repository, with values as `name=value`.
    pub fn install(&self, chart: &str, values: &[String]) -> Result<()> {
        self.install_from(&charts(), chart, values)
    }

    /// The same with a chart from a folder of charts.
    pub fn install_from(&self, charts: &Path, chart: &str, values: &[String]) -> Result<()> {
        self.install_as(charts, chart, (chart, NAMESPACE), values)
    }

    /// The same as a release of this name, in this namespace.
    pub fn install_as(
        &self,
        charts: &Path,
        chart: &str,
        (release, namespace): (&str, &str),
        values: &[String],
    ) -> Result<()> {
        let folder = charts.join(chart);
        let mut command = self.command(namespace);
        command
            .args(["upgrade", "--install", "--create-namespace", release])
            .arg(folder);
        for value in values {
            command.args(["--set", value]);
        }
        output(&mut command).map(drop)
    }

    /// Removes a release.
    pub fn uninstall(&self, release: &str, namespace: &str) -> Result<()> {
        output(
            self.command(namespace)
                .args(["uninstall", release, "--ignore-not-found", "--wait"]),
        )
        .map(drop)
    }

    /// Runs Helm for a release of our own chart, in a namespace of its own, with values as JSON.
    pub fn run(
        &self,
        arguments: &[&str],
        chart: &str,
        namespace: &str,
        values: &serde_json::Value,
    ) -> Result<String> {
        let mut command = self.command(namespace);
        command
            .args(arguments)
            .arg(charts().join(chart))
            .arg("--set-json")
            .arg(values.to_string());
        output(&mut command)
    }
}

/// The folder of this repository's charts.
pub fn charts() -> std::path::PathBuf {
    paths::repository().join("charts")
}
