//! The runs of jobs that a GPU or a node ended. Asked only while one of them is to be run again.

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::RerunState;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};

use crate::context::Context;
use crate::github::{Client, Error, Repository, RunJob};
use crate::memory::RerunMemory;
use cuda_runner_plan::Access;
use cuda_runner_plan::model::jobs::RunKey;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::rerun::{RerunFacts, RunFacts};
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::rerun::{FRESH, open_runs, remember, run_of};

/// How often runs are read that are not over. An answer that has not changed costs nothing.
const POLL: SignedDuration = SignedDuration::from_secs(30);
/// Runs that are read at a time.
const AT_ONCE: usize = 4;

/// Reads what is due, into the pool's memory; gives what is known.
pub(super) async fn look(
    ctx: &Context,
    pool: &Pool,
    runners: impl Iterator<Item = &Runner>,
    client: Option<&Client>,
    now: Timestamp,
) -> RerunFacts {
    let is_wanted = pool.spec.as_ref().is_ok_and(|spec| spec.rerun.is_some());
    if !is_wanted || pool.deleting.is_some() {
        ctx.memory.with(pool, |memory| {
            memory.reruns.facts = RerunFacts::default();
        });
        return RerunFacts::default();
    }
    let runners: Vec<&Runner> = runners.collect();
    let (mut facts, access) = ctx.memory.with(pool, |memory| {
        let RerunMemory { facts, boots, .. } = &mut memory.reruns;
        note_boots(ctx, &runners, boots);
        let known = std::mem::take(&mut facts.ended);
        facts.ended = remember(pool, runners.into_iter(), boots, known, now);
        (facts.clone(), memory.github.access == Access::Granted)
    });
    let cut = facts.ended.iter().filter(|job| job.cut.is_some());
    let boots = cut.filter_map(|job| Some((job.node.clone(), boot_id(ctx, &job.node)?)));
    facts.boots = boots.collect();
    let open = open_runs(&pool.status.reruns);
    facts.runs.retain(|run, _| open.contains(run));
    // An answer is for those that were asked for, and is in the status by the time that nothing is asked.
    facts.answers.retain(|run, _| is_asked(pool, run));
    let is_due = facts.next_look.is_none_or(|at| now >= at);
    let is_open = |run: &RunKey| {
        let read = facts.runs.get(run);
        let is_over = |read: &RunFacts| {
            let run = read.run.as_ref();
            run.is_some_and(|run| run.status == "completed") && now < read.read.after(FRESH)
        };
        !facts.answers.contains_key(run) && !read.is_some_and(is_over)
    };
    let wanted: Vec<RunKey> = open.into_iter().filter(is_open).collect();
    if is_due && !wanted.is_empty() {
        facts.next_look = Some(now.after(POLL));
        facts.denied.clear();
        // Runners need the credential's requests more than this does.
        if let Some(client) = client.filter(|client| access && !client.is_short()) {
            read_all(client, pool, wanted, &mut facts, now).await;
        }
    }
    ctx.memory
        .with(pool, |memory| memory.reruns.facts = facts.clone());
    facts
}

/// Notes in which boot of its node each agent runs. Of pods that are gone nothing is kept.
fn note_boots(ctx: &Context, runners: &[&Runner], boots: &mut BTreeMap<String, String>) {
    let there: BTreeSet<&String> = runners.iter().map(|runner| &runner.uid).collect();
    boots.retain(|uid, _| there.contains(uid));
    for runner in runners {
        let node = runner.node.as_ref().filter(|_| runner.agent_running);
        if !boots.contains_key(&runner.uid)
            && let Some(boot) = node.and_then(|node| boot_id(ctx, node))
        {
            boots.insert(runner.uid.clone(), boot);
        }
    }
}

/// A node's boot id, as it tells it.
fn boot_id(ctx: &Context, node: &str) -> Option<String> {
    ctx.nodes.as_ref()?.named(node)?.boot_id.clone()
}

/// Whether jobs of a run were asked for.
fn is_asked(pool: &Pool, run: &RunKey) -> bool {
    let mut entries = pool.status.reruns.iter();
    entries.any(|e| e.state == RerunState::Requested && run_of(e).as_ref() == Some(run))
}

async fn read_all(
    client: &Client,
    pool: &Pool,
    wanted: Vec<RunKey>,
    facts: &mut RerunFacts,
    now: Timestamp,
) {
    let mut answers = futures::stream::iter(wanted)
        .map(|run| async move {
            let read = read(client, pool, &run, now).await;
            (run, read)
        })
        .buffer_unordered(AT_ONCE);
    while let Some((run, read)) = answers.next().await {
        match read {
            Ok(read) => {
                facts.runs.insert(run, read);
            }
            Err(error @ Error::Forbidden { .. }) => {
                facts.denied.insert(run, format!("{error}."));
            }
            Err(error) => {
                tracing::debug!(%error, "a run whose jobs are to be run again could not be read");
                let next = now.after(error.pause_of_at_least(POLL, now));
                facts.next_look = facts.next_look.max(Some(next));
            }
        }
    }
}

/// One request while the run goes on, three when it is over.
async fn read(
    client: &Client,
    pool: &Pool,
    (repository, id): &RunKey,
    now: Timestamp,
) -> Result<RunFacts, Error> {
    let mut facts = RunFacts {
        read: now,
        run: None,
        jobs: vec![],
        latest: vec![],
    };
    let Some(repository) = Repository::new(repository) else {
        return Ok(facts);
    };
    facts.run = client.run(&repository, *id).await?;
    if let Some(run) = facts.run.as_ref().filter(|r| r.status == "completed") {
        let jobs = client.run_jobs(&repository, *id);
        let latest = client.latest_runs(&repository, run);
        let (jobs, latest) = futures::try_join!(jobs, latest)?;
        facts.jobs = ours(pool, jobs.unwrap_or_default());
        facts.latest = latest;
    }
    Ok(facts)
}

/// A run may have a hundred jobs of others.
fn ours(pool: &Pool, mut jobs: Vec<RunJob>) -> Vec<RunJob> {
    let prefix = format!("{}-", pool.key.name);
    let is_ours = |name: &String| name.starts_with(&prefix);
    jobs.retain(|job| job.runner_name.as_ref().is_some_and(is_ours));
    jobs
}
