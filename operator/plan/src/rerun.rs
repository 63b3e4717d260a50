//! Jobs that a GPU or a node ended, run again.
//!
//! A wish is in the status before GitHub is asked, and the run's attempt is read before that: a crash in between repeats
//! nothing. What a job can write says which job it was, and never that something else ended it: see `evidence`.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use cudarunner_crds::{MAX_RERUNS, Rerun, RerunCause, RerunState, RerunStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{About, Action, Case, Notice, Plan};
use crate::model::github::Repository;
use crate::model::jobs::RunKey;
use crate::model::rerun::{Answer, NewAttempt, RunFacts, Untold};
use crate::model::time::Shift as _;
use crate::reason::Reason;

mod evidence;
mod judge;
mod note;

use evidence::Blamed;
pub use evidence::{RECENT, remember};
use judge::Verdict;

/// Jobs that are run again within an hour at most. A pool that ends more is sick, and is to look so.
const MOST_AN_HOUR: usize = 16;
/// The hour.
const HOUR: SignedDuration = SignedDuration::from_hours(1);
/// For so long the end of a run is waited for.
const GIVE_UP: SignedDuration = SignedDuration::from_hours(24);
/// How long what was read of a run that is over is believed.
pub const FRESH: SignedDuration = SignedDuration::from_mins(1);
/// For so long after what ended a job, and after the ends of the run's other red jobs, these may yet prove to be ended by
/// something else, too: the gates on the devices of one node come within seconds of each other, and GitHub runs one attempt.
const SETTLE: SignedDuration = SignedDuration::from_mins(1);
/// How soon it is looked again where nothing else says when.
const AGAIN: SignedDuration = SignedDuration::from_secs(2);

/// The runs of jobs that are still to be run again.
#[must_use]
pub fn open_runs(reruns: &[RerunStatus]) -> BTreeSet<RunKey> {
    reruns
        .iter()
        .filter(|entry| entry.is_open())
        .filter_map(run_of)
        .collect()
}

/// The run of an entry.
#[must_use]
pub fn run_of(entry: &RerunStatus) -> Option<RunKey> {
    let run = u64::try_from(entry.run_id).ok()?;
    Some((entry.repository.clone(), run))
}

/// Decides which jobs are run again.
pub(super) fn plan(case: Case, plan: &mut Plan) {
    let Some(wish) = &case.spec.rerun else {
        plan.status.reruns.clear();
        return;
    };
    let known = &case.pool.status.reruns;
    let mut entries = known.clone();
    let mut beyond = vec![];
    for blamed in evidence::blamed(case, wish) {
        beyond.extend(add(case, blamed, &mut entries, plan));
    }
    plan.news.extend(not_listed(&beyond));
    let all = entries.clone();
    for entry in entries.iter_mut().filter(|e| e.is_open()) {
        advance(case, wish, entry, &all, plan);
    }
    let untold = open_runs(&all).into_iter();
    let untold = untold.filter_map(|run| unheard(case, &run, &all, &entries));
    plan.actions.extend(untold.map(Action::TellCommit));
    for run in open_runs(&entries) {
        if let Some(action) = attempt(case, wish, &run, &entries) {
            plan.actions.push(Action::RunAgain(action));
        }
    }
    if evidence::may_tell(case, wish) {
        plan.wake_in(AGAIN);
    }
    if entries.iter().any(RerunStatus::is_open) {
        let next = case.observed.reruns.next_look;
        plan.wake_at(
            next.unwrap_or(case.now).max(case.now.after(AGAIN)),
            case.now,
        );
    }
    let is_new = |entry: &RerunStatus| {
        let mut known = known.iter();
        !known.any(|k| k.runner == entry.runner && k.run_id == entry.run_id)
    };
    let new = entries.iter().filter(|entry| is_new(entry));
    plan.unrecorded.extend(new.map(|e| e.runner.clone()));
    // What was decided is stored before anything is done because of it.
    let is_decided =
        |entry: &RerunStatus| entry.state == RerunState::Requested && !known.contains(entry);
    if entries.iter().any(|e| is_new(e) || is_decided(e)) {
        plan.wake_in(SignedDuration::ZERO);
    }
    entries.sort_by_key(|entry| Reverse(entry.at.0));
    plan.status.reruns = entries;
}

/// Whether an entry is of this runner's job in the run.
fn is_of(entry: &RerunStatus, runner: &str, run: &RunKey) -> bool {
    entry.runner == runner && run_of(entry).as_ref() == Some(run)
}

/// Puts a job on the list, or gives it back where there is no room. What is younger than an hour stays there, so that no job
/// comes twice, and none is forgotten that counts.
fn add(
    case: Case,
    blamed: Blamed,
    entries: &mut Vec<RerunStatus>,
    plan: &mut Plan,
) -> Option<Blamed> {
    if entries
        .iter()
        .any(|entry| is_of(entry, &blamed.runner, &blamed.job.run))
    {
        return None;
    }
    if entries.len() >= MAX_RERUNS {
        let is_old = |e: &RerunStatus| !e.is_open() && e.at.0.after(HOUR) <= case.now;
        let mut oldest: Vec<usize> = (0..entries.len())
            .filter(|i| is_old(&entries[*i]))
            .collect();
        oldest.sort_by_key(|i| Reverse(entries[*i].at.0));
        let Some(oldest) = oldest.pop() else {
            return Some(blamed);
        };
        entries.remove(oldest);
    }
    let counts = |e: &&RerunStatus| e.state != RerunState::Skipped && case.now < e.at.0.after(HOUR);
    let recent = entries.iter().filter(counts).count();
    let mut entry = blamed.entry(case);
    let sick = case.health.quarantine.breaker.as_ref();
    let paused = sick.cloned().or_else(|| {
        (recent >= MOST_AN_HOUR)
            .then(|| format!("{MOST_AN_HOUR} jobs of the pool were run again within an hour"))
    });
    if let Some(why) = paused {
        let message = format!(
            "{why}: no further one is, so that the pool looks as sick as it is. Fix its GPUs or nodes, and run the job again by hand."
        );
        skip(&mut entry, Reason::RerunsPaused, message, case.now, plan);
    }
    entries.push(entry);
    None
}

/// What is told of jobs for which the list has no room, once: they are not run again.
fn not_listed(beyond: &[Blamed]) -> Option<Notice> {
    let mut new = beyond.iter().filter(|blamed| !blamed.is_told);
    let first = new.next()?;
    let (repository, run) = &first.job.run;
    let others = match new.count() {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    Some(Notice {
        warning: true,
        reason: Reason::RerunsPaused.into(),
        note: format!(
            "Job {} of run {run} in {repository}{others}: not run again, and not in status.reruns, which has no room for more of one hour. Fix the pool's GPUs or nodes, and run the jobs again by hand.",
            first.job.name
        ),
        about: Some(About::Runner(first.runner.clone())),
    })
}

/// Brings an entry forward.
fn advance(
    case: Case,
    wish: &Rerun,
    entry: &mut RerunStatus,
    all: &[RerunStatus],
    plan: &mut Plan,
) {
    let (facts, now) = (&case.observed.reruns, case.now);
    let run = run_of(entry).filter(|_| now < entry.at.0.after(GIVE_UP));
    let Some(run) = run else {
        let message = "The workflow run was not over within a day. Run the job again by hand.";
        skip(entry, Reason::RerunRefused, message.to_owned(), now, plan);
        return;
    };
    match facts.answers.get(&run) {
        Some(Answer::Started) if entry.state == RerunState::Requested => {
            start(entry, now, plan);
            return;
        }
        Some(Answer::Refused { reason, message }) => {
            skip(entry, *reason, message.clone(), now, plan);
            return;
        }
        _ => {}
    }
    if let Some(message) = facts.denied.get(&run) {
        skip(entry, Reason::RerunNotAllowed, message.clone(), now, plan);
        return;
    }
    let Some(read) = facts.runs.get(&run) else {
        return;
    };
    match judge::judge(entry, read, wish) {
        Verdict::Open => {}
        Verdict::Again { .. } if awaits_others(case, entry, &run, read, all) => {}
        Verdict::Again { job, name, attempt } => {
            entry.state = RerunState::Requested.into();
            entry.job_id = i64::try_from(job).ok();
            entry.job = name;
            entry.attempt = i32::try_from(attempt).ok();
        }
        Verdict::Started => start(entry, now, plan),
        Verdict::Skip(reason, message) => skip(entry, reason, message, now, plan),
    }
}

/// Whether other red jobs of the run may yet turn out to be ended by something else: one request is for all of them.
fn awaits_others(
    case: Case,
    entry: &RerunStatus,
    run: &RunKey,
    read: &RunFacts,
    all: &[RerunStatus],
) -> bool {
    if entry.state != RerunState::Waiting {
        return false;
    }
    let is_listed = |runner: &str| all.iter().any(|entry| is_of(entry, runner, run));
    let mut others = judge::red_beside(entry, read);
    others.any(|(runner, ended)| {
        case.now < ended.max(entry.at.0).after(SETTLE)
            && !is_listed(runner)
            && !evidence::is_acquitted(case, runner, run)
    })
}

/// The request for a run, when all of its jobs that are to be run again are in the status as such.
fn attempt(case: Case, wish: &Rerun, run: &RunKey, entries: &[RerunStatus]) -> Option<NewAttempt> {
    let facts = &case.observed.reruns;
    let read = facts.runs.get(run)?;
    if facts.answers.contains_key(run) || read.read.after(FRESH) <= case.now {
        return None;
    }
    let mut of_run = entries
        .iter()
        .filter(|e| e.is_open() && run_of(e).as_ref() == Some(run));
    let is_ready = |entry: &RerunStatus| {
        entry.state == RerunState::Requested
            && case.pool.status.reruns.contains(entry)
            && matches!(judge::judge(entry, read, wish), Verdict::Again { .. })
    };
    let first = of_run.next().filter(|entry| is_ready(entry))?;
    let others: Vec<&RerunStatus> = of_run.collect();
    if !others.iter().all(|entry| is_ready(entry)) {
        return None;
    }
    request(first, &others, read)
}

/// What the commit has not been told, as far as is known: GitHub runs the jobs again, and its answer reached nobody.
fn unheard(
    case: Case,
    run: &RunKey,
    before: &[RerunStatus],
    entries: &[RerunStatus],
) -> Option<Untold> {
    let facts = &case.observed.reruns;
    // Whoever heard the answer has told it.
    if facts.answers.contains_key(run) {
        return None;
    }
    let read = facts.runs.get(run)?.run.as_ref()?;
    // One for one the same entries.
    let both = before.iter().zip(entries);
    let started = both.filter(|(before, now)| {
        before.is_open() && now.state == RerunState::Started && run_of(now).as_ref() == Some(run)
    });
    let started: Vec<&RerunStatus> = started.map(|(_, now)| now).collect();
    let (first, others) = started.split_first()?;
    Some(Untold {
        repository: Repository::new(&first.repository)?,
        note: note::check(first, others, read),
    })
}

fn request(first: &RerunStatus, others: &[&RerunStatus], read: &RunFacts) -> Option<NewAttempt> {
    let run = read.run.as_ref()?;
    let is_one = others.is_empty();
    let job = u64::try_from(first.job_id?).ok();
    Some(NewAttempt {
        repository: Repository::new(&first.repository)?,
        run: run.id,
        job: job.filter(|_| is_one),
        note: note::check(first, others, run),
    })
}

/// Notes that a job is run again.
fn start(entry: &mut RerunStatus, now: Timestamp, plan: &mut Plan) {
    entry.state = RerunState::Started.into();
    entry.ended = Some(Time(now));
    plan.news.push(Notice {
        warning: false,
        reason: Reason::JobRunAgain.into(),
        note: note::event(entry),
        about: Some(About::Runner(entry.runner.clone())),
    });
}

/// Notes that a job is not run again.
fn skip(entry: &mut RerunStatus, reason: Reason, message: String, now: Timestamp, plan: &mut Plan) {
    entry.state = RerunState::Skipped.into();
    entry.reason = Some(reason.into());
    entry.message = Some(message);
    entry.ended = Some(Time(now));
    plan.news.push(Notice {
        warning: reason.is_trouble(),
        reason: reason.into(),
        note: note::event(entry),
        about: Some(About::Runner(entry.runner.clone())),
    });
}

/// What was counted: the jobs whose entries have ended since `known`, by cause and result.
#[must_use]
pub fn ended_since(
    known: &[RerunStatus],
    entries: &[RerunStatus],
) -> Vec<(RerunCause, RerunState)> {
    let before = |entry: &RerunStatus| {
        known
            .iter()
            .any(|k| k.runner == entry.runner && k.run_id == entry.run_id && !k.is_open())
    };
    let ended = entries.iter().filter(|e| !e.is_open() && !before(e));
    let words = |entry: &RerunStatus| Some((entry.cause.known()?, entry.state.known()?));
    ended.filter_map(words).collect()
}

#[cfg(test)]
mod tests;
