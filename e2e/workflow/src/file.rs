//! A file below `.github/workflows/`.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, json};

use crate::{
    Container, Job, Ordered, RunDefaults, Service, Step, Text,
    expression::{self, Scope},
    matrix::{self, Row},
    parts::Names,
};

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not YAML, or has keys that are not known here.
    #[error("the workflow file is not understood: {0}")]
    Syntax(String),
    /// A job of it is not as it has to be.
    #[error("job {job} of the workflow file: {reason}")]
    Job {
        /// The job's key.
        job: String,
        /// What is wrong.
        reason: String,
    },
}

/// A workflow.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Its `name`, which may be empty.
    pub name: String,
    /// Events that start it.
    pub events: Vec<String>,
    /// Its concurrency group.
    pub concurrency: Option<String>,
    /// Its jobs, one for each row of a matrix.
    pub jobs: Vec<Job>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    name: Text,
    on: Names,
    #[serde(default)]
    env: Ordered<Text>,
    #[serde(default)]
    defaults: Defaults,
    concurrency: Option<Concurrency>,
    #[serde(rename = "permissions")]
    _permissions: Option<IgnoredAny>,
    jobs: Ordered<WrittenJob>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Defaults {
    run: RunDefaults,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Concurrency {
    Name(String),
    Group { group: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct WrittenJob {
    name: Option<Text>,
    runs_on: Names,
    #[serde(rename = "permissions")]
    _permissions: Option<IgnoredAny>,
    #[serde(default)]
    env: Ordered<Text>,
    #[serde(default)]
    defaults: Defaults,
    strategy: Option<Strategy>,
    container: Option<Container>,
    #[serde(default)]
    services: Ordered<Container>,
    timeout_minutes: Option<Text>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Strategy {
    matrix: Ordered<Value>,
    /// Only `false`: a job that fails does not stop the others here.
    fail_fast: Option<bool>,
}

impl File {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let written: Written =
            serde_saphyr::from_str(text).map_err(|error| Error::Syntax(error.to_string()))?;
        let mut jobs = Vec::new();
        for (key, job) in written.jobs.iter() {
            let refused = |reason| Error::Job {
                job: key.to_owned(),
                reason,
            };
            check(job).map_err(refused)?;
            let matrix = job.strategy.as_ref().map(|strategy| &strategy.matrix);
            for row in matrix::rows(matrix).map_err(refused)? {
                jobs.push(made(&written, key, job, row).map_err(refused)?);
            }
        }
        if jobs.is_empty() {
            return Err(Error::Syntax("it has no job".to_owned()));
        }
        let concurrency = written.concurrency.map(|concurrency| match concurrency {
            Concurrency::Name(group) | Concurrency::Group { group } => group,
        });
        Ok(Self {
            name: written.name.0,
            events: written.on.0,
            concurrency,
            jobs,
        })
    }
}

/// What the types alone do not say.
fn check(job: &WrittenJob) -> Result<(), String> {
    if job.steps.is_empty() {
        return Err("it has no step".to_owned());
    }
    if job
        .strategy
        .as_ref()
        .and_then(|strategy| strategy.fail_fast)
        == Some(true)
    {
        return Err("strategy.fail-fast can only be false here".to_owned());
    }
    for step in &job.steps {
        if step.run.is_some() == step.uses.is_some() {
            let title = step.title();
            return Err(format!("step {title}: it needs either run or uses"));
        }
    }
    if let Some(container) = &job.container
        && (container.entrypoint.is_some() || container.command.is_some())
    {
        return Err("the keys entrypoint and command are for services only".to_owned());
    }
    Ok(())
}

fn made(written: &Written, key: &str, job: &WrittenJob, row: Row) -> Result<Job, String> {
    // The server knows no more than this when it makes the jobs.
    let contexts = json!({"matrix": row});
    let scope = Scope::new(&contexts);
    let fill = |text: &str| expression::render(text, &scope).map_err(|error| error.to_string());
    let name = match &job.name {
        Some(Text(name)) => fill(name)?,
        None if row.is_empty() => key.to_owned(),
        None => format!("{key} ({})", values(&row)),
    };
    let runs_on = job.runs_on.0.iter().map(|label| fill(label));
    let service = |(name, container): (&str, &Container)| Service {
        name: name.to_owned(),
        container: container.clone(),
    };
    let (outer, inner) = (&written.defaults.run, &job.defaults.run);
    let made = Job {
        key: key.to_owned(),
        name,
        runs_on: runs_on.collect::<Result<_, _>>()?,
        matrix: row,
        env: vec![written.env.clone(), job.env.clone()],
        defaults: RunDefaults {
            shell: inner.shell.clone().or_else(|| outer.shell.clone()),
            working_directory: inner
                .working_directory
                .clone()
                .or_else(|| outer.working_directory.clone()),
        },
        container: job.container.clone(),
        services: job.services.iter().map(service).collect(),
        timeout_minutes: job
            .timeout_minutes
            .as_ref()
            .map(|Text(minutes)| fill(minutes).map(Text))
            .transpose()?,
        steps: job.steps.clone(),
    };
    understood(&json!(made))?;
    Ok(made)
}

/// What GitHub puts behind the name of a job of a matrix.
fn values(row: &Map<String, Value>) -> String {
    let scalars = row.values().filter(|value| !value.is_object());
    scalars.map(expression::text).collect::<Vec<_>>().join(", ")
}

/// Looks at every expression of a job, so that the file is refused and not the job that runs it.
fn understood(value: &Value) -> Result<(), String> {
    match value {
        Value::String(text) => expression::check(text).map_err(|error| error.to_string()),
        Value::Array(items) => items.iter().try_for_each(understood),
        Value::Object(entries) => entries.iter().try_for_each(|(key, value)| match value {
            Value::String(condition) if key == "if" => {
                expression::check_condition(condition).map_err(|error| error.to_string())
            }
            value => understood(value),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r"
name: CUDA
on: [push, workflow_dispatch]
permissions: {contents: read}
concurrency:
  group: cuda-${{ github.ref }}
env:
  LEVEL: workflow
  COUNT: 3
defaults:
  run:
    shell: bash
jobs:
  test:
    name: test on ${{ matrix.image }}
    runs-on: [self-hosted, cuda]
    strategy:
      fail-fast: false
      matrix:
        image: [cuda-12.4, cuda-13.1]
    env: {LEVEL: job}
    defaults:
      run:
        working-directory: sub
    container:
      image: ghcr.io/acme/${{ matrix.image }}
      credentials:
        username: ${{ github.actor }}
        password: ${{ secrets.TOKEN }}
      env:
        DEBUG: true
      ports: [8080, '80:80/tcp']
      volumes: ['data:/data', /cache]
      options: --gpus all --shm-size=1g
    services:
      redis:
        image: redis:7
        ports: ['6379']
        options: --health-cmd true
      db: postgres
    timeout-minutes: 10
    steps:
      - uses: actions/checkout@v4
        with: {fetch-depth: 0}
      - name: Build
        id: build
        run: |
          make
        shell: python
        continue-on-error: true
      - run: echo done
        if: always()
        timeout-minutes: 1
";

    #[test]
    fn a_whole_file() {
        let file = File::parse(WHOLE).unwrap();
        assert_eq!(file.name, "CUDA");
        assert_eq!(file.events, ["push", "workflow_dispatch"]);
        assert_eq!(file.concurrency.as_deref(), Some("cuda-${{ github.ref }}"));
        let names: Vec<_> = file.jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["test on cuda-12.4", "test on cuda-13.1"]);
        let job = &file.jobs[1];
        assert_eq!(job.runs_on, ["self-hosted", "cuda"]);
        assert_eq!(job.matrix["image"], "cuda-13.1");
        assert_eq!(job.defaults.shell, Some("bash".into()));
        assert_eq!(job.defaults.working_directory, Some("sub".into()));
        let container = job.container.as_ref().unwrap();
        assert_eq!(container.env.0, [("DEBUG".to_owned(), "true".into())]);
        assert_eq!(container.ports, ["8080".into(), "80:80/tcp".into()]);
        let services: Vec<_> = job.services.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(services, ["redis", "db"], "in the order of the file");
        assert_eq!(job.services[1].container.image, "postgres".into());
        let titles: Vec<_> = job.steps.iter().map(Step::title).collect();
        assert_eq!(
            titles,
            ["Run actions/checkout@v4", "Build", "Run echo done"]
        );
        // An agent gets it as JSON
        let sent: Job = serde_json::from_str(&serde_json::to_string(job).unwrap()).unwrap();
        assert_eq!(&sent, job);
    }

    #[test]
    fn the_short_forms() {
        let file = "on: push\njobs: {a: {runs-on: cuda, container: ubuntu, steps: [{run: x}]}}";
        let file = File::parse(file).unwrap();
        assert_eq!(file.events, ["push"]);
        assert_eq!(file.jobs[0].name, "a");
        assert_eq!(file.jobs[0].runs_on, ["cuda"]);
        let container = file.jobs[0].container.as_ref().unwrap();
        assert_eq!(container.image, "ubuntu".into());
        let file = "on: {push: {branches: [main]}}\njobs: {a: {runs-on: c, strategy: {matrix: {x: [1, b]}}, steps: [{run: x}]}}";
        let names: Vec<_> = File::parse(file)
            .unwrap()
            .jobs
            .into_iter()
            .map(|j| j.name)
            .collect();
        assert_eq!(names, ["a (1)", "a (b)"]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let job = |job: &str| format!("on: push\njobs:\n  a: {{runs-on: cuda, {job}}}\n");
        let table = [
            (job("steps: [{run: x}], needs: b"), "needs"),
            (job("steps: [{run: x, wiht: {}}]"), "wiht"),
            (job("steps: []"), "no step"),
            (job("steps: [{name: n}]"), "either run or uses"),
            (job("steps: [{run: x, uses: y}]"), "either run or uses"),
            (job("steps: [{run: \"${{ vars.x }}\"}]"), "vars"),
            (
                job("steps: [{run: \"${{ hashFiles('x') }}\"}]"),
                "hashFiles",
            ),
            (job("steps: [{run: x, if: never()}]"), "never"),
            (job("steps: [{run: \"${{ 1 + 1 }}\"}]"), "+"),
            (job("container: {imge: x}, steps: [{run: x}]"), "imge"),
            (
                job("container: {image: x, command: y}, steps: [{run: x}]"),
                "services only",
            ),
            (
                job("strategy: {matrix: {x: [1]}, fail-fast: true}, steps: [{run: x}]"),
                "fail-fast",
            ),
            ("on: push\njobs: {}".to_owned(), "no job"),
            (
                "jobs: {a: {runs-on: c, steps: [{run: x}]}}".to_owned(),
                "on",
            ),
        ];
        for (file, named) in table {
            let error = File::parse(&file).unwrap_err().to_string();
            assert!(error.contains(named), "{file}: {error}");
        }
    }
}
