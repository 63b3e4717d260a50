//! A request to the REST API, and its answer.

use std::marker::PhantomData;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ETAG, LINK},
};
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{Error, body::LONGEST_OF_TOKENS, budget::Cost, room::Whole};

/// A request, and what it is for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path and query, encoded, without the API's prefix.
    pub(super) path: String,
    /// JSON.
    pub(super) body: Option<Vec<u8>>,
    pub(super) tag: Option<Tag>,
    pub(super) cost: Cost,
    /// Words that fit after "may not" and "gave no answer to".
    pub(super) action: String,
}

impl Ask {
    pub(super) fn get(path: impl Into<String>, action: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: None,
            tag: None,
            cost: Cost::Read,
            action: action.into(),
        }
    }

    /// A request that changes something, without a body.
    pub(super) fn write(
        method: Method,
        path: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self {
            method,
            cost: Cost::Write,
            ..Self::get(path, action)
        }
    }
}

/// The mark of a version of an answer, by which GitHub says for nothing that it still holds. It belongs to the token that
/// it was given for: what another one may see is another answer.
#[derive(Clone, Debug)]
pub(super) struct Tag {
    value: HeaderValue,
    token: Option<Instant>,
}

impl Tag {
    /// What to send, as this token.
    pub(super) fn for_token(&self, token: Option<Instant>) -> Option<&HeaderValue> {
        (self.token == token).then_some(&self.value)
    }
}

/// A longer tag is none of GitHub's, and tags are kept.
const LONGEST_TAG: usize = 256;

/// What came back, whole, with its place in the room.
///
/// Who holds a place while he asks for more may wait for one that waits for him. So an answer is not `Send`, and what a task
/// of the operator does compiles only where none is in scope across an `await`.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Whole,
    /// When the installation token was made that asked; `None` for what signs in another way.
    token: Option<Instant>,
    is_not_send: PhantomData<*const ()>,
}

impl Answer {
    pub(super) const fn new(
        status: StatusCode,
        headers: HeaderMap,
        body: Whole,
        token: Option<Instant>,
    ) -> Self {
        Self {
            status,
            headers,
            body,
            token,
            is_not_send: PhantomData,
        }
    }

    /// Reads the body as GitHub documents it.
    pub(super) fn json<T: DeserializeOwned>(&self, ask: &Ask) -> Result<T, Error> {
        self.read(&ask.action, "what GitHub documents")
    }

    /// Refuses what is longer than any token with what comes with it: it is kept as it is.
    pub(super) fn of_tokens(&self, action: &str) -> Result<&Self, Error> {
        if self.body.bytes.len() <= LONGEST_OF_TOKENS {
            return Ok(self);
        }
        Err(Error::Malformed {
            action: action.to_owned(),
            message: format!("it is longer than {} KiB", LONGEST_OF_TOKENS / 1024),
        })
    }

    /// Reads the body. No part of it gets into the error: it may hold a secret.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        action: &str,
        expected: &str,
    ) -> Result<T, Error> {
        serde_json::from_slice(&self.body.bytes).map_err(|error| {
            let message = match error.classify() {
                serde_json::error::Category::Eof => "it is cut off".into(),
                serde_json::error::Category::Data => format!(
                    "it is not {expected}, at line {} column {}",
                    error.line(),
                    error.column()
                ),
                _ => "it is not JSON".into(),
            };
            let request_id = self.request_id();
            tracing::warn!(
                action,
                request_id,
                message,
                "GitHub gave an answer that cannot be read"
            );
            Error::Malformed {
                action: action.to_owned(),
                message,
            }
        })
    }

    pub(super) fn body(&self) -> &Bytes {
        &self.body.bytes
    }

    /// The answer whose body has not changed since `body` was read.
    pub(super) fn unchanged(self, body: Bytes) -> Self {
        Self {
            status: StatusCode::OK,
            body: body.into(),
            ..self
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(super) fn tag(&self) -> Option<Tag> {
        let value = self.headers.get(ETAG)?.as_bytes();
        let value = Some(value).filter(|value| value.len() <= LONGEST_TAG)?;
        Some(Tag {
            // A copy: the header keeps all that it came with.
            value: HeaderValue::from_bytes(value).ok()?,
            token: self.token,
        })
    }

    /// GitHub's own number for the request, which its support asks for.
    pub(super) fn request_id(&self) -> Option<&str> {
        let ids = ["x-github-request-id", "activityid"];
        ids.iter().find_map(|name| self.header(name))
    }

    /// Whether another page of the list follows.
    pub(super) fn has_next(&self) -> bool {
        self.header(LINK.as_str())
            .is_some_and(|links| links.contains("rel=\"next\""))
    }

    /// GitHub's words about a refusal, with the fields at fault, in one line. What is not in GitHub's form is not repeated:
    /// the server may be another one, whose answers are not for whoever wrote its address into a pool.
    ///
    /// The form is documented at <https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api>.
    pub(super) fn message(&self) -> String {
        let reason = self.status.canonical_reason().unwrap_or("unknown status");
        let body = serde_json::from_slice::<serde_json::Value>(&self.body.bytes).ok();
        let is_github = |body: &serde_json::Value| {
            self.request_id().is_some() || body.get("documentation_url").is_some()
        };
        let Some(body) = body.filter(is_github) else {
            return format!("{} {reason}", self.status.as_u16());
        };
        let mut message = body["message"]
            .as_str()
            .unwrap_or(reason)
            .trim_end_matches('.')
            .to_owned();
        for error in body["errors"].as_array().into_iter().flatten() {
            let text = match (error.as_str(), error["message"].as_str()) {
                (Some(text), _) | (None, Some(text)) => text.to_owned(),
                (None, None) => ["field", "code"]
                    .iter()
                    .filter_map(|key| error[key].as_str())
                    .collect::<Vec<_>>()
                    .join(" is "),
            };
            if !text.is_empty() {
                message = format!("{message}: {text}");
            }
        }
        gate_report::clean(&message, 400)
    }
}
