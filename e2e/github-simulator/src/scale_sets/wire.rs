//! The service's own forms: who asks, documents, errors, tokens.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    answer::Answer,
    exchange::Arrived,
    openapi::Body,
    state::{Scope, World},
    text,
};

/// What comes after the scheme in the `Authorization` header.
pub(super) fn secret(incoming: &Arrived) -> &str {
    incoming
        .header("authorization")
        .and_then(|header| header.split_once(' '))
        .map(|(_, secret)| secret.trim())
        .unwrap_or_default()
}

/// A request whose sender may do what it asks for.
pub(super) struct Call<'a> {
    pub(super) incoming: &'a Arrived,
    pub(super) scope: Scope,
    pub(super) now: Timestamp,
}

impl Call<'_> {
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.incoming.query.get(name).map(String::as_str)
    }

    pub(super) fn body(&self) -> Result<&Value, Answer> {
        document(self.incoming)
    }
}

pub(super) fn document(incoming: &Arrived) -> Result<&Value, Answer> {
    match &incoming.body {
        Body::Json(value) => Ok(value),
        _ => Err(invalid("The body of the request is not JSON.")),
    }
}

/// The request must name a version and carry the token of a scope.
pub(super) fn authorize<'a>(
    world: &World,
    incoming: &'a Arrived,
    now: Timestamp,
) -> Result<Call<'a>, Answer> {
    let scope = world
        .admin_tokens
        .get(secret(incoming))
        .filter(|token| token.expires_at > now)
        .map(|token| token.scope.clone())
        .ok_or_else(unauthorized)?;
    versioned(incoming)?;
    Ok(Call {
        incoming,
        scope,
        now,
    })
}

pub(super) fn versioned(incoming: &Arrived) -> Result<(), Answer> {
    let named = incoming.query.contains_key("api-version")
        || incoming
            .header("accept")
            .is_some_and(|accept| accept.contains("api-version="));
    if named {
        return Ok(());
    }
    let message = format!(
        "No api-version was supplied for the \"{}\" request.",
        incoming.method
    );
    Err(error(400, "VssVersionNotSpecified", &message))
}

/// The service's form of an error.
pub(super) fn error(status: u16, name: &str, message: &str) -> Answer {
    let kind =
        format!("GitHub.Actions.Runtime.WebApi.{name}Exception, GitHub.Actions.Runtime.WebApi");
    Answer::json(status, json!({"typeName": kind, "message": message}))
}

pub(super) fn invalid(message: &str) -> Answer {
    error(400, "InvalidRequest", message)
}

pub(super) fn unauthorized() -> Answer {
    error(401, "Unauthorized", "The token is invalid or has expired.")
}

pub(super) fn no_such_set(id: u64) -> Answer {
    let message = format!("No runner scale set found with identifier {id}.");
    error(404, "RunnerScaleSetNotFound", &message)
}

/// A list as the service gives it.
pub(super) fn list(values: &[Value]) -> Value {
    json!({"count": values.len(), "value": values})
}

/// A token with its end, which clients read from its middle part.
pub(super) fn access_token(now: Timestamp, seconds: u32) -> (String, Timestamp) {
    let expires_at = now
        .checked_add(SignedDuration::from_secs(i64::from(seconds)))
        .unwrap_or(now);
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({"typ": "JWT", "alg": "RS256"}));
    let claims = part(json!({
        "iat": now.as_second(),
        "nbf": now.as_second(),
        "exp": expires_at.as_second(),
        "jti": text::random_hex(16),
    }));
    // Nobody but us can check the signature, and we know our tokens.
    let signature = URL_SAFE_NO_PAD.encode(text::random_hex(32));
    (format!("{head}.{claims}.{signature}"), expires_at)
}
