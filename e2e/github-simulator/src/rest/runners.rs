//! Self-hosted runners of repositories, organizations and enterprises.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    engine,
    state::{Label, RegistrationToken, Runner, RunnerGroup, Scope, World},
    text,
};

/// `POST …/registration-token`
pub fn registration_token(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    Ok(token(world, call, false))
}

/// `POST …/remove-token`
pub fn remove_token(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    Ok(token(world, call, true))
}

fn token(world: &mut World, call: &Call, removal: bool) -> Answer {
    let secret = format!("A{}", text::random_hex(14).to_uppercase());
    let expires_at = hour_from(call.now);
    world.registration_tokens.insert(
        secret.clone(),
        RegistrationToken {
            scope: call.scope(),
            removal,
            expires_at,
            uses: 0,
        },
    );
    // These times carry milliseconds, unlike all others.
    let expires_at = expires_at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    Answer::json(201, json!({"token": secret, "expires_at": expires_at}))
}

/// An hour later.
#[must_use]
pub fn hour_from(now: Timestamp) -> Timestamp {
    now.checked_add(SignedDuration::from_hours(1))
        .unwrap_or(now)
}

/// `POST …/generate-jitconfig`
pub fn generate_jitconfig(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let invalid = |errors: &[&str]| Answer::invalid("Validation Failed", errors);
    let name = call.text("name").unwrap_or_default().to_owned();
    if name.is_empty() || name.chars().count() > 64 {
        return Err(invalid(&["Name must be between 1 and 64 characters"]));
    }
    let labels: Vec<String> = call
        .body
        .get("labels")
        .and_then(Value::as_array)
        .map(|labels| {
            labels
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    if labels.is_empty() || labels.len() > 100 {
        return Err(invalid(&["Labels must be between 1 and 100"]));
    }
    let group = call
        .body
        .get("runner_group_id")
        .and_then(Value::as_u64)
        .ok_or_else(|| invalid(&["Runner group id is missing"]))?;
    let scope = call.scope();
    let group_name = group_name(world, &scope, group).ok_or_else(Answer::not_found)?;
    if by_name(world, &scope, &name).is_some() {
        return Err(Answer::error(
            409,
            "Already exists - A runner with the same name already exists",
        ));
    }
    let work = call.text("work_folder").unwrap_or("_work").to_owned();
    let id = add(
        world,
        New {
            scope,
            name,
            labels,
            group,
            ephemeral: true,
            jit: true,
            default_labels: false,
            scale_set: None,
        },
        call.now,
    );
    let runner = world.runners.get(&id).ok_or_else(Answer::not_found)?;
    let encoded = jit_config(world, runner, &group_name, &work);
    Ok(Answer::json(
        201,
        json!({"runner": show(world, runner, call.now), "encoded_jit_config": encoded}),
    ))
}

/// What a new entry is made of.
#[derive(Debug, Clone)]
pub struct New {
    /// Where.
    pub scope: Scope,
    /// Its name.
    pub name: String,
    /// Labels as asked for.
    pub labels: Vec<String>,
    /// Its group.
    pub group: u64,
    /// Gone after one job.
    pub ephemeral: bool,
    /// Made by a JIT configuration.
    pub jit: bool,
    /// GitHub adds `self-hosted`, the system and the architecture.
    pub default_labels: bool,
    /// The scale set that it belongs to, if any.
    pub scale_set: Option<u64>,
}

/// Adds an entry.
pub fn add(world: &mut World, new: New, now: Timestamp) -> u64 {
    let id = world.next_id();
    let mut labels: Vec<Label> = Vec::new();
    if new.default_labels {
        for name in ["self-hosted", "Linux", "X64"] {
            labels.push(Label {
                id: Some(world.next_id()),
                name: name.to_owned(),
                read_only: true,
            });
        }
    }
    for name in new.labels {
        if labels
            .iter()
            .any(|label| label.name.to_lowercase() == name.to_lowercase())
        {
            continue;
        }
        // The labels of a JIT configuration come back without a number.
        let id = (!new.jit).then(|| world.next_id());
        labels.push(Label {
            id,
            name,
            read_only: new.jit,
        });
    }
    world.runners.insert(
        id,
        Runner {
            id,
            scope: new.scope,
            name: new.name,
            os: if new.jit { "unknown" } else { "Linux" }.to_owned(),
            labels,
            group: new.group,
            ephemeral: new.ephemeral,
            jit: new.jit,
            scale_set: new.scale_set,
            version: None,
            secret: format!("{id}.{}", text::random_hex(32)),
            created_at: now,
            session: None,
            job: None,
        },
    );
    id
}

/// The entry of that name, whatever its case.
#[must_use]
pub fn by_name<'a>(world: &'a World, scope: &Scope, name: &str) -> Option<&'a Runner> {
    world
        .runners
        .values()
        .find(|runner| runner.scope == *scope && runner.name.to_lowercase() == name.to_lowercase())
}

/// The name of a group, if it exists there.
#[must_use]
pub fn group_name(world: &World, scope: &Scope, id: u64) -> Option<String> {
    let groups = match scope {
        Scope::Repository(_) => return (id == 1).then(|| "Default".to_owned()),
        Scope::Organization(login) => &world.organizations.get(login)?.groups,
        Scope::Enterprise(slug) => &world.enterprises.get(slug)?.groups,
    };
    groups.get(&id).map(|group| group.name.clone())
}

/// The three files of a configured agent, as they travel in a JIT configuration.
#[must_use]
pub fn jit_config(world: &World, runner: &Runner, group: &str, work: &str) -> String {
    let files = agent_files(world, runner, group, work);
    let encoded: serde_json::Map<String, Value> = files
        .into_iter()
        .map(|(name, content)| (name.to_owned(), STANDARD.encode(content.to_string()).into()))
        .collect();
    STANDARD.encode(Value::Object(encoded).to_string())
}

/// The three files of a configured agent by name.
#[must_use]
pub fn agent_files(
    world: &World,
    runner: &Runner,
    group: &str,
    work: &str,
) -> [(&'static str, Value); 3] {
    let site = &world.public_url;
    let settings = json!({
        "AgentId": runner.id.to_string(),
        "AgentName": runner.name,
        "PoolId": runner.group.to_string(),
        "PoolName": group,
        "ServerUrl": format!("{site}/_agent"),
        "GitHubUrl": format!("{site}/{}", runner.scope),
        "WorkFolder": work,
        "Ephemeral": if runner.ephemeral { "True" } else { "False" },
        "DisableUpdate": "True",
        "UseV2Flow": "True",
        "ServerUrlV2": format!("{site}/_agent"),
    });
    let credentials = json!({
        "Scheme": "OAuth",
        "Data": {
            "ClientId": format!("agent-{}", runner.id),
            "AuthorizationUrl": format!("{site}/_agent/oauth2/token"),
            "RequireFipsCryptography": "True",
        },
    });
    // The real file holds an RSA key; ours holds the secret that stands for it.
    let key = json!({"d": runner.secret});
    [
        (".runner", settings),
        (".credentials", credentials),
        (".credentials_rsaparams", key),
    ]
}

/// A runner as GitHub shows it.
#[must_use]
pub fn show(world: &World, runner: &Runner, now: Timestamp) -> Value {
    let labels: Vec<Value> = runner
        .labels
        .iter()
        .map(|label| {
            let kind = if label.read_only {
                "read-only"
            } else {
                "custom"
            };
            match label.id {
                Some(id) => json!({"id": id, "name": label.name, "type": kind}),
                None => json!({"name": label.name, "type": kind}),
            }
        })
        .collect();
    let online = runner.online(now, world.settings.offline_seconds);
    json!({
        "id": runner.id,
        "name": runner.name,
        "os": runner.os,
        "status": if online { "online" } else { "offline" },
        "busy": engine::busy(world, runner),
        "ephemeral": runner.ephemeral,
        "runner_group_id": runner.group,
        "version": runner.version,
        "labels": labels,
    })
}

/// `GET …/actions/runners`
pub fn list(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let scope = call.scope();
    let lag = SignedDuration::from_millis(i64::from(world.settings.listing_lag_millis));
    let all = world
        .runners
        .values()
        .filter(|runner| runner.scope == scope)
        .filter(|runner| call.now.duration_since(runner.created_at) >= lag)
        .filter(|runner| call.query("name").is_none_or(|name| runner.name == name))
        .map(|runner| show(world, runner, call.now))
        .collect();
    Ok(Answer::page(Some("runners"), call.page(all)))
}

fn find<'a>(world: &'a World, call: &Call) -> Result<&'a Runner, Answer> {
    let id = call.number("runner_id")?;
    world
        .runners
        .get(&id)
        .filter(|runner| runner.scope == call.scope())
        .ok_or_else(Answer::not_found)
}

/// `GET …/actions/runners/{runner_id}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let runner = find(world, call)?;
    Ok(Answer::json(200, show(world, runner, call.now)))
}

/// `DELETE …/actions/runners/{runner_id}`
pub fn delete(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let runner = find(world, call)?;
    let id = runner.id;
    if engine::busy(world, runner) {
        let message = format!(
            "Bad request - Runner \"{}\" is still running a job\"",
            runner.name
        );
        return Err(Answer::error(422, &message));
    }
    engine::remove_runner(world, id, call.now);
    Ok(Answer::empty(204))
}

/// `GET …/actions/runners/deprecations/{version}`
pub fn deprecation(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let version = call.parameter("version");
    let known = world
        .settings
        .deprecations
        .get(version)
        .ok_or_else(Answer::not_found)?;
    let mut body = json!({"runner_version": version});
    if let Some(at) = known.registration {
        body["registration_deprecates_at"] = text::time(at).into();
    }
    if let Some(at) = known.runtime {
        body["runtime_deprecates_at"] = text::time(at).into();
    }
    Ok(Answer::json(200, body))
}

/// `GET /orgs/{org}/actions/runner-groups`
pub fn organization_groups(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let login = call.parameter("org").to_lowercase();
    let organization = world
        .organizations
        .get(&login)
        .ok_or_else(Answer::not_found)?;
    let visible_to = call
        .query("visible_to_repository")
        .map(|name| format!("{login}/{}", name.to_lowercase()));
    let base = format!("{}/orgs/{login}/actions/runner-groups", call.api);
    let all = organization
        .groups
        .values()
        .filter(|group| {
            visible_to
                .as_ref()
                .is_none_or(|name| group.visible_to(name))
        })
        .map(|group| {
            let mut shown = show_group(group, &base);
            shown["inherited"] = false.into();
            if group.selected.is_some() {
                shown["selected_repositories_url"] =
                    format!("{base}/{}/repositories", group.id).into();
            }
            shown
        })
        .collect();
    Ok(Answer::page(Some("runner_groups"), call.page(all)))
}

/// `GET /enterprises/{enterprise}/actions/runner-groups`
pub fn enterprise_groups(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let slug = call.parameter("enterprise").to_lowercase();
    let enterprise = world.enterprises.get(&slug).ok_or_else(Answer::not_found)?;
    let base = format!("{}/enterprises/{slug}/actions/runner-groups", call.api);
    let all = enterprise
        .groups
        .values()
        .filter(|group| {
            call.query("visible_to_organization")
                .is_none_or(|name| group.visible_to(name))
        })
        .map(|group| show_group(group, &base))
        .collect();
    Ok(Answer::page(Some("runner_groups"), call.page(all)))
}

fn show_group(group: &RunnerGroup, base: &str) -> Value {
    json!({
        "id": group.id,
        "name": group.name,
        "visibility": if group.selected.is_some() { "selected" } else { "all" },
        "default": group.id == 1,
        "runners_url": format!("{base}/{}/runners", group.id),
        "allows_public_repositories": true,
        "restricted_to_workflows": false,
        "selected_workflows": [],
    })
}
