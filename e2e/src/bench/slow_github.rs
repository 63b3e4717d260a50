//! A GitHub that answers slowly costs its own pools time, and no others.

use std::time::{Duration, Instant};

use anyhow::Result;
use cudarunner_crds::POOL_LABEL;
use futures::{TryStreamExt as _, stream};
use github_simulator::faults::Fault;

use super::{Bed, Run, bed::pool, figure::Figure, pods::Pods};
use crate::suites::Ctx;

/// Pools at the slow repository.
const SLOW: usize = 64;
/// What each answer there takes.
const DELAY: Duration = Duration::from_secs(2);
/// Runners of the pool that is not to be slowed down.
pub(super) const RUNNERS: usize = 100;
const LIMIT: Duration = Duration::from_mins(2);

/// From the pool's creation to all of its pods. The floor is the same without the slow pools.
pub(super) async fn run(run: &Run) -> Result<Vec<Figure>> {
    let (mut ours, mut floor) = (vec![], vec![]);
    for number in 0..run.runs {
        run.story.step(&format!(
            "beside a slow GitHub: run {} of {}",
            number + 1,
            run.runs
        ));
        Bed::with(2 * RUNNERS, async |bed| {
            bed.started().await?;
            let alone = bed.ctx("alone").await?;
            floor.push(scale_out(&alone).await?);

            let slow = bed.ctx("slow").await?;
            let fault = Fault {
                path: Some(format!("/{}/", slow.repository)),
                delay_millis: u64::try_from(DELAY.as_millis())?,
                ..Fault::default()
            };
            slow.github.inject(&fault).await?;
            let slow = &slow;
            stream::iter((0..SLOW).map(anyhow::Ok))
                .try_for_each_concurrent(16, async |number| {
                    let spec = pool(0);
                    slow.apply(&slow.pool(&format!("slow-{number}"), spec))
                        .await
                })
                .await?;
            let beside = bed.ctx("beside").await?;
            ours.push(scale_out(&beside).await?);
            Ok(())
        })
        .await?;
    }
    Ok(vec![Figure {
        name: format!("a new pool's {RUNNERS} pods, beside {SLOW} pools with a slow GitHub"),
        unit: "s",
        ours,
        floor,
        budget: None,
    }])
}

/// From a pool's creation to all of its pods, in seconds.
pub(super) async fn scale_out(ctx: &Ctx) -> Result<f64> {
    let made = Pods::follow(ctx.api(), POOL_LABEL).await?;
    let start = Instant::now();
    ctx.apply(&ctx.pool("pool", pool(RUNNERS))).await?;
    let there = made
        .until("all pods to be made", LIMIT, |count| count.there >= RUNNERS)
        .await?;
    Ok(there.into_std().duration_since(start).as_secs_f64())
}
