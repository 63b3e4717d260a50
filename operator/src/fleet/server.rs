//! The endpoint: reads only, on an address of its own, without a login and without a secret.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures::{Stream, stream};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};

use super::{Knows, fingerprint, host, page};
use crate::connection::{Head, one_request};
use cuda_runner_plan::fleet::Fleet;

/// Connections at once.
const CONNECTIONS: usize = 48;
/// Those of them that wait for changes.
const LISTENERS: usize = 32;
/// From the first byte of a request to the last of its answer.
const LONGEST: Duration = Duration::from_secs(30);
/// After that a browser that waits for changes connects anew.
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// The longest head of a request. An API server that passes it on adds some headers.
const HEAD: Head = Head {
    bytes: 16 << 10,
    headers: 64,
};
/// How often it is looked whether anything has changed, while anybody waits for that.
const LOOK: Duration = Duration::from_secs(2);
/// After a connection could not be accepted.
const SOON: Duration = Duration::from_millis(200);

/// Everything comes from here, and nothing else may be loaded, framed, sent or kept.
const HEADERS: [(header::HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (
        header::HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        header::HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// What every request needs.
struct Shared {
    source: Arc<dyn Knows>,
    hosts: Vec<String>,
    /// One document at a time is put together: each may be of megabytes.
    builds: Semaphore,
    /// Changes with the fleet.
    changes: watch::Sender<u64>,
}

/// Set by an answer that has no end of its own.
#[derive(Clone, Default)]
struct Waits(Arc<AtomicBool>);

/// Answers until the process ends; without a listener it does nothing until then. `hosts` are further names by which it may be
/// asked for.
pub async fn serve(page: Option<(TcpListener, impl Knows)>, hosts: Vec<String>) {
    let Some((listener, source)) = page else {
        return std::future::pending().await;
    };
    let shared = Arc::new(Shared::new(source, hosts));
    tokio::select! {
        () = accept(listener, router(Arc::clone(&shared))) => {}
        () = look(&shared) => {}
    }
}

impl Shared {
    fn new(source: impl Knows, hosts: Vec<String>) -> Self {
        Self {
            source: Arc::new(source),
            hosts,
            builds: Semaphore::new(1),
            changes: watch::Sender::new(UNSEEN),
        }
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(fleet))
        .route("/device", get(device))
        .route("/pool", get(pool))
        .route("/hours", get(hours))
        .route("/hours.csv", get(hours_csv))
        .route("/api/fleet", get(document))
        .route("/events", get(events))
        .route(
            "/style.css",
            get(async || asset("text/css; charset=utf-8", page::STYLE)),
        )
        .route(
            "/script.js",
            get(async || asset("text/javascript; charset=utf-8", page::SCRIPT)),
        )
        .route(
            "/icon.svg",
            get(async || asset("image/svg+xml", page::ICON)),
        )
        .fallback(async || (StatusCode::NOT_FOUND, "no such page\n"))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guarded))
        .with_state(shared)
}

async fn accept(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            // Hung up on, it costs nothing more; a browser tries again.
            Ok(_) if connections.len() >= CONNECTIONS => {}
            Ok((stream, _)) => {
                connections.spawn(converse(stream, router.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "the fleet page could not accept a connection");
                tokio::time::sleep(SOON).await;
            }
        }
    }
}

/// One connection, one request.
async fn converse(stream: TcpStream, router: Router) {
    let waits = Waits::default();
    let router = router.layer(Extension(waits.clone()));
    let served = one_request(stream, router, HEAD);
    tokio::pin!(served);
    let ended = match tokio::time::timeout(LONGEST, &mut served).await {
        Err(_) if waits.0.load(Ordering::Acquire) => {
            tokio::time::timeout(LONGEST_WAIT, &mut served).await
        }
        ended => ended,
    };
    if let Ok(Err(error)) = ended {
        tracing::debug!(%error, "a connection to the fleet page broke off");
    }
}

/// Refuses names that are not ours, and gives every answer its headers.
async fn guarded(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = if host::is_ours(host, &shared.hosts) {
        next.run(request).await
    } else {
        let why =
            "this page is not asked for by that name: let the operator know it, --fleet-host\n";
        (StatusCode::MISDIRECTED_REQUEST, why).into_response()
    };
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// What `tell` makes of the fleet, once there is something to tell.
async fn told(shared: &Shared, tell: impl FnOnce(&Fleet) -> Response + Send + 'static) -> Response {
    let missing = shared.source.missing();
    if !missing.is_empty() {
        let why = format!(
            "the operator has started, and reads {}\n",
            missing.join(", ")
        );
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    }
    let built = build(shared, move |fleet| tell(&fleet)).await;
    built.unwrap_or_else(|error| {
        tracing::error!(%error, "the fleet page could not be made");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    })
}

/// What `make` makes of the fleet as it is now, when nobody else has one made.
async fn build<T: Send + 'static>(
    shared: &Shared,
    make: impl FnOnce(Fleet) -> T + Send + 'static,
) -> Result<T, JoinError> {
    let _turn = shared.builds.acquire().await;
    let source = Arc::clone(&shared.source);
    tokio::task::spawn_blocking(move || make(source.fleet(Timestamp::now()))).await
}

async fn document(State(shared): State<Arc<Shared>>) -> Response {
    told(&shared, |fleet| Json(fleet).into_response()).await
}

async fn fleet(State(shared): State<Arc<Shared>>) -> Response {
    told(&shared, |fleet| html(page::fleet(fleet))).await
}

/// Which device.
#[derive(Deserialize)]
struct OfDevice {
    #[serde(default)]
    uuid: String,
}

async fn device(State(shared): State<Arc<Shared>>, Query(of): Query<OfDevice>) -> Response {
    told(&shared, move |fleet| found(page::device(fleet, &of.uuid))).await
}

/// Which pool.
#[derive(Deserialize)]
struct OfPool {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

async fn pool(State(shared): State<Arc<Shared>>, Query(of): Query<OfPool>) -> Response {
    told(&shared, move |fleet| {
        found(page::pool(fleet, &of.namespace, &of.name))
    })
    .await
}

async fn hours(State(shared): State<Arc<Shared>>) -> Response {
    told(&shared, |fleet| html(page::hours(fleet))).await
}

async fn hours_csv(State(shared): State<Arc<Shared>>) -> Response {
    told(&shared, |fleet| {
        let kind = [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
            (
                header::CONTENT_DISPOSITION,
                "attachment; filename=\"gpu-hours.csv\"",
            ),
        ];
        (kind, page::hours_csv(fleet)).into_response()
    })
    .await
}

fn found(page: Option<String>) -> Response {
    match page {
        Some(page) => html(page),
        None => (
            StatusCode::NOT_FOUND,
            "nothing is known of it: it is gone, or the operator has restarted since\n",
        )
            .into_response(),
    }
}

fn html(page: String) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// One word, `changed`, whenever the fleet has.
async fn events(State(shared): State<Arc<Shared>>, Extension(waits): Extension<Waits>) -> Response {
    if shared.changes.receiver_count() >= LISTENERS {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    }
    waits.0.store(true, Ordering::Release);
    let stream = changes(shared.changes.subscribe());
    Sse::new(stream)
        .keep_alive(KeepAlive::default())
        .into_response()
}

fn changes(seen: watch::Receiver<u64>) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(seen, async |mut seen| {
        seen.changed().await.ok()?;
        let number = *seen.borrow_and_update();
        let event = Event::default().event("changed").data(number.to_string());
        Some((Ok(event), seen))
    })
}

/// What stands for the fleet while nobody waits for its changes.
const UNSEEN: u64 = 0;

/// Looks whether anything has changed, as long as anybody waits for that.
async fn look(shared: &Shared) {
    loop {
        tokio::time::sleep(LOOK).await;
        if shared.changes.receiver_count() == 0 {
            shared.changes.send_replace(UNSEEN);
            continue;
        }
        if !shared.source.missing().is_empty() {
            continue;
        }
        let Ok(now) = build(shared, fingerprint).await else {
            continue;
        };
        // What the first one to wait was shown may be older than this look.
        shared
            .changes
            .send_if_modified(|last| std::mem::replace(last, now) != now);
    }
}

#[cfg(test)]
mod tests;
