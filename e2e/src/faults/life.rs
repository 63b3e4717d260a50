//! The lives of pools, step by step. Each step is a condition that must hold in time: soon, or soon after the fault.

use std::{cell::Cell, time::Duration};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use cudarunner_crds::{CudaRunner, RerunState, RunnerPhase};
use github_simulator::{
    control::{JobView, NewBranch, NewWorkflow, UpdateRepository},
    state::Conclusion,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde_json::{Value, json};

use super::{
    node::{self, Node},
    pace::Pace,
    progress::Phase,
    proxy::Proxy,
};
use crate::{
    bench::gated_pool,
    suites::{
        Ctx,
        context::{job, merge},
    },
};

/// How long a step may take with one operator, by the clock of [`Pace`].
const SOON: Duration = Duration::from_secs(45);
/// The same for what waits until GitHub is read again: every half a minute, and a minute after a read that failed.
const READ_AGAIN: Duration = Duration::from_secs(150);
/// How long a fault may last.
const LONGEST: Duration = Duration::from_secs(100);
const POOL: &str = "pool";

/// A life of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Scenario {
    /// Runners for one job each, by just-in-time configurations.
    Ephemeral,
    /// A runner for many jobs, by registration tokens.
    Persistent,
    /// Runners that follow the queue of a scale set.
    ScaleSet,
    /// A pool that runs its workflow, and requires its checks on a protected branch.
    Checks,
    /// The same by a ruleset.
    Ruleset,
    /// Fewer runners, and then none, while a job runs.
    Deletion,
    /// A job whose pod is taken away, and that is run again.
    Rerun,
    /// A runner whose agent ends before it has a job.
    Failure,
    /// Runners for one job each, by two replicas of the operator, of which one leads.
    TwoReplicas,
}

impl Scenario {
    /// Operators of one installation.
    pub(super) fn replicas(self) -> usize {
        match self {
            Self::TwoReplicas => 2,
            _ => 1,
        }
    }

    /// How long a step may take, from its start or from the fault's end, whichever comes last. Another replica takes over
    /// when the lease of the first is over.
    pub(super) fn soon(self) -> Duration {
        match self {
            Self::TwoReplicas => 3 * SOON,
            _ => SOON,
        }
    }

    /// Pods that may be there at a time.
    pub(super) fn most(self) -> usize {
        match self {
            Self::ScaleSet | Self::Deletion => 2,
            _ => 1,
        }
    }
}

/// A life as it goes.
pub(super) struct Life<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) proxy: &'a Proxy,
    pub(super) node: &'a Node,
    pub(super) pace: &'a Pace,
    /// How long a step may take.
    pub(super) soon: Duration,
    /// From the fault's end to the end of the step that it fell into.
    pub(super) recovery: Cell<Option<Duration>>,
}

impl Life<'_> {
    pub(super) async fn live(&self, scenario: Scenario) -> Result<()> {
        match scenario {
            Scenario::Ephemeral => self.ephemeral().await?,
            Scenario::Persistent => self.persistent().await?,
            Scenario::ScaleSet => self.scale_set().await?,
            Scenario::Checks => self.checks("BranchProtection").await?,
            Scenario::Ruleset => self.checks("Ruleset").await?,
            Scenario::Rerun => self.rerun().await?,
            Scenario::Failure => self.failure().await?,
            Scenario::Deletion => return self.deletion().await,
            Scenario::TwoReplicas => self.two_replicas().await?,
        }
        self.delete().await?;
        // Required checks are taken back after they have been read, which may have failed.
        let limit = match scenario {
            Scenario::Checks | Scenario::Ruleset => READ_AGAIN,
            _ => self.soon,
        };
        self.gone(limit).await
    }

    async fn ephemeral(&self) -> Result<()> {
        self.apply(json!({"replicas": 1})).await?;
        self.serves("first").await?;
        self.holds("second").await?;
        self.until_in(READ_AGAIN, "both jobs to be concluded", async || {
            let jobs = self.ctx.status(POOL).await?.last_jobs;
            let concluded = jobs.iter().filter(|job| job.conclusion.is_some()).count();
            Ok((concluded == 2).then_some(()))
        })
        .await?;
        self.serves("third").await
    }

    async fn two_replicas(&self) -> Result<()> {
        self.apply(json!({"replicas": 1})).await?;
        self.serves("first").await?;
        self.holds("second").await?;
        self.serves("third").await
    }

    async fn persistent(&self) -> Result<()> {
        let spec =
            json!({"replicas": 1, "lifetime": "Persistent", "registration": "RegistrationToken"});
        self.apply(spec).await?;
        self.serves("first").await?;
        self.holds("second").await?;
        let pods: Api<Pod> = self.ctx.api();
        let first = pods.get("pool-0").await?.metadata.uid;
        pods.delete("pool-0", &DeleteParams::default()).await?;
        // Until it has gone it would take the next job, and be killed with it.
        self.until("the pod to be replaced", async || {
            let now = pods.get_opt("pool-0").await?;
            Ok(now.filter(|pod| pod.metadata.uid != first).map(drop))
        })
        .await?;
        self.serves("third").await
    }

    async fn scale_set(&self) -> Result<()> {
        self.apply(json!({"replicas": null, "scaling": {"maxRunners": 2}}))
            .await?;
        self.until("somebody to listen", async || {
            let sets = self.ctx.scale_sets().await?;
            Ok(sets.iter().any(|set| set.session.is_some()).then_some(()))
        })
        .await?;
        let one = self.ctx.hold("first").await?;
        let two = self.ctx.hold("second").await?;
        for job in [one, two] {
            self.picked_up(job).await?;
        }
        for job in [one, two] {
            self.ctx.github.release(job).await?;
            self.succeeded(job).await?;
        }
        self.until_in(READ_AGAIN, "the runners to go", async || {
            Ok((self.node.pods() == 0).then_some(()))
        })
        .await?;
        self.serves("third").await
    }

    async fn checks(&self, mode: &str) -> Result<()> {
        let verify = json!({"workflow": "cuda.yml", "ref": "main", "jobs": [{"name": "gpu"}]});
        let required = json!({"mode": mode, "branches": [{"name": "main"}], "allowUnseen": true});
        self.apply(json!({"replicas": 1, "verify": verify, "requiredChecks": required}))
            .await?;
        for condition in ["WorkflowVerified", "ChecksRequired"] {
            self.until_in(READ_AGAIN, condition, async || {
                let all = self.ctx.status(POOL).await?.conditions;
                let is = all
                    .iter()
                    .any(|c| c.type_ == condition && c.status == "True");
                Ok(is.then_some(()))
            })
            .await?;
        }
        self.serves("another").await
    }

    async fn rerun(&self) -> Result<()> {
        let wish = json!({"replicas": 1, "rerun": {"onNodeLoss": true}});
        self.apply(wish).await?;
        let job = self.ctx.hold("moved").await?;
        self.picked_up(job).await?;
        let first = self.ctx.github.job(job).await?;
        node::take_away(self.ctx, &first).await?;
        let again = self.until_in(READ_AGAIN, "the job to be run again", async || {
            let jobs = self.attempts(&first).await?.into_iter();
            Ok(jobs
                .max_by_key(|job| job.attempt)
                .filter(|job| job.attempt == 2))
        });
        let again = again.await?.id;
        self.picked_up(again).await?;
        self.ctx.github.release(again).await?;
        self.succeeded(again).await?;
        self.until_in(READ_AGAIN, "the status to say so", async || {
            let reruns = self.ctx.status(POOL).await?.reruns;
            let is_said = matches!(&reruns[..], [one] if one.state == RerunState::Started);
            Ok(is_said.then_some(()))
        })
        .await?;
        self.serves("another").await?;
        let attempts = self.attempts(&first).await?;
        ensure!(attempts.len() == 2, "it was run again twice: {attempts:?}");
        Ok(())
    }

    async fn failure(&self) -> Result<()> {
        self.apply(json!({"replicas": 1})).await?;
        let first = self
            .until("an idle runner", async || {
                let runners = self.ctx.status(POOL).await?.runners;
                let idle = runners.into_iter().find(|r| r.phase == RunnerPhase::Idle);
                Ok(idle.map(|runner| runner.name))
            })
            .await?;
        node::end_agent(self.ctx, &first).await?;
        let times = async || {
            let failures = self.ctx.status(POOL).await?.last_failures.into_iter();
            anyhow::Ok(failures.filter(|failure| failure.runner == first).count())
        };
        self.until("the status to say so", async || {
            Ok((times().await? > 0).then_some(()))
        })
        .await?;
        self.serves("another").await?;
        self.until("its pod to go", async || {
            let pods = self.ctx.pods().await?;
            let is_gone = pods.iter().all(|pod| pod.name_any() != first);
            Ok(is_gone.then_some(()))
        })
        .await?;
        let times = times().await?;
        ensure!(times == 1, "it was told {times} times");
        Ok(())
    }

    /// All attempts of a job that is alone in its run.
    async fn attempts(&self, job: &JobView) -> Result<Vec<JobView>> {
        let mut jobs = self.ctx.github.jobs().await?;
        jobs.retain(|other| other.run == job.run);
        Ok(jobs)
    }

    async fn deletion(&self) -> Result<()> {
        self.apply(json!({"replicas": 2})).await?;
        let job = self.ctx.hold("first").await?;
        self.picked_up(job).await?;
        self.ctx.scale(POOL, 1).await?;
        self.until("the idle runner to go", async || {
            Ok((self.node.pods() == 1).then_some(()))
        })
        .await?;
        self.delete().await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let view = self.ctx.github.job(job).await?;
        ensure!(view.conclusion.is_none(), "the job was cut short: {view:?}");
        self.ctx.github.release(job).await?;
        self.succeeded(job).await?;
        self.gone(self.soon).await
    }

    /// What there is before the pool: the workflow of single jobs, a protected branch and a workflow of the user's.
    pub(super) async fn prepare(&self) -> Result<()> {
        let nobody = self
            .ctx
            .queue_for("nobody", &["nobody"], "true", false)
            .await?;
        let run = self.ctx.github.job(nobody).await?.run;
        self.ctx.github.cancel_run(run).await?;
        let update = UpdateRepository {
            branches: vec![NewBranch {
                name: "main".to_owned(),
                protected: true,
                required_checks: Some(vec!["fmt".to_owned()]),
            }],
            workflows: vec![NewWorkflow {
                name: "cuda".to_owned(),
                file: "cuda.yml".to_owned(),
                jobs: vec![job("gpu", &["self-hosted", "cuda"], "true")],
                ..NewWorkflow::default()
            }],
            ..UpdateRepository::default()
        };
        self.ctx
            .github
            .update_repository(&self.ctx.repository, &update)
            .await?;
        Ok(())
    }

    /// The repository, as it must be again.
    pub(super) async fn repository(&self) -> Result<Value> {
        let state = self.ctx.github.state().await?;
        Ok(state.lasting["repositories"][&self.ctx.repository].clone())
    }

    async fn apply(&self, spec: Value) -> Result<()> {
        let mut whole = gated_pool(1);
        merge(&mut whole, spec);
        let mut pool = self.ctx.pool(POOL, whole);
        let url = format!("{}/{}", self.proxy.github, self.ctx.repository);
        pool["spec"]["github"]["url"] = json!(url);
        self.ctx.apply(&pool).await
    }

    /// A job is run.
    async fn serves(&self, name: &str) -> Result<()> {
        let job = self.ctx.queue(name, "true").await?;
        self.succeeded(job).await
    }

    /// A job is run that takes its time.
    async fn holds(&self, name: &str) -> Result<()> {
        let job = self.ctx.hold(name).await?;
        self.picked_up(job).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.ctx.github.release(job).await?;
        self.succeeded(job).await
    }

    async fn picked_up(&self, job: u64) -> Result<()> {
        self.until("a job to be picked up", async || {
            Ok(self.ctx.github.job(job).await?.started_at.map(drop))
        })
        .await
    }

    async fn succeeded(&self, job: u64) -> Result<()> {
        self.until("a job to succeed", async || {
            let view = self.ctx.github.job(job).await?;
            match view.conclusion {
                Some(Conclusion::Success) => Ok(Some(())),
                Some(other) => bail!("the job {} ended with {other:?}", view.name),
                None => Ok(None),
            }
        })
        .await
    }

    async fn delete(&self) -> Result<()> {
        let pools: Api<CudaRunner> = self.ctx.api();
        pools.delete(POOL, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Nothing is left, neither in the cluster nor of the pool itself.
    async fn gone(&self, limit: Duration) -> Result<()> {
        let pools: Api<CudaRunner> = self.ctx.api();
        self.until_in(limit, "the pool to be gone", async || {
            Ok(pools.get_opt(POOL).await?.is_none().then_some(()))
        })
        .await?;
        self.until("the pods to be gone", async || {
            Ok(self.ctx.pods().await?.is_empty().then_some(()))
        })
        .await
    }

    /// Waits for a condition that holds soon.
    async fn until<T>(
        &self,
        what: &str,
        condition: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        self.until_in(self.soon, what, condition).await
    }

    /// Waits for a condition, until it is late.
    async fn until_in<T>(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let start = self.pace.now();
        let mut pause = Duration::from_millis(50);
        loop {
            // Servers may be away while it is looked: an error is no answer yet.
            let found = condition().await;
            let phase = self.proxy.shared.progress.phase();
            let error = match found {
                Ok(Some(found)) => {
                    if let (Phase::After(end), None) = (phase, self.recovery.get()) {
                        self.recovery.set(Some(self.pace.since(end)));
                    }
                    return Ok(found);
                }
                Ok(None) => String::new(),
                Err(error) => format!("; the last look failed: {error:#}"),
            };
            let late = match phase {
                Phase::Before => self.pace.since(start) > limit,
                Phase::During => self.pace.since(start) > LONGEST.max(limit),
                Phase::After(end) => self.pace.since(end.max(start)) > limit,
            };
            if late {
                bail!(
                    "waited {} s in vain for {what}{error}; {}",
                    self.pace.since(start).as_secs(),
                    self.said().await
                );
            }
            tokio::time::sleep(pause).await;
            // Dozens of lives wait at a time: looking is what they would mostly do.
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// What the pool says, in words.
    async fn said(&self) -> String {
        let status = self.ctx.status(POOL).await.unwrap_or_default();
        let said = status.conditions.iter();
        let said = said.filter(|c| c.type_ == "Ready" || c.type_ == "Stalled");
        let said: Vec<_> = said
            .map(|c| format!("{}={} ({}: {})", c.type_, c.status, c.reason, c.message))
            .collect();
        let runners = status.runners.iter().map(|r| (&r.name, &r.phase));
        let jobs = status.last_jobs.iter();
        let jobs = jobs.map(|j| (&j.job, &j.runner, &j.conclusion, &j.finished_at.0));
        format!(
            "the pool says {}, its runners are {:?}, its jobs {:?}",
            said.join(", "),
            runners.collect::<Vec<_>>(),
            jobs.collect::<Vec<_>>()
        )
    }
}
