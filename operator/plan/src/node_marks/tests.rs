//! Given what pools leave alone, then nodes say so, each once.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::fixture::{NOW, ago};
use crate::model::key::PoolKey;
use cudarunner_crds::QuarantineStatus;

const BOTH: Marking = Marking {
    condition: true,
    taint: true,
};

fn node(name: &str) -> Marked {
    Marked {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        said: None,
        tainted: false,
    }
}

fn held(pool: &str, node: &str, class: Class, since: i64) -> Quarantined {
    Quarantined {
        pool: PoolKey {
            namespace: "ci".to_owned(),
            name: pool.to_owned(),
        },
        entry: QuarantineStatus {
            scope: None,
            node: node.to_owned(),
            device: (class == Class::Device).then(|| "GPU-1".to_owned()),
            class: class.into(),
            code: Some(if class == Class::Device { 719 } else { 803 }),
            code_name: None,
            message: format!("{pool} found it broken."),
            failures: 1,
            boot_id: None,
            since: Time(ago(since)),
            until: None,
        },
    }
}

/// The node as the writes leave it.
fn after(mut node: Marked, changes: &[MarkNode]) -> Marked {
    for mark in changes {
        assert_eq!((&mark.name, &mark.uid), (&node.name, &node.uid));
        match &mark.change {
            Change::Condition(said) => node.said = Some(said.clone()),
            Change::Taint(wanted) => node.tainted = *wanted,
        }
    }
    node
}

fn later(seconds: i64) -> Timestamp {
    NOW + SignedDuration::from_secs(seconds)
}

#[test]
fn a_node_that_never_failed_is_not_written_to() {
    let elsewhere = [held("a", "node-2", Class::Node, 5)];
    assert_eq!(plan(BOTH, &elsewhere, &[node("node-1")], &[], NOW), []);
}

#[test]
fn a_node_that_is_left_alone_says_why_and_is_written_to_once() {
    let held = [held("a", "node-1", Class::Device, 5)];
    let changes = plan(BOTH, &held, &[node("node-1")], &[], NOW);
    let node = after(node("node-1"), &changes);
    assert!(node.tainted);
    assert_eq!(
        node.said,
        Some(NodeCondition {
            status: "False".to_owned(),
            reason: Reason::DeviceFailed.into(),
            message:
                "GPU-1: a found it broken (code 719). The CudaRunner ci/a quarantines the node"
                    .to_owned(),
            since: NOW,
        })
    );
    assert_eq!(plan(BOTH, &held, &[node], &[], later(9)), []);
}

#[test]
fn each_mark_is_made_only_where_it_is_switched_on() {
    let held = [held("a", "node-1", Class::Node, 5)];
    let of = |condition, taint| {
        let marking = Marking { condition, taint };
        let changes = plan(marking, &held, &[node("node-1")], &[], NOW);
        let node = after(node("node-1"), &changes);
        (node.said.is_some(), node.tainted)
    };
    for wanted in [(false, false), (true, false), (false, true), (true, true)] {
        assert_eq!(of(wanted.0, wanted.1), wanted);
    }
}

#[test]
fn the_mark_of_several_pools_goes_with_the_last() {
    let (first, second) = (
        held("b", "node-1", Class::Node, 9),
        held("a", "node-1", Class::Device, 5),
    );
    let both = [second.clone(), first];
    let node = node("node-1");
    let node = after(node.clone(), &plan(BOTH, &both, &[node], &[], NOW));
    assert_eq!(node.said.as_ref().unwrap().reason, "NodeFailed");

    // The first lets go: the condition tells of the second, and has been false all the while
    let one = [second];
    let node = after(node.clone(), &plan(BOTH, &one, &[node], &[], later(1)));
    let said = node.said.as_ref().unwrap();
    assert_eq!((said.reason.as_str(), said.since), ("DeviceFailed", NOW));
    assert!(node.tainted);

    // So does the second
    let node = after(node.clone(), &plan(BOTH, &[], &[node], &[], later(2)));
    let said = node.said.clone().unwrap();
    assert_eq!(
        (said.status.as_str(), said.reason.as_str(), said.since),
        ("True", "Released", later(2))
    );
    assert!(!node.tainted);
    assert_eq!(plan(BOTH, &[], &[node], &[], later(3)), []);
}

#[test]
fn a_pass_since_the_failure_is_told_apart_from_a_release() {
    let held = [held("a", "node-1", Class::Node, 5)];
    let node = node("node-1");
    let node = after(node.clone(), &plan(BOTH, &held, &[node], &[], NOW));
    let reason = |on: &str, created| {
        let passed = [Passed {
            node: on.to_owned(),
            created,
            devices: vec![],
        }];
        let changes = plan(BOTH, &[], std::slice::from_ref(&node), &passed, later(60));
        after(node.clone(), &changes).said.unwrap().reason
    };
    assert_eq!(reason("node-1", later(30)), "Passed");
    assert_eq!(reason("node-1", ago(30)), "Released");
    assert_eq!(reason("node-2", later(30)), "Released");
}

#[test]
fn gpus_that_cannot_do_what_one_pool_asks_are_no_fault() {
    let held = [held("a", "node-1", Class::Unsupported, 5)];
    assert_eq!(plan(BOTH, &held, &[node("node-1")], &[], NOW), []);
}

#[test]
fn what_takes_a_mark_off_is_told_from_what_puts_one_on() {
    let change = |change| MarkNode {
        name: "node-1".to_owned(),
        uid: "u".to_owned(),
        change,
    };
    let said = |status: &str| {
        Change::Condition(NodeCondition {
            status: status.to_owned(),
            reason: Reason::Released.into(),
            message: String::new(),
            since: NOW,
        })
    };
    assert!(change(Change::Taint(false)).frees() && change(said("True")).frees());
    assert!(!change(Change::Taint(true)).frees() && !change(said("False")).frees());
}
