//! Jobs that wait for a runner.
//!
//! No endpoint lists them: the runs that are queued or in progress are listed, then the jobs of each. The endpoints are
//! documented at <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.

use std::collections::HashMap;

use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Client, Error, Scope, transport::Ask};

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
#[derive(Default)]
pub(super) struct Kept(Mutex<HashMap<String, (HeaderValue, Value)>>);

impl Client {
    /// The jobs of the repository that wait for a runner; `None` for an organization or an enterprise, whose jobs
    /// GitHub does not list.
    pub async fn queued_jobs(&self) -> Result<Option<Vec<QueuedJob>>, Error> {
        if !matches!(self.url().scope(), Scope::Repository { .. }) {
            return Ok(None);
        }
        let owner = self.url().owner_path();
        let mut kept = self.queue.0.lock().await;
        let before = std::mem::take(&mut *kept);
        let mut jobs = vec![];
        for state in ["queued", "in_progress"] {
            let path = format!("{owner}/actions/runs?status={state}&per_page={MOST_RUNS}");
            let runs: Runs = self.ask_kept(path, &before, &mut kept).await?;
            for run in runs.workflow_runs.into_iter().take(MOST_RUNS) {
                let path = format!(
                    "{owner}/actions/runs/{}/jobs?filter=latest&per_page=100",
                    run.id
                );
                let of_run: Jobs = self.ask_kept(path, &before, &mut kept).await?;
                let waiting = of_run.jobs.into_iter().filter(|job| job.status == "queued");
                jobs.extend(waiting.map(|job| QueuedJob {
                    run: run.id,
                    name: job.name,
                    labels: job.labels,
                }));
            }
        }
        Ok(Some(jobs))
    }

    async fn ask_kept<T: serde::de::DeserializeOwned>(
        &self,
        path: String,
        before: &HashMap<String, (HeaderValue, Value)>,
        kept: &mut HashMap<String, (HeaderValue, Value)>,
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
