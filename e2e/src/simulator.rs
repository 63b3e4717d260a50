//! The simulated GitHub of a cluster, as a background process of it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use github_simulator::control::Client;
use tokio::net::TcpListener;

use crate::{
    certs::Certificates,
    supervisor::{Program, Supervisor},
    wait::wait_for,
};

/// A name that its certificate has and that nobody resolves: whoever knows its address can be asked for the way.
pub const HIDDEN_NAME: &str = "github.hidden.test";

/// The repository that exists from the start.
pub const REPOSITORY: &str = github_simulator::fixtures::TENSOR_WASM;

/// What the background process needs.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// Folder with `github.crt` and `github.key`.
    #[arg(long)]
    pki: PathBuf,
    /// Folder of GitHub's description.
    #[arg(long)]
    openapi: PathBuf,
    /// Where to write the state.
    #[arg(long)]
    dump: PathBuf,
}

/// Starts it and waits until it answers.
pub async fn start(dir: &Path, supervisor: &Supervisor, listen: SocketAddr) -> Result<String> {
    let pki = dir.join("github");
    // An authority of its own, as an Enterprise Server in a company has: the operator must be told to trust it.
    let certs = Certificates::create(&pki, "Simulated GitHub")?;
    certs.server(
        "github",
        &[HIDDEN_NAME],
        &[listen.ip(), IpAddr::from([127, 0, 0, 1])],
    )?;
    let openapi = tokio::task::spawn_blocking(github_simulator::openapi::ensure).await??;
    supervisor.start(
        Program::new("github-simulator", supervisor.program())
            .arg("github-simulator")
            .arg(format!("--listen={listen}"))
            .arg(format!("--pki={}", pki.display()))
            .arg(format!("--openapi={}", openapi.display()))
            .arg(format!("--dump={}", dir.join("github.json").display())),
    )?;
    let url = format!("https://{listen}");
    let client = client(dir, &url)?;
    wait_for(
        "the simulated GitHub to answer",
        Duration::from_mins(2),
        async || {
            supervisor.check("github-simulator")?;
            Ok(client.ready().await.then_some(()))
        },
    )
    .await?;
    Ok(url)
}

/// A client for its control API.
pub fn client(dir: &Path, url: &str) -> Result<Client> {
    Ok(Client::new(url, &authority(dir)?)?)
}

/// Where the certificate of its authority is.
pub fn authority_path(dir: &Path) -> PathBuf {
    dir.join("github/ca.crt")
}

/// The certificate of its authority.
pub fn authority(dir: &Path) -> Result<String> {
    let path = authority_path(dir);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The hidden subcommand.
pub async fn run(arguments: Arguments) -> Result<()> {
    let read = |file: &str| {
        let path = arguments.pki.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let config = github_simulator::Config {
        public_url: format!("https://{}", arguments.listen),
        certificate_chain_pem: read("github.crt")? + &read("ca.crt")?,
        private_key_pem: read("github.key")?,
        openapi: arguments.openapi.clone(),
        dump_file: Some(arguments.dump.clone()),
        settings: github_simulator::state::Settings::default(),
        fixtures: true,
    };
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    github_simulator::serve(listener, config).await
}
