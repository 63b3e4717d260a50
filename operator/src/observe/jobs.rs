//! How jobs ended, as GitHub says it: read for a run at a time.

use std::collections::BTreeSet;

use cudarunner_crds::JobStatus;
use jiff::{SignedDuration, Timestamp};

use crate::context::Context;
use crate::github::{Client, Error, Repository, RunJob};
use cuda_runner_plan::Access;
use cuda_runner_plan::jobs::{BATCH, next_look, noted, run_of, to_ask};
use cuda_runner_plan::model::jobs::{JobFacts, RunKey};
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::verification::VerificationFacts;

/// How long credentials that may not read runs are not tried with.
const DENIED: SignedDuration = SignedDuration::from_mins(30);
/// How often a run that is not found is looked for.
const LOOKS: u32 = 3;

/// Reads what is due, into the pool's memory; gives what is known.
pub async fn look(
    ctx: &Context,
    pool: &Pool,
    runners: impl Iterator<Item = &Runner>,
    client: Option<&Client>,
    verification: &VerificationFacts,
    now: Timestamp,
) -> JobFacts {
    // Also of jobs that the status does not have yet: then one write tells that a job has ended, and how.
    let noted = noted(pool, runners);
    let listed: BTreeSet<RunKey> = noted.iter().filter_map(run_of).collect();
    let (mut facts, access) = ctx.memory.with(pool, |memory| {
        let jobs = &mut memory.github.jobs;
        jobs.runs.retain(|run, _| listed.contains(run));
        jobs.missed.retain(|run, _| listed.contains(run));
        (jobs.clone(), memory.github.access == Access::Granted)
    });
    let due = next_look(&noted, &facts).is_some_and(|at| now >= at);
    let mut wanted = to_ask(&noted, verification);
    if !due || wanted.is_empty() || pool.deleting.is_some() {
        return facts;
    }
    facts.looked = Some(now);
    facts.next_look = Some(now.after(BATCH));
    // A run that was looked for often enough and is not there does not come back.
    wanted.retain(|run| !matches!(facts.runs.get(run), Some(None)));
    let denied = facts.denied_until.is_some_and(|until| now < until);
    // Runners need the credential's requests more than this does.
    if let Some(client) = client.filter(|client| access && !denied && !client.is_short()) {
        ask(client, &noted, wanted, &mut facts, now).await;
    }
    ctx.memory
        .with(pool, |memory| memory.github.jobs = facts.clone());
    facts
}

async fn ask(
    client: &Client,
    noted: &[JobStatus],
    wanted: BTreeSet<RunKey>,
    facts: &mut JobFacts,
    now: Timestamp,
) {
    let answers = wanted.into_iter().map(|run| async move {
        let read = match Repository::new(&run.0) {
            // A job that was run again at once is not among those of the last attempt.
            Some(repository) => client.jobs_of_all_attempts(&repository, run.1).await,
            None => Ok(None),
        };
        (run, read)
    });
    for (run, read) in futures::future::join_all(answers).await {
        match read {
            Ok(None) if is_missed(facts, &run) => {}
            Ok(jobs) => {
                facts.missed.remove(&run);
                facts.runs.insert(run, jobs.map(|jobs| ours(noted, jobs)));
            }
            Err(Error::Forbidden { .. }) => facts.denied_until = Some(now.after(DENIED)),
            Err(error) => {
                tracing::debug!(%error, "how jobs ended could not be read");
                facts.next_look = Some(now.after(error.pause_of_at_least(BATCH, now)));
            }
        }
    }
}

/// Whether a run that was not found is looked for again: one answer of that kind may be another server's, or come too early.
fn is_missed(facts: &mut JobFacts, run: &RunKey) -> bool {
    let times = facts.missed.entry(run.clone()).or_default();
    *times = times.saturating_add(1);
    *times < LOOKS
}

/// A run may have a hundred jobs of others.
fn ours(noted: &[JobStatus], mut jobs: Vec<RunJob>) -> Vec<RunJob> {
    let listed = |name: &String| noted.iter().any(|job| job.runner == *name);
    jobs.retain(|job| job.runner_name.as_ref().is_some_and(listed));
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_not_given_up_at_the_first_look() {
        let run = ("acme/widgets".to_owned(), 7);
        let mut facts = JobFacts::default();
        let looks: Vec<bool> = (0..3).map(|_| is_missed(&mut facts, &run)).collect();
        assert_eq!(looks, [true, true, false]);
    }
}
