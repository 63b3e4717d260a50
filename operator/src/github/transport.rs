//! Requests and answers: one server, one credential, one set of trusted authorities.
//!
//! octocrab signs and sends; what it does badly is not used. It never retries here (its default sends a failing POST
//! again), it follows no link and no redirect, it mints no token (concurrent first calls mint several), and its models
//! and its cache have no part.

use std::{pin::pin, sync::Arc, time::Duration};

use http::{
    HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE, IF_NONE_MATCH, LOCATION, USER_AGENT},
};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes};
use octocrab::{
    AuthState, OctoBody, Octocrab, OctocrabBuilder,
    service::middleware::{base_uri::BaseUriLayer, extra_headers::ExtraHeadersLayer},
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use tracing::{Instrument as _, field::Empty, info_span};

use super::{
    CaBundle, Credentials, Error, Fingerprint, GitHubUrl, ProxyWay, Scope, app,
    ask::{Answer, Ask},
    body::{LONGEST_ANSWER, LONGEST_REFUSAL},
    budget::{Budget, Signs},
    connect::{Reach, connect_failed, explain},
    credentials::Kind,
    proxy::{HttpClient, http_client},
    room::{Broken, Room, Whole},
    token::{Minted, Tokens},
};

/// Supported until 2028-03-10: <https://docs.github.com/en/rest/about-the-rest-api/api-versions>.
const API_VERSION: &str = "2022-11-28";
/// From the first byte sent to the last one read.
const DEADLINE: Duration = Duration::from_secs(30);
/// As much of a log as is read.
const LONGEST_LOG: usize = 64 * 1024 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Requests to the Actions service in flight, of all pools with one credential, beside their polls. Each has a connection
/// of its own: an operator that finds a thousand scale sets at its start would open a thousand connections at once.
pub(super) const SERVICE_AT_ONCE: usize = 32;
/// A renamed repository redirects once.
const REDIRECTS: usize = 3;

/// What all transports share.
pub(super) struct Shared {
    /// The system's own authorities.
    pub(super) roots: Arc<RootCertStore>,
    /// For their answers, with a part for each namespace.
    pub(super) room: Arc<Room>,
    /// Which addresses are asked.
    pub(super) reach: Arc<Reach>,
}

/// Sends requests to one server as one credential.
pub(super) struct Transport {
    /// Signs as the token; of an App, as nobody.
    octocrab: Octocrab,
    /// An App does its work as one of its installations.
    tokens: Option<Tokens>,
    /// Where an App's installation is looked for: at an address of its account.
    scope: Scope,
    /// Signs as nobody: for addresses that carry their own signature.
    unsigned: HttpClient,
    /// Scheme and authority.
    origin: String,
    prefix: &'static str,
    budget: Budget,
    service_turns: Semaphore,
    /// For its answers.
    pub(super) room: Arc<Room>,
    /// Tells budgets apart without a word of the credential.
    id: Fingerprint,
}

/// TLS with the system's authorities and those of the bundle.
fn tls(shared: &Shared, ca: Option<&CaBundle>) -> Result<ClientConfig, rustls::Error> {
    // Shared by all, but where there are further ones.
    let mut roots = Arc::clone(&shared.roots);
    for certificate in ca.map(CaBundle::certificates).unwrap_or_default() {
        // They were tried when the bundle was read.
        Arc::make_mut(&mut roots).add(certificate.clone())?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

/// What every request says.
fn headers() -> Vec<(HeaderName, HeaderValue)> {
    let agent = concat!("cuda-runner-operator/", env!("CARGO_PKG_VERSION"));
    vec![
        (
            ACCEPT,
            HeaderValue::from_static("application/vnd.github+json"),
        ),
        (
            HeaderName::from_static("x-github-api-version"),
            HeaderValue::from_static(API_VERSION),
        ),
        (USER_AGENT, HeaderValue::from_static(agent)),
    ]
}

impl Transport {
    pub(super) fn new(
        url: &GitHubUrl,
        credentials: &Credentials,
        ca: Option<&CaBundle>,
        through: Option<&ProxyWay>,
        shared: &Shared,
        namespace: &Arc<Room>,
        id: Fingerprint,
    ) -> Result<Self, Error> {
        let origin = url.api_origin();
        let unusable = |message: String| Error::Unreachable {
            server: origin.clone(),
            action: "any request".into(),
            message,
            undelivered: true,
        };
        let tls = tls(shared, ca).map_err(|error| unusable(error.to_string()))?;
        let base: Uri = origin
            .parse()
            .map_err(|_| unusable("its address is no URI".into()))?;
        let http = http_client(tls, &base, through, Arc::clone(&shared.reach));
        let builder = OctocrabBuilder::new_empty()
            .with_service(http.clone())
            .with_layer(&BaseUriLayer::new(base))
            .with_layer(&ExtraHeadersLayer::new(Arc::new(headers())));
        let (auth, tokens) = match credentials.kind() {
            Kind::Token(token) => (
                AuthState::AccessToken {
                    token: token.clone(),
                },
                None,
            ),
            Kind::App(app) => (AuthState::None, Some(Tokens::new(app.clone()))),
        };
        let Ok(octocrab) = builder.with_auth(auth).build();
        Ok(Self {
            octocrab,
            tokens,
            scope: url.scope().clone(),
            unsigned: http,
            origin,
            prefix: url.api_prefix(),
            budget: Budget::default(),
            service_turns: Semaphore::new(SERVICE_AT_ONCE),
            room: Room::of_server(namespace),
            id,
        })
    }

    pub(super) const fn id(&self) -> Fingerprint {
        self.id
    }

    pub(super) const fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The App's installation token, minted if there is none. `None` where the credential is a token itself.
    pub(super) async fn minted(&self) -> Result<Option<Minted>, Error> {
        match &self.tokens {
            None => Ok(None),
            Some(tokens) => self.token_of(tokens).await.map(Some),
        }
    }

    /// Sends a request as the credential. Limits, 401 and 5xx are errors; every other answer is the caller's to judge.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Answer, Error> {
        let Some(tokens) = &self.tokens else {
            return accepted(self.exchange(&self.octocrab, ask, None).await?);
        };
        let minted = self.token_of(tokens).await?;
        {
            let answer = self
                .exchange(&minted.octocrab, ask, Some(minted.at))
                .await?;
            if answer.status != StatusCode::UNAUTHORIZED || minted.is_young() {
                return accepted(answer);
            }
        }
        // A 401 did nothing, so it is safe to ask again, even for a POST.
        tokens.discard(&minted).await;
        let minted = self.token_of(tokens).await?;
        accepted(
            self.exchange(&minted.octocrab, ask, Some(minted.at))
                .await?,
        )
    }

    /// Sends a request as whoever `octocrab` is, with the token that was made at `token`.
    async fn exchange(
        &self,
        octocrab: &Octocrab,
        ask: &Ask,
        token: Option<Instant>,
    ) -> Result<Answer, Error> {
        let slot = self.budget.enter(ask.cost).await?;
        let span = info_span!(
            "request to GitHub",
            otel.kind = "client",
            http.request.method = %ask.method,
            url.path = ask.path,
            http.response.status_code = Empty
        );
        let answer = self.follow(octocrab, ask, token).instrument(span.clone());
        let answer = tokio::time::timeout(DEADLINE, answer)
            .await
            .unwrap_or_else(|_| {
                Err(self.unreachable(
                    ask,
                    format!("nothing within {} seconds", DEADLINE.as_secs()),
                    false,
                ))
            })
            .inspect_err(|_| self.budget.note_silence(ask.cost))?;
        drop(slot);
        span.record("http.response.status_code", answer.status.as_u16());
        note_refusal(&answer, &ask.action);
        let message = if answer.status.is_client_error() {
            answer.message()
        } else {
            String::new()
        };
        let signs = Signs::read(answer.status, &answer.headers, &message);
        self.budget.note(ask.cost, &signs)?;
        if answer.status.is_server_error() {
            return Err(Error::Server {
                action: ask.action.clone(),
                status: answer.status.as_u16(),
                message: answer.message(),
            });
        }
        Ok(answer)
    }

    /// A renamed repository redirects, and keeps the method; redirects to another server are not followed.
    async fn follow(
        &self,
        octocrab: &Octocrab,
        ask: &Ask,
        token: Option<Instant>,
    ) -> Result<Answer, Error> {
        let mut path = format!("{}{}", self.prefix, ask.path);
        for _ in 0..REDIRECTS {
            let answer = self.once(octocrab, ask, &path, token).await?;
            let keeps_method = matches!(
                answer.status,
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
            );
            let redirects = keeps_method
                || ask.method == Method::GET
                    && matches!(
                        answer.status,
                        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND
                    );
            match answer
                .header(LOCATION.as_str())
                .and_then(|to| self.path_of(to))
            {
                Some(to) if redirects => path = to,
                _ => return Ok(answer),
            }
        }
        Err(Error::Malformed {
            action: ask.action.clone(),
            message: format!("it redirects more than {REDIRECTS} times"),
        })
    }

    /// Reads what a signed address leads to, piece by piece, without the credential: it is often another server's, and
    /// none of its business. `false` where nothing is there.
    pub(super) async fn download(
        &self,
        address: &str,
        ask: &Ask,
        take: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<bool, Error> {
        let broken = |message: String| self.unreachable(ask, message, false);
        if !self.is_as_secure(address) {
            return Err(broken("it leads to an address without TLS".into()));
        }
        let request = Request::builder()
            .uri(address)
            .body(OctoBody::empty())
            .map_err(|_| broken("it leads to what is no address".into()))?;
        let read = async {
            let response = self
                .unsigned
                .request(request)
                .await
                .map_err(|error| broken(explain(&error)))?;
            if !response.status().is_success() {
                return Ok(false);
            }
            let mut body = response.into_body();
            let mut left = LONGEST_LOG;
            while let Some(frame) = body.frame().await {
                let frame =
                    frame.map_err(|error| broken(format!("it broke off: {}", explain(&error))))?;
                let Some(piece) = frame.data_ref() else {
                    continue;
                };
                let piece = &piece[..piece.len().min(left)];
                left -= piece.len();
                take(piece);
                if left == 0 {
                    break;
                }
            }
            Ok(true)
        };
        tokio::time::timeout(DEADLINE, read)
            .await
            .unwrap_or_else(|_| {
                Err(broken(format!(
                    "nothing within {} seconds",
                    DEADLINE.as_secs()
                )))
            })
    }

    /// Whether an address that the server gave has TLS, where the server itself has it.
    pub(super) fn is_as_secure(&self, address: &str) -> bool {
        !self.origin.starts_with("https:") || address.starts_with("https://")
    }

    /// The turn of a request to the Actions service that is answered at once.
    pub(super) async fn service_turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.service_turns.acquire().await.ok()
    }

    /// Sends a request that carries what it needs, to whichever server, beside the budget of the REST API.
    pub(super) async fn call(
        &self,
        request: Request<OctoBody>,
        action: &str,
        deadline: Duration,
        most: usize,
    ) -> Result<Answer, Error> {
        let server = request.uri().authority().map_or_else(
            || self.origin.clone(),
            |authority| format!("https://{authority}"),
        );
        let broken = |message: String, undelivered: bool| Error::Unreachable {
            server: server.clone(),
            action: action.to_owned(),
            message,
            undelivered,
        };
        let span = info_span!(
            "request to GitHub",
            otel.kind = "client",
            http.request.method = %request.method(),
            url.path = request.uri().path(),
            http.response.status_code = Empty
        );
        let exchange = async {
            let response = self.unsigned.request(request).await;
            let response =
                response.map_err(|error| broken(explain(&error), connect_failed(&error)))?;
            let (parts, body) = response.into_parts();
            let body = self.body(parts.status, body, most).await;
            let mut body = body.map_err(|broken_body| match broken_body {
                Broken::Off(error) => {
                    broken(format!("the answer broke off: {}", explain(&*error)), false)
                }
                Broken::TooLong(most) => too_long(action, most),
            })?;
            // The Actions service marks its text as UTF-8, and JSON has no place for that.
            if body.bytes.starts_with(BYTE_ORDER_MARK) {
                body.bytes = body.bytes.slice(BYTE_ORDER_MARK.len()..);
            }
            Ok(Answer::new(parts.status, parts.headers, body, None))
        };
        let answer = tokio::time::timeout(deadline, exchange.instrument(span.clone()))
            .await
            .unwrap_or_else(|_| {
                let waited = format!("nothing within {} seconds", deadline.as_secs());
                Err(broken(waited, false))
            })?;
        span.record("http.response.status_code", answer.status.as_u16());
        note_refusal(&answer, action);
        Ok(answer)
    }

    /// Reads a body: of a refusal the start is enough.
    async fn body<B>(&self, status: StatusCode, body: B, most: usize) -> Result<Whole, Broken>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if status.is_success() {
            self.room.read(body, most, false).await
        } else {
            self.room.read(body, LONGEST_REFUSAL, true).await
        }
    }

    /// The path of an address on our own server.
    fn path_of(&self, location: &str) -> Option<String> {
        let path = location.strip_prefix(&self.origin).unwrap_or(location);
        (path.starts_with('/') && !path.starts_with("//")).then(|| path.to_owned())
    }

    async fn once(
        &self,
        octocrab: &Octocrab,
        ask: &Ask,
        path: &str,
        token: Option<Instant>,
    ) -> Result<Answer, Error> {
        let mut request = Request::builder().method(ask.method.clone()).uri(path);
        if let Some(tag) = ask.tag.as_ref().and_then(|tag| tag.for_token(token)) {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let request = match &ask.body {
            Some(body) => request
                .header(CONTENT_TYPE, "application/json")
                .body(OctoBody::from(body.clone())),
            None => request.body(OctoBody::empty()),
        };
        let request = request.map_err(|error| self.unreachable(ask, error.to_string(), true))?;
        let response = octocrab.execute(request).await.map_err(|error| {
            let never_sent = connect_failed(&error);
            self.unreachable(ask, explain(&error), never_sent)
        })?;
        let (parts, body) = response.into_parts();
        let body = self.body(parts.status, body, LONGEST_ANSWER).await;
        let body = body.map_err(|broken| match broken {
            Broken::Off(error) => {
                let message = format!("the answer broke off: {}", explain(&*error));
                self.unreachable(ask, message, false)
            }
            Broken::TooLong(most) => too_long(&ask.action, most),
        })?;
        Ok(Answer::new(parts.status, parts.headers, body, token))
    }

    /// The installation's token.
    async fn token_of(&self, tokens: &Tokens) -> Result<Minted, Error> {
        tokens.current(pin!(self.mint(tokens))).await
    }

    /// Asks for a token as the App itself.
    async fn mint(&self, tokens: &Tokens) -> Result<Minted, Error> {
        let signed = tokens.as_app(&self.octocrab)?;
        let installation = match tokens.installation() {
            Some(installation) => installation,
            None => self.find_installation(&signed, tokens).await?,
        };
        let (ask, at) = (tokens.ask(installation), Instant::now());
        let answer = self.exchange(&signed, &ask, None).await?;
        tokens.read(&self.octocrab, &answer, &ask, at)
    }

    /// Asks which installation of the App is at our address, and keeps it.
    async fn find_installation(&self, signed: &Octocrab, tokens: &Tokens) -> Result<u64, Error> {
        for ask in tokens.app.lookups(&self.scope) {
            let answer = self.exchange(signed, &ask, None).await?;
            match answer.status {
                StatusCode::NOT_FOUND => {}
                StatusCode::UNAUTHORIZED => return Err(tokens.unauthorized(&answer)),
                StatusCode::OK => {
                    let installation = app::found(&answer, &ask)?;
                    tokens.keep(installation);
                    return Ok(installation);
                }
                _ => {
                    return Err(Error::Validation {
                        action: ask.action,
                        message: answer.message(),
                    });
                }
            }
        }
        Err(tokens.app.nowhere(&self.scope))
    }

    fn unreachable(&self, ask: &Ask, message: String, undelivered: bool) -> Error {
        Error::Unreachable {
            server: self.origin.clone(),
            action: ask.action.clone(),
            message,
            undelivered,
        }
    }
}

/// An answer that is no refusal of the credential itself.
fn accepted(answer: Answer) -> Result<Answer, Error> {
    if answer.status != StatusCode::UNAUTHORIZED {
        return Ok(answer);
    }
    Err(Error::Unauthorized {
        message: answer.message(),
        advice: "replace the token, or the App's key, in the Secret of spec.github.credentialsRef"
            .into(),
    })
}

fn too_long(action: &str, most: usize) -> Error {
    Error::Malformed {
        action: action.to_owned(),
        message: format!("it is longer than {} KiB", most / 1024),
    }
}

/// Whether an answer is none of those by which GitHub says what is wrong.
fn is_unexpected(status: StatusCode) -> bool {
    let is_said = matches!(
        status.as_u16(),
        400 | 401 | 403 | 404 | 409 | 410 | 422 | 429
    );
    status.is_server_error() || status.is_client_error() && !is_said
}

/// For whoever asks GitHub's support about it.
fn note_refusal(answer: &Answer, action: &str) {
    if is_unexpected(answer.status) {
        tracing::warn!(
            action,
            status = answer.status.as_u16(),
            request_id = answer.request_id(),
            "GitHub gave an answer that it should not give"
        );
    } else if answer.status.is_client_error() {
        tracing::debug!(
            action,
            status = answer.status.as_u16(),
            request_id = answer.request_id(),
            "GitHub refused a request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_github_should_not_say_is_told_with_its_number() {
        let is_told = |status| is_unexpected(StatusCode::from_u16(status).unwrap());
        for status in [402, 405, 418, 451, 500, 502, 503] {
            assert!(is_told(status), "{status}");
        }
        for status in [200, 202, 304, 400, 401, 403, 404, 409, 410, 422, 429] {
            assert!(!is_told(status), "{status}");
        }
    }
}
