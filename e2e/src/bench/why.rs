//! How long a person waits for an answer of `kubectl cudarunner why`.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Bed, PROFILE, Run,
    bed::DOCUMENT,
    figure::{Budget, Figure},
    page::{DEVICES, RUNNERS, in_use},
};
use crate::{images::artifact, process::output, suites::Ctx, wait::wait_for};

/// How often it is asked, in a run.
const ASKED: usize = 10;
const LIMIT: Duration = Duration::from_mins(1);

/// What a person asks, and what kubectl reads of the same.
struct Question {
    figure: Figure,
    why: Vec<String>,
    kubectl: Vec<&'static str>,
    /// What the answer says.
    says: String,
}

/// From the start of the program to its end: about a pool, about a job, about everything. The floor is what kubectl takes to
/// read the same.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    Bed::with(DEVICES, async |bed| {
        let page = bed.started_with_service().await?;
        let ctx = bed.ctx("why").await?;
        in_use(&ctx, page).await?;
        let labels = ["self-hosted", "cuda", "a100"];
        let job = ctx.queue_for("job", &labels, "true", false).await?;
        let run_of_it = ctx.github.job(job).await?.run;
        let job = format!(
            "{}/{}/actions/runs/{run_of_it}/job/{job}",
            ctx.cluster.github, ctx.repository
        );
        // A look at the pool has the queue read.
        let mut last = String::new();
        wait_for("the job to be known", LIMIT, async || {
            why(&ctx, &["pool".to_owned()]).await?;
            last = match why(&ctx, std::slice::from_ref(&job)).await {
                Ok((_, said)) => said,
                Err(error) => format!("{error:#}"),
            };
            Ok(last.contains("no pool takes it").then_some(()))
        })
        .await
        .with_context(|| format!("`why` last said: {last}"))?;
        let mut questions = questions(&ctx, job);
        for _ in 0..run.runs * ASKED {
            for question in &mut questions {
                let mut read = ctx.cluster.kubectl(&ctx.namespace);
                read.args(&question.kubectl);
                question.figure.floor.push(timed(read).await?.0);
                let (took, said) = why(&ctx, &question.why).await?;
                ensure!(said.contains(&question.says), "{said}");
                question.figure.ours.push(took);
            }
        }
        Ok(questions
            .into_iter()
            .map(|question| question.figure)
            .collect())
    })
    .await
}

fn questions(ctx: &Ctx, job: String) -> [Question; 3] {
    let figure = |what: &str, floor: &str| Figure {
        name: format!("`kubectl cudarunner why`{what}; floor: `kubectl get`{floor}"),
        unit: "s",
        ours: vec![],
        floor: vec![],
        budget: Some(Budget::AtMost(1.0)),
    };
    [
        Question {
            figure: figure(&format!(", a pool of {RUNNERS}"), ""),
            why: vec!["pool".to_owned()],
            kubectl: vec!["get", "cudarunner", "pool", "--output", "json"],
            says: "a100".to_owned(),
        },
        Question {
            figure: figure(
                &format!(", a job by its address, {DEVICES} devices"),
                " of the document",
            ),
            why: vec![job],
            kubectl: vec!["get", "--raw", DOCUMENT],
            says: "no pool takes it".to_owned(),
        },
        Question {
            figure: figure(
                &format!(" without a name, {DEVICES} devices"),
                " of all pools",
            ),
            why: vec![],
            kubectl: vec!["get", "cudarunners", "--all-namespaces", "--output", "json"],
            says: format!("{}/pool", ctx.namespace),
        },
    ]
}

/// How long the plugin takes for this question, in seconds, and its answer in one line: it breaks lines anywhere.
async fn why(ctx: &Ctx, question: &[String]) -> Result<(f64, String)> {
    let mut why = Command::new(artifact(PROFILE, "kubectl-cudarunner"));
    why.env("KUBECONFIG", ctx.cluster.kubeconfig());
    why.arg("why").args(question);
    why.args(["--namespace", &ctx.namespace]);
    let (took, said) = timed(why).await?;
    let words: Vec<&str> = said.split_whitespace().collect();
    Ok((took, words.join(" ")))
}

/// How long a program runs, in seconds, and what it prints.
async fn timed(mut command: Command) -> Result<(f64, String)> {
    tokio::task::spawn_blocking(move || {
        let start = Instant::now();
        let said = output(&mut command)?;
        Ok((start.elapsed().as_secs_f64(), said))
    })
    .await?
}
