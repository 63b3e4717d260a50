//! `why`: what stands in the way of jobs.

pub(crate) mod job;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cuda_runner_operator::lease::{LEASE, UNRENEWED_SECONDS};
use cuda_runner_operator::selector::is_selected;
use cuda_runner_plan::why::causes;
use cudarunner_crds::{CudaRunner, CudaRunnerStatus, LOOK_AGAIN};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::runtime::wait::{self, await_condition};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::connect::{Pools, key};
use crate::text::wrap;

/// How long the operator may take to look at GitHub where nobody says: a person waits for the answer.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// How long the operator's lease may take to be read.
const ASK: Duration = Duration::from_millis(300);
/// A lease that was not renewed for so long has no holder: clocks differ by less.
const STALE: Duration = Duration::from_mins(1);

/// What is known of a pool, and how surely.
pub(crate) struct Answer {
    /// The pool, as it is after that.
    pub(crate) pool: CudaRunner,
    /// Why what it says of GitHub may be old; `None` where the operator has just looked.
    pub(crate) doubt: Option<String>,
}

/// Has the operator look at GitHub, and reads the pool.
pub(crate) async fn ask(pools: &Pools, name: &str, limit: Duration) -> Result<Answer, String> {
    let asked = Timestamp::now().to_string();
    pools
        .annotate(&pools.namespace, name, LOOK_AGAIN, &asked)
        .await?;
    let looking = await_condition(pools.api(), name, has_looked(asked));
    let has_looked = matches!(tokio::time::timeout(limit, looking).await, Ok(Ok(_)));
    let pool = pools.get(name).await?;
    let doubt = if has_looked {
        None
    } else {
        Some(doubt(pools, &pool).await)
    };
    Ok(Answer { pool, doubt })
}

fn has_looked(asked: String) -> impl wait::Condition<CudaRunner> {
    move |resource: Option<&CudaRunner>| {
        let status = resource.and_then(|r| r.status.as_ref());
        // In deletion the queue is of no use to anybody.
        let goes = resource.is_some_and(|r| r.metadata.deletion_timestamp.is_some());
        goes || status.is_some_and(|s| s.looked_again.as_deref() == Some(&asked))
    }
}

/// Why the operator has not answered, as far as its lease tells: that of the one that the pool names, or any of the usual
/// name.
async fn doubt(pools: &Pools, pool: &CudaRunner) -> String {
    let named = pool.operator();
    let (leases, name) = match named {
        Some(named) => (
            Api::<Lease>::namespaced(pools.client.clone(), &named.namespace),
            named.name.as_str(),
        ),
        None => (Api::<Lease>::all(pools.client.clone()), LEASE),
    };
    let which = ListParams::default().fields(&format!("metadata.name={name}"));
    let read = tokio::time::timeout(ASK, leases.list(&which)).await;
    let Ok(Ok(leases)) = read else {
        return "The operator has not looked at GitHub since you asked, so what is said of GitHub may be old. Does the operator run? --wait 30 gives it more time".to_owned();
    };
    let renewed = |lease: &Lease| {
        let spec = lease.spec.as_ref()?;
        spec.holder_identity
            .as_ref()
            .filter(|holder| !holder.is_empty())?;
        Some(spec.renew_time.as_ref()?.0)
    };
    let newest = leases.items.iter().max_by_key(|lease| renewed(lease));
    match newest.map(|lease| (lease, renewed(lease))) {
        Some((lease, _)) if named.is_some() && !is_selected(lease.annotations(), pool) => format!(
            "The operator {name} serves this pool no more, as its Lease says which pools it selects. Another one that selects it takes it over within half a minute; if none does, nothing is done for this pool: compare its labels with the operators' --pool-selector"
        ),
        Some((lease, Some(_))) if is_unrenewed(lease) => {
            let namespace = lease.namespace().unwrap_or_default();
            format!(
                "The operator has not looked at GitHub since you asked, so what is said of GitHub may be old. Does it run? Without leader election its Lease does not tell: `kubectl get pods --namespace {namespace}` does. --wait 30 gives it more time"
            )
        }
        Some((_, Some(at))) if Timestamp::now().duration_since(at).unsigned_abs() < STALE => {
            "The operator runs and has not looked at GitHub since you asked, so what is said of GitHub may be old. --wait 30 gives it more time".to_owned()
        }
        Some((lease, at)) => {
            let namespace = lease.namespace().unwrap_or_default();
            let seen = at.map_or_else(String::new, |at| format!(", the last one was seen at {at}"));
            format!(
                "No operator runs{seen}. So all of this is old, and nothing is done for this pool. `kubectl get pods --namespace {namespace}` shows what became of it"
            )
        }
        None => "No operator runs in this cluster: there is no lease of one, so nothing is done for this pool. Install it, or look why it does not start".to_owned(),
    }
}

/// Whether a Lease is that of an operator without leader election.
fn is_unrenewed(lease: &Lease) -> bool {
    let spec = lease.spec.as_ref();
    spec.is_some_and(|spec| spec.lease_duration_seconds == Some(UNRENEWED_SECONDS))
}

/// What stands in the way of the pool's jobs, the figures, and the last failures.
pub(crate) fn text(answer: &Answer) -> String {
    let Answer { pool, doubt } = answer;
    let status = pool.status.clone().unwrap_or_default();
    let causes = causes(pool);
    let mut text = String::new();
    // It comes first where it says that all the rest is old.
    if let Some(doubt) = doubt {
        wrap(&mut text, "", 0, doubt);
    }
    for cause in &causes {
        wrap(&mut text, &format!("{}: ", cause.about), 2, &cause.message);
    }
    if causes.is_empty() {
        text.push_str("Nothing holds this pool.\n");
    }
    let _ = writeln!(
        text,
        "{} queued, {} online, {} busy, {} at the gate, {} pending",
        status.queued, status.online, status.busy, status.gated, status.pending
    );
    let is_said = |words: &str| causes.iter().any(|cause| cause.message.contains(words));
    for (runner, waiting) in waiting(&status) {
        if !is_said(core(waiting)) {
            wrap(&mut text, &format!("{runner} waits: "), 2, waiting);
        }
    }
    failures(&mut text, &status, is_said);
    text
}

/// What a runner waits for, without Kubernetes' word for it and what a preemption would bring: the part that a condition
/// repeats.
fn core(waiting: &str) -> &str {
    let said = waiting.split_once(": ").map_or(waiting, |(_, said)| said);
    let said = said
        .split_once(" preemption: ")
        .map_or(said, |(said, _)| said);
    said.trim_end_matches('.')
}

/// The last failures, newest first; those in a row that say the same are one paragraph, and one that is said above is short.
fn failures(text: &mut String, status: &CudaRunnerStatus, is_said: impl Fn(&str) -> bool) {
    let same = |a: &cudarunner_crds::FailureStatus, b: &cudarunner_crds::FailureStatus| {
        a.message == b.message && a.reason == b.reason
    };
    for run in status.last_failures.chunk_by(same) {
        let [first, others @ ..] = run else { continue };
        let more = match others.len() {
            0 => String::new(),
            more => format!(" and {more} before"),
        };
        let head = format!("{} {}{more} ({}): ", first.at.0, first.runner, first.reason);
        let message = if is_said(&first.message) {
            "as above"
        } else {
            &first.message
        };
        wrap(text, &head, 2, message);
    }
}

/// The same for programs.
pub(crate) fn json(answer: &Answer) -> Value {
    let status = answer.pool.status.clone().unwrap_or_default();
    json!({
        "causes": causes(&answer.pool),
        "queued": status.queued,
        "online": status.online,
        "busy": status.busy,
        "gated": status.gated,
        "pending": status.pending,
        "waiting": waiting(&status),
        "lastFailures": status.last_failures,
        "looked": answer.doubt.is_none(),
        "doubt": answer.doubt,
    })
}

/// What runners wait for, by their names.
fn waiting(status: &CudaRunnerStatus) -> BTreeMap<&str, &str> {
    let waiting = status
        .runners
        .iter()
        .filter_map(|runner| Some((runner.name.as_str(), runner.waiting.as_deref()?)));
    waiting.collect()
}

/// Pools that something holds, each with what it is; the others are counted.
pub(crate) fn text_of_all(pools: &[CudaRunner]) -> String {
    let mut text = String::new();
    let mut free = 0_u32;
    for pool in pools {
        let causes = causes(pool);
        if causes.is_empty() {
            free = free.saturating_add(1);
            continue;
        }
        let _ = writeln!(text, "{}", key(pool));
        for cause in &causes {
            wrap(
                &mut text,
                &format!("  {}: ", cause.about),
                4,
                &cause.message,
            );
        }
    }
    let held = pools.len().saturating_sub(free as usize);
    let _ = match (held, free) {
        (0, 0) => writeln!(text, "There is no CudaRunner."),
        (0, _) => writeln!(text, "Nothing holds any of the {free} pools."),
        (_, 0) => Ok(()),
        _ => writeln!(
            text,
            "Nothing holds the other pools, {free} of {}.",
            pools.len()
        ),
    };
    text
}

/// The same for programs.
pub(crate) fn json_of_all(pools: &[CudaRunner]) -> Value {
    let of = |pool: &CudaRunner| json!({"namespace": pool.namespace(), "name": pool.name_any(), "causes": causes(pool)});
    json!({"pools": pools.iter().map(of).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::played::{Step, play};
    use cuda_runner_operator::lease::SELECTOR;
    use cudarunner_crds::OperatorStatus;

    fn answer(pool: CudaRunner) -> Answer {
        Answer { pool, doubt: None }
    }

    #[test]
    fn what_holds_is_said_and_what_does_not_is_left_out() {
        let text = text(&answer(fixture::pool("my-pool")));
        fixture::fits(&text);
        insta::assert_snapshot!(text);
        fixture::in_the_reference(&text);
        assert!(!text.contains("Accepted") && !text.contains("Ready ("));
    }

    #[test]
    fn a_pool_that_nothing_holds_says_so() {
        let text = text(&answer(fixture::pool("spare")));
        assert!(text.starts_with("Nothing holds"), "{text}");
    }

    #[test]
    fn a_pool_that_is_not_ready_for_a_reason_that_may_pass_says_it() {
        let mut pool = fixture::pool("my-pool");
        let status = pool.status.as_mut().unwrap();
        status.conditions.retain(|c| c.type_ == "Ready");
        status.conditions[0].status = "False".to_owned();
        assert!(text(&answer(pool)).starts_with("Ready ("));
    }

    #[test]
    fn what_a_runner_waits_for_is_said_though_others_are_online() {
        let mut pool = fixture::pool("spare");
        let status = pool.status.as_mut().unwrap();
        let word = "container runner, image a/b:1: ImagePullBackOff: not found";
        status.runners.truncate(1);
        status.runners[0].waiting = Some(word.to_owned());
        let text = text(&answer(pool.clone()));
        assert!(
            text.replace('\n', " ").contains("waits: container runner"),
            "{text}"
        );
        assert_eq!(json(&answer(pool))["waiting"].as_object().unwrap().len(), 1);
    }

    #[test]
    fn each_thing_is_said_once() {
        // Given three failures in a row for the same reason, which a condition tells too
        let mut pool = fixture::pool("my-pool");
        let status = pool.status.as_mut().unwrap();
        let failure = status.last_failures[0].clone();
        status.last_failures = vec![failure.clone(), failure.clone(), failure.clone()];
        // Then its words are there once, and one line tells of all three
        let text = text(&answer(pool)).replace("\n  ", " ");
        assert_eq!(text.matches(&failure.message).count(), 1, "{text}");
        assert!(
            text.contains("and 2 before (GateFailed): as above"),
            "{text}"
        );
    }

    #[test]
    fn programs_get_the_causes_too() {
        let doubted = Answer {
            pool: fixture::pool("my-pool"),
            doubt: Some("old".to_owned()),
        };
        let json = json(&doubted);
        assert_eq!(json["causes"][0]["about"], "GpuHealthy (NodesQuarantined)");
        assert_eq!(
            (&json["queued"], &json["looked"]),
            (&json!(2), &json!(false))
        );
    }

    #[test]
    fn of_all_pools_those_are_told_that_something_holds() {
        let (held, free) = (fixture::pool("my-pool"), fixture::pool("spare"));
        let text = text_of_all(&[free.clone(), held]);
        fixture::fits(&text);
        assert!(text.starts_with("ci/my-pool\n  GpuHealthy ("), "{text}");
        assert!(
            text.ends_with("Nothing holds the other pools, 1 of 2.\n"),
            "{text}"
        );
        assert_eq!(text_of_all(&[free]), "Nothing holds any of the 1 pools.\n");
        assert_eq!(text_of_all(&[]), "There is no CudaRunner.\n");
    }

    const LEASES: &str = "/apis/coordination.k8s.io/v1/leases";

    /// What is said of an operator that does not look, whose lease is like this.
    async fn doubted(leases: Step) -> String {
        let (pools, server) = play(vec![leases]);
        let doubt = doubt(&pools, &fixture::pool("spare")).await;
        drop(pools);
        server.await.unwrap();
        doubt
    }

    fn lease(holder: &str, renewed: Timestamp) -> Vec<Value> {
        let renewed = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(renewed);
        vec![json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": LEASE, "namespace": "gpu-ci"},
            "spec": {"holderIdentity": holder, "renewTime": renewed},
        })]
    }

    #[tokio::test]
    async fn a_pool_that_its_operator_selects_no_more_says_so() {
        let mut pool = fixture::pool("spare");
        let named = OperatorStatus {
            namespace: "gpu-a".to_owned(),
            name: "op-a".to_owned(),
        };
        pool.status.as_mut().unwrap().operator = Some(named);
        for (selector, words) in [
            ("shard=a", "serves this pool no more"),
            ("shard!=a", "The operator runs and has not looked"),
        ] {
            let mut leases = lease("op-1", Timestamp::now());
            leases[0]["metadata"]["annotations"] = json!({SELECTOR: selector});
            let path = "/apis/coordination.k8s.io/v1/namespaces/gpu-a/leases".to_owned();
            let (pools, server) = play(vec![Step::List(path, leases)]);
            let said = doubt(&pools, &pool).await;
            drop(pools);
            server.await.unwrap();
            assert!(said.contains(words), "{said}");
        }
    }

    #[tokio::test]
    async fn an_operator_that_does_not_look_is_told_from_one_that_is_not_there() {
        let now = Timestamp::now();
        let path = || LEASES.to_owned();
        let mut unrenewed = lease("op-1", now - Duration::from_mins(5));
        unrenewed[0]["spec"]["leaseDurationSeconds"] = json!(UNRENEWED_SECONDS);
        for (leases, words) in [
            (
                Step::List(path(), lease("op-1", now)),
                "The operator runs and has not looked",
            ),
            (
                Step::List(path(), lease("op-1", now - Duration::from_mins(5))),
                "the last one was seen at",
            ),
            (
                Step::List(path(), unrenewed),
                "Without leader election its Lease does not tell",
            ),
            (
                Step::List(path(), lease("", now)),
                "kubectl get pods --namespace gpu-ci",
            ),
            (
                Step::List(path(), vec![]),
                "No operator runs in this cluster",
            ),
            (
                Step::Refused(format!("GET {LEASES}"), 403),
                "Does the operator run?",
            ),
        ] {
            let said = doubted(leases).await;
            assert!(said.contains(words), "{said}");
        }
    }
}
