//! GPUs that break: before a job, and in the middle of one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cudarunner_crds::Rerun;
use github_simulator::{
    control::{JobView, NewJob},
    state::{Conclusion, StepTemplate},
};
use serde_json::Value;

use super::{DEVICES, POOL, SOON, Stage};
use crate::{
    cluster::{Cluster, Offer},
    device_plugin::state::{self, Device},
    node, simulator,
    wait::wait_for,
};

/// How long a job may take that waits for a node.
const LONG: Duration = Duration::from_mins(2);
/// Computes, each step of the way checked.
const CHECK: &str = "LD_LIBRARY_PATH=/usr/local/nvidia/lib64 cuda-smoke check";
/// Trains until its GPU is gone; another attempt computes once.
const TRAIN: &str = r#"
[ "$GITHUB_RUN_ATTEMPT" = 1 ] || LD_LIBRARY_PATH=/usr/local/nvidia/lib64 exec cuda-smoke check
echo epoch 1
while : </dev/nvidiactl; do sleep 0.1; done 2>/dev/null
echo the GPU is gone
exit 1
"#;

impl Stage<'_> {
    /// A GPU that computes wrongly gets no job; a healthy one on another node does.
    pub(super) async fn broken_gpu(&self) -> Result<()> {
        let machine = self.cluster.add_second_node(1, Offer::Resource).await?;
        Cluster::cordon(&self.client, machine.name, true).await?;
        for number in 0..DEVICES {
            self.flips_a_bit(number)?;
        }
        self.story.step(&format!(
            "every GPU of the node {} computes wrongly now: it flips one bit. A second node, {}, takes no pods yet",
            node::NAME,
            machine.name
        ));
        // Only the runners of the example: its workflow has its turn below.
        self.apply(&self.runners_alone()?)?;
        let job = self.queue("patient", CHECK).await?;
        self.story
            .step("kubectl apply: a pool for one runner. A job, `patient`, is queued for it");
        let resource = format!("cudarunner/{POOL}");
        let broken = "--for=condition=GpuHealthy=False";
        self.kubectl(&["wait", broken, &resource, "--timeout=60s"])?;
        let waiting = self.github.job(job).await?;
        ensure!(waiting.started_at.is_none(), "a broken GPU got a job");
        self.story.step(
            "the gate has found that. GitHub has heard of no runner, and so `patient` waits. Why?",
        );
        // The operator reads the queue when somebody asks for the pool.
        self.plugin(&["why", POOL, "--wait", "30"]).await?;
        self.quote(&["why", &self.page_of(&waiting)]).await?;
        Cluster::cordon(&self.client, machine.name, false).await?;
        self.story.step(&format!("{} takes pods now", machine.name));
        let done = self.ended(job).await?;
        self.finished(&done).await?;
        self.kubectl(&["delete", "cudarunner", POOL, "--timeout=120s"])?;
        self.cluster.remove_second_node(&self.client).await?;
        state::reset(&self.cluster.devices(), DEVICES)?;
        self.story
            .step("the GPUs are repaired, the pool and the second node are gone");
        Ok(())
    }

    /// A GPU that breaks under a job: the next gate proves it, and the job is run again, on another one.
    pub(super) async fn breaks_under_a_job(&self) -> Result<()> {
        let mut manifest = self.runners_alone()?;
        manifest.spec.replicas = Some(i32::try_from(DEVICES)?);
        manifest.spec.rerun = Some(Rerun {
            on_gpu_fault: true,
            on_node_loss: false,
            limit: 1,
        });
        self.apply(&manifest)?;
        self.story.step(&format!(
            "kubectl apply: the pool with spec.rerun.onGpuFault, and a runner for each of the {DEVICES} GPUs"
        ));
        let resource = format!("cudarunner/{POOL}");
        let online = format!("--for=jsonpath={{.status.online}}={DEVICES}");
        self.kubectl(&["wait", &online, &resource, "--timeout=90s"])?;
        let job = self.queue("train", TRAIN).await?;
        wait_for("the job's own steps", SOON, async || {
            Ok(self
                .github
                .job_log(job)
                .await?
                .contains("epoch 1")
                .then_some(()))
        })
        .await?;
        let busy = "--for=jsonpath={.status.busy}=1";
        self.kubectl(&["wait", busy, &resource, "--timeout=60s"])?;
        let runner = self.github.job(job).await?.runner;
        let runner = runner.context("the job has no runner")?;
        let uuid = self.device_of(&runner).await?;
        self.story.step(&format!(
            "a job, `train`, computes on {runner}, with the GPU {uuid}"
        ));
        self.quote(&["top"]).await?;

        let last = uuid.rsplit('-').next().unwrap_or_default();
        self.flips_a_bit(usize::from_str_radix(last, 16)?)?;
        state::take(&self.cluster.devices(), &uuid)?;
        self.story.step(
            "its GPU falls off in the middle of the job, and computes wrongly when it is back",
        );
        let red = self.ended(job).await?;
        ensure!(red.conclusion == Some(Conclusion::Failure), "{red:?}");
        self.story.step("`train` is red, by no fault of its author's. The next gate on that GPU tells whose fault it was");
        let second = self.second_attempt(&red).await?;
        let done = self.ended(second.id).await?;
        let other = self.finished(&done).await?;
        ensure!(other != runner, "the same runner had both attempts");
        let page = self.page_of(&done);
        // GitHub's word on a job is read a moment after its end.
        wait_for("both attempts with their ends", LONG, async || {
            let said = self.plugin(&["why", &page]).await.unwrap_or_default();
            Ok((said.contains(": success") && said.contains(": failure")).then_some(()))
        })
        .await?;
        self.quote(&["why", &page]).await?;
        self.quote(&["status", POOL]).await?;
        self.kubectl(&["delete", "cudarunner", POOL, "--timeout=120s"])?;
        state::reset(&self.cluster.devices(), DEVICES)?;
        self.story.step("the GPU is repaired, the pool is gone");
        Ok(())
    }

    fn flips_a_bit(&self, number: usize) -> Result<()> {
        let mut device = Device::healthy(number, 0);
        device.compute_wrongly();
        state::write(&self.cluster.devices(), number, &device)
    }

    /// Queues a job for the pool.
    async fn queue(&self, name: &str, script: &str) -> Result<u64> {
        let job = NewJob {
            repository: simulator::REPOSITORY.to_owned(),
            name: name.to_owned(),
            labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
            steps: vec![StepTemplate {
                name: name.to_owned(),
                run: script.to_owned(),
            }],
            ..NewJob::default()
        };
        let run = self.github.queue(&job).await?;
        run.jobs.first().copied().context("the run has no job")
    }

    async fn ended(&self, job: u64) -> Result<JobView> {
        wait_for("the job to end", LONG, async || {
            let job = self.github.job(job).await?;
            Ok(job.conclusion.is_some().then_some(job))
        })
        .await
    }

    /// The UUID of a runner's device, as the status has it.
    async fn device_of(&self, runner: &str) -> Result<String> {
        wait_for("the runner's device in the status", SOON, async || {
            let pool = self.kubectl(&["get", "cudarunner", POOL, "--output", "json"])?;
            let pool: Value = serde_json::from_str(&pool)?;
            let mut runners = pool["status"]["runners"].as_array().into_iter().flatten();
            let its = runners.find(|entry| entry["name"] == runner);
            let uuid = its.and_then(|entry| entry["devices"][0].as_str());
            Ok(uuid.map(str::to_owned))
        })
        .await
    }

    /// The job of the run's second attempt, once there is one.
    async fn second_attempt(&self, red: &JobView) -> Result<JobView> {
        wait_for("the job to be run again", LONG, async || {
            let jobs = self.github.jobs().await?.into_iter();
            let mut again = jobs.filter(|job| job.run == red.run && job.attempt == 2);
            Ok(again.next())
        })
        .await
    }
}
