//! Workflow runs, jobs and logs.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    engine::{
        self,
        reruns::{self, NotRerun},
    },
    rest::{render, repos},
    state::{Conclusion, Job, Repository, Run, World},
    text,
};

fn show(world: &World, call: &Call, repository: &Repository, run: &Run) -> Value {
    let (status, conclusion) = engine::run_state(world, run);
    let api = format!("{}/repos/{}", call.api, repository.full_name);
    let url = format!("{api}/actions/runs/{}", run.id);
    let short = render::repository(world, call, repository);
    let head = match &run.fork {
        Some(fork) => render::fork(world, call, fork),
        None => short.clone(),
    };
    let pulls: Vec<Value> = run
        .pull_request
        .map(|number| render::pull_request(call, repository, number, &run.branch, &run.sha))
        .into_iter()
        .collect();
    let at = text::time(run.created_at);
    json!({
        "id": run.id,
        "name": run.workflow_name,
        "node_id": format!("WFR_{}", run.id),
        "check_suite_id": run.check_suite,
        "check_suite_node_id": format!("CS_{}", run.check_suite),
        "head_branch": run.branch,
        "head_sha": run.sha,
        "path": run.path,
        "run_number": run.number,
        "run_attempt": run.attempt,
        "event": run.event,
        "display_title": run.workflow_name,
        "status": status,
        "conclusion": conclusion.map(Conclusion::as_str),
        "workflow_id": run.workflow,
        "url": url,
        "html_url": format!("{}/{}/actions/runs/{}", call.site, repository.full_name, run.id),
        "pull_requests": pulls,
        "created_at": at,
        "updated_at": text::time(run.updated_at),
        "run_started_at": at,
        "jobs_url": format!("{url}/jobs"),
        "logs_url": format!("{url}/logs"),
        "check_suite_url": format!("{api}/check-suites/{}", run.check_suite),
        "artifacts_url": format!("{url}/artifacts"),
        "cancel_url": format!("{url}/cancel"),
        "rerun_url": format!("{url}/rerun"),
        "previous_attempt_url": (run.attempt > 1).then(|| format!("{url}/attempts/{}", run.attempt - 1)),
        "workflow_url": format!("{api}/actions/workflows/{}", run.workflow),
        "head_commit": render::simple_commit(&run.sha, run.created_at),
        "repository": short,
        "head_repository": head,
    })
}

/// `GET …/actions/runs`
pub fn list(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    list_runs(world, call, None)
}

/// `GET …/actions/workflows/{workflow_id}/runs`
pub fn list_of_workflow(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let workflow = repos::named(world, call)?
        .workflow(call.parameter("workflow_id"))
        .ok_or_else(Answer::not_found)?
        .id;
    list_runs(world, call, Some(workflow))
}

fn list_runs(world: &World, call: &Call, workflow: Option<u64>) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let name = call.repository_name();
    let mut found: Vec<&Run> = world
        .runs
        .values()
        .filter(|run| run.repository == name)
        .filter(|run| workflow.is_none_or(|id| run.workflow == id))
        .filter(|run| {
            call.query("branch")
                .is_none_or(|branch| run.branch == branch)
        })
        .filter(|run| call.query("event").is_none_or(|event| run.event == event))
        .filter(|run| call.query("head_sha").is_none_or(|sha| run.sha == sha))
        .filter(|run| {
            call.query("check_suite_id")
                .is_none_or(|id| run.check_suite.to_string() == id)
        })
        .filter(|run| {
            call.query("status").is_none_or(|wanted| {
                let (status, conclusion) = engine::run_state(world, run);
                status == wanted || conclusion.map(Conclusion::as_str) == Some(wanted)
            })
        })
        .filter(|run| {
            call.query("created")
                .is_none_or(|range| created_within(range, &text::time(run.created_at)))
        })
        .collect();
    // Newest first, and a search ends at 1,000.
    found.reverse();
    found.truncate(1000);
    let shown = found
        .into_iter()
        .map(|run| show(world, call, repository, run))
        .collect();
    Ok(Answer::page(Some("workflow_runs"), call.page(shown)))
}

/// `>=…`, `>…`, `<=…`, `<…`, `…..…` or a date: times in this form compare as text.
fn created_within(range: &str, at: &str) -> bool {
    if let Some((from, to)) = range.split_once("..") {
        return (from == "*" || at >= from) && (to == "*" || at <= to);
    }
    if let Some(from) = range.strip_prefix(">=") {
        return at >= from;
    }
    if let Some(to) = range.strip_prefix("<=") {
        return at <= to;
    }
    if let Some(from) = range.strip_prefix('>') {
        return at > from;
    }
    if let Some(to) = range.strip_prefix('<') {
        return at < to;
    }
    at.starts_with(range)
}

fn find<'a>(world: &'a World, call: &Call) -> Result<(&'a Repository, &'a Run), Answer> {
    let repository = repos::named(world, call)?;
    let run = world
        .runs
        .get(&call.number("run_id")?)
        .filter(|run| run.repository == call.repository_name())
        .ok_or_else(Answer::not_found)?;
    Ok((repository, run))
}

/// `GET …/actions/runs/{run_id}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, run) = find(world, call)?;
    Ok(Answer::json(200, show(world, call, repository, run)))
}

/// `POST …/actions/runs/{run_id}/cancel`
pub fn cancel(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let id = find(world, call)?.1.id;
    if engine::cancel_run(world, id, call.now) {
        Ok(Answer::json(202, json!({})))
    } else {
        Err(Answer::error(
            409,
            "Cannot cancel a workflow run that is completed.",
        ))
    }
}

/// `POST …/actions/jobs/{job_id}/rerun`
pub fn rerun_job(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let job = find_job(world, call)?.1;
    let (run, job) = (job.run, job.id);
    rerun(world, call, run, Some(job))
}

/// `POST …/actions/runs/{run_id}/rerun-failed-jobs`
pub fn rerun_failed_jobs(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let run = find(world, call)?.1.id;
    rerun(world, call, run, None)
}

fn rerun(world: &mut World, call: &Call, run: u64, job: Option<u64>) -> Result<Answer, Answer> {
    let refused = match reruns::rerun(world, run, job, call.now) {
        Ok(()) => return Ok(Answer::json(201, json!({}))),
        Err(refused) => refused,
    };
    Err(Answer::error(
        403,
        match refused {
            NotRerun::Running if job.is_some() => {
                "The workflow run containing this job is already running"
            }
            NotRerun::Running => "This workflow is already running",
            NotRerun::TooOld => {
                "Unable to retry this workflow run because it was created over a month ago"
            }
            NotRerun::TooOften | NotRerun::Nothing => "This workflow run cannot be retried",
        },
    ))
}

/// A job, as the API and events have it.
pub(crate) fn show_job(world: &World, call: &Call, repository: &Repository, job: &Job) -> Value {
    let run = world.runs.get(&job.run);
    let api = format!("{}/repos/{}", call.api, repository.full_name);
    let steps: Vec<Value> = job
        .steps
        .iter()
        .enumerate()
        .map(|(index, step)| {
            let status = match (step.started_at, step.conclusion) {
                (_, Some(_)) => "completed",
                (Some(_), None) => "in_progress",
                (None, None) => "queued",
            };
            json!({
                "name": step.template.name,
                "number": index + 1,
                "status": status,
                "conclusion": step.conclusion.map(Conclusion::as_str),
                "started_at": step.started_at.map(text::time),
                "completed_at": step.completed_at.map(text::time),
            })
        })
        .collect();
    let (runner, name, group) = match &job.runner {
        Some((id, name, group)) => (Some(*id), Some(name), Some(*group)),
        None => (None, None, None),
    };
    json!({
        "id": job.id,
        "run_id": job.run,
        "run_url": format!("{api}/actions/runs/{}", job.run),
        "run_attempt": job.attempt,
        "node_id": format!("CR_{}", job.id),
        "head_sha": run.map(|run| run.sha.as_str()).unwrap_or_default(),
        "head_branch": run.map(|run| run.branch.as_str()),
        "url": format!("{api}/actions/jobs/{}", job.id),
        "html_url": format!("{}/{}/actions/runs/{}/job/{}", call.site, repository.full_name, job.run, job.id),
        "status": job.status(),
        "conclusion": job.conclusion().map(Conclusion::as_str),
        "created_at": text::time(job.created_at),
        // GitHub fills this in before the job starts, too.
        "started_at": text::time(job.started_at.unwrap_or(job.created_at)),
        "completed_at": job.completed_at.map(text::time),
        "name": job.name(),
        "steps": steps,
        "check_run_url": format!("{api}/check-runs/{}", job.id),
        "labels": job.template.labels,
        "runner_id": runner,
        "runner_name": name,
        "runner_group_id": group,
        "runner_group_name": group.map(|_| "Default"),
        "workflow_name": run.map(|run| run.workflow_name.as_str()),
    })
}

/// `GET …/actions/runs/{run_id}/jobs`
pub fn jobs(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, run) = find(world, call)?;
    let all_attempts = call.query("filter") == Some("all");
    let all = world
        .jobs
        .values()
        .filter(|job| job.run == run.id && (all_attempts || run.jobs.contains(&job.id)))
        .map(|job| show_job(world, call, repository, job))
        .collect();
    Ok(Answer::page(Some("jobs"), call.page(all)))
}

fn find_job<'a>(world: &'a World, call: &Call) -> Result<(&'a Repository, &'a Job), Answer> {
    let repository = repos::named(world, call)?;
    let job = world
        .jobs
        .get(&call.number("job_id")?)
        .filter(|job| job.repository == call.repository_name())
        .ok_or_else(Answer::not_found)?;
    Ok((repository, job))
}

/// `GET …/actions/jobs/{job_id}`
pub fn job(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, job) = find_job(world, call)?;
    Ok(Answer::json(200, show_job(world, call, repository, job)))
}

/// `GET …/actions/jobs/{job_id}/logs`
pub fn logs(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (_, job) = find_job(world, call)?;
    if job.conclusion().is_none() {
        // Logs are stored when the job is over.
        return Err(Answer::not_found());
    }
    // The real one points to a blob store, where a signature stands for the credential.
    let location = format!("{}/_logs/{}?sig={}", call.site, job.id, signature(job));
    Ok(Answer::empty(302).with("location", location))
}

/// What lets the bearer of a link read the log of a job.
#[must_use]
pub fn signature(job: &Job) -> String {
    crate::etag::of(job.created_at.to_string().as_bytes(), &job.id.to_string())
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_time() {
        let at = "2026-11-24T10:00:00Z";
        assert!(created_within(">=2026-11-24T10:00:00Z", at));
        assert!(!created_within(">2026-11-24T10:00:00Z", at));
        assert!(created_within("2026-11-23..2026-11-25", at));
        assert!(created_within("2026-11-24", at));
        assert!(!created_within("<2026-11-24", at));
    }
}
