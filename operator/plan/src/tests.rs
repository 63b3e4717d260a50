//! Tests of the plan as a whole: given what was observed, then these actions.

use std::collections::BTreeSet;

use cudarunner_crds::RunnerPhase;
use gate_report::Class;
use jiff::SignedDuration;

use super::condition::kind;
use super::fixture::{NOW, ago, gate_failure, listing, observed, pool, runner};
use super::*;
use crate::model::runner::{End, Failure, Waiting};
use crate::reason::Reason;

mod blame;
mod properties;
mod reported;
mod room;
mod unrecorded;

fn minutes(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(minutes)
}

fn created(plan: &Plan) -> usize {
    let create = |a: &&Action| matches!(a, Action::CreatePod(_));
    plan.actions.iter().filter(create).count()
}

/// Names of the pods that the plan removes.
pub(super) fn removed(plan: &Plan) -> Vec<&str> {
    plan.actions
        .iter()
        .filter_map(|a| match a {
            Action::DeletePod(t) | Action::Drain(t) | Action::Evict(t) => Some(t.name.as_str()),
            _ => None,
        })
        .collect()
}

/// The next plan, when the status of the first is stored.
pub(super) fn second(pool: &Pool, seen: &Observed) -> Plan {
    let mut pool = pool.clone();
    pool.status = plan(&pool, seen, NOW).status;
    plan(&pool, seen, NOW)
}

#[track_caller]
fn condition<'a>(plan: &'a Plan, type_: &str) -> (&'a str, &'a str, &'a str) {
    let c = plan
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == type_)
        .unwrap();
    (&c.status, &c.reason, &c.message)
}

#[test]
fn a_runner_that_has_ended_keeps_its_place_until_its_pod_has() {
    // Given a runner whose agent has ended after its job, and whose pod Kubernetes still shows as running
    let pool = pool(1);
    let mut ending = runner(&pool, "pool-aaaaa", RunnerPhase::Finished);
    ending.is_over = false;
    // Then no other pod is made beside it, until its own is over
    assert_eq!(
        created(&plan(&pool, &observed(vec![ending.clone()]), NOW)),
        0
    );
    ending.is_over = true;
    assert_eq!(created(&plan(&pool, &observed(vec![ending]), NOW)), 1);
}

#[test]
fn a_creation_without_an_answer_is_repeated_under_the_same_name() {
    // Given a pool of two, and a pod that is not there and may still come
    let mut seen = observed(vec![]);
    seen.unanswered.insert("pool-maybe".to_owned());
    // When the pool is planned, then that name is one of the two: of a name there is only one pod
    let plan = plan(&pool(2), &seen, NOW);
    let created: Vec<_> = plan.actions.iter().filter_map(created_name).collect();
    assert_eq!(created.len(), 2, "{created:?}");
    assert_eq!(created[0], "pool-maybe");
}

fn created_name(action: &Action) -> Option<&str> {
    match action {
        Action::CreatePod(new) => Some(&new.name),
        _ => None,
    }
}

#[test]
fn an_empty_pool_gets_its_runners() {
    let pool = pool(3);
    let plan = super::plan(&pool, &observed(vec![]), NOW);
    assert_eq!(created(&plan), 3);
    let names: BTreeSet<_> = plan
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::CreatePod(new) => Some(new.name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(names.len(), 3, "every name is its own");
    assert!(
        names
            .iter()
            .all(|n| n.starts_with("pool-") && n.len() == 10)
    );
}

#[test]
fn a_new_resource_gets_its_finalizer_before_any_pod() {
    let mut pool = pool(1);
    pool.finalizer = false;
    let plan = super::plan(&pool, &observed(vec![]), NOW);
    assert_eq!(plan.actions, [Action::AddFinalizer]);
}

#[test]
fn nothing_is_created_before_github_has_let_us_in() {
    let pool = pool(1);
    for access in [
        Access::Unchecked,
        Access::Refused {
            reason: Reason::Unauthorized,
            message: "no".into(),
            transient: false,
        },
    ] {
        let mut observed = observed(vec![]);
        observed.access = access;
        assert_eq!(created(&super::plan(&pool, &observed, NOW)), 0);
    }
}

#[test]
fn pods_that_the_watch_does_not_show_yet_count() {
    let pool = pool(3);
    let mut observed = observed(vec![runner(&pool, "pool-aaaaa", RunnerPhase::Idle)]);
    observed.expected = BTreeSet::from(["pool-aaaaa".into(), "pool-bbbbb".into()]);
    assert_eq!(created(&super::plan(&pool, &observed, NOW)), 1);
}

#[test]
fn a_finished_runner_is_replaced_and_its_pod_removed_without_a_word_with_github() {
    let pool = pool(1);
    let plan = super::plan(
        &pool,
        &observed(vec![runner(&pool, "pool-aaaaa", RunnerPhase::Finished)]),
        NOW,
    );
    assert_eq!(created(&plan), 1);
    let target = Target::from(&runner(&pool, "pool-aaaaa", RunnerPhase::Finished));
    assert!(plan.actions.contains(&Action::DeletePod(target)));
}

#[test]
fn scaling_down_takes_the_runner_furthest_from_a_job_and_never_a_busy_one() {
    let pool = pool(1);
    let runners = vec![
        runner(&pool, "pool-busy1", RunnerPhase::Busy),
        runner(&pool, "pool-idle1", RunnerPhase::Idle),
        runner(&pool, "pool-wait1", RunnerPhase::Unscheduled),
    ];
    let plan = super::plan(&pool, &observed(runners), NOW);
    assert_eq!(removed(&plan), ["pool-wait1", "pool-idle1"]);
    assert!(
        plan.actions.iter().all(|a| matches!(a, Action::Drain(_))),
        "its entry goes first, whatever the watch shows: its agent could take a job at any moment"
    );
}

#[test]
fn runners_on_their_way_out_are_part_of_the_surplus() {
    let pool = pool(1);
    let runners = vec![
        runner(&pool, "pool-idle1", RunnerPhase::Idle),
        runner(&pool, "pool-gone1", RunnerPhase::Terminating),
    ];
    let plan = super::plan(&pool, &observed(runners), NOW);
    assert_eq!(removed(&plan), Vec::<&str>::new());
    assert_eq!(created(&plan), 0);
}

#[test]
fn a_pod_on_a_lost_node_holds_its_place_only_for_its_grace() {
    let pool = pool(1);
    let mut gone = runner(&pool, "pool-gone1", RunnerPhase::Terminating);
    let plan = super::plan(&pool, &observed(vec![gone.clone()]), NOW);
    assert_eq!(created(&plan), 0);
    gone.gone_by = Some(ago(1));
    let plan = super::plan(&pool, &observed(vec![gone]), NOW);
    assert_eq!(created(&plan), 1);
}

#[test]
fn a_runner_that_still_needs_another_operators_registrar_is_made_anew() {
    use RunnerPhase::{Busy, Gated, Idle, Preparing, Starting, Unscheduled};
    let pool = pool(1);
    for (phase, brings_containers, goes) in [
        (Unscheduled, false, true),
        (Preparing, false, true),
        (Gated, false, true),
        (Starting, false, true),
        (Idle, false, false),
        (Busy, false, false),
        (Idle, true, true),
        (Busy, true, false),
    ] {
        let mut one = runner(&pool, "pool-aaaaa", phase);
        one.job_pod = brings_containers.then(Box::default);
        assert!(removed(&plan(&pool, &observed(vec![one.clone()]), NOW)).is_empty());
        one.is_stranded = true;
        let removed = removed(&plan(&pool, &observed(vec![one]), NOW)).len();
        assert_eq!(
            removed == 1,
            goes,
            "{phase:?}, containers {brings_containers}"
        );
    }
}

#[test]
fn a_changed_template_replaces_idle_runners_one_by_one_and_leaves_busy_ones() {
    let pool = pool(4);
    let mut runners: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|n| runner(&pool, &format!("pool-{n}"), RunnerPhase::Idle))
        .collect();
    runners.push(runner(&pool, "pool-busy1", RunnerPhase::Busy));
    for r in &mut runners {
        r.template = "old".into();
    }
    let plan = super::plan(&pool, &observed(runners.clone()), NOW);
    assert_eq!(removed(&plan).len(), 1);
    assert!(!removed(&plan).contains(&"pool-busy1"));

    // While the first new one is still at the gate, no further one goes.
    runners[0] = runner(&pool, "pool-new01", RunnerPhase::Gated);
    let plan = super::plan(&pool, &observed(runners), NOW);
    assert_eq!(removed(&plan), Vec::<&str>::new());
}

#[test]
fn a_failure_is_told_and_the_next_attempt_waits() {
    let pool = pool(1);
    let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
    let mut failure = gate_failure(Class::Node);
    failure.at = NOW;
    failed.end = Some(End::Failed(failure));
    let plan = super::plan(&pool, &observed(vec![failed.clone()]), NOW);
    assert_eq!(created(&plan), 0);
    assert_eq!(plan.status.consecutive_failures, 1);
    assert_eq!(plan.status.last_failures[0].code, Some(999));
    let wake = plan.wake.unwrap();
    assert!(wake <= SignedDuration::from_secs(6), "{wake:?}");
    assert_eq!(condition(&plan, kind::RUNNERS_ONLINE).1, "GateFailed");
    assert_eq!(condition(&plan, kind::GPU_HEALTHY).0, "False");
    assert!(
        plan.notices
            .iter()
            .any(|n| n.warning && n.reason == "GateFailed")
    );

    // Later, with the failure recorded, the next attempt is made and the failure is not reported twice.
    let mut pool = pool;
    pool.status = plan.status;
    let later = NOW + SignedDuration::from_secs(10);
    let plan = super::plan(&pool, &observed(vec![failed]), later);
    assert_eq!(created(&plan), 1);
    assert_eq!(plan.status.consecutive_failures, 1);
    assert_eq!(plan.status.last_failures.len(), 1);
    assert!(plan.notices.iter().all(|n| n.reason != "GateFailed"));
}

#[test]
fn a_configuration_fault_stalls_the_pool_with_its_sentence() {
    let pool = pool(1);
    let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
    failed.end = Some(End::Failed(gate_failure(Class::Config)));
    let plan = super::plan(&pool, &observed(vec![failed]), NOW);
    assert_eq!(
        condition(&plan, kind::STALLED),
        ("True", "GateFailed", "the gate failed")
    );
    assert_eq!(condition(&plan, kind::READY).0, "False");
}

#[test]
fn a_runner_that_came_online_ends_the_row_of_failures() {
    let mut pool = pool(1);
    let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
    failed.since = ago(300);
    let mut failure = gate_failure(Class::Node);
    failure.at = ago(300);
    failed.end = Some(End::Failed(failure));
    pool.status = super::plan(&pool, &observed(vec![failed]), ago(300)).status;
    assert_eq!(pool.status.consecutive_failures, 1);

    let plan = super::plan(
        &pool,
        &observed(vec![runner(&pool, "pool-bbbbb", RunnerPhase::Idle)]),
        NOW,
    );
    assert_eq!(plan.status.consecutive_failures, 0);
    assert_eq!(condition(&plan, kind::READY).0, "True");
    assert_eq!(
        plan.status.last_failures.len(),
        1,
        "the reason stays to be read"
    );
}

#[test]
fn failed_pods_never_pile_up() {
    let mut pool = pool(2);
    let mut runners = vec![];
    for i in 0..9 {
        let mut r = runner(&pool, &format!("pool-fail{i}"), RunnerPhase::Failed);
        r.since = ago(100 - i);
        runners.push(r);
    }
    pool.status = super::plan(&pool, &observed(runners.clone()), NOW).status;
    let plan = super::plan(&pool, &observed(runners), NOW);
    assert_eq!(removed(&plan).len(), 7);
    assert!(
        !removed(&plan).contains(&"pool-fail8"),
        "the newest is kept for a look"
    );
}

#[test]
fn a_gate_that_hangs_is_taken_out() {
    let pool = pool(1);
    let mut hung = runner(&pool, "pool-aaaaa", RunnerPhase::Gated);
    hung.since = ago(600);
    let plan = second(&pool, &observed(vec![hung]));
    assert_eq!(removed(&plan), ["pool-aaaaa"]);
    assert_eq!(plan.status.last_failures[0].reason, "GateOverdue");
}

#[test]
fn an_image_that_cannot_be_pulled_is_said_at_once_and_given_up_later() {
    let pool = pool(1);
    let mut waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Preparing);
    waiting.waiting = Some(Waiting {
        reason: "ImagePullBackOff".into(),
        message: "no such image".into(),
        container: Some("runner".into()),
        image: Some("registry/image:1".into()),
    });
    let plan = super::plan(&pool, &observed(vec![waiting.clone()]), NOW);
    let (_, reason, message) = condition(&plan, kind::RUNNERS_ONLINE);
    assert_eq!(reason, "ImagePullBackOff");
    for word in ["container runner", "registry/image:1", "no such image"] {
        assert!(message.contains(word), "{message}");
    }
    let listed = plan.status.runners[0].waiting.as_deref();
    assert!(listed.unwrap().contains("no such image"));
    assert_eq!(removed(&plan), Vec::<&str>::new());

    waiting.waiting_since = Some(ago(301));
    let plan = second(&pool, &observed(vec![waiting]));
    assert_eq!(removed(&plan), ["pool-aaaaa"]);
    assert_eq!(plan.status.last_failures[0].reason, "ImageNotPulled");
}

#[test]
fn a_pool_without_gpu_nodes_says_so_and_waits() {
    let pool = pool(1);
    let waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
    let mut observed = observed(vec![waiting]);
    observed.nodes = Some(vec![]);
    let plan = super::plan(&pool, &observed, NOW);
    let (status, reason, message) = condition(&plan, kind::RUNNERS_ONLINE);
    assert_eq!((status, reason), ("False", "Unschedulable"));
    assert!(
        message.contains("No node offers nvidia.com/gpu"),
        "{message}"
    );
    assert_eq!(removed(&plan), Vec::<&str>::new());
}

#[test]
fn a_failure_before_the_pod_that_waits_for_a_node_is_past() {
    let before = NOW.duration_since(ago(60));
    let waits_since = SignedDuration::from_secs(30);
    let table = [
        // class, failed so long ago, what the pool says
        (Class::Transient, before, "Unschedulable"),
        (Class::Node, before, "Unschedulable"),
        // A person has to mend that first.
        (Class::Config, before, "GateFailed"),
        // Of a runner that was made beside the one that waits.
        (Class::Transient, SignedDuration::ZERO, "GateFailed"),
    ];
    for (class, ago, expected) in table {
        let mut pool = pool(2);
        let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
        let at = NOW - ago;
        let mut failure = gate_failure(class);
        failure.at = at;
        failed.end = Some(End::Failed(failure));
        failed.created = at;
        pool.status = super::plan(&pool, &observed(vec![failed]), at).status;

        let mut waiting = runner(&pool, "pool-bbbbb", RunnerPhase::Unscheduled);
        waiting.created = NOW - waits_since;
        waiting.since = waiting.created;
        let mut observed = observed(vec![waiting]);
        observed.nodes = Some(vec![]);
        let plan = super::plan(&pool, &observed, NOW);
        assert_eq!(
            condition(&plan, kind::RUNNERS_ONLINE).1,
            expected,
            "{class:?}, {ago:?} ago"
        );
    }
}

#[test]
fn replacing_the_only_runner_after_its_job_is_no_trouble() {
    let mut pool = pool(1);
    let idle = observed(vec![runner(&pool, "pool-aaaaa", RunnerPhase::Idle)]);
    pool.status = super::plan(&pool, &idle, NOW).status;
    let between = observed(vec![runner(&pool, "pool-bbbbb", RunnerPhase::Gated)]);
    let plan = super::plan(&pool, &between, NOW);
    assert_eq!(condition(&plan, kind::RUNNERS_ONLINE).0, "True");
    assert_eq!(
        plan.status.conditions, pool.status.conditions,
        "nothing to write"
    );
}

#[test]
fn orphans_on_github_go_and_entries_with_a_pod_stay() {
    let pool = pool(1);
    let mut observed = observed(vec![runner(&pool, "pool-aaaaa", RunnerPhase::Idle)]);
    observed.expected = BTreeSet::from(["pool-ccccc".into()]);
    observed.listing = Some(listing(&["pool-aaaaa", "pool-bbbbb", "pool-ccccc"]));
    let plan = super::plan(&pool, &observed, NOW);
    let orphans: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::DeleteEntry(e) => Some(e.name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(orphans, ["pool-bbbbb"]);
}

#[test]
fn an_idle_runner_that_github_lost_is_replaced_only_after_a_second_look() {
    let pool = pool(1);
    let mut idle = runner(&pool, "pool-aaaaa", RunnerPhase::Idle);
    idle.since = ago(600);
    let plan = super::plan(&pool, &observed(vec![idle]), NOW);
    assert!(
        plan.actions
            .iter()
            .any(|a| matches!(a, Action::ReplaceUnregistered(_)))
    );
    assert_eq!(removed(&plan), Vec::<&str>::new());
}

#[test]
fn every_condition_is_there_from_the_first_reconcile() {
    let mut pool = pool(1);
    pool.status = cudarunner_crds::CudaRunnerStatus::default();
    let mut observed = observed(vec![]);
    observed.access = Access::Unchecked;
    let plan = super::plan(&pool, &observed, NOW);
    let types: Vec<_> = plan
        .status
        .conditions
        .iter()
        .map(|c| c.type_.as_str())
        .collect();
    assert_eq!(
        types,
        [
            "Ready",
            "Stalled",
            "CredentialsValid",
            "GpuHealthy",
            "RunnersOnline",
            "QueueServed",
            "WorkflowVerified",
            "ChecksRequired",
            "SpecSupported",
            "WebhookReady"
        ]
    );
    assert!(plan.status.conditions.iter().all(|c| !c.reason.is_empty()));
}
