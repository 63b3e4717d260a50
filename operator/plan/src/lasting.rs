//! Faults that last: when what looks like bad luck is the node's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::{FailureStatus, MAX_LAST_FAILURES};
use gate_report::{Class, Finding};
use jiff::{SignedDuration, Timestamp};

use super::{NodeFacts, Observed, sharing};
use crate::model::pool::Pool;
use crate::model::runner::{NOT_ALLOCATED, NOT_OFFERED, NOT_RUN};
use crate::model::time::Shift as _;
use crate::reason::{Reason, Stored};

/// After so many attempts in a row for which a node was not ready, it is to blame.
const IN_A_ROW: usize = 3;
/// Pods that a node was not ready for within this time are one attempt: a kubelet that starts anew refuses many at once,
/// and takes pods again as soon as the device plugin has come back to it.
const ONE_ATTEMPT: SignedDuration = SignedDuration::from_secs(30);
/// What happened longer before the last failure has nothing to do with it.
const LATELY: SignedDuration = SignedDuration::from_hours(1);

/// Failures of a node that are remembered: a few attempts of a pod for each of its GPUs.
const OF_A_NODE: usize = 24;
/// Failures of a pool that are remembered.
const REMEMBERED: usize = 1000;
/// Nodes from which new pods are kept where there is room elsewhere: more would only make each pod longer.
const SUSPECTS: usize = 100;

/// Codes of the driver that may tell of others than the device and its node: out of memory, in exclusive use, and those of
/// MPS. Neighbours on the device cause some of them, and a template can cause the others.
pub(super) const OF_OTHERS: [i32; 8] = [2, 46, 805, 806, 807, 808, 809, 810];
/// Those of them that neighbours cause: where GPUs are shared they are no fault, however long they last. That the MPS server
/// does not answer, answers badly or is not ready (805 to 807) is no neighbour's doing.
const OF_NEIGHBOURS: [i32; 5] = [2, 46, 808, 809, 810];

/// What is known of nodes beside the new failures.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) pool: &'a Pool,
    pub(super) observed: &'a Observed,
    /// When the pods of the new failures were made, by the name of their runner.
    pub(super) made: &'a BTreeMap<String, Timestamp>,
}

/// The failures that came before, newest first: those of the status, and older ones that have left it. When many nodes fail at
/// a time, the status has room for the last tries of a few of them.
pub(super) fn earlier(known: &[FailureStatus], remembered: &[FailureStatus]) -> Vec<FailureStatus> {
    let is_listed = |f: &&FailureStatus| known.iter().any(|k| k.at == f.at && k.runner == f.runner);
    let older = remembered.iter().filter(|f| !is_listed(f));
    let mut all: Vec<FailureStatus> = known.iter().chain(older).cloned().collect();
    all.sort_by_key(|failure| Reverse(failure.at.0));
    all
}

/// What is remembered of failures, newest first: nobody reads their messages again. What went well since is seen for a while
/// only, so what it speaks against is forgotten while it is.
pub(super) fn remembered<'a>(
    failures: impl Iterator<Item = &'a FailureStatus>,
    known: Known,
    now: Timestamp,
) -> Vec<FailureStatus> {
    let mut of_nodes = BTreeMap::<&str, usize>::new();
    let recent = failures.filter(|f| now < f.at.0.after(LATELY) && !known.well_since(f, f.at.0));
    let kept = recent.filter(|failure| {
        let count = failure
            .node
            .as_deref()
            .map(|node| of_nodes.entry(node).or_default());
        count.is_some_and(|count| {
            *count = count.saturating_add(1);
            *count <= OF_A_NODE
        })
    });
    let without_message = |failure: &FailureStatus| FailureStatus {
        message: String::new(),
        ..failure.clone()
    };
    kept.take(REMEMBERED).map(without_message).collect()
}

/// Blames the nodes whose faults last, in new failures: those come newest first, as the ones before them do.
pub(super) fn blame_nodes(new: &mut [FailureStatus], earlier: &[FailureStatus], known: Known) {
    // The oldest first: what becomes of it, the next one sees.
    for number in (0..new.len()).rev() {
        let (newer, older) = new.split_at_mut(number.saturating_add(1));
        let Some(failure) = newer.last_mut().filter(|f| f.class == Class::Transient) else {
            continue;
        };
        let before = older.iter().chain(earlier);
        let before = before.filter(|f| f.node.is_some() && f.node == failure.node);
        let why = if known.lasts(failure, before.clone()) {
            " That has happened there twice in a row: the node's driver, its device or its device plugin needs somebody."
        } else if known.attempts(failure, before, earlier) >= IN_A_ROW {
            " The node has been ready for no pod for a while: look at its kubelet, its container runtime and its device plugin."
        } else {
            continue;
        };
        failure.class = Class::Node.into();
        failure.message.push_str(why);
    }
}

/// The nodes of which the last word, lately, is a fault that may pass. New pods go elsewhere while there is room.
pub(super) fn suspects<'a>(
    failures: impl Iterator<Item = &'a FailureStatus>,
    known: Known,
    now: Timestamp,
) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let newest = failures.filter(|f| seen.insert(f.node.as_deref()));
    let suspect = newest.filter(|f| is_suspicious(f, now) && !known.well_since(f, f.at.0));
    suspect
        .filter_map(|f| f.node.clone())
        .take(SUSPECTS)
        .collect()
}

/// Whether a failure is a fault that may pass, of lately, and of a node rather than of what runs there.
#[must_use]
pub fn is_suspicious(failure: &FailureStatus, now: Timestamp) -> bool {
    let of_nodes = [
        Reason::GateFailed,
        Reason::NodeWarmingUp,
        Reason::PodRejected,
    ];
    failure.class.is_one_of(&[Class::Transient, Class::Unknown])
        && Stored::parse(&failure.reason).is_one_of(&of_nodes)
        && now < failure.at.0.after(LATELY)
}

impl Known<'_> {
    /// Whether the last failure before this one's pod was made is the same, and nothing has gone well there in between. A
    /// gate that fails so has waited and tried again by itself already.
    fn lasts<'a>(
        self,
        failure: &FailureStatus,
        mut before: impl Iterator<Item = &'a FailureStatus>,
    ) -> bool {
        if !is_named(failure) || self.is_of_neighbours(failure) || self.was_warming(failure) {
            return false;
        }
        let made = self.made.get(&failure.runner).copied();
        let is_same =
            |code, name: &Option<String>| code == failure.code && *name == failure.code_name;
        let last = before.find(|f| made.is_none_or(|made| f.at.0 <= made));
        let again = last.is_some_and(|last| {
            is_named(last)
                && last.reason == failure.reason
                && last.class.is_one_of(&[Class::Transient, Class::Node])
                && is_same(last.code, &last.code_name)
                && failure.at.0.duration_since(last.at.0) < LATELY
                && !self.was_warming(last)
                && !self.well_since(failure, last.at.0)
        });
        // Its quarantine for that may have been longer.
        let mut entries = self.pool.status.quarantine.iter();
        again
            || entries.any(|entry| {
                Some(&entry.node) == failure.node.as_ref()
                    && entry.class == Class::Node
                    && is_same(entry.code, &entry.code_name)
                    && !self.well_since(failure, entry.since.0)
            })
    }

    /// How often in a row, up to this failure, its node was not ready for the pool's pods.
    fn attempts<'a>(
        self,
        failure: &'a FailureStatus,
        before: impl Iterator<Item = &'a FailureStatus>,
        earlier: &[FailureStatus],
    ) -> usize {
        let counts = |f: &&FailureStatus| {
            is_unready(f)
                && !self.well_since(f, f.at.0)
                && failure.at.0.duration_since(f.at.0) < LATELY
        };
        let mut attempts: usize = 0;
        let mut last: Option<Timestamp> = None;
        for refusal in std::iter::once(failure).chain(before).take_while(counts) {
            if last.is_none_or(|last| last.duration_since(refusal.at.0) >= ONE_ATTEMPT) {
                attempts = attempts.saturating_add(1);
                last = Some(refusal.at.0);
            }
        }
        // Many pods at a time push earlier attempts off the list: one that is full of nothing else counts as one more, where
        // it is all that there is.
        let is_of_node = |f: &FailureStatus| is_unready(f) && f.node == failure.node;
        let is_full = self.observed.failures.is_empty()
            && earlier.len() >= MAX_LAST_FAILURES
            && earlier.iter().all(is_of_node);
        attempts.saturating_add(usize::from(attempts > 0 && is_full))
    }

    /// Whether anything has gone well since a moment on the failure's node, and on its device where it names one: a gate
    /// in a pod that was made since, or a job that has begun since.
    fn well_since(self, failure: &FailureStatus, since: Timestamp) -> bool {
        let is_there = |node: Option<&str>, devices: &[String]| {
            let device = failure.device.as_ref();
            node == failure.node.as_deref() && device.is_none_or(|d| devices.contains(d))
        };
        let mut passed = self.observed.passed.iter();
        let mut jobs = self.pool.status.last_jobs.iter();
        passed.any(|p| p.created >= since && is_there(Some(&p.node), &p.devices))
            || jobs.any(|job| {
                let started = job.started_at.as_ref();
                started.is_some_and(|started| started.0 >= since)
                    && is_there(job.node.as_deref(), &job.devices)
            })
    }

    /// The failure's node, as far as nodes are watched.
    fn node(&self, failure: &FailureStatus) -> Option<&NodeFacts> {
        self.observed.node(failure.node.as_deref()?)
    }

    /// Whether the failure's node was new then, as far as is known.
    fn was_warming(self, failure: &FailureStatus) -> bool {
        self.node(failure)
            .is_some_and(|node| node.is_warming_up(failure.at.0))
    }

    /// Whether the failure may be the doing of others with whom its GPU is shared: a busy device, or time that ran out.
    fn is_of_neighbours(self, failure: &FailureStatus) -> bool {
        let spec = self.pool.spec.as_ref();
        let is_shared = |gpu| sharing::is_shared(gpu, self.node(failure));
        (failure.shared || spec.is_ok_and(|spec| is_shared(&spec.gpu)))
            && Stored::parse(&failure.reason) == Reason::GateFailed
            && failure
                .code
                .is_none_or(|code| OF_NEIGHBOURS.contains(&code))
    }
}

/// Whether a failure is a fault with a name: what a gate found, or a device plugin that answered with an error.
fn is_named(failure: &FailureStatus) -> bool {
    let reason = Stored::parse(&failure.reason);
    let name = failure.code_name.as_deref();
    // A host without time or memory for the gate says nothing of its devices, and a template can cause it.
    let of_host = [Finding::Starved, Finding::NodeOutOfMemory].map(|found| Some(found.name()));
    reason == Reason::GateFailed
        && name != Some(NOT_RUN)
        && !of_host.contains(&name)
        && (failure.code.is_some() || name.is_some())
        || reason == Reason::PodRejected && name == Some(NOT_ALLOCATED)
}

/// Whether a node was not ready for a pod: it did not start its gate, or had no devices to give.
fn is_unready(failure: &FailureStatus) -> bool {
    let name = failure.code_name.as_deref();
    [Some(NOT_RUN), Some(NOT_OFFERED)].contains(&name)
        && failure.class.is_one_of(&[Class::Transient, Class::Node])
}

#[cfg(test)]
mod tests;
