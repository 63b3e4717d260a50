//! What webhooks are told: an event for each change of a job, in GitHub's form.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    call::{Call, Principal},
    rest::{render, runs},
    state::{Delivery, Scope, World},
    text,
};

/// The event of jobs.
pub const WORKFLOW_JOB: &str = "workflow_job";

/// Whoever is told of jobs from now on hears of their changes alone.
pub fn begin(world: &mut World) {
    let jobs = world.jobs.values();
    world.told = jobs.map(|job| (job.id, job.status())).collect();
}

/// Tells webhooks what has changed since the last time.
pub fn collect(world: &mut World, now: Timestamp) {
    if world.hooks.is_empty() {
        return;
    }
    let jobs = world.jobs.values();
    let changed: Vec<(u64, &'static str)> = jobs
        .filter(|job| world.told.get(&job.id) != Some(&job.status()))
        .map(|job| (job.id, job.status()))
        .collect();
    for (job, status) in changed {
        world.told.insert(job, status);
        let approvals = world.settings.deliveries.approvals && status == "queued";
        let actions: &[&str] = match status {
            "queued" if approvals => &["queued", "waiting", "queued"],
            "queued" => &["queued"],
            "in_progress" => &["in_progress"],
            "completed" => &["completed"],
            _ => &[],
        };
        for action in actions {
            tell_of_job(world, job, action, now);
        }
    }
}

/// Tells webhooks of a job, whether anything has changed or not.
pub fn tell_of_job(world: &mut World, job: u64, action: &str, now: Timestamp) {
    let Some((repository, payload)) = job_event(world, job, action, now) else {
        return;
    };
    let owner = repository.split('/').next().unwrap_or_default().to_owned();
    let is_told = |scope: &Scope| match scope {
        Scope::Repository(name) => *name == repository,
        Scope::Organization(login) => *login == owner,
        Scope::Enterprise(_) => false,
    };
    let hooks = world.hooks.values().filter(|hook| {
        let events = [WORKFLOW_JOB, "*"];
        hook.active
            && is_told(&hook.scope)
            && hook
                .events
                .iter()
                .any(|event| events.contains(&event.as_str()))
    });
    let hooks: Vec<u64> = hooks.map(|hook| hook.id).collect();
    for hook in hooks {
        deliver(world, hook, WORKFLOW_JOB, Some(action), &payload, now);
    }
}

/// The repository of a job, and the event.
fn job_event(world: &World, id: u64, action: &str, now: Timestamp) -> Option<(String, Value)> {
    let job = world.jobs.get(&id)?;
    let repository = world.repository(&job.repository)?;
    let call = nobody(world, now);
    let mut shown = runs::show_job(world, &call, repository, job);
    if action == "waiting" {
        shown["status"] = json!("waiting");
    }
    let mut payload = json!({
        "action": action,
        "workflow_job": shown,
        "repository": render::full_repository(world, &call, repository, false),
        "sender": render::account(world, &call, repository.owner()),
    });
    // Of an organization's webhook, and of what happens in its repositories.
    if let Some(organization) = render::organization(world, &call, repository.owner()) {
        payload["organization"] = organization;
    }
    Some((job.repository.clone(), payload))
}

/// A call as whoever renders wants one.
fn nobody(world: &World, now: Timestamp) -> Call {
    Call {
        path: BTreeMap::new(),
        query: BTreeMap::new(),
        body: Value::Null,
        principal: Principal::Anonymous,
        api: format!("{}/api/v3", world.public_url),
        site: world.public_url.clone(),
        now,
        newest: false,
        target: String::new(),
    }
}

/// Has an event delivered.
pub fn deliver(
    world: &mut World,
    hook: u64,
    event: &str,
    action: Option<&str>,
    payload: &Value,
    now: Timestamp,
) {
    let troubles = world.settings.deliveries.clone();
    if troubles.lose {
        return;
    }
    let guid = guid();
    let times = troubles.repeat.saturating_add(1);
    let hold = SignedDuration::from_millis(i64::from(troubles.hold_millis));
    for number in 0..times {
        let delivery = Delivery {
            id: world.next_id(),
            guid: guid.clone(),
            at: now,
            redelivery: number > 0,
            event: event.to_owned(),
            action: action.map(str::to_owned),
            payload: payload.clone(),
            forged: troubles.forge,
            outcome: None,
        };
        send(world, hook, delivery, now.checked_add(hold).unwrap_or(now));
    }
}

/// Makes another attempt at a delivery.
pub fn redeliver(world: &mut World, hook: u64, delivery: &Delivery, now: Timestamp) {
    let again = Delivery {
        id: world.next_id(),
        at: now,
        redelivery: true,
        forged: false,
        outcome: None,
        ..delivery.clone()
    };
    send(world, hook, again, now);
}

fn send(world: &mut World, hook: u64, delivery: Delivery, not_before: Timestamp) {
    let Some(entry) = world.hooks.get_mut(&hook) else {
        return;
    };
    world.outbox.push((hook, delivery.id, not_before));
    entry.deliveries.push(delivery);
}

/// A number in the form of GitHub's.
fn guid() -> String {
    let digits = text::random_hex(16);
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    [
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32),
    ]
    .join("-")
}
