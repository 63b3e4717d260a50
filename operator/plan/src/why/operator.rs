//! Why no operator has answered: whether the one that serves a pool runs, and whether another one would serve it.

use cudarunner_crds::OperatorStatus;
use jiff::{SignedDuration, Timestamp};

use super::job::some;

/// A Lease that was not renewed for so long has no holder: clocks differ by less.
const STALE: SignedDuration = SignedDuration::from_mins(1);
/// Why nobody was asked for a document.
pub const NOBODY: &str = "no operator serves these pools";
/// Of an operator that is there.
const HAS_NOT_LOOKED: &str = "has not looked at GitHub since you asked, so what is said of GitHub may be old. --wait 30 gives it more time";
/// How its pods are found.
const LOOK: &str =
    "kubectl get pods --all-namespaces --selector app.kubernetes.io/name=cuda-runner-operator";

/// What is seen of operators; `None` for what could not be read.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The operator that the pool names.
    pub named: Named,
    /// The Leases of all operators.
    pub all: Option<Vec<Operator>>,
    /// The pods of all operators.
    pub pods: Option<Vec<OperatorPod>>,
}

/// The operator that a pool names, by its Lease.
#[derive(Clone, Debug, Default)]
pub enum Named {
    /// The pool names none, or the Lease could not be read.
    #[default]
    Unread,
    /// There is no such Lease.
    Gone,
    /// It is there.
    There(Operator),
}

/// An operator, by its Lease.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The Lease.
    pub lease: OperatorStatus,
    /// When its holder last renewed it, where it has one.
    pub renewed: Option<Timestamp>,
    /// Whether it is renewed all the time. That of an operator without leader election is renewed every ten minutes, which is
    /// too seldom to say whether one runs.
    pub is_renewed: bool,
    /// Whether its selector and its namespaces take in the pool.
    pub selects: bool,
    /// The pools that it serves, in words.
    pub serves: String,
}

/// A pod of an operator.
#[derive(Clone, Debug)]
pub struct OperatorPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is ready.
    pub is_ready: bool,
}

impl Operator {
    /// Whether it runs, as far as its Lease tells, or its pods where that does not.
    fn runs(&self, seen: &Seen, now: Timestamp) -> Option<bool> {
        let Some(at) = self.renewed else {
            return Some(false);
        };
        if self.is_renewed {
            return Some(now.duration_since(at).abs() < STALE);
        }
        let mut own = seen.pods.as_ref()?.iter();
        Some(own.any(|pod| pod.is_ready && pod.namespace == self.lease.namespace))
    }
}

/// What is known of the operator of a pool.
enum Known {
    /// It runs, or nobody can tell.
    There(String),
    /// No operator serves the pool.
    Absent(String),
}

/// Why nobody has looked at GitHub for a pool that names this operator, or none, and what to do.
#[must_use]
pub fn doubt(named: Option<&OperatorStatus>, seen: &Seen, now: Timestamp) -> String {
    match known(named, seen, now) {
        Known::There(says) | Known::Absent(says) => says,
    }
}

/// Why no operator serves a pool that names this one, or none, and what to do; `None` where one does, or nobody can tell.
#[must_use]
pub fn absent(named: Option<&OperatorStatus>, seen: &Seen, now: Timestamp) -> Option<String> {
    match known(named, seen, now) {
        Known::There(_) => None,
        Known::Absent(says) => Some(says),
    }
}

fn known(named: Option<&OperatorStatus>, seen: &Seen, now: Timestamp) -> Known {
    use Known::{Absent, There};
    let Some(named) = named else {
        return unnamed(seen, now);
    };
    let why = match &seen.named {
        Named::Unread => return There(unread()),
        Named::There(operator) if !operator.selects => {
            return Absent(format!(
                "The operator {} serves this pool no more, as its Lease says which pools it selects. {}",
                named.name,
                successor(named, seen, now)
            ));
        }
        Named::Gone => "is gone: there is no Lease of it".to_owned(),
        Named::There(operator) => match (operator.runs(seen, now), operator.renewed) {
            (Some(true), _) => return There(format!("The operator runs and {HAS_NOT_LOOKED}")),
            (None, _) => {
                return There(format!(
                    "The operator {HAS_NOT_LOOKED}. Whether it runs its Lease does not tell, since it has no leader election: `kubectl get pods --namespace {}` does",
                    named.namespace
                ));
            }
            (Some(false), None) => "does not run: nobody holds its Lease".to_owned(),
            (Some(false), Some(at)) if operator.is_renewed => {
                format!("does not run: it was last seen at {at}")
            }
            (Some(false), Some(_)) => "does not run: none of its pods is ready".to_owned(),
        },
    };
    Absent(format!(
        "The operator {named}, which served this pool, {why}. So all of this is old. {}",
        successor(named, seen, now)
    ))
}

/// The operators that run, beside this one.
fn others<'a>(
    but: Option<&'a OperatorStatus>,
    seen: &'a Seen,
    now: Timestamp,
) -> impl Iterator<Item = &'a Operator> {
    let all = seen.all.iter().flatten();
    all.filter(move |operator| {
        operator.runs(seen, now) != Some(false) && Some(&operator.lease) != but
    })
}

/// Who takes over a pool that names an operator which serves it no more.
fn successor(named: &OperatorStatus, seen: &Seen, now: Timestamp) -> String {
    if let Some(next) = others(Some(named), seen, now).find(|other| other.selects) {
        return format!(
            "The operator {} selects it, too, and takes it over within half a minute",
            next.lease
        );
    }
    let others: Vec<_> = others(Some(named), seen, now).collect();
    if !others.is_empty() {
        return not_selected(&others);
    }
    let mut pods = seen.pods.iter().flatten();
    let elsewhere = |pod: &&OperatorPod| pod.is_ready && pod.namespace != named.namespace;
    if let Some(pod) = pods.find(elsewhere) {
        let lease = match &seen.all {
            Some(_) => "It holds no Lease, and its log says why",
            None => "Leases cannot be listed, which would tell what it serves",
        };
        return format!(
            "Another operator runs, in the pod {}/{}. {lease}. If it serves this pool, it takes it over within half a minute",
            pod.namespace, pod.name
        );
    }
    if seen.all.is_none() {
        return "Another one that selects it takes it over within half a minute. If none does, nothing is done for this pool: compare its labels with the operators' --pool-selector".to_owned();
    }
    format!(
        "No other operator runs that could take it over, so nothing is done for this pool. `kubectl get pods --namespace {}` shows what became of it; install it again, or another one that selects the pool",
        named.namespace
    )
}

/// Of operators that run, and of which none selects a pool.
fn not_selected(others: &[&Operator]) -> String {
    let all: Vec<String> = others
        .iter()
        .map(|other| format!("{} runs and serves {}", other.lease, other.serves))
        .collect();
    format!(
        "No operator that runs selects this pool, so nothing is done for it: {}. Give the CudaRunner labels that one selects, or change poolSelector or watchNamespaces in the chart of one",
        all.join("; ")
    )
}

/// Of a pool that names no operator: none has taken it yet, or one that did has given it back.
fn unnamed(seen: &Seen, now: Timestamp) -> Known {
    use Known::{Absent, There};
    let running: Vec<_> = others(None, seen, now).collect();
    let pods = seen.pods.as_deref();
    let is_ready = pods.is_some_and(|pods| pods.iter().any(|pod| pod.is_ready));
    if running.iter().any(|operator| operator.selects) || (running.is_empty() && is_ready) {
        return There(format!("The operator runs and {HAS_NOT_LOOKED}"));
    }
    if !running.is_empty() {
        return Absent(not_selected(&running));
    }
    let Some(all) = &seen.all else {
        return There(unread());
    };
    let last = all.iter().max_by_key(|operator| operator.renewed);
    let seen_at = last.and_then(|last| last.renewed);
    let seen_at = seen_at.map_or_else(String::new, |at| format!(", the last one was seen at {at}"));
    let place = last.map(|last| &last.lease.namespace);
    let place = place.or_else(|| pods?.first().map(|pod| &pod.namespace));
    match (place, pods) {
        (Some(namespace), _) => Absent(format!(
            "No operator runs{seen_at}. So all of this is old, and nothing is done for this pool. `kubectl get pods --namespace {namespace}` shows what became of it"
        )),
        (None, Some(_)) => Absent("No operator runs in this cluster: there is neither a Lease nor a pod of one, so nothing is done for this pool. Install it, or look why it does not start".to_owned()),
        (None, None) => There(format!(
            "No operator has looked at GitHub since you asked, so what is said of GitHub may be old. None is seen to run: there is no Lease of one, and their pods cannot be listed. One that may not write its Lease runs without: `{LOOK}` tells, for who may list them. --wait 30 gives it more time"
        )),
    }
}

/// What is said of pools before all else where no operator serves them; `of` is how many were looked at.
#[must_use]
pub fn of_absent(pools: Vec<String>, of: usize) -> Option<String> {
    let which = match pools.len() {
        0 => return None,
        all if all == of && of > 1 => format!("any of the {of} pools"),
        _ => some(pools, ", "),
    };
    Some(format!(
        "No operator serves {which}: nothing is done there, and all that is said of it is old. `kubectl cudarunner why POOL` says what became of the operator"
    ))
}

/// Where nothing could be seen.
fn unread() -> String {
    "The operator has not looked at GitHub since you asked, so what is said of GitHub may be old. Does the operator run? --wait 30 gives it more time".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, ago};

    fn named() -> OperatorStatus {
        OperatorStatus {
            namespace: "gpu-a".to_owned(),
            name: "op-a".to_owned(),
        }
    }

    /// An operator whose Lease was renewed so many seconds ago, or is held by nobody.
    fn operator(namespace: &str, renewed: Option<i64>, selects: bool) -> Operator {
        let letter = namespace.chars().last().unwrap();
        Operator {
            lease: OperatorStatus {
                namespace: namespace.to_owned(),
                name: format!("op-{letter}"),
            },
            renewed: renewed.map(ago),
            is_renewed: true,
            selects,
            serves: format!("pools with shard={letter}"),
        }
    }

    fn pod(is_ready: bool) -> Vec<OperatorPod> {
        vec![OperatorPod {
            namespace: "gpu-c".to_owned(),
            name: "op-c-1".to_owned(),
            is_ready,
        }]
    }

    /// What is seen: of the operator that the pool names, of all, and of pods.
    fn seen(named: Named, all: Option<Vec<Operator>>, pods: Option<Vec<OperatorPod>>) -> Seen {
        let own = match &named {
            Named::There(operator) => Some(operator.clone()),
            Named::Unread | Named::Gone => None,
        };
        let all = all.map(|all| own.into_iter().chain(all).collect());
        Seen { named, all, pods }
    }

    #[test]
    fn whether_an_operator_without_leader_election_runs_its_pods_tell() {
        // Given an operator whose Lease was written when it started, days ago
        let own = Operator {
            is_renewed: false,
            ..operator("gpu-c", Some(500_000), true)
        };
        let named = own.lease.clone();
        for (pods, words) in [
            (Some(pod(true)), "The operator runs and has not looked"),
            (
                Some(pod(false)),
                "does not run: none of its pods is ready. So all of this is old",
            ),
            (
                None,
                "its Lease does not tell, since it has no leader election: `kubectl get pods --namespace gpu-c` does",
            ),
        ] {
            let seen = seen(Named::There(own.clone()), Some(vec![]), pods);
            let said = doubt(Some(&named), &seen, NOW);
            let is_absent = said.contains("does not run") || said.contains("is gone");
            assert_eq!(
                absent(Some(&named), &seen, NOW).is_some(),
                is_absent,
                "{said}"
            );
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn what_is_said_of_operators_is_true_and_leads_on() {
        let own = |renewed, selects| Named::There(operator("gpu-a", renewed, selects));
        let b = |selects| Some(vec![operator("gpu-b", Some(5), selects)]);
        let none = || Some(vec![]);
        // The situation, whether the pool names an operator, what is seen, the words that are said, and those that are not
        for (situation, is_named, seen, words, not) in [
            (
                "its operator lives and is slow",
                true,
                seen(own(Some(5), true), none(), None),
                "The operator runs and has not looked",
                "No operator",
            ),
            (
                "its operator's namespace is gone, and the other one does not select it",
                true,
                seen(Named::Gone, b(false), Some(pod(true))),
                "The operator gpu-a/op-a, which served this pool, is gone: there is no Lease of it. So all of this is old. No operator that runs selects this pool, so nothing is done for it: gpu-b/op-b runs and serves pools with shard=b. Give the CudaRunner labels",
                "in this cluster",
            ),
            (
                "its operator is gone, and the other one selects it",
                true,
                seen(Named::Gone, b(true), None),
                "The operator gpu-b/op-b selects it, too, and takes it over within half a minute",
                "No operator",
            ),
            (
                "its operator is gone, and one runs that may not write its Lease",
                true,
                seen(Named::Gone, none(), Some(pod(true))),
                "Another operator runs, in the pod gpu-c/op-c-1. It holds no Lease, and its log says why. If it serves this pool",
                "No operator",
            ),
            (
                "its operator is gone, another one runs, and its Lease cannot be read",
                true,
                seen(Named::Gone, None, Some(pod(true))),
                "Another operator runs, in the pod gpu-c/op-c-1. Leases cannot be listed, which would tell what it serves. If it serves this pool",
                "holds no Lease",
            ),
            (
                "its operator is gone, and nobody else is there",
                true,
                seen(Named::Gone, none(), Some(vec![])),
                "No other operator runs that could take it over",
                "takes it over within",
            ),
            (
                "its operator is gone, and the Leases of others cannot be read",
                true,
                seen(Named::Gone, None, None),
                "Another one that selects it takes it over within half a minute. If none does",
                "No other operator",
            ),
            (
                "its operator does not run any more, and the other one does not select it",
                true,
                seen(own(Some(300), true), b(false), None),
                "does not run: it was last seen at 1970-01-12T13:41:40Z. So all of this is old. No operator that runs selects this pool",
                "gone",
            ),
            (
                "its operator has given its Lease back",
                true,
                seen(own(None, true), none(), None),
                "does not run: nobody holds its Lease. So all of this is old. No other operator runs that could take it over, so nothing is done for this pool. `kubectl get pods --namespace gpu-a`",
                "in this cluster",
            ),
            (
                "its operator selects it no more, and the other one does",
                true,
                seen(own(Some(5), false), b(true), None),
                "serves this pool no more, as its Lease says which pools it selects. The operator gpu-b/op-b selects it, too",
                "nothing is done",
            ),
            (
                "nobody selects it any more",
                true,
                seen(own(Some(5), false), b(false), None),
                "serves this pool no more, as its Lease says which pools it selects. No operator that runs selects this pool",
                "takes it over within",
            ),
            (
                "its operator's Lease cannot be read",
                true,
                seen(Named::Unread, None, Some(pod(true))),
                "Does the operator run?",
                "No operator",
            ),
            (
                "it names none, and an operator that selects it lives",
                false,
                seen(Named::Unread, b(true), None),
                "The operator runs and has not looked",
                "No operator",
            ),
            (
                "it names none, and the operator that lives does not select it",
                false,
                seen(Named::Unread, b(false), Some(pod(true))),
                "No operator that runs selects this pool, so nothing is done for it: gpu-b/op-b runs and serves pools with shard=b",
                "in this cluster",
            ),
            (
                "it names none, and the operator that runs may not write its Lease",
                false,
                seen(Named::Unread, none(), Some(pod(true))),
                "The operator runs and has not looked",
                "No operator",
            ),
            (
                "it names none, and a Lease is left behind by the same operator",
                false,
                seen(
                    Named::Unread,
                    Some(vec![operator("gpu-c", Some(300), true)]),
                    Some(pod(true)),
                ),
                "The operator runs and has not looked",
                "No operator",
            ),
            (
                "the operator was seen minutes ago",
                false,
                seen(
                    Named::Unread,
                    Some(vec![operator("gpu-b", Some(300), true)]),
                    None,
                ),
                "No operator runs, the last one was seen at 1970-01-12T13:41:40Z. So all of this is old, and nothing is done for this pool. `kubectl get pods --namespace gpu-b`",
                "in this cluster",
            ),
            (
                "the operator's pod is not ready",
                false,
                seen(Named::Unread, none(), Some(pod(false))),
                "No operator runs. So all of this is old, and nothing is done for this pool. `kubectl get pods --namespace gpu-c`",
                "in this cluster",
            ),
            (
                "there is no operator",
                false,
                seen(Named::Unread, none(), Some(vec![])),
                "No operator runs in this cluster: there is neither a Lease nor a pod of one",
                "--wait",
            ),
            (
                "there is no Lease, and pods may not be listed",
                false,
                seen(Named::Unread, none(), None),
                "there is no Lease of one, and their pods cannot be listed. One that may not write its Lease runs without: `kubectl get pods --all-namespaces",
                "nothing is done",
            ),
            (
                "nothing may be seen",
                false,
                seen(Named::Unread, None, None),
                "Does the operator run?",
                "No operator",
            ),
        ] {
            let named = is_named.then(named);
            let said = doubt(named.as_ref(), &seen, NOW);
            // Whoever is told so is told it of many pools, too, and nobody else is
            let is_absent = said.contains("nothing is done for") || said.contains("takes it over");
            let found = absent(named.as_ref(), &seen, NOW);
            assert_eq!(found, is_absent.then(|| said.clone()));
            assert!(said.contains(words), "{situation}: {said}");
            assert!(!said.contains(not), "{situation}: {said}");
            assert!(!said.ends_with('.'), "{situation}: {said}");
        }
    }

    #[test]
    fn pools_that_nobody_serves_are_named_unless_it_is_all_of_them() {
        let first = |names: &[&str], of| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            of_absent(names, of).map(|said| said.split(':').next().unwrap().to_owned())
        };
        let some = |said: &str| Some(format!("No operator serves {said}"));
        assert_eq!(first(&[], 2), None);
        assert_eq!(first(&["ci/a"], 2), some("ci/a"));
        assert_eq!(first(&["ci/a"], 1), some("ci/a"));
        assert_eq!(first(&["ci/a", "ci/b"], 2), some("any of the 2 pools"));
    }
}
