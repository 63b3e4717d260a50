//! `kubectl port-forward` to the operator.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{
    cluster::Cluster,
    helm::{NAMESPACE, RELEASE},
};

/// It runs until it is dropped.
pub(crate) struct PortForward {
    process: Child,
    /// It ends when nobody takes what it says.
    _output: BufReader<ChildStdout>,
    /// Address and port on this machine.
    pub(crate) local: String,
}

/// The port of the fleet page.
const FLEET_PAGE: u16 = 8082;

impl PortForward {
    /// To the fleet page.
    pub(crate) async fn fleet_page(cluster: &Cluster) -> Result<Self> {
        Self::start(cluster, &format!("service/{RELEASE}-fleet"), FLEET_PAGE).await
    }

    /// To a port of something in the operator's namespace, such as `deployment/NAME`.
    pub(crate) async fn start(cluster: &Cluster, to: &str, port: u16) -> Result<Self> {
        let mut command = cluster.kubectl(NAMESPACE);
        command
            .args(["port-forward", to, &format!(":{port}")])
            .stdout(Stdio::piped());
        tokio::task::spawn_blocking(move || {
            let mut process = command.spawn()?;
            let mut line = String::new();
            let output = process.stdout.take().context("no output")?;
            let mut output = BufReader::new(output);
            output.read_line(&mut line)?;
            // "Forwarding from 127.0.0.1:PORT -> 8081"
            let local = line.split_whitespace().nth(2).unwrap_or_default();
            Ok(Self {
                process,
                _output: output,
                local: local.to_owned(),
            })
        })
        .await?
    }
}

impl PortForward {
    /// What is at a path there.
    pub(crate) async fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.local);
        tokio::task::spawn_blocking(move || {
            let mut answer = ureq::get(&url)
                .call()
                .with_context(|| format!("{url} does not answer as it should"))?;
            Ok(answer.body_mut().read_to_string()?)
        })
        .await?
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
