//! Runners as the service knows them.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    sets,
    wire::{Call, error, invalid, list as values},
};
use crate::{
    answer::Answer,
    engine,
    rest::runners,
    state::{Runner, World},
};

/// `POST …/generatejitconfig`
pub(super) fn generate(world: &mut World, call: &Call<'_>, set: u64) -> Result<Answer, Answer> {
    let asked = call.body()?;
    let text = |name: &str| asked.get(name).and_then(Value::as_str).unwrap_or_default();
    let name = text("name").to_owned();
    if name.is_empty() || name.chars().count() > 64 {
        return Err(invalid("Name must be between 1 and 64 characters."));
    }
    let entry = sets::find(world, call, set)?;
    let labels = entry
        .labels
        .iter()
        .map(|label| label.name.clone())
        .collect();
    let group = entry.group;
    if runners::by_name(world, &call.scope, &name).is_some() {
        let message = format!("Already exists - A runner with the name {name} already exists.");
        return Err(error(409, "AgentExists", &message));
    }
    let group_name = runners::group_name(world, &call.scope, group).unwrap_or_default();
    let work = match text("workFolder") {
        "" => "_work",
        folder => folder,
    };
    let id = runners::add(
        world,
        runners::New {
            scope: call.scope.clone(),
            name,
            labels,
            group,
            ephemeral: true,
            jit: true,
            default_labels: false,
            scale_set: Some(set),
        },
        call.now,
    );
    let runner = find(world, call, id)?;
    let encoded = runners::jit_config(world, runner, &group_name, work);
    Ok(Answer::json(
        200,
        json!({"runner": show(runner), "encodedJITConfig": encoded}),
    ))
}

fn no_such_agent(id: u64) -> Answer {
    error(404, "AgentNotFound", &format!("Agent {id} not found."))
}

/// Runners that belong to no scale set have the number 0 for it.
fn show(runner: &Runner) -> Value {
    json!({
        "id": runner.id,
        "name": runner.name,
        "runnerScaleSetId": runner.scale_set.unwrap_or_default(),
    })
}

fn find<'a>(world: &'a World, call: &Call<'_>, id: u64) -> Result<&'a Runner, Answer> {
    world
        .runners
        .get(&id)
        .filter(|runner| runner.scope == call.scope)
        .ok_or_else(|| no_such_agent(id))
}

pub(super) fn list(world: &World, call: &Call<'_>) -> Answer {
    let lag = SignedDuration::from_millis(i64::from(world.settings.listing_lag_millis));
    let name = call.query("agentName").map(str::to_lowercase);
    let found: Vec<Value> = world
        .runners
        .values()
        .filter(|runner| runner.scope == call.scope)
        .filter(|runner| call.now.duration_since(runner.created_at) >= lag)
        .filter(|runner| {
            name.as_ref()
                .is_none_or(|name| runner.name.to_lowercase() == *name)
        })
        .map(show)
        .collect();
    Answer::json(200, values(&found))
}

pub(super) fn get(world: &World, call: &Call<'_>, id: u64) -> Result<Answer, Answer> {
    let runner = find(world, call, id)?;
    Ok(Answer::json(200, show(runner)))
}

pub(super) fn delete(world: &mut World, call: &Call<'_>, id: u64) -> Result<Answer, Answer> {
    let runner = find(world, call, id)?;
    if engine::busy(world, runner) {
        let message = format!("Runner \"{}\" is still running a job.", runner.name);
        return Err(error(400, "JobStillRunning", &message));
    }
    engine::remove_runner(world, id, call.now);
    Ok(Answer::empty(204))
}
