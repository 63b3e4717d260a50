//! Jobs that may not use the GPU: none of their steps runs, whatever they say, and nobody is blamed.

use anyhow::{Context as _, Result, ensure};
use futures::try_join;
use github_simulator::{
    control::{JobView, NewRun},
    state::Conclusion::{Failure, Skipped, Success},
};
use serde_json::{Value, json};

use super::{
    Ctx, SOON, container_jobs,
    context::{merge, workflow},
    sample::sample,
};

/// A job that runs always, and tries to switch the look at it off.
const PLAIN: &str = r#"
on: push
jobs:
  test:
    runs-on: [self-hosted, cuda]
    env:
      CUDA_RUNNER_DIR: /tmp
      CUDA_SMOKE_ALLOW: '{"events":[],"refs":[],"forks":true}'
      GITHUB_EVENT_NAME: push
      ACTIONS_RUNNER_HOOK_JOB_STARTED: ''
      BASH_ENV: /dev/null
      PATH: /tmp
    steps:
      - {run: echo the first step}
      - {uses: simulated/stages@v1, if: always()}
      - {run: echo the last step, if: always()}
"#;
/// The same in its own container.
const CONTAINER: &str = r"
on: push
jobs:
  test:
    runs-on: [self-hosted, cuda-containers]
    container: docker.io/nvidia/cuda:12.4.1-devel-ubuntu22.04
    steps:
      - {run: echo the first step}
      - {run: echo the last step, if: always()}
";
/// A job that has nothing to hide.
const WELL: &str = r"
on: push
jobs:
  test: {runs-on: [self-hosted, LABEL], steps: [{run: echo the only step}]}
";

/// How a run is started, and why it is refused.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    event: &'static str,
    fork: bool,
    why: Option<&'static str>,
}

/// Cases of a sample of those with containers.
const SAMPLE: usize = 2;

const CASES: [Case; 5] = [
    Case {
        name: "target",
        event: "pull_request_target",
        fork: false,
        why: Some("started by pull_request_target on refs/heads/main, and spec.jobs.allow.events"),
    },
    Case {
        name: "fork",
        event: "pull_request",
        fork: true,
        why: Some("on refs/pull/1/merge with code from the fork stranger/cuda"),
    },
    Case {
        name: "schedule",
        event: "schedule",
        fork: false,
        why: Some("started by schedule on refs/heads/main"),
    },
    Case {
        name: "push",
        event: "push",
        fork: false,
        why: None,
    },
    Case {
        name: "pull-request",
        event: "pull_request",
        fork: false,
        why: None,
    },
];

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    container_jobs::images(ctx)?;
    let well = CONTAINER
        .replace("      - {run: echo the first step}\n", "")
        .replace(", if: always()", "");
    let plain = Kind {
        pool: "plain",
        hostile: PLAIN.to_owned(),
        well: WELL.replace("LABEL", "cuda"),
        spec: json!({}),
        cases: CASES.to_vec(),
    };
    let containers = Kind {
        pool: "containers",
        hostile: CONTAINER.to_owned(),
        well,
        spec: json!({"jobContainers": {}, "labels": ["self-hosted", "cuda-containers"]}),
        cases: sample(&ctx.namespace, CASES.to_vec(), SAMPLE, |case| case.name),
    };
    try_join!(of_a_pool(ctx, &plain), of_a_pool(ctx, &containers))?;
    Ok(())
}

/// A kind of pool, and what comes to it.
struct Kind {
    pool: &'static str,
    hostile: String,
    well: String,
    /// What its spec has beside the policy.
    spec: Value,
    cases: Vec<Case>,
}

impl Kind {
    fn file(&self, is_hostile: bool) -> String {
        let what = if is_hostile { "hostile" } else { "well" };
        format!("{}-{what}.yml", self.pool)
    }
}

async fn of_a_pool(ctx: &Ctx, kind: &Kind) -> Result<()> {
    // Given a pool that takes pushes and pull requests, but none from forks
    let pool = kind.pool;
    for (is_hostile, text) in [(true, &kind.hostile), (false, &kind.well)] {
        let file = workflow(&kind.file(is_hostile), text);
        ctx.write_workflow(file).await?;
    }
    let mut spec = json!({
        "replicas": 1,
        "jobs": {"allow": {
            "events": ["push", "pull_request"],
            "refs": ["refs/heads/main", "refs/pull/*/merge"],
        }},
    });
    merge(&mut spec, kind.spec.clone());
    ctx.apply(&ctx.pool(pool, spec)).await?;
    let mut refused = 0;
    for case in &kind.cases {
        ctx.idle(pool, 1).await?;
        // When a job of each kind comes
        let view = started(ctx, kind, case).await?;
        // Then it is refused, or it runs
        match case.why {
            Some(why) => {
                refused += 1;
                is_refused(ctx, &view, why).await?;
            }
            None => ensure!(view.conclusion == Some(Success), "{view:?}"),
        }
    }
    // And each refusal is on the resource and in an Event of its own
    let jobs = ctx.concluded(pool, kind.cases.len()).await?;
    let told = jobs.iter().filter(|job| job.refused.is_some());
    ensure!(told.count() == refused, "{jobs:#?}");
    ensure!(
        jobs.iter().all(|job| {
            let ends = if job.refused.is_some() {
                "failure"
            } else {
                "success"
            };
            job.conclusion.as_deref() == Some(ends)
        }),
        "{jobs:#?}"
    );
    for job in jobs.iter().filter(|job| job.refused.is_some()) {
        ctx.wait_for("the refusal's Event", SOON, async || {
            let events = ctx.events("JobNotAllowed").await?;
            let notes = events.iter().filter_map(|event| event.note.as_deref());
            let ours = notes.filter(|note| note.contains(&job.runner));
            Ok((ours.count() == 1).then_some(()))
        })
        .await?;
    }
    // And nobody is blamed for it: the next runner comes at once
    ctx.idle(pool, 1).await?;
    let status = ctx.status(pool).await?;
    ensure!(
        status.last_failures.is_empty() && status.consecutive_failures == 0,
        "{:?}",
        status.last_failures
    );
    ctx.delete(pool).await
}

async fn started(ctx: &Ctx, kind: &Kind, case: &Case) -> Result<JobView> {
    let run = NewRun {
        repository: ctx.repository.clone(),
        workflow: kind.file(case.why.is_some()),
        event: case.event.to_owned(),
        fork: case.fork.then(|| "stranger/cuda".to_owned()),
        ..NewRun::default()
    };
    let job = ctx.github.start_run(&run).await?.jobs;
    let job = job.first().context("the run has no job")?;
    ctx.ended_within(*job, container_jobs::LIMIT).await
}

/// No step has run, not even one that always does, and the job's page says why.
async fn is_refused(ctx: &Ctx, view: &JobView, why: &str) -> Result<()> {
    ensure!(view.conclusion == Some(Failure), "{view:?}");
    let log = ctx.github.job_log(view.id).await?;
    ensure!(
        view.steps
            .iter()
            .all(|step| step.conclusion == Some(Skipped))
            && !log.contains("st step"),
        "a step has run: {view:?} {log}"
    );
    ensure!(
        view.annotations.len() == 1 && view.annotations[0].contains(why),
        "the job's page does not say {why}: {:?}",
        view.annotations
    );
    Ok(())
}
