//! Workflow runs: started, found, watched.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/actions/workflows?apiVersion=2022-11-28>,
//! <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/actions/workflow-jobs?apiVersion=2022-11-28>.

use http::{Method, StatusCode, header::LOCATION};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::{
    Client, Error, GitHubUrl, Scope, TestSum,
    ask::Ask,
    body::{AtMost, PER_PAGE, labels, short, short_or_none},
    logs::Reader,
    pages::What,
    url::{encode, is_name},
};
use crate::time::{perhaps_told, told};

/// What it takes to start a workflow, in GitHub's words.
const ACTIONS_WRITE: &str = "the repository permission \"Actions: write\"";
/// What it takes to read runs, jobs and logs.
pub(super) const ACTIONS_READ: &str = "the repository permission \"Actions: read\"";

/// A repository's path in the API, such as `/repos/OWNER/NAME`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Repository {
    full_name: String,
}

impl Repository {
    /// The repository `OWNER/NAME`; `None` where that has another form.
    #[must_use]
    pub fn new(full_name: &str) -> Option<Self> {
        let (owner, name) = full_name.split_once('/')?;
        let ok = !owner.is_empty() && !name.is_empty() && !name.contains('/');
        ok.then(|| Self {
            full_name: full_name.to_owned(),
        })
    }

    /// `OWNER/NAME`.
    #[must_use]
    pub fn full_name(&self) -> &str {
        &self.full_name
    }

    /// The repository that a job there says it is of: one of the address's own, whatever the job says.
    #[must_use]
    pub fn within(url: &GitHubUrl, said: &str) -> Option<Self> {
        let said = Self::new(said).filter(|r| r.full_name.split('/').all(is_name));
        let owner = |r: &Self| r.full_name.split('/').next().map(str::to_ascii_lowercase);
        match url.scope() {
            Scope::Repository { owner, name } => {
                let own = format!("{owner}/{name}");
                said.filter(|r| r.full_name.eq_ignore_ascii_case(&own))
                    .or_else(|| Self::new(&own))
            }
            Scope::Organization { name } => said.filter(|r| owner(r).as_ref() == Some(name)),
            Scope::Enterprise { .. } => said,
        }
    }

    /// The page of a run, of its attempt where that is not the first.
    #[must_use]
    pub fn run_page(&self, url: &GitHubUrl, run: u64, attempt: Option<u32>) -> String {
        let page = format!("{}/{}/actions/runs/{run}", url.origin(), self.full_name);
        match attempt {
            Some(attempt) if attempt > 1 => format!("{page}/attempts/{attempt}"),
            _ => page,
        }
    }

    /// `OWNER` and `NAME`.
    pub(super) fn parts(&self) -> (&str, &str) {
        self.full_name.split_once('/').unwrap_or_default()
    }

    pub(super) fn path(&self) -> String {
        let parts: Vec<String> = self.full_name.split('/').map(encode).collect();
        format!("/repos/{}", parts.join("/"))
    }
}

/// What is to be started.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workflow {
    /// Where.
    pub repository: Repository,
    /// Name of its file.
    pub file: String,
    /// Branch or tag.
    pub git_ref: String,
}

/// A run of a workflow.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct Run {
    /// GitHub's number for it.
    pub id: u64,
    /// `queued`, `pending`, `waiting`, `in_progress`, `completed`, or what GitHub adds some day.
    #[serde(default, deserialize_with = "or_empty")]
    pub status: String,
    /// How it ended.
    pub conclusion: Option<String>,
    /// Its page.
    pub html_url: String,
    /// When it was made.
    #[serde(deserialize_with = "told")]
    pub created_at: Timestamp,
    /// The suite of its checks.
    pub check_suite_id: Option<u64>,
    /// The commit.
    pub head_sha: Option<String>,
    /// The workflow's number.
    pub workflow_id: Option<u64>,
}

/// A job of a run.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct RunJob {
    /// GitHub's number for it.
    pub id: u64,
    /// Its name, which is the context of its check.
    #[serde(deserialize_with = "short")]
    pub name: String,
    /// `queued`, `waiting`, `pending`, `in_progress`, `completed`, or what GitHub adds some day.
    #[serde(deserialize_with = "short")]
    pub status: String,
    /// How it ended.
    #[serde(default, deserialize_with = "short_or_none")]
    pub conclusion: Option<String>,
    /// When it was queued; servers of old do not say.
    #[serde(default, deserialize_with = "perhaps_told")]
    pub created_at: Option<Timestamp>,
    /// When it started. GitHub fills this in before the job starts, too.
    #[serde(default, deserialize_with = "perhaps_told")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, deserialize_with = "perhaps_told")]
    pub completed_at: Option<Timestamp>,
    /// The runner that took it.
    #[serde(default, deserialize_with = "short_or_none")]
    pub runner_name: Option<String>,
    /// The labels that its `runs-on` asks for.
    #[serde(default, deserialize_with = "labels")]
    pub labels: Vec<String>,
    /// Its page.
    #[serde(default, deserialize_with = "short_or_none")]
    pub html_url: Option<String>,
}

impl Client {
    /// Starts a workflow; its run's number, where the server tells it.
    pub async fn dispatch(&self, workflow: &Workflow) -> Result<Option<u64>, Error> {
        let action = format!(
            "start the workflow {} of {} on {}",
            workflow.file,
            workflow.repository.full_name(),
            workflow.git_ref
        );
        let body = json!({"ref": workflow.git_ref, "return_run_details": true});
        let ask = Ask {
            body: Some(body.to_string().into_bytes()),
            ..Ask::write(
                Method::POST,
                format!("{}/dispatches", workflow.path()),
                action,
            )
        };
        let mut answer = self.transport.send(&ask).await?;
        if matches!(
            answer.status,
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
        ) {
            // A server that does not know the flag refuses it, as Enterprise Servers up to 3.20 do; a refused request has
            // started nothing.
            let body = json!({"ref": workflow.git_ref});
            let ask = Ask {
                body: Some(body.to_string().into_bytes()),
                ..ask.clone()
            };
            answer = self.transport.send(&ask).await?;
        }
        match answer.status {
            StatusCode::OK => Ok(Some(answer.json::<Dispatched>(&ask)?.workflow_run_id)),
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
            _ => Err(self.judged(&answer, &ask, ACTIONS_WRITE)),
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
                let newest = runs.workflow_runs.0.into_iter().next();
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
        self.ask_tagged(path, &what).await
    }

    /// The jobs of a run's last attempt; `None` where GitHub shows no such run.
    pub async fn run_jobs(
        &self,
        repository: &Repository,
        id: u64,
    ) -> Result<Option<Vec<RunJob>>, Error> {
        let path = format!("{}/actions/runs/{id}/jobs?filter=latest", repository.path());
        let what = What {
            action: &format!("read the jobs of the run {id}"),
            permission: ACTIONS_READ,
        };
        match self.list(&path, &what).await {
            Err(Error::NotFound { .. }) => Ok(None),
            jobs => jobs.map(Some),
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
        let answer = self.transport.send(&ask).await?;
        let mut reader = Reader::default();
        match answer.status {
            StatusCode::OK => reader.take(answer.body()),
            StatusCode::FOUND | StatusCode::TEMPORARY_REDIRECT => {
                let Some(address) = answer.header(LOCATION.as_str()) else {
                    return Ok(None);
                };
                let found = self
                    .transport
                    .download(address, &ask, &mut |piece| reader.take(piece))
                    .await?;
                if !found {
                    return Ok(None);
                }
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            _ => return Err(self.judged(&answer, &ask, ACTIONS_READ)),
        }
        Ok(Some(reader.finish()))
    }
}

impl Workflow {
    pub(super) fn path(&self) -> String {
        format!(
            "{}/actions/workflows/{}",
            self.repository.path(),
            encode(&self.file)
        )
    }
}

fn or_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Dispatched {
    workflow_run_id: u64,
}

#[derive(Deserialize)]
pub(super) struct Runs {
    pub(super) workflow_runs: AtMost<Run, PER_PAGE>,
}
