//! The handlers of the control API.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, patch, post},
};
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    accounts,
    types::{
        Budget, Clock, Log, NewApp, NewCredential, NewEnterprise, NewJob, NewOrganization,
        NewRepository, NewRun, NewRunner, Problem, PublishedToken, StartedRun, UpdateInstallation,
        UpdateRepository, UpdateWorkflow,
    },
};
use crate::{
    dump, engine,
    faults::Fault,
    limits,
    rest::runners,
    shared::Shared,
    state::{JobTemplate, Scope, Seen, Settings, Violation, World},
};

type Server = State<Arc<Shared>>;
type Answer<T = StatusCode> = Result<T, Refused>;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/_sim/ready", get(async || StatusCode::OK))
        .route("/_sim/state", get(state))
        .route("/_sim/settings", get(settings).patch(change_settings))
        .route("/_sim/clock", post(clock))
        .route("/_sim/repositories", post(repository))
        .route(
            "/_sim/repositories/{owner}/{name}",
            patch(update_repository).delete(delete_repository),
        )
        .route(
            "/_sim/repositories/{owner}/{name}/workflows/{workflow}",
            patch(update_workflow),
        )
        .route("/_sim/organizations", post(organization))
        .route("/_sim/enterprises", post(enterprise))
        .route("/_sim/apps", post(app))
        .route(
            "/_sim/installations/{id}",
            patch(update_installation).delete(delete_installation),
        )
        .route("/_sim/tokens", post(token))
        .route("/_sim/tokens/{name}", delete(delete_token))
        .route("/_sim/jobs", get(jobs).post(queue))
        .route("/_sim/jobs/{id}", get(job))
        .route("/_sim/jobs/{id}/log", get(job_log))
        .route("/_sim/jobs/{id}/release", post(release))
        .route("/_sim/runs", post(run))
        .route("/_sim/runs/{id}/cancel", post(cancel))
        .route("/_sim/runners", post(runner))
        .route("/_sim/runners/{id}", delete(delete_runner))
        .route("/_sim/scale-sets", get(scale_sets))
        .route("/_sim/scale-sets/{id}", delete(delete_scale_set))
        .route("/_sim/scale-sets/{id}/session", delete(end_session))
        .route("/_sim/faults", get(faults).post(fault).delete(clear_faults))
        .route("/_sim/budgets", post(budget))
        .route("/_sim/requests", get(requests))
        .route("/_sim/violations", get(violations).delete(clear_violations))
        .with_state(shared)
}

/// A request that cannot be met, with the reason.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { error: self.1 })).into_response()
    }
}

fn bad(reason: impl Into<String>) -> Refused {
    Refused(StatusCode::UNPROCESSABLE_ENTITY, reason.into())
}

fn missing(what: &str) -> Refused {
    Refused(StatusCode::NOT_FOUND, format!("no {what}"))
}

/// Changes the state, lets the engine react, and wakes who waits.
fn change<T>(shared: &Shared, apply: impl FnOnce(&mut World) -> T) -> T {
    let mut world = shared.world();
    let result = apply(&mut world);
    let now = world.now();
    engine::pump(&mut world, now);
    drop(world);
    shared.notify();
    result
}

async fn state(State(shared): Server) -> Json<Value> {
    Json(dump::all(&shared.world()))
}

async fn settings(State(shared): Server) -> Json<Settings> {
    Json(shared.world().settings.clone())
}

async fn change_settings(State(shared): Server, Json(asked): Json<Value>) -> Answer {
    change(&shared, |world| {
        let mut merged = json!(world.settings);
        crate::rest::render::merge(&mut merged, asked);
        world.settings = serde_json::from_value(merged).map_err(|error| bad(error.to_string()))?;
        Ok(StatusCode::NO_CONTENT)
    })
}

async fn clock(State(shared): Server, Json(asked): Json<Clock>) -> StatusCode {
    change(&shared, |world| {
        world.advance(SignedDuration::from_secs(i64::from(asked.advance_seconds)));
    });
    StatusCode::NO_CONTENT
}

async fn repository(State(shared): Server, Json(new): Json<NewRepository>) -> Answer {
    change(&shared, |world| accounts::repository(world, new)).map_err(bad)?;
    Ok(StatusCode::CREATED)
}

async fn update_repository(
    State(shared): Server,
    Path((owner, name)): Path<(String, String)>,
    Json(update): Json<UpdateRepository>,
) -> Answer {
    let name = format!("{owner}/{name}");
    change(&shared, |world| {
        accounts::update_repository(world, &name, update)
    })
    .map_err(bad)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_repository(
    State(shared): Server,
    Path((owner, name)): Path<(String, String)>,
) -> Answer {
    let key = format!("{owner}/{name}").to_lowercase();
    change(&shared, |world| {
        let scope = Scope::Repository(key.clone());
        world.runners.retain(|_, runner| runner.scope != scope);
        world.scale_sets.retain(|_, set| set.scope != scope);
        world.runs.retain(|_, run| run.repository != key);
        world.jobs.retain(|_, job| job.repository != key);
        world
            .repositories
            .remove(&key)
            .map(|_| StatusCode::NO_CONTENT)
            .ok_or_else(|| missing("such repository"))
    })
}

async fn update_workflow(
    State(shared): Server,
    Path((owner, name, workflow)): Path<(String, String, String)>,
    Json(update): Json<UpdateWorkflow>,
) -> Answer {
    change(&shared, |world| {
        let repository = world
            .repository_mut(&format!("{owner}/{name}"))
            .ok_or_else(|| missing("such repository"))?;
        let id = repository
            .workflow(&workflow)
            .map(|workflow| workflow.id)
            .ok_or_else(|| missing("such workflow"))?;
        if let (Some(workflow), Some(state)) = (repository.workflows.get_mut(&id), update.state) {
            workflow.state = state;
        }
        Ok(StatusCode::NO_CONTENT)
    })
}

async fn organization(State(shared): Server, Json(new): Json<NewOrganization>) -> StatusCode {
    change(&shared, |world| accounts::organization(world, new));
    StatusCode::CREATED
}

async fn enterprise(State(shared): Server, Json(new): Json<NewEnterprise>) -> StatusCode {
    change(&shared, |world| accounts::enterprise(world, new));
    StatusCode::CREATED
}

async fn app(State(shared): Server, Json(new): Json<NewApp>) -> Answer<Response> {
    let made = change(&shared, |world| accounts::app(world, new)).map_err(bad)?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

async fn update_installation(
    State(shared): Server,
    Path(id): Path<u64>,
    Json(update): Json<UpdateInstallation>,
) -> Answer {
    change(&shared, |world| {
        let now = world.now();
        let installation = world
            .installations
            .get_mut(&id)
            .ok_or_else(|| missing("such installation"))?;
        if let Some(suspended) = update.suspended {
            installation.suspended_at = suspended.then_some(now);
        }
        if let Some(permissions) = update.permissions {
            installation.permissions = permissions;
        }
        if update.revoke_tokens {
            world
                .installation_tokens
                .retain(|_, token| token.installation != id);
        }
        Ok(StatusCode::NO_CONTENT)
    })
}

async fn delete_installation(State(shared): Server, Path(id): Path<u64>) -> Answer {
    change(&shared, |world| {
        world
            .installation_tokens
            .retain(|_, token| token.installation != id);
        world
            .installations
            .remove(&id)
            .map(|_| StatusCode::NO_CONTENT)
            .ok_or_else(|| missing("such installation"))
    })
}

async fn token(State(shared): Server, Json(new): Json<NewCredential>) -> Answer<Response> {
    let token = change(&shared, |world| accounts::credential(world, new)).map_err(bad)?;
    Ok((StatusCode::CREATED, Json(PublishedToken { token })).into_response())
}

async fn delete_token(State(shared): Server, Path(name): Path<String>) -> Answer {
    change(&shared, |world| {
        let before = world.credentials.len();
        world
            .credentials
            .retain(|_, credential| credential.name != name);
        if world.credentials.len() == before {
            return Err(missing("such token"));
        }
        Ok(StatusCode::NO_CONTENT)
    })
}

async fn jobs(State(shared): Server) -> Json<Vec<Value>> {
    let world = shared.world();
    Json(world.jobs.values().map(dump::job).collect())
}

async fn job(State(shared): Server, Path(id): Path<u64>) -> Answer<Json<Value>> {
    let world = shared.world();
    let job = world.jobs.get(&id).ok_or_else(|| missing("such job"))?;
    Ok(Json(dump::job(job)))
}

async fn job_log(State(shared): Server, Path(id): Path<u64>) -> Answer<Json<Log>> {
    let world = shared.world();
    let job = world.jobs.get(&id).ok_or_else(|| missing("such job"))?;
    Ok(Json(Log {
        log: job.log.clone(),
    }))
}

async fn release(State(shared): Server, Path(id): Path<u64>) -> Answer {
    change(&shared, |world| {
        let job = world.jobs.get_mut(&id).ok_or_else(|| missing("such job"))?;
        job.released = true;
        Ok(StatusCode::NO_CONTENT)
    })
}

/// The workflow that queued jobs of tests belong to.
const AD_HOC: &str = "ad-hoc.yml";

async fn queue(State(shared): Server, Json(new): Json<NewJob>) -> Answer<Response> {
    let started = change(&shared, |world| queue_job(world, new))?;
    Ok((StatusCode::CREATED, Json(started)).into_response())
}

fn queue_job(world: &mut World, new: NewJob) -> Answer<StartedRun> {
    let repository = world
        .repository(&new.repository)
        .ok_or_else(|| missing("such repository"))?;
    let branch = new
        .branch
        .unwrap_or_else(|| repository.default_branch.clone());
    let workflow = match repository.workflow(AD_HOC) {
        Some(workflow) => workflow.id,
        None => accounts::ad_hoc_workflow(world, &new.repository, AD_HOC).map_err(bad)?,
    };
    let template = JobTemplate {
        key: if new.name.is_empty() {
            "job".to_owned()
        } else {
            new.name
        },
        name: String::new(),
        labels: new.labels,
        steps: new.steps,
        hold: new.hold,
        written: None,
    };
    let now = world.now();
    let run = engine::create_run(
        world,
        engine::NewRun {
            repository: new.repository,
            workflow,
            event: "push".to_owned(),
            branch,
            pull_request: None,
            fork: None,
            jobs: Some(vec![template]),
            conclusion: None,
        },
        now,
    )
    .ok_or_else(|| missing("such branch"))?;
    Ok(started(world, run))
}

fn started(world: &World, run: u64) -> StartedRun {
    let jobs = world
        .runs
        .get(&run)
        .map(|run| run.jobs.iter().copied().collect())
        .unwrap_or_default();
    StartedRun { run, jobs }
}

async fn run(State(shared): Server, Json(new): Json<NewRun>) -> Answer<Response> {
    let started = change(&shared, |world| {
        let repository = world
            .repository(&new.repository)
            .ok_or_else(|| missing("such repository"))?;
        let workflow = repository
            .workflow(&new.workflow)
            .ok_or_else(|| missing("such workflow"))?
            .id;
        let branch = new
            .branch
            .clone()
            .unwrap_or_else(|| repository.default_branch.clone());
        let now = world.now();
        let new = engine::NewRun {
            repository: new.repository,
            workflow,
            event: if new.event.is_empty() {
                "push".to_owned()
            } else {
                new.event
            },
            branch,
            pull_request: new.pull_request,
            fork: new.fork,
            jobs: None,
            conclusion: new.conclusion,
        };
        let run = engine::create_run(world, new, now).ok_or_else(|| missing("such branch"))?;
        Ok(started(world, run))
    })?;
    Ok((StatusCode::CREATED, Json(started)).into_response())
}

async fn cancel(State(shared): Server, Path(id): Path<u64>) -> Answer {
    change(&shared, |world| {
        let now = world.now();
        if engine::cancel_run(world, id, now) {
            Ok(StatusCode::NO_CONTENT)
        } else {
            Err(missing("run that goes on"))
        }
    })
}

async fn runner(State(shared): Server, Json(new): Json<NewRunner>) -> Answer<Response> {
    let id = change(&shared, |world| {
        let name = new.scope.to_lowercase();
        let scope = match name.strip_prefix("enterprises/") {
            Some(slug) => Scope::Enterprise(slug.to_owned()),
            None if name.contains('/') => Scope::Repository(name),
            None => Scope::Organization(name),
        };
        let now = world.now();
        runners::add(
            world,
            runners::New {
                scope,
                name: new.name,
                labels: new.labels,
                group: 1,
                ephemeral: false,
                jit: false,
                default_labels: true,
                scale_set: None,
            },
            now,
        )
    });
    Ok((StatusCode::CREATED, Json(json!({"id": id}))).into_response())
}

async fn delete_runner(State(shared): Server, Path(id): Path<u64>) -> Answer {
    change(&shared, |world| {
        let now = world.now();
        if !world.runners.contains_key(&id) {
            return Err(missing("such runner"));
        }
        engine::remove_runner(world, id, now);
        Ok(StatusCode::NO_CONTENT)
    })
}

async fn scale_sets(State(shared): Server) -> Json<Vec<Value>> {
    Json(dump::scale_sets(&shared.world()))
}

async fn delete_scale_set(State(shared): Server, Path(id): Path<u64>) -> Answer {
    change(&shared, |world| {
        let now = world.now();
        if engine::scale_sets::delete(world, id, now) {
            Ok(StatusCode::NO_CONTENT)
        } else {
            Err(missing("such scale set"))
        }
    })
}

async fn end_session(State(shared): Server, Path(id): Path<u64>) -> Answer {
    change(&shared, |world| {
        let now = world.now();
        if engine::scale_sets::end_session(world, id, now) {
            Ok(StatusCode::NO_CONTENT)
        } else {
            Err(missing("open session"))
        }
    })
}

async fn faults(State(shared): Server) -> Json<Vec<Fault>> {
    Json(shared.world().faults.clone())
}

async fn fault(State(shared): Server, Json(mut fault): Json<Fault>) -> Answer<Response> {
    if let Some(pattern) = &fault.path {
        regex::Regex::new(pattern).map_err(|error| bad(error.to_string()))?;
    }
    let id = change(&shared, |world| {
        let id = world.next_id();
        fault.id = id;
        world.faults.push(fault);
        id
    });
    Ok((StatusCode::CREATED, Json(json!({"id": id}))).into_response())
}

async fn clear_faults(State(shared): Server) -> StatusCode {
    change(&shared, |world| world.faults.clear());
    StatusCode::NO_CONTENT
}

async fn budget(State(shared): Server, Json(asked): Json<Budget>) -> StatusCode {
    change(&shared, |world| {
        let now = world.now();
        let budget = limits::budget(world, &asked.credential, now);
        budget.used = budget.limit.saturating_sub(asked.remaining);
        budget.reset = now
            .checked_add(SignedDuration::from_secs(i64::from(asked.reset_seconds)))
            .unwrap_or(now);
    });
    StatusCode::NO_CONTENT
}

#[derive(Debug, Deserialize)]
struct Since {
    since: Option<u64>,
}

async fn requests(State(shared): Server, Query(query): Query<Since>) -> Json<Vec<Seen>> {
    let since = query.since.unwrap_or(0);
    let world = shared.world();
    Json(
        world
            .seen
            .iter()
            .filter(|seen| seen.n > since)
            .cloned()
            .collect(),
    )
}

async fn violations(State(shared): Server) -> Json<Vec<Violation>> {
    Json(shared.world().violations.clone())
}

async fn clear_violations(State(shared): Server) -> StatusCode {
    shared.world().violations.clear();
    StatusCode::NO_CONTENT
}
