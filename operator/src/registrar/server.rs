//! The endpoint: connections, and the way of each request to who answers it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use gate_report::wire;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument as _, field::Empty, info_span};

use super::bucket::{Quiet, Rate};
use super::desk::{self, Refused, SOON};
use super::door::{Bounds, Door, Guest};
use super::job;
use super::ledger::Ledger;
use super::{Backend, CaStore, Reviewer, claims};
use crate::connection::{Head, PATIENCE, one_request};

/// The longest head of a request: its token, and as much again.
const HEAD: Head = Head {
    bytes: 2 * claims::LONGEST,
    headers: 32,
};
/// How often the log tells of those who are sent away.
const TOLD: Rate = Rate {
    burst: 10,
    per_minute: 6,
};
/// How often the books are tidied.
const TIDY: Duration = Duration::from_secs(5);

/// Bounds of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub door: Bounds,
    /// Identity checks at once.
    pub reviews: usize,
    /// Requests of one pool.
    pub pool: Rate,
    /// How often one pod may ask how far its job's containers are.
    pub looks: Rate,
    /// From the first byte of a request to the last of its answer.
    pub request_timeout: Duration,
}

/// What the endpoint works with.
pub struct Parts<D> {
    /// Says which pod asks.
    pub reviewer: Reviewer,
    /// Has the key of tickets.
    pub ca: Arc<CaStore>,
    /// The rest of the operator.
    pub backend: Arc<D>,
    /// Who has had what.
    pub ledger: Arc<Ledger>,
    /// Bounds.
    pub limits: Limits,
}

/// What every request needs.
pub(super) struct Shared<D> {
    pub(super) parts: Parts<D>,
    pub(super) reviews: Semaphore,
    pub(super) reported: Quiet,
}

/// Answers until `shutdown` is ready, then finishes what was begun.
pub async fn serve<D: Backend>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    parts: Parts<D>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let door = Arc::new(Door::new(parts.limits.door.clone()));
    let ledger = Arc::clone(&parts.ledger);
    let acceptor = TlsAcceptor::from(tls);
    let shared = Arc::new(Shared {
        reviews: Semaphore::new(parts.limits.reviews),
        reported: Quiet::new(TOLD),
        parts,
    });
    let longest = shared.parts.limits.request_timeout + PATIENCE;
    let router = Router::new()
        .route(wire::TICKETS, post(ticket::<D>))
        .route(wire::REPORTS, post(report::<D>))
        .route(wire::REGISTRATIONS, post(registration::<D>))
        .route(
            wire::JOB_CONTAINER,
            get(look_at_job::<D>).post(bring_job::<D>),
        )
        .with_state(shared);
    let mut connections = JoinSet::new();
    let mut tidy = tokio::time::interval(TIDY);
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
            _ = tidy.tick() => {
                ledger.tidy();
                door.tidy();
                continue;
            }
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, from)) => {
                // Hung up on, it costs nothing more; a gate tries again.
                let Some(guest) = door.enter(from.ip()) else {
                    continue;
                };
                let talk = converse(acceptor.clone(), stream, router.clone(), guest);
                connections.spawn(tokio::time::timeout(longest, talk));
            }
            Err(error) => {
                // Out of file descriptors, for example: others have to end first.
                tracing::warn!(%error, "the registrar could not accept a connection");
                tokio::time::sleep(SOON).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// One connection, one request: a pod has no second one for long.
async fn converse(acceptor: TlsAcceptor, stream: TcpStream, router: Router, mut guest: Guest) {
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake with the registrar failed");
            return;
        }
        Err(_) => return,
    };
    guest.is_through();
    let router = router.layer(Extension(Arc::new(guest)));
    let served = one_request(stream, router, HEAD).await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the registrar broke off");
    }
}

async fn ticket<D: Backend>(
    State(shared): State<Arc<Shared<D>>>,
    Extension(guest): Extension<Arc<Guest>>,
    request: Request,
) -> Response {
    in_time("ticket", &shared, desk::ticket(&shared, &guest, request)).await
}

async fn report<D: Backend>(State(shared): State<Arc<Shared<D>>>, request: Request) -> Response {
    in_time("report", &shared, desk::report(&shared, request)).await
}

async fn registration<D: Backend>(
    State(shared): State<Arc<Shared<D>>>,
    request: Request,
) -> Response {
    in_time(
        "registration",
        &shared,
        desk::registration(&shared, request),
    )
    .await
}

async fn bring_job<D: Backend>(State(shared): State<Arc<Shared<D>>>, request: Request) -> Response {
    in_time("job-container", &shared, job::bring(&shared, request)).await
}

async fn look_at_job<D: Backend>(
    State(shared): State<Arc<Shared<D>>>,
    request: Request,
) -> Response {
    in_time("job-container-state", &shared, job::look(&shared, request)).await
}

async fn in_time<D>(
    what: &'static str,
    shared: &Shared<D>,
    answer: impl Future<Output = Result<Response, Refused>>,
) -> Response {
    let span = info_span!(
        "registrar",
        otel.name = what,
        otel.kind = "server",
        k8s.pod.name = Empty,
        http.response.status_code = Empty
    );
    let limit = shared.parts.limits.request_timeout;
    let answer = tokio::time::timeout(limit, answer.instrument(span.clone()));
    let response = match answer.await {
        Ok(Ok(response)) => response,
        Ok(Err(refused)) => refused.into_response(),
        Err(_) => desk::timeout().into_response(),
    };
    span.record("http.response.status_code", response.status().as_u16());
    response
}
