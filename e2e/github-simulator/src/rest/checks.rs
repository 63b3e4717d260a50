//! Check suites and check runs: how jobs look on a commit.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    engine,
    rest::{notes, render, repos},
    state::{Conclusion, Job, Repository, Run, World},
    text,
};

fn show_run(world: &World, call: &Call, repository: &Repository, run: &Run, job: &Job) -> Value {
    let api = format!("{}/repos/{}", call.api, repository.full_name);
    let page = format!(
        "{}/{}/actions/runs/{}/job/{}",
        call.site, repository.full_name, run.id, job.id
    );
    let url = format!("{api}/check-runs/{}", job.id);
    json!({
        "id": job.id,
        "head_sha": run.sha,
        "node_id": format!("CR_{}", job.id),
        "external_id": job.id.to_string(),
        "url": url,
        "html_url": page,
        "details_url": page,
        "status": job.status(),
        "conclusion": job.conclusion().map(Conclusion::as_str),
        "started_at": text::time(job.started_at.unwrap_or(job.created_at)),
        "completed_at": job.completed_at.map(text::time),
        "output": {
            "title": null,
            "summary": null,
            "text": null,
            "annotations_count": 0,
            "annotations_url": format!("{url}/annotations"),
        },
        "name": job.name(),
        "check_suite": {"id": run.check_suite},
        "app": render::actions_app(world, call),
        "pull_requests": pulls(call, repository, run),
    })
}

fn pulls(call: &Call, repository: &Repository, run: &Run) -> Vec<Value> {
    run.pull_request
        .map(|number| render::pull_request(call, repository, number, &run.branch, &run.sha))
        .into_iter()
        .collect()
}

fn show_suite(world: &World, call: &Call, repository: &Repository, run: &Run) -> Value {
    let (status, conclusion) = engine::run_state(world, run);
    let url = format!(
        "{}/repos/{}/check-suites/{}",
        call.api, repository.full_name, run.check_suite
    );
    json!({
        "id": run.check_suite,
        "node_id": format!("CS_{}", run.check_suite),
        "head_branch": run.branch,
        "head_sha": run.sha,
        "status": status,
        "conclusion": conclusion.map(Conclusion::as_str),
        "url": url,
        "before": run.sha,
        "after": run.sha,
        "pull_requests": pulls(call, repository, run),
        "app": render::actions_app(world, call),
        "repository": render::repository(world, call, repository),
        "created_at": text::time(run.created_at),
        "updated_at": text::time(run.updated_at),
        "head_commit": render::simple_commit(&run.sha, run.created_at),
        "latest_check_runs_count": run.jobs.len(),
        "check_runs_url": format!("{url}/check-runs"),
    })
}

fn find_suite<'a>(world: &'a World, call: &Call) -> Result<(&'a Repository, &'a Run), Answer> {
    let repository = repos::named(world, call)?;
    let id = call.number("check_suite_id")?;
    let run = world
        .runs
        .values()
        .find(|run| run.check_suite == id && run.repository == call.repository_name())
        .ok_or_else(Answer::not_found)?;
    Ok((repository, run))
}

/// `GET …/check-suites/{check_suite_id}`
pub fn suite(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, run) = find_suite(world, call)?;
    Ok(Answer::json(200, show_suite(world, call, repository, run)))
}

/// `GET …/check-suites/{check_suite_id}/check-runs`
pub fn of_suite(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, run) = find_suite(world, call)?;
    Ok(list(world, call, repository, &[run], vec![]))
}

/// The commit that the path names by sha, branch or `heads/branch`.
fn commit(call: &Call, repository: &Repository) -> String {
    let reference = call.parameter("ref");
    let branch = reference
        .strip_prefix("refs/")
        .unwrap_or(reference)
        .strip_prefix("heads/")
        .unwrap_or(reference);
    let branch = repository.branches.get(branch);
    branch.map_or(reference, |branch| &branch.sha).to_owned()
}

/// Runs on the commit that the path names.
fn runs_on<'a>(world: &'a World, call: &Call, repository: &Repository) -> Vec<&'a Run> {
    let sha = commit(call, repository);
    world
        .runs
        .values()
        .filter(|run| run.repository == call.repository_name() && run.sha == sha)
        .collect()
}

/// `GET …/commits/{ref}/check-runs`
pub fn of_commit(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let runs = runs_on(world, call, repository);
    let notes = notes::on_commit(world, call, &commit(call, repository));
    Ok(list(world, call, repository, &runs, notes))
}

/// `GET …/commits/{ref}/check-suites`
pub fn suites_of_commit(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let all = runs_on(world, call, repository)
        .into_iter()
        .map(|run| show_suite(world, call, repository, run))
        .collect();
    Ok(Answer::page(Some("check_suites"), call.page(all)))
}

fn list(
    world: &World,
    call: &Call,
    repository: &Repository,
    runs: &[&Run],
    notes: Vec<Value>,
) -> Answer {
    let app = world.settings.actions_app_id.to_string();
    let mut found: Vec<(&Run, &Job)> = runs
        .iter()
        .flat_map(|run| {
            run.jobs
                .iter()
                .filter_map(|id| Some((*run, world.jobs.get(id)?)))
        })
        .filter(|(_, job)| {
            call.query("check_name")
                .is_none_or(|name| job.name() == name)
        })
        .filter(|(_, job)| {
            call.query("status")
                .is_none_or(|status| job.status() == status)
        })
        .filter(|_| call.query("app_id").is_none_or(|id| id == app))
        .collect();
    if call.query("filter") != Some("all") {
        // The latest of each name.
        let newest: std::collections::BTreeMap<&str, u64> =
            found.iter().map(|(_, job)| (job.name(), job.id)).collect();
        found.retain(|(_, job)| newest.get(job.name()) == Some(&job.id));
    }
    let mut shown: Vec<Value> = found
        .into_iter()
        .map(|(run, job)| show_run(world, call, repository, run, job))
        .collect();
    shown.extend(notes);
    Answer::page(Some("check_runs"), call.page(shown))
}

/// `GET …/check-runs/{check_run_id}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let id = call.number("check_run_id")?;
    let job = world
        .jobs
        .get(&id)
        .filter(|job| job.repository == call.repository_name())
        .ok_or_else(Answer::not_found)?;
    let run = world.runs.get(&job.run).ok_or_else(Answer::not_found)?;
    Ok(Answer::json(
        200,
        show_run(world, call, repository, run, job),
    ))
}
