//! How long a person waits for an answer of `kubectl cudarunner why`.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    Bed, PROFILE, Run,
    bed::pool,
    figure::{Budget, Figure},
};
use crate::{images::artifact, process::output, wait::wait_for};

/// Runners of the pool that is asked about.
pub(super) const RUNNERS: usize = 500;
/// How often it is asked, in a run.
const ASKED: usize = 10;
const LIMIT: Duration = Duration::from_mins(5);

/// From the start of the program to its end. The floor is what kubectl takes to read the same resource.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    Bed::with(RUNNERS, async |bed| {
        bed.started().await?;
        let ctx = bed.ctx("why").await?;
        ctx.apply(&ctx.pool("pool", pool(RUNNERS))).await?;
        wait_for("all runners to be in the status", LIMIT, async || {
            let online = ctx.status("pool").await?.online;
            Ok((usize::try_from(online)? == RUNNERS).then_some(()))
        })
        .await?;
        ctx.queue_for("job", &["self-hosted", "cuda", "a100"], "true", false)
            .await?;
        for _ in 0..run.runs * ASKED {
            let mut read = ctx.cluster.kubectl(&ctx.namespace);
            read.args(["get", "cudarunner", "pool", "--output", "json"]);
            floor.push(timed(read).await?.0);
            let mut why = Command::new(artifact(PROFILE, "kubectl-cudarunner"));
            why.env("KUBECONFIG", ctx.cluster.kubeconfig());
            why.args(["why", "pool", "--namespace", &ctx.namespace]);
            let (took, said) = timed(why).await?;
            ensure!(said.contains("a100"), "{said}");
            ours.push(took);
        }
        Ok(())
    })
    .await?;
    Ok(vec![Figure {
        name: format!("`kubectl cudarunner why`, a pool of {RUNNERS}; floor: `kubectl get`"),
        unit: "s",
        ours,
        floor,
        budget: Some(Budget::AtMost(1.0)),
    }])
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
