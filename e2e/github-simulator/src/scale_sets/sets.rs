//! Scale sets and the groups that they are in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::wire::{Call, error, invalid, list as values, no_such_set};
use crate::{
    answer::Answer,
    engine,
    rest::runners,
    state::{RunnerGroup, ScaleSet, ScaleSetLabel, Scope, World},
    text,
};

/// The scale set of that number, if the caller may see it.
pub(super) fn find<'a>(world: &'a World, call: &Call<'_>, id: u64) -> Result<&'a ScaleSet, Answer> {
    world
        .scale_sets
        .get(&id)
        .filter(|set| set.scope == call.scope)
        .ok_or_else(|| no_such_set(id))
}

/// A scale set as the service shows it.
pub(super) fn show(world: &World, set: &ScaleSet, now: Timestamp) -> Value {
    let url = format!(
        "{}/tenant/1/_apis/runtime/runnerscalesets/{}/generatejitconfig?api-version=6.0-preview",
        world.public_url, set.id
    );
    json!({
        "id": set.id,
        "name": set.name,
        "runnerGroupId": set.group,
        "runnerGroupName": runners::group_name(world, &set.scope, set.group),
        "labels": set.labels,
        "RunnerSetting": {"disableUpdate": set.disable_update},
        "createdOn": text::time(set.created_at),
        "runnerJitConfigUrl": url,
        "statistics": engine::scale_sets::statistics(world, set, now),
    })
}

/// Lists of scale sets begin with a byte order mark, as those of the real service do.
fn marked(body: &Value) -> Answer {
    Answer::json(200, Value::String(format!("\u{feff}{body}")))
        .with("content-type", "application/json; charset=utf-8")
}

pub(super) fn list(world: &World, call: &Call<'_>) -> Answer {
    let group: Option<u64> = call
        .query("runnerGroupId")
        .and_then(|group| group.parse().ok());
    let name = call.query("name").map(str::to_lowercase);
    let found: Vec<Value> = world
        .scale_sets
        .values()
        .filter(|set| set.scope == call.scope)
        .filter(|set| group.is_none_or(|group| set.group == group))
        .filter(|set| {
            name.as_ref()
                .is_none_or(|name| set.name.to_lowercase() == *name)
        })
        .map(|set| show(world, set, call.now))
        .collect();
    marked(&values(&found))
}

pub(super) fn get(world: &World, call: &Call<'_>, id: u64) -> Result<Answer, Answer> {
    let set = find(world, call, id)?;
    Ok(Answer::json(200, show(world, set, call.now)))
}

pub(super) fn create(world: &mut World, call: &Call<'_>) -> Result<Answer, Answer> {
    let asked = call.body()?;
    let name = asked
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| invalid("A runner scale set needs a name."))?
        .to_owned();
    let group = group_of(world, call, asked)?.unwrap_or(1);
    unique(world, call, &name, group, None)?;
    let labels = labels(world, asked, &name);
    let id = world.next_id();
    let set = ScaleSet {
        id,
        scope: call.scope.clone(),
        name,
        group,
        labels,
        disable_update: disable_update(asked).unwrap_or_default(),
        created_at: call.now,
        session: None,
        changes: VecDeque::new(),
        messages: BTreeMap::new(),
        last_message: 0,
        offers: BTreeSet::new(),
    };
    let shown = show(world, &set, call.now);
    world.scale_sets.insert(id, set);
    Ok(Answer::json(200, shown))
}

/// The group that is asked for, which must exist.
fn group_of(world: &World, call: &Call<'_>, asked: &Value) -> Result<Option<u64>, Answer> {
    let Some(group) = asked
        .get("runnerGroupId")
        .and_then(Value::as_u64)
        .filter(|group| *group > 0)
    else {
        return Ok(None);
    };
    if runners::group_name(world, &call.scope, group).is_none() {
        let message = format!("No runner group found with identifier {group}.");
        return Err(error(404, "RunnerGroupNotFound", &message));
    }
    Ok(Some(group))
}

/// No other scale set of the group may have the name.
fn unique(
    world: &World,
    call: &Call<'_>,
    name: &str,
    group: u64,
    own: Option<u64>,
) -> Result<(), Answer> {
    let taken = world.scale_sets.values().any(|set| {
        set.scope == call.scope
            && set.group == group
            && Some(set.id) != own
            && set.name.to_lowercase() == name.to_lowercase()
    });
    if taken {
        let message = format!("A runner scale set with name {name} already exists.");
        return Err(error(400, "RunnerScaleSetExists", &message));
    }
    Ok(())
}

fn labels(world: &World, asked: &Value, name: &str) -> Vec<ScaleSetLabel> {
    let text = |label: &Value, key: &str| {
        label
            .get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let system = || "System".to_owned();
    let mut labels: Vec<ScaleSetLabel> = asked
        .get("labels")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|label| {
            Some(ScaleSetLabel {
                kind: text(label, "type").unwrap_or_else(system),
                name: text(label, "name")?,
            })
        })
        .collect();
    if !world.settings.honour_labels {
        labels.retain(|label| label.name.eq_ignore_ascii_case(name));
    }
    if labels.is_empty() {
        labels.push(ScaleSetLabel {
            kind: system(),
            name: name.to_owned(),
        });
    }
    labels
}

fn disable_update(asked: &Value) -> Option<bool> {
    asked.get("RunnerSetting")?.get("disableUpdate")?.as_bool()
}

/// Changes what is named; labels stay as they were made.
pub(super) fn update(world: &mut World, call: &Call<'_>, id: u64) -> Result<Answer, Answer> {
    let asked = call.body()?;
    let set = find(world, call, id)?;
    let name = asked
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .unwrap_or(&set.name)
        .to_owned();
    let group = group_of(world, call, asked)?.unwrap_or(set.group);
    unique(world, call, &name, group, Some(id))?;
    if let Some(set) = world.scale_sets.get_mut(&id) {
        set.name = name;
        set.group = group;
        set.disable_update = disable_update(asked).unwrap_or(set.disable_update);
    }
    get(world, call, id)
}

pub(super) fn delete(world: &mut World, call: &Call<'_>, id: u64) -> Result<Answer, Answer> {
    find(world, call, id)?;
    engine::scale_sets::delete(world, id, call.now);
    Ok(Answer::empty(204))
}

/// `GET …/runnergroups/`
pub(super) fn groups(world: &World, call: &Call<'_>) -> Answer {
    let default = BTreeMap::from([(1, RunnerGroup::default_group())]);
    let groups = match &call.scope {
        Scope::Repository(_) => Some(&default),
        Scope::Organization(login) => world.organizations.get(login).map(|owner| &owner.groups),
        Scope::Enterprise(slug) => world.enterprises.get(slug).map(|owner| &owner.groups),
    };
    let found: Vec<Value> = groups
        .into_iter()
        .flat_map(BTreeMap::values)
        .filter(|group| {
            call.query("groupName")
                .is_none_or(|name| group.name.to_lowercase() == name.to_lowercase())
        })
        .map(|group| {
            let size = world
                .runners
                .values()
                .filter(|runner| runner.scope == call.scope && runner.group == group.id)
                .count();
            json!({
                "id": group.id,
                "name": group.name,
                "size": size,
                "isDefaultGroup": group.id == 1,
            })
        })
        .collect();
    Answer::json(200, values(&found))
}
