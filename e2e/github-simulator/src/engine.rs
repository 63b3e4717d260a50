//! What moves jobs: queued → given to an idle runner → in progress → completed.
//!
//! Nothing here waits or looks at a clock: callers pass the time and call [`pump`] after a change
//! and every now and then.

pub mod reruns;
pub mod scale_sets;

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::events;
use crate::state::{
    ChangeKind, Conclusion, Job, JobPhase, JobTemplate, Run, Runner, Scope, Step, StepTemplate,
    World,
};
use crate::text;

/// What a new run is made of.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// `owner/name`.
    pub repository: String,
    /// The workflow.
    pub workflow: u64,
    /// What started it.
    pub event: String,
    /// The branch.
    pub branch: String,
    /// The pull request, if one started it.
    pub pull_request: Option<u64>,
    /// The fork that its code is from, `owner/name`.
    pub fork: Option<String>,
    /// Its jobs; none means those of the workflow.
    pub jobs: Option<Vec<JobTemplate>>,
    /// It ended already, without any runner.
    pub conclusion: Option<Conclusion>,
}

/// Why an agent does not get the job that it was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAcquired {
    /// There is no such job.
    Unknown,
    /// It belongs to somebody else by now.
    Taken,
}

/// Starts a run; nothing happens where the repository, the workflow or the branch does not exist.
pub fn create_run(world: &mut World, new: NewRun, now: Timestamp) -> Option<u64> {
    let repository = world.repository(&new.repository)?;
    let workflow = repository.workflows.get(&new.workflow)?.clone();
    let branch = repository.branches.get(&new.branch)?;
    let sha = match &new.fork {
        // A fork's branch has a commit of its own, though it has the same name.
        Some(_) => text::random_hex(20),
        None => branch.sha.clone(),
    };
    let key = new.repository.to_lowercase();
    let id = world.next_id();
    let check_suite = world.next_id();
    let mut jobs = BTreeSet::new();
    let phase = match new.conclusion {
        Some(conclusion) => JobPhase::Completed(conclusion),
        None if workflow.concurrency.is_some() => JobPhase::Pending,
        None => JobPhase::Queued,
    };
    for template in new.jobs.unwrap_or_else(|| workflow.jobs.clone()) {
        let job = Job {
            id: world.next_id(),
            run: id,
            repository: key.clone(),
            ..new_job(template, phase.clone(), now)
        };
        jobs.insert(job.id);
        world.jobs.insert(job.id, job);
    }
    let number = count_run(world, &key, new.workflow);
    world.runs.insert(
        id,
        Run {
            id,
            repository: key,
            workflow: workflow.id,
            workflow_name: workflow.name,
            path: workflow.path,
            number,
            event: new.event,
            concurrency: workflow.concurrency.map(|group| {
                group.replace("${{ github.ref }}", &format!("refs/heads/{}", new.branch))
            }),
            branch: new.branch,
            sha,
            check_suite,
            jobs: jobs.clone(),
            attempt: 1,
            pull_request: new.pull_request,
            fork: new.fork,
            created_at: now,
            updated_at: now,
        },
    );
    if new.conclusion.is_some() {
        for job in jobs {
            report(world, job);
        }
    }
    pump(world, now);
    Some(id)
}

/// A job that belongs to no run yet; one that is over has been so from its beginning.
fn new_job(template: JobTemplate, phase: JobPhase, now: Timestamp) -> Job {
    let conclusion = match phase {
        JobPhase::Completed(conclusion) => Some(conclusion),
        _ => None,
    };
    let ended = conclusion.map(|_| now);
    let step = |step: &StepTemplate| Step {
        template: step.clone(),
        started_at: ended,
        completed_at: ended,
        conclusion,
        summary: String::new(),
    };
    Job {
        id: 0,
        run: 0,
        attempt: 1,
        repository: String::new(),
        steps: template.steps.iter().map(step).collect(),
        template,
        phase,
        scale_set: None,
        scale_set_assigned_at: None,
        taken_back: 0,
        not_before: None,
        runner: None,
        assignments: 0,
        created_at: now,
        queued_at: now,
        started_at: ended,
        completed_at: ended,
        cancel: None,
        released: false,
        log: String::new(),
        annotations: Vec::new(),
        summary: String::new(),
    }
}

fn count_run(world: &mut World, repository: &str, workflow: u64) -> u64 {
    let Some(workflow) = world
        .repository_mut(repository)
        .and_then(|repository| repository.workflows.get_mut(&workflow))
    else {
        return 1;
    };
    workflow.runs += 1;
    workflow.runs
}

/// Where a run stands, in GitHub's words: status and conclusion.
#[must_use]
pub fn run_state(world: &World, run: &Run) -> (&'static str, Option<Conclusion>) {
    let jobs: Vec<&Job> = run
        .jobs
        .iter()
        .filter_map(|id| world.jobs.get(id))
        .collect();
    if jobs.iter().all(|job| job.conclusion().is_some()) {
        let any = |wanted| jobs.iter().any(|job| job.conclusion() == Some(wanted));
        let conclusion = if any(Conclusion::Failure) {
            Conclusion::Failure
        } else if any(Conclusion::Cancelled) {
            Conclusion::Cancelled
        } else {
            Conclusion::Success
        };
        return ("completed", Some(conclusion));
    }
    if jobs.iter().any(|job| job.phase == JobPhase::Pending) {
        return ("pending", None);
    }
    let started = jobs.iter().any(|job| {
        matches!(
            job.phase,
            JobPhase::InProgress { .. } | JobPhase::Completed(_)
        )
    });
    (if started { "in_progress" } else { "queued" }, None)
}

/// Does everything that is due; says whether anything changed.
pub fn pump(world: &mut World, now: Timestamp) -> bool {
    let mut changed = lose_silent_runners(world, now);
    changed |= stop_overdue(world, now);
    changed |= scale_sets::end_silent_sessions(world, now);
    changed |= take_back_unclaimed(world, now);
    changed |= scale_sets::take_back(world, now);
    changed |= release_groups(world, now);
    changed |= assign(world, now);
    changed |= scale_sets::offer(world, now);
    events::collect(world, now);
    changed
}

/// A runner that went silent in the middle of its job takes the job down with it.
fn lose_silent_runners(world: &mut World, now: Timestamp) -> bool {
    let patience = world.settings.lost_seconds;
    let lost: Vec<u64> = world
        .jobs
        .values()
        .filter(|job| match job.phase {
            JobPhase::InProgress { runner } => world
                .runners
                .get(&runner)
                .is_none_or(|runner| !runner.online(now, patience)),
            _ => false,
        })
        .map(|job| job.id)
        .collect();
    for id in &lost {
        if let Some(job) = world.jobs.get_mut(id) {
            job.log.push_str(
                "##[error]The self-hosted runner lost communication with the server. \
                 Verify the machine is running and has a healthy network connection.\n",
            );
        }
        complete(world, *id, Conclusion::Failure, now);
    }
    !lost.is_empty()
}

/// A job that takes longer than its `timeout-minutes` is cancelled.
fn stop_overdue(world: &mut World, now: Timestamp) -> bool {
    let mut changed = false;
    for job in world.jobs.values_mut().filter(|job| job.cancel.is_none()) {
        let (JobPhase::InProgress { .. }, Some(limit)) = (&job.phase, job.timeout()) else {
            continue;
        };
        let begun = job.started_at.unwrap_or(now);
        if now.duration_since(begun) >= limit {
            let runner = job.runner.as_ref().map_or("", |(_, name, _)| name);
            job.cancel = Some(format!(
                "The job running on runner {runner} has exceeded the maximum execution time of {} minutes.",
                limit.as_mins(),
            ));
            changed = true;
        }
    }
    changed
}

fn take_back_unclaimed(world: &mut World, now: Timestamp) -> bool {
    let limit = SignedDuration::from_secs(i64::from(world.settings.pickup_seconds));
    let late: Vec<(u64, u64)> = world
        .jobs
        .values()
        .filter_map(|job| match job.phase {
            JobPhase::Assigned { runner, since } => {
                let gone = !world.runners.contains_key(&runner);
                (gone || now.duration_since(since) >= limit).then_some((job.id, runner))
            }
            _ => None,
        })
        .collect();
    for (job, runner) in &late {
        requeue(world, *job, *runner, now);
    }
    !late.is_empty()
}

fn requeue(world: &mut World, job: u64, runner: u64, now: Timestamp) {
    if let Some(job) = world.jobs.get_mut(&job) {
        job.phase = JobPhase::Queued;
        job.queued_at = now;
    }
    if let Some(runner) = world.runners.get_mut(&runner) {
        runner.job = None;
        // It ignored a job: it is offered no other one until it calls again.
        if let Some(session) = &mut runner.session
            && session.open_calls == 0
        {
            session.last_seen = Timestamp::UNIX_EPOCH;
        }
    }
}

/// One run at a time for each concurrency group; a newer one that waits pushes the older out.
fn release_groups(world: &mut World, now: Timestamp) -> bool {
    let mut changed = false;
    let mut busy: BTreeSet<(String, String)> = BTreeSet::new();
    let mut waiting: Vec<(u64, (String, String))> = Vec::new();
    for run in world.runs.values() {
        let Some(group) = &run.concurrency else {
            continue;
        };
        let key = (run.repository.clone(), group.clone());
        match run_state(world, run).0 {
            "completed" => {}
            "pending" => waiting.push((run.id, key)),
            _ => {
                busy.insert(key);
            }
        }
    }
    for (index, (run, key)) in waiting.iter().enumerate() {
        let jobs: Vec<u64> = world
            .runs
            .get(run)
            .map(|run| run.jobs.iter().copied().collect())
            .unwrap_or_default();
        if busy.insert(key.clone()) {
            for job in jobs {
                if let Some(job) = world.jobs.get_mut(&job) {
                    job.phase = JobPhase::Queued;
                    job.queued_at = now;
                }
            }
            changed = true;
        } else if waiting[index + 1..].iter().any(|(_, other)| other == key) {
            for job in jobs {
                complete(world, job, Conclusion::Cancelled, now);
            }
            changed = true;
        }
    }
    changed
}

/// Queued jobs, the one that waits longest first.
fn queued(world: &World) -> Vec<u64> {
    let mut queued: Vec<(Timestamp, u64)> = world
        .jobs
        .values()
        .filter(|job| job.phase == JobPhase::Queued)
        .map(|job| (job.queued_at, job.id))
        .collect();
    queued.sort_unstable();
    queued.into_iter().map(|(_, id)| id).collect()
}

fn assign(world: &mut World, now: Timestamp) -> bool {
    let mut rooms = scale_sets::Rooms::of(world, now);
    let mut changed = false;
    for id in queued(world) {
        let mut given = give(world, id, now);
        let set = if given { None } else { rooms.take(world, id) };
        if let Some(set) = set {
            scale_sets::assign(world, id, set, now);
            give(world, id, now);
            given = true;
        }
        changed |= given;
    }
    changed
}

/// Gives a queued job to an idle runner; says whether there was one.
fn give(world: &mut World, id: u64, now: Timestamp) -> bool {
    let Some(runner) = world
        .jobs
        .get(&id)
        .and_then(|job| candidate(world, job, now))
    else {
        return false;
    };
    if let Some(job) = world.jobs.get_mut(&id) {
        job.phase = JobPhase::Assigned { runner, since: now };
        job.assignments += 1;
    }
    if let Some(runner) = world.runners.get_mut(&runner) {
        runner.job = Some(id);
    }
    true
}

fn candidate(world: &World, job: &Job, now: Timestamp) -> Option<u64> {
    world
        .runners
        .values()
        .find(|runner| {
            runner.job.is_none()
                && runner.scale_set == job.scale_set
                && runner.online(now, world.settings.offline_seconds)
                && runner.fits(&job.template.labels)
                && serves(world, runner, &job.repository)
        })
        .map(|runner| runner.id)
}

/// Whether a runner may take jobs of a repository.
#[must_use]
pub fn serves(world: &World, runner: &Runner, repository: &str) -> bool {
    group_serves(world, &runner.scope, runner.group, repository)
}

/// Whether a runner group may take jobs of a repository.
fn group_serves(world: &World, scope: &Scope, group: u64, repository: &str) -> bool {
    let owner = repository.split('/').next().unwrap_or_default();
    match scope {
        Scope::Repository(name) => name == repository,
        Scope::Organization(login) => {
            login == owner
                && world
                    .organizations
                    .get(login)
                    .and_then(|organization| organization.groups.get(&group))
                    .is_some_and(|group| group.visible_to(repository))
        }
        Scope::Enterprise(slug) => world.enterprises.get(slug).is_some_and(|enterprise| {
            enterprise.organizations.contains(owner)
                && enterprise
                    .groups
                    .get(&group)
                    .is_some_and(|group| group.visible_to(owner))
        }),
    }
}

/// A runner picks up the job that it was given.
pub fn acquire(
    world: &mut World,
    job: u64,
    runner: u64,
    now: Timestamp,
) -> Result<(), NotAcquired> {
    let entry = world
        .runners
        .get(&runner)
        .map(|runner| (runner.id, runner.name.clone(), runner.group))
        .ok_or(NotAcquired::Unknown)?;
    let job = world.jobs.get_mut(&job).ok_or(NotAcquired::Unknown)?;
    match job.phase {
        JobPhase::Assigned { runner: owner, .. } if owner == runner => {}
        _ => return Err(NotAcquired::Taken),
    }
    job.phase = JobPhase::InProgress { runner };
    job.runner = Some(entry);
    job.started_at = Some(now);
    let (id, run) = (job.id, job.run);
    touch(world, Some(run), now);
    scale_sets::tell(world, id, ChangeKind::Started);
    Ok(())
}

fn touch(world: &mut World, run: Option<u64>, now: Timestamp) {
    if let Some(run) = run.and_then(|run| world.runs.get_mut(&run)) {
        run.updated_at = now;
    }
}

/// A job ends, and with it the entry of an ephemeral runner.
pub fn complete(world: &mut World, job: u64, conclusion: Conclusion, now: Timestamp) {
    let Some(entry) = world.jobs.get_mut(&job) else {
        return;
    };
    if entry.conclusion().is_some() {
        return;
    }
    let ran = match entry.phase {
        JobPhase::InProgress { runner } => Some((runner, true)),
        JobPhase::Assigned { runner, .. } => Some((runner, false)),
        _ => None,
    };
    entry.phase = JobPhase::Completed(conclusion);
    entry.completed_at = Some(now);
    for step in &mut entry.steps {
        if step.conclusion.is_none() {
            step.conclusion = Some(if step.started_at.is_some() {
                conclusion
            } else {
                Conclusion::Skipped
            });
            step.completed_at = Some(now);
        }
    }
    let run = entry.run;
    touch(world, Some(run), now);
    report(world, job);
    scale_sets::tell(world, job, ChangeKind::Completed);
    if let Some((runner, picked_up)) = ran {
        let ephemeral = world.runners.get_mut(&runner).is_some_and(|runner| {
            runner.job = None;
            runner.ephemeral
        });
        if ephemeral && picked_up {
            world.runners.remove(&runner);
        }
    }
}

/// The check of an ended job is known to its repository from now on.
fn report(world: &mut World, job: u64) {
    let Some((repository, name)) = world
        .jobs
        .get(&job)
        .map(|job| (job.repository.clone(), job.name().to_owned()))
    else {
        return;
    };
    if let Some(repository) = world.repository_mut(&repository) {
        repository.reported.insert(name);
    }
}

/// Asks all jobs of a run to stop; says whether there was anything to stop.
pub fn cancel_run(world: &mut World, run: u64, now: Timestamp) -> bool {
    let jobs: Vec<u64> = world
        .runs
        .get(&run)
        .map(|run| run.jobs.iter().copied().collect())
        .unwrap_or_default();
    let mut any = false;
    for id in jobs {
        let Some(job) = world.jobs.get_mut(&id) else {
            continue;
        };
        match job.phase {
            JobPhase::Completed(_) => continue,
            JobPhase::InProgress { .. } => {
                job.cancel
                    .get_or_insert_with(|| "The run was canceled.".to_owned());
            }
            _ => complete(world, id, Conclusion::Cancelled, now),
        }
        any = true;
    }
    pump(world, now);
    any
}

/// Takes a runner off the list, whatever it does: its job is queued again, or lost.
pub fn remove_runner(world: &mut World, runner: u64, now: Timestamp) {
    let Some(runner) = world.runners.remove(&runner) else {
        return;
    };
    if let Some(job) = runner.job.and_then(|job| world.jobs.get_mut(&job))
        && matches!(job.phase, JobPhase::Assigned { .. })
    {
        job.phase = JobPhase::Queued;
        job.queued_at = now;
    }
    pump(world, now);
}

/// Whether the runner runs a job that it picked up, which is what GitHub calls busy.
#[must_use]
pub fn busy(world: &World, runner: &Runner) -> bool {
    runner
        .job
        .and_then(|job| world.jobs.get(&job))
        .is_some_and(|job| matches!(job.phase, JobPhase::InProgress { .. }))
}

#[cfg(test)]
mod tests;
