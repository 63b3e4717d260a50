//! A connection with one request, of whoever reaches a port of the operator's: its head has bounds.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::{Builder, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long a client may take for the head of its request; where there is TLS, also for the handshake before it.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// What the head of a request may have.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Bytes.
    pub bytes: usize,
    /// Headers.
    pub headers: usize,
}

/// Answers one request of a connection; the future ends with the connection.
pub fn one_request<I>(
    stream: I,
    router: Router,
    most: Head,
) -> Connection<TokioIo<I>, TowerToHyperService<Router>>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(most.bytes)
        .max_headers(most.headers)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}
