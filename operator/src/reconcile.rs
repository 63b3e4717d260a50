//! The spine: read, observe, plan, act, say. Every decision is in `plan`, every write in `act` and `status`.

use std::sync::Arc;
use std::time::Instant;

use cudarunner_crds::CudaRunner;
use jiff::{SignedDuration, Timestamp};
use kube::runtime::controller::Action as Next;
use tracing::{Instrument as _, info_span};

use crate::act::status;
use crate::act::{self, Outcome};
use crate::context::Context;
use crate::error::ReconcileError;
use crate::github::Client;
use crate::guard;
use crate::metrics::{News, PoolView};
use crate::observe::observe;
use crate::watch::pools;
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::{Action, Plan};

/// Without another reason a pool is visited so often.
const AT_LEAST: SignedDuration = SignedDuration::from_hours(24);
/// How soon a runner that was busy when it was to go is looked at again.
const BUSY_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// Visits a pool, and takes the time.
pub async fn reconcile(
    resource: Arc<CudaRunner>,
    ctx: Arc<Context>,
) -> Result<Next, ReconcileError> {
    guarded(&resource, &ctx, Box::pin(visit(&resource, &ctx))).await
}

/// A visit that panics is a failed one of its pool, and of no other.
async fn guarded(
    resource: &CudaRunner,
    ctx: &Context,
    visit: impl Future<Output = Result<Next, ReconcileError>>,
) -> Result<Next, ReconcileError> {
    let started = Instant::now();
    let done = guard::caught(visit).await;
    let done = done.unwrap_or_else(|panicked| Err(panicked.into()));
    let error = done.as_ref().err().map(ReconcileError::category);
    let key = pools::key_of(resource);
    ctx.metrics.visited(&key, started.elapsed(), error);
    done
}

async fn visit(resource: &CudaRunner, ctx: &Context) -> Result<Next, ReconcileError> {
    let now = Timestamp::now();
    let pool = read(resource, ctx);
    if pool.deleting.is_some() && !pool.finalizer {
        ctx.forget(&pool.key);
        return Ok(Next::await_change());
    }
    let (mut plan, client) = decide(ctx, &pool, now).await;
    let news = News::of(&pool, &plan);
    let last_visit = plan.actions.contains(&Action::RemoveFinalizer);
    ctx.events.publish(resource, &plan.notices);
    let outcome = act::act(ctx, &pool, client, &mut plan)
        .instrument(info_span!("act"))
        .await;
    let mut wake = plan.wake;
    if plan.refresh {
        wake = Some(sooner(wake, again(ctx, &pool, now)));
    }
    if outcome.busy {
        wake = Some(sooner(wake, BUSY_AGAIN));
    }
    if last_visit {
        if outcome.errors.is_empty() {
            ctx.events.publish(resource, &plan.news);
        }
    } else {
        let unrecorded = !plan.unrecorded.is_empty();
        let later = status::write(ctx, &pool, plan.status, now)
            .instrument(info_span!("status"))
            .await;
        if let Some(wait) = later.map_err(ReconcileError::Status)? {
            wake = Some(sooner(wake, wait));
        } else {
            ctx.metrics.learned(&pool.key, &news);
            ctx.events.publish(resource, &plan.news);
            if unrecorded {
                // The pods of these runners may go now.
                wake = Some(SignedDuration::ZERO);
            }
        }
    }
    finish(ctx, &pool, outcome)?;
    Ok(wake.map_or_else(Next::await_change, |wait| {
        Next::requeue(wait.min(AT_LEAST).unsigned_abs())
    }))
}

/// Observes and plans. What was observed goes with this: a thousand visits may wait for the API server at a time.
async fn decide(ctx: &Context, pool: &Pool, now: Timestamp) -> (Plan, Option<Arc<Client>>) {
    let (observed, client) = observe(ctx, pool, now)
        .instrument(info_span!("observe"))
        .await;
    let plan = cuda_runner_plan::plan(pool, &observed, now);
    let view = PoolView::of(pool, &observed, &plan, client.as_deref(), now);
    ctx.metrics.saw(&pool.key, view);
    (plan, client)
}

/// Our own last word on the status is ahead of the store's.
fn read(resource: &CudaRunner, ctx: &Context) -> Pool {
    let mut pool = ctx.specs.pool(resource);
    if let Some(status) = ctx.memory.with(&pool, |memory| memory.status.clone()) {
        pool.status = status;
    }
    pool
}

/// When a list of GitHub's that is due can be read.
fn again(ctx: &Context, pool: &Pool, now: Timestamp) -> SignedDuration {
    let not_before = ctx.memory.with(pool, |memory| memory.github.not_before);
    not_before.map_or(SignedDuration::from_millis(200), |moment| {
        moment
            .duration_since(now)
            .max(SignedDuration::from_millis(200))
    })
}

fn sooner(wake: Option<SignedDuration>, wait: SignedDuration) -> SignedDuration {
    wake.map_or(wait, |w| w.min(wait))
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
    tracing::warn!(pool = %key, category = error.category(), %error, ?wait, "a visit failed and is tried again");
    Next::requeue(wait.unsigned_abs())
}

#[cfg(test)]
pub(crate) mod tests;
