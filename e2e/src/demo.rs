//! The story of one pool on a fresh machine: from nothing to a proven pool whose jobs are required, and back to nothing.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::JobContainers;
use futures::{StreamExt as _, TryStreamExt as _};
use gate_report::Report;
use github_simulator::{
    control::{Client as GitHub, JobView, NewJob, NewRun, UpdateRepository},
    state::{Conclusion, StepTemplate},
};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Offer, Options, may_have_node},
    deploy,
    device_plugin::state::{self, Device},
    example, gpu,
    node::{self, Machine},
    process::output,
    report::Story,
    simulator,
    suites::context::workflow,
    wait::wait_for,
};

/// The example's namespace and name.
const NAMESPACE: &str = "ci";
const POOL: &str = "tensor-wasm";
/// GPUs of the first node.
const DEVICES: usize = 4;
/// Jobs of the workflow.
const JOBS: usize = 4;
/// A workflow whose job brings its image, and the image of ours that stands for it.
const CONTAINER_JOB: &str = r"
name: CUDA image
on: workflow_dispatch
jobs:
  cuda-image:
    runs-on: [self-hosted, cuda]
    container:
      image: nvidia/cuda:12.4.1-devel-ubuntu22.04
      options: --gpus all
    steps:
      - run: nvcc --version
      - run: nvidia-smi -L
";
const CUDA_IMAGE: &str = "docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04";
/// Longest wait for one thing.
const SOON: Duration = Duration::from_mins(2);

/// Tells it, and takes the cluster down, whatever comes.
pub async fn run(options: Options, story: &Story) -> Result<()> {
    if !may_have_node() {
        bail!(
            "the demo runs pods, and that needs root: start it again as root, or see `cargo e2e up` for a cluster of simulated nodes"
        );
    }
    let name = format!("demo-{}", std::process::id());
    let cluster = Cluster::up(&name, options, story).await?;
    let told = tell(&cluster, options, story).await;
    let down = tokio::task::spawn_blocking({
        let cluster = cluster.clone();
        move || cluster.down()
    });
    down.await??;
    told?;
    story.step("the cluster is gone, and nothing of it is left");
    Ok(())
}

async fn tell(cluster: &Cluster, options: Options, story: &Story) -> Result<()> {
    deploy::install(cluster, options.profile).await?;
    story.step("operator installed by Helm");
    let client = cluster.client().await?;
    let github = simulator::client(&cluster.dir, &cluster.github)?;
    let manifest = example::prepare(cluster, &client, &github).await?;
    let stage = Stage {
        cluster,
        client,
        github,
        story,
    };
    let events = tokio::spawn(recount(stage.client.clone(), story.clone()));
    let end = async {
        stage.broken_gpu().await?;
        let before = stage.github.state().await?.lasting;
        stage.pull_request().await?;
        stage.first_runner(&manifest).await?;
        stage.verification().await?;
        stage.required_checks().await?;
        stage.deletion(&before).await?;
        stage.container_job().await
    }
    .await;
    events.abort();
    end
}

/// What every act of the story needs.
struct Stage<'a> {
    cluster: &'a Cluster,
    client: Client,
    github: GitHub,
    story: &'a Story,
}

impl Stage<'_> {
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.cluster.kubectl(NAMESPACE).args(arguments))
    }

    /// A GPU that computes wrongly gets no job; a healthy one on another node does.
    async fn broken_gpu(&self) -> Result<()> {
        let machine = self.cluster.add_second_node(1, Offer::Resource).await?;
        Cluster::cordon(&self.client, machine.name, true).await?;
        self.flip_bits()?;
        self.story.step(&format!(
            "every GPU of {} flips one bit; a second node, {}, is not ready for pods yet",
            node::NAME,
            machine.name
        ));
        // Only the runners of the example: its workflow has its turn below.
        let mut manifest = example::manifest(&self.cluster.github)?;
        manifest.spec.verify = None;
        manifest.spec.required_checks = None;
        let path = self.cluster.dir.join("broken-gpu.yaml");
        std::fs::write(&path, serde_saphyr::to_string(&manifest)?)?;
        self.kubectl(&["apply", "--filename", &path.to_string_lossy()])?;
        let job = NewJob {
            repository: simulator::REPOSITORY.to_owned(),
            name: "patient".to_owned(),
            labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
            steps: vec![StepTemplate {
                name: "check".to_owned(),
                run: "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check".to_owned(),
            }],
            ..NewJob::default()
        };
        let run = self.github.queue(&job).await?;
        let job = *run.jobs.first().context("the run has a job")?;
        let resource = format!("cudarunner/{POOL}");
        self.kubectl(&[
            "wait",
            "--for=condition=GpuHealthy=False",
            &resource,
            "--timeout=60s",
        ])?;
        let path = "jsonpath={.status.quarantine[0].node}{\": \"}{.status.quarantine[0].message}";
        let found = self.kubectl(&["get", &resource, "--output", path])?;
        self.story.step(&format!("  in quarantine: {found}"));
        let waiting = self.github.job(job).await?;
        ensure!(waiting.started_at.is_none(), "a broken GPU got a job");
        self.story
            .step("the job `patient` waits: GitHub has not heard of any runner");
        Cluster::cordon(&self.client, machine.name, false).await?;
        let done = wait_for("the job to end", Duration::from_mins(2), async || {
            let job = self.github.job(job).await?;
            Ok(job.conclusion.is_some().then_some(job))
        })
        .await?;
        let runner = self.finished(&done).await?;
        self.story.step(&format!(
            "{} takes pods now: the runner {runner} came up there and did the job",
            machine.name
        ));
        self.kubectl(&["delete", "cudarunner", POOL, "--timeout=120s"])?;
        self.cluster.remove_second_node(&self.client).await?;
        state::reset(&self.cluster.devices(), DEVICES)?;
        self.story
            .step("the GPUs are fixed, the second node is gone");
        Ok(())
    }

    fn flip_bits(&self) -> Result<()> {
        for number in 0..DEVICES {
            let mut device = Device::healthy(number, 0);
            let wrong = json!({"kernel": "vector_add", "nth": 7, "flipBit": 3, "device": 0});
            device.store_faults.push(wrong);
            state::write(&self.cluster.devices(), number, &device)?;
        }
        Ok(())
    }

    /// One `kubectl apply`, and a runner is idle on GitHub.
    async fn first_runner(&self, manifest: &Path) -> Result<()> {
        let start = Instant::now();
        self.kubectl(&["apply", "--filename", &manifest.to_string_lossy()])?;
        self.story
            .step("kubectl apply: the example's CudaRunner, the whole of it, for one runner");
        let idle = self.idle().await?;
        self.story.measure("apply to idle", start.elapsed());
        self.story.step(&format!(
            "GitHub has the runner {idle} as idle, with the labels self-hosted and cuda"
        ));
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        for line in told(&report(&pods, &idle).await?) {
            self.story.step(&format!("  gate: {line}"));
        }
        let resource = format!("cudarunner/{POOL}");
        self.kubectl(&["wait", "--for=condition=Ready", &resource, "--timeout=60s"])?;
        for line in self.kubectl(&["get", "cudarunners"])?.lines() {
            self.story.step(&format!("  {line}"));
        }
        Ok(())
    }

    /// Waits until GitHub has an idle runner.
    async fn idle(&self) -> Result<String> {
        wait_for("an idle runner", Duration::from_mins(2), async || {
            let state = self.github.state().await?;
            let runners = state.passing["runners"]
                .as_array()
                .context("GitHub's state lists no runners")?;
            let mut idle = runners
                .iter()
                .filter(|runner| runner["online"] == true && runner["busy"] == false);
            let name = idle.find_map(|runner| runner["name"].as_str());
            Ok(name.map(str::to_owned))
        })
        .await
    }

    /// A pull request of before: GitHub knows from it under which names the jobs report.
    async fn pull_request(&self) -> Result<()> {
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

    /// The pool runs its workflow: four jobs, one after the other on fresh runners.
    async fn verification(&self) -> Result<()> {
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
    async fn required_checks(&self) -> Result<()> {
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

    /// `kubectl wait` for a condition, and what it says.
    fn wait(&self, condition: &str) -> Result<()> {
        let resource = format!("cudarunner/{POOL}");
        let awaited = format!("--for=condition={condition}");
        self.kubectl(&["wait", &awaited, &resource, "--timeout=90s"])?;
        let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].message}}");
        let told = self.kubectl(&["get", &resource, "--output", &path])?;
        self.story.step(&format!("  {condition}: {told}"));
        Ok(())
    }

    /// Tells of a job that has ended; gives its runner.
    async fn finished(&self, job: &JobView) -> Result<String> {
        let log = self.github.job_log(job.id).await?;
        ensure!(
            job.conclusion == Some(Conclusion::Success),
            "the job {} ended with {:?}:\n{log}",
            job.name,
            job.conclusion
        );
        let (Some(runner), Some(started)) = (&job.runner, job.started_at) else {
            bail!("the job {} has ended without a runner", job.name);
        };
        let waited = Duration::try_from(started.duration_since(job.queued_at)).unwrap_or_default();
        self.story
            .measure(&format!("{} queued to picked up", job.name), waited);
        let result = log
            .lines()
            .rfind(|line| line.contains("test result:") || line.contains("Finished"));
        // Each line of a log begins with its time.
        let result = result
            .and_then(|line| line.split_once(' '))
            .map_or("success", |(_, text)| text.trim());
        self.story
            .step(&format!("  {} on {runner}: {result}", job.name));
        Ok(runner.clone())
    }

    /// `kubectl delete`, and GitHub is as it was.
    async fn deletion(&self, before: &Value) -> Result<()> {
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

impl Stage<'_> {
    /// A job in an image of its own, on the device that the gate has proven.
    async fn container_job(&self) -> Result<()> {
        let node = Machine::first(&self.cluster.dir);
        node.tag(&self.cluster.tools, example::JOB_CUDA, CUDA_IMAGE)?;
        let mut manifest = example::manifest(&self.cluster.github)?;
        manifest.spec.verify = None;
        manifest.spec.required_checks = None;
        // The job's image has the toolkit; the runner's is looked at for the agent alone.
        manifest.spec.preflight = None;
        manifest.spec.job_containers = Some(JobContainers::default());
        let path = self.cluster.dir.join("container-jobs.yaml");
        std::fs::write(&path, serde_saphyr::to_string(&manifest)?)?;
        self.kubectl(&["apply", "--filename", &path.to_string_lossy()])?;
        self.story
            .step("kubectl apply: the same pool with spec.jobContainers, for jobs that bring their images");
        let idle = self.idle().await?;
        let file = "cuda-image.yml";
        let update = UpdateRepository {
            workflows: vec![workflow(file, CONTAINER_JOB)],
            ..UpdateRepository::default()
        };
        let repository = simulator::REPOSITORY.to_owned();
        self.github.update_repository(&repository, &update).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let proven = report(&pods, &idle).await?;
        let proven = proven.devices.first().context("no device was proven")?;
        let proven = proven.uuid.clone();
        let run = NewRun {
            repository,
            workflow: file.to_owned(),
            event: "workflow_dispatch".to_owned(),
            ..NewRun::default()
        };
        let run = self.github.start_run(&run).await?;
        let done = wait_for("the job to end", SOON, async || {
            let job = self.github.job(run.jobs[0]).await?;
            Ok(job.conclusion.is_some().then_some(job))
        })
        .await?;
        self.finished(&done).await?;
        let log = self.github.job_log(done.id).await?;
        let seen = log.lines().find_map(|line| line.split_once("UUID: "));
        let (_, seen) = seen.context("the job saw no device")?;
        let seen = seen.trim_end_matches(')');
        self.story.step(&format!("  the gate has proven {proven}"));
        self.story.step(&format!("  the job computes on {seen}"));
        ensure!(seen == proven, "these are two devices");
        self.kubectl(&["delete", "cudarunner", POOL, "--timeout=120s"])?;
        Ok(())
    }
}

/// The gate's verdict in a few lines.
fn told(report: &Report) -> Vec<String> {
    let driver = report.driver.clone().unwrap_or_default();
    let unknown = || "unknown".to_owned();
    let mut lines = vec![format!(
        "driver for CUDA {}, {}",
        driver.cuda_version.unwrap_or_else(unknown),
        driver.library.unwrap_or_else(unknown)
    )];
    lines.extend(report.devices.iter().map(|device| {
        format!(
            "device {}: {}, {}, compute capability {}, {} GiB, {} concurrent managed access",
            device.ordinal,
            device.name,
            device.uuid,
            device.compute_capability,
            device.memory_bytes >> 30,
            if device.concurrent_managed_access {
                "with"
            } else {
                "without"
            }
        )
    }));
    lines.push(format!(
        "{:?} in {:.0} ms",
        report.outcome, report.timings.total_ms
    ));
    lines
}

/// The gate's report in a pod's termination message. The kubelet writes it to the API a moment after the gate has ended, and a
/// runner can be idle by then.
async fn report(pods: &Api<Pod>, pod: &str) -> Result<Report> {
    wait_for("the gate's report in the pod", SOON, async || {
        let shown = pods.get(pod).await?;
        Ok(gpu::report(&shown).map(serde_json::from_str).transpose()?)
    })
    .await
}

/// Tells the Events of the namespace as they come, until it is stopped.
async fn recount(client: Client, story: Story) {
    let events: Api<Event> = Api::namespaced(client, NAMESPACE);
    let about_pools = watcher::Config::default().fields("involvedObject.kind=CudaRunner");
    let mut stream = watcher(events, about_pools)
        .default_backoff()
        .applied_objects()
        .into_stream()
        .boxed();
    let mut told = BTreeSet::new();
    loop {
        let Ok(Some(event)) = stream.try_next().await else {
            continue;
        };
        if event.metadata.uid.is_some_and(|uid| told.insert(uid)) {
            let (reason, message) = (
                event.reason.unwrap_or_default(),
                event.message.unwrap_or_default(),
            );
            story.step(&format!("  event {reason}: {message}"));
        }
    }
}
