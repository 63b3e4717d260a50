//! Webhooks of a repository or an organization.

use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    events,
    state::{Delivery, Hook, Scope, World},
    text,
};

/// So many webhooks of one event a repository has at most.
const MOST: usize = 20;

fn path(call: &Call, hook: &Hook) -> String {
    let place = match &hook.scope {
        Scope::Repository(name) => format!("repos/{name}"),
        Scope::Organization(login) => format!("orgs/{login}"),
        Scope::Enterprise(slug) => format!("enterprises/{slug}"),
    };
    format!("{}/{place}/hooks/{}", call.api, hook.id)
}

fn show(call: &Call, hook: &Hook) -> Value {
    let url = path(call, hook);
    let mut config = json!({
        "url": hook.url,
        "content_type": hook.content_type,
        "insecure_ssl": hook.insecure_ssl,
    });
    if hook.secret.is_some() {
        config["secret"] = json!("********");
    }
    let (code, word) = match &hook.last {
        None => (None, "unused".to_owned()),
        Some((code, word)) => (Some(*code), word.clone()),
    };
    let is_of_repository = matches!(hook.scope, Scope::Repository(_));
    let mut shown = json!({
        "type": if is_of_repository { "Repository" } else { "Organization" },
        "id": hook.id,
        "name": "web",
        "active": hook.active,
        "events": hook.events,
        "config": config,
        "updated_at": text::time(hook.updated_at),
        "created_at": text::time(hook.created_at),
        "url": url,
        "ping_url": format!("{url}/pings"),
        "deliveries_url": format!("{url}/deliveries"),
    });
    if is_of_repository {
        shown["test_url"] = json!(format!("{url}/test"));
        shown["last_response"] = json!({"code": code, "status": word, "message": null});
    }
    shown
}

fn find<'a>(world: &'a World, call: &Call) -> Result<&'a Hook, Answer> {
    let id = call.number("hook_id")?;
    let hook = world
        .hooks
        .get(&id)
        .filter(|hook| hook.scope == call.scope());
    hook.ok_or_else(Answer::not_found)
}

fn find_mut<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Hook, Answer> {
    let id = find(world, call)?.id;
    world.hooks.get_mut(&id).ok_or_else(Answer::not_found)
}

/// `GET …/hooks`
pub fn list(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let here = call.scope();
    let hooks = world.hooks.values().filter(|hook| hook.scope == here);
    let all = hooks.map(|hook| show(call, hook)).collect();
    Ok(Answer::page(None, call.page(all)))
}

/// `GET …/hooks/{hook_id}`
pub fn get(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    Ok(Answer::json(200, show(call, find(world, call)?)))
}

/// Copies what a request may set.
fn take(hook: &mut Hook, asked: &Value) {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if let Some(active) = asked["active"].as_bool() {
        hook.active = active;
    }
    if let Some(events) = asked["events"].as_array() {
        hook.events = events.iter().map(text).collect();
    }
    let config = &asked["config"];
    if let Some(url) = config["url"].as_str() {
        url.clone_into(&mut hook.url);
        // The whole configuration is replaced, the secret with it.
        hook.secret = config["secret"].as_str().map(str::to_owned);
        let kind = config["content_type"].as_str();
        kind.unwrap_or("form").clone_into(&mut hook.content_type);
        hook.insecure_ssl = config
            .get("insecure_ssl")
            .map_or_else(|| "0".to_owned(), text);
    }
}

/// `POST …/hooks`. The first delivery is a ping.
pub fn create(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let mut hook = Hook {
        id: world.next_id(),
        scope: call.scope(),
        active: true,
        events: vec!["push".to_owned()],
        url: String::new(),
        content_type: "form".to_owned(),
        secret: None,
        insecure_ssl: "0".to_owned(),
        created_at: call.now,
        updated_at: call.now,
        last: None,
        deliveries: Vec::new(),
    };
    take(&mut hook, &call.body);
    if hook.url.is_empty() {
        return Err(Answer::invalid(
            "Validation Failed",
            &["url cannot be blank"],
        ));
    }
    let same = world.hooks.values().filter(|other| {
        other.scope == hook.scope && other.events.iter().any(|event| hook.events.contains(event))
    });
    let same: Vec<&Hook> = same.collect();
    if same.iter().any(|other| other.url == hook.url) {
        return Err(Answer::invalid_field(
            "Hook",
            "base",
            "custom",
            "Hook already exists on this repository",
        ));
    }
    if same.len() >= MOST {
        return Err(Answer::invalid_field(
            "Hook",
            "base",
            "custom",
            "The \"workflow_job\" event cannot have more than 20 hooks",
        ));
    }
    let id = hook.id;
    let shown = show(call, &hook);
    if world.hooks.is_empty() {
        events::begin(world);
    }
    world.hooks.insert(id, hook);
    ping(world, call, id);
    Ok(Answer::json(201, shown))
}

/// `PATCH …/hooks/{hook_id}`
pub fn update(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let hook = find_mut(world, call)?;
    take(hook, &call.body);
    hook.updated_at = call.now;
    Ok(Answer::json(200, show(call, hook)))
}

/// `DELETE …/hooks/{hook_id}`
pub fn delete(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let id = find(world, call)?.id;
    world.hooks.remove(&id);
    Ok(Answer::empty(204))
}

/// `POST …/hooks/{hook_id}/pings`
pub fn pings(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let id = find(world, call)?.id;
    ping(world, call, id);
    Ok(Answer::empty(204))
}

fn ping(world: &mut World, call: &Call, id: u64) {
    let Some(hook) = world.hooks.get(&id) else {
        return;
    };
    let payload = json!({
        "zen": "Keep it logically awesome.",
        "hook_id": id,
        "hook": show(call, hook),
    });
    events::deliver(world, id, "ping", None, &payload, call.now);
}

fn show_delivery(delivery: &Delivery) -> Value {
    let (code, word, seconds) = delivery.outcome.clone().unwrap_or_default();
    json!({
        "id": delivery.id,
        "guid": delivery.guid,
        "delivered_at": text::time(delivery.at),
        "redelivery": delivery.redelivery,
        "duration": seconds,
        "status": word,
        "status_code": code,
        "event": delivery.event,
        "action": delivery.action,
        "installation_id": null,
        "repository_id": null,
        "throttled_at": null,
    })
}

/// `GET …/hooks/{hook_id}/deliveries`, newest first.
pub fn deliveries(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let failed = |delivery: &Delivery| {
        let outcome = delivery.outcome.as_ref();
        outcome.map(|(code, _, _)| *code >= 400)
    };
    let wanted = match call.query("status") {
        Some("failure") => Some(true),
        Some("success") => Some(false),
        _ => None,
    };
    let made = find(world, call)?.deliveries.iter().rev();
    let made = made.filter(|delivery| match (failed(delivery), wanted) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(failed), Some(wanted)) => failed == wanted,
    });
    let shown: Vec<Value> = made.map(show_delivery).collect();
    Ok(Answer::page(None, call.page(shown)))
}

/// `POST …/hooks/{hook_id}/deliveries/{delivery_id}/attempts`
pub fn redeliver(world: &mut World, call: &Call) -> Result<Answer, Answer> {
    let id = call.number("delivery_id")?;
    let hook = find(world, call)?;
    let made = hook.deliveries.iter().find(|delivery| delivery.id == id);
    let (hook, made) = (hook.id, made.cloned().ok_or_else(Answer::not_found)?);
    events::redeliver(world, hook, &made, call.now);
    Ok(Answer::json(202, json!({})))
}
