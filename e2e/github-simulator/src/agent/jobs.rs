//! A job on an agent: what it is told, how it is stopped, what it reports.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

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
    let steps: Vec<Value> = job
        .steps
        .iter()
        .map(|step| json!({"name": step.template.name, "run": step.template.run}))
        .collect();
    Some(
        Json(json!({
            "jobId": job.id,
            "steps": steps,
            "hold": job.template.hold,
            "environment": {
                "GITHUB_JOB": job.template.key,
                "GITHUB_RUN_ID": run.id.to_string(),
                "GITHUB_RUN_NUMBER": run.number.to_string(),
                "GITHUB_RUN_ATTEMPT": "1",
                "GITHUB_WORKFLOW": run.workflow_name,
                "GITHUB_REPOSITORY": repository.full_name,
                "GITHUB_REPOSITORY_OWNER": repository.owner(),
                "GITHUB_REF": format!("refs/heads/{}", run.branch),
                "GITHUB_REF_NAME": run.branch,
                "GITHUB_SHA": run.sha,
                "GITHUB_EVENT_NAME": run.event,
                "GITHUB_ACTOR": "octocat",
                "GITHUB_SERVER_URL": world.public_url,
                "GITHUB_API_URL": format!("{}/api/v3", world.public_url),
            },
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
    let mut told_release = false;
    let answer = wait_for(&shared, id, &wait, |world| {
        if let Err(refused) = own_job(world, &headers, job) {
            return Some(refused);
        }
        let entry = world.jobs.get(&job)?;
        if (entry.cancel || entry.released) && !told_release {
            told_release = true;
            return Some(
                Json(json!({"cancel": entry.cancel, "released": entry.released})).into_response(),
            );
        }
        None
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
