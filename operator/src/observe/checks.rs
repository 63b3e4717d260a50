//! What GitHub says of the required checks. Asked only while a pool has to do with them.

use std::collections::BTreeMap;

use cudarunner_crds::{ChecksMode, VerificationStatus};
use jiff::{SignedDuration, Timestamp};

use crate::context::Context;
use crate::github::{Client, Error, Protection, Repository};
use crate::memory::ChecksMemory;
use cuda_runner_plan::Access;
use cuda_runner_plan::checks::{
    asked_of, branches, green, has_gone_on, is_concerned, place, record, repository, ruleset_name,
    unseen,
};
use cuda_runner_plan::model::checks::{Branch, CheckFacts};
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::runners::SWEEP;
use cuda_runner_plan::verify::workflow;

/// How often pull requests are looked at while a name was not seen on one.
const UNSEEN: SignedDuration = SignedDuration::from_secs(30);
/// How often a branch is looked at that has no protection: such an answer costs a request each time.
const UNPROTECTED: SignedDuration = SignedDuration::from_mins(30);
/// After a request that failed.
const AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// Reads what is due, into the pool's memory; gives what is known.
pub async fn look(
    ctx: &Context,
    pool: &Pool,
    client: Option<&Client>,
    now: Timestamp,
) -> CheckFacts {
    if !is_concerned(pool) {
        return CheckFacts::default();
    }
    let (mut memory, access) = remembered(ctx, pool);
    let asked = (pool.generation, pool.look_again.clone());
    let changed = memory.asked.as_ref() != Some(&asked);
    let proven = memory.facts.proven.as_ref().map(|(run, _)| *run);
    let is_new = |green: &&VerificationStatus| green.run_id.is_some() && green.run_id != proven;
    // With the pool its checks go: there is nothing more to prove.
    let to_prove = green(pool)
        .filter(|_| pool.deleting.is_none())
        .filter(is_new);
    let is_sought = to_prove.is_some_and(|green| green.run_id != memory.facts.sought);
    let due = memory.facts.next_look.is_none_or(|at| now >= at);
    let failed = memory.facts.trouble.is_some();
    let (Some(client), Some(repository), true) = (client, repository(pool), access) else {
        return memory.facts;
    };
    if !due && (failed || !changed && !is_sought && memory.facts.read.is_some()) {
        return memory.facts;
    }
    let mut look = Look {
        client,
        pool,
        repository: &repository,
        facts: CheckFacts {
            trouble: None,
            ..memory.facts
        },
        everything: changed,
        now,
    };
    let outcome = look.all(to_prove).await;
    let mut facts = look.facts;
    match outcome {
        Ok(()) => {
            facts.read = Some(now);
            if !has_gone_on(pool) {
                facts.refusals = 0;
            }
            facts.next_look = Some(now.after(pause(pool)));
            memory.asked = Some(asked);
        }
        Err(error) => note_failure(&mut facts, pool, &error, now),
    }
    ctx.memory.with(pool, |m| {
        m.checks.facts = facts.clone();
        m.checks.asked = memory.asked;
    });
    facts
}

/// What is remembered, of another repository nothing; and whether GitHub accepts the credentials.
fn remembered(ctx: &Context, pool: &Pool) -> (ChecksMemory, bool) {
    let place = place(pool);
    ctx.memory.with(pool, |memory| {
        if memory.checks.place != place {
            memory.checks = ChecksMemory {
                place,
                ..ChecksMemory::default()
            };
        }
        let is_in = memory.github.access == Access::Granted;
        (memory.checks.clone(), is_in)
    })
}

/// How long a look is good for.
fn pause(pool: &Pool) -> SignedDuration {
    let may_be_unseen = asked_of(pool).is_some_and(|asked| asked.allow_unseen);
    if pool.deleting.is_none() && !may_be_unseen && unseen(record(pool)) {
        UNSEEN
    } else {
        SWEEP
    }
}

/// Notes what GitHub did not do, and waits. What is refused is counted while the pool could go on without it.
pub(crate) fn note_failure(facts: &mut CheckFacts, pool: &Pool, error: &Error, now: Timestamp) {
    if !has_gone_on(pool) {
        facts.refusals = 0;
    } else if !error.is_transient() && !matches!(error, Error::Unauthorized { .. }) {
        facts.refusals = facts.refusals.saturating_add(1);
    }
    facts.next_look = Some(now.after(error.pause(now).unwrap_or(AGAIN)));
    facts.trouble = Some((error.reason(), error.to_string()));
}

/// A look that is under way.
struct Look<'a> {
    client: &'a Client,
    pool: &'a Pool,
    repository: &'a Repository,
    facts: CheckFacts,
    /// Branches without protection, too, however lately they were read.
    everything: bool,
    now: Timestamp,
}

impl Look<'_> {
    async fn all(&mut self, to_prove: Option<&VerificationStatus>) -> Result<(), Error> {
        if let Some(run) = to_prove.and_then(|green| green.run_id) {
            self.prove(run).await?;
        }
        if unseen(record(self.pool))
            && self.pool.deleting.is_none()
            && let Some(workflow) = workflow(self.pool)
        {
            let reported = self.client.pull_request_jobs(&workflow).await?;
            self.facts.reported = reported.ran;
            self.facts.skipped = reported.skipped;
        }
        self.branches().await?;
        let name = ruleset_name(self.pool);
        self.facts.ruleset = if self.needs_ruleset() {
            self.client.find_ruleset(self.repository, &name).await?
        } else {
            None
        };
        Ok(())
    }

    /// Reads the green run: its checks, the names that other workflows report for its commit, and the workflow's file.
    async fn prove(&mut self, run: i64) -> Result<(), Error> {
        let Ok(number) = u64::try_from(run) else {
            return Ok(());
        };
        let (client, repository) = (self.client, self.repository);
        self.facts.sought = Some(run);
        // One that is not found was deleted, or is not found at the moment: what was proven before stays.
        let Some(found) = client.run(repository, number).await? else {
            return Ok(());
        };
        let checks = client.checks_of_run(repository, &found).await?;
        self.facts.elsewhere = client.jobs_of_other_workflows(repository, &found).await?;
        if let Some(workflow) = workflow(self.pool) {
            let branch = workflow.git_ref.clone();
            self.facts.triggers = self.client.triggers(&workflow, &branch).await?;
        }
        self.facts.proven = Some((run, checks));
        Ok(())
    }

    async fn branches(&mut self) -> Result<(), Error> {
        let mut known = BTreeMap::new();
        for name in branches(self.pool) {
            let last = self.facts.branches.get(&name);
            let lately = |at: Timestamp| self.now < at.after(UNPROTECTED);
            let bare = last.filter(|branch| {
                !self.everything
                    && self.facts.read.is_some()
                    && !matches!(branch.protection, Protection::Requires(_))
                    && lately(branch.read)
            });
            let branch = match bare {
                Some(branch) => branch.clone(),
                None => Branch {
                    protection: self.client.protection(self.repository, &name).await?,
                    rules: self.client.branch_rules(self.repository, &name).await?,
                    read: self.now,
                },
            };
            known.insert(name, branch);
        }
        self.facts.branches = known;
        Ok(())
    }

    fn needs_ruleset(&self) -> bool {
        let record = record(self.pool);
        record.is_some_and(|record| record.ruleset.is_some())
            || asked_of(self.pool).is_some_and(|asked| asked.mode == ChecksMode::Ruleset)
    }
}
