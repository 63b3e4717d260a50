//! Jobs that wait for a runner.
//!
//! No endpoint lists them: the runs that may have some are listed, then the jobs of each. The endpoints are
//! documented at <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Client, Error, QueuedJob, Scope,
    body::{AtMost, MOST_LABELS, Short},
    pages::What,
    single::Single,
};
use cuda_runner_plan::model::time::perhaps_reported;

/// Pages of runs of each state that are looked into: the newest. A longer queue is as long for the pool.
const PAGES: usize = 2;
/// Jobs that are counted: more than any pool's runners.
const MOST_JOBS: usize = 3_000;
/// What a run may be while a job of it is queued: one that waits for an approval may have others.
const STATES: [&str; 3] = ["queued", "in_progress", "waiting"];

/// The queue as last read, by whichever pool.
pub(super) type Kept = Single<Arc<[QueuedJob]>>;

impl Client {
    /// The jobs of the repository that wait for a runner, at most `max_age` old; `None` for an organization or an
    /// enterprise, whose jobs GitHub does not list. Pools of one repository share the answer.
    pub async fn queued_jobs(&self, max_age: Duration) -> Result<Option<Arc<[QueuedJob]>>, Error> {
        if !matches!(self.url().scope(), Scope::Repository { .. }) {
            return Ok(None);
        }
        let jobs = self
            .queue
            .get(|last| last.at.elapsed() < max_age, |_| self.read_queue());
        Ok(Some(jobs.await?))
    }

    async fn read_queue(&self) -> Result<Arc<[QueuedJob]>, Error> {
        let owner = self.url().owner_path();
        let action = format!("read the queue of {}", self.url().scope());
        let what = What {
            action: &action,
            permission: super::runs::ACTIONS_READ,
        };
        let mut waiting = Vec::new();
        for state in STATES {
            let path = format!("{owner}/actions/runs?status={state}");
            let (runs, _) = self.list_up_to::<Run>(PAGES, &path, &what).await?;
            for run in runs {
                if waiting.len() >= MOST_JOBS {
                    return Ok(waiting.into());
                }
                let path = format!("{owner}/actions/runs/{}/jobs?filter=latest", run.id);
                let jobs: Vec<Job> = match self.list(&path, &what).await {
                    // Deleted a moment ago: the others wait all the same.
                    Err(Error::NotFound { .. }) => continue,
                    jobs => jobs?,
                };
                let queued = jobs.into_iter().filter(|job| job.status.0 == "queued");
                waiting.extend(queued.map(|job| QueuedJob {
                    id: Some(job.id),
                    run: run.id,
                    name: job.name.0,
                    workflow: job.workflow_name.map(|name| name.0),
                    repository: None,
                    created_at: job.created_at,
                    labels: job.labels.0.into_iter().map(|label| label.0).collect(),
                }));
            }
        }
        Ok(waiting.into())
    }
}

#[derive(Deserialize)]
struct Run {
    id: u64,
}

#[derive(Deserialize)]
struct Job {
    id: u64,
    name: Short,
    status: Short,
    #[serde(default)]
    workflow_name: Option<Short>,
    #[serde(default, deserialize_with = "perhaps_reported")]
    created_at: Option<Timestamp>,
    #[serde(default)]
    labels: AtMost<Short, MOST_LABELS>,
}
