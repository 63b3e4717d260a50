//! Jobs that are run again: GitHub is asked, and the commit told.

use cuda_runner_plan::model::github::Repository;
use cuda_runner_plan::model::rerun::{Answer, CheckNote, NewAttempt, RerunFacts, Untold};
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::reason::Reason;
use jiff::{SignedDuration, Timestamp};

use super::{Done, Executor};
use crate::error::ActError;
use crate::github::Error;

/// How soon a run is read again whose jobs GitHub does not run again yet, or of which no good answer came: by then its
/// attempt shows whether they were.
const AGAIN: SignedDuration = SignedDuration::from_secs(20);
/// How long credentials that may not write checks are not tried with.
const DENIED: SignedDuration = SignedDuration::from_mins(30);

impl Executor<'_> {
    /// Runs jobs again. Whatever comes of it is the plan's to judge, at the next reconcile.
    pub(super) async fn run_again(&self, new: &NewAttempt) -> Result<Done, ActError> {
        let answer = self.github()?.run_again(new).await;
        let is_started = answer.is_ok();
        self.ctx.memory.with(self.pool, |memory| {
            answered(&mut memory.reruns.facts, new, answer, Timestamp::now());
        });
        if is_started {
            self.tell(&new.repository, &new.note, false).await;
        }
        Ok(Done::Yes)
    }

    /// Tells of jobs that are run again, where the answer reached nobody, or its reader may have died before it told, or after.
    pub(super) async fn tell_unless_told(&self, untold: &Untold) -> Result<Done, ActError> {
        self.tell(&untold.repository, &untold.note, true).await;
        Ok(Done::Yes)
    }

    /// Tells of it on the commit, where the credentials may. The status and the Event tell it anyway.
    async fn tell(&self, repository: &Repository, note: &CheckNote, may_be_told: bool) {
        let now = Timestamp::now();
        let until = self
            .ctx
            .memory
            .with(self.pool, |memory| memory.reruns.untold_until);
        let (Ok(github), true) = (self.github(), until.is_none_or(|until| until <= now)) else {
            return;
        };
        let told = if may_be_told {
            github.tell_once(repository, note).await
        } else {
            github.tell(repository, note).await
        };
        let Err(error) = told else {
            return;
        };
        tracing::info!(pool = %self.pool.key, %error, "a re-run is not reported on its commit");
        if !error.is_transient() {
            self.ctx.memory.with(self.pool, |memory| {
                memory.reruns.untold_until = Some(now.after(DENIED));
            });
        }
    }
}

/// Takes in what GitHub said.
fn answered(facts: &mut RerunFacts, new: &NewAttempt, answer: Result<(), Error>, now: Timestamp) {
    let run = (new.repository.full_name().to_owned(), new.run);
    // What was read is of before.
    facts.runs.remove(&run);
    let answer = match answer.map_err(|error| (refusal(&error), error)) {
        Ok(()) => Answer::Started,
        Err((Some((reason, message)), _)) => Answer::Refused { reason, message },
        Err((None, error)) => {
            let next = now.after(error.pause_of_at_least(AGAIN, now));
            facts.next_look = facts.next_look.max(Some(next));
            return;
        }
    };
    facts.answers.insert(run, answer);
}

/// Why GitHub will not run the jobs again; `None` where it may yet. GitHub tells the cases apart by its words only.
fn refusal(error: &Error) -> Option<(Reason, String)> {
    match error {
        // See <https://github.com/orgs/community/discussions/176756>.
        Error::Forbidden { message, .. } if message.contains("already running") => None,
        Error::Forbidden { message, .. } if is_of_the_run(message) => {
            Some((Reason::RerunRefused, format!("GitHub refused: {message}.")))
        }
        Error::Forbidden { .. } => Some((Reason::RerunNotAllowed, format!("{error}."))),
        Error::NotFound { .. } | Error::Validation { .. } => {
            Some((Reason::RerunRefused, format!("{error}.")))
        }
        _ => None,
    }
}

/// Whether a refusal is about the run, and not about the credentials.
fn is_of_the_run(message: &str) -> bool {
    let message = message.to_lowercase();
    let mut words = ["retr", "re-run", "rerun", "workflow"].iter();
    words.any(|word| message.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::model::rerun::RunFacts;

    use crate::act::act;
    use crate::context::Context;
    use crate::github::tests::stub::{Stub, error, reply};
    use crate::reconcile::tests::{Cluster, context};
    use cuda_runner_plan::{Action, Plan, fixture};
    use serde_json::json;

    const NOW: Timestamp = Timestamp::constant(1_000, 0);

    /// A job of a run, and what is said of it.
    fn again(run: u64) -> NewAttempt {
        NewAttempt {
            repository: Repository::new("acme/widgets").unwrap(),
            run,
            job: Some(1),
            note: CheckNote {
                id: "rerun-7-1".to_owned(),
                sha: "5ca1ab1e".to_owned(),
                title: "GPU fault, job run again".to_owned(),
                summary: "what was found".to_owned(),
                url: None,
            },
        }
    }

    /// What GitHub is asked for when these runs' jobs are run again, where it answers checks so.
    async fn asked(ctx: &Context, runs: [u64; 2], checks: u16) -> Vec<String> {
        let stub = Stub::start(move |seen, _| {
            if checks != 201 && seen.path.ends_with("/check-runs") {
                error(checks, "Resource not accessible by integration")
            } else {
                reply(201, &json!({}))
            }
        })
        .await;
        for run in runs {
            let mut plan = Plan {
                actions: vec![Action::RunAgain(again(run))],
                ..Plan::default()
            };
            let client = Some(stub.client("acme/widgets"));
            let outcome = act(ctx, &fixture::pool(1), client, &mut plan).await;
            assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        }
        let last = |path: &str| path.rsplit('/').next().unwrap().to_owned();
        stub.seen().iter().map(|seen| last(&seen.path)).collect()
    }

    #[tokio::test]
    async fn who_may_not_write_checks_runs_jobs_again_and_tells_nothing_there_for_a_while() {
        let ctx = context(&Cluster::default()).await;
        let memory = |look: &dyn Fn(&mut crate::memory::RerunMemory)| {
            ctx.memory
                .with(&fixture::pool(1), |memory| look(&mut memory.reruns));
        };
        // Given an App without Checks: write, then jobs are run again, and it is tried once
        assert_eq!(
            asked(&ctx, [1, 2], 403).await,
            ["rerun", "check-runs", "rerun"]
        );
        memory(&|reruns| {
            let started = reruns
                .facts
                .answers
                .values()
                .filter(|a| **a == Answer::Started);
            assert_eq!(started.count(), 2);
            let wait = reruns
                .untold_until
                .unwrap()
                .duration_since(Timestamp::now());
            assert!(wait > SignedDuration::from_mins(29) && wait <= DENIED);
            // When it may be granted by now, then it is tried again
            reruns.untold_until = Some(Timestamp::now());
        });
        let both = ["rerun", "check-runs", "rerun", "check-runs"];
        assert_eq!(asked(&ctx, [3, 4], 201).await, both);
        // And a GitHub that stumbles is no denial
        memory(&|reruns| reruns.untold_until = None);
        assert_eq!(asked(&ctx, [5, 6], 502).await, both);
    }

    fn forbidden(message: &str) -> Error {
        Error::Forbidden {
            action: "run the job 1 again".into(),
            advice: "grant Actions: write".into(),
            message: message.into(),
        }
    }

    fn after(answer: Result<(), Error>) -> RerunFacts {
        let new = again(7);
        let run = ("acme/widgets".to_owned(), 7);
        let read = RunFacts {
            read: NOW,
            run: None,
            jobs: vec![],
            latest: vec![],
        };
        let mut facts = RerunFacts::default();
        facts.runs.insert(run, read);
        answered(&mut facts, &new, answer, NOW);
        assert!(facts.runs.is_empty(), "what was read is of before");
        facts
    }

    #[test]
    fn a_run_that_goes_on_and_an_answer_that_was_lost_are_looked_at_again() {
        let lost = Error::Server {
            action: String::new(),
            status: 502,
            message: String::new(),
        };
        let running = forbidden("The workflow run containing this job is already running");
        for error in [lost, running] {
            let facts = after(Err(error));
            assert!(facts.answers.is_empty());
            assert_eq!(facts.next_look, Some(NOW.after(AGAIN)));
        }
    }

    #[test]
    fn what_github_will_never_do_ends_it() {
        let said = |error: Error| {
            let answers = after(Err(error)).answers.into_values().next();
            match answers {
                Some(Answer::Refused { reason, .. }) => Some(reason),
                _ => None,
            }
        };
        let old = "Unable to retry this workflow run because it was created over a month ago";
        let lacks = "Resource not accessible by integration";
        assert_eq!(said(forbidden(old)), Some(Reason::RerunRefused));
        assert_eq!(said(forbidden(lacks)), Some(Reason::RerunNotAllowed));
    }

    #[test]
    fn what_is_run_again_is_not_asked_for_twice() {
        let answers = after(Ok(())).answers;
        assert_eq!(answers.into_values().next(), Some(Answer::Started));
    }
}
