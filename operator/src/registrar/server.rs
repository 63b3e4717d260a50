//! The endpoint.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Extension, Router};
use gate_report::Report;
use gate_report::wire::{self, MAX_BODY, PATH, Refusal};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument as _, Span, field::Empty, info_span};

use super::admit::sentence;
use super::bucket::{Quiet, Rate};
use super::door::{Bounds, Door, Guest};
use super::ledger::{Claim, Digest, Granted, Ledger};
use super::{
    Backend, Decision, IdentityError, KnownRunner, PodIdentity, RegisterError, Registration,
    Reviewer, RunnerLookup, admit, claims,
};

/// How long a client may take for the TLS handshake, and then for the head of its request.
const PATIENCE: Duration = Duration::from_secs(4);
/// The longest head of a request: its token, and as much again.
const LONGEST_HEAD: usize = 2 * claims::LONGEST;
/// So many headers a request has at most.
const MOST_HEADERS: usize = 32;
/// How often the log tells of those who are sent away.
const TOLD: Rate = Rate {
    burst: 10,
    per_minute: 6,
};
/// When a gate asks again whose pod the stores do not show yet, or whose other request is under way.
const SOON: Duration = Duration::from_secs(1);
/// How often the books are tidied.
const TIDY: Duration = Duration::from_secs(5);
/// When a gate asks again after a failure of ours.
const LATER: Duration = Duration::from_secs(3);

/// Bounds of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections.
    pub door: Bounds,
    /// Identity checks at once.
    pub reviews: usize,
    /// Requests of one pool.
    pub pool: Rate,
    /// From the first byte of a request to the last of its answer.
    pub request_timeout: Duration,
}

/// What the endpoint works with.
pub struct Parts<D> {
    /// Says which pod asks.
    pub reviewer: Reviewer,
    /// The rest of the operator.
    pub backend: Arc<D>,
    /// Who has had what.
    pub ledger: Arc<Ledger>,
    /// Bounds.
    pub limits: Limits,
}

/// What every request needs.
struct Shared<D> {
    parts: Parts<D>,
    reviews: Semaphore,
    reported: Quiet,
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
        .route(PATH, post(handle::<D>))
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

/// One connection, one request: a gate has no second one for long.
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
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(LONGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the registrar broke off");
    }
}

async fn handle<D: Backend>(
    State(shared): State<Arc<Shared<D>>>,
    Extension(guest): Extension<Arc<Guest>>,
    request: Request,
) -> Response {
    let span = info_span!(
        "report",
        otel.kind = "server",
        k8s.pod.name = Empty,
        http.response.status_code = Empty
    );
    let answer = answer(&shared, &guest, request).instrument(span.clone());
    let answer = tokio::time::timeout(shared.parts.limits.request_timeout, answer).await;
    let response = match answer {
        Ok(Ok(response) | Err(response)) => response,
        Err(_) => timeout(),
    };
    span.record("http.response.status_code", response.status().as_u16());
    response
}

/// Nothing of the body is read before it is known who asks.
async fn answer<D: Backend>(
    shared: &Shared<D>,
    guest: &Guest,
    request: Request,
) -> Result<Response, Response> {
    let token = bearer(request.headers()).ok_or_else(|| {
        refuse(
            StatusCode::UNAUTHORIZED,
            "NoToken",
            "the request has no bearer token".to_owned(),
        )
    })?;
    let pod = identify(shared, guest, &token).await?;
    Span::current().record("k8s.pod.name", &pod.name);
    let runner = find(shared, &pod).await?;
    shared
        .parts
        .ledger
        .take(&runner.pool, shared.parts.limits.pool)
        .map_err(|wait| {
            retry(
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "the pool's gates ask too often",
                wait,
            )
        })?;
    let (report, digest) = read(request.into_body()).await?;
    let decision = admit(&report, &runner.policy);
    shared
        .parts
        .backend
        .note_report(&pod, &runner, &report, &decision)
        .await;
    // It may be large, and what follows may take long.
    drop(report);
    match decision {
        Decision::Failed => Ok(StatusCode::ACCEPTED.into_response()),
        Decision::Refuse { reason, message } => Err(refuse(StatusCode::FORBIDDEN, reason, message)),
        Decision::Admit => register(shared, pod, runner, digest).await,
    }
}

fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned().into())
}

/// Which pod asks. The API server is asked of a token only where it says of itself that it is a runner's.
async fn identify<D: Backend>(
    shared: &Shared<D>,
    guest: &Guest,
    token: &SecretString,
) -> Result<PodIdentity, Response> {
    if let Some(known) = shared.parts.reviewer.known(token) {
        return Ok(known);
    }
    let claimed = claims::pod_of(token.expose_secret(), Timestamp::now())
        .map_err(|error| not_known(shared, &error))?;
    find(shared, &claimed).await?;
    guest.may_show_a_token().map_err(|wait| {
        retry(
            StatusCode::TOO_MANY_REQUESTS,
            "TooManyRequests",
            "too many tokens from this address were refused",
            wait,
        )
    })?;
    let _turn = shared.reviews.acquire().await;
    let reviewed = shared.parts.reviewer.pod_of(token).await;
    reviewed.map_err(|error| {
        if !matches!(error, IdentityError::Unavailable(_)) {
            guest.was_refused();
        }
        not_known(shared, &error)
    })
}

fn not_known<D>(shared: &Shared<D>, error: &IdentityError) -> Response {
    let message = sentence(&error.to_string());
    if let Some(held_back) = shared.reported.lets_through() {
        tracing::info!(
            error = message,
            held_back,
            "the registrar does not know who asks"
        );
    }
    match error {
        IdentityError::NotAccepted(_) => {
            refuse(StatusCode::UNAUTHORIZED, "TokenNotAccepted", message)
        }
        IdentityError::NoPod(_) => refuse(StatusCode::FORBIDDEN, "NoPod", message),
        IdentityError::Unavailable(_) => retry(
            StatusCode::SERVICE_UNAVAILABLE,
            "IdentityUnavailable",
            &message,
            LATER,
        ),
    }
}

async fn find<D: Backend>(shared: &Shared<D>, pod: &PodIdentity) -> Result<KnownRunner, Response> {
    match shared.parts.backend.runner(pod).await {
        RunnerLookup::Known(runner) => Ok(runner),
        RunnerLookup::NotYetKnown => Err(retry(
            StatusCode::SERVICE_UNAVAILABLE,
            "NotYetKnown",
            "the operator has not seen this pod yet",
            SOON,
        )),
        RunnerLookup::Unknown => Err(refuse(
            StatusCode::FORBIDDEN,
            "NoRunner",
            format!("the pod {} is no runner of this operator", pod.name),
        )),
        RunnerLookup::Served => Err(already_registered(pod)),
        RunnerLookup::Closing => Err(closing(pod)),
    }
}

fn closing(pod: &PodIdentity) -> Response {
    refuse(
        StatusCode::FORBIDDEN,
        "Closing",
        format!("the runner {} or its pool is being removed", pod.name),
    )
}

async fn read(body: Body) -> Result<(Report, Digest), Response> {
    let bad = |reason, message| refuse(StatusCode::BAD_REQUEST, reason, message);
    let bytes: Bytes = axum::body::to_bytes(body, MAX_BODY).await.map_err(|_| {
        bad(
            "ReportNotRead",
            format!("the report broke off, or is longer than {MAX_BODY} bytes"),
        )
    })?;
    let report = Report::read(&bytes).map_err(|error| {
        bad(
            "ReportInvalid",
            format!("the report cannot be understood: {error}"),
        )
    })?;
    Ok((report, Digest::of(&bytes)))
}

async fn register<D: Backend>(
    shared: &Shared<D>,
    pod: PodIdentity,
    runner: KnownRunner,
    report: Digest,
) -> Result<Response, Response> {
    match shared.parts.ledger.claim(&pod.uid, report) {
        Claim::Granted(granted) => attempt(shared, pod, runner, granted).await,
        Claim::UnderWay => Err(retry(
            StatusCode::SERVICE_UNAVAILABLE,
            "UnderWay",
            "another request of this pod is being answered",
            SOON,
        )),
        Claim::Again(registration) => {
            tracing::info!(runner = %pod.name, "the registration is given once more: its gate asks again");
            Ok(hand_over(&registration))
        }
        Claim::Done => Err(already_registered(&pod)),
        Claim::Closed => Err(closing(&pod)),
    }
}

fn already_registered(pod: &PodIdentity) -> Response {
    let message = format!(
        "the pod {} has had its registration; each pod gets one",
        pod.name
    );
    refuse(StatusCode::FORBIDDEN, "AlreadyRegistered", message)
}

/// In a task of its own: the gate may hang up meanwhile, and finds the registration when it asks again.
async fn attempt<D: Backend>(
    shared: &Shared<D>,
    pod: PodIdentity,
    runner: KnownRunner,
    granted: Granted,
) -> Result<Response, Response> {
    let (backend, limit) = (
        Arc::clone(&shared.parts.backend),
        shared.parts.limits.request_timeout,
    );
    let attempt = async move {
        let made = tokio::time::timeout(limit, backend.register(&pod, &runner)).await;
        if let Ok(Ok(registration)) = &made {
            granted.done(registration.clone());
        }
        made
    };
    match tokio::spawn(attempt.in_current_span()).await {
        Ok(Ok(Ok(registration))) => Ok(hand_over(&registration)),
        Ok(Ok(Err(RegisterError::Retry {
            after,
            reason,
            message,
        }))) => Err(retry(
            StatusCode::SERVICE_UNAVAILABLE,
            &reason,
            &message,
            after,
        )),
        Ok(Ok(Err(RegisterError::Refused { reason, message }))) => {
            Err(refuse(StatusCode::FORBIDDEN, &reason, message))
        }
        Ok(Err(_)) | Err(_) => Err(timeout()),
    }
}

fn hand_over(registration: &Registration) -> Response {
    let registration = match registration {
        Registration::JitConfig(encoded) => wire::Registration::JitConfig {
            encoded_jit_config: encoded.expose_secret().to_owned(),
        },
        Registration::RegistrationToken(token) => wire::Registration::RegistrationToken {
            token: token.expose_secret().to_owned(),
        },
    };
    axum::Json(registration).into_response()
}

fn timeout() -> Response {
    retry(
        StatusCode::SERVICE_UNAVAILABLE,
        "Timeout",
        "the registrar did not come to an end in time",
        LATER,
    )
}

fn refuse(status: StatusCode, reason: &str, message: String) -> Response {
    (
        status,
        axum::Json(Refusal {
            reason: reason.to_owned(),
            message,
        }),
    )
        .into_response()
}

/// A refusal that time may fix.
fn retry(status: StatusCode, reason: &str, message: &str, after: Duration) -> Response {
    let mut response = refuse(status, reason, message.to_owned());
    // Whole seconds, and never none: a client would ask again at once.
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    response
}
