//! Given what pools quarantine and what drivers publish, then these devices are kept off.

use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, QuarantineScope, RunnerPhase};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::fixture::{
    NOW, ago, device_entry, gate_failure, node, observed, pool, published_device, runner,
};
use crate::model::key::PoolKey;
use crate::model::pool::{GpuRequest, Pool};
use crate::model::runner::End;
use crate::{Action, Plan};

/// `node-1` with `GPU-0` and so on, by their names of now.
fn published(uuids: &[&str]) -> Published {
    let devices = uuids.iter().enumerate();
    Published::new(devices.map(|(number, uuid)| published_device("node-1", number, uuid)))
}

fn entry(uuid: &str, since: i64) -> QuarantineStatus {
    device_entry(uuid, ago(since), NOW + SignedDuration::from_mins(10))
}

fn held(entry: QuarantineStatus) -> Quarantined {
    Quarantined {
        pool: PoolKey {
            namespace: "ci".to_owned(),
            name: "pool".to_owned(),
        },
        entry,
    }
}

fn owner() -> Owner {
    Owner {
        name: "role".to_owned(),
        uid: "0a1b2c3d-0000".to_owned(),
    }
}

fn planned(
    entries: &[QuarantineStatus],
    published: &Published,
    present: &[Present],
) -> Vec<Change> {
    let held: Vec<_> = entries.iter().cloned().map(held).collect();
    plan(Effect::NoSchedule, &owner(), &held, published, present, NOW).0
}

/// What is there when the changes have been made.
fn after(changes: Vec<Change>, mut present: Vec<Present>) -> Vec<Present> {
    for change in changes {
        match change {
            Change::Apply(rule) => {
                present.retain(|there| there.rule.name != rule.name);
                let uid = format!("uid-{}", rule.name);
                present.push(Present { rule, uid });
            }
            Change::Delete { name, uid } => {
                present.retain(|there| (&there.rule.name, &there.uid) != (&name, &uid));
            }
        }
    }
    present
}

#[test]
fn a_rule_that_only_tells_becomes_one_that_keeps_off_and_back() {
    // Given a device that failed, where taints are to tell and no more
    let (held, seen) = ([held(entry("GPU-0", 60))], published(&["GPU-0", "GPU-1"]));
    let planned =
        |effect, present: &[Present]| plan(effect, &owner(), &held, &seen, present, NOW).0;
    let mut rules = vec![];
    for (effect, word) in [
        (Effect::None, "None"),
        (Effect::NoSchedule, "NoSchedule"),
        (Effect::None, "None"),
    ] {
        // Then there is one rule, with that effect, and it stays
        rules = after(planned(effect, &rules), rules);
        let effects: Vec<_> = rules.iter().map(|r| r.rule.effect.as_str()).collect();
        assert_eq!(effects, [word]);
        assert_eq!(planned(effect, &rules), []);
    }
}

#[test]
fn a_rule_comes_follows_its_device_and_goes() {
    // Given a device that failed, then there is one rule, for its name of now
    let entries = [entry("GPU-0", 60)];
    let before = published(&["GPU-0", "GPU-1"]);
    let rules = after(planned(&entries, &before, &[]), vec![]);
    let [made] = rules.as_slice() else {
        panic!("{rules:?}");
    };
    assert_eq!(
        (made.rule.device.as_str(), made.rule.uuid.as_str()),
        ("gpu-0", "GPU-0")
    );
    assert_eq!(
        (made.rule.value.as_str(), made.rule.effect.as_str()),
        ("WrongResult", "NoSchedule")
    );
    assert_eq!(made.rule.name, "cudarunner-0a1b2c3d-gpu-0-node-1");
    // And nothing changes by itself
    assert_eq!(planned(&entries, &before, &rules), []);
    // When another device has its name, then the same rule names its place of now
    let moved = published(&["GPU-1", "GPU-0"]);
    let rules = after(planned(&entries, &moved, &rules), rules.clone());
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].rule.device, "gpu-1");
    // When no node has it, its quarantine ends, or its time is over, then the rule goes
    let mut over = entry("GPU-0", 600);
    over.until = Some(Time(NOW));
    let cases = [
        (entries.to_vec(), published(&["GPU-1", "GPU-2"])),
        (vec![], moved.clone()),
        (vec![over], moved),
    ];
    for (entries, published) in cases {
        let left = after(planned(&entries, &published, &rules), rules.clone());
        assert_eq!(left, [], "{entries:?}");
    }
}

#[test]
fn a_device_that_moved_to_another_node_is_followed() {
    let published = Published::new([
        published_device("node-1", 0, "GPU-1"),
        published_device("node-2", 0, "GPU-0"),
        published_device("node-2", 1, "GPU-3"),
    ]);
    let changes = planned(&[entry("GPU-0", 60)], &published, &[]);
    let [Change::Apply(rule)] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    assert_eq!(
        (rule.pool.as_str(), rule.device.as_str()),
        ("node-2", "gpu-0")
    );
}

#[test]
fn what_a_pools_author_can_cause_taints_nothing() {
    let all = published(&["GPU-0", "GPU-1"]);
    for (class, code, name) in [
        (Class::Unsupported, None, Some("WrongResult")),
        (Class::Node, Some(719), None),
        (Class::Device, None, Some("TooSlow")),
        (Class::Config, None, None),
    ] {
        let entry = QuarantineStatus {
            class: class.into(),
            code,
            code_name: name.map(str::to_owned),
            ..entry("GPU-0", 60)
        };
        assert_eq!(
            planned(&[entry], &all, &[]),
            [],
            "{class} {code:?} {name:?}"
        );
    }
}

/// A pool of runners that claim, on `node-1` with these devices; one gate found that `GPU-0` computes wrongly.
fn with_failure(uuids: &[&str]) -> (Pool, Plan) {
    let mut pool = pool(1);
    claim(&mut pool);
    let plan = fail(&pool, "pool-aaaaa", uuids, NOW);
    (pool, plan)
}

fn fail(pool: &Pool, name: &str, uuids: &[&str], at: Timestamp) -> Plan {
    let mut failed = runner(pool, name, RunnerPhase::Failed);
    let mut failure = gate_failure(Class::Device);
    failure.code = None;
    failure.code_name = Some("WrongResult".to_owned());
    failure.device = Some("GPU-0".to_owned());
    failure.at = at;
    failed.end = Some(End::Failed(failure));
    let mut seen = observed(vec![failed]);
    seen.published = Some(Arc::new(published(uuids)));
    seen.taints_devices = true;
    crate::plan(pool, &seen, at)
}

fn claim(pool: &mut Pool) {
    let spec = Arc::make_mut(pool.spec.as_mut().unwrap());
    spec.gpu = GpuRequest::Claim("one-gpu".to_owned());
}

/// The nodes that a new pod keeps off, where there is one.
fn avoids(plan: &Plan) -> Option<BTreeSet<String>> {
    plan.actions.iter().find_map(|action| match action {
        Action::CreatePod(new) => Some(new.avoids.clone()),
        _ => None,
    })
}

/// The nodes that the next pod keeps off, and the status, so many seconds after that.
fn next(
    mut pool: Pool,
    status: &CudaRunnerStatus,
    uuids: &[&str],
    after: i64,
) -> (Option<Vec<String>>, CudaRunnerStatus) {
    pool.status = status.clone();
    let mut seen = observed(vec![]);
    seen.nodes = Some(vec![node("node-1"), node("node-2")]);
    seen.published = Some(Arc::new(published(uuids)));
    seen.taints_devices = true;
    let plan = crate::plan(&pool, &seen, NOW + SignedDuration::from_secs(after));
    let avoids = avoids(&plan).map(|nodes| nodes.into_iter().collect());
    (avoids, plan.status)
}

#[test]
fn a_device_that_failed_is_kept_off_alone_even_on_the_only_node() {
    let (pool, plan) = with_failure(&["GPU-0", "GPU-1"]);
    let entries = &plan.status.quarantine;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].scope, Some(QuarantineScope::Device.into()));
    let told: Vec<_> = plan.notices.iter().map(|n| n.reason.to_string()).collect();
    assert!(told.contains(&"DeviceQuarantined".to_owned()), "{told:?}");
    // Soon another runner is made, which may go to that node
    let (avoids, status) = next(pool, &plan.status, &["GPU-0", "GPU-1"], 3);
    assert_eq!(avoids, Some(vec![]));
    let healthy = status.conditions.iter().find(|c| c.type_ == "GpuHealthy");
    assert_eq!(healthy.unwrap().reason, "DevicesQuarantined");
}

#[test]
fn where_rules_cannot_be_made_the_node_is_quarantined() {
    let (mut pool, plan) = with_failure(&["GPU-0", "GPU-1"]);
    pool.status = plan.status;
    // As another operator has entered it, whose rules are gone
    pool.status.quarantine[0].scope = None;
    let mut seen = observed(vec![]);
    seen.nodes = Some(vec![node("node-1"), node("node-2")]);
    let plan = crate::plan(&pool, &seen, NOW + SignedDuration::from_secs(3));
    assert_eq!(plan.status.quarantine[0].scope, None);
    assert!(avoids(&plan).unwrap().contains("node-1"));
}

#[test]
fn the_only_device_of_a_node_is_its_nodes_fault() {
    let (_, plan) = with_failure(&["GPU-0"]);
    let scopes: Vec<_> = plan
        .status
        .quarantine
        .iter()
        .map(|e| e.scope.clone())
        .collect();
    assert!(
        !scopes.contains(&Some(QuarantineScope::Device.into())),
        "{scopes:?}"
    );
}

#[test]
fn a_claim_that_tolerates_the_taint_fails_ever_later() {
    let uuids = ["GPU-0", "GPU-1"];
    let (mut pool, plan) = with_failure(&uuids);
    // Given that a runner gets the device in spite of its taint
    pool.status = plan.status;
    let again = NOW + SignedDuration::from_secs(2);
    let plan = fail(&pool, "pool-bbbbb", &uuids, again);
    // Then the pause is that of a failure of which nothing keeps the next runner: 8 to 12 seconds, and not 3 to 5
    assert_eq!(next(pool.clone(), &plan.status, &uuids, 8).0, None);
    assert!(next(pool, &plan.status, &uuids, 15).0.is_some());
}

#[test]
fn a_node_with_a_tainted_device_counts_as_one_that_is_used() {
    let uuids = ["GPU-0", "GPU-1"];
    let (mut pool, plan) = with_failure(&uuids);
    pool.status = plan.status;
    // When the other one of two nodes fails as a node
    let mut failed = runner(&pool, "pool-bbbbb", RunnerPhase::Failed);
    failed.node = Some("node-2".to_owned());
    let mut seen = observed(vec![failed]);
    seen.nodes = Some(vec![node("node-1"), node("node-2")]);
    seen.published = Some(Arc::new(published(&uuids)));
    seen.taints_devices = true;
    let plan = crate::plan(&pool, &seen, NOW + SignedDuration::from_secs(3));
    // Then it is quarantined: half of the nodes are left
    let entries = plan.status.quarantine.iter();
    let scopes: Vec<_> = entries
        .map(|e| (e.node.as_str(), e.scope.clone()))
        .collect();
    let device = Some(QuarantineScope::Device.into());
    assert_eq!(scopes, [("node-1", device), ("node-2", None)]);
}

#[test]
fn a_device_that_no_node_has_any_more_is_let_go() {
    let (pool, plan) = with_failure(&["GPU-0", "GPU-1"]);
    let (_, status) = next(pool.clone(), &plan.status, &["GPU-1", "GPU-2"], 3);
    assert_eq!(status.quarantine, []);
    // A node of which nothing is published proves nothing, and neither do devices of another driver
    for others in [&[][..], &["NIC-0", "MIG-1", "0a1b"]] {
        let (_, status) = next(pool.clone(), &plan.status, others, 3);
        assert_eq!(status.quarantine.len(), 1, "{others:?}");
    }
}

proptest! {
    #[test]
    fn never_more_than_half_of_a_nodes_devices_are_tainted(
        devices in 1_usize..9,
        others in 0_usize..9,
        failed in proptest::collection::vec((0_usize..9, 0_i64..600), 0..20),
    ) {
        let gpu = |n: usize| published_device("node-1", n, &format!("GPU-{n}"));
        // Network cards are no GPUs, and neither is what a GPU could be divided into
        let card = |n: usize| PublishedDevice {
            driver: "nic.example".to_owned(),
            ..published_device("node-1", n, &format!("NIC-{n}"))
        };
        let part = |n: usize| PublishedDevice { uuid: None, ..published_device("node-1", n, "") };
        let beside = (0..others).flat_map(|n| [card(n), part(n)]);
        let all = Published::new((0..devices).map(gpu).chain(beside));
        let entries: Vec<_> = failed.iter().map(|(n, since)| entry(&format!("GPU-{n}"), *since)).collect();
        let rules = after(planned(&entries, &all, &[]), vec![]);
        prop_assert!(rules.len() <= devices / 2);
        let broken: BTreeSet<usize> = failed.iter().map(|(n, _)| *n).filter(|n| *n < devices).collect();
        prop_assert_eq!(rules.len(), broken.len().min(devices / 2));
        // And a second look changes nothing
        prop_assert_eq!(planned(&entries, &all, &rules), vec![]);
    }
}
