//! Nodes that take no pod: when what looks like bad luck is the node's fault.

use std::collections::BTreeSet;

use cudarunner_crds::{FailureStatus, JobStatus, MAX_LAST_FAILURES};
use gate_report::Class;
use jiff::{SignedDuration, Timestamp};

use super::Passed;
use crate::model::runner::NOT_RUN;
use crate::reason::{Reason, Stored};

/// After so many attempts in a row that a node refused, it is to blame.
const IN_A_ROW: usize = 3;
/// Pods that a node refuses within this time are one attempt: a kubelet that starts anew refuses many at once.
const ONE_ATTEMPT: SignedDuration = SignedDuration::from_secs(30);
/// What happened longer before the last refusal has nothing to do with it.
const LATELY: SignedDuration = SignedDuration::from_hours(1);

/// What shows that a node is well: gates that have passed, as long as their pods are there, and jobs that were run.
pub(super) type Well<'a> = (&'a [Passed], &'a [JobStatus]);

/// Blames the nodes that keep refusing pods, in new failures. A mistake of the spec has its own class, and is not counted.
pub(super) fn blame_nodes(new: &mut [FailureStatus], known: &[FailureStatus], well: Well<'_>) {
    let refused = new.iter().filter(|failure| is_refusal(failure));
    let nodes: BTreeSet<String> = refused.filter_map(|failure| failure.node.clone()).collect();
    for node in nodes {
        if attempts(new, known, well, &node) < IN_A_ROW {
            continue;
        }
        let of_node = |f: &&mut FailureStatus| f.node.as_ref() == Some(&node);
        for failure in new
            .iter_mut()
            .filter(of_node)
            .filter(|f| f.class == Class::Transient)
        {
            failure.class = Class::Node.into();
            failure.message.push_str(
                " The node has refused every pod for a while: look at its kubelet, its container runtime and its device plugin.",
            );
        }
    }
}

/// How often in a row, up to now, the node has refused the pool's pods.
fn attempts(new: &[FailureStatus], known: &[FailureStatus], well: Well<'_>, node: &str) -> usize {
    let (passed, jobs) = well;
    let passed = passed.iter().filter(|p| p.node == node);
    let jobs = jobs.iter().filter(|job| job.node.as_deref() == Some(node));
    let passed = passed.map(|p| p.created).max();
    let well = passed.max(jobs.map(|job| job.finished_at.0).max());
    let all = new.iter().chain(known);
    let mut all = all.filter(|f| f.node.as_deref() == Some(node)).peekable();
    let newest = all.peek().map_or(Timestamp::MIN, |f| f.at.0);
    let counts = |f: &&FailureStatus| {
        is_refusal(f)
            && well.is_none_or(|well| well < f.at.0)
            && newest.duration_since(f.at.0) < LATELY
    };
    let mut attempts: usize = 0;
    let mut last: Option<Timestamp> = None;
    for refusal in all.take_while(counts) {
        if last.is_none_or(|last| last.duration_since(refusal.at.0) >= ONE_ATTEMPT) {
            attempts = attempts.saturating_add(1);
            last = Some(refusal.at.0);
        }
    }
    // Many pods at a time push earlier attempts off the list: one that is full of nothing else counts as one more.
    let is_of_node = |f: &FailureStatus| is_refusal(f) && f.node.as_deref() == Some(node);
    let is_full = known.len() >= MAX_LAST_FAILURES && known.iter().all(is_of_node);
    attempts.saturating_add(usize::from(is_full))
}

/// Whether a node did not take a pod, or did not start its gate, for no reason that the spec gives.
fn is_refusal(failure: &FailureStatus) -> bool {
    let reason = Stored::parse(&failure.reason);
    let not_run = reason == Reason::GateFailed && failure.code_name.as_deref() == Some(NOT_RUN);
    (reason == Reason::PodRejected || not_run)
        && failure.class.is_one_of(&[Class::Transient, Class::Node])
}

#[cfg(test)]
mod tests {
    use cudarunner_crds::FailureClass;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use proptest::prelude::*;

    use super::super::fixture::ago;
    use super::*;

    fn failure(reason: Reason, class: Class, node: &str, seconds_ago: i64) -> FailureStatus {
        FailureStatus {
            runner: format!("pool-{seconds_ago}"),
            node: Some(node.to_owned()),
            device: None,
            class: class.into(),
            code: None,
            code_name: (reason == Reason::GateFailed).then(|| NOT_RUN.to_owned()),
            reason: reason.into(),
            message: "m".to_owned(),
            at: Time(ago(seconds_ago)),
        }
    }

    /// The class of the first failure, the newest, with the others known before.
    fn class_of_last(all: &[FailureStatus], passed: &[Passed]) -> FailureClass {
        let (new, known) = all.split_at(1);
        let mut new = new.to_vec();
        blame_nodes(&mut new, known, (passed, &[]));
        new[0].class.clone()
    }

    fn refused(node: &str, seconds_ago: i64) -> FailureStatus {
        failure(Reason::PodRejected, Class::Transient, node, seconds_ago)
    }

    fn here(seconds_ago: i64) -> FailureStatus {
        refused("node-1", seconds_ago)
    }

    fn passed(node: &str, seconds_ago: i64) -> Passed {
        Passed {
            node: node.to_owned(),
            created: ago(seconds_ago),
            devices: vec![],
        }
    }

    #[test]
    fn a_node_that_refuses_three_attempts_in_a_row_is_to_blame() {
        let no_gate = failure(Reason::GateFailed, Class::Transient, "node-1", 60);
        let blamed = failure(Reason::PodRejected, Class::Node, "node-1", 1800);
        let elsewhere = refused("node-2", 30);
        let long_ago_or_elsewhere = vec![passed("node-1", 900), passed("node-2", 1)];
        // Given so many at a time that the list has no place for more, then the next attempt is enough
        let crowd = (61..71).map(here);
        let crowd = std::iter::once(here(0)).chain(crowd).collect();
        let three = vec![here(0), here(60), here(120)];
        let without_gate = vec![here(0), no_gate, here(120)];
        let with_another = vec![here(0), elsewhere, here(60), here(120)];
        let again = vec![here(0), blamed, here(1860), here(1920)];
        for (what, all, passed) in [
            ("the third", three.clone(), vec![]),
            ("one that could not start the gate", without_gate, vec![]),
            ("another node's in between", with_another, vec![]),
            ("it took a pod long before", three, long_ago_or_elsewhere),
            ("again after its time alone", again, vec![]),
            ("a crowd before", crowd, vec![]),
        ] {
            assert_eq!(class_of_last(&all, &passed), Class::Node, "{what}");
        }
    }

    #[test]
    fn a_node_that_has_refused_less_is_not() {
        let mistake = failure(Reason::PodRejected, Class::Config, "node-1", 60);
        let at_once = vec![here(0), here(1), here(2), here(3)];
        let three_nodes = vec![here(0), refused("node-2", 60), refused("node-3", 120)];
        let with_mistake = vec![here(0), mistake, here(120)];
        let three = vec![here(0), here(60), here(120)];
        let long_ago = vec![here(0), here(60), here(7200)];
        for (what, all, passed) in [
            ("the first", vec![here(0)], vec![]),
            ("the second", vec![here(0), here(60)], vec![]),
            ("many at once", at_once, vec![]),
            ("three nodes", three_nodes, vec![]),
            ("a mistake of the spec in between", with_mistake, vec![]),
            (
                "it took a pod in between",
                three,
                vec![passed("node-1", 90)],
            ),
            ("long ago", long_ago, vec![]),
        ] {
            assert_eq!(class_of_last(&all, &passed), Class::Transient, "{what}");
        }
    }

    proptest! {
        #[test]
        fn what_is_nobodys_fault_once_blames_no_node_and_a_mistake_of_the_spec_never_does(
            classes in proptest::collection::vec(0..Class::ALL.len(), 1..12),
            gap in 0i64..600,
        ) {
            let all: Vec<_> = classes.iter().zip(0i64..)
                .map(|(class, n)| failure(Reason::PodRejected, Class::ALL[*class], "node-1", n * gap))
                .collect();
            let before = all[0].class.clone();
            let after = class_of_last(&all, &[]);
            let refusals = all.iter().take_while(|f| is_refusal(f)).count();
            if before != after {
                prop_assert_eq!(before, Class::Transient);
                prop_assert!(refusals >= 3, "{}", refusals);
            }
        }
    }
}
