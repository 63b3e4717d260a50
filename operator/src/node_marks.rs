//! The spine for nodes: read what all pools leave alone, plan, act. Pools have their own, [`crate::reconcile`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::runtime::reflector::Store;

use crate::act::nodes::mark;
use crate::context::Context;
use crate::guard;
use crate::observe::others::{beside, held_by, passed};
use crate::watch::Waker;
use crate::watch::nodes::Nodes;
use cuda_runner_plan::model::backoff;
use cuda_runner_plan::model::node_marks::Quarantined;
use cuda_runner_plan::node_marks::{self, MarkNode};

/// The first pause after a write that failed, and the longest.
const AGAIN: SignedDuration = SignedDuration::from_secs(1);
const AGAIN_AT_MOST: SignedDuration = SignedDuration::from_mins(2);
/// So far two watches of one API server are apart at most, as a rule.
const LAG: Duration = Duration::from_secs(3);

/// Marks nodes permanently, and rests permanently where none are to be marked.
pub async fn follow(ctx: &Context, waker: &Waker) {
    let marking = ctx.marking;
    let Some(nodes) = ctx
        .nodes
        .as_ref()
        .filter(|_| marking.condition || marking.taint)
    else {
        return std::future::pending().await;
    };
    let mut failures = 0_i32;
    loop {
        let done = guard::caught(reconcile(ctx, nodes)).await;
        if let Err(panicked) = &done {
            tracing::error!(%panicked, "the marks of nodes are tried again");
        }
        if done == Ok(true) {
            failures = 0;
            waker.marks.notified().await;
        } else {
            failures = failures.saturating_add(1);
            let wait = backoff::exponential(AGAIN, AGAIN_AT_MOST, failures, "marks");
            tokio::time::sleep(wait.unsigned_abs()).await;
        }
    }
}

/// Makes the marks what they should be; whether all could be written.
async fn reconcile(ctx: &Context, nodes: &Nodes) -> bool {
    let mut all = true;
    let mut marks = planned(ctx, nodes);
    if marks.iter().any(MarkNode::frees) {
        // Another operator may have marked it a moment ago for a pool of which the watch does not say so yet.
        tokio::time::sleep(LAG).await;
        marks = planned(ctx, nodes);
    }
    for wanted in marks {
        match mark(&ctx.client, &wanted).await {
            Ok(Some(node)) => {
                tracing::info!(node = wanted.name, change = ?wanted.change, "marked a node");
                // The watch shows it later.
                nodes.apply(&node);
            }
            Ok(None) => {}
            Err(error) => {
                all = false;
                tracing::warn!(node = wanted.name, %error, "a node could not be marked, and is tried again; may the operator patch nodes and nodes/status?");
            }
        }
    }
    all
}

/// The marks that have to change.
fn planned(ctx: &Context, nodes: &Nodes) -> Vec<MarkNode> {
    let now = Timestamp::now();
    // The nodes first: what has marked them is in the statuses by then.
    let marked = nodes.marked();
    node_marks::plan(ctx.marking, &held(ctx), &marked, &passed(ctx), now)
}

/// What all pools leave alone, as their statuses say.
pub(crate) fn held(ctx: &Context) -> Vec<Quarantined> {
    let pools = ctx.pools.iter().flat_map(Store::state);
    let own = pools.flat_map(|pool| held_by(&pool));
    own.chain(beside(ctx)).collect()
}
