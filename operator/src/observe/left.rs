//! What is there at addresses that the pool has left.

use std::collections::BTreeMap;
use std::time::Duration;

use cudarunner_crds::LeftStatus;
use jiff::{SignedDuration, Timestamp};

use super::github::client_at;
use crate::context::Context;
use crate::github::{Client, Error};
use cuda_runner_plan::left::{AGAIN, SOON};
use cuda_runner_plan::model::left::Left;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::{Entry, Listing};

/// The pause after an attempt that failed: mostly a person has to change something first.
const PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// Reads what is due.
pub(super) async fn look(
    ctx: &Context,
    pool: &Pool,
    runners: &[Runner],
    now: Timestamp,
) -> BTreeMap<String, Left> {
    let (mut seen, changed) = ctx
        .memory
        .with(pool, |memory| (memory.left.clone(), memory.last_change));
    seen.retain(|url, _| pool.status.left_at.iter().any(|left| left.url == *url));
    for left in &pool.status.left_at {
        let before = seen.entry(left.url.clone()).or_default();
        let read_at = before.listing.as_ref().map(|listing| listing.at);
        // While a job runs there nothing ends, whatever happens at the new address.
        let has_pods = runners.iter().any(|r| r.url.as_ref() == Some(&left.url));
        let is_old =
            !has_pods && read_at.is_some_and(|at| at.after(SOON) <= now && changed > Some(at));
        if is_old || before.ask_again.is_none_or(|at| at <= now) {
            *before = read(ctx, pool, left, now).await;
        }
    }
    ctx.memory
        .with(pool, |memory| memory.left.clone_from(&seen));
    seen
}

async fn read(ctx: &Context, pool: &Pool, left: &LeftStatus, now: Timestamp) -> Left {
    let read = match client_at(ctx, pool, &left.url).await {
        Ok(client) => ask(&client, pool, left).await.map_err(|error| {
            let pause = error.pause_of_at_least(PAUSE, now);
            (error.to_string(), pause)
        }),
        Err(none) => Err((none, PAUSE)),
    };
    match read {
        Ok((listing, set_is_gone)) => Left {
            listing: Some(listing),
            set_is_gone,
            trouble: None,
            ask_again: Some(now.after(AGAIN)),
        },
        Err((trouble, pause)) => Left {
            trouble: Some(trouble),
            ask_again: Some(now.after(pause)),
            ..Left::default()
        },
    }
}

/// The pool's entries at the address, and whether its scale set is gone there.
async fn ask(client: &Client, pool: &Pool, left: &LeftStatus) -> Result<(Listing, bool), Error> {
    let listing = client.list_runners(Duration::ZERO).await?;
    let label = pool.ownership_label();
    let own = listing.runners.iter().filter(|r| r.labels.contains(&label));
    let mut entries: Vec<Entry> = own.cloned().map(Entry::from).collect();
    let set = left.scale_set.as_ref();
    let mut is_gone = true;
    if let Some(id) = set.and_then(|set| u64::try_from(set.id).ok())
        && let Some(set) = client.scale_set(id).await?
        && set.name == pool.scale_set_name()
    {
        is_gone = false;
        let agents = client.agents_of(id, Duration::ZERO).await?;
        entries.extend(agents.into_iter().map(Entry::of_scale_set));
    }
    let at = listing.at;
    Ok((Listing { at, entries }, is_gone))
}
