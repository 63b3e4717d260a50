//! What all of an agent's calls have in common: who it is, refusals, waiting.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use crate::{shared::Shared, state::World};

/// A long poll ends after this time, whatever the agent asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(50);

pub(super) type Server = State<Arc<Shared>>;

/// A refusal: the kind is what the agent's exit code depends on.
pub(super) fn refuse(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(json!({"kind": kind, "message": message}))).into_response()
}

pub(super) fn gone() -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        "runnerNotFound",
        "The runner registration has been deleted from the server",
    )
}

/// The runner whose secret the request carries.
pub(super) fn authenticate(world: &World, headers: &HeaderMap) -> Result<u64, Response> {
    let secret = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    let id: u64 = secret
        .split('.')
        .next()
        .and_then(|id| id.parse().ok())
        .ok_or_else(gone)?;
    world
        .runners
        .get(&id)
        .filter(|runner| runner.secret == secret)
        .map(|runner| runner.id)
        .ok_or_else(gone)
}

/// Keeps a runner online while one of its calls is open, also when the caller hangs up.
struct Presence {
    shared: Arc<Shared>,
    runner: u64,
}

impl Presence {
    fn begin(shared: &Arc<Shared>, world: &mut World, runner: u64) -> Self {
        if let Some(session) = world
            .runners
            .get_mut(&runner)
            .and_then(|runner| runner.session.as_mut())
        {
            session.open_calls += 1;
        }
        Self {
            shared: Arc::clone(shared),
            runner,
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut world = self.shared.world();
        let now = world.now();
        if let Some(session) = world
            .runners
            .get_mut(&self.runner)
            .and_then(|runner| runner.session.as_mut())
        {
            session.open_calls = session.open_calls.saturating_sub(1);
            session.last_seen = now;
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Wait {
    wait: Option<u64>,
}

impl Wait {
    pub(super) fn longest() -> Self {
        Self {
            wait: Some(LONGEST_WAIT.as_secs()),
        }
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.wait.unwrap_or(0)).min(LONGEST_WAIT)
    }
}

/// Asks `look` after each change until it has an answer or the time is over.
pub(super) async fn wait_for<F>(shared: &Arc<Shared>, runner: u64, wait: &Wait, look: F) -> Response
where
    F: FnMut(&mut World) -> Option<Response> + Send,
{
    let presence = Presence::begin(shared, &mut shared.world(), runner);
    let answer = shared.wait(wait.duration(), look).await;
    drop(presence);
    answer.unwrap_or_else(|| StatusCode::NO_CONTENT.into_response())
}
