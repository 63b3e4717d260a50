//! The way to the Actions service, which has the scale sets.
//!
//! GitHub does not document this service. What is known of it is what its public client does, at
//! <https://github.com/actions/scaleset>: a registration token is exchanged for the service's address and for a token
//! that is good there, and nothing of it counts as a request to the REST API but that exchange, about once an hour.

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gate_report::clean;
use http::{
    Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use jiff::{SignedDuration, Timestamp};
use octocrab::OctoBody;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Client, Error,
    ask::{Answer, Ask},
    barred::barred_by,
    body::{LONGEST_LIST, LONGEST_OF_TOKENS},
    budget::{LONGEST_PAUSE, Signs},
};
use cuda_runner_plan::model::url::encode;

/// The version of the service's API that its client speaks.
const API_VERSION: &str = "6.0-preview";
/// How the service is told who asks: its client sends a JSON object.
const AGENT: &str = concat!(
    r#"{"system":"cuda-runner-operator","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","kind":"scaleset"}"#
);
/// What its answers should be, in the words of an error.
pub(super) const EXPECTED: &str = "what the Actions service gives its client";
/// A token is not used in its last minute.
const MARGIN: SignedDuration = SignedDuration::from_mins(1);
/// The life of a token that does not say when it ends.
const LIFE: SignedDuration = SignedDuration::from_mins(10);
/// From the first byte sent to the last one read, where nothing is waited for.
const DEADLINE: Duration = Duration::from_secs(30);
/// Of all that is no list: a message is of half of it at most.
const LONGEST_REPLY: usize = 1024 * 1024;
/// What is waited for where a server does not say.
const PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// The service's address, and what is good there.
pub(super) struct Connection {
    url: String,
    token: SecretString,
    expires: Timestamp,
}

/// A request to the service.
pub(super) struct ServiceAsk<'a> {
    pub(super) method: Method,
    /// The whole address.
    pub(super) url: String,
    pub(super) token: &'a SecretString,
    pub(super) body: Option<Value>,
    /// For a queue: how many jobs may be assigned at a time.
    pub(super) capacity: Option<usize>,
    pub(super) deadline: Duration,
    /// Words that fit after "may not" and "gave no answer to".
    pub(super) action: String,
}

impl<'a> ServiceAsk<'a> {
    pub(super) fn new(
        method: Method,
        url: String,
        token: &'a SecretString,
        action: impl Into<String>,
    ) -> Self {
        Self {
            method,
            url,
            token,
            body: None,
            capacity: None,
            deadline: DEADLINE,
            action: action.into(),
        }
    }
}

/// The service's words about a refusal.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Exception {
    type_name: Option<String>,
    message: Option<String>,
    /// What the broker says instead, which has the queues.
    error_kind: Option<String>,
    /// Likewise.
    error_message: Option<String>,
}

impl Exception {
    /// Reads a refusal. What is no exception of the service's has no name.
    pub(super) fn of(answer: &Answer) -> Self {
        let read: Self = serde_json::from_slice(answer.body()).unwrap_or_default();
        let is_its = read.type_name.is_some() || read.error_kind.is_some();
        if is_its || answer.request_id().is_some() {
            read
        } else {
            // Of a server that is another one, no word is repeated.
            Self::default()
        }
    }

    /// Whether it is of that type, such as `JobStillRunningException`.
    pub(super) fn is(&self, name: &str) -> bool {
        let names = [&self.type_name, &self.error_kind];
        let mut names = names.into_iter().flatten();
        names.any(|said| said.contains(name))
    }

    /// What it says, with the broker's word for it, which tells cases apart whose message is empty.
    fn words(&self, status: StatusCode) -> String {
        let reason = status.canonical_reason().unwrap_or("unknown status");
        let texts = [&self.message, &self.error_message, &self.error_kind];
        let mut texts = texts.into_iter().flatten();
        let said = texts.find(|text| !text.is_empty());
        let said = said.map_or(reason, |text| text.trim_end_matches('.'));
        clean(said, 400)
    }
}

impl Client {
    /// Asks the service, as the pool's credentials. Every status but 401 is the caller's to judge.
    pub(super) async fn ask_service(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Value>,
        action: &str,
    ) -> Result<Answer, Error> {
        let send = async |connection: &Connection| {
            let ask = ServiceAsk {
                body: body.clone(),
                ..ServiceAsk::new(
                    method.clone(),
                    address(&connection.url, path, query),
                    &connection.token,
                    action,
                )
            };
            self.send_service(&ask).await
        };
        let connection = self.connection().await?;
        {
            let answer = send(&connection).await?;
            if answer.status != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
        }
        // A 401 did nothing. The token may have been taken back before its time.
        self.drop_connection(&connection).await;
        let connection = self.connection().await?;
        let refusal = {
            let answer = send(&connection).await?;
            if answer.status != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            self.exception(&answer, action)
        };
        self.drop_connection(&connection).await;
        Err(refusal)
    }

    /// The same with a session's token, which is not renewed here.
    pub(super) async fn ask_service_with(
        &self,
        token: &SecretString,
        method: Method,
        path: &str,
        body: Option<Value>,
        action: &str,
    ) -> Result<Answer, Error> {
        let connection = self.connection().await?;
        let url = address(&connection.url, path, &[]);
        let ask = ServiceAsk {
            body,
            ..ServiceAsk::new(method, url, token, action)
        };
        self.send_service(&ask).await
    }

    /// Sends one request to the service, or to a queue of it.
    pub(super) async fn send_service(&self, ask: &ServiceAsk<'_>) -> Result<Answer, Error> {
        let malformed = |message: &str| Error::Malformed {
            action: ask.action.clone(),
            message: message.to_owned(),
        };
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(&ask.url)
            .header(
                ACCEPT,
                format!("application/json; api-version={API_VERSION}"),
            )
            .header(USER_AGENT, AGENT)
            .header(AUTHORIZATION, bearer("Bearer", ask.token, &ask.action)?);
        if let Some(capacity) = ask.capacity {
            request = request.header("x-scalesetmaxcapacity", capacity);
        }
        let request = match &ask.body {
            Some(body) => request
                .header(CONTENT_TYPE, "application/json")
                .body(OctoBody::from(body.to_string())),
            None => request.body(OctoBody::empty()),
        };
        let request = request.map_err(|_| malformed("it names an address that is none"))?;
        // A poll waits for news, and nobody waits for it.
        let _turn = match ask.capacity {
            Some(_) => None,
            None => self.transport.service_turn().await,
        };
        let most = match (&ask.method, ask.capacity) {
            (&Method::GET, None) => LONGEST_LIST,
            _ => LONGEST_REPLY,
        };
        // What is needed to send it is not needed before its turn.
        let answer = self
            .transport
            .call(request, &ask.action, ask.deadline, most);
        Box::pin(answer).await
    }

    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let good = |expires: Timestamp| Timestamp::now() + MARGIN < expires;
        self.service
            // It is much larger than what a listener needs while it polls.
            .get(
                |last| good(last.value.expires),
                |_| Box::pin(self.connect()),
            )
            .await
    }

    /// Not another one that somebody has made meanwhile.
    async fn drop_connection(&self, connection: &Arc<Connection>) {
        self.service
            .forget(|last| Arc::ptr_eq(last, connection))
            .await;
    }

    async fn connect(&self) -> Result<Arc<Connection>, Error> {
        let token = self.registration_token().await?;
        // A token that has just been made is not known everywhere at once.
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_secs(1))
            .with_max_times(4);
        let connection = (|| self.exchange(&token))
            .retry(pauses)
            .when(|error| matches!(error, Error::Unauthorized { .. } | Error::Forbidden { .. }));
        Ok(Arc::new(connection.await?))
    }

    /// Exchanges a registration token for a connection.
    async fn exchange(&self, token: &SecretString) -> Result<Connection, Error> {
        let action = format!("connect {} to the Actions service", self.url().scope());
        let ask = Ask::write(Method::POST, "/actions/runner-registration", action.clone());
        let url = format!("{}{}", self.url().api_base(), ask.path);
        let body = json!({"url": self.url().to_string(), "runner_event": "register"});
        let request = Request::post(url)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, AGENT)
            .header(AUTHORIZATION, bearer("RemoteAuth", token, &action)?)
            .body(OctoBody::from(body.to_string()));
        let request = request.map_err(|error| Error::Malformed {
            action: action.clone(),
            message: error.to_string(),
        })?;
        let answer = self
            .transport
            .call(request, &action, DEADLINE, LONGEST_OF_TOKENS)
            .await?;
        if !answer.status.is_success() {
            return Err(match answer.status {
                StatusCode::UNAUTHORIZED => Error::Unauthorized {
                    message: answer.message(),
                    advice:
                        "the token that was made for this is not accepted yet; it is tried again"
                            .into(),
                },
                status if status.is_server_error() => self.exception(&answer, &action),
                // It is of the REST API, whose limits are refusals, too.
                status => {
                    let signs = Signs::read(status, &answer.headers, &answer.message());
                    signs
                        .limit(Timestamp::now())
                        .map_or_else(|| self.refusal(&answer, &ask), Error::from)
                }
            });
        }
        let wire: WireConnection = answer.json(&ask)?;
        if !self.transport.is_as_secure(&wire.url)
            || wire.url.parse::<Uri>().is_err()
            || wire.token.is_empty()
        {
            return Err(Error::Malformed {
                action,
                message: "it names no address of the service, or gives no token for it".into(),
            });
        }
        Ok(Connection {
            url: wire.url.trim_end_matches('/').to_owned(),
            expires: expiry(&wire.token).unwrap_or_else(|| Timestamp::now() + LIFE),
            token: wire.token.into(),
        })
    }

    /// Reads an answer that is to be OK.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        answer: &Answer,
        action: &str,
    ) -> Result<T, Error> {
        match answer.status {
            StatusCode::OK => answer.read(action, EXPECTED),
            _ => Err(self.exception(answer, action)),
        }
    }

    /// What a status means that the caller did not expect.
    pub(super) fn exception(&self, answer: &Answer, action: &str) -> Error {
        let action = action.to_owned();
        let exception = Exception::of(answer);
        let message = exception.words(answer.status);
        match answer.status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized {
                message,
                advice: "the Actions service took back the token that was made from them".into(),
            },
            StatusCode::FORBIDDEN => Error::Forbidden {
                action,
                advice: barred_by(&message)
                    .map_or_else(|| self.url().scope().grant(), str::to_owned),
                message,
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound {
                what: format!("what was needed to {action}"),
                message,
                advice: "it is looked for again, and made again where it is ours".into(),
            },
            StatusCode::CONFLICT => Error::Conflict {
                message: format!("GitHub could not {action}: {message}"),
            },
            StatusCode::TOO_MANY_REQUESTS => Error::RateLimited {
                until: Timestamp::now() + pause(answer),
                reason: format!("the Actions service has had enough requests: {message}"),
            },
            status if status.is_server_error() => Error::Server {
                action,
                status: status.as_u16(),
                message,
            },
            _ => Error::Validation { action, message },
        }
    }
}

/// The address of something the service has.
fn address(base: &str, path: &str, query: &[(&str, &str)]) -> String {
    let mut address = format!("{base}/{path}?api-version={API_VERSION}");
    for (name, value) in query {
        address.push('&');
        address.push_str(name);
        address.push('=');
        address.push_str(&encode(value));
    }
    address
}

fn bearer(scheme: &str, token: &SecretString, action: &str) -> Result<http::HeaderValue, Error> {
    let mut value = http::HeaderValue::try_from(format!("{scheme} {}", token.expose_secret()))
        .map_err(|_| Error::Malformed {
            action: action.to_owned(),
            message: "the token that was given for it cannot be used".into(),
        })?;
    value.set_sensitive(true);
    Ok(value)
}

/// How long the service wants us to wait.
fn pause(answer: &Answer) -> SignedDuration {
    answer
        .header(RETRY_AFTER.as_str())
        .and_then(|text| text.parse().ok())
        .map_or(PAUSE, |seconds: u32| {
            SignedDuration::from_secs(seconds.into()).min(LONGEST_PAUSE)
        })
}

/// When a token ends, by its own word. Nothing is trusted because of it: the service decides.
fn expiry(token: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims.exp).ok()
}

#[derive(Deserialize)]
struct WireConnection {
    #[serde(default)]
    url: String,
    #[serde(default)]
    token: String,
}
