//! How many jobs wait for a pool, and why the oldest does.

use cudarunner_crds::{CudaRunner, CudaRunnerStatus};
use gate_report::clean;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Job, LONGEST, Waiting};
use crate::model::url::{GitHubUrl, Scope};

/// The queue of a pool; `waiting` is its address and what was read of the jobs there.
pub(super) fn of(
    resource: &CudaRunner,
    status: &CudaRunnerStatus,
    troubles: &[&Condition],
    waiting: Option<(&GitHubUrl, &crate::Queue)>,
) -> Waiting {
    Waiting {
        jobs: status.queued,
        oldest: waiting.and_then(|(url, queue)| oldest(resource, url, queue)),
        why: (status.queued > 0).then(|| clean(&why(status, troubles), LONGEST)),
    }
}

/// The job of the oldest run: GitHub numbers runs in the order in which they are made.
fn oldest(resource: &CudaRunner, url: &GitHubUrl, queue: &crate::Queue) -> Option<Job> {
    let jobs = queue.jobs.as_ref().ok()?.as_ref()?;
    let ours = jobs
        .iter()
        .filter(|job| job.is_served_by(&resource.spec.labels));
    let job = ours.min_by_key(|job| job.run)?;
    let Scope::Repository { owner, name } = url.scope() else {
        return None;
    };
    Some(Job {
        name: clean(&job.name, LONGEST),
        repository: Some(format!("{owner}/{name}")),
        workflow: None,
        run_id: i64::try_from(job.run).ok(),
        url: Some(format!("{url}/actions/runs/{}", job.run)),
    })
}

/// What holds the jobs, in the words of `kubectl cudarunner why`: the most urgent condition, else what a runner waits for, else
/// the figures.
fn why(status: &CudaRunnerStatus, troubles: &[&Condition]) -> String {
    if let Some(trouble) = troubles.first() {
        return format!(
            "{} ({}): {}",
            trouble.type_, trouble.reason, trouble.message
        );
    }
    let mut waiting = status.runners.iter();
    let waiting = waiting.find_map(|r| Some((&r.name, r.waiting.as_ref()?)));
    if let Some((runner, waits)) = waiting {
        return format!("{runner} waits: {waits}");
    }
    format!(
        "Nothing holds this pool: {} online, {} busy, {} at the gate, {} pending",
        status.online, status.busy, status.gated, status.pending
    )
}
