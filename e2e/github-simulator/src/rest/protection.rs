//! Classic branch protection, and its answers that look alike.

use serde_json::{Map, Value, json};

use crate::{
    answer::Answer,
    call::Call,
    rest::{render, repos},
    state::{Branch, Check, Protection, RequiredStatusChecks, World},
    text,
};

fn contexts(required: &RequiredStatusChecks) -> Vec<&str> {
    required
        .checks
        .iter()
        .map(|check| check.context.as_str())
        .collect()
}

fn branch_of<'a>(world: &'a World, call: &Call) -> Result<&'a Branch, Answer> {
    repos::paid(repos::named(world, call)?)?;
    repos::branch(world, call).map(|(_, branch)| branch)
}

fn protection_of<'a>(world: &'a World, call: &Call) -> Result<&'a Protection, Answer> {
    branch_of(world, call)?
        .protection
        .as_ref()
        .ok_or_else(|| Answer::error(404, "Branch not protected"))
}

fn required_of<'a>(world: &'a World, call: &Call) -> Result<&'a RequiredStatusChecks, Answer> {
    protection_of(world, call)?
        .required_status_checks
        .as_ref()
        .ok_or_else(|| Answer::error(404, "Required status checks not enabled"))
}

fn branch_mut<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Branch, Answer> {
    world
        .repository_mut(&call.repository_name())
        .and_then(|repository| repository.branches.get_mut(call.parameter("branch")))
        .ok_or_else(Answer::not_found)
}

fn required_mut<'a>(
    world: &'a mut World,
    call: &Call,
) -> Result<&'a mut RequiredStatusChecks, Answer> {
    required_of(world, call)?;
    branch_mut(world, call)?
        .protection
        .as_mut()
        .and_then(|protection| protection.required_status_checks.as_mut())
        .ok_or_else(Answer::not_found)
}

fn url(call: &Call) -> String {
    format!(
        "{}/repos/{}/{}/branches/{}/protection",
        call.api,
        call.parameter("owner"),
        call.parameter("repo"),
        text::percent_encode(call.parameter("branch"))
    )
}

fn show_required(call: &Call, required: &RequiredStatusChecks) -> Value {
    let url = format!("{}/required_status_checks", url(call));
    json!({
        "url": url,
        "strict": required.strict,
        "contexts": contexts(required),
        "checks": render::required_checks(required),
        "contexts_url": format!("{url}/contexts"),
    })
}

fn show(call: &Call, protection: &Protection) -> Value {
    let mut shown = protection.rest.clone();
    shown.insert("url".to_owned(), url(call).into());
    if let Some(required) = &protection.required_status_checks {
        shown.insert(
            "required_status_checks".to_owned(),
            show_required(call, required),
        );
    }
    for name in ["enforce_admins", "required_pull_request_reviews"] {
        if let Some(Value::Object(part)) = shown.get_mut(name) {
            part.insert("url".to_owned(), format!("{}/{name}", url(call)).into());
        }
    }
    Value::Object(shown)
}

/// `GET …/branches/{branch}/protection`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let protection = protection_of(world, call)?;
    Ok(Answer::json(200, show(call, protection)))
}

/// `PUT …/branches/{branch}/protection` replaces everything.
pub fn put(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    branch_of(world, call)?;
    let required = match call.body.get("required_status_checks") {
        Some(part @ Value::Object(_)) => Some(RequiredStatusChecks {
            strict: part.get("strict") == Some(&Value::Bool(true)),
            checks: asked_checks(world, call, part)?.unwrap_or_default(),
        }),
        _ => None,
    };
    let flag = |name: &str| json!({"enabled": call.body.get(name) == Some(&Value::Bool(true))});
    let mut rest = Map::new();
    for name in [
        "enforce_admins",
        "required_linear_history",
        "allow_force_pushes",
        "allow_deletions",
        "block_creations",
        "required_conversation_resolution",
        "lock_branch",
        "allow_fork_syncing",
    ] {
        rest.insert(name.to_owned(), flag(name));
    }
    if let Some(Value::Object(asked)) = call.body.get("required_pull_request_reviews") {
        let mut reviews = json!({
            "dismiss_stale_reviews": false,
            "require_code_owner_reviews": false,
            "required_approving_review_count": 1,
            "require_last_push_approval": false,
        });
        for (name, value) in asked {
            if reviews.get(name).is_some() {
                reviews[name] = value.clone();
            }
        }
        rest.insert("required_pull_request_reviews".to_owned(), reviews);
    }
    branch_mut(world, call)?.protection = Some(Protection {
        required_status_checks: required,
        rest,
    });
    get(world, call)
}

/// `DELETE …/branches/{branch}/protection`
pub fn delete(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    protection_of(world, call)?;
    branch_mut(world, call)?.protection = None;
    Ok(Answer::empty(204))
}

/// `GET …/required_status_checks`
pub fn get_required(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let required = required_of(world, call)?;
    Ok(Answer::json(200, show_required(call, required)))
}

/// `PATCH …/required_status_checks` replaces the list that is given.
pub fn patch_required(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    required_of(world, call)?;
    let asked = asked_checks(world, call, &call.body)?;
    let required = required_mut(world, call)?;
    if let Some(strict) = call.body.get("strict").and_then(Value::as_bool) {
        required.strict = strict;
    }
    if let Some(checks) = asked {
        required.checks = checks;
    }
    get_required(world, call)
}

/// `DELETE …/required_status_checks`
pub fn delete_required(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    required_of(world, call)?;
    if let Some(protection) = &mut branch_mut(world, call)?.protection {
        protection.required_status_checks = None;
    }
    Ok(Answer::empty(204))
}

/// `GET …/required_status_checks/contexts`
pub fn get_contexts(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let required = required_of(world, call)?;
    Ok(Answer::json(200, json!(contexts(required))))
}

/// `POST …/required_status_checks/contexts` adds.
pub fn add_contexts(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    required_of(world, call)?;
    let asked = asked_contexts(world, call)?;
    let required = required_mut(world, call)?;
    for check in asked {
        if !required
            .checks
            .iter()
            .any(|present| present.context == check.context)
        {
            required.checks.push(check);
        }
    }
    get_contexts(world, call)
}

/// `PUT …/required_status_checks/contexts` replaces.
pub fn set_contexts(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    required_of(world, call)?;
    let asked = asked_contexts(world, call)?;
    required_mut(world, call)?.checks = asked;
    get_contexts(world, call)
}

/// `DELETE …/required_status_checks/contexts` removes.
pub fn remove_contexts(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    required_of(world, call)?;
    let asked = asked_contexts(world, call)?;
    required_mut(world, call)?
        .checks
        .retain(|present| !asked.iter().any(|check| check.context == present.context));
    get_contexts(world, call)
}

fn asked_contexts(world: &World, call: &Call) -> Result<Vec<Check>, Answer> {
    let list = match &call.body {
        // An older form, still taken.
        Value::Array(_) => json!({"contexts": call.body}),
        body => body.clone(),
    };
    asked_checks(world, call, &list)?
        .ok_or_else(|| Answer::invalid_field("ProtectedBranch", "contexts", "missing", "Missing"))
}

/// Reads `checks`, else `contexts`.
fn asked_checks(world: &World, call: &Call, part: &Value) -> Result<Option<Vec<Check>>, Answer> {
    let repository = repos::named(world, call)?;
    // A name without an App gets the App that reported it last.
    let automatic = |context: &str| {
        repository
            .reported
            .contains(context)
            .then(|| i64::try_from(world.settings.actions_app_id).ok())
            .flatten()
    };
    let mut found: Vec<Check> = Vec::new();
    let list = match (part.get("checks"), part.get("contexts")) {
        (Some(Value::Array(checks)), _) if !checks.is_empty() => checks,
        (_, Some(Value::Array(contexts))) => contexts,
        (Some(Value::Array(checks)), _) => checks,
        _ => return Ok(None),
    };
    for entry in list {
        let context = entry
            .as_str()
            .or_else(|| entry.get("context").and_then(Value::as_str))
            .unwrap_or_default()
            .to_owned();
        let app_id = match entry.get("app_id").and_then(Value::as_i64) {
            Some(-1) => None,
            Some(id) => Some(id),
            None => automatic(&context),
        };
        if !found.iter().any(|check| check.context == context) {
            found.push(Check { context, app_id });
        }
    }
    Ok(Some(found))
}
