//! A simulator of a test's own, on a free port of this machine.

use std::time::Duration;

use anyhow::Result;
use tokio::{net::TcpListener, task::AbortHandle};

use crate::{Config, control::Client, openapi, serve, state::Settings};

/// A running simulator, with the fixtures. It ends with this.
#[derive(Debug)]
pub struct Simulator {
    /// Where it is.
    pub url: String,
    /// The certificate to trust, PEM.
    pub ca: String,
    /// What steers it.
    pub control: Client,
    server: AbortHandle,
}

impl Simulator {
    /// Starts one, and waits until it answers.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}", listener.local_addr()?);
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let ca = certified.cert.pem();
        let config = Config {
            public_url: url.clone(),
            certificate_chain_pem: ca.clone(),
            private_key_pem: certified.signing_key.serialize_pem(),
            openapi: tokio::task::spawn_blocking(openapi::ensure).await??,
            dump_file: None,
            settings: Settings::default(),
            fixtures: true,
        };
        let control = Client::new(&url, &ca)?;
        let mut server = tokio::spawn(serve(listener, config));
        let simulator = Self {
            url,
            ca,
            control,
            server: server.abort_handle(),
        };
        while !simulator.control.ready().await {
            tokio::select! {
                // It serves until it cannot.
                ended = &mut server => ended??,
                () = tokio::time::sleep(Duration::from_millis(20)) => (),
            }
        }
        Ok(simulator)
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.server.abort();
    }
}
