//! Sessions of listeners.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    sets,
    wire::{Call, access_token, error, no_such_set},
};
use crate::{
    answer::Answer,
    engine,
    state::{MessageSession, World},
    text,
};

/// There is no such session, or it is over.
pub(super) fn over() -> Answer {
    error(
        400,
        "RunnerScaleSetSessionExpired",
        "The session of the runner scale set has expired.",
    )
}

pub(super) fn create(world: &mut World, call: &Call<'_>, set: u64) -> Result<Answer, Answer> {
    let owner = call
        .body()?
        .get("ownerName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let entry = sets::find(world, call, set)?;
    if let Some(open) = &entry.session {
        let message = format!(
            "The runner scale set {} already has an active session for owner {}.",
            entry.name, open.owner
        );
        return Err(error(409, "RunnerScaleSetSessionConflict", &message));
    }
    let id = uuid();
    world.message_sessions.insert(id.clone(), set);
    let entry = world
        .scale_sets
        .get_mut(&set)
        .ok_or_else(|| no_such_set(set))?;
    entry.session = Some(MessageSession {
        id,
        owner,
        capacity: 0,
        tokens: BTreeMap::new(),
        open_calls: 0,
        last_seen: call.now,
    });
    renewed(world, set, call.now)
}

/// The session must be the open one of its scale set.
fn current(world: &World, call: &Call<'_>, set: u64, id: &str) -> Result<(), Answer> {
    sets::find(world, call, set)?
        .session
        .as_ref()
        .filter(|session| session.id == id)
        .map(|_| ())
        .ok_or_else(over)
}

pub(super) fn refresh(
    world: &mut World,
    call: &Call<'_>,
    set: u64,
    id: &str,
) -> Result<Answer, Answer> {
    current(world, call, set, id)?;
    renewed(world, set, call.now)
}

/// The open session with a new token; older ones stay good to their end.
fn renewed(world: &mut World, set: u64, now: Timestamp) -> Result<Answer, Answer> {
    let (token, expires_at) = access_token(now, world.settings.queue_token_seconds);
    let session = world
        .scale_sets
        .get_mut(&set)
        .and_then(|set| set.session.as_mut())
        .ok_or_else(over)?;
    session.tokens.retain(|_, ends| *ends > now);
    session.tokens.insert(token.clone(), expires_at);
    let set = world.scale_sets.get(&set).ok_or_else(|| no_such_set(set))?;
    let session = set.session.as_ref().ok_or_else(over)?;
    let url = format!(
        "{}/tenant/1/message?sessionId={}&api-version=6.0-preview",
        world.public_url, session.id
    );
    let shown = json!({
        "sessionId": session.id,
        "ownerName": session.owner,
        "runnerScaleSet": sets::show(world, set, now),
        "messageQueueUrl": url,
        "messageQueueAccessToken": token,
        "statistics": engine::scale_sets::statistics(world, set, now),
    });
    Ok(Answer::json(200, shown))
}

pub(super) fn delete(
    world: &mut World,
    call: &Call<'_>,
    set: u64,
    id: &str,
) -> Result<Answer, Answer> {
    current(world, call, set, id)?;
    engine::scale_sets::end_session(world, set, call.now);
    Ok(Answer::empty(204))
}

/// A random name in the form of a UUID.
fn uuid() -> String {
    let digits = text::random_hex(16);
    format!(
        "{}-{}-4{}-8{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[13..16],
        &digits[17..20],
        &digits[20..]
    )
}
