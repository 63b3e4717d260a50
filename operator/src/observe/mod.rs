//! Stores and GitHub's answers become plain values.

pub mod agent;
pub mod checks;
pub mod end;
pub mod github;
pub mod pod;
#[cfg(test)]
mod tests;
pub mod verify;

use std::sync::Arc;

use cudarunner_crds::RunnerPhase;
use jiff::Timestamp;

use crate::context::Context;
use crate::github::Client;
use crate::plan::Observed;
use crate::pool::Pool;

/// Reads everything that the plan depends on; and the client with which to carry it out.
pub async fn observe(
    ctx: &Context,
    pool: &Pool,
    now: Timestamp,
) -> (Observed, Option<Arc<Client>>) {
    let mut runners = ctx.pods.of(&pool.key);
    let seen = runners
        .iter()
        .map(|r| (r.name.clone(), r.uid.clone()))
        .collect();
    ctx.memory.with(pool, |memory| memory.settle(&seen, now));

    let client = github::look(ctx, pool, now).await;
    let verification = verify::look(ctx, pool, client.as_deref(), now).await;
    let checks = checks::look(ctx, pool, client.as_deref(), now).await;
    ctx.memory.with(pool, |memory| {
        for runner in &mut runners {
            // Asked to go, though the watch does not show it yet.
            if memory.removed.contains(&runner.uid) && runner.end.is_none() {
                runner.phase = RunnerPhase::Terminating;
            }
        }
        let observed = Observed {
            runners,
            expected: memory.expected.keys().cloned().collect(),
            access: memory.github.access.clone(),
            ask_again: memory.github.not_before,
            listing: memory.github.listing.clone(),
            queue: memory.github.queue.clone(),
            verification,
            checks,
            required_elsewhere: ctx.required_elsewhere(pool),
            other_pools: ctx.other_pools(pool),
            last_change: memory.last_change,
            nodes: ctx
                .nodes
                .as_ref()
                .zip(pool.spec.as_ref().ok())
                .map(|(nodes, spec)| nodes.offering(&spec.gpu.resource, spec.gpu.count)),
            quarantined: ctx.quarantined_elsewhere(pool),
            passed: ctx.pods.passed(),
            pod_refused: memory.pod_refused.clone(),
            pod_settings: ctx.pod_settings(),
            seed: ctx.random(),
        };
        (observed, client)
    })
}
