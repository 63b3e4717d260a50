//! What is there at addresses that the pool has left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cudarunner_crds::LeftStatus;
use jiff::{SignedDuration, Timestamp};

use super::github::client_at;
use crate::context::Context;
use crate::github::{Client, Error};
use cuda_runner_plan::left::{AGAIN, SOON};
use cuda_runner_plan::model::left::{Left, Missing};
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::scale_set::number;
use cuda_runner_plan::{Access, Entry, Listing};

/// The pause after an attempt that failed: mostly a person has to change something first.
const PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// Reads what is due.
pub(super) async fn look(
    ctx: &Context,
    pool: &Pool,
    runners: &[Runner],
    now: Timestamp,
) -> BTreeMap<String, Left> {
    let status = &pool.status;
    let is_left = |url: &String| status.left_at.iter().any(|left| left.url == *url);
    let (mut seen, changed, is_let_in) = ctx.memory.with(pool, |memory| {
        let is_let_in = memory.github.access == Access::Granted;
        (memory.left.clone(), memory.settled_at(), is_let_in)
    });
    seen.retain(|url, _| is_left(url));
    for left in &pool.status.left_at {
        let before = seen.entry(left.url.clone()).or_default();
        let read_at = before.listing.as_ref().map(|listing| listing.at);
        // While a job runs there nothing ends, whatever happens at the new address.
        let has_pods = runners.iter().any(|r| r.url.as_ref() == Some(&left.url));
        let is_old =
            !has_pods && read_at.is_some_and(|at| at.after(SOON) <= now && changed > Some(at));
        if is_old || before.ask_again.is_none_or(|at| at <= now) {
            let listed = before.listing.iter().flat_map(|listing| &listing.entries);
            let listed = listed.map(|entry| entry.name.clone());
            let pods = runners.iter().map(|runner| runner.name.clone());
            let mut names: BTreeSet<String> = listed.chain(pods).collect();
            names.insert(pool.key.name.clone());
            let missing = before.missing;
            let (found, is_missing) = read(ctx, pool, left, &names, now).await;
            // A GitHub that lets nobody in proves nothing of one address.
            let is_missing = is_missing && is_let_in;
            *before = Left {
                missing: is_missing.then(|| Missing::once_more(missing, now)),
                ..found
            };
        }
    }
    ctx.memory
        .with(pool, |memory| memory.left.clone_from(&seen));
    seen
}

/// What is there; and whether GitHub says that there is no such address.
async fn read(
    ctx: &Context,
    pool: &Pool,
    left: &LeftStatus,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> (Left, bool) {
    let mut is_missing = false;
    let read = match client_at(ctx, pool, &left.url).await {
        Ok(mut client) => {
            let mut answer = ask(&client, pool, left, names).await;
            // What the pool has now need not reach where it was: what last worked there may.
            let before = ctx.clients.last.at(pool, &left.url);
            let before = before.filter(|before| !Arc::ptr_eq(before, &client));
            if let (Some(before), true) = (before, is_refused(&answer)) {
                client = before;
                answer = ask(&client, pool, left, names).await;
            }
            if answer.is_ok() {
                let url = left.url.clone();
                ctx.clients.last.worked(pool, url, client);
            }
            answer.map_err(|Refusal { error, of_list }| {
                is_missing = of_list && matches!(error, Error::NotFound { .. });
                let pause = error.pause_of_at_least(PAUSE, now);
                (error.to_string(), pause)
            })
        }
        Err(none) => Err((none, PAUSE)),
    };
    let left = match read {
        Ok((listing, set)) => Left {
            listing: Some(listing),
            set,
            ask_again: Some(now.after(AGAIN)),
            ..Left::default()
        },
        Err((trouble, pause)) => Left {
            trouble: Some(trouble),
            ask_again: Some(now.after(pause)),
            ..Left::default()
        },
    };
    (left, is_missing)
}

/// Why an address was not read.
struct Refusal {
    error: Error,
    /// Whether its runners were not listed: without its scale set, or its runner group, an address is still there.
    of_list: bool,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            error,
            of_list: false,
        }
    }
}

/// Whether the credentials are of no use there.
fn is_refused<T>(answer: &Result<T, Refusal>) -> bool {
    let error = answer.as_ref().err().map(|refusal| &refusal.error);
    matches!(
        error,
        Some(Error::Unauthorized { .. } | Error::Forbidden { .. } | Error::NotFound { .. })
    )
}

/// The pool's entries at the address, and its scale set where it still has one there.
async fn ask(
    client: &Client,
    pool: &Pool,
    left: &LeftStatus,
    names: &BTreeSet<String>,
) -> Result<(Listing, Option<u64>), Refusal> {
    let listing = client.list_runners_of(names, Duration::ZERO).await;
    let listing = listing.map_err(|error| Refusal {
        error,
        of_list: true,
    })?;
    let label = pool.ownership_label();
    let own = listing.runners.iter().filter(|r| r.labels.contains(&label));
    let mut entries: Vec<Entry> = own.map(|runner| Entry::from(&**runner)).collect();
    let set = find_set(client, pool, left).await?;
    if let Some(id) = set {
        let agents = client.agents_of(id, Duration::ZERO).await?;
        entries.extend(agents.into_iter().map(Entry::of_scale_set));
    }
    let listing = Listing {
        at: listing.at,
        entries,
        is_whole: listing.is_whole,
    };
    Ok((listing, set))
}

/// By its number; where none was written down, by its name: it may have been made a moment before the address changed.
async fn find_set(client: &Client, pool: &Pool, left: &LeftStatus) -> Result<Option<u64>, Error> {
    // It is on record before it is made.
    let Some(set) = &left.scale_set else {
        return Ok(None);
    };
    let name = pool.scale_set_name();
    if let Some(id) = number(set) {
        let found = client.scale_set(id).await?;
        return Ok(found.filter(|set| set.name == name).map(|set| set.id));
    }
    let group = set.runner_group.as_deref();
    Ok(client.find_intended(&name, group).await?.map(|set| set.id))
}
