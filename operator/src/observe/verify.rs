//! The run of a verification, as GitHub shows it. Asked only while one is on its way.

use cudarunner_crds::{VerificationState, VerificationStatus};
use jiff::{SignedDuration, Timestamp};

use crate::context::Context;
use crate::github::{Client, Error};
use cuda_runner_plan::Access;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::model::verification::{Dispatch, VerificationFacts};
use cuda_runner_plan::verify::{POLL, SLOW_POLL, SURELY_LISTED, is_here, is_late, workflow};

/// Clocks differ, and GitHub counts whole seconds: how much earlier than our word a run of ours may look.
const SKEW: SignedDuration = SignedDuration::from_secs(30);

/// A run that was not found for so long is gone.
const SURELY_GONE: SignedDuration = SignedDuration::from_secs(60);

/// Reads what is due, into the pool's memory; gives what is known.
pub async fn look(
    ctx: &Context,
    pool: &Pool,
    client: Option<&Client>,
    now: Timestamp,
) -> VerificationFacts {
    let Some(status) = pool
        .status
        .verification
        .as_ref()
        .filter(|v| !v.stage().has_ended())
    else {
        return VerificationFacts::default();
    };
    let (mut facts, access) = ctx.memory.with(pool, |memory| {
        if memory.verification.since != Some(status.since.0) {
            memory.verification = VerificationFacts {
                since: Some(status.since.0),
                // Only the process that has written the intent knows that nothing was sent for it yet.
                dispatch: if memory.intent == Some(status.since.0) {
                    Dispatch::Open
                } else {
                    Dispatch::Unknown
                },
                ..VerificationFacts::default()
            };
        }
        (
            memory.verification.clone(),
            memory.github.access == Access::Granted,
        )
    });
    // With the pool, or in a repository that its spec does not name, nothing more is to come of it.
    let spec = pool.spec.as_ref();
    let goes_on = pool.deleting.is_none() && spec.is_ok_and(|spec| is_here(status, spec));
    let due = goes_on && facts.next_look.is_none_or(|at| now >= at);
    let (Some(client), Some(workflow), true, true) = (client, workflow(pool), due, access) else {
        return facts;
    };
    if facts.run_id.is_none() {
        facts.run_id = status.run_id.and_then(|id| u64::try_from(id).ok());
    }
    let asked = match (facts.run_id, status.stage()) {
        (Some(run), _) => read_run(client, pool, &workflow.repository, run, &mut facts, now).await,
        (None, VerificationState::Requested) if facts.is_to_be_found() => {
            find(client, &workflow, status, &mut facts, now).await
        }
        (None, _) => return facts,
    };
    let pause = if is_late(status) { SLOW_POLL } else { POLL };
    facts.next_look = Some(now.after(pause));
    facts.trouble = None;
    if let Err(error) = asked {
        facts.next_look = Some(now.after(error.pause(now).unwrap_or(SLOW_POLL).max(pause)));
        facts.trouble = Some(error.to_string());
    }
    ctx.memory
        .with(pool, |memory| memory.verification = facts.clone());
    facts
}

/// Looks for the run of a dispatch whose answer did not name it, or was lost.
async fn find(
    client: &Client,
    workflow: &crate::github::Workflow,
    status: &VerificationStatus,
    facts: &mut VerificationFacts,
    now: Timestamp,
) -> Result<(), Error> {
    let since = status.since.0;
    // A run of an earlier verification is not this one's, however clocks differ. Numbers say nothing: those of another server, or
    // of one that was set back, may be lower.
    let is_earlier = |id: u64| {
        let mut past = status.history.iter().filter_map(|past| past.run_id);
        past.any(|past| u64::try_from(past) == Ok(id))
    };
    let found = client.find_dispatched(workflow, since.before(SKEW)).await?;
    match found.filter(|run| !is_earlier(run.id)) {
        Some(run) => facts.run_id = Some(run.id),
        // A list lags: only one that was read late enough proves that nothing was started.
        None if now >= facts.sent.unwrap_or(since).after(SURELY_LISTED) => {
            facts.dispatch = Dispatch::Open;
            facts.sent = None;
        }
        None => {}
    }
    Ok(())
}

/// Notes that GitHub does not show the run. It may do so for a moment of one that is there.
fn is_missing(facts: &mut VerificationFacts, now: Timestamp) {
    let since = *facts.missing_since.get_or_insert(now);
    facts.is_gone = now >= since.after(SURELY_GONE);
}

async fn read_run(
    client: &Client,
    pool: &Pool,
    repository: &crate::github::Repository,
    id: u64,
    facts: &mut VerificationFacts,
    now: Timestamp,
) -> Result<(), Error> {
    let (run, jobs) =
        futures::try_join!(client.run(repository, id), client.run_jobs(repository, id))?;
    let (Some(run), Some(jobs)) = (run, jobs) else {
        is_missing(facts, now);
        return Ok(());
    };
    facts.missing_since = None;
    if facts.run.is_none() || run.status == "pending" || run.status == "waiting" {
        facts.held_until = (run.status == "pending" || run.status == "waiting").then_some(now);
    }
    facts.run = Some(run);
    facts.jobs = jobs;
    for job in cuda_runner_plan::verify::logs_wanted(pool, facts) {
        if let Some(sum) = client.test_sum(repository, job).await? {
            facts.sums.insert(job, sum);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::github::tests::stub::{Stub, reply};
    use cuda_runner_plan::fixture;
    use cuda_runner_plan::model::github::{Repository, Workflow};
    use serde_json::json;

    #[tokio::test]
    async fn a_run_is_found_though_earlier_ones_had_higher_numbers() {
        // Given verifications whose runs had these numbers, before the server was another one
        let past = |id: u64| json!({"runId": id, "state": "Succeeded", "since": fixture::NOW, "ended": fixture::NOW});
        let status: VerificationStatus = serde_json::from_value(json!({
            "state": "Requested", "fingerprint": "a", "since": fixture::NOW,
            "history": [past(9_000_000_000), past(8)],
        }))
        .unwrap();
        let workflow = Workflow {
            repository: Repository::new("acme/widgets").unwrap(),
            file: "cuda.yml".to_owned(),
            git_ref: "main".to_owned(),
        };
        for (newest, is_ours) in [(7, true), (8, false)] {
            // When the newest run has this number
            let stub = Stub::start(move |_, _| {
                let run = json!({
                    "id": newest, "status": "queued", "conclusion": null, "created_at": fixture::NOW,
                    "html_url": "", "head_sha": "a", "workflow_id": 1, "check_suite_id": 1,
                });
                reply(200, &json!({"total_count": 1, "workflow_runs": [run]}))
            })
            .await;
            let client = stub.client("acme/widgets");
            let mut facts = VerificationFacts::default();
            find(&client, &workflow, &status, &mut facts, fixture::NOW)
                .await
                .unwrap();
            // Then it is this one's unless it was an earlier one's
            assert_eq!(facts.run_id, is_ours.then_some(newest));
        }
    }

    #[test]
    fn a_run_that_is_not_found_once_is_not_gone() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut facts = VerificationFacts::default();
        for (second, is_gone) in [(0, false), (5, false), (59, false), (60, true)] {
            is_missing(&mut facts, at(second));
            assert_eq!(facts.is_gone, is_gone, "{second}");
        }
    }
}
