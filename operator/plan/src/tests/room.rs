//! Given pods in any state, then there are never more than the maximum, and those that are kept are in nobody's way.

use std::collections::BTreeSet;

use cudarunner_crds::RunnerPhase;
use gate_report::Class;
use jiff::SignedDuration;
use proptest::prelude::*;

use super::super::fixture::{NOW, ago, observed, pool, runner};
use super::super::{Action, Plan, plan};
use super::{created, removed, second};
use crate::model::pool::Pool;
use crate::model::runner::{End, Failure};
use crate::model::runner::{Runner, Waiting};
use crate::reason::Reason;

#[test]
fn a_runner_that_is_taken_out_keeps_its_place_until_it_is_gone() {
    let pool = pool(1);
    let mut hung = runner(&pool, "pool-aaaaa", RunnerPhase::Gated);
    hung.since = ago(3600);
    let mut outdated = runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
    outdated.avoids = BTreeSet::from(["node-9".to_owned()]);
    for leaving in [hung, outdated] {
        let seen = observed(vec![leaving]);
        assert_eq!(created(&plan(&pool, &seen, NOW)), 0);
        let planned = second(&pool, &seen);
        assert_eq!(removed(&planned), ["pool-aaaaa"]);
        assert_eq!(created(&planned), 0);
    }
}

/// What is there of a runner that keeps it from being replaced.
fn is_there(runner: &Runner) -> bool {
    runner.end.is_none() || !runner.is_over
}

proptest! {
    #[test]
    fn there_are_never_more_pods_than_the_maximum(
        replicas in 0..6_i32,
        pods in proptest::collection::vec((0..8_usize, 0..4000_i64, any::<[bool; 3]>()), 0..8),
    ) {
        const PHASES: [RunnerPhase; 8] = [
            RunnerPhase::Unscheduled, RunnerPhase::Preparing, RunnerPhase::Gated, RunnerPhase::Starting,
            RunnerPhase::Idle, RunnerPhase::Busy, RunnerPhase::Finished, RunnerPhase::Failed,
        ];
        let pool = pool(replicas);
        let runners: Vec<Runner> = pods.iter().zip(0..).map(|((phase, age, [is_over, waits, avoids]), n)| {
            let mut runner = runner(&pool, &format!("pool-{n}"), PHASES[*phase]);
            runner.since = ago(*age);
            runner.is_over = *is_over;
            runner.waiting = waits.then(|| Waiting {
                reason: "CreateContainerError".into(),
                message: String::new(),
                container: Some("runner".to_owned()),
                image: None,
            });
            runner.avoids.extend(avoids.then(|| "node-9".to_owned()));
            runner
        }).collect();
        let there = runners.iter().filter(|r| is_there(r)).count();
        let planned = plan(&pool, &observed(runners), NOW);
        let most = usize::try_from(replicas).unwrap().max(there);
        prop_assert!(there + created(&planned) <= most, "{there} and {} more", created(&planned));
    }
}

/// A runner whose agent hardly started.
fn hardly_started(pool: &Pool, name: &str, reason: Reason, seconds_ago: i64) -> Runner {
    let mut failed = runner(pool, name, RunnerPhase::Failed);
    failed.since = ago(seconds_ago);
    failed.created = ago(seconds_ago);
    let at = ago(seconds_ago);
    failed.end = Some(End::Failed(Failure {
        code: (reason == Reason::AgentEndedAtOnce).then_some(1),
        ..Failure::new(reason, Class::Transient, "m".to_owned(), at, true)
    }));
    failed
}

/// The pool and the last plan, after runners whose agents hardly started, one after the other, each gone before the next.
fn after_failures(mut pool: Pool, times: i64, reason: Reason) -> (Pool, Plan, Runner) {
    let mut last = Plan::default();
    let mut failed = runner(&pool, "pool-0", RunnerPhase::Failed);
    for n in 1..=times {
        failed = hardly_started(&pool, &format!("pool-{n}"), reason, (times - n) * 60);
        last = plan(&pool, &observed(vec![failed.clone()]), failed.since);
        pool.status = last.status.clone();
    }
    (pool, last, failed)
}

fn entries_removed(plan: &Plan) -> Vec<&str> {
    let all = plan.actions.iter();
    all.filter_map(|action| match action {
        Action::DeleteEntryOf(target) => Some(target.name.as_str()),
        _ => None,
    })
    .collect()
}

#[test]
fn the_pod_of_an_agent_that_stalls_the_pool_is_kept_and_its_entry_is_not() {
    for reason in [Reason::AgentEndedAtOnce, Reason::ContainerNotStarted] {
        // Given a first failure, then pod and entry go
        let (first, _, failed) = after_failures(pool(1), 1, reason);
        let planned = plan(&first, &observed(vec![failed]), NOW);
        assert_eq!(removed(&planned), ["pool-1"]);
        // Given a third one of the kind, then the entry goes, and the pod stays
        let (pool, planned, mut failed) = after_failures(pool(1), 3, reason);
        assert_eq!(entries_removed(&planned), ["pool-3"], "{reason}");
        assert_eq!(removed(&planned), Vec::<&str>::new());
        // When the entry is gone, then nothing more is asked of GitHub, and the next attempt has its place
        if let Some(End::Failed(failure)) = &mut failed.end {
            failure.registered = false;
        }
        let later = plan(
            &pool,
            &observed(vec![failed.clone()]),
            NOW + super::minutes(10),
        );
        assert_eq!(entries_removed(&later), Vec::<&str>::new());
        assert_eq!((removed(&later).len(), created(&later)), (0, 1));
        // And when that has failed, too, then its pod is the one that is kept
        let next = hardly_started(&pool, "pool-4", reason, -60);
        let mut pool = pool;
        let (seen, then) = (observed(vec![failed, next]), ago(-60));
        pool.status = plan(&pool, &seen, then).status;
        let last = plan(&pool, &seen, then);
        assert_eq!(entries_removed(&last), ["pool-4"]);
        assert_eq!(removed(&last), ["pool-3"]);
    }
}

#[test]
fn failed_pods_are_kept_in_nobodys_way() {
    // Given a pool that is scaled to zero, one that has moved to another address, and one of persistent runners
    let zero = pool(0);
    let moved = pool(1);
    let mut persistent = pool(1);
    persistent.spec_mut().persistent = true;
    for (mut pool, url) in [
        (zero, None),
        (moved, Some("https://github.com/acme/old")),
        (persistent, None),
    ] {
        // When a pod of it has failed at the gate, or in a way that stalls the pool
        let mut at_gate = runner(&pool, "pool-0", RunnerPhase::Failed);
        at_gate.url = url.map(str::to_owned);
        let (_, _, mut stalled) = after_failures(pool.clone(), 3, Reason::AgentEndedAtOnce);
        stalled.url.clone_from(&at_gate.url);
        for failed in [at_gate, stalled] {
            pool.status = plan(&pool, &observed(vec![failed.clone()]), NOW).status;
            // Then it goes as soon as the status has its reason
            let planned = plan(&pool, &observed(vec![failed.clone()]), NOW);
            assert_eq!(removed(&planned), [failed.name.as_str()], "{url:?}");
        }
    }
}

#[test]
fn the_pod_of_a_failed_gate_is_kept_though_the_kubelet_says_later_that_it_is_over() {
    // Given a gate that has failed a moment ago, and a pod that Kubernetes does not yet show as over
    let mut pool = pool(1);
    let mut failed = runner(&pool, "pool-0", RunnerPhase::Failed);
    failed.is_over = false;
    failed.since = ago(1);
    let seen = observed(vec![failed.clone()]);
    pool.status = plan(&pool, &seen, NOW).status;
    // Then it stays for a look, and is looked at again when it should be over
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(removed(&planned), Vec::<&str>::new());
    assert_eq!(planned.wake, Some(SignedDuration::from_secs(29)));
    // And where another container goes on, then it goes, and its GPUs with it
    let later = plan(&pool, &seen, NOW + SignedDuration::from_secs(29));
    assert_eq!(removed(&later), ["pool-0"]);
    // And where it is over in time, then it stays
    failed.is_over = true;
    let over = plan(&pool, &observed(vec![failed]), NOW + super::minutes(1));
    assert_eq!(removed(&over), Vec::<&str>::new());
}
