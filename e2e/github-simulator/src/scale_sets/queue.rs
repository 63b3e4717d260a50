//! The message queue of a session, and the jobs that a listener acquires.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    sessions, sets,
    wire::{Call, document, error, invalid, list, no_such_set, secret, unauthorized, versioned},
};
use crate::{
    answer::Answer,
    engine::scale_sets::{self, Message},
    exchange::Arrived,
    shared::Shared,
    state::{MessageSession, World},
};

/// How many runners the listener has room for.
const CAPACITY: &str = "x-scalesetmaxcapacity";

/// The scale set whose open session the request names.
fn named(world: &World, incoming: &Arrived) -> Result<u64, Answer> {
    let id = incoming
        .query
        .get("sessionId")
        .ok_or_else(|| invalid("The request names no session."))?;
    let set = *world.message_sessions.get(id).ok_or_else(unauthorized)?;
    world
        .scale_sets
        .get(&set)
        .ok_or_else(|| no_such_set(set))?
        .session
        .as_ref()
        .filter(|session| session.id == *id)
        .map(|_| set)
        .ok_or_else(sessions::over)
}

/// The open session of a scale set, if the request carries a token of it.
fn authenticated<'a>(
    world: &'a mut World,
    incoming: &Arrived,
    set: u64,
    now: Timestamp,
) -> Result<&'a mut MessageSession, Answer> {
    world
        .scale_sets
        .get_mut(&set)
        .ok_or_else(|| no_such_set(set))?
        .session
        .as_mut()
        .filter(|session| {
            session
                .tokens
                .get(secret(incoming))
                .is_some_and(|ends| *ends > now)
        })
        .ok_or_else(unauthorized)
}

/// Keeps a session open while its listener polls, also when the listener hangs up.
struct Polling {
    shared: Arc<Shared>,
    set: u64,
    session: String,
}

impl Drop for Polling {
    fn drop(&mut self) {
        let mut world = self.shared.world();
        let now = world.now();
        if let Some(session) = world
            .scale_sets
            .get_mut(&self.set)
            .and_then(|set| set.session.as_mut())
            .filter(|session| session.id == self.session)
        {
            session.open_calls = session.open_calls.saturating_sub(1);
            session.last_seen = now;
        }
    }
}

/// Takes note of a poll and of the capacity that it advertises.
fn begin(shared: &Arc<Shared>, incoming: &Arrived) -> Result<(Polling, Duration), Answer> {
    let mut world = shared.world();
    let world = &mut *world;
    let now = world.now();
    let limit = Duration::from_secs(u64::from(world.settings.message_wait_seconds));
    let set = named(world, incoming)?;
    let session = authenticated(world, incoming, set, now)?;
    versioned(incoming)?;
    if let Some(capacity) = incoming.header(CAPACITY) {
        session.capacity = capacity
            .parse()
            .map_err(|_| invalid("The capacity is not a number."))?;
    }
    session.open_calls += 1;
    session.last_seen = now;
    let polling = Polling {
        shared: Arc::clone(shared),
        set,
        session: session.id.clone(),
    };
    Ok((polling, limit))
}

/// `GET …/message`
pub(super) async fn next(shared: &Arc<Shared>, incoming: &Arrived) -> Answer {
    let last = incoming
        .query
        .get("lastMessageId")
        .and_then(|id| id.parse().ok())
        .unwrap_or(0);
    let (polling, limit) = match begin(shared, incoming) {
        Ok(begun) => begun,
        Err(refused) => return refused,
    };
    let answer = shared
        .wait(limit, |world| {
            let now = world.now();
            match named(world, incoming) {
                Ok(set) => {
                    scale_sets::next_message(world, set, last, now).map(|message| show(&message))
                }
                Err(refused) => Some(refused),
            }
        })
        .await;
    drop(polling);
    answer.unwrap_or_else(|| Answer::empty(202))
}

fn show(message: &Message) -> Answer {
    Answer::json(
        200,
        json!({
            "messageId": message.id,
            "messageType": "RunnerScaleSetJobMessages",
            "body": message.body,
            "statistics": message.statistics,
        }),
    )
}

/// `DELETE …/message/{id}`; one that was acknowledged before is no error.
pub(super) fn acknowledge(
    world: &mut World,
    incoming: &Arrived,
    id: u64,
    now: Timestamp,
) -> Result<Answer, Answer> {
    let set = named(world, incoming)?;
    authenticated(world, incoming, set, now)?;
    versioned(incoming)?;
    let set = world
        .scale_sets
        .get_mut(&set)
        .ok_or_else(|| no_such_set(set))?;
    if id > set.last_message {
        let message = format!("There is no message {id}.");
        return Err(error(404, "MessageNotFound", &message));
    }
    set.messages.remove(&id);
    Ok(Answer::empty(204))
}

/// `POST …/acquirejobs`, with the token of the queue.
pub(super) fn acquire(
    world: &mut World,
    incoming: &Arrived,
    set: u64,
    now: Timestamp,
) -> Result<Answer, Answer> {
    authenticated(world, incoming, set, now)?;
    versioned(incoming)?;
    let asked: Vec<u64> = document(incoming)?
        .as_array()
        .ok_or_else(|| invalid("The body is not a list of numbers."))?
        .iter()
        .filter_map(Value::as_u64)
        .collect();
    let acquired: Vec<Value> = scale_sets::acquire(world, set, &asked, now)
        .into_iter()
        .map(Value::from)
        .collect();
    Ok(Answer::json(200, list(&acquired)))
}

/// `GET …/acquirablejobs`
pub(super) fn acquirable(world: &World, call: &Call<'_>, set: u64) -> Result<Answer, Answer> {
    let set = sets::find(world, call, set)?;
    let url = scale_sets::acquire_url(world, set.id);
    let jobs: Vec<Value> = scale_sets::available(world, set)
        .filter_map(|job| {
            let mut shown = scale_sets::describe(world, job)?;
            shown["messageType"] = "JobAvailable".into();
            shown["acquireJobUrl"] = url.as_str().into();
            Some(shown)
        })
        .collect();
    if jobs.is_empty() {
        return Ok(Answer::empty(204));
    }
    Ok(Answer::json(200, list(&jobs)))
}
