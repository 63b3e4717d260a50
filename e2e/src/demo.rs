//! The story of one pool on a fresh machine: a GPU that is broken before a job, and one that breaks under a job; from nothing
//! to a proven pool whose jobs are required, and back to nothing.

mod broken;
mod container;
mod proven;
mod told;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cudarunner_crds::CudaRunner;
use github_simulator::{
    control::{Client as GitHub, JobView},
    state::Conclusion,
};
use kube::Client;
use serde_json::Value;

use crate::{
    cluster::{Cluster, Options, may_have_node},
    deploy, example,
    images::{Profile, artifact},
    process::output,
    report::Story,
    simulator,
    suites::port_forward::PortForward,
    wait::wait_for,
};

/// The example's namespace and name.
const NAMESPACE: &str = "ci";
const POOL: &str = "tensor-wasm";
/// GPUs of the first node.
const DEVICES: usize = 4;
/// Longest wait for one thing.
const SOON: Duration = Duration::from_mins(2);
/// From the apply of the example to its first runner.
pub(crate) const APPLY_TO_ONLINE: &str = "apply to online";
/// How a job waited, after its name.
pub(crate) const TO_PICKED_UP: &str = " queued to picked up";
/// What is said when the example is applied, and how what an Event says begins.
pub(crate) const APPLIED: &str = "kubectl apply: the example's CudaRunner";
pub(crate) const EVENT: &str = "  event ";
/// How the line with the page's address begins.
pub(crate) const INSTALLED: &str = "operator installed by Helm. Its fleet page is at http://";

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
    deploy::install(cluster, options.profile, &["fleetPage.enabled=true"]).await?;
    let client = cluster.client().await?;
    let github = simulator::client(&cluster.dir, &cluster.github)?;
    let manifest = example::prepare(cluster, &client, &github).await?;
    let page = PortForward::fleet_page(cluster).await?;
    let shown = page.get("/").await?;
    ensure!(shown.contains("<title>Fleet"), "that is no fleet: {shown}");
    story.step(&format!(
        "{INSTALLED}{} until the end of this story: open it, and watch",
        page.local
    ));
    let stage = Stage {
        cluster,
        profile: options.profile,
        client,
        github,
        story,
    };
    let events = tokio::spawn(told::recount(stage.client.clone(), story.clone()));
    let end = async {
        story.act("a GPU that computes wrongly gets no job");
        stage.broken_gpu().await?;
        story.act("a GPU breaks in the middle of a job");
        stage.breaks_under_a_job().await?;
        story.act("from one manifest to required checks, and back");
        let before = stage.github.state().await?.lasting;
        stage.pull_request().await?;
        stage.first_runner(&manifest).await?;
        stage.verification().await?;
        stage.required_checks().await?;
        stage.deletion(&before).await?;
        story.act("a job brings its own image");
        stage.container_job().await
    }
    .await;
    events.abort();
    end
}

/// What every act of the story needs.
struct Stage<'a> {
    cluster: &'a Cluster,
    profile: Profile,
    client: Client,
    github: GitHub,
    story: &'a Story,
}

impl Stage<'_> {
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        output(self.cluster.kubectl(NAMESPACE).args(arguments))
    }

    /// The example's pool, without its workflow.
    fn runners_alone(&self) -> Result<CudaRunner> {
        let mut manifest = example::manifest(&self.cluster.github)?;
        manifest.spec.verify = None;
        manifest.spec.required_checks = None;
        Ok(manifest)
    }

    fn apply(&self, manifest: &CudaRunner) -> Result<()> {
        let path = self.cluster.dir.join("pool.yaml");
        std::fs::write(&path, serde_saphyr::to_string(manifest)?)?;
        self.kubectl(&["apply", "--filename", &path.to_string_lossy()])?;
        Ok(())
    }

    /// What `kubectl cudarunner` says.
    async fn plugin(&self, arguments: &[&str]) -> Result<String> {
        let mut plugin = std::process::Command::new(artifact(self.profile, "kubectl-cudarunner"));
        plugin
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .args(arguments)
            .args(["--namespace", NAMESPACE]);
        tokio::task::spawn_blocking(move || output(&mut plugin)).await?
    }

    /// Shows what a reader would ask for, and the answer.
    async fn quote(&self, arguments: &[&str]) -> Result<()> {
        let said = self.plugin(arguments).await?;
        let command = format!("kubectl cudarunner {}", arguments.join(" "));
        self.story.quote(&command, &said);
        Ok(())
    }

    /// The page of a job on GitHub.
    fn page_of(&self, job: &JobView) -> String {
        let (github, repository) = (&self.cluster.github, &job.repository);
        format!(
            "{github}/{repository}/actions/runs/{}/job/{}",
            job.run, job.id
        )
    }

    /// Waits until GitHub has an idle runner.
    async fn idle(&self) -> Result<String> {
        self.runner("an idle runner", |runner| runner["busy"] == false)
            .await
    }

    /// Waits until GitHub has a runner online, which may have a job by then.
    async fn online(&self) -> Result<String> {
        self.runner("a runner online", |_| true).await
    }

    async fn runner(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<String> {
        wait_for(what, Duration::from_mins(2), async || {
            let state = self.github.state().await?;
            let runners = state.passing["runners"]
                .as_array()
                .context("GitHub's state lists no runners")?;
            let mut fitting = runners
                .iter()
                .filter(|runner| runner["online"] == true && is_it(runner));
            let name = fitting.find_map(|runner| runner["name"].as_str());
            Ok(name.map(str::to_owned))
        })
        .await
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
            .measure(&format!("{}{TO_PICKED_UP}", job.name), waited);
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
}
