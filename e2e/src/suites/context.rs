//! What a suite works with: a namespace and a repository of its own, and the words of their user.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::{CudaRunner, CudaRunnerStatus, JobStatus, LOOK_AGAIN, POOL_LABEL};
use github_simulator::{
    control::{
        Client as GitHub, JobView, NewJob, NewRepository, NewRun, NewRunner, NewWorkflow,
        ScaleSetView, StartedRun, UpdateRepository,
    },
    faults::{Action, Fault},
    state::{JobTemplate, Seen, StepTemplate},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Namespace, Pod, ServiceAccount},
        events::v1::Event,
    },
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Options},
    deploy::is_ready,
    device_plugin::state::{self, Device},
    example, gpu,
    process::output,
    simulator,
    wait::wait_for,
};

/// Long enough for a pod to come up on a busy machine, and shorter than the five minutes after which the operator reads
/// GitHub whatever happens: what is to come at once must not pass because of that.
pub(super) const SOON: Duration = Duration::from_mins(3);

/// What a suite works with.
#[derive(Clone)]
pub struct Ctx {
    /// The cluster that the suite has for itself.
    pub cluster: Cluster,
    /// Every cluster that the run had started by then.
    pub clusters: Vec<Cluster>,
    /// A client with every right.
    pub client: Client,
    /// The simulated GitHub's control.
    pub github: GitHub,
    /// The suite's own namespace, with credentials as a user has them.
    pub namespace: String,
    /// The suite's own repository, `owner/name`.
    pub repository: String,
}

impl Ctx {
    /// Prepares a suite.
    pub async fn new(cluster: &Cluster, suite: &str) -> Result<Self> {
        let ctx = Self {
            cluster: cluster.clone(),
            clusters: vec![cluster.clone()],
            client: cluster.client().await?,
            github: simulator::client(&cluster.dir, &cluster.github)?,
            namespace: suite.to_owned(),
            repository: format!("suites/{suite}"),
        };
        let repository = NewRepository {
            full_name: ctx.repository.clone(),
            ..NewRepository::default()
        };
        ctx.github.create_repository(&repository).await?;
        example::create_namespace(&ctx.client, suite).await?;
        example::credentials(cluster, &ctx.client, &ctx.github, suite, &ctx.repository).await?;
        let accounts: Api<ServiceAccount> = ctx.api();
        ctx.wait_for("the namespace's service account", SOON, async || {
            Ok(accounts.get_opt("default").await?)
        })
        .await?;
        Ok(ctx)
    }

    /// Objects of the suite's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Waits for a condition, see [`wait_for`].
    pub async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        condition: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait_for(what, limit, condition).await
    }

    /// A pool for the suite's repository; `spec` is merged over what every pool here has.
    pub fn pool(&self, name: &str, spec: Value) -> Value {
        let mut pool = json!({
            "apiVersion": "cudarunner.dev/v1alpha1",
            "kind": "CudaRunner",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "github": {
                    "url": format!("{}/{}", self.cluster.github, self.repository),
                    "credentialsRef": {"name": example::SECRET},
                    "caBundleRef": {"name": example::AUTHORITY, "key": "ca.crt"},
                },
                "template": {"spec": {"containers": [{"name": "runner", "image": example::AGENT}]}},
            },
        });
        merge(&mut pool["spec"], spec);
        pool
    }

    /// `kubectl apply`.
    pub async fn apply(&self, pool: &Value) -> Result<()> {
        let name = pool["metadata"]["name"]
            .as_str()
            .context("the pool has no name")?;
        let pools: Api<CudaRunner> = self.api();
        pools
            .patch(
                name,
                &PatchParams::apply("user").force(),
                &Patch::Apply(pool),
            )
            .await?;
        Ok(())
    }

    /// `kubectl annotate --overwrite`.
    pub async fn annotate(&self, pool: &str, key: &str, value: &str) -> Result<()> {
        let pools: Api<CudaRunner> = self.api();
        let patch = json!({"metadata": {"annotations": {key: value}}});
        pools
            .patch(pool, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// `kubectl scale`.
    pub async fn scale(&self, pool: &str, replicas: usize) -> Result<()> {
        let pools: Api<CudaRunner> = self.api();
        let patch = json!({"spec": {"replicas": replicas}});
        pools
            .patch_scale(pool, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// What the resource says of itself.
    pub async fn status(&self, name: &str) -> Result<CudaRunnerStatus> {
        let pools: Api<CudaRunner> = self.api();
        Ok(pools.get(name).await?.status.unwrap_or_default())
    }

    /// Waits until a condition has this status and reason; gives its message.
    pub async fn condition(
        &self,
        pool: &str,
        kind: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        let mut last = "it has no such condition".to_owned();
        let found = self
            .wait_for(
                &format!("{kind}={status} for the reason {reason}"),
                SOON,
                async || {
                    let now = self
                        .status(pool)
                        .await?
                        .conditions
                        .into_iter()
                        .find(|c| c.type_ == kind);
                    let Some(now) = now else { return Ok(None) };
                    last = format!("{kind}={} ({}): {}", now.status, now.reason, now.message);
                    Ok((now.status == status && now.reason == reason).then_some(now.message))
                },
            )
            .await;
        found.with_context(|| format!("the pool {pool} says {last}"))
    }

    /// Waits until so many runners of the pool wait for a job, there and on GitHub; gives their names.
    pub async fn idle(&self, pool: &str, count: usize) -> Result<Vec<String>> {
        self.wait_for(&format!("{count} idle runners"), SOON, async || {
            let status = self.status(pool).await?;
            let mut idle: Vec<_> = status
                .runners
                .into_iter()
                .filter(|runner| runner.phase == cudarunner_crds::RunnerPhase::Idle)
                .map(|runner| runner.name)
                .collect();
            idle.sort();
            let known = self.entries().await?;
            Ok(
                (idle.len() == count && idle.iter().all(|name| known.contains(name)))
                    .then_some(idle),
            )
        })
        .await
    }

    /// `kubectl` in the suite's namespace; gives what it prints.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.cluster.kubectl(&self.namespace);
        command.args(arguments);
        tokio::task::spawn_blocking(move || output(&mut command)).await?
    }

    /// The repository's runners, as GitHub has them.
    pub async fn runners(&self) -> Result<Vec<Value>> {
        let state = self.github.state().await?;
        let runners = state.lasting["repositories"][&self.repository]["runners"].as_array();
        runners
            .cloned()
            .with_context(|| format!("GitHub has no {}", self.repository))
    }

    /// Adds a runner to the repository's, as one that nobody has a pod for; gives GitHub's number for it.
    pub async fn leave_behind(&self, name: &str, labels: Vec<String>) -> Result<u64> {
        let runner = NewRunner {
            scope: self.repository.clone(),
            name: name.to_owned(),
            labels,
        };
        Ok(self.github.create_runner(&runner).await?)
    }

    /// Their names.
    pub async fn entries(&self) -> Result<Vec<String>> {
        let runners = self.runners().await?;
        Ok(runners
            .iter()
            .filter_map(|runner| Some(runner["name"].as_str()?.to_owned()))
            .collect())
    }

    /// The repository's scale sets, as GitHub has them.
    pub async fn scale_sets(&self) -> Result<Vec<ScaleSetView>> {
        let mut sets = self.github.scale_sets().await?;
        sets.retain(|set| set.scope == self.repository);
        Ok(sets)
    }

    /// The Events with this reason in the suite's namespace.
    pub async fn events(&self, reason: &str) -> Result<Vec<Event>> {
        let events: Api<Event> = self.api();
        let mut all = events.list(&ListParams::default()).await?.items;
        all.retain(|event| event.reason.as_deref() == Some(reason));
        Ok(all)
    }

    /// The pods of the suite's namespace.
    pub async fn pods(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = self.api();
        Ok(pods.list(&ListParams::default()).await?.items)
    }

    /// Queues a job that runs this script, for `[self-hosted, cuda]`; gives its number.
    pub async fn queue(&self, name: &str, script: &str) -> Result<u64> {
        self.queue_for(name, &["self-hosted", "cuda"], script, false)
            .await
    }

    /// Queues a job that runs until it is released.
    pub async fn hold(&self, name: &str) -> Result<u64> {
        self.queue_for(name, &["self-hosted", "cuda"], "true", true)
            .await
    }

    /// Queues a job for these labels.
    pub async fn queue_for(
        &self,
        name: &str,
        labels: &[&str],
        script: &str,
        hold: bool,
    ) -> Result<u64> {
        let job = NewJob {
            repository: self.repository.clone(),
            name: name.to_owned(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            steps: vec![StepTemplate {
                name: "step".to_owned(),
                run: script.to_owned(),
            }],
            hold,
            branch: None,
        };
        let run = self.github.queue(&job).await?;
        run.jobs
            .first()
            .copied()
            .context("the simulated GitHub started no job")
    }

    /// Writes a workflow into the suite's repository. One that is written anew is another one to GitHub.
    pub async fn write_workflow(&self, workflow: NewWorkflow) -> Result<()> {
        let update = UpdateRepository {
            workflows: vec![workflow],
            ..UpdateRepository::default()
        };
        self.github
            .update_repository(&self.repository, &update)
            .await?;
        Ok(())
    }

    /// Waits until a runner has taken the job.
    pub async fn picked_up(&self, job: u64) -> Result<JobView> {
        self.wait_for(&format!("job {job} to be picked up"), SOON, async || {
            let view = self.github.job(job).await?;
            Ok(view.started_at.is_some().then_some(view))
        })
        .await
    }

    /// `gh workflow run`, on the default branch.
    pub async fn dispatch(&self, file: &str) -> Result<StartedRun> {
        let run = NewRun {
            repository: self.repository.clone(),
            workflow: file.to_owned(),
            event: "workflow_dispatch".to_owned(),
            ..NewRun::default()
        };
        Ok(self.github.start_run(&run).await?)
    }

    /// Waits until the job has ended, in whatever way.
    pub async fn ended(&self, job: u64) -> Result<JobView> {
        self.ended_within(job, SOON).await
    }

    /// The same with another limit.
    pub async fn ended_within(&self, job: u64, limit: Duration) -> Result<JobView> {
        self.wait_for(&format!("job {job} to end"), limit, async || {
            let view = self.github.job(job).await?;
            Ok(view.conclusion.is_some().then_some(view))
        })
        .await
    }

    /// Waits until the job has ended, and well.
    pub async fn succeeded(&self, job: u64) -> Result<JobView> {
        let view = self.ended(job).await?;
        if view.conclusion != Some(github_simulator::state::Conclusion::Success) {
            bail!(
                "job {} ended with {:?}: {}",
                view.name,
                view.conclusion,
                self.github.job_log(job).await?
            );
        }
        Ok(view)
    }

    /// Deletes a pool and waits until it is gone.
    pub async fn delete(&self, pool: &str) -> Result<()> {
        let pools: Api<CudaRunner> = self.api();
        pools.delete(pool, &DeleteParams::default()).await?;
        self.wait_for(&format!("the pool {pool} to be gone"), SOON, async || {
            Ok(pools.get_opt(pool).await?.is_none().then_some(()))
        })
        .await
    }

    /// Requests that the operator has sent to GitHub, after this number. Agents' are not among them.
    pub async fn calls(&self, since: u64) -> Result<Vec<Seen>> {
        let seen = self.github.requests(since).await?;
        Ok(seen
            .into_iter()
            .filter(|seen| seen.user_agent.starts_with("cuda-runner-operator"))
            .collect())
    }

    /// Those of them that are about the suite's repository.
    pub async fn own_calls(&self, since: u64) -> Result<Vec<Seen>> {
        let own = format!("/{}/", self.repository);
        let mut calls = self.calls(since).await?;
        calls.retain(|call| call.path.contains(&own));
        Ok(calls)
    }

    /// Something goes wrong so many times with an operation on the suite's repository.
    pub async fn inject(&self, operation: &str, times: u32, action: Action) -> Result<()> {
        let fault = Fault {
            action,
            ..self.fault(operation, times)
        };
        self.github.inject(&fault).await?;
        Ok(())
    }

    /// What strikes so many times at an operation on the suite's repository, and does nothing yet.
    pub fn fault(&self, operation: &str, times: u32) -> Fault {
        Fault {
            operation_id: Some(operation.to_owned()),
            path: Some(format!("/{}/", self.repository)),
            times: Some(times),
            ..Fault::default()
        }
    }

    /// Waits until so many jobs of a pool are in its status, each with its conclusion.
    pub async fn concluded(&self, pool: &str, count: usize) -> Result<Vec<JobStatus>> {
        self.wait_for(&format!("{count} jobs to be concluded"), SOON, async || {
            let jobs = self.status(pool).await?.last_jobs;
            let all = jobs.len() == count && jobs.iter().all(|job| job.conclusion.is_some());
            Ok(all.then_some(jobs))
        })
        .await
    }

    /// The number of the last request to GitHub so far.
    pub async fn last_call(&self) -> Result<u64> {
        // Those that run at the same time are listed as they end.
        let seen = self.github.requests(0).await?;
        Ok(seen.iter().map(|seen| seen.n).max().unwrap_or_default())
    }

    /// How many just-in-time configurations the operator has fetched after this request, for the suite's repository.
    pub async fn registrations(&self, since: u64) -> Result<usize> {
        let calls = self.own_calls(since).await?;
        Ok(calls
            .iter()
            .filter(|call| call.path.ends_with("/generate-jitconfig"))
            .count())
    }

    /// Waits until the pool has one idle runner other than this one; gives its name.
    pub async fn other_idle(&self, pool: &str, than: &str) -> Result<String> {
        self.wait_for(
            &format!("an idle runner other than {than}"),
            SOON,
            async || {
                let other = self.status(pool).await?.runners.into_iter().find(|runner| {
                    runner.phase == cudarunner_crds::RunnerPhase::Idle && runner.name != than
                });
                Ok(other.map(|runner| runner.name))
            },
        )
        .await
    }

    /// Waits until a pod of the pool other than this one is ready, and so its runner idle; gives its name. The status says
    /// so up to half a minute later: while jobs end, changes of mere counts are gathered.
    pub async fn other_ready(&self, pool: &str, than: &str) -> Result<String> {
        let pods: Api<Pod> = self.api();
        let of = ListParams::default().labels(&format!("{POOL_LABEL}={pool}"));
        let what = format!("a runner of {pool} that is ready, other than {than:?}");
        self.wait_for(&what, SOON, async || {
            let mut all = pods.list(&of).await?.items.into_iter();
            let other = all.find(|pod| is_ready(pod) && pod.name_any() != than);
            Ok(other.map(|pod| pod.name_any()))
        })
        .await
    }

    /// Waits until a pod is gone.
    pub async fn gone(&self, pod: &str) -> Result<()> {
        let pods: Api<Pod> = self.api();
        self.wait_for(&format!("the pod {pod} to be gone"), SOON, async || {
            Ok(pods.get_opt(pod).await?.is_none().then_some(()))
        })
        .await
    }

    /// The gate's report in a pod's termination message. The kubelet writes it to the API a moment after the gate has ended, and
    /// a runner can be idle by then.
    pub async fn report(&self, pod: &str) -> Result<Value> {
        let pods: Api<Pod> = self.api();
        let what = format!("the report that the gate of {pod} left");
        self.wait_for(&what, SOON, async || {
            let shown = pods.get(pod).await?;
            Ok(gpu::report(&shown).map(serde_json::from_str).transpose()?)
        })
        .await
    }

    /// Changes a device of the node; the next container that gets it sees the change.
    pub fn device(&self, number: usize, change: impl FnOnce(&mut Device)) -> Result<()> {
        let mut device = Device::healthy(number, 0);
        change(&mut device);
        state::write(&self.cluster.devices(), number, &device)
    }

    /// Changes all devices of the node alike.
    pub fn devices(&self, change: impl Fn(&mut Device)) -> Result<()> {
        (0..4).try_for_each(|number| self.device(number, &change))
    }

    /// Takes the GPU away from a running runner, see [`state::take`].
    pub async fn take_gpu(&self, pool: &str, runner: &str) -> Result<()> {
        let devices = self.devices_of(pool, runner).await?;
        let uuid = devices.first().context("no device")?;
        state::take(&self.cluster.devices(), uuid)
    }

    /// Waits until the status has a runner's devices; gives them. A runner may be idle before its gate's report is known.
    pub async fn devices_of(&self, pool: &str, runner: &str) -> Result<Vec<String>> {
        let what = format!("the devices of {runner} in the status");
        self.wait_for(&what, SOON, async || {
            let runners = self.status(pool).await?.runners.into_iter();
            let mut named = runners.filter(|r| r.name == runner);
            Ok(named.find(|r| !r.devices.is_empty()).map(|r| r.devices))
        })
        .await
    }

    /// Has the operator look at GitHub anew, and waits until it has. `ask` is another one each time.
    pub async fn look_again(&self, pool: &str, ask: &str) -> Result<()> {
        self.annotate(pool, LOOK_AGAIN, ask).await?;
        self.wait_for("the operator to have looked", SOON, async || {
            let status = self.status(pool).await?;
            Ok((status.looked_again.as_deref() == Some(ask)).then_some(()))
        })
        .await
    }

    /// Fails where GitHub's description of its API was broken.
    pub(super) async fn no_violations(&self) -> Result<()> {
        let violations = self.github.violations().await?;
        ensure!(
            violations.is_empty(),
            "GitHub's description was broken: {violations:#?}"
        );
        Ok(())
    }

    /// Takes away what the suite has made, and says so if the product left something behind. What the cluster's suites
    /// share is put right.
    pub(super) async fn tidy(&self) -> Result<()> {
        self.github.clear_faults().await?;
        self.github.clear_violations().await?;
        if self.cluster.link.is_some() {
            state::reset(&self.cluster.devices(), Options::default().devices)?;
        }
        let pools: Api<CudaRunner> = self.api();
        pools
            .delete_collection(&DeleteParams::default(), &ListParams::default())
            .await?;
        self.wait_for("the suite's pools to be gone", SOON, async || {
            Ok(pools
                .list(&ListParams::default())
                .await?
                .items
                .is_empty()
                .then_some(()))
        })
        .await?;
        let left = self.entries().await;
        let sets = self.scale_sets().await;
        // A job that nobody will take, too.
        self.github.delete_repository(&self.repository).await?;
        example::delete_namespace(&self.client, &self.namespace).await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        self.wait_for("the suite's namespace to be gone", SOON, async || {
            Ok(namespaces
                .get_opt(&self.namespace)
                .await?
                .is_none()
                .then_some(()))
        })
        .await?;
        let left = left?;
        ensure!(left.is_empty(), "runners are left on GitHub: {left:?}");
        let sets = sets?;
        ensure!(sets.is_empty(), "scale sets are left on GitHub: {sets:?}");
        Ok(())
    }
}

/// Whether a call asks how the jobs of a run ended: one for each run, whatever the number of its runners.
pub fn is_read_of_jobs(call: &Seen) -> bool {
    call.method == "GET" && call.path.contains("/actions/runs/") && call.path.contains("/jobs?")
}

/// The labels of a runner, as GitHub has them.
pub(super) fn labels(runner: &Value) -> Vec<String> {
    let labels = runner["labels"].as_array().into_iter().flatten();
    labels
        .filter_map(|label| label.as_str().map(str::to_owned))
        .collect()
}

/// A template whose agent has a variable in its environment.
pub(super) fn agent_with(name: &str, value: &str) -> Value {
    let container = json!({
        "name": "runner",
        "image": example::AGENT,
        "env": [{"name": name, "value": value}],
    });
    json!({"spec": {"containers": [container]}})
}

/// A workflow by the text of its file.
pub(crate) fn workflow(file: &str, text: &str) -> NewWorkflow {
    NewWorkflow {
        file: file.to_owned(),
        content: Some(text.to_owned()),
        ..NewWorkflow::default()
    }
}

/// A job of a workflow, with one step.
pub(crate) fn job(key: &str, labels: &[&str], script: &str) -> JobTemplate {
    JobTemplate {
        key: key.to_owned(),
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        steps: vec![StepTemplate {
            name: "step".to_owned(),
            run: script.to_owned(),
        }],
        ..JobTemplate::default()
    }
}

/// Merges objects; anything else replaces what was there, and null removes it.
pub(crate) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, from) => *into = from,
    }
}
