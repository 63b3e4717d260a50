//! What simulated agents speak: register, open a session, wait for a job, run it, report.
//!
//! A private protocol in JSON below `/_agent/`. It stands for GitHub's undocumented one, and keeps
//! what can be seen of that from outside: sessions, offers that have to be picked up, refusals.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    engine::{self, NotAcquired},
    registration,
    rest::runners,
    shared::Shared,
    state::{JobPhase, Scope, Session, World},
    text,
};

mod event;
mod jobs;
mod wire;

use wire::{Server, Wait, authenticate, gone, refuse, wait_for};

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/_agent/register", post(register))
        .route("/_agent/remove", post(remove))
        .route("/_agent/sessions", post(open))
        .route("/_agent/sessions/{id}", delete(close))
        .route("/_agent/sessions/{id}/message", get(message))
        .route("/_agent/jobs/{id}/acquire", post(acquire))
        .route("/_agent/jobs/{id}/control", get(jobs::control))
        .route("/_agent/jobs/{id}/log", post(jobs::log))
        .route("/_agent/jobs/{id}/steps/{number}", post(jobs::step))
        .route("/_agent/jobs/{id}/complete", post(jobs::complete))
        .route("/_logs/{id}", get(jobs::job_log))
        .with_state(shared)
}

/// Numbers of a version, for comparing.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(['.', '-', '+'])
        .map_while(|part| part.parse().ok())
        .collect()
}

fn version_refused(
    world: &World,
    version: &str,
    now: Timestamp,
    runtime: bool,
) -> Option<Response> {
    let known = world.settings.deprecations.get(version);
    let ended = known
        .and_then(|known| {
            if runtime {
                known.runtime
            } else {
                known.registration
            }
        })
        .is_some_and(|end| end <= now);
    let too_old = numbers(version) < numbers(&world.settings.minimum_agent);
    (ended || too_old).then(|| {
        refuse(
            StatusCode::FORBIDDEN,
            "versionDeprecated",
            &format!(
                "Runner version v{version} is deprecated and cannot receive messages. \
                 The minimum version is v{}.",
                world.settings.minimum_agent
            ),
        )
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Register {
    url: String,
    token: String,
    name: String,
    labels: Vec<String>,
    group: Option<String>,
    work: String,
    version: String,
    ephemeral: bool,
    replace: bool,
    no_default_labels: bool,
}

/// Uses a registration or removal token; the answer is what the real agent prints.
fn redeem(
    world: &mut World,
    secret: &str,
    scope: &Scope,
    removal: bool,
    now: Timestamp,
) -> Result<(), Response> {
    registration::redeem(world, secret, scope, removal, now).map_err(|_| {
        refuse(
            StatusCode::NOT_FOUND,
            "notFound",
            "Http response code: NotFound from 'POST /actions/runner-registration'. \
             The token is invalid, has expired or belongs elsewhere",
        )
    })
}

fn group_id(world: &World, scope: &Scope, name: &str) -> Option<u64> {
    let groups = match scope {
        Scope::Repository(_) => return name.eq_ignore_ascii_case("default").then_some(1),
        Scope::Organization(login) => &world.organizations.get(login)?.groups,
        Scope::Enterprise(slug) => &world.enterprises.get(slug)?.groups,
    };
    groups
        .values()
        .find(|group| group.name.eq_ignore_ascii_case(name))
        .map(|group| group.id)
}

async fn register(
    State(shared): Server,
    Json(asked): Json<Register>,
) -> Result<Response, Response> {
    let mut world = shared.world();
    let world = &mut *world;
    let now = world.now();
    let scope = registration::scope_of(world, &asked.url).ok_or_else(|| {
        refuse(
            StatusCode::NOT_FOUND,
            "notFound",
            "Http response code: NotFound from 'POST /actions/runner-registration'",
        )
    })?;
    redeem(world, &asked.token, &scope, false, now)?;
    if let Some(refused) = version_refused(world, &asked.version, now, false) {
        return Err(refused);
    }
    let group = asked.group.as_deref().unwrap_or("Default");
    let group_id = group_id(world, &scope, group).ok_or_else(|| {
        refuse(
            StatusCode::NOT_FOUND,
            "groupNotFound",
            &format!("Could not find any self-hosted runner group named \"{group}\"."),
        )
    })?;
    let existing = runners::by_name(world, &scope, &asked.name).map(|runner| runner.id);
    let replaced = existing.is_some();
    if let Some(id) = existing {
        if !asked.replace {
            return Err(refuse(
                StatusCode::CONFLICT,
                "runnerExists",
                &format!("A runner exists with the same name {}.", asked.name),
            ));
        }
        engine::remove_runner(world, id, now);
    }
    let id = runners::add(
        world,
        runners::New {
            scope,
            name: asked.name,
            labels: asked.labels,
            group: group_id,
            ephemeral: asked.ephemeral,
            jit: false,
            default_labels: !asked.no_default_labels,
            scale_set: None,
        },
        now,
    );
    let runner = world.runners.get_mut(&id).ok_or_else(gone)?;
    runner.version = Some(asked.version);
    let runner = runner.clone();
    let files: serde_json::Map<String, Value> =
        runners::agent_files(world, &runner, group, &asked.work)
            .into_iter()
            .map(|(name, content)| (name.to_owned(), content))
            .collect();
    shared.notify();
    Ok(Json(json!({"runnerId": id, "replaced": replaced, "files": files})).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Remove {
    url: String,
    token: String,
    runner_id: u64,
}

async fn remove(State(shared): Server, Json(asked): Json<Remove>) -> Result<Response, Response> {
    let mut world = shared.world();
    let world = &mut *world;
    let now = world.now();
    let scope = registration::scope_of(world, &asked.url).ok_or_else(gone)?;
    redeem(world, &asked.token, &scope, true, now)?;
    let runner = world
        .runners
        .get(&asked.runner_id)
        .filter(|runner| runner.scope == scope)
        .ok_or_else(gone)?;
    if engine::busy(world, runner) {
        return Err(refuse(
            StatusCode::CONFLICT,
            "busy",
            &format!("Runner \"{}\" is running a job", runner.name),
        ));
    }
    engine::remove_runner(world, asked.runner_id, now);
    shared.notify();
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Open {
    version: String,
}

async fn open(
    State(shared): Server,
    headers: HeaderMap,
    Json(asked): Json<Open>,
) -> Result<Response, Response> {
    let mut world = shared.world();
    let world = &mut *world;
    let now = world.now();
    let grace = world.settings.offline_seconds;
    let id = authenticate(world, &headers)?;
    if let Some(refused) = version_refused(world, &asked.version, now, true) {
        return Err(refused);
    }
    let runner = world.runners.get_mut(&id).ok_or_else(gone)?;
    if runner.online(now, grace) {
        return Err(refuse(
            StatusCode::CONFLICT,
            "sessionConflict",
            "A session for this runner already exists.",
        ));
    }
    let session = text::random_hex(8);
    runner.version = Some(asked.version);
    "Linux".clone_into(&mut runner.os);
    runner.session = Some(Session {
        id: session.clone(),
        open_calls: 0,
        last_seen: now,
    });
    let name = runner.name.clone();
    tracing::info!(runner = name, "session opened");
    engine::pump(world, now);
    shared.notify();
    Ok(Json(json!({"sessionId": session})).into_response())
}

/// The caller must be the one whose session it is.
fn own_session(world: &World, headers: &HeaderMap, session: &str) -> Result<u64, Response> {
    let id = authenticate(world, headers)?;
    let own = world
        .runners
        .get(&id)
        .and_then(|runner| runner.session.as_ref())
        .is_some_and(|open| open.id == session);
    if own {
        Ok(id)
    } else {
        Err(refuse(
            StatusCode::CONFLICT,
            "sessionLost",
            "The session was ended by the server.",
        ))
    }
}

async fn close(
    State(shared): Server,
    headers: HeaderMap,
    Path(session): Path<String>,
) -> Result<Response, Response> {
    let mut world = shared.world();
    let now = world.now();
    let id = own_session(&world, &headers, &session)?;
    if let Some(runner) = world.runners.get_mut(&id) {
        runner.session = None;
    }
    engine::pump(&mut world, now);
    shared.notify();
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn message(
    State(shared): Server,
    headers: HeaderMap,
    Path(session): Path<String>,
    Query(wait): Query<Wait>,
) -> Result<Response, Response> {
    let id = own_session(&shared.world(), &headers, &session)?;
    let answer = wait_for(&shared, id, &wait, |world| {
        if let Err(refused) = own_session(world, &headers, &session) {
            return Some(refused);
        }
        let runner = world.runners.get(&id)?;
        if let Some(elsewhere) = world.settings.broker_migrations.get(&runner.name) {
            return Some(Json(json!({"brokerBaseUrl": elsewhere})).into_response());
        }
        let job = runner.job?;
        let assigned = matches!(world.jobs.get(&job)?.phase, JobPhase::Assigned { runner, .. } if runner == id);
        assigned.then(|| Json(json!({"jobId": job})).into_response())
    })
    .await;
    Ok(answer)
}

async fn acquire(
    State(shared): Server,
    headers: HeaderMap,
    Path(job): Path<u64>,
) -> Result<Response, Response> {
    let (runner, answer) = {
        let mut world = shared.world();
        let world = &mut *world;
        let now = world.now();
        let runner = authenticate(world, &headers)?;
        engine::acquire(world, job, runner, now).map_err(|reason| match reason {
            NotAcquired::Unknown => refuse(StatusCode::NOT_FOUND, "jobNotFound", "No such job"),
            NotAcquired::Taken => refuse(
                StatusCode::CONFLICT,
                "jobTaken",
                "The job was given to another runner",
            ),
        })?;
        let answer = Some(jobs::describe(world, job).ok_or_else(gone)?);
        (runner, answer.filter(|_| !world.settings.acquire_hangs))
    };
    shared.notify();
    match answer {
        Some(answer) => Ok(answer),
        None => Ok(wait_for(&shared, runner, &Wait::longest(), |_| None).await),
    }
}
