//! Jobs that wait for a runner.
//!
//! No endpoint lists them: the runs that are queued or in progress are listed, then the jobs of each. The endpoints are
//! documented at <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::{Client, Error, Scope, single::Single, transport::Ask};

/// Runs of each state that are looked into: the newest. A longer queue is as long for the pool.
const MOST_RUNS: usize = 50;

/// A job that waits for a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedJob {
    /// GitHub's number for the workflow run.
    pub run: u64,
    /// Name of the job.
    pub name: String,
    /// The labels that its `runs-on` asks for.
    pub labels: Vec<String>,
}

/// The last answers, by path, with the tag by which GitHub says for nothing that they still hold.
type Answers = HashMap<String, (HeaderValue, Value)>;

/// The queue, with what is needed to ask whether it is still the same.
#[derive(Default)]
pub(super) struct Read {
    jobs: Vec<QueuedJob>,
    answers: Answers,
}

/// The queue as last read, by whichever pool.
pub(super) type Kept = Single<Arc<Read>>;

impl Client {
    /// The jobs of the repository that wait for a runner, at most `max_age` old; `None` for an organization or an
    /// enterprise, whose jobs GitHub does not list. Pools of one repository share the answer.
    pub async fn queued_jobs(&self, max_age: Duration) -> Result<Option<Vec<QueuedJob>>, Error> {
        if !matches!(self.url().scope(), Scope::Repository { .. }) {
            return Ok(None);
        }
        let read = self
            .queue
            .get(
                |last| last.at.elapsed() < max_age,
                |last| self.read_queue(last.unwrap_or_default()),
            )
            .await?;
        Ok(Some(read.jobs.clone()))
    }

    async fn read_queue(&self, last: Arc<Read>) -> Result<Arc<Read>, Error> {
        let owner = self.url().owner_path();
        let mut read = Read::default();
        for state in ["queued", "in_progress"] {
            let path = format!("{owner}/actions/runs?status={state}&per_page={MOST_RUNS}");
            let runs: Runs = self
                .ask_kept(path, &last.answers, &mut read.answers)
                .await?;
            for run in runs.workflow_runs.into_iter().take(MOST_RUNS) {
                let path = format!(
                    "{owner}/actions/runs/{}/jobs?filter=latest&per_page=100",
                    run.id
                );
                let of_run: Jobs = self
                    .ask_kept(path, &last.answers, &mut read.answers)
                    .await?;
                let waiting = of_run.jobs.into_iter().filter(|job| job.status == "queued");
                read.jobs.extend(waiting.map(|job| QueuedJob {
                    run: run.id,
                    name: job.name,
                    labels: job.labels,
                }));
            }
        }
        Ok(Arc::new(read))
    }

    async fn ask_kept<T: serde::de::DeserializeOwned>(
        &self,
        path: String,
        before: &Answers,
        kept: &mut Answers,
    ) -> Result<T, Error> {
        let last = before.get(&path);
        let ask = Ask {
            etag: last.map(|(etag, _)| etag.clone()),
            ..Ask::get(
                path.clone(),
                format!("read the queue of {}", self.url().scope()),
            )
        };
        let answer = self.transport.send(&ask).await?;
        let (etag, body) = match (answer.status, last) {
            (StatusCode::OK, _) => (answer.etag(), answer.json::<Value>(&ask)?),
            (StatusCode::NOT_MODIFIED, Some((etag, body))) => (Some(etag.clone()), body.clone()),
            _ => return Err(self.refusal(&answer, &ask)),
        };
        let read = T::deserialize(&body).map_err(|error| Error::Malformed {
            action: ask.action,
            message: error.to_string(),
        })?;
        if let Some(etag) = etag {
            kept.insert(path, (etag, body));
        }
        Ok(read)
    }
}

#[derive(Deserialize)]
struct Runs {
    workflow_runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    id: u64,
}

#[derive(Deserialize)]
struct Jobs {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    name: String,
    status: String,
    #[serde(default)]
    labels: Vec<String>,
}
