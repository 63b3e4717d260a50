//! Workflows and their dispatch.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    engine::{self, NewRun},
    rest::repos,
    state::{Repository, Workflow, World},
    text,
};

fn show(call: &Call, repository: &Repository, workflow: &Workflow) -> Value {
    let page = format!("{}/{}", call.site, repository.full_name);
    let file = workflow.path.rsplit('/').next().unwrap_or_default();
    let at = text::time(workflow.created_at);
    json!({
        "id": workflow.id,
        "node_id": format!("W_{}", workflow.id),
        "name": workflow.name,
        "path": workflow.path,
        "state": workflow.state,
        "created_at": at,
        "updated_at": at,
        "url": format!("{}/repos/{}/actions/workflows/{}", call.api, repository.full_name, workflow.id),
        "html_url": format!("{page}/blob/{}/{}", repository.default_branch, workflow.path),
        "badge_url": format!("{page}/actions/workflows/{file}/badge.svg"),
    })
}

/// `GET …/actions/workflows`
pub fn list(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    let all = repository
        .workflows
        .values()
        .map(|workflow| show(call, repository, workflow))
        .collect();
    Ok(Answer::page(Some("workflows"), call.page(all)))
}

fn named<'a>(world: &'a World, call: &Call) -> Result<(&'a Repository, &'a Workflow), Answer> {
    let repository = repos::named(world, call)?;
    let workflow = repository
        .workflow(call.parameter("workflow_id"))
        .ok_or_else(Answer::not_found)?;
    Ok((repository, workflow))
}

/// `GET …/actions/workflows/{workflow_id}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (repository, workflow) = named(world, call)?;
    Ok(Answer::json(200, show(call, repository, workflow)))
}

/// `PUT …/actions/workflows/{workflow_id}/enable`
pub fn enable(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    set_state(world, call, "active")
}

/// `PUT …/actions/workflows/{workflow_id}/disable`
pub fn disable(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    set_state(world, call, "disabled_manually")
}

fn set_state(world: &mut World, call: &Call, state: &str) -> Result<Answer, Answer> {
    let id = named(world, call)?.1.id;
    if let Some(workflow) = world
        .repository_mut(&call.repository_name())
        .and_then(|repository| repository.workflows.get_mut(&id))
    {
        state.clone_into(&mut workflow.state);
    }
    Ok(Answer::empty(204))
}

/// `POST …/actions/workflows/{workflow_id}/dispatches`
pub fn dispatch(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let wanted = call.body.get("return_run_details") == Some(&Value::Bool(true));
    if call.body.get("return_run_details").is_some() && !world.settings.names_dispatched_runs() {
        return Err(Answer::error(
            422,
            "Invalid request.\n\n\"return_run_details\" is not a permitted key.",
        ));
    }
    let (repository, workflow) = named(world, call)?;
    let reference = call.text("ref").unwrap_or_default();
    let branch = reference
        .strip_prefix("refs/heads/")
        .unwrap_or(reference)
        .to_owned();
    if workflow.state != "active" {
        return Err(Answer::error(
            422,
            "Cannot trigger a 'workflow_dispatch' on a disabled workflow",
        ));
    }
    if !repository.branches.contains_key(&branch) {
        return Err(Answer::error(
            422,
            &format!("No ref found for: {reference}"),
        ));
    }
    let file_there = workflow.branches.is_empty() || workflow.branches.contains(&branch);
    if !file_there || !workflow.events.contains("workflow_dispatch") {
        return Err(Answer::error(
            422,
            "Workflow does not have 'workflow_dispatch' trigger",
        ));
    }
    let details = world.settings.names_dispatched_runs() && (wanted || call.newest);
    let (full_name, workflow) = (repository.full_name.clone(), workflow.id);
    let run = engine::create_run(
        world,
        NewRun {
            repository: full_name.clone(),
            workflow,
            event: "workflow_dispatch".to_owned(),
            branch,
            pull_request: None,
            fork: None,
            jobs: None,
            conclusion: None,
        },
        call.now,
    )
    .ok_or_else(Answer::not_found)?;
    if !details {
        return Ok(Answer::empty(204));
    }
    Ok(Answer::json(
        200,
        json!({
            "workflow_run_id": run,
            "run_url": format!("{}/repos/{full_name}/actions/runs/{run}", call.api),
            "html_url": format!("{}/{full_name}/actions/runs/{run}", call.site),
        }),
    ))
}
