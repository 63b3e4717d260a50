//! The spine: watch, observe, plan, act, status. Every decision is in `plan`, every write in `act`.

use std::sync::Arc;
use std::time::Instant;

use cudarunner_crds::CudaRunner;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use kube::runtime::controller::Action as Next;
use tracing::{Instrument as _, info_span};

use crate::act::{Outcome, act, status};
use crate::context::Context;
use crate::error::ReconcileError;
use crate::github::Client;
use crate::guard;
use crate::metrics::PoolGauges;
use crate::observe::observe;
use crate::owner;
use crate::watch::pools;
use cuda_runner_plan::Plan;
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::pool::Pool;

/// Reconciles a pool, and takes the time.
pub async fn reconcile(
    resource: Arc<CudaRunner>,
    ctx: Arc<Context>,
) -> Result<Next, ReconcileError> {
    guarded(&resource, &ctx, Box::pin(reconcile_pool(&resource, &ctx))).await
}

/// A reconcile that panics is a failed one of its pool, and of no other.
async fn guarded(
    resource: &CudaRunner,
    ctx: &Context,
    reconcile: impl Future<Output = Result<Next, ReconcileError>>,
) -> Result<Next, ReconcileError> {
    let started = Instant::now();
    let done = guard::caught(reconcile).await;
    let done = done.unwrap_or_else(|panicked| Err(panicked.into()));
    let error = done.as_ref().err().map(ReconcileError::category);
    let key = pools::key_of(resource);
    ctx.metrics.reconciled(&key, started.elapsed(), error);
    done
}

async fn reconcile_pool(resource: &CudaRunner, ctx: &Context) -> Result<Next, ReconcileError> {
    let pool = watched(resource, ctx);
    let rest = ctx.memory.with(&pool, |memory| memory.rest(Instant::now()));
    if !rest.is_zero() {
        tokio::time::sleep(rest).await;
    }
    let now = Timestamp::now();
    if pool.deleting.is_some() && !pool.finalizer {
        ctx.forget(&pool.key);
        return Ok(Next::await_change());
    }
    let standing = Box::pin(owner::stand(ctx, &pool, resource.labels(), now)).await?;
    if let Some(next) = standing {
        return Ok(next);
    }
    ctx.memory
        .with(&pool, |memory| memory.begins(now, Instant::now()));
    // Each step has its memory while it runs: a thousand reconciles may wait for the API server at a time.
    let (mut plan, client) = Box::pin(planned(ctx, &pool, now)).await;
    if !owner::may_act(ctx, &pool) {
        // The watch has woken the pool, and the next reconcile leaves it alone.
        return Ok(Next::await_change());
    }
    let acts = Instant::now();
    let outcome = Box::pin(act(ctx, &pool, client, &mut plan))
        .instrument(info_span!("act"))
        .await;
    if !owner::may_write(ctx, &pool, acts.elapsed()) {
        // The status is another's to write, with what that one has done.
        return Ok(Next::await_change());
    }
    let status = Box::pin(status::record(ctx, &pool, &mut plan, &outcome, now))
        .instrument(info_span!("status"))
        .await?;
    let next = plan.next(outcome.busy, status);
    finish(ctx, &pool, outcome)?;
    Ok(next.map_or_else(Next::await_change, |wait| {
        Next::requeue(wait.unsigned_abs())
    }))
}

/// What is to be done. What was observed for that is gone when it is carried out.
async fn planned(ctx: &Context, pool: &Pool, now: Timestamp) -> (Plan, Option<Arc<Client>>) {
    let (observed, client) = Box::pin(observe(ctx, pool, now))
        .instrument(info_span!("observe"))
        .await;
    let plan = cuda_runner_plan::plan(pool, &observed, now);
    let gauges = PoolGauges::of(pool, &observed, &plan, client.as_deref(), now);
    ctx.metrics.saw(&pool.key, gauges);
    let before = ctx.memory.with(pool, |memory| {
        memory.has_looked(Instant::now());
        memory.claim.replace(plan.claim.clone())
    });
    if before.as_ref() != Some(&plan.claim) {
        ctx.waker.shares.notify_one();
    }
    (plan, client)
}

/// The pool as the watch shows it. Our own last word on the status is ahead of that.
fn watched(resource: &CudaRunner, ctx: &Context) -> Pool {
    let mut pool = ctx.specs.pool(resource);
    let operator = pool.status.operator.take();
    if let Some(status) = ctx.memory.with(&pool, |memory| memory.status.clone()) {
        status::compare(ctx, &pool, &status, Timestamp::now());
        pool.status = status;
        pool.foreign = None;
    }
    // Others write it, too.
    pool.status.operator = operator;
    pool
}

/// Counts errors in a row, and hands on the first.
fn finish(ctx: &Context, pool: &Pool, outcome: Outcome) -> Result<(), ReconcileError> {
    let count = outcome.errors.len();
    let Some(first) = outcome.errors.into_iter().next() else {
        ctx.memory.with(pool, |memory| memory.errors = 0);
        return Ok(());
    };
    Err(ReconcileError::Act { count, first })
}

/// After an error: again, each time later.
#[expect(clippy::needless_pass_by_value, reason = "the controller calls it so")]
pub fn on_error(resource: Arc<CudaRunner>, error: &ReconcileError, ctx: Arc<Context>) -> Next {
    // A resource that cannot even be read waits longest.
    let errors = guard::step(|| {
        let pool = ctx.specs.pool(&resource);
        ctx.memory.with(&pool, |memory| {
            memory.errors = memory.errors.saturating_add(1);
            memory.errors
        })
    });
    let errors = errors.unwrap_or(i32::MAX);
    let key = pools::key_of(&resource);
    let uid = resource.metadata.uid.as_deref().unwrap_or_default();
    let first = SignedDuration::from_millis(500);
    let wait = backoff::exponential(first, SignedDuration::from_mins(2), errors, uid);
    tracing::warn!(pool = %key, category = error.category(), %error, ?wait, "a reconcile failed and is tried again");
    Next::requeue(wait.unsigned_abs())
}

#[cfg(test)]
pub(crate) mod tests;
