//! Jobs that bring their containers, by workflow files as people have them: each would run on GitHub as it stands, with the
//! same outcome. The node has images of the names in them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use github_simulator::{
    control::{JobView, UpdateRepository},
    state::Conclusion::{self, Failure, Success},
};
use serde_json::{Value, json};

use super::{Ctx, context::workflow};
use crate::{
    images::LARGE,
    node::Machine,
    registry::{self, Registry},
};

/// Images of the workflows, and which of ours stands for each.
const IMAGES: [(&str, &str); 9] = [
    ("docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04", "job-cuda"),
    ("docker.io/nvidia/cuda:11.8.0-devel-ubuntu22.04", "job-cuda"),
    (
        "docker.io/pytorch/pytorch:2.4.1-cuda12.4-cudnn9-runtime",
        "job-cuda",
    ),
    ("docker.io/rapidsai/ci-conda:latest", "job-cuda"),
    ("docker.io/library/postgres:16", "service-db"),
    ("docker.io/library/alpine:3.20", "job-alpine"),
    ("docker.io/vllm/vllm-openai:v0.6.3", "job-entrypoint"),
    ("gcr.io/distroless/static-debian13:latest", "job-static"),
    ("quay.io/jupyter/pytorch-notebook:cuda12-latest", "job-user"),
];
/// Runners of the pool. The node's last device is for the one whose jobs start as root.
const RUNNERS: usize = 3;
/// How long a job may take, with all that are before it.
pub(super) const LIMIT: Duration = Duration::from_mins(3);

/// A workflow file, and what becomes of each of its jobs: its end, and words of its log.
struct Case {
    file: &'static str,
    text: &'static str,
    jobs: &'static [Job],
}

struct Job {
    name: &'static str,
    ends: Conclusion,
    says: &'static [&'static str],
}

macro_rules! case {
    ($file:literal, $($name:literal $ends:ident $says:expr),+) => {
        Case {
            file: $file,
            text: include_str!(concat!("container_jobs/", $file)),
            jobs: &[$(Job { name: $name, ends: $ends, says: &$says }),+],
        }
    };
}

/// What no log has: what is not to run, and what is not to be read.
const NEVER: [&str; 3] = ["this must not run", "this is a hidden-word", PASSWORD];
const PASSWORD: &str = "correct-horse-battery";

const CASES: &[Case] = &[
    case!("cuda-devel.yml", "build" Success
        ["Syncing repository", "release 12.4", "UUID: ", "in /__w/", "options: --gpus"]),
    case!("pytorch-shm.yml", "test" Success
        ["options: --ipc", "options: --shm-size", "greeting=good day", " 49152 "]),
    case!("rapids.yml", "conda-python-tests" Success
        ["UUID: ", "build type pull-request"]),
    case!("postgres.yml", "test" Success
        ["the database takes connections", "and at localhost"]),
    case!("alpine.yml", "lint" Success
        ["Syncing repository", "bash: none"]),
    case!("matrix.yml",
        "test (11.8.0)" Success ["for CUDA 11.8.0"],
        "test (12.4.1)" Success ["for CUDA 12.4.1"]),
    case!("user.yml",
        "as-the-image-says" Success ["user 1234"],
        "not-root" Failure ["--user: the image's own user is 1234", "runAsUser: 0"],
        "as-root" Success ["user 0, home /github/home"]),
    case!("entrypoint.yml", "test" Success ["UUID: "]),
    case!("commands.yml", "tell" Success
        ["tool runs", "this is a ***", "level job in tools", "a warning of the compiler"]),
    case!("fails.yml", "test" Failure
        ["Process completed with exit code 7", "the report is written"]),
    case!("static.yml", "scan" Success ["Syncing repository"]),
    case!("refused.yml",
        "privileged" Failure ["--privileged: ", "--cap-add: "],
        "host-folder" Failure ["volumes: /var/run: "],
        "same-port" Failure ["have the same port 6379"],
        "no-container" Failure ["Jobs without a job container are forbidden"],
        "docker-action" Failure ["Actions that bring their own container"]),
];

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    // Given a pool for jobs with containers, and a repository with the workflows
    images(ctx)?;
    let secrets = [("DATABASE_PASSWORD".to_owned(), PASSWORD.to_owned())];
    let workflows = CASES.iter().map(|case| workflow(case.file, case.text));
    let update = UpdateRepository {
        workflows: workflows.collect(),
        secrets: secrets.into(),
        ..UpdateRepository::default()
    };
    ctx.github
        .update_repository(&ctx.repository, &update)
        .await?;
    ctx.apply(&pool(ctx, "containers", RUNNERS)).await?;
    let mut root = pool(ctx, "root", 1);
    root["spec"]["labels"] = json!(["self-hosted", "cuda-root"]);
    root["spec"]["jobContainers"] = json!({"runAsUser": 0});
    ctx.apply(&root).await?;
    the_proven_device_is_the_jobs(ctx).await?;

    // When all are started
    let mut started = vec![];
    for case in CASES {
        started.push((case, ctx.dispatch(case.file).await?));
    }

    // Then each job ends as it should, and its log says what it should
    let mut wrong = vec![];
    for (case, run) in started {
        for id in run.jobs {
            let view = ctx.ended_within(id, LIMIT).await?;
            if let Err(error) = as_expected(ctx, case, &view).await {
                wrong.push(format!("{}, job {}: {error:#}", case.file, view.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    a_private_image(ctx).await?;
    // And nobody is blamed
    let status = ctx.status("containers").await?;
    ensure!(status.quarantine.is_empty(), "{:?}", status.quarantine);
    ctx.delete("containers").await
}

/// The job sees the device that the gate has proven, and no other.
pub(super) async fn the_proven_device_is_the_jobs(ctx: &Ctx) -> Result<()> {
    ctx.write_workflow(workflow(
        "device.yml",
        include_str!("container_jobs/device.yml"),
    ))
    .await?;
    let job = ctx.dispatch("device.yml").await?.jobs[0];
    let runner = ctx.picked_up(job).await?.runner.unwrap_or_default();
    let report = ctx.report(&runner).await?;
    let proven = report["devices"][0]["uuid"]
        .as_str()
        .context("the gate's report names no device")?;
    ctx.github.release(job).await?;
    let view = ctx.ended_within(job, LIMIT).await?;
    let log = ctx.github.job_log(job).await?;
    let seen = log.matches("UUID: ").count();
    ensure!(
        view.conclusion == Some(Success) && seen == 1 && log.contains(proven),
        "the gate has proven {proven}, and the job says: {log}"
    );
    Ok(())
}

/// An image that its registry gives to nobody without a password: the job's own.
async fn a_private_image(ctx: &Ctx) -> Result<()> {
    let registry = Registry::start(&ctx.cluster).await?;
    let small = registry.push("job-cuda").await?;
    // 3 GiB, which are zeros: the registry has little to send, and the node much to unpack.
    let large = registry.push(LARGE).await?;
    let pulled = async |file: &str, image: &str, password: &str| {
        let text = include_str!("container_jobs/registry.yml").replace("IMAGE", image);
        let secrets = [
            ("REGISTRY_USER", registry::USER),
            ("REGISTRY_PASSWORD", password),
        ];
        let update = UpdateRepository {
            workflows: vec![workflow(file, &text)],
            secrets: secrets
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..UpdateRepository::default()
        };
        ctx.github
            .update_repository(&ctx.repository, &update)
            .await?;
        let job = ctx.dispatch(file).await?.jobs[0];
        let view = ctx.ended_within(job, LIMIT).await?;
        let log = ctx.github.job_log(job).await?;
        ensure!(!log.contains(password), "the password is in the log: {log}");
        anyhow::Ok((view, log))
    };
    // With another one the job says what the registry said
    let (view, log) = pulled("wrong-password.yml", &small, "not-the-password").await?;
    ensure!(
        view.conclusion == Some(Failure) && log.contains("401") && log.contains(&small),
        "{log}"
    );
    let (view, log) = pulled("private.yml", &large, registry::PASSWORD).await?;
    ensure!(
        view.conclusion == Some(Success) && log.contains("UUID: "),
        "{log}"
    );
    Ok(())
}

async fn as_expected(ctx: &Ctx, case: &Case, view: &JobView) -> Result<()> {
    let log = ctx.github.job_log(view.id).await?;
    let job = case.jobs.iter().find(|job| job.name == view.name);
    let job = job.context("the suite does not know this job")?;
    let missing = job.says.iter().filter(|words| !log.contains(**words));
    let missing: Vec<_> = missing.collect();
    let found: Vec<_> = NEVER.iter().filter(|words| log.contains(**words)).collect();
    ensure!(
        view.conclusion == Some(job.ends) && missing.is_empty() && found.is_empty(),
        "it ended with {:?}; its log lacks {missing:?} and has {found:?}: {log}",
        view.conclusion
    );
    Ok(())
}

/// A pool whose jobs bring their containers.
pub(super) fn pool(ctx: &Ctx, name: &str, replicas: usize) -> Value {
    // In KiB, the size is in the log of the job that asks df.
    ctx.pool(
        name,
        json!({"replicas": replicas, "jobContainers": {}, "sharedMemory": "48Mi"}),
    )
}

/// The first node has the images of the workflows from now on.
pub(super) fn images(ctx: &Ctx) -> Result<()> {
    images_on(ctx, &Machine::first(&ctx.cluster.dir))
}

/// This node has them.
pub(super) fn images_on(ctx: &Ctx, node: &Machine) -> Result<()> {
    let tools = &ctx.cluster.tools;
    IMAGES
        .iter()
        .try_for_each(|(name, ours)| node.tag(tools, &format!("localhost/{ours}:dev"), name))
}
