//! Given what the gates found, then these nodes are quarantined.

use std::collections::BTreeSet;
use std::sync::Arc;

use gate_report::Class;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::fixture::{NOW, ago, first_node, gate_failure, node, observed, pool, runner};
use crate::model::pool::Pool;
use crate::model::pool::{PoolKey, Size};
use crate::model::runner::{End, Failure};
use crate::{Action, NodeFacts, Plan, plan};

fn failed(pool: &Pool, name: &str, on: &str, failure: Failure) -> Runner {
    let mut failed = runner(pool, name, RunnerPhase::Failed);
    failed.node = Some(on.to_owned());
    failed.end = Some(End::Failed(failure));
    failed
}

fn nodes(count: usize) -> Vec<Arc<NodeFacts>> {
    (1..=count).map(|n| node(&format!("node-{n}"))).collect()
}

/// One reconcile to a pool of one runner on `count` nodes, with one failure of this class on node-1.
fn after(class: Class, count: usize) -> (Pool, Plan) {
    let pool = pool(1);
    let mut failure = gate_failure(class);
    failure.at = NOW;
    let mut observed = observed(vec![failed(&pool, "pool-aaaaa", "node-1", failure)]);
    observed.nodes = Some(nodes(count));
    let plan = plan(&pool, &observed, NOW);
    (pool, plan)
}

fn quarantined(plan: &Plan) -> Vec<&str> {
    let entries = plan.status.quarantine.iter();
    entries.map(|e| e.node.as_str()).collect()
}

/// The nodes that a pod keeps off which is made soon after a failure.
fn avoided_soon(pool: Pool, plan: &Plan) -> Vec<BTreeSet<String>> {
    let mut world = observed(vec![]);
    world.nodes = Some(nodes(4));
    let soon = NOW + SignedDuration::from_secs(3);
    avoided(&super::super::plan(&next(pool, plan), &world, soon))
}

/// The nodes that each created pod keeps off.
fn avoided(plan: &Plan) -> Vec<BTreeSet<String>> {
    let pods = plan.actions.iter().filter_map(|action| match action {
        Action::CreatePod(new) => Some(new.avoids.clone()),
        _ => None,
    });
    pods.collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// The pool with the status that a reconcile left, and with nothing of that reconcile to be seen any more.
fn next(mut pool: Pool, plan: &Plan) -> Pool {
    pool.status = plan.status.clone();
    pool
}

#[test]
fn of_a_node_with_claimed_devices_only_the_device_that_failed_settles_it() {
    let (pool, plan_) = after(Class::Device, 4);
    let mut pool = next(pool, &plan_);
    pool.status.quarantine[0].device = Some("GPU-bad".to_owned());
    let quarantined_after = |offers: Option<u32>, devices: &[&str]| {
        let mut observed = observed(vec![]);
        observed.nodes = Some(nodes(4));
        for node in observed.nodes.iter_mut().flatten() {
            let offers = offers.map(|n| ("nvidia.com/gpu".to_owned(), n));
            Arc::make_mut(node).offers = offers.into_iter().collect();
        }
        observed.passed = vec![Passed {
            node: "node-1".to_owned(),
            created: NOW + SignedDuration::from_secs(1),
            devices: devices.iter().map(|&d| d.to_owned()).collect(),
        }];
        let at = NOW + SignedDuration::from_secs(2);
        !plan(&pool, &observed, at).status.quarantine.is_empty()
    };
    // One of one proves the node; one of nobody knows how many does not
    assert!(!quarantined_after(Some(1), &["GPU-good"]));
    assert!(quarantined_after(None, &["GPU-good"]));
    assert!(!quarantined_after(None, &["GPU-bad"]));
}

#[test]
fn each_class_has_its_consequence() {
    for (class, out, stalls) in [
        (Class::Config, false, true),
        (Class::Transient, false, false),
        (Class::Device, true, false),
        (Class::Node, true, false),
        (Class::Unsupported, true, false),
        (Class::Refused, false, true),
        (Class::Unknown, false, false),
        (Class::Internal, false, false),
    ] {
        let (pool, plan) = after(class, 4);
        assert_eq!(!plan.status.quarantine.is_empty(), out, "{class}");
        let stalled = plan.status.conditions.iter().find(|c| c.type_ == "Stalled");
        assert_eq!(stalled.unwrap().status == "True", stalls, "{class}");
        // Where another node can be tried there is little reason to wait.
        assert_eq!(avoided(&plan).len(), 0, "{class}");
        let soon = NOW + SignedDuration::from_secs(3);
        let mut world = observed(vec![]);
        world.nodes = Some(nodes(4));
        let next = super::super::plan(&next(pool, &plan), &world, soon);
        assert_eq!(avoided(&next).len(), usize::from(out), "{class}");
    }
}

#[test]
fn the_next_pod_keeps_off_and_an_event_says_how_to_end_it() {
    let (pool, plan) = after(Class::Device, 4);
    assert_eq!(quarantined(&plan), ["node-1"]);
    assert_eq!(avoided_soon(pool, &plan), [set(&["node-1"])]);
    let notice = plan.notices.iter().find(|n| n.reason == "NodeQuarantined");
    let note = &notice.unwrap().note;
    assert!(
        note.contains("30 minutes") && note.contains("cudarunner.dev/release=\"node-1"),
        "{note}"
    );
    let gpu = plan
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "GpuHealthy");
    assert_eq!(gpu.unwrap().reason, "NodesQuarantined");
}

#[test]
fn a_unsupported_node_is_avoided_and_called_healthy() {
    let (pool, plan) = after(Class::Unsupported, 4);
    assert_eq!(avoided_soon(pool, &plan), [set(&["node-1"])]);
    let gpu = plan
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "GpuHealthy");
    assert_ne!(gpu.unwrap().reason, "NodesQuarantined");
}

#[test]
fn what_another_pool_found_counts_too() {
    let (_, plan) = after(Class::Node, 4);
    let pool = pool(1);
    let mut observed = observed(vec![]);
    observed.quarantined = plan.status.quarantine.into_iter().map(held).collect();
    let plan = super::super::plan(&pool, &observed, NOW);
    assert_eq!(avoided(&plan), [set(&["node-1"])]);
    assert_eq!(quarantined(&plan), Vec::<&str>::new());
}

/// What a pool of another namespace has in quarantine.
fn held(entry: QuarantineStatus) -> Quarantined {
    let pool = PoolKey {
        namespace: "theirs".to_owned(),
        name: "other".to_owned(),
    };
    Quarantined { pool, entry }
}

#[test]
fn what_a_pools_author_can_cause_binds_that_pool_alone() {
    let by = |class: Class, code: Option<i32>, name: &str| {
        let (_, plan) = after(Class::Node, 4);
        let mut entry = plan.status.quarantine[0].clone();
        entry.class = class.into();
        entry.code = code;
        entry.code_name = Some(name.to_owned());
        let mut observed = observed(vec![]);
        observed.quarantined = vec![held(entry)];
        !avoided(&super::super::plan(&pool(1), &observed, NOW))[0].is_empty()
    };
    for (class, code, name, binds) in [
        (Class::Device, None, "WrongResult", true),
        (Class::Device, None, "BrokenCanary", true),
        (Class::Device, None, "BadMemory", true),
        (Class::Device, None, "NeedsReset", true),
        (Class::Device, None, "NeedsDrain", true),
        (Class::Device, None, "NeedsRecovery", true),
        (Class::Node, None, "NeedsReboot", true),
        (Class::Device, None, "RemapFailed", true),
        (Class::Device, None, "SramThreshold", true),
        (Class::Node, None, "FabricFailed", true),
        // What the gate found beside a code that blames nobody
        (Class::Device, Some(46), "NeedsReset", true),
        (Class::Device, Some(802), "NvLinkDown", false),
        (
            Class::Device,
            Some(214),
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            true,
        ),
        (
            Class::Node,
            Some(803),
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            true,
        ),
        (Class::Unsupported, None, "ComputeCapability", false),
        (
            Class::Unsupported,
            Some(209),
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
            false,
        ),
        // A time limit, a floor, an environment, a limit of memory, a kubelet's word.
        (Class::Device, None, "Hang", false),
        (Class::Device, None, "SlowCopy", false),
        (Class::Node, None, "TooFewDevices", false),
        (Class::Node, None, "Crash", false),
        (Class::Node, None, "", false),
    ] {
        assert_eq!(by(class, code, name), binds, "{class} {name}");
    }
}

#[test]
fn a_pool_that_is_kept_off_by_another_says_by_whom_and_why() {
    let (_, plan) = after(Class::Device, 4);
    let pool = pool(1);
    let waiting = runner(&pool, "pool-aaaaa", RunnerPhase::Unscheduled);
    let mut observed = observed(vec![waiting]);
    observed.quarantined = plan.status.quarantine.into_iter().map(held).collect();
    let plan = super::super::plan(&pool, &observed, NOW);
    for type_ in ["GpuHealthy", "RunnersOnline"] {
        let mut conditions = plan.status.conditions.iter();
        let said = &conditions.find(|c| c.type_ == type_).unwrap().message;
        assert!(
            said.contains("theirs/other") && said.contains("the gate failed"),
            "{said}"
        );
    }
}

#[test]
fn the_breaker_does_not_forget_in_steps() {
    // Given nodes that each pass once, and later fail for what they share
    let mut pool = pool(1);
    let mut world = observed(vec![]);
    world.nodes = Some(nodes(4));
    for n in 1..=4 {
        let now = NOW + SignedDuration::from_mins(n * 7);
        let mut failure = gate_failure(Class::Device);
        failure.at = now;
        let on = format!("node-{n}");
        world.runners = vec![failed(&pool, &format!("pool-{n:05}"), &on, failure)];
        world.passed = vec![Passed {
            node: on,
            created: now - SignedDuration::from_mins(2),
            devices: vec![],
        }];
        pool.status = plan(&pool, &world, now).status;
    }
    // Then half of them are quarantined, and no more
    assert_eq!(pool.status.quarantine.len(), 2);
}

#[test]
fn a_restart_an_annotation_a_pass_and_time_end_it() {
    let (pool, plan) = after(Class::Device, 4);
    let pool = next(pool, &plan);
    let mut same = observed(vec![]);
    same.nodes = Some(nodes(4));
    let minute = NOW + SignedDuration::from_mins(1);
    assert_eq!(
        quarantined(&super::super::plan(&pool, &same, minute)),
        ["node-1"]
    );

    let mut restarted = same.clone();
    first_node(&mut restarted).boot_id = Some("boot-2".into());
    assert_eq!(
        quarantined(&super::super::plan(&pool, &restarted, minute)),
        Vec::<&str>::new()
    );

    let mut released = pool.clone();
    released.release = Some("node-1 now".into());
    let plan = super::super::plan(&released, &same, minute);
    assert_eq!(quarantined(&plan), Vec::<&str>::new());
    assert_eq!(plan.status.released.as_deref(), Some("node-1 now"));
    released.release = Some("node-2".into());
    assert_eq!(
        quarantined(&super::super::plan(&released, &same, minute)),
        ["node-1"]
    );

    let mut passed = same.clone();
    passed.passed = vec![Passed {
        node: "node-1".into(),
        created: minute,
        devices: vec!["GPU-1".into()],
    }];
    assert_eq!(
        quarantined(&super::super::plan(&pool, &passed, minute)),
        Vec::<&str>::new()
    );

    let long = NOW + SignedDuration::from_mins(61);
    assert_eq!(
        quarantined(&super::super::plan(&pool, &same, long)),
        Vec::<&str>::new()
    );
}

#[test]
fn a_pass_of_another_device_does_not_clear_the_one_that_failed() {
    let pool = pool(1);
    let mut failure = gate_failure(Class::Device);
    failure.device = Some("GPU-bad".into());
    let mut observed = observed(vec![failed(&pool, "pool-aaaaa", "node-1", failure)]);
    observed.nodes = Some(nodes(4));
    let pool = next(pool.clone(), &plan(&pool, &observed, NOW));
    observed.runners.clear();
    let mut passes = |devices: &[&str]| {
        observed.passed = vec![Passed {
            node: "node-1".into(),
            created: NOW,
            devices: devices.iter().map(|&d| d.to_owned()).collect(),
        }];
        quarantined(&plan(&pool, &observed, NOW)).is_empty()
    };
    assert!(!passes(&["GPU-2"]));
    assert!(passes(&["GPU-bad"]));
    let all = ["1", "2", "3", "4", "5", "6", "7", "8"];
    assert!(
        passes(&all),
        "the whole node passed, and the bad device is not in it"
    );
}

#[test]
fn at_its_end_one_pod_tries_and_another_failure_doubles_the_time() {
    let (mut pool, first) = after(Class::Node, 4);
    pool = next(pool, &first);
    pool.spec_mut().size = Size { min: 3, max: 3 };
    let over = NOW + SignedDuration::from_mins(31);
    let mut observed = observed(vec![]);
    observed.nodes = Some(nodes(4));
    let planned = plan(&pool, &observed, over);
    assert_eq!(
        avoided(&planned),
        [set(&[]), set(&["node-1"]), set(&["node-1"])],
        "one pod may go there"
    );

    // It does, and fails again.
    let mut failure = gate_failure(Class::Node);
    failure.at = over;
    observed.runners = vec![failed(&pool, "pool-bbbbb", "node-1", failure)];
    let planned = plan(&pool, &observed, over);
    let entry = &planned.status.quarantine[0];
    assert_eq!(entry.failures, 2);
    let until = entry.until.as_ref().unwrap().0;
    assert_eq!(until, over + SignedDuration::from_mins(60));
}

#[test]
fn a_pod_that_waits_with_an_old_idea_of_the_nodes_is_made_anew() {
    let (pool, first) = after(Class::Node, 4);
    let pool = next(pool, &first);
    let mut waiting = runner(&pool, "pool-bbbbb", RunnerPhase::Unscheduled);
    let mut observed = observed(vec![waiting.clone()]);
    observed.nodes = Some(nodes(4));
    let gone = |observed: &Observed, now| {
        let plan = plan(&pool, observed, now);
        plan.actions
            .iter()
            .any(|a| matches!(a, Action::Drain(t) if t.name == "pool-bbbbb"))
    };
    assert!(gone(&observed, NOW), "it might land on the bad node");
    waiting.avoids = set(&["node-1"]);
    observed.runners = vec![waiting];
    assert!(!gone(&observed, NOW));
    assert!(
        gone(&observed, NOW + SignedDuration::from_mins(31)),
        "the node may be tried again"
    );
}

#[test]
fn a_cluster_is_never_emptied_at_once() {
    let pool = pool(4);
    let runners = (1..=4)
        .map(|n| {
            let name = format!("pool-aaaa{n}");
            failed(
                &pool,
                &name,
                &format!("node-{n}"),
                gate_failure(Class::Device),
            )
        })
        .collect();
    let mut observed = observed(runners);
    observed.nodes = Some(nodes(4));
    let first = plan(&pool, &observed, NOW);
    assert_eq!(quarantined(&first).len(), 2);

    // The resource says so, and one runner at a time goes on trying.
    observed.runners.clear();
    let later = NOW + SignedDuration::from_mins(2);
    let second = plan(&next(pool, &first), &observed, later);
    let gpu = second
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == "GpuHealthy");
    assert_eq!(gpu.unwrap().status, "False");
    assert_eq!(avoided(&second).len(), 1);
}

#[test]
fn what_all_nodes_share_does_not_empty_a_cluster_slowly_either() {
    let mut pool = pool(1);
    let mut world = observed(vec![]);
    world.nodes = Some(nodes(4));
    for reconcile in 0..12 {
        let now = NOW + SignedDuration::from_mins(reconcile * 4);
        let mut failure = gate_failure(Class::Device);
        failure.at = now;
        let on = format!("node-{}", reconcile % 4 + 1);
        world.runners = vec![failed(&pool, &format!("pool-{reconcile:05}"), &on, failure)];
        pool.status = plan(&pool, &world, now).status;
        let active = pool.status.quarantine.iter();
        let active = active.filter(|e| is_active(e, now)).count();
        assert!(active <= 2, "{active} of 4 at reconcile {reconcile}");
    }

    // The pauses have become longer than the breaker's time: it is still one runner that is tried.
    pool.spec_mut().size = Size { min: 4, max: 4 };
    world.runners.clear();
    let later = NOW + SignedDuration::from_mins(44 + 12);
    let planned = plan(&pool, &world, later);
    assert_eq!(avoided(&planned).len(), 1);
    let mut conditions = planned.status.conditions.iter();
    let gpu = conditions.find(|c| c.type_ == "GpuHealthy");
    assert_eq!(gpu.unwrap().reason, "BreakerOpen");
}

#[test]
fn bad_nodes_found_one_by_one_go_where_others_pass() {
    let mut pool = pool(1);
    let mut world = observed(vec![]);
    world.nodes = Some(nodes(4));
    for n in 1..=3 {
        let now = NOW + SignedDuration::from_mins(n * 6);
        let mut failure = gate_failure(Class::Device);
        failure.at = now;
        world.runners = vec![failed(
            &pool,
            &format!("pool-{n:05}"),
            &format!("node-{n}"),
            failure,
        )];
        world.passed = vec![Passed {
            node: "node-4".into(),
            created: now,
            devices: vec![],
        }];
        pool.status = plan(&pool, &world, now).status;
    }
    assert_eq!(pool.status.quarantine.len(), 3);
}

#[test]
fn a_node_that_two_pools_found_is_tried_when_the_time_of_both_is_over() {
    let (pool, first) = after(Class::Node, 4);
    let pool = next(pool, &first);
    let mut other = first.status.quarantine[0].clone();
    other.until = Some(Time(NOW + SignedDuration::from_mins(40)));
    let mut observed = observed(vec![]);
    observed.nodes = Some(nodes(4));
    observed.quarantined = vec![held(other)];
    for (minutes, tried) in [(31, false), (41, true)] {
        let now = NOW + SignedDuration::from_mins(minutes);
        let planned = plan(&pool, &observed, now);
        let avoids = avoided(&planned).remove(0);
        assert_eq!(!avoids.contains("node-1"), tried, "after {minutes} minutes");

        // A pod made now is not made anew at the next planned.
        let mut waiting = runner(&pool, "pool-bbbbb", RunnerPhase::Unscheduled);
        waiting.avoids = avoids;
        let mut next = observed.clone();
        next.runners = vec![waiting];
        let again = plan(&pool, &next, now);
        let gone = again
            .actions
            .iter()
            .any(|a| matches!(a, Action::DeletePod(_)));
        assert!(!gone, "after {minutes} minutes");
    }
}

#[test]
fn a_single_node_has_no_other_and_is_tried_again() {
    let (pool, first) = after(Class::Device, 1);
    assert_eq!(quarantined(&first), Vec::<&str>::new());
    let mut observed = observed(vec![]);
    observed.nodes = Some(nodes(1));
    let later = NOW + SignedDuration::from_secs(30);
    let second = plan(&next(pool, &first), &observed, later);
    assert_eq!(avoided(&second), [set(&[])]);
}

#[test]
fn a_new_node_whose_driver_still_starts_is_waited_for() {
    let pool = pool(1);
    let mut failure = gate_failure(Class::Config);
    failure.at_start = true;
    let mut observed = observed(vec![failed(&pool, "pool-aaaaa", "node-1", failure)]);
    observed.nodes = Some(nodes(4));
    let old = plan(&pool, &observed, NOW);
    assert_eq!(old.status.last_failures[0].reason, "GateFailed");

    first_node(&mut observed).ready_since = Some(ago(60));
    let young = plan(&pool, &observed, NOW);
    let failure = &young.status.last_failures[0];
    assert_eq!(
        (failure.reason.as_str(), failure.class.as_str()),
        ("NodeWarmingUp", "transient")
    );
    assert!(quarantined(&young).is_empty());
}

fn class() -> impl Strategy<Value = Class> {
    proptest::sample::select(Class::ALL.to_vec())
}

proptest! {
    /// Whatever the gates find on whichever node: a configuration fault never costs a node, no more than half go
    /// within the breaker's time, and once nothing fails any more, every node is used again.
    #[test]
    fn never_on_configuration_never_too_many_and_never_for_ever(
        count in 1..7_usize,
        events in proptest::collection::vec((0..7_usize, class(), 1..120_i64), 1..30),
    ) {
        let mut pool = pool(2);
        let mut now = NOW;
        let mut world = observed(vec![]);
        world.nodes = Some(nodes(count));
        for (i, (on, class, minutes)) in events.iter().enumerate() {
            let mut failure = gate_failure(*class);
            failure.at = now;
            let on = format!("node-{}", on % count + 1);
            world.runners = vec![failed(&pool, &format!("pool-{i:05}"), &on, failure)];
            let before: BTreeSet<String> = pool.status.quarantine.iter().map(|e| e.node.clone()).collect();
            pool.status = plan(&pool, &world, now).status;
            let after: BTreeSet<String> = pool.status.quarantine.iter().map(|e| e.node.clone()).collect();
            if !matches!(class, Class::Device | Class::Node | Class::Unsupported) {
                prop_assert!(after.is_subset(&before));
            }
            let recent = pool.status.quarantine.iter().filter(|e| now < e.since.0 + BREAKER_WINDOW).count();
            prop_assert!(2 * recent <= count, "{recent} of {count}");
            now += SignedDuration::from_mins(*minutes);
        }
        world.runners.clear();
        let end: Timestamp = now + LONGEST * 2;
        while now < end {
            pool.status = plan(&pool, &world, now).status;
            now += SignedDuration::from_hours(1);
        }
        let last = plan(&pool, &world, now);
        prop_assert!(quarantined(&last).is_empty());
        prop_assert!(avoided(&last).iter().all(BTreeSet::is_empty));
    }

    /// Whatever another pool's thresholds, time limits, template and environment made of its gates, and whatever it finds
    /// unsupported: this pool goes on as if the other were not there.
    #[test]
    fn what_another_pools_settings_cause_changes_nothing_here(
        entries in proptest::collection::vec((1..5_usize, of_settings(), any::<bool>()), 1..10),
    ) {
        let (_, plan) = after(Class::Node, 4);
        let entry = plan.status.quarantine[0].clone();
        let mut world = observed(vec![]);
        world.nodes = Some(nodes(4));
        let alone = super::super::plan(&pool(2), &world, NOW);
        world.quarantined = entries
            .into_iter()
            .map(|(on, (class, code, name), of_a_device)| held(QuarantineStatus {
                scope: None,
                node: format!("node-{on}"),
                device: of_a_device.then(|| "GPU-1".to_owned()),
                class: class.into(),
                code,
                code_name: Some(name),
                ..entry.clone()
            }))
            .collect();
        let beside = super::super::plan(&pool(2), &world, NOW);
        prop_assert_eq!(&alone.status, &beside.status);
        prop_assert_eq!(avoided(&alone), avoided(&beside));
    }
}

/// What a pool's own settings can make its gates find: its floors and demands, its time and memory limits, its template's
/// environment (`CUDA_VISIBLE_DEVICES`, the variables of MPS), and all that is unsupported.
fn of_settings() -> impl Strategy<Value = (Class, Option<i32>, String)> {
    let found = proptest::sample::select(vec![
        Finding::SlowCopy,
        Finding::MemoryTaken,
        Finding::Hang,
        Finding::Starved,
        Finding::Crash,
        Finding::OutOfMemoryKill,
        Finding::HiddenDevices,
        Finding::TooFewDevices,
        Finding::UnexpectedExit,
    ])
    .prop_map(|finding| (None, name_of(finding)));
    let of_mps = proptest::sample::select(vec![2, 46, 805, 806, 807, 808, 809, 810])
        .prop_map(|code| (Some(code), "CUDA_ERROR".to_owned()));
    let blamed = proptest::sample::select(vec![Class::Device, Class::Node]);
    prop_oneof![
        (blamed, prop_oneof![found, of_mps]).prop_map(|(class, (code, name))| (class, code, name)),
        (1..1000_i32).prop_map(|code| (Class::Unsupported, Some(code), "CUDA_ERROR".to_owned())),
        Just((Class::Unsupported, None, name_of(Finding::NoPeerAccess))),
        Just((
            Class::Unsupported,
            None,
            name_of(Finding::ComputeCapability)
        )),
    ]
}

fn name_of(found: Finding) -> String {
    found.name().to_owned()
}
