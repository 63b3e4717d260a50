//! Given how a runner ended, or that it does not, then somebody is blamed for it in time, and not before.

use cudarunner_crds::{JobStatus, RunnerPhase};
use gate_report::Class;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::fixture::{NOW, ago, first_node, gate_failure, observed, pool, runner};
use crate::model::key::PoolKey;
use crate::model::pool::GpuRequest;
use crate::model::runner::{Disruption, End, Failure};
use crate::plan;

#[test]
fn memory_that_a_job_may_have_left_taken_is_told_from_others() {
    let mut pool = pool(1);
    let job = |device: &str, node: &str| {
        serde_json::from_value(serde_json::json!({"job": "train", "runner": "pool-before", "node": node,
            "devices": [device], "finishedAt": Time(ago(60)), "url": "https://github.com/o/r/actions/runs/7"}))
        .unwrap()
    };
    let mut said = |name: &str, jobs: &[JobStatus], elsewhere: &[JobStatus]| {
        pool.status.last_jobs = jobs.to_vec();
        let failure = Failure {
            code_name: Some(name.to_owned()),
            device: Some("GPU-1".to_owned()),
            ..gate_failure(Class::Node)
        };
        let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
        failed.end = Some(End::Failed(failure));
        let mut observed = observed(vec![failed]);
        let whose = PoolKey {
            namespace: "team-b".to_owned(),
            name: "other".to_owned(),
        };
        let theirs = elsewhere.iter().map(|job| (whose.clone(), job.clone()));
        observed.jobs_elsewhere = theirs.collect();
        let planned = plan(&pool, &observed, NOW);
        planned.status.last_failures[0].message.clone()
    };
    // Given the last jobs of the pool, of which one ran on the device
    let jobs = [
        job("GPU-2", "node-1"),
        job("GPU-1", "node-2"),
        job("GPU-1", "node-1"),
    ];
    let taken = said("MemoryTaken", &jobs, &[]);
    assert!(
        taken.contains("train (https://github.com/o/r/actions/runs/7) on pool-before"),
        "{taken}"
    );
    // Then it is named for memory that is taken there, and for nothing else
    for (name, jobs) in [("MemoryTaken", &jobs[..2]), ("Hang", &jobs[..])] {
        let other = said(name, jobs, &jobs[..2]);
        assert!(!other.contains("left a process"), "{other}");
    }
    // Then another pool's is, where it was there later, and nothing of it but its pool
    let mut theirs = job("GPU-1", "node-1");
    for (ago_seconds, whose) in [
        (61, "The pool's last job"),
        (59, "the pool team-b/other's,"),
    ] {
        theirs.finished_at = Time(ago(ago_seconds));
        let taken = said("MemoryTaken", &jobs, std::slice::from_ref(&theirs));
        assert!(taken.contains(whose), "{taken}");
        assert_eq!(taken.contains("actions/runs"), ago_seconds > 60, "{taken}");
    }
}

#[test]
fn a_gate_of_many_devices_has_its_time_for_each() {
    // Given the default of thirty seconds, and as many again for every three further devices, twice, beside two minutes
    for (devices, seconds) in [(1, 180), (2, 200), (8, 320)] {
        let mut pool = pool(1);
        pool.spec_mut().gpu = GpuRequest::Resource {
            name: "nvidia.com/gpu".to_owned(),
            count: devices,
        };
        let is_overdue = |after: i64| {
            let mut gated = runner(&pool, "pool-aaaaa", RunnerPhase::Gated);
            gated.since = ago(after);
            let planned = plan(&pool, &observed(vec![gated]), NOW);
            !planned.status.last_failures.is_empty()
        };
        assert!(!is_overdue(seconds - 1), "{devices}");
        assert!(is_overdue(seconds), "{devices}");
    }
}

#[test]
fn a_pod_whose_node_is_well_has_a_moment_to_say_how_it_ended() {
    // Given a pod that was evicted, and whose agent used all of its time
    let pool = pool(1);
    let mut leaving = runner(&pool, "pool-aaaaa", RunnerPhase::Terminating);
    leaving.reached = RunnerPhase::Busy;
    leaving.disruption = Some(Disruption {
        reason: "EvictionByEvictionAPI".into(),
        message: String::new(),
        at: Some(ago(30)),
        by_own_use: false,
    });
    let said = |since: i64, is_ready: bool| {
        let mut leaving = leaving.clone();
        leaving.gone_by = Some(ago(since));
        let mut observed = observed(vec![leaving]);
        if !is_ready {
            first_node(&mut observed).ready_since = None;
        }
        let planned = plan(&pool, &observed, NOW);
        let failures = planned.status.last_failures.iter();
        let failures: Vec<_> = failures.map(|f| f.reason.clone()).collect();
        // ... and the pool is woken for it
        let wakes = planned
            .wake
            .is_some_and(|wait| wait <= SignedDuration::from_secs(60 - since));
        assert!(wakes || !failures.is_empty(), "{:?}", planned.wake);
        failures
    };
    // Then its node is not lost as long as it may say so; one that is not ready says nothing
    assert_eq!(said(1, true), Vec::<String>::new());
    assert_eq!(said(60, true), ["NodeLost"]);
    assert_eq!(said(1, false), ["NodeLost"]);
}
