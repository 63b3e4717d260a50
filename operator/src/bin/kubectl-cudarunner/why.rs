//! `why`: what stands in the way of jobs.

pub(crate) mod job;
mod operators;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use cuda_runner_plan::why::causes;
use cuda_runner_plan::why::operator::doubt;
use cudarunner_crds::{CudaRunner, CudaRunnerStatus, LOOK_AGAIN};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::watcher::watch_object;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::connect::{Pools, key, shown};
use crate::text::wrap;

/// How long the operator may take to look at GitHub where nobody says: a person waits for the answer.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// The last part of that, in which it is looked whether an operator runs at all.
const ASK: Duration = Duration::from_millis(300);

/// What is known of a pool, and how surely.
pub(crate) struct Answer {
    /// The pool, as it is after that.
    pub(crate) pool: CudaRunner,
    /// Why what it says of GitHub may be old; `None` where the operator has just looked.
    pub(crate) doubt: Option<String>,
}

/// Has the operator look at GitHub, and reads the pool; `None` where there is no such pool. Beside one request it takes no
/// longer than `limit`, or 300 ms where that is less, whoever does not answer.
pub(crate) async fn ask(
    pools: &Pools,
    name: &str,
    limit: Duration,
) -> Result<Option<Answer>, String> {
    let asked = Timestamp::now().to_string();
    let Some(mut pool) = pools.annotate_if_there(name, LOOK_AGAIN, &asked).await? else {
        return Ok(None);
    };
    let until = Instant::now() + limit.max(ASK);
    let before = pool.clone();
    let mut operators = Box::pin(async {
        sleep_until(until - ASK).await;
        operators::see(&pools.client, &before, until).await
    });
    let mut seen = None;
    let has_looked = {
        let mut looking = Box::pin(timeout_at(until, look(pools, &mut pool, &asked)));
        loop {
            tokio::select! {
                biased;
                has_looked = &mut looking => break has_looked.unwrap_or(false),
                found = &mut operators, if seen.is_none() => seen = Some(found),
            }
        }
    };
    let doubt = if has_looked {
        None
    } else {
        let seen = match seen {
            Some(seen) => seen,
            None => operators.await,
        };
        Some(doubt(pool.operator(), &seen, Timestamp::now()))
    };
    Ok(Some(Answer { pool, doubt }))
}

/// Waits until the operator has looked, with the pool as it was last seen; `false` where that cannot be seen.
async fn look(pools: &Pools, pool: &mut CudaRunner, asked: &str) -> bool {
    let mut changes = pin!(watch_object(pools.api(), &pool.name_any()));
    while let Some(Ok(Some(next))) = changes.next().await {
        *pool = shown(next);
        let status = pool.status.as_ref();
        let has_looked = status.is_some_and(|s| s.looked_again.as_deref() == Some(asked));
        // In deletion the queue is of no use to anybody.
        if has_looked || pool.metadata.deletion_timestamp.is_some() {
            return true;
        }
    }
    false
}

/// What stands in the way of the pool's jobs, the figures, and the last failures.
pub(crate) fn text(answer: &Answer) -> String {
    let Answer { pool, doubt } = answer;
    let status = pool.status.clone().unwrap_or_default();
    let causes = causes(pool);
    let mut text = String::new();
    // It comes first where it says that all the rest is old.
    if let Some(doubt) = doubt {
        wrap(&mut text, "", 0, doubt);
    }
    for cause in &causes {
        wrap(&mut text, &format!("{}: ", cause.about), 2, &cause.message);
    }
    if causes.is_empty() {
        text.push_str("Nothing holds this pool.\n");
    }
    let _ = writeln!(
        text,
        "{} queued, {} online, {} busy, {} at the gate, {} pending",
        status.queued, status.online, status.busy, status.gated, status.pending
    );
    let is_said = |words: &str| causes.iter().any(|cause| cause.message.contains(words));
    for (runner, waiting) in waiting(&status) {
        if !is_said(core(waiting)) {
            wrap(&mut text, &format!("{runner} waits: "), 2, waiting);
        }
    }
    failures(&mut text, &status, is_said);
    text
}

/// What a runner waits for, without Kubernetes' word for it and what a preemption would bring: the part that a condition
/// repeats.
fn core(waiting: &str) -> &str {
    let said = waiting.split_once(": ").map_or(waiting, |(_, said)| said);
    let said = said
        .split_once(" preemption: ")
        .map_or(said, |(said, _)| said);
    said.trim_end_matches('.')
}

/// The last failures, newest first; those in a row that say the same are one paragraph, and one that is said above is short.
fn failures(text: &mut String, status: &CudaRunnerStatus, is_said: impl Fn(&str) -> bool) {
    let same = |a: &cudarunner_crds::FailureStatus, b: &cudarunner_crds::FailureStatus| {
        a.message == b.message && a.reason == b.reason
    };
    for run in status.last_failures.chunk_by(same) {
        let [first, others @ ..] = run else { continue };
        let more = match others.len() {
            0 => String::new(),
            more => format!(" and {more} before"),
        };
        let head = format!("{} {}{more} ({}): ", first.at.0, first.runner, first.reason);
        let message = if is_said(&first.message) {
            "as above"
        } else {
            &first.message
        };
        wrap(text, &head, 2, message);
    }
}

/// The same for programs.
pub(crate) fn json(answer: &Answer) -> Value {
    let status = answer.pool.status.clone().unwrap_or_default();
    json!({
        "causes": causes(&answer.pool),
        "queued": status.queued,
        "online": status.online,
        "busy": status.busy,
        "gated": status.gated,
        "pending": status.pending,
        "waiting": waiting(&status),
        "lastFailures": status.last_failures,
        "looked": answer.doubt.is_none(),
        "doubt": answer.doubt,
    })
}

/// What runners wait for, by their names.
fn waiting(status: &CudaRunnerStatus) -> BTreeMap<&str, &str> {
    let waiting = status
        .runners
        .iter()
        .filter_map(|runner| Some((runner.name.as_str(), runner.waiting.as_deref()?)));
    waiting.collect()
}

/// Pools that something holds, each with what it is; the others are counted.
pub(crate) fn text_of_all(pools: &[CudaRunner]) -> String {
    let mut text = String::new();
    let mut free = 0_u32;
    for pool in pools {
        let causes = causes(pool);
        if causes.is_empty() {
            free = free.saturating_add(1);
            continue;
        }
        let _ = writeln!(text, "{}", key(pool));
        for cause in &causes {
            wrap(
                &mut text,
                &format!("  {}: ", cause.about),
                4,
                &cause.message,
            );
        }
    }
    let held = pools.len().saturating_sub(free as usize);
    let _ = match (held, free) {
        (0, 0) => writeln!(text, "There is no CudaRunner."),
        (0, _) => writeln!(text, "Nothing holds any of the {free} pools."),
        (_, 0) => Ok(()),
        _ => writeln!(
            text,
            "Nothing holds the other pools, {free} of {}.",
            pools.len()
        ),
    };
    text
}

/// The same for programs.
pub(crate) fn json_of_all(pools: &[CudaRunner]) -> Value {
    let of = |pool: &CudaRunner| json!({"namespace": pool.namespace(), "name": pool.name_any(), "causes": causes(pool)});
    json!({"pools": pools.iter().map(of).collect::<Vec<_>>()})
}
