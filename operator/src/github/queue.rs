//! Jobs that wait for a runner.
//!
//! No endpoint lists them: the runs that may have some are listed, then the jobs of each. The endpoints are
//! documented at <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Client, Error, Held, QueuedJob, Scope,
    body::{AtMost, MOST_LABELS, Short},
    pages::{Item, MOST_PAGES, What},
    single::Single,
};
use cuda_runner_plan::model::time::perhaps_reported;

/// Jobs that are counted: more than any pool's runners.
const MOST_JOBS: usize = 3_000;
/// What they may take in memory, in bytes: three thousand as people name them are some 1.2 MiB.
const MOST_OF_QUEUE: usize = 2 * 1024 * 1024;
/// What a run may be while a job of it is queued: one that waits for an approval may have others.
const STATES: [&str; 3] = ["queued", "in_progress", "waiting"];

/// The jobs of a repository that wait, with their place in the room.
pub type QueuedJobs = Arc<Held<Arc<[QueuedJob]>>>;

/// The queue as last read, by whichever pool.
pub(super) type Kept = Single<QueuedJobs>;

impl Client {
    /// The jobs of the repository that wait for a runner, at most `max_age` old; `None` for an organization or an
    /// enterprise, whose jobs GitHub does not list. Pools of one repository share the answer.
    pub async fn queued_jobs(&self, max_age: Duration) -> Result<Option<QueuedJobs>, Error> {
        if !matches!(self.url().scope(), Scope::Repository { .. }) {
            return Ok(None);
        }
        let jobs = self.queue.get(
            |last| last.at.elapsed() < max_age,
            async |last| {
                let read = self.read_queue().await?;
                if let Some(same) = last.filter(|last| last.iter().eq(&read.jobs)) {
                    return Ok(same);
                }
                let action = format!("read the queue of {}", self.url().scope());
                let held = self.held(read.jobs.into(), read.size, &action)?;
                Ok(Arc::new(held))
            },
        );
        Ok(Some(jobs.await?))
    }

    async fn read_queue(&self) -> Result<Waiting, Error> {
        let owner = self.url().owner_path();
        let action = format!("read the queue of {}", self.url().scope());
        let what = What {
            action: &action,
            permission: super::runs::ACTIONS_READ,
        };
        let mut waiting = Waiting::default();
        for state in STATES {
            if waiting.is_full {
                break;
            }
            let path = format!("{owner}/actions/runs?status={state}");
            // Of many both ends: a new job is seen as soon as it comes, and one that was missed when it has waited for the longest.
            // The runs between them may all be for others.
            let runs = self.list_ends::<Run>(&path, &what).await?;
            let mut seen = BTreeSet::new();
            for run in runs.into_iter().filter(|run| seen.insert(run.id)) {
                if waiting.is_full {
                    return Ok(waiting);
                }
                let path = format!("{owner}/actions/runs/{}/jobs?filter=latest", run.id);
                let take = |jobs| waiting.take(run.id, jobs);
                match self.each_page(MOST_PAGES, &path, &what, take).await {
                    // Deleted a moment ago: the others wait all the same.
                    Err(Error::NotFound { .. }) => {}
                    read => {
                        read?;
                    }
                }
            }
        }
        Ok(waiting)
    }
}

/// The jobs that were found so far. A longer queue is as long for the pool.
#[derive(Default)]
struct Waiting {
    jobs: Vec<QueuedJob>,
    /// What they take in memory, in bytes.
    size: usize,
    is_full: bool,
}

impl Waiting {
    /// Takes those jobs of a run that are queued. Whether there is room for more.
    fn take(&mut self, run: u64, jobs: Vec<Job>) -> bool {
        for job in jobs.into_iter().filter(|job| job.status.0 == "queued") {
            let job = job.queued(run);
            self.size += job.size();
            self.is_full |= self.size > MOST_OF_QUEUE || self.jobs.len() == MOST_JOBS;
            if self.is_full {
                self.size -= job.size();
                break;
            }
            self.jobs.push(job);
        }
        !self.is_full
    }
}

#[derive(Deserialize)]
struct Run {
    id: u64,
}

impl Item for Run {
    fn size(&self) -> usize {
        size_of::<Self>()
    }
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

impl Job {
    fn queued(self, run: u64) -> QueuedJob {
        QueuedJob {
            id: Some(self.id),
            run,
            name: self.name.0,
            workflow: self.workflow_name.map(|name| name.0),
            repository: None,
            created_at: self.created_at,
            labels: self.labels.0.into_iter().map(|label| label.0).collect(),
        }
    }
}
