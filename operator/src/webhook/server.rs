//! The endpoint to which GitHub delivers, on a port of its own. Whoever reaches it may send anything.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use http_body_util::LengthLimitError;
use secrecy::ExposeSecret as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::desk::Desk;
use super::seen::Seen;
use crate::connection::{Head, one_request};
use crate::github::JobEvent;

/// Connections at once.
const CONNECTIONS: usize = 128;
/// Those of them from one address: a controller of Ingresses has one for everybody.
const PER_ADDRESS: usize = 96;
/// From the first byte of a request to the last of its answer: GitHub gives up after ten seconds.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest head of a request. Proxies add some headers.
const HEAD: Head = Head {
    bytes: 16 << 10,
    headers: 64,
};
/// The longest body. That of a `workflow_job` has some 30 KiB.
const LONGEST_BODY: usize = 1 << 20;
/// What all bodies that are being read may have together, in KiB.
const ROOM: usize = 8 << 10;
/// The longest number that a delivery has.
const LONGEST_DELIVERY: usize = 64;
/// After a connection could not be accepted.
const SOON: Duration = Duration::from_millis(200);

/// What became of a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It was taken.
    Accepted,
    /// It is signed, and changes nothing here.
    Ignored,
    /// The same has come before.
    Replayed,
    /// It is not signed by any of the secrets.
    BadSignature,
    /// There is no webhook of that name.
    UnknownHook,
    /// Its body is too long.
    TooLarge,
    /// It is signed, and no JSON.
    NotJson,
    /// Too much is being read.
    Overloaded,
}

impl Outcome {
    /// All of them, for the reference.
    pub const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Ignored,
        Self::Replayed,
        Self::BadSignature,
        Self::UnknownHook,
        Self::TooLarge,
        Self::NotJson,
        Self::Overloaded,
    ];

    /// The word for it, as in the metric.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Ignored => "ignored",
            Self::Replayed => "replayed",
            Self::BadSignature => "bad_signature",
            Self::UnknownHook => "unknown_hook",
            Self::TooLarge => "too_large",
            Self::NotJson => "not_json",
            Self::Overloaded => "overloaded",
        }
    }

    /// The answer. A stranger learns nothing from it: not even which webhooks there are.
    fn answer(self) -> Response {
        match self {
            Self::Accepted | Self::Ignored | Self::Replayed => StatusCode::ACCEPTED.into_response(),
            Self::BadSignature | Self::UnknownHook => StatusCode::UNAUTHORIZED.into_response(),
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            Self::NotJson => {
                let why = "set the content type of the webhook to application/json\n";
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into_response()
            }
            Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }
}

/// What every request needs.
struct Shared<D> {
    desk: D,
    seen: Mutex<Seen>,
    room: Semaphore,
}

/// Answers until the process ends; without a listener it does nothing until then.
pub async fn serve(endpoint: Option<(TcpListener, impl Desk)>) {
    let Some((listener, desk)) = endpoint else {
        return std::future::pending().await;
    };
    let shared = Arc::new(Shared {
        desk,
        seen: Mutex::default(),
        room: Semaphore::new(ROOM),
    });
    tokio::join!(
        accept(listener, router(Arc::clone(&shared))),
        shared.desk.pass_on()
    );
}

fn router<D: Desk>(shared: Arc<Shared<D>>) -> Router {
    Router::new().fallback(deliver::<D>).with_state(shared)
}

async fn accept(listener: TcpListener, router: Router) {
    let mut connections: JoinSet<IpAddr> = JoinSet::new();
    let mut from: HashMap<IpAddr, usize> = HashMap::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                leave(&mut from, ended.ok());
                continue;
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                let address = peer.ip().to_canonical();
                let open = from.get(&address).copied().unwrap_or_default();
                // Hung up on, it costs nothing more.
                if connections.len() < CONNECTIONS && open < PER_ADDRESS {
                    from.insert(address, open + 1);
                    connections.spawn(converse(stream, router.clone(), address));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for a webhook could not be accepted");
                tokio::time::sleep(SOON).await;
            }
        }
    }
}

/// A connection has ended.
fn leave(from: &mut HashMap<IpAddr, usize>, address: Option<IpAddr>) {
    let Some(address) = address else {
        return;
    };
    if let Some(open) = from.get_mut(&address) {
        *open -= 1;
        if *open == 0 {
            from.remove(&address);
        }
    }
}

/// One connection, one request.
async fn converse(stream: TcpStream, router: Router, from: IpAddr) -> IpAddr {
    let served = one_request(stream, router, HEAD);
    if let Ok(Err(error)) = tokio::time::timeout(LONGEST, served).await {
        tracing::debug!(%error, "a connection for a webhook broke off");
    }
    from
}

async fn deliver<D: Desk>(State(shared): State<Arc<Shared<D>>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    // What was cut off has no outcome: nobody waits for it.
    match shared.judge(request).await {
        Some(outcome) => {
            shared.desk.count(outcome);
            outcome.answer()
        }
        None => StatusCode::BAD_REQUEST.into_response(),
    }
}

impl<D: Desk> Shared<D> {
    /// What becomes of a delivery. Nothing of it is read before it is known whose it is to be, nothing understood before it
    /// is known to be GitHub's.
    async fn judge(&self, request: Request) -> Option<Outcome> {
        let (head, body) = request.into_parts();
        // Whatever a proxy has put before it.
        let id = head.uri.path().rsplit('/').next().unwrap_or_default();
        let Some(secrets) = self.desk.secrets(id).await else {
            return Some(Outcome::UnknownHook);
        };
        let Some(signature) = signature(&head.headers) else {
            return Some(Outcome::BadSignature);
        };
        let body = match self.read(&head.headers, body).await {
            Ok(body) => body,
            Err(outcome) => return outcome,
        };
        let is_signed = secrets.iter().any(|secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes());
            // In a time that tells nothing of the right one.
            hmac::verify(&key, &body, &signature).is_ok()
        });
        if !is_signed {
            return Some(Outcome::BadSignature);
        }
        let (Some(delivery), Some(event)) = (
            text(&head.headers, "x-github-delivery"),
            text(&head.headers, "x-github-event"),
        ) else {
            return Some(Outcome::Ignored);
        };
        if delivery.len() > LONGEST_DELIVERY {
            return Some(Outcome::Ignored);
        }
        let is_json = text(&head.headers, header::CONTENT_TYPE.as_str())
            .is_some_and(|kind| kind.split(';').next() == Some("application/json"));
        if !is_json {
            return Some(Outcome::NotJson);
        }
        if !self.seen().is_new(id, delivery, &signature) {
            return Some(Outcome::Replayed);
        }
        let is_taken = match event {
            "ping" => self.desk.arrived(id, None),
            "workflow_job" => {
                JobEvent::read(&body).is_some_and(|event| self.desk.arrived(id, Some(event)))
            }
            _ => false,
        };
        Some(if is_taken {
            Outcome::Accepted
        } else {
            Outcome::Ignored
        })
    }

    /// The body, where it is not too long and there is room for it.
    async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<axum::body::Bytes, Option<Outcome>> {
        let length = text(headers, header::CONTENT_LENGTH.as_str());
        let length = length.and_then(|length| length.parse().ok());
        let length: usize = length.unwrap_or(LONGEST_BODY);
        if length > LONGEST_BODY {
            return Err(Some(Outcome::TooLarge));
        }
        let wanted = u32::try_from(length.div_ceil(1 << 10).max(1)).unwrap_or(u32::MAX);
        let Ok(_room) = self.room.try_acquire_many(wanted) else {
            return Err(Some(Outcome::Overloaded));
        };
        to_bytes(body, LONGEST_BODY).await.map_err(|error| {
            let error = std::error::Error::source(&error);
            let is_long = error.is_some_and(<dyn std::error::Error>::is::<LengthLimitError>);
            is_long.then_some(Outcome::TooLarge)
        })
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The signature of `X-Hub-Signature-256`, `sha256=` and 64 digits.
fn signature(headers: &HeaderMap) -> Option<[u8; 32]> {
    let digits = text(headers, "x-hub-signature-256")?.strip_prefix("sha256=")?;
    let mut bytes = [0; 32];
    let is_whole = digits.len() == 64 && digits.is_ascii();
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let pair = str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    is_whole.then_some(bytes)
}

#[cfg(test)]
mod tests;
