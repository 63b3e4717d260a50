//! A job that brings its image.

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::JobContainers;
use github_simulator::control::{NewRun, UpdateRepository};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::{NAMESPACE, POOL, SOON, Stage, told::report};
use crate::{example, node::Machine, simulator, suites::context::workflow, wait::wait_for};

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

impl Stage<'_> {
    /// A job in an image of its own, on the device that the gate has proven.
    pub(super) async fn container_job(&self) -> Result<()> {
        let node = Machine::first(&self.cluster.dir);
        node.tag(&self.cluster.tools, example::JOB_CUDA, CUDA_IMAGE)?;
        let mut manifest = self.runners_alone()?;
        // The job's image has the toolkit; the runner's is looked at for the agent alone.
        manifest.spec.preflight = None;
        manifest.spec.job_containers = Some(JobContainers::default());
        self.apply(&manifest)?;
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
