//! The operator of one case, as a process of its own: killed, started again, and watched for what it must not do.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::json;
use tokio::{process::Command, task::AbortHandle};

use super::{PROFILE, progress::Progress};
use crate::{
    certs, images,
    process::{self, Identity, MARKER},
};

/// Below the range from which outgoing connections take theirs: a port that is free stays free.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

fn port() -> Result<u16> {
    for _ in 0..10_000 {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port is free from 20000 on")
}

/// What an operator says when it ends because another one leads.
const LEASE_LOST: &str = "this replica does not lead any more";

/// The process that runs now, for signals.
#[derive(Default)]
pub(super) struct Victim {
    process: Mutex<Option<Identity>>,
    killed: AtomicBool,
}

impl Victim {
    pub(super) fn signal(&self, signal: Signal) {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = *process {
            if signal == Signal::KILL {
                self.killed.store(true, Ordering::SeqCst);
            }
            process.signal(signal);
        }
    }

    fn is(&self, process: Option<Identity>) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
    }
}

/// An operator that is started again whenever it ends, until this is dropped.
pub(super) struct Operator {
    pub(super) log: PathBuf,
    ended: Arc<Mutex<Vec<String>>>,
    keeper: AbortHandle,
}

/// What an operator is started with.
pub(super) struct Start<'a> {
    pub(super) dir: &'a Path,
    pub(super) namespace: &'a str,
    /// A kubeconfig that leads to the server itself.
    pub(super) kubeconfig: &'a Path,
    /// The authority of the proxy.
    pub(super) authority: &'a str,
    /// Where the API server seems to be.
    pub(super) server: &'a str,
    /// Which of several replicas it is.
    pub(super) replica: Option<usize>,
}

impl Operator {
    pub(super) fn start(
        start: &Start<'_>,
        victim: Arc<Victim>,
        progress: Arc<Progress>,
    ) -> Result<Self> {
        let name = match start.replica {
            Some(replica) => format!("{}-{replica}", start.namespace),
            None => start.namespace.to_owned(),
        };
        let config = start.dir.join(format!("config/{name}.kubeconfig"));
        through(start, &config)?;
        let log = start.dir.join(format!("logs/{name}.log"));
        let registrar = format!("127.0.0.1:{}", port()?);
        let mut command = Command::new(images::artifact(PROFILE, "cuda-runner-operator"));
        command
            .arg("run")
            .arg("--gate-image=localhost/cuda-smoke:dev")
            .arg("--allow-github-address=127.0.0.1")
            .arg(format!("--operator-namespace={}", start.namespace))
            .arg(format!("--watch-namespace={}", start.namespace))
            .arg(format!("--registrar-listen={registrar}"))
            .arg(format!("--registrar-url=https://{registrar}"))
            .arg(format!("--health-listen=127.0.0.1:{}", port()?))
            .env("KUBECONFIG", &config)
            .env("RUST_LOG", "info,cuda_runner_operator=debug")
            .env(MARKER, start.dir)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if start.replica.is_some() {
            command.arg("--leader-elect");
        }
        let identity = start.replica.map(|_| name);
        let ended = Arc::new(Mutex::new(vec![]));
        let keeper = tokio::spawn(keep(
            command,
            log.clone(),
            victim,
            progress,
            Arc::clone(&ended),
            identity,
        ))
        .abort_handle();
        Ok(Self { log, ended, keeper })
    }

    /// What it did that an operator must not do.
    pub(super) fn wrongs(&self) -> Vec<String> {
        let mut wrongs = self
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let panic = log.lines().find(|line| line.contains("panicked at"));
        wrongs.extend(panic.map(|line| format!("it panicked: {line}")));
        wrongs
    }

    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = process::tail(&log, 60);
        format!("the operator's last words:\n{last}")
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

async fn keep(
    mut command: Command,
    log: PathBuf,
    victim: Arc<Victim>,
    progress: Arc<Progress>,
    ended: Arc<Mutex<Vec<String>>>,
    identity: Option<String>,
) -> Result<()> {
    for start in 0.. {
        if let Some(identity) = &identity {
            // Each is a pod of its own.
            command.env("POD_NAME", format!("{identity}-{start}"));
        }
        let file = process::append(&log)?;
        let begun = usize::try_from(file.metadata()?.len())?;
        let mut child = command
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start the operator")?;
        victim.is(child.id().and_then(Identity::of));
        if victim.killed.swap(false, Ordering::SeqCst) {
            progress.over();
        }
        let how = child.wait().await?;
        victim.is(None);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let said = last_words(text.get(begun..).unwrap_or_default());
        if identity.is_some() && said.contains(LEASE_LOST) {
            continue;
        }
        if !victim.killed.load(Ordering::SeqCst) {
            ended
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("the operator ended by itself: {how}; {said}"));
            // As a kubelet would.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    Ok(())
}

/// Why it says that it ended. Its other threads may have logged something since.
fn last_words(log: &str) -> &str {
    let mut lines = log.lines().rev();
    let found = lines.find_map(|line| line.strip_prefix("cuda-runner-operator: "));
    found.unwrap_or("it does not say why")
}

/// The same kubeconfig, by way of the proxy.
fn through(start: &Start<'_>, to: &Path) -> Result<()> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(start.kubeconfig)?)?;
    config["clusters"][0]["cluster"] = json!({
        "server": start.server,
        "certificate-authority-data": STANDARD.encode(start.authority),
    });
    certs::secret(to, &config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_found_among_what_is_logged_meanwhile() {
        let ended = "cuda-runner-operator: this replica does not lead any more\n";
        for (log, words) in [
            (ended.to_owned(), LEASE_LOST),
            (
                format!("INFO a\n{ended}DEBUG b\nWARN c\nWARN d\n"),
                LEASE_LOST,
            ),
            (
                format!("{ended}INFO a\ncuda-runner-operator: no threads\n"),
                "no threads",
            ),
            ("INFO a\n".to_owned(), "it does not say why"),
        ] {
            assert_eq!(last_words(&log), words, "{log}");
        }
    }
}
