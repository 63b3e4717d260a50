//! The clients of the API server.

use std::net::IpAddr;
use std::time::Duration;

use http::Request;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use tower::limit::ConcurrencyLimitLayer;

use crate::error::RunError;
use crate::lease::Fence;

/// Requests to Kubernetes in flight, of all pools together. Reconciles are not bounded: most of them wait for GitHub,
/// and where that is slow its pools must not take the turns of others. Each takes a connection, which is kept open, with some
/// 60 KiB here and as much in the API server.
pub const REQUESTS: usize = 64;
/// A renewal of the lease is answered within this time.
const RENEWAL: Duration = Duration::from_secs(5);
/// A connection that says nothing for so long is dead, unless nothing was asked: an answer takes less, and a watch hears
/// something once a minute.
const SILENCE: Duration = Duration::from_secs(75);

/// A client for the cluster that we are in, or that the kubeconfig names.
pub async fn client() -> Result<Client, RunError> {
    let bounded = ConcurrencyLimitLayer::new(REQUESTS);
    let builder = ClientBuilder::try_from(cluster().await?).map_err(RunError::Kubeconfig)?;
    Ok(builder.with_layer(&bounded).build())
}

/// The client that renews the lease: with a connection of its own, so that it waits for no other request.
pub async fn renewing() -> Result<Client, RunError> {
    let mut config = cluster().await?;
    // A renewal that hangs is tried again while the lease lasts.
    config.read_timeout = Some(RENEWAL);
    config.connect_timeout = Some(RENEWAL);
    Client::try_from(config).map_err(RunError::Kubeconfig)
}

/// The way to the API server.
async fn cluster() -> Result<kube::Config, RunError> {
    let found = kube::Config::infer().await;
    let mut config = found.map_err(|e| RunError::Kubeconfig(kube::Error::InferConfig(e)))?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(config)
}

/// The same client for whoever acts: it writes nothing once another replica may lead.
#[must_use]
pub fn fenced(client: &Client, fence: &Fence) -> Client {
    let (inner, fence) = (client.clone(), fence.clone());
    let checked = tower::service_fn(move |request: Request<Body>| {
        let (inner, fence) = (inner.clone(), fence.clone());
        async move { fence.send(inner, request).await }
    });
    Client::new(checked, client.default_namespace())
}

/// The API server's addresses: pools may not have the operator ask it.
pub async fn api_server() -> Vec<IpAddr> {
    let Ok(config) = kube::Config::infer().await else {
        return vec![];
    };
    let host = config.cluster_url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::net::lookup_host((host, 443)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => {
            tracing::warn!(host, %error, "the API server's address is not known: a pool may have the operator ask it");
            vec![]
        }
    }
}
