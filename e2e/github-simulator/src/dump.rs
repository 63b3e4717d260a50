//! The state as a document, for comparing before and after.
//!
//! `lasting` is what a user finds on the site and what must be as before when a test is over.
//! `passing` is what a test leaves behind by nature: runs, tokens, who is online.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    engine,
    rest::render,
    state::{
        Conclusion, Job, Note, Protection, Repository, Runner, RunnerGroup, ScaleSet, Scope, Step,
        World,
    },
    text,
};

/// Both parts.
#[must_use]
pub fn all(world: &World) -> Value {
    json!({"lasting": lasting(world), "passing": passing(world)})
}

/// What must be as before.
#[must_use]
pub fn lasting(world: &World) -> Value {
    let repositories: Map<String, Value> = world
        .repositories
        .iter()
        .map(|(name, repository)| {
            (
                repository.full_name.clone(),
                show_repository(world, name, repository),
            )
        })
        .collect();
    let organizations: Map<String, Value> = world
        .organizations
        .iter()
        .map(|(name, organization)| {
            let scope = Scope::Organization(name.clone());
            let shown = json!({
                "runnerGroups": groups(&organization.groups),
                "runners": runners(world, &scope),
                "scaleSets": lasting_sets(world, &scope),
            });
            (organization.login.clone(), shown)
        })
        .collect();
    let enterprises: Map<String, Value> = world
        .enterprises
        .iter()
        .map(|(name, enterprise)| {
            let scope = Scope::Enterprise(name.clone());
            let shown = json!({
                "runnerGroups": groups(&enterprise.groups),
                "runners": runners(world, &scope),
                "scaleSets": lasting_sets(world, &scope),
            });
            (enterprise.slug.clone(), shown)
        })
        .collect();
    json!({
        "repositories": repositories,
        "organizations": organizations,
        "enterprises": enterprises,
    })
}

fn groups(groups: &BTreeMap<u64, RunnerGroup>) -> Vec<Value> {
    groups
        .values()
        .map(|group| json!({"id": group.id, "name": group.name, "selected": group.selected}))
        .collect()
}

fn runners(world: &World, scope: &Scope) -> Vec<Value> {
    let mut found: Vec<&Runner> = world
        .runners
        .values()
        .filter(|runner| runner.scope == *scope)
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
        .into_iter()
        .map(|runner| {
            let labels: Vec<&str> = runner
                .labels
                .iter()
                .map(|label| label.name.as_str())
                .collect();
            json!({
                "id": runner.id,
                "name": runner.name,
                "labels": labels,
                "group": runner.group,
                "ephemeral": runner.ephemeral,
            })
        })
        .collect()
}

/// Without their numbers, which differ where one was made again.
fn lasting_sets(world: &World, scope: &Scope) -> Vec<Value> {
    let mut found: Vec<&ScaleSet> = world
        .scale_sets
        .values()
        .filter(|set| set.scope == *scope)
        .collect();
    found.sort_by(|one, other| (&one.name, one.group).cmp(&(&other.name, other.group)));
    found
        .into_iter()
        .map(|set| json!({"name": set.name, "labels": set.labels, "group": set.group}))
        .collect()
}

fn show_repository(world: &World, name: &str, repository: &Repository) -> Value {
    let branches: Map<String, Value> = repository
        .branches
        .iter()
        .map(|(name, branch)| {
            let protection = branch.protection.as_ref().map(show_protection);
            (name.clone(), json!({"protection": protection}))
        })
        .collect();
    let workflows: Map<String, Value> = repository
        .workflows
        .values()
        .map(|workflow| (workflow.path.clone(), workflow.state.clone().into()))
        .collect();
    let rulesets: Vec<&Value> = repository.rulesets.values().collect();
    let scope = Scope::Repository(name.to_owned());
    json!({
        "private": repository.private,
        "branches": branches,
        "rulesets": rulesets,
        "workflows": workflows,
        "runners": runners(world, &scope),
        "scaleSets": lasting_sets(world, &scope),
        "webhooks": lasting_hooks(world, &scope),
    })
}

/// Without their numbers and their secrets.
fn lasting_hooks(world: &World, scope: &Scope) -> Vec<Value> {
    let hooks = world.hooks.values().filter(|hook| hook.scope == *scope);
    hooks
        .map(|hook| json!({"url": hook.url, "events": hook.events, "active": hook.active}))
        .collect()
}

fn show_protection(protection: &Protection) -> Value {
    let required = protection.required_status_checks.as_ref().map(
        |required| json!({"strict": required.strict, "checks": render::required_checks(required)}),
    );
    json!({"requiredStatusChecks": required, "rest": protection.rest})
}

/// What a test leaves behind by nature.
#[must_use]
pub fn passing(world: &World) -> Value {
    let now = world.now();
    let runs: Vec<Value> = world
        .runs
        .values()
        .map(|run| {
            let (status, conclusion) = engine::run_state(world, run);
            json!({
                "id": run.id,
                "repository": run.repository,
                "workflow": run.path,
                "event": run.event,
                "branch": run.branch,
                "status": status,
                "conclusion": conclusion.map(Conclusion::as_str),
                "jobs": run.jobs,
            })
        })
        .collect();
    let jobs: Vec<Value> = world.jobs.values().map(job).collect();
    let states: Vec<Value> = world
        .runners
        .values()
        .map(|runner| {
            json!({
                "id": runner.id,
                "name": runner.name,
                "scope": runner.scope.to_string(),
                "version": runner.version,
                "online": runner.online(now, world.settings.offline_seconds),
                "busy": engine::busy(world, runner),
                "job": runner.job,
                "scaleSet": runner.scale_set,
                "createdAt": text::time(runner.created_at),
            })
        })
        .collect();
    json!({
        "runs": runs,
        "jobs": jobs,
        "notes": world.notes.values().map(note).collect::<Vec<_>>(),
        "runners": states,
        "scaleSets": scale_sets(world),
        "registrationTokens": world.registration_tokens.len(),
        "installationTokens": world.installation_tokens.len(),
    })
}

/// Scale sets with what their listeners do.
#[must_use]
pub fn scale_sets(world: &World) -> Vec<Value> {
    let now = world.now();
    world
        .scale_sets
        .values()
        .map(|set| {
            let session = set.session.as_ref();
            let labels: Vec<&str> = set.labels.iter().map(|label| label.name.as_str()).collect();
            json!({
                "id": set.id,
                "name": set.name,
                "scope": set.scope.to_string(),
                "group": set.group,
                "labels": labels,
                "capacity": session.map_or(0, |session| session.capacity),
                "session": session.map(|session| &session.id),
                "statistics": engine::scale_sets::statistics(world, set, now),
                "unacknowledged": set.messages.len(),
            })
        })
        .collect()
}

fn note(note: &Note) -> Value {
    json!({
        "repository": note.repository,
        "sha": note.sha,
        "conclusion": note.conclusion,
        "title": note.title,
        "summary": note.summary,
    })
}

/// A job with everything a suite asks of it, but its log.
#[must_use]
pub fn job(job: &Job) -> Value {
    let time = |at: Option<jiff::Timestamp>| at.map(|at| at.to_string());
    let step = |step: &Step| json!({"name": step.template.name, "conclusion": step.conclusion, "summary": step.summary});
    json!({
        "id": job.id,
        "run": job.run,
        "attempt": job.attempt,
        "repository": job.repository,
        "key": job.template.key,
        "name": job.name(),
        "labels": job.template.labels,
        "status": job.status(),
        "conclusion": job.conclusion(),
        "runner": job.runner.as_ref().map(|(_, name, _)| name),
        "runnerId": job.runner.as_ref().map(|(id, _, _)| id),
        "scaleSet": job.scale_set,
        "assignments": job.assignments,
        "createdAt": job.created_at.to_string(),
        "queuedAt": job.queued_at.to_string(),
        "startedAt": time(job.started_at),
        "completedAt": time(job.completed_at),
        "steps": job.steps.iter().map(step).collect::<Vec<_>>(),
        "annotations": job.annotations,
        "summary": job.summary,
    })
}
