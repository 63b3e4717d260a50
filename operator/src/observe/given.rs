//! Which job a runner had, where its pod cannot tell any more: GitHub lists the jobs of a repository that run, each with its
//! runner.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::context::Context;
use crate::github::RepositoryJobs;
use cuda_runner_plan::model::pool::{Pool, RegistrationKind};
use cuda_runner_plan::model::runner::{Job, Runner};
use cuda_runner_plan::model::time::Shift as _;

/// How soon the list is read again for a runner that is being lost.
const AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// Notes the jobs of the pool's runners, which have these names, of a list that was just read.
pub(super) fn note(
    given: &mut BTreeMap<String, Job>,
    names: &BTreeSet<String>,
    jobs: &RepositoryJobs,
) {
    given.retain(|name, _| names.contains(name));
    let ours = jobs.running.iter().filter(|(name, _)| names.contains(name));
    given.extend(ours.cloned());
}

/// Notes of runners that leave no word of their job what GitHub's list had of it.
pub(super) fn name_jobs<'a>(
    ctx: &Context,
    pool: &Pool,
    runners: impl Iterator<Item = &'a mut Runner>,
) {
    ctx.memory.with(pool, |memory| {
        let given = &memory.github.given;
        for runner in runners.filter(|r| r.done.is_none() && r.heard.is_none()) {
            runner.heard = given.get(&runner.name).cloned().map(Box::new);
        }
    });
}

/// The runners that Kubernetes takes away, since when, where the pool re-runs their jobs and the list may have these.
pub(super) fn leaving(ctx: &Context, pool: &Pool) -> Vec<(String, Timestamp)> {
    let mut leaving = vec![];
    let wants = pool.spec.as_ref().is_ok_and(|spec| {
        let wants = spec.rerun.as_ref().is_some_and(|wish| wish.on_node_loss);
        wants && spec.url.is_repository() && spec.registration != RegistrationKind::ScaleSet
    });
    if wants {
        ctx.pods.each(&pool.key, &pool.uid, |runner| {
            let since = runner.disruption.as_ref().and_then(|by| by.at);
            let is_named = runner.done.is_some() || runner.under_way.is_some();
            if let Some(since) = since.filter(|_| !is_named) {
                leaving.push((runner.name.clone(), since));
            }
        });
    }
    leaving
}

/// Whether the list is to be read for one of these, which was last read then.
pub(super) fn is_sought(
    leaving: &[(String, Timestamp)],
    given: &BTreeMap<String, Job>,
    read: Timestamp,
    now: Timestamp,
) -> bool {
    let mut leaving = leaving.iter();
    leaving.any(|(name, since)| !given.contains_key(name) && read < *since)
        && now >= read.after(AGAIN)
}

#[cfg(test)]
mod tests {
    use cuda_runner_plan::fixture::{NOW, ago};

    use super::*;

    #[test]
    fn the_list_is_read_once_for_a_runner_that_is_being_lost() {
        let given = BTreeMap::from([("pool-known".to_owned(), Job::default())]);
        let leaving = |name: &str| [(name.to_owned(), ago(60))];
        let table = [
            // read so long ago, whose node is lost, sought
            (120, "pool-aaaaa", true),
            (120, "pool-known", false),
            // Read since then: GitHub names no job, or none that still runs.
            (60, "pool-aaaaa", false),
            (45, "pool-aaaaa", false),
        ];
        for (seconds, name, sought) in table {
            let read = ago(seconds);
            let is_sought = is_sought(&leaving(name), &given, read, NOW);
            assert_eq!(is_sought, sought, "{name} read {seconds} s ago");
        }
        // Where the API server's clock is ahead, as often as this at most.
        assert!(!is_sought(&leaving("pool-aaaaa"), &given, ago(70), ago(50)));
        assert!(!is_sought(&[], &given, ago(3600), NOW));
    }
}
