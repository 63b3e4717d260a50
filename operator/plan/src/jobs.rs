//! Jobs that have ended: noted when their runner's end is seen, reported when GitHub has said how they ended.
//!
//! What is awaited is in the status, so that a restart loses nothing and tells nothing twice.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use cudarunner_crds::{JobStatus, MAX_LAST_JOBS};
use gate_report::clean;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{About, NOTE, Notice, Observed, Plan, devices, usage};
use crate::model::github::{Repository, RunJob};
use crate::model::jobs::{JobFacts, RunKey};
use crate::model::pool::{Pool, Spec};
use crate::model::runner::{End, EndedJob, Job, Runner, Told};
use crate::model::time::Shift as _;
use crate::model::url::GitHubUrl;
use crate::model::verification::VerificationFacts;
use crate::reason::Reason;

/// How often GitHub is asked at most.
pub const BATCH: SignedDuration = SignedDuration::from_secs(30);
/// How long after a job's end GitHub is first asked: the jobs of one run often end together.
const SETTLE: SignedDuration = SignedDuration::from_secs(10);
/// How long after a job's end its conclusion is waited for.
const GIVE_UP: SignedDuration = SignedDuration::from_mins(5);
/// A reconcile that comes too early to ask looks again no sooner.
const AGAIN: SignedDuration = SignedDuration::from_secs(2);
/// The longest word or name of GitHub's that is kept.
const LONGEST: usize = 200;

/// When GitHub is to be asked next, if it is.
#[must_use]
pub fn next_look(jobs: &[JobStatus], facts: &JobFacts) -> Option<Timestamp> {
    let awaiting = jobs.iter().filter(|job| job.awaits_conclusion);
    let first = awaiting.map(|job| job.finished_at.0.after(SETTLE)).min()?;
    Some(facts.next_look.map_or(first, |at| at.max(first)))
}

/// The runs to ask for: those of jobs whose conclusion nobody has read.
#[must_use]
pub fn to_ask(jobs: &[JobStatus], verification: &VerificationFacts) -> BTreeSet<RunKey> {
    let is_open = |job: &&JobStatus| job.awaits_conclusion && among(job, verification).is_none();
    jobs.iter().filter(is_open).filter_map(run_of).collect()
}

/// The jobs in the status, and those that have ended since it was written; the last ones first.
#[must_use]
pub fn noted<'a>(pool: &Pool, runners: impl Iterator<Item = &'a Runner>) -> Vec<JobStatus> {
    let mut jobs = pool.status.last_jobs.clone();
    jobs.extend(ended(pool, runners));
    jobs.sort_by_key(|job| Reverse(job.finished_at.0));
    jobs
}

/// The run of a job.
#[must_use]
pub fn run_of(job: &JobStatus) -> Option<RunKey> {
    Some((job.repository.clone()?, u64::try_from(job.run_id?).ok()?))
}

/// Notes the jobs that have ended, and tells of those about which nothing more is awaited.
pub(super) fn plan(pool: &Pool, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if pool.spec.is_err() {
        return;
    }
    let known = &pool.status.last_jobs;
    let mut jobs = noted(pool, observed.runners.iter().chain(&observed.vanished));
    let is_new = |job: &&JobStatus| !known.iter().any(|k| is_same(k, job));
    let new: Vec<&JobStatus> = jobs.iter().filter(is_new).collect();
    let names: BTreeSet<String> = new.iter().map(|job| job.runner.clone()).collect();
    let watched = new.iter().filter(|job| !job.gpu.is_empty());
    plan.watched_jobs = watched.map(|job| (*job).clone()).collect();
    let refused: Vec<Notice> = new.iter().filter_map(|job| not_allowed(job)).collect();
    let timed_out: Vec<Notice> = new.iter().filter_map(|job| timed_out(job)).collect();
    (plan.refused_jobs, plan.timed_out_jobs) = (refused.len(), timed_out.len());
    plan.news.extend(refused.into_iter().chain(timed_out));
    for job in jobs.iter_mut().filter(|job| job.awaits_conclusion) {
        settle(job, observed, now);
        // Nobody is there any more to be told later.
        job.awaits_conclusion &= pool.deleting.is_none();
    }
    let beyond = jobs.split_off(jobs.len().min(MAX_LAST_JOBS));
    let is_untold = |job: &&JobStatus| {
        let before = known.iter().find(|k| is_same(k, job));
        before.is_none_or(|before| before.awaits_conclusion)
    };
    let settled = jobs.iter().filter(|job| !job.awaits_conclusion);
    // What leaves the list is asked for no more.
    let reported: Vec<&JobStatus> = settled.chain(&beyond).filter(is_untold).collect();
    if !reported.is_empty() {
        plan.news.push(Notice {
            warning: false,
            reason: Reason::JobCompleted.into(),
            note: note(&reported),
            about: reported
                .first()
                .map(|job| About::Runner(job.runner.clone())),
        });
    }
    let suspect = devices::count(&mut plan.status, &reported);
    plan.news.extend(suspect);
    if let Some(at) = next_look(&jobs, &observed.jobs) {
        plan.wake_at(at.max(now.after(AGAIN)), now);
    }
    // Who runs many jobs may go after any of them.
    let ended = observed.runners.iter().filter(|r| r.end.is_some());
    let untold = ended.filter(|r| names.contains(&r.name));
    plan.unrecorded.extend(untold.map(|r| r.name.clone()));
    plan.status.last_jobs = jobs;
}

fn is_same(one: &JobStatus, other: &JobStatus) -> bool {
    Identity::of(one).is(Identity::of(other))
}

/// What tells a job from others.
#[derive(Clone, Copy)]
struct Identity<'a> {
    runner: &'a str,
    run: Option<i64>,
    finished: Timestamp,
    /// It left no marks: GitHub's word is all that is known. Its end is its runner's, so that time may be another at the
    /// next look, or the marks' own where they come late.
    is_by_word: bool,
}

impl<'a> Identity<'a> {
    fn of(job: &'a JobStatus) -> Self {
        Self {
            runner: &job.runner,
            run: job.run_id,
            finished: job.finished_at.0,
            is_by_word: job.started_at.is_none() && job.attempt.is_none(),
        }
    }

    /// A runner to which GitHub itself gives jobs has one of them.
    fn is(self, other: Self) -> bool {
        let same_run = self.run.is_some() && self.run == other.run;
        self.runner == other.runner
            && (self.finished == other.finished
                || same_run && (self.is_by_word || other.is_by_word))
    }
}

/// Whether the status has a runner's job, or has had it. What this process has told is known. Of what one before it has told,
/// older jobs than a full list has have left the list.
#[must_use]
pub fn is_noted(known: &[JobStatus], told: Option<Told>, runner: &Runner, done: &EndedJob) -> bool {
    let (run, attempt) = numbers(&done.job);
    let job = Identity {
        runner: &runner.name,
        run,
        finished: done.finished,
        is_by_word: done.started.is_none() && attempt.is_none(),
    };
    // Where a runner has one job, that is it, whatever is said of its times.
    let has_one = !runner.life.is_persistent;
    let has_left = match told {
        Some(told) => told
            .job
            .is_some_and(|at| has_one || at == done.finished || job.is_by_word),
        None => known
            .get(MAX_LAST_JOBS - 1)
            .is_some_and(|oldest| done.finished < oldest.finished_at.0),
    };
    let is_it = |known: &JobStatus| {
        let is_only = has_one && known.runner == runner.name && known.run_id == run;
        Identity::of(known).is(job) || is_only && known.finished_at.0 >= runner.created
    };
    has_left || known.iter().any(is_it)
}

/// The run of a job, and which attempt of it.
pub(crate) fn numbers(job: &Job) -> (Option<i64>, Option<i32>) {
    let run = job.run.parse().ok().filter(|run| *run > 0);
    (
        run,
        job.attempt.parse().ok().filter(|attempt| *attempt >= 0),
    )
}

/// The jobs that the status does not have.
fn ended<'a>(pool: &Pool, runners: impl Iterator<Item = &'a Runner>) -> Vec<JobStatus> {
    let Ok(spec) = &pool.spec else {
        return vec![];
    };
    let known = &pool.status.last_jobs;
    runners
        .filter_map(|runner| Some((runner, done(runner)?)))
        .filter(|(runner, done)| !is_noted(known, runner.told, runner, done))
        .map(|(runner, done)| entry(pool, spec, runner, &done))
        .collect()
}

/// The job that has ended on a runner: by its own marks, or by GitHub's word where it failed before it left any.
pub(crate) fn done(runner: &Runner) -> Option<EndedJob> {
    let heard = || match (&runner.heard, &runner.end) {
        (Some(job), Some(End::Failed(failure))) => Some(EndedJob {
            job: Job::clone(job),
            started: None,
            finished: failure.at,
            refused: None,
            gpus: vec![],
            exceeded_minutes: None,
        }),
        _ => None,
    };
    runner.done.as_deref().cloned().or_else(heard)
}

/// The job of a runner that is over, whether the status has it or not: the last one that has ended, or one that was cut
/// short.
pub(super) fn of_runner(pool: &Pool, runner: &Runner) -> Option<JobStatus> {
    let spec = pool.spec.as_ref().ok()?;
    let cut = || {
        let job = runner.under_way.as_deref().or(runner.heard.as_deref())?;
        let finished = runner.life.over.unwrap_or(runner.since);
        Some(EndedJob {
            job: job.clone(),
            started: job.time(runner.created, finished),
            finished,
            refused: None,
            gpus: vec![],
            exceeded_minutes: None,
        })
    };
    Some(entry(pool, spec, runner, &done(runner).or_else(cut)?))
}

/// What GitHub says of a job, where it was asked.
pub(super) fn read<'a>(job: &JobStatus, observed: &'a Observed) -> Option<&'a RunJob> {
    let answer = || observed.jobs.runs.get(&run_of(job)?)?.as_deref();
    among(job, &observed.verification).or_else(|| found(job, answer()?))
}

/// The address that a runner's jobs are of: the one that its pod names, where the status knows that as the pool's, now or
/// before.
pub(crate) fn home(pool: &Pool, spec: &Spec, runner: &Runner) -> GitHubUrl {
    let status = &pool.status;
    let left = status.left_at.iter().map(|left| &left.url);
    let mut known = status.registered_at.iter().chain(left);
    let named = runner.url.as_ref().filter(|url| known.any(|at| at == *url));
    let named = named.and_then(|url| GitHubUrl::parse(url, true).ok());
    named.unwrap_or_else(|| spec.url.clone())
}

/// What is known of a job without asking. The marks are a job's own words: they lead to the pool's own GitHub only.
fn entry(pool: &Pool, spec: &Spec, runner: &Runner, done: &EndedJob) -> JobStatus {
    let job = &done.job;
    let home = home(pool, spec, runner);
    let repository = Repository::within(&home, &job.repository);
    let (run_id, attempt) = numbers(job);
    let run = run_id.and_then(|run| u64::try_from(run).ok());
    let number = attempt.and_then(|attempt| u32::try_from(attempt).ok());
    let page = repository.as_ref().zip(run);
    let page = page.map(|(repository, run)| repository.run_page(&home, run, number));
    JobStatus {
        job: job.job.clone(),
        conclusion: None,
        runner: runner.name.clone(),
        node: runner.node.clone(),
        devices: runner.devices.clone(),
        started_at: done.started.map(Time),
        finished_at: Time(done.finished),
        workflow: job.workflow.clone(),
        refused: done.refused.clone(),
        gpu: usage::shown(&done.gpus, &runner.devices),
        exceeded_minutes: done.exceeded_minutes,
        run_id,
        attempt,
        // The credentials of another address need not reach it, and what they are refused they would be asked for no more.
        awaits_conclusion: page.is_some() && home == spec.url,
        url: page,
        repository: repository.map(|r| r.full_name().to_owned()),
    }
}

/// Takes in what GitHub says, or sees that it will not.
fn settle(job: &mut JobStatus, observed: &Observed, now: Timestamp) {
    if let Some(found) = read(job, observed) {
        job.conclusion = found.conclusion.as_deref().map(short);
        job.job = short(&found.name);
        job.awaits_conclusion = false;
        return;
    }
    let answer = run_of(job).and_then(|run| observed.jobs.runs.get(&run));
    let denied = observed.jobs.denied_until.is_some_and(|until| now < until);
    let is_gone = answer.is_some_and(Option::is_none);
    // No sooner than an answer would have come: jobs are reported in batches.
    let looked = observed.jobs.looked;
    let had_its_look = looked.is_some_and(|at| at >= job.finished_at.0.after(SETTLE));
    if had_its_look && (denied || is_gone) || now >= job.finished_at.0.after(GIVE_UP) {
        job.awaits_conclusion = false;
    }
}

/// A job in the run of the verification, which is read anyway.
fn among<'a>(job: &JobStatus, verification: &'a VerificationFacts) -> Option<&'a RunJob> {
    let same =
        verification.run_id.is_some() && run_of(job).map(|(_, run)| run) == verification.run_id;
    same.then(|| found(job, &verification.jobs)).flatten()
}

/// The job of a run that the runner ran, in its own attempt where that is known; the last one where it ran several.
fn found<'a>(job: &JobStatus, jobs: &'a [RunJob]) -> Option<&'a RunJob> {
    let attempt = job.attempt.and_then(|attempt| u32::try_from(attempt).ok());
    let ours = jobs
        .iter()
        .filter(|j| j.runner_name.as_ref() == Some(&job.runner));
    ours.filter(|j| attempt.is_none_or(|attempt| j.attempt == attempt))
        .filter(|j| j.conclusion.is_some())
        .max_by_key(|j| j.completed_at)
}

fn short(text: &str) -> String {
    clean(text, LONGEST)
}

/// A job that the pool did not take.
fn not_allowed(job: &JobStatus) -> Option<Notice> {
    let why = job.refused.as_ref()?;
    let how = format!("before its first step: {why}");
    Some(ended_by_us(job, Reason::JobNotAllowed, &how))
}

/// A job that took longer than the pool lets it.
fn timed_out(job: &JobStatus) -> Option<Notice> {
    let minutes = job.exceeded_minutes?;
    let how = format!("because it took longer than the {minutes} minutes of spec.jobs.maxMinutes");
    Some(ended_by_us(job, Reason::JobTimedOut, &how))
}

/// A job that was ended in its runner's pod.
fn ended_by_us(job: &JobStatus, reason: Reason, how: &str) -> Notice {
    let run = job
        .run_id
        .map_or_else(String::new, |run| format!(" of run {run}"));
    let repository = job.repository.as_deref().unwrap_or("an unknown repository");
    Notice {
        warning: true,
        reason: reason.into(),
        note: format!(
            "Job {}{run} of the workflow {} in {repository} was ended on {} {how}.",
            job.job, job.workflow, job.runner
        ),
        about: Some(About::Runner(job.runner.clone())),
    }
}

/// All of the jobs in one note, as far as there is room.
fn note(jobs: &[&JobStatus]) -> String {
    const MORE: usize = 32;
    let mut note = String::new();
    for (number, job) in jobs.iter().enumerate() {
        let separator = if note.is_empty() { "" } else { "; " };
        let said = sentence(job);
        let left = jobs.len().saturating_sub(number);
        let room = if left == 1 {
            NOTE
        } else {
            NOTE.saturating_sub(MORE)
        };
        if [separator, &said].iter().map(|s| s.len()).sum::<usize>()
            > room.saturating_sub(note.len())
        {
            // A string takes everything.
            let _ = write!(note, "{separator}and {left} more");
            break;
        }
        note.push_str(separator);
        note.push_str(&said);
    }
    note
}

fn sentence(job: &JobStatus) -> String {
    let ended = job.conclusion.as_deref().unwrap_or("ended");
    let took = job.started_at.as_ref().map_or_else(String::new, |started| {
        let took = job.finished_at.0.duration_since(started.0);
        format!(" after {} s", took.as_secs().max(0))
    });
    let link = job
        .url
        .as_ref()
        .map_or_else(String::new, |url| format!(", {url}"));
    format!("{}: {ended}{took} on {}{link}", job.job, job.runner)
}

#[cfg(test)]
mod tests;
