//! A whole pool from one manifest: it proves itself, has its jobs required, and leaves nothing behind.

use std::{collections::BTreeSet, path::Path, time::Instant};

use anyhow::{Result, ensure};
use github_simulator::{control::NewRun, state::Conclusion};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::Value;

use super::{
    APPLIED, APPLY_TO_ONLINE, NAMESPACE, POOL, SOON, Stage,
    told::{report, told},
};
use crate::{simulator, wait::wait_for};

/// Jobs of the workflow.
const JOBS: usize = 4;

impl Stage<'_> {
    /// A pull request of before: GitHub knows from it under which names the jobs report.
    pub(super) async fn pull_request(&self) -> Result<()> {
        let run = NewRun {
            repository: simulator::REPOSITORY.to_owned(),
            workflow: "cuda.yml".to_owned(),
            event: "pull_request".to_owned(),
            pull_request: Some(1),
            conclusion: Some(Conclusion::Cancelled),
            ..NewRun::default()
        };
        self.github.start_run(&run).await?;
        self.story.step(
            "a pull request of last week ran the workflow cuda.yml, and was cancelled: no runner came",
        );
        Ok(())
    }

    /// One `kubectl apply`, and a runner is online on GitHub.
    pub(super) async fn first_runner(&self, manifest: &Path) -> Result<()> {
        let start = Instant::now();
        self.kubectl(&["apply", "--filename", &manifest.to_string_lossy()])?;
        self.story
            .step(&format!("{APPLIED}, the whole of it, for one runner"));
        // It gets a job at once, the first one of the verification: that it is idle nobody may ever see.
        let online = self.online().await?;
        self.story.measure(APPLY_TO_ONLINE, start.elapsed());
        self.story.step(&format!(
            "GitHub has the runner {online} online, with the labels self-hosted and cuda"
        ));
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        for line in told(&report(&pods, &online).await?) {
            self.story.step(&format!("  gate: {line}"));
        }
        let resource = format!("cudarunner/{POOL}");
        self.kubectl(&["wait", "--for=condition=Ready", &resource, "--timeout=60s"])?;
        for line in self.kubectl(&["get", "cudarunners"])?.lines() {
            self.story.step(&format!("  {line}"));
        }
        Ok(())
    }

    /// The pool runs its workflow: four jobs, one after the other on fresh runners.
    pub(super) async fn verification(&self) -> Result<()> {
        let resource = format!("cudarunner/{POOL}");
        let run = wait_for("the workflow to be started", SOON, async || {
            let id = self.kubectl(&[
                "get",
                &resource,
                "--output",
                "jsonpath={.status.verification.runId}",
            ])?;
            Ok(id.trim().parse::<u64>().ok())
        })
        .await?;
        self.story
            .step("the pool has started the workflow cuda.yml on dev, to prove itself");
        let (mut used, mut done) = (BTreeSet::new(), BTreeSet::new());
        while done.len() < JOBS {
            let job = wait_for("a job to end", SOON, async || {
                let jobs = self.github.jobs().await?;
                Ok(jobs.into_iter().find(|job| {
                    job.run == run && !done.contains(&job.id) && job.conclusion.is_some()
                }))
            })
            .await?;
            done.insert(job.id);
            let runner = self.finished(&job).await?;
            ensure!(
                used.insert(runner.clone()),
                "the runner {runner} had more than one job"
            );
        }
        self.wait("WorkflowVerified")
    }

    /// The jobs are required, under the names that GitHub reports.
    pub(super) async fn required_checks(&self) -> Result<()> {
        self.wait("ChecksRequired")?;
        let state = self.github.state().await?;
        let branches = &state.lasting["repositories"][simulator::REPOSITORY]["branches"];
        let path = "/main/protection/requiredStatusChecks/checks";
        let checks = branches.pointer(path).and_then(Value::as_array);
        let names = checks.into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|c| c["context"].as_str()).collect();
        ensure!(names.len() == 2 + JOBS, "main requires {names:?}");
        self.story
            .step(&format!("GitHub: main requires {}", names.join(", ")));
        Ok(())
    }

    /// `kubectl wait` for a condition. What it says is an Event, too.
    fn wait(&self, condition: &str) -> Result<()> {
        let resource = format!("cudarunner/{POOL}");
        let awaited = format!("--for=condition={condition}");
        self.kubectl(&["wait", &awaited, &resource, "--timeout=90s"])?;
        Ok(())
    }

    /// `kubectl delete`, and GitHub is as it was.
    pub(super) async fn deletion(&self, before: &Value) -> Result<()> {
        let start = Instant::now();
        self.kubectl(&["delete", "cudarunner", POOL, "--timeout=120s"])?;
        self.story.measure("delete", start.elapsed());
        let after = self.github.state().await?.lasting;
        ensure!(
            after == *before,
            "the deletion left something on GitHub: before {before:#}, after {after:#}"
        );
        self.story.step("GitHub holds exactly what it held before");
        let violations = self.github.violations().await?;
        ensure!(
            violations.is_empty(),
            "GitHub's description of its API was broken: {violations:#?}"
        );
        Ok(())
    }
}
