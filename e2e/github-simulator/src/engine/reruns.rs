//! Jobs that are run again: another attempt of their run.

use jiff::{SignedDuration, Timestamp};

use super::{new_job, pump, run_state};
use crate::events;
use crate::state::{Conclusion, Job, JobPhase, World};

/// GitHub runs nothing again that is older, see
/// <https://docs.github.com/en/actions/how-tos/manage-workflow-runs/re-run-workflows-and-jobs>.
const OLDEST: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Attempts of a run at most: the first one, and fifty more.
const MOST: u32 = 51;

/// Why nothing is run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRerun {
    /// The run is not over.
    Running,
    /// The run is too old.
    TooOld,
    /// It was run again too often.
    TooOften,
    /// Nothing of it has failed, or the job is of an earlier attempt.
    Nothing,
}

/// Runs a job of a run's last attempt again, or all that did not succeed.
pub fn rerun(
    world: &mut World,
    run: u64,
    job: Option<u64>,
    now: Timestamp,
) -> Result<(), NotRerun> {
    let Some(entry) = world.runs.get(&run) else {
        return Err(NotRerun::Nothing);
    };
    if run_state(world, entry).0 != "completed" {
        return Err(NotRerun::Running);
    }
    if now.duration_since(entry.created_at) > OLDEST {
        return Err(NotRerun::TooOld);
    }
    if entry.attempt >= MOST {
        return Err(NotRerun::TooOften);
    }
    let attempt = entry.attempt + 1;
    let phase = if entry.concurrency.is_some() {
        JobPhase::Pending
    } else {
        JobPhase::Queued
    };
    let is_meant = |id: &u64| match job {
        Some(job) => *id == job,
        None => world.jobs.get(id).is_some_and(has_failed),
    };
    let old: Vec<u64> = entry.jobs.iter().copied().filter(is_meant).collect();
    if old.is_empty() {
        return Err(NotRerun::Nothing);
    }
    // What passed before is told once more, as GitHub does.
    let passed: Vec<u64> = entry
        .jobs
        .iter()
        .copied()
        .filter(|id| !old.contains(id))
        .collect();
    for id in passed {
        events::tell_of_job(world, id, "completed", now);
    }
    for id in old {
        let Some(before) = world.jobs.get(&id) else {
            continue;
        };
        let again = Job {
            run,
            repository: before.repository.clone(),
            attempt,
            ..new_job(before.template.clone(), phase.clone(), now)
        };
        let new = world.next_id();
        world.jobs.insert(new, Job { id: new, ..again });
        if let Some(run) = world.runs.get_mut(&run) {
            run.jobs.remove(&id);
            run.jobs.insert(new);
        }
    }
    if let Some(run) = world.runs.get_mut(&run) {
        run.attempt = attempt;
        run.updated_at = now;
    }
    pump(world, now);
    Ok(())
}

fn has_failed(job: &Job) -> bool {
    matches!(
        job.conclusion(),
        Some(Conclusion::Failure | Conclusion::Cancelled)
    )
}
