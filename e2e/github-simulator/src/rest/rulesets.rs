//! Rulesets of a repository.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    rest::repos,
    state::{Repository, World},
    text,
};

/// `GET …/rulesets`
pub fn list(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    repos::paid(repository)?;
    let targets: Option<Vec<&str>> = call.query("targets").map(|list| list.split(',').collect());
    let all = repository
        .rulesets
        .values()
        .filter(|ruleset| {
            targets.as_ref().is_none_or(|targets| {
                ruleset
                    .get("target")
                    .and_then(Value::as_str)
                    .is_some_and(|target| targets.contains(&target))
            })
        })
        .map(|ruleset| {
            // The list tells neither rules nor conditions.
            let mut short = ruleset.clone();
            if let Value::Object(short) = &mut short {
                for name in [
                    "rules",
                    "conditions",
                    "bypass_actors",
                    "current_user_can_bypass",
                ] {
                    short.remove(name);
                }
            }
            short
        })
        .collect();
    Ok(Answer::page(None, call.page(all)))
}

fn find<'a>(world: &'a World, call: &Call) -> Result<(u64, &'a Value), Answer> {
    let repository = repos::named(world, call)?;
    repos::paid(repository)?;
    let id = call.number("ruleset_id")?;
    let ruleset = repository.rulesets.get(&id).ok_or_else(Answer::not_found)?;
    Ok((id, ruleset))
}

/// `GET …/rulesets/{ruleset_id}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (_, ruleset) = find(world, call)?;
    Ok(Answer::json(200, ruleset.clone()))
}

fn name_taken(repository: &Repository, name: &str, except: Option<u64>) -> bool {
    repository
        .rulesets
        .iter()
        .any(|(id, ruleset)| Some(*id) != except && ruleset.get("name") == Some(&json!(name)))
}

/// `POST …/rulesets`
pub fn create(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let repository = repos::named(world, call)?;
    repos::paid(repository)?;
    let name = call.text("name").unwrap_or_default().to_owned();
    if name_taken(repository, &name, None) {
        return Err(Answer::invalid(
            "Validation Failed",
            &["Name must be unique"],
        ));
    }
    let full_name = repository.full_name.clone();
    let id = world.next_id();
    let at = text::time(call.now);
    let mut ruleset = json!({
        "id": id,
        "name": name,
        "target": "branch",
        "source_type": "Repository",
        "source": full_name,
        "enforcement": "active",
        "bypass_actors": [],
        "current_user_can_bypass": "never",
        "node_id": format!("RRS_{id}"),
        "_links": {
            "self": {"href": format!("{}/repos/{full_name}/rulesets/{id}", call.api)},
            "html": {"href": format!("{}/{full_name}/rules/{id}", call.site)},
        },
        "conditions": {},
        "rules": [],
        "created_at": at,
        "updated_at": at,
    });
    take(&mut ruleset, &call.body);
    store(world, call, id, ruleset.clone());
    Ok(Answer::json(201, ruleset))
}

/// Copies what a request may set; what GitHub fills in itself is filled in.
fn take(ruleset: &mut Value, asked: &Value) {
    for name in [
        "name",
        "target",
        "enforcement",
        "bypass_actors",
        "conditions",
        "rules",
    ] {
        if let Some(value) = asked.get(name) {
            ruleset[name] = value.clone();
        }
    }
    for rule in ruleset
        .get_mut("rules")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if rule.get("type") == Some(&json!("required_status_checks"))
            && let Some(Value::Object(parameters)) = rule.get_mut("parameters")
        {
            parameters
                .entry("do_not_enforce_on_create")
                .or_insert(Value::Bool(false));
        }
    }
}

fn store(world: &mut World, call: &Call, id: u64, ruleset: Value) {
    if let Some(repository) = world.repository_mut(&call.repository_name()) {
        repository.rulesets.insert(id, ruleset);
    }
}

/// `PUT …/rulesets/{ruleset_id}`
pub fn update(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (id, ruleset) = find(world, call)?;
    let mut ruleset = ruleset.clone();
    if let Some(name) = call.text("name")
        && name_taken(repos::named(world, call)?, name, Some(id))
    {
        return Err(Answer::invalid(
            "Validation Failed",
            &["Name must be unique"],
        ));
    }
    take(&mut ruleset, &call.body);
    ruleset["updated_at"] = text::time(call.now).into();
    store(world, call, id, ruleset.clone());
    Ok(Answer::json(200, ruleset))
}

/// `DELETE …/rulesets/{ruleset_id}`
pub fn delete(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let (id, _) = find(world, call)?;
    if let Some(repository) = world.repository_mut(&call.repository_name()) {
        repository.rulesets.remove(&id);
    }
    Ok(Answer::empty(204))
}
