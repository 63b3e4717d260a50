//! Jobs of a repository that wait for a runner, and those that run.
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
use cuda_runner_plan::model::runner;
use cuda_runner_plan::model::time::perhaps_reported;

/// Jobs that are counted: more than any pool's runners.
const MOST_JOBS: usize = 3_000;
/// What they may take in memory, in bytes: three thousand as people name them are some 1.2 MiB.
const MOST_OF_QUEUE: usize = 2 * 1024 * 1024;
/// What those that run may take beside that, in bytes.
const MOST_OF_RUNNING: usize = 512 * 1024;
/// How GitHub calls its own runners.
const OF_GITHUB: &str = "GitHub Actions ";
/// What a run may be while a job of it is queued: one that waits for an approval may have others.
const STATES: [&str; 3] = ["queued", "in_progress", "waiting"];

/// The jobs of a repository that wait, with their place in the room.
pub type QueuedJobs = Arc<Held<Arc<[QueuedJob]>>>;

/// The jobs of a repository.
#[derive(Clone)]
pub struct RepositoryJobs {
    /// Those that wait for a runner.
    pub waiting: QueuedJobs,
    /// Those that run, as far as there is room, each with its runner.
    pub running: Arc<Held<Vec<(String, runner::Job)>>>,
}

/// The jobs as last read, by whichever pool.
pub(super) type Kept = Single<RepositoryJobs>;

impl Client {
    /// The jobs of the repository that wait for a runner or run, at most `max_age` old; `None` for an organization or an
    /// enterprise, whose jobs GitHub does not list. Pools of one repository share the answer.
    pub async fn repository_jobs(
        &self,
        max_age: Duration,
    ) -> Result<Option<RepositoryJobs>, Error> {
        let Scope::Repository { owner, name } = self.url().scope() else {
            return Ok(None);
        };
        let repository = format!("{owner}/{name}");
        let jobs = self.queue.get(
            |last| last.at.elapsed() < max_age,
            async |last| {
                let read = self.read_queue(&repository).await?;
                let action = format!("read the queue of {}", self.url().scope());
                let waiting = last.map(|last| last.waiting);
                // Pools hold it for long, and those that run change all the time.
                let waiting = match waiting.filter(|last| last.iter().eq(&read.jobs)) {
                    Some(same) => same,
                    None => Arc::new(self.held(read.jobs.into(), read.size, &action)?),
                };
                let running = self.held(read.running, read.size_of_running, &action)?;
                Ok(RepositoryJobs {
                    waiting,
                    running: Arc::new(running),
                })
            },
        );
        Ok(Some(jobs.await?))
    }

    async fn read_queue(&self, repository: &str) -> Result<Found, Error> {
        let owner = self.url().owner_path();
        let action = format!("read the queue of {}", self.url().scope());
        let what = What {
            action: &action,
            permission: super::runs::ACTIONS_READ,
        };
        let mut found = Found::default();
        for state in STATES {
            if found.is_full {
                break;
            }
            let path = format!("{owner}/actions/runs?status={state}");
            // Of many both ends: a new job is seen as soon as it comes, and one that was missed when it has waited for the longest.
            // The runs between them may all be for others.
            let runs = self.list_ends::<Run>(&path, &what).await?;
            let mut seen = BTreeSet::new();
            for run in runs.into_iter().filter(|run| seen.insert(run.id)) {
                if found.is_full {
                    return Ok(found);
                }
                let path = format!("{owner}/actions/runs/{}/jobs?filter=latest", run.id);
                let take = |jobs| found.take(repository, run.id, jobs);
                match self.each_page(MOST_PAGES, &path, &what, take).await {
                    // Deleted a moment ago: the others wait all the same.
                    Err(Error::NotFound { .. }) => {}
                    read => {
                        read?;
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The jobs that were found so far. A longer queue is as long for the pool.
#[derive(Default)]
struct Found {
    jobs: Vec<QueuedJob>,
    /// What they take in memory, in bytes.
    size: usize,
    is_full: bool,
    running: Vec<(String, runner::Job)>,
    size_of_running: usize,
}

impl Found {
    /// Takes those jobs of a run that wait or run. Whether there is room for more that wait.
    fn take(&mut self, repository: &str, run: u64, jobs: Vec<Job>) -> bool {
        for job in jobs {
            match job.status.0.as_str() {
                "queued" => self.wait(job.queued(run)),
                "in_progress" => self.run(job.running(repository, run)),
                _ => {}
            }
            if self.is_full {
                break;
            }
        }
        !self.is_full
    }

    fn wait(&mut self, job: QueuedJob) {
        let size = self.size + job.size();
        self.is_full = size > MOST_OF_QUEUE || self.jobs.len() == MOST_JOBS;
        if !self.is_full {
            self.size = size;
            self.jobs.push(job);
        }
    }

    fn run(&mut self, job: Option<(String, runner::Job)>) {
        let Some((runner, job)) = job else {
            return;
        };
        let texts = [&runner, &job.job, &job.workflow, &job.repository];
        let size =
            size_of::<(String, runner::Job)>() + texts.map(String::len).iter().sum::<usize>();
        if self.size_of_running + size <= MOST_OF_RUNNING {
            self.size_of_running += size;
            self.running.push((runner, job));
        }
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
    #[serde(default, deserialize_with = "perhaps_reported")]
    started_at: Option<Timestamp>,
    #[serde(default)]
    runner_name: Option<Short>,
    #[serde(default)]
    run_attempt: Option<u32>,
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

    /// The same with its runner, where that is one of somebody's own.
    fn running(self, repository: &str, run: u64) -> Option<(String, runner::Job)> {
        let runner = self.runner_name.map(|name| name.0)?;
        let is_own = !runner.is_empty() && !runner.starts_with(OF_GITHUB);
        let text = |number: Option<i64>| number.map_or_else(String::new, |n| n.to_string());
        let job = || runner::Job {
            job: self.name.0,
            run: run.to_string(),
            attempt: text(self.run_attempt.map(i64::from)),
            workflow: self.workflow_name.map(|name| name.0).unwrap_or_default(),
            repository: repository.to_owned(),
            at: text(self.started_at.map(Timestamp::as_second)),
        };
        is_own.then(|| (runner, job().bounded()))
    }
}
