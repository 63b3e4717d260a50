//! `why`: what stands in the way of jobs.

pub(crate) mod job;
pub(crate) mod operators;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use cuda_runner_plan::why::operator::{absent, doubt, of_absent};
use cuda_runner_plan::why::{causes, unheard};
use cudarunner_crds::{CudaRunner, CudaRunnerStatus, LOOK_AGAIN};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::runtime::watcher::watch_object;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::connect::{Annotated, Pools, key, shown};
use crate::text::wrap;
use operators::{ASK, Operators};

/// How long the operator may take to look at GitHub where nobody says: a person waits for the answer.
pub(crate) const LOOK: Duration = Duration::from_millis(500);

/// What is said to whoever may not change a pool.
const UNASKED: &str = "Nobody was asked to look at GitHub again, since that takes the right to patch the CudaRunner: this is its status, and what is said of GitHub may be old";

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
    let mut pool = match pools.annotate_if_there(name, LOOK_AGAIN, &asked).await? {
        Annotated::Done(pool) => *pool,
        Annotated::Forbidden(pool) => return Ok(Some(Box::pin(unasked(pools, *pool)).await)),
        Annotated::NotThere => return Ok(None),
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

/// What the status says, for whoever may not have the operator look.
async fn unasked(pools: &Pools, pool: CudaRunner) -> Answer {
    let seen = operators::see(&pools.client, &pool, Instant::now() + ASK).await;
    let absent = absent(pool.operator(), &seen, Timestamp::now());
    let doubt = absent.unwrap_or_else(|| UNASKED.to_owned());
    Answer {
        pool,
        doubt: Some(doubt),
    }
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
        let unheard = unheard(pool);
        let said = unheard.as_deref().unwrap_or("Nothing holds this pool.");
        wrap(&mut text, "", 0, said);
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

/// All pools, and what is known of their operators.
pub(crate) struct All {
    pools: Vec<CudaRunner>,
    /// Which of them no operator serves, one for one.
    absent: Vec<bool>,
    /// Whether it is known which operators there are.
    is_known: bool,
}

/// Lists the pools, and beside that the operators.
pub(crate) async fn all(pools: &Pools, now: Timestamp) -> Result<All, String> {
    let (listed, operators) = tokio::join!(
        pools.all(),
        operators::look(&pools.client, Instant::now() + ASK),
    );
    Ok(All::new(listed?, &operators, now))
}

impl All {
    fn new(pools: Vec<CudaRunner>, operators: &Operators, now: Timestamp) -> Self {
        let absent = pools.iter().map(|pool| operators.leave_out(pool, now));
        Self {
            absent: absent.collect(),
            is_known: operators.are_known(),
            pools,
        }
    }

    fn each(&self) -> impl Iterator<Item = (&CudaRunner, bool)> {
        self.pools.iter().zip(self.absent.iter().copied())
    }
}

/// Pools that something holds, each with what it is; the others are counted. Those that nobody serves come first.
pub(crate) fn text_of_all(all: &All) -> String {
    let mut text = String::new();
    let absent = all.each().filter(|(_, is_absent)| *is_absent);
    let absent: Vec<String> = absent.map(|(pool, _)| key(pool)).collect();
    let unserved = absent.len();
    if let Some(first) = of_absent(absent, all.pools.len()) {
        wrap(&mut text, "", 0, &first);
    }
    let mut free = 0_usize;
    for (pool, is_absent) in all.each() {
        let causes = causes(pool);
        if causes.is_empty() {
            free = free.saturating_add(usize::from(!is_absent));
            continue;
        }
        let _ = writeln!(text, "{}", key(pool));
        for cause in &causes {
            let about = format!("  {}: ", cause.about);
            wrap(&mut text, &about, 4, &cause.message);
        }
    }
    let seen = if all.is_known {
        ""
    } else {
        ", as they were last seen. Whether an operator runs only its Lease tells, and Leases cannot be listed"
    };
    let last = match (all.pools.len(), free) {
        (0, _) => "There is no CudaRunner.".to_owned(),
        (_, 0) => return text,
        (of, _) if free == of => format!("Nothing holds any of the {free} pools{seen}."),
        (of, _) if unserved > 0 => format!("Nothing holds {free} of the {of} pools{seen}."),
        (of, _) => format!("Nothing holds the other pools, {free} of {of}{seen}."),
    };
    wrap(&mut text, "", 0, &last);
    text
}

/// The same for programs.
pub(crate) fn json_of_all(all: &All) -> Value {
    let of = |(pool, is_absent): (&CudaRunner, bool)| {
        json!({
            "namespace": pool.namespace(), "name": pool.name_any(), "causes": causes(pool),
            "served": all.is_known.then_some(!is_absent),
        })
    };
    json!({"pools": all.each().map(of).collect::<Vec<_>>()})
}
