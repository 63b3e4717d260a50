//! How many jobs wait for a pool, and why the oldest does.

use cudarunner_crds::CudaRunner;
use gate_report::clean;

use super::{Job, LONGEST, Waiting};
use crate::model::github::Repository;
use crate::model::url::GitHubUrl;
use crate::why::causes;

/// The queue of a pool; `waiting` is its address and what was read of the jobs there.
pub(super) fn of(resource: &CudaRunner, waiting: Option<(&GitHubUrl, &crate::Queue)>) -> Waiting {
    let jobs = resource.status.as_ref().map_or(0, |status| status.queued);
    Waiting {
        jobs,
        oldest: waiting.and_then(|(url, queue)| oldest(resource, url, queue)),
        why: (jobs > 0).then(|| why(resource)).flatten(),
    }
}

/// The most urgent of what stands in the way, in the words of `kubectl cudarunner why`.
fn why(resource: &CudaRunner) -> Option<String> {
    let first = causes(resource).into_iter().next()?;
    Some(clean(
        &format!("{}: {}", first.about, first.message),
        LONGEST,
    ))
}

/// The job of the oldest run at the address of a repository: GitHub numbers runs in the order in which they are made.
fn oldest(resource: &CudaRunner, url: &GitHubUrl, queue: &crate::Queue) -> Option<Job> {
    let jobs = queue.jobs.as_ref().ok()?.as_ref()?;
    let labels = resource.runner_labels();
    let ours = jobs.iter().filter(|job| job.is_served_by(&labels));
    let job = ours.min_by_key(|job| job.run)?;
    let repository = Repository::within(url, "")?;
    Some(Job {
        name: clean(&job.name, LONGEST),
        url: Some(repository.run_page(url, job.run, None)),
        repository: Some(repository.full_name().to_owned()),
        workflow: None,
        run_id: i64::try_from(job.run).ok(),
    })
}
