//! Check runs, and the checks that a branch requires, by its protection or by a ruleset.
//!
//! The endpoints are documented at <https://docs.github.com/en/rest/checks/runs?apiVersion=2022-11-28>,
//! <https://docs.github.com/en/rest/branches/branch-protection?apiVersion=2022-11-28> and
//! <https://docs.github.com/en/rest/repos/rules?apiVersion=2022-11-28>.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use cuda_runner_plan::model::url::encode;

use super::{
    BranchRule, Check, Client, Error, Protection, Repository, Ruleset, Run, Triggers, Workflow,
    ask::{Answer, Ask},
    body::{AtMost, Short, short, short_or_none},
    pages::{Item, What},
    runs::{ACTIONS_READ, ApiPath as _, Runs},
};

/// What it takes to read checks.
const CHECKS_READ: &str = "the repository permission \"Checks: read\"";
/// What it takes to read and change what a branch requires.
const ADMINISTRATION: &str = "the repository permission \"Administration: write\"";
/// More checks no branch requires.
const MOST_CONTEXTS: usize = 1_000;
/// A ruleset or a workflow's file is some KiB; what is built of a longer one could be many times as long.
const LONGEST_DOCUMENT: usize = 512 * 1024;
/// Runs of pull requests that are looked through for names, newest first.
const PULL_REQUEST_RUNS: usize = 5;

/// Names of jobs that pull requests have reported. A job may be in both.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reported {
    /// Those that ran.
    pub ran: BTreeSet<String>,
    /// Those that were skipped, which GitHub counts as passed.
    pub skipped: BTreeSet<String>,
}

impl Client {
    /// The checks that a run has reported.
    pub async fn checks_of_run(
        &self,
        repository: &Repository,
        run: &Run,
    ) -> Result<Vec<Check>, Error> {
        let Some(suite) = run.check_suite_id else {
            return Ok(vec![]);
        };
        let path = format!(
            "{}/check-suites/{suite}/check-runs?filter=latest",
            repository.path()
        );
        let what = What {
            action: &format!("read the checks of the run {}", run.id),
            permission: CHECKS_READ,
        };
        let found: Vec<CheckRun> = self.list(&path, &what).await?;
        Ok(found.into_iter().map(Check::from).collect())
    }

    /// Jobs that pull requests have reported lately for this workflow.
    pub async fn pull_request_jobs(&self, workflow: &Workflow) -> Result<Reported, Error> {
        let path = format!(
            "{}/runs?event=pull_request&per_page={PULL_REQUEST_RUNS}",
            workflow.path()
        );
        let action = format!("list the pull requests' runs of {}", workflow.file);
        let what = What {
            action: &action,
            permission: ACTIONS_READ,
        };
        let runs: Option<Runs> = self.ask_tagged(path, &what).await?;
        let mut reported = Reported::default();
        for run in runs
            .into_iter()
            .flat_map(|runs| runs.workflow_runs.0.into_iter().map(|run| run.0))
        {
            let jobs = self.run_jobs(&workflow.repository, run.id).await?;
            for job in jobs.into_iter().flatten() {
                let skipped = job.conclusion.as_deref() == Some("skipped");
                let names = if skipped {
                    &mut reported.skipped
                } else {
                    &mut reported.ran
                };
                names.insert(job.name);
            }
        }
        Ok(reported)
    }

    /// Names of jobs that other workflows have reported for the commit of a run.
    pub async fn jobs_of_other_workflows(
        &self,
        repository: &Repository,
        run: &Run,
    ) -> Result<BTreeSet<String>, Error> {
        let Some(sha) = &run.head_sha else {
            return Ok(BTreeSet::new());
        };
        let path = format!(
            "{}/actions/runs?head_sha={sha}&per_page=50",
            repository.path()
        );
        let action = format!("list the runs of the commit {sha}");
        let what = What {
            action: &action,
            permission: ACTIONS_READ,
        };
        let runs: Option<Runs> = self.ask_tagged(path, &what).await?;
        let runs = runs
            .into_iter()
            .flat_map(|runs| runs.workflow_runs.0.into_iter().map(|run| run.0));
        let others = runs.filter(|other| other.workflow_id != run.workflow_id);
        self.job_names(repository, others).await
    }

    async fn job_names(
        &self,
        repository: &Repository,
        runs: impl Iterator<Item = Run>,
    ) -> Result<BTreeSet<String>, Error> {
        let mut names = BTreeSet::new();
        for run in runs {
            let jobs = self.run_jobs(repository, run.id).await?;
            names.extend(jobs.into_iter().flatten().map(|job| job.name));
        }
        Ok(names)
    }

    /// When the workflow starts; `None` where its file cannot be read, which takes "Contents: read", or is no YAML.
    pub async fn triggers(
        &self,
        workflow: &Workflow,
        branch: &str,
    ) -> Result<Option<Triggers>, Error> {
        let path = format!(
            "{}/contents/.github/workflows/{}?ref={}",
            workflow.repository.path(),
            encode(&workflow.file),
            encode(branch)
        );
        let ask = Ask::get(path, format!("read the file {}", workflow.file));
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::OK => Ok(triggers_of(&answer.json::<Content>(&ask)?.content)),
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN => Ok(None),
            _ => Err(self.judged(
                &answer,
                &ask,
                "the repository permission \"Contents: read\"",
            )),
        }
    }

    /// What the protection of a branch requires. GitHub tells the cases apart by its words only.
    pub async fn protection(
        &self,
        repository: &Repository,
        branch: &str,
    ) -> Result<Protection, Error> {
        let action = format!("read what the branch {branch} requires");
        let path = format!("{}/required_status_checks", protected(repository, branch));
        let (ask, answer) = self.tagged(path, &action).await?;
        if answer.status == StatusCode::OK {
            let required: Required = answer.json(&ask)?;
            let contexts = required.contexts.0.into_iter().map(|context| context.0);
            return Ok(Protection::Requires(contexts.collect()));
        }
        without_checks(&answer).ok_or_else(|| self.judged(&answer, &ask, ADMINISTRATION))
    }

    /// Adds contexts to what a branch requires. Those that are there already stay as they are.
    pub async fn require_checks(
        &self,
        repository: &Repository,
        branch: &str,
        contexts: &[String],
    ) -> Result<(), Error> {
        let (ask, answer) = self
            .change_contexts(Method::POST, repository, branch, contexts)
            .await?;
        match answer.status {
            StatusCode::OK => Ok(()),
            _ => Err(self.judged(&answer, &ask, ADMINISTRATION)),
        }
    }

    /// Takes contexts off what a branch requires. Those that are not there, or a branch without protection, are as good.
    pub async fn unrequire_checks(
        &self,
        repository: &Repository,
        branch: &str,
        contexts: &[String],
    ) -> Result<(), Error> {
        let (ask, answer) = self
            .change_contexts(Method::DELETE, repository, branch, contexts)
            .await?;
        let has_none = matches!(
            without_checks(&answer),
            Some(Protection::Unprotected | Protection::WithoutChecks | Protection::NoBranch)
        );
        if answer.status == StatusCode::OK || has_none {
            return Ok(());
        }
        Err(self.judged(&answer, &ask, ADMINISTRATION))
    }

    async fn change_contexts(
        &self,
        method: Method,
        repository: &Repository,
        branch: &str,
        contexts: &[String],
    ) -> Result<(Ask, Answer), Error> {
        let path = format!(
            "{}/required_status_checks/contexts",
            protected(repository, branch)
        );
        let action = format!("change what the branch {branch} requires");
        let ask = |body: Value| Ask {
            body: Some(body.to_string().into_bytes()),
            ..Ask::write(method.clone(), &path, &action)
        };
        {
            let first = ask(json!({"contexts": contexts}));
            let answer = self.transport.send(&first).await?;
            if answer.status != StatusCode::UNPROCESSABLE_ENTITY {
                return Ok((first, answer));
            }
        }
        // GitHub documents two forms of the body, and some servers take the other one alone.
        let second = ask(json!(contexts));
        let answer = self.transport.send(&second).await?;
        Ok((second, answer))
    }

    /// The rules that rulesets put on a branch.
    pub async fn branch_rules(
        &self,
        repository: &Repository,
        branch: &str,
    ) -> Result<Vec<BranchRule>, Error> {
        let path = format!("{}/rules/branches/{}", repository.path(), encode(branch));
        let what = What {
            action: &format!("read the rules of the branch {branch}"),
            permission: ADMINISTRATION,
        };
        let rules: Vec<WireBranchRule> = self.list(&path, &what).await?;
        Ok(rules.into_iter().map(|rule| rule.0).collect())
    }

    /// The repository's own ruleset of that name, with its number. Where the list is not found, that is an error and no
    /// proof that there is none.
    pub async fn find_ruleset(
        &self,
        repository: &Repository,
        name: &str,
    ) -> Result<Option<(i64, Ruleset)>, Error> {
        let what = |action| What {
            action,
            permission: ADMINISTRATION,
        };
        let path = format!(
            "{}/rulesets?includes_parents=false&targets=branch",
            repository.path()
        );
        let all: Vec<RulesetName> = self.list(&path, &what("list the rulesets")).await?;
        let found = all.into_iter().find(|r| r.name == name && r.is_own());
        let Some(RulesetName { id, .. }) = found else {
            return Ok(None);
        };
        let path = format!("{}/rulesets/{id}", repository.path());
        let (ask, answer) = self.tagged(path, "read a ruleset").await?;
        match answer.status {
            StatusCode::OK if answer.body().len() > LONGEST_DOCUMENT => Err(Error::Malformed {
                action: ask.action,
                message: "it is longer than any ruleset".into(),
            }),
            StatusCode::OK => Ok(Some((id, read_ruleset(name, &answer.json(&ask)?)))),
            _ => Err(self.judged(&answer, &ask, ADMINISTRATION)),
        }
    }

    /// Makes a ruleset.
    pub async fn create_ruleset(
        &self,
        repository: &Repository,
        ruleset: &Ruleset,
    ) -> Result<(), Error> {
        let path = format!("{}/rulesets", repository.path());
        self.put_ruleset(Method::POST, path, ruleset).await
    }

    /// Makes a ruleset what it should be.
    pub async fn update_ruleset(
        &self,
        repository: &Repository,
        id: i64,
        ruleset: &Ruleset,
    ) -> Result<(), Error> {
        let path = format!("{}/rulesets/{id}", repository.path());
        self.put_ruleset(Method::PUT, path, ruleset).await
    }

    async fn put_ruleset(
        &self,
        method: Method,
        path: String,
        ruleset: &Ruleset,
    ) -> Result<(), Error> {
        let action = format!("write the ruleset {}", ruleset.name);
        let ask = Ask {
            body: Some(body_of(ruleset).to_string().into_bytes()),
            ..Ask::write(method, path, action)
        };
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED => Ok(()),
            _ => Err(self.judged(&answer, &ask, ADMINISTRATION)),
        }
    }

    /// Removes a ruleset. Whether one that is not found is gone, the list tells.
    pub async fn delete_ruleset(&self, repository: &Repository, id: i64) -> Result<(), Error> {
        let path = format!("{}/rulesets/{id}", repository.path());
        let ask = Ask::write(Method::DELETE, path, format!("remove the ruleset {id}"));
        let answer = self.transport.send(&ask).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(self.judged(&answer, &ask, ADMINISTRATION)),
        }
    }
}

/// What a branch has instead of required checks. GitHub tells the cases apart by its words only: "Not Found" is none of
/// them, and may be a missing permission.
fn without_checks(answer: &Answer) -> Option<Protection> {
    match (answer.status, answer.message().as_str()) {
        (StatusCode::NOT_FOUND, "Branch not protected") => Some(Protection::Unprotected),
        (StatusCode::NOT_FOUND, "Required status checks not enabled") => {
            Some(Protection::WithoutChecks)
        }
        (StatusCode::NOT_FOUND, "Branch not found") => Some(Protection::NoBranch),
        (StatusCode::FORBIDDEN, words) if words.starts_with("Upgrade to ") => {
            Some(Protection::NotInPlan(words.to_owned()))
        }
        _ => None,
    }
}

fn protected(repository: &Repository, branch: &str) -> String {
    // Slashes of a branch's name, too.
    format!(
        "{}/branches/{}/protection",
        repository.path(),
        encode(branch)
    )
}

/// A ruleset in GitHub's form.
fn body_of(ruleset: &Ruleset) -> Value {
    let checks: Vec<Value> = ruleset
        .checks
        .iter()
        .map(|check| match check.app_id {
            Some(app) => json!({"context": check.context, "integration_id": app}),
            None => json!({"context": check.context}),
        })
        .collect();
    let include: Vec<String> = ruleset
        .branches
        .iter()
        .map(|branch| format!("refs/heads/{branch}"))
        .collect();
    json!({
        "name": ruleset.name,
        "target": "branch",
        "enforcement": "active",
        "conditions": {"ref_name": {"include": include, "exclude": []}},
        "rules": [{
            "type": "required_status_checks",
            "parameters": {
                "required_status_checks": checks,
                "strict_required_status_checks_policy": false,
            },
        }],
    })
}

/// Reads a ruleset that GitHub has. One that is switched off, or that excludes branches, requires nothing.
fn read_ruleset(name: &str, whole: &Value) -> Ruleset {
    let empty = Ruleset {
        name: name.to_owned(),
        branches: BTreeSet::new(),
        checks: BTreeSet::new(),
    };
    let excluded = &whole["conditions"]["ref_name"]["exclude"];
    if whole["enforcement"] != "active" || excluded.as_array().is_some_and(|e| !e.is_empty()) {
        return empty;
    }
    let include = whole["conditions"]["ref_name"]["include"].as_array();
    let rules = whole["rules"].as_array();
    let checks = rules
        .into_iter()
        .flatten()
        .filter(|rule| rule["type"] == "required_status_checks")
        .filter_map(|rule| rule["parameters"]["required_status_checks"].as_array())
        .flatten();
    Ruleset {
        branches: include
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(|name| name.trim_start_matches("refs/heads/").to_owned())
            .collect(),
        checks: checks
            .filter_map(|check| {
                Some(Check {
                    context: check["context"].as_str()?.to_owned(),
                    app_id: check["integration_id"].as_i64(),
                })
            })
            .collect(),
        ..empty
    }
}

/// Reads a workflow file in base64. The `on:` of YAML 1.1 is a boolean to some readers; here it is a string.
fn triggers_of(content: &str) -> Option<Triggers> {
    if content.len() > LONGEST_DOCUMENT {
        return None;
    }
    let content: String = content.split_whitespace().collect();
    let text = String::from_utf8(STANDARD.decode(content).ok()?).ok()?;
    let file: Value = serde_saphyr::from_str(&text).ok()?;
    let on = file.get("on").or_else(|| file.get("true"))?;
    let has = |event: &str| match on {
        Value::String(only) => only == event,
        Value::Array(all) => all.iter().any(|one| one == event),
        Value::Object(all) => all.contains_key(event),
        _ => false,
    };
    let pull_request = &on["pull_request"];
    let filters = ["paths", "paths-ignore", "branches", "branches-ignore"];
    Some(Triggers {
        merge_group: has("merge_group"),
        is_filtered: filters.iter().any(|f| pull_request.get(*f).is_some()),
    })
}

impl From<CheckRun> for Check {
    fn from(run: CheckRun) -> Self {
        Self {
            context: run.name,
            app_id: run.app.and_then(|app| app.id),
        }
    }
}

#[derive(Deserialize)]
struct CheckRun {
    #[serde(deserialize_with = "short")]
    name: String,
    app: Option<App>,
}

impl Item for CheckRun {
    fn size(&self) -> usize {
        size_of::<Self>() + self.name.len()
    }
}

#[derive(Deserialize)]
struct App {
    id: Option<i64>,
}

#[derive(Deserialize)]
struct Required {
    #[serde(default)]
    contexts: AtMost<Short, MOST_CONTEXTS>,
}

#[derive(Deserialize)]
struct RulesetName {
    id: i64,
    #[serde(deserialize_with = "short")]
    name: String,
    #[serde(default, deserialize_with = "short_or_none")]
    source_type: Option<String>,
}

impl Item for RulesetName {
    fn size(&self) -> usize {
        size_of::<Self>() + self.name.len()
    }
}

impl RulesetName {
    /// A server that does not know how to leave out those of the organization marks them.
    fn is_own(&self) -> bool {
        self.source_type
            .as_deref()
            .is_none_or(|source| source == "Repository")
    }
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

/// A rule in GitHub's form.
#[derive(Deserialize)]
#[serde(transparent)]
struct WireBranchRule(#[serde(with = "BranchRuleForm")] BranchRule);

impl Item for WireBranchRule {
    fn size(&self) -> usize {
        size_of::<Self>() + self.0.kind.len()
    }
}

#[derive(Deserialize)]
#[serde(remote = "BranchRule")]
struct BranchRuleForm {
    #[serde(rename = "type", deserialize_with = "short")]
    kind: String,
    ruleset_id: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_workflow_file_is_read_to_its_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            text in "(on|true|pull_request|paths|[:\\[\\]{}&*!|> \n-]|[a-z]){0,40}",
        ) {
            for file in [STANDARD.encode(&bytes), STANDARD.encode(text), String::from_utf8_lossy(&bytes).into_owned()] {
                let _ = triggers_of(&file);
            }
        }
    }
}
