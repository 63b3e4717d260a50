//! What GitHub's word on a run means for a job that is to be run again.

use cudarunner_crds::{Rerun, RerunCause, RerunState, RerunStatus};
use jiff::{SignedDuration, Timestamp};

use crate::model::github::{Run, RunJob};
use crate::model::rerun::RunFacts;
use crate::model::time::Shift as _;
use crate::reason::Reason;

/// How long a node may be silent before Kubernetes says so: GitHub may have ended the job meanwhile.
const SILENT: SignedDuration = SignedDuration::from_mins(15);
/// How far the clocks of GitHub and of a node may differ.
const SKEW: SignedDuration = SignedDuration::from_secs(5);

/// What follows.
pub(super) enum Verdict {
    /// The run is not over.
    Open,
    /// The job is to be run again.
    Again {
        /// GitHub's number for it.
        job: u64,
        /// Its name.
        name: String,
        /// The attempt that it is of.
        attempt: u32,
    },
    /// It is run again already.
    Started,
    /// It is not run again.
    Skip(Reason, String),
}

/// Judges by what GitHub says alone: which runner ran the job, in which attempt, and how that ended.
pub(super) fn judge(entry: &RerunStatus, read: &RunFacts, wish: &Rerun) -> Verdict {
    let skip = |reason, message: &str| Verdict::Skip(reason, message.to_owned());
    let Some(run) = &read.run else {
        return skip(
            Reason::RerunRefused,
            "GitHub shows no such workflow run: it was deleted, or the job named another one.",
        );
    };
    if is_later(entry, run) {
        if entry.state == RerunState::Requested {
            return Verdict::Started;
        }
        return skip(
            Reason::RerunNotNeeded,
            "The workflow run had another attempt before this was known. If the job is still red there, run it again by hand.",
        );
    }
    if run.status != "completed" {
        return Verdict::Open;
    }
    let Some(job) = job_of(entry, run, &read.jobs) else {
        return skip(
            Reason::RerunNotNeeded,
            "GitHub shows no job of this runner in the last attempt of the workflow run.",
        );
    };
    match is_lost(entry, job) {
        Loss::None => skip(Reason::RerunNotNeeded, "The job did not fail."),
        Loss::Cancelled => skip(Reason::RerunNotNeeded, "Somebody cancelled the job."),
        Loss::Before => skip(
            Reason::RerunNotNeeded,
            "The job had ended before its node was lost.",
        ),
        Loss::Red if i64::from(run.attempt) > i64::from(wish.limit) => Verdict::Skip(
            Reason::RerunLimit,
            format!(
                "This was attempt {}, and spec.rerun.limit is {}. Look at the device and the node, then run the job again by hand.",
                run.attempt, wish.limit
            ),
        ),
        Loss::Red if has_moved_on(run, &read.latest) => skip(
            Reason::RerunNotNeeded,
            "The workflow has run for a newer commit of the branch.",
        ),
        Loss::Red => Verdict::Again {
            job: job.id,
            name: job.name.clone(),
            attempt: run.attempt,
        },
    }
}

/// The runners of the other jobs of the attempt that ended as badly, as far as they were here, and when they ended.
pub(super) fn red_beside<'a>(
    entry: &'a RerunStatus,
    read: &'a RunFacts,
) -> impl Iterator<Item = (&'a str, Timestamp)> {
    let attempt = read.run.as_ref().map(|run| run.attempt);
    let others = read.jobs.iter().filter(move |job| {
        Some(job.attempt) == attempt && matches!(is_lost(entry, job), Loss::Red)
    });
    others.filter_map(|job| {
        let runner = job.runner_name.as_deref().filter(|r| *r != entry.runner)?;
        Some((runner, job.completed_at.unwrap_or(entry.at.0)))
    })
}

/// Whether the run has gone on to another attempt than the job's.
fn is_later(entry: &RerunStatus, run: &Run) -> bool {
    entry
        .attempt
        .is_some_and(|attempt| i64::from(attempt) != i64::from(run.attempt))
}

/// The job of the run's last attempt that the runner ran, by GitHub's own record: a mark cannot name somebody else's.
fn job_of<'a>(entry: &RerunStatus, run: &Run, jobs: &'a [RunJob]) -> Option<&'a RunJob> {
    jobs.iter()
        .filter(|job| job.runner_name.as_ref() == Some(&entry.runner))
        .filter(|job| job.attempt == run.attempt)
        .max_by_key(|job| job.completed_at)
}

/// How a job ended.
enum Loss {
    /// Not badly.
    None,
    /// Badly.
    Red,
    /// By somebody's wish, as far as is known.
    Cancelled,
    /// Badly, and well before what is blamed.
    Before,
}

fn is_lost(entry: &RerunStatus, job: &RunJob) -> Loss {
    let ended = job.completed_at.unwrap_or(Timestamp::MAX);
    let by_node = entry.cause == RerunCause::NodeLoss;
    match job.conclusion.as_deref() {
        // An agent that is told to end cancels its job. A person's wish came before, or there was no loss.
        Some("cancelled") if !by_node || ended.after(SKEW) < entry.at.0 => Loss::Cancelled,
        Some("failure" | "timed_out" | "cancelled")
            if by_node && ended.after(SILENT) < entry.at.0 =>
        {
            Loss::Before
        }
        Some("failure" | "timed_out" | "cancelled") => Loss::Red,
        _ => Loss::None,
    }
}

/// Whether the same workflow has a newer run on the branch, for another commit. A branch is its repository's: GitHub lists
/// the pull requests from forks by the names of the forks' branches, and a fork has a `main`, too.
fn has_moved_on(run: &Run, latest: &[Run]) -> bool {
    let is_beside =
        |other: &&Run| other.head_repository == run.head_repository && other.event == run.event;
    let newest = latest.iter().filter(is_beside).max_by_key(|other| other.id);
    newest.is_some_and(|newest| newest.id > run.id && newest.head_sha != run.head_sha)
}
