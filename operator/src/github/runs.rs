//! Workflow runs: started, found, watched.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/actions/workflows?apiVersion=2022-11-28>,
//! <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.

use http::{Method, StatusCode, header::LOCATION};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::{
    Client, Error, Repository, Run, RunJob, TestSum, Workflow,
    ask::{Answer, Ask},
    body::{AtMost, PER_PAGE, labels, short, short_or_empty, short_or_none},
    logs::Reader,
    pages::{Item, What},
};
use cuda_runner_plan::model::time::{perhaps_reported, reported};
use cuda_runner_plan::model::url::encode;

/// What it takes to start a workflow, in GitHub's words.
pub(super) const ACTIONS_WRITE: &str = "the repository permission \"Actions: write\"";
/// What it takes to read runs, jobs and logs.
pub(super) const ACTIONS_READ: &str = "the repository permission \"Actions: read\"";

impl Client {
    /// Starts a workflow; its run's number, where the server tells it.
    pub async fn dispatch(&self, workflow: &Workflow) -> Result<Option<u64>, Error> {
        let action = format!(
            "start the workflow {} of {} on {}",
            workflow.file,
            workflow.repository.full_name(),
            workflow.git_ref
        );
        let mut body = json!({"ref": workflow.git_ref, "return_run_details": true});
        loop {
            let ask = Ask {
                body: Some(body.to_string().into_bytes()),
                ..Ask::write(
                    Method::POST,
                    format!("{}/dispatches", workflow.path()),
                    action.clone(),
                )
            };
            let answer = self.transport.send(&ask).await?;
            let is_refused = matches!(
                answer.status,
                StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
            );
            let plain = json!({"ref": workflow.git_ref});
            if is_refused && body != plain {
                // A server that does not know the flag refuses it, as Enterprise Servers up to 3.20 do; a refused request
                // has started nothing.
                body = plain;
                continue;
            }
            return self.dispatched(&answer, &ask, workflow);
        }
    }

    /// The number of the run that was started, where the server tells it.
    fn dispatched(
        &self,
        answer: &Answer,
        ask: &Ask,
        workflow: &Workflow,
    ) -> Result<Option<u64>, Error> {
        match answer.status {
            StatusCode::OK => Ok(Some(answer.json::<Dispatched>(ask)?.workflow_run_id)),
            StatusCode::NO_CONTENT => Ok(None),
            StatusCode::NOT_FOUND => Err(Error::NotFound {
                what: format!(
                    "the workflow {} of {}",
                    workflow.file,
                    workflow.repository.full_name()
                ),
                message: answer.message(),
                advice: format!(
                    "GitHub starts only what the default branch has as .github/workflows/{}; or the credentials lack {ACTIONS_WRITE}",
                    workflow.file
                ),
            }),
            _ => Err(self.judged(answer, ask, ACTIONS_WRITE)),
        }
    }

    /// The newest run of the workflow that a dispatch has started since `since`.
    pub async fn find_dispatched(
        &self,
        workflow: &Workflow,
        since: Timestamp,
    ) -> Result<Option<Run>, Error> {
        let branch = workflow
            .git_ref
            .strip_prefix("refs/heads/")
            .or_else(|| workflow.git_ref.strip_prefix("refs/tags/"))
            .unwrap_or(&workflow.git_ref);
        let path = format!(
            "{}/runs?event=workflow_dispatch&branch={}&per_page=1",
            workflow.path(),
            encode(branch),
        );
        let ask = Ask::get(path, format!("list the runs of {}", workflow.file));
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::OK => {
                let runs: Runs = answer.json(&ask)?;
                // Newest first. GitHub's own filter by time is described as a moment, and documented as a range.
                let newest = runs.workflow_runs.0.into_iter().next().map(|run| run.0);
                Ok(newest.filter(|run| run.created_at >= since))
            }
            _ => Err(self.judged(&answer, &ask, ACTIONS_READ)),
        }
    }

    /// A run; `None` where GitHub shows none, which for a moment it may do of one that is there.
    pub async fn run(&self, repository: &Repository, id: u64) -> Result<Option<Run>, Error> {
        let path = format!("{}/actions/runs/{id}", repository.path());
        let what = What {
            action: &format!("read the run {id}"),
            permission: ACTIONS_READ,
        };
        let run: Option<WireRun> = self.ask_tagged(path, &what).await?;
        Ok(run.map(|run| run.0))
    }

    /// The jobs of a run's last attempt; `None` where GitHub shows no such run.
    pub async fn run_jobs(
        &self,
        repository: &Repository,
        id: u64,
    ) -> Result<Option<Vec<RunJob>>, Error> {
        self.jobs_of(repository, id, "latest").await
    }

    /// As [`Self::run_jobs`], of all attempts.
    pub async fn jobs_of_all_attempts(
        &self,
        repository: &Repository,
        id: u64,
    ) -> Result<Option<Vec<RunJob>>, Error> {
        self.jobs_of(repository, id, "all").await
    }

    async fn jobs_of(
        &self,
        repository: &Repository,
        id: u64,
        filter: &str,
    ) -> Result<Option<Vec<RunJob>>, Error> {
        let path = format!(
            "{}/actions/runs/{id}/jobs?filter={filter}",
            repository.path()
        );
        let what = What {
            action: &format!("read the jobs of the run {id}"),
            permission: ACTIONS_READ,
        };
        match self.list::<WireRunJob>(&path, &what).await {
            Err(Error::NotFound { .. }) => Ok(None),
            jobs => Ok(Some(jobs?.into_iter().map(|job| job.0).collect())),
        }
    }

    /// Stops a run none of whose jobs has started.
    pub async fn cancel_run(&self, repository: &Repository, id: u64) -> Result<(), Error> {
        let ask = Ask::write(
            Method::POST,
            format!("{}/actions/runs/{id}/cancel", repository.path()),
            format!("cancel the run {id}"),
        );
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            // Gone, or over already.
            StatusCode::ACCEPTED | StatusCode::NOT_FOUND | StatusCode::CONFLICT => Ok(()),
            _ => Err(self.judged(&answer, &ask, ACTIONS_WRITE)),
        }
    }

    /// What a job's log says of tests; `None` while GitHub has no log of it.
    pub async fn test_sum(
        &self,
        repository: &Repository,
        job: u64,
    ) -> Result<Option<TestSum>, Error> {
        let ask = Ask::get(
            format!("{}/actions/jobs/{job}/logs", repository.path()),
            format!("read the log of the job {job}"),
        );
        let mut reader = Reader::default();
        let address = {
            let answer = self.transport.send(&ask).await?;
            match answer.status {
                StatusCode::OK => {
                    reader.take(answer.body());
                    return Ok(Some(reader.finish()));
                }
                StatusCode::FOUND | StatusCode::TEMPORARY_REDIRECT => {
                    answer.header(LOCATION.as_str()).map(str::to_owned)
                }
                StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
                _ => return Err(self.judged(&answer, &ask, ACTIONS_READ)),
            }
        };
        let Some(address) = address else {
            return Ok(None);
        };
        let found = self
            .transport
            .download(&address, &ask, &mut |piece| reader.take(piece))
            .await?;
        Ok(found.then(|| reader.finish()))
    }
}

/// Where the API has it.
pub(super) trait ApiPath {
    /// Its path, encoded, without the API's prefix.
    fn path(&self) -> String;
}

impl ApiPath for Repository {
    fn path(&self) -> String {
        let parts: Vec<String> = self.full_name().split('/').map(encode).collect();
        format!("/repos/{}", parts.join("/"))
    }
}

impl ApiPath for Workflow {
    fn path(&self) -> String {
        format!(
            "{}/actions/workflows/{}",
            self.repository.path(),
            encode(&self.file)
        )
    }
}

#[derive(Deserialize)]
struct Dispatched {
    workflow_run_id: u64,
}

#[derive(Deserialize)]
pub(super) struct Runs {
    pub(super) workflow_runs: AtMost<WireRun, PER_PAGE>,
}

/// A run in GitHub's form.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct WireRun(#[serde(with = "RunForm")] pub(super) Run);

#[derive(Deserialize)]
#[serde(remote = "Run")]
struct RunForm {
    id: u64,
    #[serde(default, deserialize_with = "short_or_empty")]
    status: String,
    #[serde(default, deserialize_with = "short_or_none")]
    conclusion: Option<String>,
    #[serde(deserialize_with = "short")]
    html_url: String,
    #[serde(deserialize_with = "reported")]
    created_at: Timestamp,
    check_suite_id: Option<u64>,
    #[serde(default, deserialize_with = "short_or_none")]
    head_sha: Option<String>,
    workflow_id: Option<u64>,
    #[serde(default, deserialize_with = "short_or_none")]
    head_branch: Option<String>,
    #[serde(default, deserialize_with = "number_of")]
    head_repository: Option<u64>,
    #[serde(default, deserialize_with = "short_or_none")]
    event: Option<String>,
    #[serde(rename = "run_attempt", default = "first")]
    attempt: u32,
}

/// A repository's number, where there is one.
fn number_of<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    Ok(Option::<Numbered>::deserialize(deserializer)?.map(|repository| repository.id))
}

/// A job in GitHub's form.
#[derive(Deserialize)]
#[serde(transparent)]
struct WireRunJob(#[serde(with = "RunJobForm")] RunJob);

impl Item for WireRunJob {
    fn size(&self) -> usize {
        let job = &self.0;
        let perhaps = [&job.conclusion, &job.runner_name, &job.html_url];
        let perhaps = perhaps.into_iter().flatten();
        let all = [&job.name, &job.status].into_iter().chain(perhaps);
        let texts: usize = all.chain(&job.labels).map(String::len).sum();
        size_of::<Self>() + job.labels.len() * size_of::<String>() + texts
    }
}

#[derive(Deserialize)]
#[serde(remote = "RunJob")]
struct RunJobForm {
    id: u64,
    #[serde(deserialize_with = "short")]
    name: String,
    #[serde(deserialize_with = "short")]
    status: String,
    #[serde(default, deserialize_with = "short_or_none")]
    conclusion: Option<String>,
    #[serde(default, deserialize_with = "perhaps_reported")]
    created_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "perhaps_reported")]
    started_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "perhaps_reported")]
    completed_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "short_or_none")]
    runner_name: Option<String>,
    #[serde(default, deserialize_with = "labels")]
    labels: Vec<String>,
    #[serde(default, deserialize_with = "short_or_none")]
    html_url: Option<String>,
    #[serde(rename = "run_attempt", default = "first")]
    attempt: u32,
}

/// Servers that count no attempts have one.
const fn first() -> u32 {
    1
}
