//! The guide of the playground, by the commands that stand on its page, with the programs that `cargo e2e up` puts on the PATH.
//! The cluster is the suite's own instead of one of `up`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use github_simulator::control::StartedRun;

use super::{Ctx, SOON, docs::blocks};
use crate::{
    cluster::may_have_node,
    example,
    images::Profile,
    on_path, paths,
    process::{find, output},
    simulator,
};

/// What the page needs of the machine beside what is built.
const NEEDED: [&str; 3] = ["bash", "curl", "python3"];
/// What is on the PATH, and how each is asked who it is.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("kubectl", "kubectl version --client", "Client Version"),
    ("kubectl-cudarunner", "kubectl cudarunner --help", "status"),
    ("helm", "helm version --short", "v"),
];
const GET_POOL: &str = "kubectl --namespace ci get cudarunner tensor-wasm";
const WAIT: &str = "kubectl --namespace ci wait cudarunner/tensor-wasm --timeout=180s";

/// Why it cannot be run here, where it cannot.
pub(super) fn lacks() -> Option<String> {
    if !may_have_node() {
        return Some("it runs pods, which needs root".to_owned());
    }
    let missing = NEEDED.into_iter().find(|program| find(program).is_none())?;
    Some(format!("{missing} is not on the PATH"))
}

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    let page = Page::open(ctx).await?;
    programs(&page).await?;
    pool(&page).await?;
    job(ctx, &page).await?;
    broken_gpus(ctx, &page).await?;
    pull_request(ctx, &page).await?;
    // And nothing of it is left for others
    page.run("kubectl --namespace ci delete cudarunner tensor-wasm --timeout=180s")
        .await?;
    example::delete_namespace(&ctx.client, "ci").await
}

/// Each program is the one in the folder, and runs.
async fn programs(page: &Page) -> Result<()> {
    for (name, command, word) in PROGRAMS {
        let found = page.run(&format!("command -v {name}")).await?;
        let expected = page.programs.join(name);
        ensure!(
            found.trim() == expected.to_string_lossy(),
            "{name}: {found}"
        );
        let said = page.run(command).await?;
        ensure!(said.contains(word), "{command}: {said}");
    }
    Ok(())
}

/// The pool is applied, and proves itself.
async fn pool(page: &Page) -> Result<()> {
    let block = page.block("kubectl apply --filename")?;
    let block = block.replace("…/example.yaml", &page.example.to_string_lossy());
    // A watch has no end.
    let lines = block.lines().filter(|line| !line.contains("--watch"));
    page.run(&lines.collect::<Vec<_>>().join("\n")).await?;
    page.run(&format!("{WAIT} --for=condition=WorkflowVerified"))
        .await?;
    Ok(())
}

/// A job is queued, runs, and is told of.
async fn job(ctx: &Ctx, page: &Page) -> Result<()> {
    let queued = page.run(page.block("/_sim/jobs --json")?).await?;
    let queued: StartedRun = serde_json::from_str(&queued)?;
    let job = queued.jobs.first().context("no job was queued")?;
    ctx.succeeded(*job).await?;
    let block = page.block("/_sim/jobs/JOB/log")?;
    let block = block.replace("/JOB", &format!("/{job}"));
    // What the operator knows of the job comes a moment after its end.
    let said = ctx
        .wait_for("the job to be told of", SOON, async || {
            Ok(Some(page.run(&block).await?))
        })
        .await?;
    ensure!(said.contains("device 0"), "{said}");
    ensure!(said.contains("hello"), "{said}");
    Ok(())
}

/// GPUs are broken and made whole, and the pool says so.
async fn broken_gpus(ctx: &Ctx, page: &Page) -> Result<()> {
    page.run(&format!("{WAIT} --for=jsonpath={{.status.online}}=1"))
        .await?;
    page.run(page.block("cat > gpus.py")?).await?;
    let block = page.block("delete pods --selector")?;
    let (delete, why) = block.split_once('\n').context("one command is missing")?;
    page.run(delete).await?;
    ctx.wait_for("the broken GPU to be named", SOON, async || {
        let said = page.run(why).await?;
        Ok(said.contains("are wrong").then_some(()))
    })
    .await?;
    page.run(page.block("python3 gpus.py '[]'")?).await?;
    Ok(())
}

/// A pull request has its jobs required.
async fn pull_request(ctx: &Ctx, page: &Page) -> Result<()> {
    let started = page.run(page.block("/_sim/runs --json")?).await?;
    let started: StartedRun = serde_json::from_str(&started)?;
    ensure!(started.jobs.len() == 4, "{started:?}");
    for job in &started.jobs {
        ctx.succeeded(*job).await?;
    }
    page.run(page.block("verify tensor-wasm --follow")?).await?;
    let required = format!("{GET_POOL} --output jsonpath='{{.status.requiredChecks}}'");
    ctx.wait_for("the jobs to be required", SOON, async || {
        let said = page.run(&required).await?;
        Ok(said.contains("cust-unified-memory").then_some(()))
    })
    .await
}

/// The page, and a shell as its reader has one.
#[derive(Clone, Debug)]
struct Page {
    blocks: Vec<String>,
    /// Where its commands run.
    dir: PathBuf,
    /// What `up` puts on the PATH.
    programs: PathBuf,
    example: PathBuf,
    variables: Vec<(&'static str, String)>,
}

impl Page {
    async fn open(ctx: &Ctx) -> Result<Self> {
        let text = paths::repository().join("docs/guides/playground.md");
        let text = fs::read_to_string(text)?;
        let cluster = &ctx.cluster;
        let dir = cluster.dir.join("playground");
        fs::create_dir_all(&dir)?;
        let shown = |path: PathBuf| path.to_string_lossy().into_owned();
        let programs = on_path::folder(cluster, Profile::Dev)?;
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(Self {
            blocks: blocks(&text, "sh"),
            dir,
            example: example::prepare(cluster, &ctx.client, &ctx.github).await?,
            variables: vec![
                ("PATH", format!("{}:{path}", programs.display())),
                ("KUBECONFIG", shown(cluster.kubeconfig())),
                ("GITHUB", cluster.github.clone()),
                ("CA", shown(simulator::authority_path(&cluster.dir))),
                ("GPUS", shown(cluster.devices())),
            ],
            programs,
        })
    }

    /// The commands among which these words stand.
    fn block(&self, words: &str) -> Result<&str> {
        let mut blocks = self.blocks.iter();
        let found = blocks.find(|block| block.contains(words));
        let found = found.with_context(|| format!("the page has no `{words}` any more"))?;
        Ok(found)
    }

    /// What commands print.
    async fn run(&self, commands: &str) -> Result<String> {
        let mut bash = Command::new("bash");
        bash.args(["-eo", "pipefail", "-c", commands])
            .current_dir(&self.dir)
            .envs(self.variables.iter().cloned());
        tokio::task::spawn_blocking(move || output(&mut bash)).await?
    }
}
