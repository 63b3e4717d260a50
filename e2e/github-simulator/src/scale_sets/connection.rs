//! From a registration token to the service.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::wire::{access_token, document};
use crate::{
    answer::Answer,
    exchange::Arrived,
    registration::{self, Refusal},
    state::{AdminToken, World},
};

/// `POST /actions/runner-registration`
pub(super) fn open(
    world: &mut World,
    incoming: &Arrived,
    now: Timestamp,
) -> Result<Answer, Answer> {
    if incoming.header("user-agent").is_none_or(str::is_empty) {
        return Err(Answer::error(
            403,
            "Request forbidden by administrative rules. Please make sure your request has a \
             User-Agent header",
        ));
    }
    let secret = incoming
        .header("authorization")
        .and_then(|header| header.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("remoteauth"))
        .map(|(_, secret)| secret.trim())
        .ok_or_else(|| Answer::error(401, "Requires authentication"))?;
    let asked = document(incoming).map_err(|_| Answer::error(400, "Problems parsing JSON"))?;
    let text = |name: &str| asked.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("url").is_empty() || text("runner_event") != "register" {
        return Err(Answer::invalid("Validation Failed", &[]));
    }
    let scope = registration::scope_of(world, text("url")).ok_or_else(Answer::not_found)?;
    registration::redeem(world, secret, &scope, false, now).map_err(|reason| match reason {
        Refusal::Invalid => Answer::error(401, "Bad credentials"),
        Refusal::Elsewhere => Answer::not_found(),
    })?;
    let (token, expires_at) = access_token(now, world.settings.admin_token_seconds);
    world.admin_tokens.retain(|_, token| token.expires_at > now);
    world
        .admin_tokens
        .insert(token.clone(), AdminToken { scope, expires_at });
    let url = format!("{}/tenant/1/", world.public_url);
    Ok(Answer::json(200, json!({"url": url, "token": token})))
}
