//! What expressions and processes of a job see of it.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};
use workflow_file::{Ordered, Scope, Status, Text};

use crate::{
    files::Files,
    server::Job,
    work::{Environment, Place, path},
};

/// What the job has become so far.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The context `env`: that of the workflow and of the job, and what steps added.
    pub(crate) env: Environment,
    /// Folders before `PATH`, the one that was added last at the end.
    pub(crate) path: Vec<String>,
    /// The context `steps`.
    pub(crate) steps: Map<String, Value>,
    /// `job.container`.
    pub(crate) container: Value,
    /// `job.services`.
    pub(crate) services: Value,
    /// Where the job stands.
    pub(crate) status: Status,
}

impl Known {
    /// Folders before `PATH`, the first to be looked into first.
    pub(crate) fn prepended(&self) -> Vec<String> {
        self.path.iter().rev().cloned().collect()
    }

    /// Adds a folder, which is then the first.
    pub(crate) fn prepend(&mut self, folder: String) {
        self.path.retain(|known| *known != folder);
        self.path.push(folder);
    }
}

/// `GITHUB_…`, of a step with its files.
pub(crate) fn github(job: &Job, place: &Place, action: &Action<'_>) -> Environment {
    let mut variables: Environment = job
        .github
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut set = |name: &str, value: String| variables.insert(name.to_owned(), value);
    set("workspace", path(&place.workspace));
    set("event_path", path(&place.event()));
    for (name, value) in [
        ("action", Some(action.name)),
        ("action_repository", action.repository),
        ("action_ref", action.reference),
    ] {
        if let Some(value) = value {
            set(name, value.to_owned());
        }
    }
    for (name, file) in action.files.iter().flat_map(|files| files.iter()) {
        set(name, path(file));
    }
    let variable =
        |(name, value): (String, String)| (format!("GITHUB_{}", name.to_uppercase()), value);
    variables.into_iter().map(variable).collect()
}

/// What `GITHUB_ACTION…` and the files of a step are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Action<'a> {
    pub(crate) name: &'a str,
    pub(crate) repository: Option<&'a str>,
    pub(crate) reference: Option<&'a str>,
    pub(crate) files: Option<&'a Files>,
}

/// All contexts. The paths in them are the agent's own, in a container, too: so it is on GitHub.
pub(crate) fn contexts(job: &Job, place: &Place, known: &Known, env: &Environment) -> Value {
    let mut github = json!(job.github);
    if let Some(github) = github.as_object_mut() {
        github.insert("workspace".to_owned(), json!(path(&place.workspace)));
        github.insert("event_path".to_owned(), json!(path(&place.event())));
        github.insert("event".to_owned(), job.event.clone());
        github.insert("token".to_owned(), json!(token(job)));
    }
    let variables = place.runner().into_iter();
    let runner =
        variables.map(|(name, value)| (name.trim_start_matches("RUNNER_").to_lowercase(), value));
    let status = match known.status {
        Status::Success => "success",
        Status::Failure => "failure",
        Status::Cancelled => "cancelled",
    };
    json!({
        "github": github,
        "env": env,
        "secrets": job.secrets,
        "matrix": job.job.matrix,
        "strategy": {},
        "steps": known.steps,
        "runner": runner.collect::<Environment>(),
        "job": {"status": status, "container": known.container, "services": known.services},
    })
}

/// The token of the job.
pub(crate) fn token(job: &Job) -> &str {
    job.secrets.get("GITHUB_TOKEN").map_or("", String::as_str)
}

/// A text with its expressions replaced.
pub(crate) fn render(text: &str, contexts: &Value) -> Result<String> {
    workflow_file::render(text, &Scope::new(contexts)).with_context(|| {
        format!(
            "The template is not valid: {}",
            text.lines().next().unwrap_or_default()
        )
    })
}

/// A mapping with its expressions replaced.
pub(crate) fn render_all(written: &Ordered<Text>, contexts: &Value) -> Result<Environment> {
    written
        .iter()
        .map(|(name, value)| Ok((name.to_owned(), render(&value.0, contexts)?)))
        .collect()
}
