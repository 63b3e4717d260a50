//! How jobs come to scale sets: capacity, assignment, and the changes that listeners hear of.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{busy, group_serves, pump, queued};
use crate::{
    state::{ChangeKind, Conclusion, Job, JobChange, JobPhase, ScaleSet, Statistics, World},
    text,
};

/// What stands where there is no time.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// So often a job is taken back.
const MOST_TAKEN_BACK: u32 = 3;

/// Most jobs that one message tells of.
const BATCH: usize = 50;

/// A message for a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its number.
    pub id: u64,
    /// An array of changes as text.
    pub body: String,
    /// How things stand now.
    pub statistics: Statistics,
}

/// Jobs and runners of a scale set in numbers.
#[must_use]
pub fn statistics(world: &World, set: &ScaleSet, now: Timestamp) -> Statistics {
    let own = |job: &&Job| job.scale_set == Some(set.id) && job.conclusion().is_none();
    let runners = || {
        world
            .runners
            .values()
            .filter(|runner| runner.scale_set == Some(set.id))
    };
    let grace = world.settings.offline_seconds;
    Statistics {
        total_available_jobs: available(world, set).count(),
        total_acquired_jobs: 0,
        total_assigned_jobs: world.jobs.values().filter(own).count(),
        total_running_jobs: world
            .jobs
            .values()
            .filter(own)
            .filter(|job| matches!(job.phase, JobPhase::InProgress { .. }))
            .count(),
        total_registered_runners: runners().count(),
        total_busy_runners: runners().filter(|runner| busy(world, runner)).count(),
        total_idle_runners: runners()
            .filter(|runner| runner.online(now, grace) && !busy(world, runner))
            .count(),
    }
}

/// Queued jobs that fit and belong to no scale set.
pub fn available<'a>(world: &'a World, set: &'a ScaleSet) -> impl Iterator<Item = &'a Job> {
    world
        .jobs
        .values()
        .filter(move |job| free(job) && takes(world, set, job))
}

fn free(job: &Job) -> bool {
    job.phase == JobPhase::Queued && job.scale_set.is_none()
}

fn takes(world: &World, set: &ScaleSet, job: &Job) -> bool {
    set.fits(&job.template.labels) && group_serves(world, &set.scope, set.group, &job.repository)
}

/// Jobs of each scale set that did not end.
fn taken(world: &World) -> BTreeMap<u64, usize> {
    let mut taken = BTreeMap::new();
    for job in world.jobs.values() {
        if let (Some(set), None) = (job.scale_set, job.conclusion()) {
            *taken.entry(set).or_default() += 1;
        }
    }
    taken
}

/// The capacity of the scale sets that are listened to, and how much of it is taken.
pub(super) struct Rooms {
    of: BTreeMap<u64, Room>,
    now: Timestamp,
}

struct Room {
    taken: usize,
    capacity: usize,
}

impl Rooms {
    pub(super) fn of(world: &World, now: Timestamp) -> Self {
        if world.settings.scale_sets_offer || world.scale_sets.is_empty() {
            let of = BTreeMap::new();
            return Self { of, now };
        }
        let taken = taken(world);
        let rooms = world.scale_sets.values().filter_map(|set| {
            let room = Room {
                taken: taken.get(&set.id).copied().unwrap_or_default(),
                capacity: set.session.as_ref()?.capacity,
            };
            Some((set.id, room))
        });
        let of = rooms.collect();
        Self { of, now }
    }

    /// Finds the scale set for a job: the one with the fewest jobs of those that have room.
    pub(super) fn take(&mut self, world: &World, job: u64) -> Option<u64> {
        let job = world.jobs.get(&job).filter(|job| free(job))?;
        if job.not_before.is_some_and(|at| self.now < at) {
            return None;
        }
        let (id, room) = self
            .of
            .iter_mut()
            .filter(|(_, room)| room.taken < room.capacity)
            .filter(|(id, _)| {
                world
                    .scale_sets
                    .get(id)
                    .is_some_and(|set| takes(world, set, job))
            })
            .min_by_key(|(_, room)| room.taken)?;
        room.taken += 1;
        Some(*id)
    }
}

/// From now on only runners of the scale set get the job.
pub(super) fn assign(world: &mut World, job: u64, set: u64, now: Timestamp) {
    if let Some(job) = world.jobs.get_mut(&job) {
        job.scale_set = Some(set);
        job.scale_set_assigned_at = Some(now);
    }
    tell(world, job, ChangeKind::Assigned);
}

/// Offers free jobs to scale sets that have to acquire them, as far as their capacity goes.
pub(super) fn offer(world: &mut World, now: Timestamp) -> bool {
    if !world.settings.scale_sets_offer || world.scale_sets.is_empty() {
        return false;
    }
    let waiting: Vec<u64> = queued(world)
        .into_iter()
        .filter(|id| world.jobs.get(id).is_some_and(free))
        .collect();
    let known: BTreeSet<u64> = waiting.iter().copied().collect();
    let taken = taken(world);
    let mut offers: Vec<(u64, u64)> = Vec::new();
    for set in world.scale_sets.values_mut() {
        set.offers.retain(|job| known.contains(job));
    }
    for set in world.scale_sets.values() {
        let Some(session) = &set.session else {
            continue;
        };
        let used = taken.get(&set.id).copied().unwrap_or_default() + set.offers.len();
        let fresh = waiting
            .iter()
            .filter(|id| !set.offers.contains(id))
            .filter(|id| world.jobs.get(id).is_some_and(|job| takes(world, set, job)))
            .take(session.capacity.saturating_sub(used));
        offers.extend(fresh.map(|job| (set.id, *job)));
    }
    for (set, job) in &offers {
        tracing::debug!(set, job, at = %now, "job offered");
        push(world, *set, *job, ChangeKind::Available);
        if let Some(set) = world.scale_sets.get_mut(set) {
            set.offers.insert(*job);
        }
    }
    !offers.is_empty()
}

/// A listener asks for jobs; gives those that belong to its scale set now.
pub fn acquire(world: &mut World, set: u64, jobs: &[u64], now: Timestamp) -> Vec<u64> {
    let mut acquired = Vec::new();
    for id in jobs {
        let Some((job, entry)) = world.jobs.get(id).zip(world.scale_sets.get(&set)) else {
            continue;
        };
        if free(job) && takes(world, entry, job) {
            assign(world, *id, set, now);
        } else if job.scale_set != Some(set) || job.conclusion().is_some() {
            continue;
        }
        acquired.push(*id);
    }
    pump(world, now);
    acquired
}

/// Takes jobs back that no runner of their scale set has begun in time, and tells that as a cancelled job, as GitHub does.
/// They are assigned again later.
pub(super) fn take_back(world: &mut World, now: Timestamp) -> bool {
    let limit = SignedDuration::from_secs(i64::from(world.settings.assignment_seconds));
    let is_late = |job: &&Job| {
        let since = job
            .scale_set_assigned_at
            .filter(|_| job.scale_set.is_some());
        job.phase == JobPhase::Queued
            && job.taken_back < MOST_TAKEN_BACK
            && since.is_some_and(|since| now.duration_since(since) >= limit)
    };
    let late: Vec<u64> = world
        .jobs
        .values()
        .filter(is_late)
        .map(|job| job.id)
        .collect();
    for id in &late {
        tell(world, *id, ChangeKind::TakenBack);
        let pause = i64::from(world.settings.assigned_again_seconds);
        if let Some(job) = world.jobs.get_mut(id) {
            let pause = SignedDuration::from_secs(pause << job.taken_back);
            job.not_before = now.checked_add(pause).ok();
            job.taken_back += 1;
            job.queued_at = now;
            job.scale_set = None;
            job.scale_set_assigned_at = None;
        }
    }
    !late.is_empty()
}

/// Ends sessions whose listeners stopped to poll.
pub(super) fn end_silent_sessions(world: &mut World, now: Timestamp) -> bool {
    let patience = world.settings.session_seconds;
    let silent: Vec<u64> = world
        .scale_sets
        .values()
        .filter(|set| {
            set.session
                .as_ref()
                .is_some_and(|session| session.silent(now, patience))
        })
        .map(|set| set.id)
        .collect();
    for set in &silent {
        close(world, *set, now);
    }
    !silent.is_empty()
}

/// Ends the session of a scale set; its jobs that do not run are queued again. Says whether there
/// was one.
pub fn end_session(world: &mut World, set: u64, now: Timestamp) -> bool {
    let ended = close(world, set, now);
    pump(world, now);
    ended
}

fn close(world: &mut World, set: u64, now: Timestamp) -> bool {
    let Some(entry) = world.scale_sets.get_mut(&set) else {
        return false;
    };
    let ended = entry.session.take().is_some();
    entry.offers.clear();
    entry
        .changes
        .retain(|change| matches!(change.kind, ChangeKind::Started | ChangeKind::Completed));
    for job in world.jobs.values_mut() {
        if job.scale_set != Some(set) {
            continue;
        }
        match job.phase {
            JobPhase::Queued => {}
            JobPhase::Assigned { runner, .. } => {
                if let Some(runner) = world.runners.get_mut(&runner) {
                    runner.job = None;
                }
            }
            _ => continue,
        }
        job.phase = JobPhase::Queued;
        job.queued_at = now;
        job.scale_set = None;
        job.scale_set_assigned_at = None;
    }
    ended
}

/// Deletes a scale set with its idle runners; says whether there was one.
pub fn delete(world: &mut World, set: u64, now: Timestamp) -> bool {
    close(world, set, now);
    let found = world.scale_sets.remove(&set).is_some();
    let idle: Vec<u64> = world
        .runners
        .values()
        .filter(|runner| runner.scale_set == Some(set) && !busy(world, runner))
        .map(|runner| runner.id)
        .collect();
    for runner in idle {
        world.runners.remove(&runner);
    }
    pump(world, now);
    found
}

/// The next message after number `last`: one that was not acknowledged, or a new one if there is
/// anything to tell.
pub fn next_message(world: &mut World, set: u64, last: u64, now: Timestamp) -> Option<Message> {
    let statistics = statistics(world, world.scale_sets.get(&set)?, now);
    let set = world.scale_sets.get_mut(&set)?;
    let known = set
        .messages
        .iter()
        .find(|(id, _)| **id > last)
        .map(|(id, body)| (*id, body.clone()));
    let (id, body) = match known {
        Some(known) => known,
        None => new_message(set, last)?,
    };
    Some(Message {
        id,
        body,
        statistics,
    })
}

/// Numbers alone are no news: a message tells of jobs of the scale set.
fn new_message(set: &mut ScaleSet, last: u64) -> Option<(u64, String)> {
    let id = set.last_message + 1;
    if set.changes.is_empty() || id <= last {
        return None;
    }
    let count = set.changes.len().min(BATCH);
    let changes: Vec<Value> = set
        .changes
        .drain(..count)
        .map(|change| change.body)
        .collect();
    let body = Value::Array(changes).to_string();
    set.last_message = id;
    set.messages.insert(id, body.clone());
    Some((id, body))
}

/// Tells the scale set of a job what happened to it.
pub(super) fn tell(world: &mut World, job: u64, kind: ChangeKind) {
    if let Some(set) = world.jobs.get(&job).and_then(|job| job.scale_set) {
        push(world, set, job, kind);
    }
}

fn push(world: &mut World, set: u64, job: u64, kind: ChangeKind) {
    let Some(body) = change(world, set, job, kind) else {
        return;
    };
    if let Some(set) = world.scale_sets.get_mut(&set) {
        set.changes.push_back(JobChange { kind, body });
    }
}

/// The message about a change of a job.
fn change(world: &World, set: u64, job: u64, kind: ChangeKind) -> Option<Value> {
    let job = world.jobs.get(&job)?;
    let mut body = describe(world, job)?;
    body["messageType"] = kind.as_str().into();
    match kind {
        ChangeKind::Available => body["acquireJobUrl"] = acquire_url(world, set).into(),
        ChangeKind::Assigned => {}
        ChangeKind::TakenBack => {
            name_runner(&mut body, job);
            body["result"] = result(Conclusion::Cancelled).into();
        }
        ChangeKind::Started => name_runner(&mut body, job),
        ChangeKind::Completed => {
            name_runner(&mut body, job);
            body["result"] = result(job.conclusion()?).into();
        }
    }
    Some(body)
}

/// What every message says of a job.
#[must_use]
pub fn describe(world: &World, job: &Job) -> Option<Value> {
    let run = world.runs.get(&job.run)?;
    let repository = world.repository(&job.repository)?;
    let time = |at: Option<Timestamp>| at.map_or_else(|| NO_TIME.to_owned(), text::time);
    Some(json!({
        "runnerRequestId": job.id,
        "repositoryName": repository.name(),
        "ownerName": repository.owner(),
        "jobId": format!("{:08x}-0000-4000-8000-{:012x}", job.run, job.id),
        "jobWorkflowRef": format!("{}/{}@refs/heads/{}", repository.full_name, run.path, run.branch),
        "jobDisplayName": job.name(),
        "workflowRunId": run.id,
        "eventName": run.event,
        "requestLabels": job.template.labels,
        "queueTime": time(Some(job.queued_at)),
        "scaleSetAssignTime": time(job.scale_set_assigned_at),
        "runnerAssignTime": time(job.started_at),
        "finishTime": time(job.completed_at),
    }))
}

/// Where the jobs of a scale set are acquired.
#[must_use]
pub fn acquire_url(world: &World, set: u64) -> String {
    let site = &world.public_url;
    format!(
        "{site}/tenant/1/_apis/runtime/runnerscalesets/{set}/acquirejobs?api-version=6.0-preview"
    )
}

fn name_runner(body: &mut Value, job: &Job) {
    let (id, name) = job
        .runner
        .as_ref()
        .map_or((0, ""), |(id, name, _)| (*id, name.as_str()));
    body["runnerId"] = id.into();
    body["runnerName"] = name.into();
}

fn result(conclusion: Conclusion) -> &'static str {
    match conclusion {
        Conclusion::Success => "succeeded",
        Conclusion::Failure => "failed",
        Conclusion::Cancelled => "canceled",
        Conclusion::Skipped => "skipped",
    }
}

#[cfg(test)]
mod tests;
