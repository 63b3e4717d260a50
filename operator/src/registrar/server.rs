//! The endpoint.
use std::{future::Future, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use super::{Desk, Reviewer};

/// Bounds of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Identity checks at once.
    pub reviews: usize,
    /// Requests that one pool may make at once.
    pub pool_burst: u32,
    /// Requests that one pool may make each minute.
    pub pool_per_minute: u32,
    /// From the first byte of a request to the last of its answer.
    pub request_timeout: Duration,
}

/// Answers until `shutdown` is ready, then finishes what was begun.
pub async fn serve<D: Desk>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    reviewer: Reviewer,
    desk: Arc<D>,
    limits: Limits,
    shutdown: impl Future<Output = ()> + Send,
) {
    todo!()
}
