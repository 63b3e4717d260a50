//! A job on an agent: what it is told, how it is stopped, what it reports.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::event;
use super::wire::{Server, Wait, authenticate, refuse, wait_for};
use crate::{
    engine,
    rest::runs,
    state::{Conclusion, JobPhase, World},
};

/// What the agent needs to run a job.
pub(super) fn describe(world: &World, id: u64) -> Option<Response> {
    let job = world.jobs.get(&id)?;
    let run = world.runs.get(&job.run)?;
    let repository = world.repository(&job.repository)?;
    let mut secrets = repository.secrets.clone();
    // Each job has a token of its own. Nothing here takes it.
    secrets.insert(
        "GITHUB_TOKEN".to_owned(),
        format!("ghs_{}_{}", run.id, job.id),
    );
    let mut github = json!({
        "job": job.template.key,
        "run_id": run.id.to_string(),
        "run_number": run.number.to_string(),
        "run_attempt": run.attempt.to_string(),
        "workflow": run.workflow_name,
        "repository": repository.full_name,
        "repository_owner": repository.owner(),
        "sha": run.sha,
        "event_name": run.event,
        "actor": "octocat",
        "server_url": world.public_url,
        "api_url": format!("{}/api/v3", world.public_url),
    });
    for (name, value) in event::refs(run, repository) {
        github[name] = value.into();
    }
    Some(
        Json(json!({
            "jobId": job.id,
            "job": job.template.job(),
            "hold": job.template.hold,
            "containerHooks": world.settings.allow_container_hooks,
            "secrets": secrets,
            "github": github,
            "event": event::payload(run, repository),
        }))
        .into_response(),
    )
}

/// The job must be in progress on the caller's runner.
fn own_job(world: &World, headers: &HeaderMap, job: u64) -> Result<u64, Response> {
    let id = authenticate(world, headers)?;
    match world.jobs.get(&job).map(|job| &job.phase) {
        Some(JobPhase::InProgress { runner }) if *runner == id => Ok(id),
        _ => Err(refuse(
            StatusCode::CONFLICT,
            "jobTaken",
            "The job does not run on this runner",
        )),
    }
}

pub(super) async fn control(
    State(shared): Server,
    headers: HeaderMap,
    Path(job): Path<u64>,
    Query(wait): Query<Wait>,
) -> Result<Response, Response> {
    let id = own_job(&shared.world(), &headers, job)?;
    let mut told = false;
    let answer = wait_for(&shared, id, &wait, |world| {
        if let Err(refused) = own_job(world, &headers, job) {
            return Some(refused);
        }
        let entry = world.jobs.get(&job)?;
        if (entry.cancel.is_none() && !entry.released) || std::mem::replace(&mut told, true) {
            return None;
        }
        let said = json!({"cancel": entry.cancel, "released": entry.released});
        Some(Json(said).into_response())
    })
    .await;
    Ok(answer)
}

pub(super) async fn log(
    State(shared): Server,
    headers: HeaderMap,
    Path(job): Path<u64>,
    lines: String,
) -> Result<Response, Response> {
    let mut world = shared.world();
    own_job(&world, &headers, job)?;
    if let Some(job) = world.jobs.get_mut(&job) {
        job.log.push_str(&lines);
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StepReport {
    conclusion: Option<Conclusion>,
    #[serde(default)]
    summary: String,
}

pub(super) async fn step(
    State(shared): Server,
    headers: HeaderMap,
    Path((job, number)): Path<(u64, usize)>,
    Json(report): Json<StepReport>,
) -> Result<Response, Response> {
    let mut world = shared.world();
    let now = world.now();
    own_job(&world, &headers, job)?;
    let step = world
        .jobs
        .get_mut(&job)
        .and_then(|job| job.steps.get_mut(number.saturating_sub(1)));
    if let Some(step) = step {
        match report.conclusion {
            None => step.started_at = Some(now),
            Some(conclusion) => {
                step.conclusion = Some(conclusion);
                step.completed_at = Some(now);
                step.summary = report.summary;
            }
        }
    }
    shared.notify();
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Complete {
    conclusion: Conclusion,
    /// What is shown at the job's head.
    #[serde(default)]
    annotations: Vec<String>,
    /// What its hooks wrote into its summary.
    #[serde(default)]
    summary: String,
}

pub(super) async fn complete(
    State(shared): Server,
    headers: HeaderMap,
    Path(job): Path<u64>,
    Json(report): Json<Complete>,
) -> Result<Response, Response> {
    let mut world = shared.world();
    let now = world.now();
    own_job(&world, &headers, job)?;
    if let Some(job) = world.jobs.get_mut(&job) {
        job.annotations = report.annotations;
        job.summary = report.summary;
    }
    engine::complete(&mut world, job, report.conclusion, now);
    engine::pump(&mut world, now);
    shared.notify();
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct Signed {
    sig: Option<String>,
}

/// Where the redirect of a job's log leads.
pub(super) async fn job_log(
    State(shared): Server,
    Path(job): Path<u64>,
    Query(query): Query<Signed>,
) -> Response {
    let world = shared.world();
    match world.jobs.get(&job) {
        Some(job) if query.sig.as_deref() == Some(runs::signature(job).as_str()) => {
            job.log.clone().into_response()
        }
        Some(_) => StatusCode::FORBIDDEN.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
