//! Jobs that are run again, and what is said of that on the commit.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/actions/workflow-runs?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/checks/runs?apiVersion=2022-11-28>.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{
    Client, Error, Repository, Run,
    ask::Ask,
    pages::{Item, What},
    runs::{ACTIONS_READ, ACTIONS_WRITE, ApiPath as _, Runs},
};
use cuda_runner_plan::model::rerun::{CheckNote, NewAttempt};
use cuda_runner_plan::model::url::encode;

/// What it takes to write checks.
const CHECKS_WRITE: &str = "the App's repository permission \"Checks: write\"";
/// So many runs are looked through for those of a branch. Only forks that have one of the same name take places away.
const LATEST: usize = 30;
/// The name of the check run. Nothing requires it.
const CHECK: &str = "cuda-runner-operator";

/// A check run that is there.
#[derive(Deserialize)]
struct Told {
    external_id: Option<String>,
}

impl Item for Told {
    fn size(&self) -> usize {
        size_of::<Self>() + self.external_id.as_ref().map_or(0, String::len)
    }
}

impl Client {
    /// The last runs of a run's workflow, of the same event and of a branch of that name, be it a fork's: which of them are
    /// of the same branch, each run says by itself. None where that is not known.
    pub async fn latest_runs(&self, repository: &Repository, run: &Run) -> Result<Vec<Run>, Error> {
        let (Some(workflow), Some(branch)) = (run.workflow_id, &run.head_branch) else {
            return Ok(vec![]);
        };
        let event = run.event.as_ref();
        let event = event.map_or_else(String::new, |event| format!("&event={}", encode(event)));
        let path = format!(
            "{}/actions/workflows/{workflow}/runs?branch={}{event}&per_page={LATEST}",
            repository.path(),
            encode(branch),
        );
        let what = What {
            action: &format!("read the last runs of the workflow {workflow}"),
            permission: ACTIONS_READ,
        };
        let runs: Option<Runs> = self.ask_tagged(path, &what).await?;
        let runs = runs.into_iter().flat_map(|runs| runs.workflow_runs.0);
        Ok(runs.map(|run| run.0).collect())
    }

    /// Runs a job again, and those that need it; or all jobs of a run that failed.
    pub async fn run_again(&self, new: &NewAttempt) -> Result<(), Error> {
        let actions = format!("{}/actions", new.repository.path());
        let (path, action) = match new.job {
            Some(job) => (
                format!("{actions}/jobs/{job}/rerun"),
                format!("run the job {job} again"),
            ),
            None => (
                format!("{actions}/runs/{}/rerun-failed-jobs", new.run),
                format!("run the failed jobs of the run {} again", new.run),
            ),
        };
        let ask = Ask::write(Method::POST, path, action);
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.judged(&answer, &ask, ACTIONS_WRITE)),
        }
    }

    /// The same, unless a check run with its id is there.
    pub async fn tell_once(&self, repository: &Repository, note: &CheckNote) -> Result<(), Error> {
        let path = format!(
            "{}/commits/{}/check-runs?check_name={CHECK}&filter=all",
            repository.path(),
            encode(&note.sha)
        );
        let what = What {
            action: &format!("read the check runs of the commit {}", note.sha),
            permission: CHECKS_WRITE,
        };
        let there: Vec<Told> = self.list(&path, &what).await?;
        let is_told = |told: &Told| told.external_id.as_deref() == Some(&note.id);
        if there.iter().any(is_told) {
            return Ok(());
        }
        self.tell(repository, note).await
    }

    /// Tells something on a commit, by a check run that requires nothing. Apps alone may.
    pub async fn tell(&self, repository: &Repository, note: &CheckNote) -> Result<(), Error> {
        let mut body = json!({
            "name": CHECK,
            "head_sha": note.sha,
            "external_id": note.id,
            "status": "completed",
            "conclusion": "neutral",
            "output": {"title": note.title, "summary": note.summary},
        });
        if let Some(url) = &note.url {
            body["details_url"] = json!(url);
        }
        let ask = Ask {
            body: Some(body.to_string().into_bytes()),
            ..Ask::write(
                Method::POST,
                format!("{}/check-runs", repository.path()),
                format!("tell of a re-run on the commit {}", note.sha),
            )
        };
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::CREATED => Ok(()),
            _ => Err(self.judged(&answer, &ask, CHECKS_WRITE)),
        }
    }
}
