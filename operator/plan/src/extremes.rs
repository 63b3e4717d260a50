//! Whatever moments and durations others give, the plan comes to an end.

use cudarunner_crds::{
    FailureStatus, JobStatus, QuarantineStatus, Rerun, RerunStatus, RunnerPhase,
    VerificationStatus, Verify,
};
use gate_report::Class;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::fixture::{first_node, gate_failure, observed, pool, resource, runner};
use crate::model::jobs::JobFacts;
use crate::model::pool::Pool;
use crate::model::runner::End;

/// The ends of the calendar among all others.
fn moment() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        Just(Timestamp::MIN),
        Just(Timestamp::MAX),
        Just(Timestamp::UNIX_EPOCH),
        (-377_705_023_201_i64..=253_402_207_200)
            .prop_map(|second| Timestamp::from_second(second).unwrap()),
    ]
}

fn wait() -> impl Strategy<Value = SignedDuration> {
    prop_oneof![
        Just(SignedDuration::MIN),
        Just(SignedDuration::MAX),
        Just(SignedDuration::ZERO),
        any::<i64>().prop_map(SignedDuration::from_secs),
    ]
}

fn verify() -> Verify {
    let verify =
        serde_json::json!({"workflow": "w.yml", "ref": "main", "jobs": [{"name": "cuda"}]});
    serde_json::from_value(verify).unwrap()
}

/// A status whose every moment and count is odd.
fn remember(pool: &mut Pool, moments: &[Timestamp], count: i32) {
    let at = |number: usize| Time(moments[number % moments.len()]);
    let status = &mut pool.status;
    status.consecutive_failures = count;
    status.registered_at = Some("https://github.com/acme/widgets".into());
    status.quarantine = vec![QuarantineStatus {
        scope: None,
        node: "node-1".into(),
        device: None,
        class: Class::Node.into(),
        code: None,
        code_name: None,
        message: String::new(),
        failures: count,
        boot_id: None,
        retest: false,
        since: at(0),
        until: Some(at(1)),
    }];
    status.last_failures = vec![FailureStatus {
        runner: "pool-zzzzz".into(),
        node: Some("node-1".into()),
        device: None,
        class: Class::Node.into(),
        code: None,
        code_name: None,
        shared: true,
        reason: "GateFailed".into(),
        message: String::new(),
        at: at(2),
    }];
    let epoch = Time(Timestamp::UNIX_EPOCH);
    let job = serde_json::json!({"runner": "pool-yyyyy", "finishedAt": epoch, "repository": "acme/widgets", "runId": 1, "job": "cuda", "workflow": "w", "awaitsConclusion": true});
    let job: JobStatus = serde_json::from_value(job).unwrap();
    status.last_jobs = vec![JobStatus {
        finished_at: at(3),
        ..job
    }];
    let rerun = serde_json::json!({"job": "a", "repository": "acme/widgets", "runId": count, "runner": "pool-xxxxx", "cause": "NodeLoss", "evidence": "", "at": epoch, "state": "Waiting"});
    let rerun: RerunStatus = serde_json::from_value(rerun).unwrap();
    status.reruns = vec![RerunStatus { at: at(6), ..rerun }];
    let verification = serde_json::json!({"state": "Succeeded", "since": epoch, "fingerprint": "", "workflow": "w.yml", "ref": "main", "repository": "acme/widgets"});
    let verification: VerificationStatus = serde_json::from_value(verification).unwrap();
    status.verification = Some(VerificationStatus {
        since: at(4),
        ended: Some(at(5)),
        ..verification
    });
}

proptest! {
    #[test]
    fn no_moment_and_no_duration_stops_the_plan(
        moments in proptest::collection::vec(moment(), 8),
        (teardown, every) in (wait(), wait()),
        deleting in proptest::option::of(moment()),
        count in prop_oneof![Just(i32::MIN), Just(i32::MAX), any::<i32>()],
        now in moment(),
    ) {
        // Given a pool whose spec, status, runners, nodes and list are of odd times
        let mut pool = pool(3);
        (pool.teardown_timeout, pool.deleting) = (teardown, deleting);
        let spec = pool.spec_mut();
        (spec.verify, spec.verify_every) = (Some(verify()), Some(every));
        spec.rerun = Some(Rerun { on_gpu_fault: true, on_node_loss: true, limit: count });
        remember(&mut pool, &moments, count);
        let phases = [
            RunnerPhase::Unscheduled, RunnerPhase::Preparing, RunnerPhase::Gated, RunnerPhase::Starting,
            RunnerPhase::Idle, RunnerPhase::Busy, RunnerPhase::Failed, RunnerPhase::Terminating,
        ];
        let runners = phases.into_iter().zip(&moments).zip("abcdefgh".chars());
        let runners = runners.map(|((phase, at), letter)| {
            let mut runner = runner(&pool, &format!("pool-{letter}"), phase);
            (runner.created, runner.since) = (*at, moments[1]);
            runner.gone_by = runner.gone_by.map(|_| *at);
            if let Some(End::Failed(failure)) = &mut runner.end {
                *failure = crate::model::runner::Failure { at: *at, ..gate_failure(Class::Node) };
            }
            runner
        });
        let mut observed = observed(runners.collect());
        first_node(&mut observed).ready_since = Some(moments[2]);
        observed.listing.as_mut().unwrap().at = moments[3];
        (observed.ask_again, observed.last_change) = (Some(moments[4]), Some(moments[5]));
        observed.jobs = JobFacts { looked: Some(moments[6]), next_look: Some(moments[7]), ..JobFacts::default() };
        observed.verification.next_look = Some(moments[0]);

        // When it is planned, then there is a plan
        let plan = super::plan(&pool, &observed, now);
        prop_assert!(plan.wake.is_none_or(|wait| !wait.is_negative()));
    }

    #[test]
    fn whatever_is_stored_is_within_the_bounds(text in ".{0,40}", many in "[0-9]{1,30}(ms|s|m|h)") {
        for text in [text, many] {
            let mut resource = resource();
            resource.spec.teardown_timeout.clone_from(&text);
            resource.spec.verify = Some(Verify { every: Some(text), ..verify() });
            let pool = Pool::read(&resource, false);
            let most = SignedDuration::from_hours(120);
            prop_assert!((SignedDuration::ZERO..=most).contains(&pool.teardown_timeout));
            let every = pool.spec.unwrap().verify_every;
            let bounds = SignedDuration::from_mins(10)..=SignedDuration::from_hours(8_760);
            prop_assert!(every.is_none_or(|every| bounds.contains(&every)));
        }
    }
}
