//! Pods as the API server shows them, and what is read out of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, FailureStatus, QuarantineStatus, RunnerPhase};
use gate_report::{Class, Report};
use k8s_openapi::api::resource::v1::ResourceClaimSpec;
use serde_json::{Value, json};

use super::pod::read;
use super::runners::is_told;
use super::{has_failed, others};
use cuda_runner_plan::model::claim::Retest;
use cuda_runner_plan::model::node_marks::Quarantined;
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::runner::{
    AVOIDS_ANNOTATION, End, Failure, LIFETIME_ANNOTATION, PERSISTENT, Runner, TEMPLATE_ANNOTATION,
    Told, URL_ANNOTATION, unconfirmed,
};
use cuda_runner_plan::pod::build;
use cuda_runner_plan::{NewRunner, Observed, PodSettings, fixture};

mod ends;
mod jobs;
mod lives;
mod moments;

/// A pod in whose container the gate runs, or one that was let in.
fn spec(let_in: bool) -> Value {
    let image = if let_in { "runner:1" } else { "gate:1" };
    json!({
        "nodeName": "node-1",
        "initContainers": [
            {"name": "prepare", "image": "gate:1"},
            {"name": "gpu", "image": image, "restartPolicy": "Always"}
        ],
        "containers": [{"name": "main", "image": "gate:1"}]
    })
}

/// A pod whose spec is as its container of the GPUs shows it: one that was started again has the agent's image.
fn pod(status: &Value) -> Runner {
    let gpu = &status["initContainerStatuses"][0];
    pod_of(&spec(gpu["restartCount"].as_i64() > Some(0)), status)
}

fn pod_of(spec: &Value, status: &Value) -> Runner {
    let pod = json!({
        "metadata": {
            "name": "pool-aaaaa",
            "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {TEMPLATE_ANNOTATION: "t"}
        },
        "spec": spec,
        "status": status
    });
    read(&serde_json::from_value(pod).unwrap())
}

fn bound() -> Value {
    json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"})
}

/// The container of the GPUs in one of its starts: the gate is number 0.
fn gpu(number: i32, state: &Value, before: &Value, ready: bool) -> Value {
    json!([{
        "name": "gpu", "image": "", "imageID": "", "ready": ready, "restartCount": number,
        "state": state, "lastState": before
    }])
}

fn gate(state: &Value) -> Value {
    gpu(0, state, &json!({}), false)
}

fn agent(state: &Value, ready: bool) -> Value {
    gpu(1, state, &passed(), ready)
}

/// The main container, which is started once the agent has been online.
fn main(started: bool) -> Value {
    json!([{
        "name": "main", "image": "", "imageID": "", "ready": started, "started": started, "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:02Z"}}
    }])
}

fn passed() -> Value {
    json!({"terminated": {
        // The change of the image ended it.
        "exitCode": 143,
        "finishedAt": "2026-01-01T00:00:05Z",
        "message": r#"{"schema":"cudarunner.dev/gate-report/v1","outcome":"passed","devices":[{"uuid":"GPU-1"}]}"#
    }})
}

fn running() -> Value {
    json!({"running": {"startedAt": "2026-01-01T00:00:06Z"}})
}

/// A pod whose agent ended with `code` and these marks.
fn ended(code: i32, reason: &str, message: &str) -> Runner {
    pod(&json!({
        "phase": if code == 0 { "Succeeded" } else { "Failed" },
        "conditions": [bound()],
        "initContainerStatuses": agent(&json!({"terminated": {
            "exitCode": code, "reason": reason, "message": message, "finishedAt": "2026-01-01T00:01:00Z"
        }}), false)
    }))
}

fn failure(runner: &Runner) -> &Failure {
    match &runner.end {
        Some(End::Failed(failure)) => failure,
        other => panic!("no failure: {other:?}"),
    }
}

#[test]
fn a_job_is_told_even_where_we_have_removed_its_runner() {
    // Given a runner that was removed as idle, while the watch was behind: it had run a job
    let mark = r#"{"mark":"completed","job":"build","run":"7","repository":"a/b"}"#;
    let done = ended(0, "Completed", mark);
    let failed = ended(1, "Error", "");
    let ours = BTreeSet::from(["u".to_owned()]);
    let mut status = CudaRunnerStatus::default();

    // Then the job is still to be reported, until the status has it; and what became of the runner is not
    assert!(!is_told(&status, &ours, None, &done));
    assert!(!is_told(&status, &BTreeSet::new(), None, &done));
    assert!(is_told(&status, &ours, None, &failed));
    assert!(!is_told(&status, &BTreeSet::new(), None, &failed));
    let job = json!([{
        "job": "build", "runner": "pool-aaaaa", "finishedAt": "2026-01-01T00:01:00Z", "awaitsConclusion": false
    }]);
    status.last_jobs = serde_json::from_value(job).unwrap();
    assert!(is_told(&status, &ours, None, &done));
    // ... or was planned with it
    status.last_jobs.clear();
    let job = done.done.as_ref().map(|done| done.finished);
    for (told, runner, is) in [
        (Told::default(), &done, false),
        (
            Told {
                job,
                ..Told::default()
            },
            &done,
            true,
        ),
        (Told::default(), &failed, false),
        (
            Told {
                end: true,
                ..Told::default()
            },
            &failed,
            true,
        ),
    ] {
        let known = is_told(&status, &BTreeSet::new(), Some(told), runner);
        assert_eq!(known, is, "{told:?}");
    }
}

#[test]
fn an_annotation_that_cannot_be_ours_is_not_kept() {
    // Given pods in whose annotations somebody has written at length
    let read = |name: &str, value: &str| {
        let pod = json!({"metadata": {"name": "pool-aaaaa", "annotations": {name: value}}});
        read(&serde_json::from_value(pod).unwrap())
    };
    let long = "x".repeat(100_000);
    // Then nothing of it is kept
    assert_eq!(read(TEMPLATE_ANNOTATION, &long).template, "");
    assert_eq!(read(URL_ANNOTATION, &long).url, None);
    assert!(read(AVOIDS_ANNOTATION, &long).avoids.is_empty());
    let many: Vec<String> = (0..10_000).map(|number| number.to_string()).collect();
    assert_eq!(read(AVOIDS_ANNOTATION, &many.join(",")).avoids.len(), 1024);
}

#[test]
fn gates_that_passed_are_gathered_only_where_something_failed() {
    let well = [pod(&json!({"phase": "Pending"})), ended(0, "Completed", "")];
    let entry: QuarantineStatus = serde_json::from_value(json!({
        "node": "node-1", "class": "device", "message": "m", "failures": 1, "since": "2026-01-01T00:00:00Z"
    }))
    .unwrap();
    let held = Quarantined {
        pool: PoolKey {
            namespace: "ci".to_owned(),
            name: "other".to_owned(),
        },
        entry: entry.clone(),
    };
    let quarantined = std::slice::from_ref(&held);
    let failure: FailureStatus = serde_json::from_value(json!({
        "at": "2026-01-01T00:00:00Z", "runner": "pool-aaaaa", "class": "device", "reason": "GateFailed", "message": "m"
    }))
    .unwrap();
    let status = CudaRunnerStatus::default();
    let here = CudaRunnerStatus {
        quarantine: vec![entry.clone()],
        ..status.clone()
    };
    let remembered = std::slice::from_ref(&failure);
    let before = CudaRunnerStatus {
        last_failures: vec![failure.clone()],
        ..status.clone()
    };
    assert!(!has_failed(&status, &[], &well[..1], &[], fixture::NOW));
    assert!(
        has_failed(&status, &[], &well, &[], fixture::NOW),
        "a runner has failed"
    );
    assert!(
        has_failed(&status, &[], &[], quarantined, fixture::NOW),
        "another pool's node"
    );
    assert!(
        has_failed(&here, &[], &[], &[], fixture::NOW),
        "a node of its own"
    );
    assert!(
        has_failed(&before, &[], &[], &[], fixture::NOW),
        "an earlier runner"
    );
    assert!(
        has_failed(&status, remembered, &[], &[], fixture::NOW),
        "one that has left the status"
    );
}

#[test]
fn other_pools_last_jobs_are_gathered_where_a_gate_found_memory_taken_and_nowhere_else() {
    // Given another pool's last jobs on two nodes
    let mut other = fixture::resource();
    other.metadata.name = Some("other".to_owned());
    let job = |node: &str| json!({"job": "train", "runner": "r", "node": node, "finishedAt": "2026-01-01T00:00:00Z"});
    let status = json!({"lastJobs": [job("node-1"), job("node-2")]});
    other.status = Some(serde_json::from_value(status).unwrap());
    let found = |code_name: &str| -> Vec<_> {
        let mut runner = ended(1, "Error", "");
        runner.node = Some("node-1".to_owned());
        if let Some(End::Failed(failure)) = &mut runner.end {
            failure.code_name = Some(code_name.to_owned());
        }
        let all = others::jobs_of([Arc::new(other.clone())].into_iter(), &[runner]);
        let names = all.into_iter().map(|(pool, job)| (pool.name, job.node));
        names.collect()
    };
    // Then those on the runner's node are there
    let there = ("other".to_owned(), Some("node-1".to_owned()));
    assert_eq!(found("MemoryTaken"), [there]);
    assert_eq!(found("Hang"), []);
}

#[test]
fn a_pod_without_a_node_says_what_the_scheduler_said() {
    let runner = pod(&json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
    ]}));
    assert_eq!(runner.phase, RunnerPhase::Unscheduled);
    assert_eq!(runner.waiting.unwrap().message, "no GPU");
}

#[test]
fn the_gates_report_gives_the_devices() {
    let runner = ended(0, "Completed", "");
    assert_eq!(runner.devices, ["GPU-1"]);
}

#[test]
fn a_completed_mark_is_a_job_done_whatever_the_code() {
    let marks = "noise\n{\"mark\":\"started\",\"job\":\"build\",\"run\":\"7\",\"repository\":\"a/b\"}\n{\"mark\":\"completed\",\"job\":\"build\",\"run\":\"7\",\"repository\":\"a/b\"}\n";
    for code in [0, 143] {
        let runner = ended(code, "Completed", marks);
        assert_eq!(runner.phase, RunnerPhase::Finished);
        assert!(
            matches!(runner.end, Some(End::JobDone(job)) if job.job == "build" && job.run == "7")
        );
    }
}

#[test]
fn an_end_without_marks_is_no_job() {
    let runner = ended(0, "Completed", "");
    assert_eq!(runner.phase, RunnerPhase::Failed);
    assert_eq!(failure(&runner).reason, "EndedWithoutJob");
    assert!(
        failure(&runner).registered,
        "GitHub may still hold its entry"
    );
}

#[test]
fn ends_have_their_reason() {
    let started = r#"{"mark":"started","job":"build","run":"7","repository":"a/b"}"#;
    assert_eq!(failure(&ended(7, "Error", "")).reason, "VersionRefusedOnce");
    assert_eq!(failure(&ended(5, "Error", "")).reason, "SessionConflict");
    let conflict = r#"{"mark":"session-conflict"}"#;
    let conflict = ended(0, "Completed", conflict);
    assert_eq!(failure(&conflict).reason, "SessionConflict");
    assert_eq!(
        failure(&ended(137, "OOMKilled", started)).reason,
        "OutOfMemory"
    );
    let cut = ended(143, "Error", started);
    assert_eq!(failure(&cut).reason, "JobCutShort");
    assert!(failure(&cut).message.contains("build of run 7 in a/b"));
}

/// The same of a persistent runner.
fn persistent(code: i32, message: &str) -> Runner {
    let pod = json!({
        "metadata": {"name": "pool-0", "uid": "u", "annotations": {LIFETIME_ANNOTATION: PERSISTENT}},
        "spec": spec(true),
        "status": {
            "phase": if code == 0 { "Succeeded" } else { "Failed" },
            "initContainerStatuses": agent(&json!({"terminated": {"exitCode": code, "message": message}}), false)
        }
    });
    read(&serde_json::from_value(pod).unwrap())
}

#[test]
fn a_persistent_runners_job_is_not_its_end() {
    let job = |mark: &str, name: &str| {
        format!("{{\"mark\":\"{mark}\",\"job\":\"{name}\",\"run\":\"7\",\"repository\":\"a/b\"}}\n")
    };
    let one = job("started", "one") + &job("completed", "one");
    for code in [0, 137] {
        assert_eq!(failure(&persistent(code, &one)).reason, "AgentEnded");
    }
    let cut = persistent(137, &(one + &job("started", "two")));
    assert_eq!(failure(&cut).reason, "JobCutShort");
    assert!(failure(&cut).message.contains("two of run 7"));
    assert!(failure(&cut).registered, "its entry is still there");
}

#[test]
fn a_gpu_that_vanished_is_the_reason_unless_the_agent_ended_well_after_its_job() {
    let job =
        |mark: &str| format!(r#"{{"mark":"{mark}","job":"build","run":"7","repository":"a/b"}}"#);
    let lost = |when: &str| format!(r#"{{"mark":"gpu-lost","when":"{when}"}}"#);
    let (started, completed) = (job("started"), job("completed"));
    let cases = [
        (lost("idle"), "took none"),
        (
            [started.clone(), completed.clone(), lost("idle")].join("\n"),
            "took none",
        ),
        (
            [started.clone(), completed.clone(), lost("completed")].join("\n"),
            "build of run 7 in a/b was left to finish",
        ),
        (
            [started, lost("started"), completed, lost("completed")].join("\n"),
            "build of run 7 in a/b was failed",
        ),
    ];
    for (marks, says) in cases {
        let well = ended(0, "Completed", &marks);
        let is_done = matches!(&well.end, Some(End::JobDone(job)) if job.job == "build");
        assert_eq!(
            is_done,
            marks.contains("completed\",\"job"),
            "{:?}",
            well.end
        );
        for runner in [ended(143, "Error", &marks), persistent(0, &marks)] {
            let failure = failure(&runner);
            assert_eq!(
                (failure.reason.word(), failure.class),
                ("GpuLost", Class::Transient)
            );
            assert!(failure.message.contains(says), "{}", failure.message);
            assert!(failure.registered, "GitHub may still hold its entry");
        }
    }
}

#[test]
fn whatever_a_job_writes_neither_a_node_nor_a_device_is_at_fault() {
    let long = "x".repeat(4000);
    let lines = [
        r#"{"mark":"gpu-lost","when":"started"}"#.to_owned(),
        r#"{"mark":"session-conflict"}"#.to_owned(),
        format!(r#"{{"mark":"gpu-lost","when":"{long}"}}"#),
        format!(r#"{{"mark":"started","job":"{long}","run":"{long}","repository":"{long}"}}"#),
        format!(r#"{{"mark":"completed","job":"{long}","run":"7","repository":"a/b"}}"#),
        r#"{"mark":"other","device":"GPU-1","class":"device","code":719}"#.to_owned(),
        r#"{"schema":"cudarunner.dev/gate-report/v1","outcome":"failed","failure":{"class":"device"}}"#.to_owned(),
    ];
    // Given any of these lines, in any order, and any code of the container
    for first in &lines {
        for second in &lines {
            for code in [0, 1, 10, 11, 14, 137, 143] {
                let runner = ended(code, "Error", &[first.as_str(), second].join("\n"));
                let Some(End::Failed(failure)) = &runner.end else {
                    continue;
                };
                // Then no device and no node is blamed, and what is said is short
                assert_eq!(failure.class, Class::Transient, "{failure:?}");
                assert_eq!((failure.code, &failure.device), (None, &None));
                assert!(failure.message.len() < 1000, "{}", failure.message);
            }
        }
    }
}

#[test]
fn a_refused_version_is_named_with_the_one_to_use_and_not_believed_at_once() {
    let words = "Runner version v2.319.1 is deprecated and cannot receive messages. The minimum version is v2.329.0.";
    for code in [7, 78] {
        let runner = ended(code, "Error", words);
        let failure = failure(&runner);
        assert_eq!(
            (failure.reason.word(), failure.class),
            ("VersionRefusedOnce", Class::Transient)
        );
        assert!(failure.message.contains("2.319.1"));
        let refused = failure.refused.as_ref().unwrap();
        assert_eq!(refused.version.as_deref(), Some("2.319.1"));
        assert_eq!(refused.minimum.as_deref(), Some("2.329.0"));
    }
}

#[test]
fn what_config_sh_said_last_is_repeated() {
    let runner = ended(78, "Error", "√ Connected\nThe token is invalid.\n");
    assert_eq!(failure(&runner).reason, "NotConfigured");
    assert!(failure(&runner).message.contains("(The token is invalid.)"));
}

#[test]
fn a_failed_gate_speaks_through_its_report() {
    let report = Report {
        failure: Some(gate_report::Failure {
            class: Class::Node,
            step: gate_report::Step::Init,
            code: Some(803),
            code_name: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH".into(),
            call: None,
            device: None,
            uuid: None,
            message: "Driver and library differ.".into(),
            advice: "Reboot the node.".into(),
            confidence: gate_report::Confidence::High,
            shared: true,
        }),
        ..Report::new("1")
    }
    .summary();
    let runner = pod(&json!({
        "phase": "Failed",
        "conditions": [bound()],
        "initContainerStatuses": gate(&json!({"terminated": {
            "exitCode": 13, "message": report, "finishedAt": "2026-01-01T00:00:05Z"
        }}))
    }));
    let failure = failure(&runner);
    assert_eq!((failure.class, failure.code), (Class::Node, Some(803)));
    assert_eq!(
        failure.message,
        "Driver and library differ. Reboot the node."
    );
    assert!(failure.shared && !failure.registered);
}

/// What follows from each class is `plan::quarantine::tests::each_class_has_its_consequence`.
#[test]
fn a_gate_without_a_report_is_judged_by_its_code() {
    for (code, class, reason) in [
        (2, Class::Internal, "GateFailed"),
        (10, Class::Config, "GateFailed"),
        (11, Class::Transient, "GateFailed"),
        (12, Class::Device, "GateFailed"),
        (13, Class::Node, "GateFailed"),
        (14, Class::Unsupported, "GateFailed"),
        (15, Class::Refused, "RegistrationRefused"),
        (16, Class::Transient, "RegistrarUnreachable"),
        (17, Class::Unknown, "GateFailed"),
        (70, Class::Internal, "GateFailed"),
        // Killed from outside.
        (137, Class::Transient, "GateFailed"),
    ] {
        let runner = pod(&json!({
            "phase": "Failed",
            "conditions": [bound()],
            "initContainerStatuses": gate(&json!({"terminated": {"exitCode": code, "reason": "Error"}}))
        }));
        let failure = failure(&runner);
        assert_eq!(
            (failure.class, failure.reason.word()),
            (class, reason),
            "{code}"
        );
    }
}

#[test]
fn evictions_and_refusals_of_the_node_are_told_apart() {
    let with = |reason: &str| {
        pod(&json!({"phase": "Failed", "reason": reason, "message": "m", "conditions": [bound()]}))
    };
    assert_eq!(failure(&with("Evicted")).reason, "Evicted");
    for reason in [
        "UnexpectedAdmissionError",
        "SysctlForbidden",
        "SomethingNew",
    ] {
        assert_eq!(failure(&with(reason)).reason, "PodRejected", "{reason}");
        assert_ne!(failure(&with(reason)).class, Class::Node, "{reason}");
    }
    assert_eq!(failure(&with("NodeLost")).reason, "NodeLost");
}

#[test]
fn a_pod_that_may_have_used_up_its_node_is_told_from_one_that_had_to_go() {
    let target = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "m",
        "lastTransitionTime": "2026-01-01T00:01:00Z",
    });
    for (reason, by_own_use) in [("Evicted", true), ("Terminated", false)] {
        let gone =
            pod(&json!({"phase": "Failed", "reason": reason, "conditions": [bound(), target]}));
        let disruption = gone.disruption.unwrap();
        assert_eq!(disruption.by_own_use, by_own_use, "{reason}");
        assert_eq!(disruption.at.unwrap().to_string(), "2026-01-01T00:01:00Z");
    }
}

/// A pod that Kubernetes takes away, for this reason.
fn disrupted(reason: &str, phase: &str) -> Runner {
    let pod = json!({
        "metadata": {
            "name": "pool-aaaaa", "creationTimestamp": "2026-01-01T00:00:00Z",
            "deletionTimestamp": "2026-01-01T00:02:00Z"
        },
        "spec": spec(true),
        "status": {
            "phase": phase,
            "conditions": [bound(), {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "m"}],
            "initContainerStatuses": agent(&json!({"terminated": {"exitCode": 143, "reason": "Error"}}), false)
        }
    });
    read(&serde_json::from_value(pod).unwrap())
}

#[test]
fn a_pod_that_kubernetes_takes_away_says_who_wanted_it() {
    for (by, reason) in [
        ("EvictionByEvictionAPI", "Evicted"),
        ("DeletionByTaintManager", "Evicted"),
        ("PreemptionByScheduler", "Evicted"),
        ("DeletionByPodGC", "NodeLost"),
        // What Kubernetes may add some day is judged by what the agent said.
        ("SomethingNew", "EndedWithoutJob"),
    ] {
        let runner = disrupted(by, "Failed");
        assert_eq!(runner.phase, RunnerPhase::Terminating);
        assert_eq!(failure(&runner).reason, reason, "{by}");
        assert_eq!(failure(&runner).is_unasked(), by != "SomethingNew");
    }
}

#[test]
fn a_node_that_never_confirms_is_lost_once_the_time_for_it_is_over() {
    let runner = disrupted("DeletionByTaintManager", "Running");
    let name = runner.node.clone().unwrap();
    let node = |ready_since| {
        let mut node = fixture::node(&name);
        Arc::make_mut(&mut node).ready_since = ready_since;
        Some(vec![node])
    };
    // Given that nodes are not watched, a node that is there and ready, one that is not ready, and one of which nothing is
    // known: a container may use all of its time to end, and who answers needs a moment to say so
    let ready = node(Some(fixture::NOW));
    for (nodes, minute, minute_before) in [
        (None, "00:03:00", "00:02:59"),
        (ready, "00:03:00", "00:02:59"),
        (node(None), "00:02:00", "00:01:59"),
        (Some(vec![]), "00:03:00", "00:02:59"),
    ] {
        let observed = Observed {
            nodes,
            ..Observed::default()
        };
        let at = |time: &str| {
            let now = format!("2026-01-01T{time}Z").parse().unwrap();
            unconfirmed(&runner, &observed, now)
        };
        assert!(at(minute_before).is_none());
        let lost = at(minute).unwrap();
        assert_eq!((lost.reason.word(), lost.class), ("NodeLost", Class::Node));
    }
}

#[test]
fn a_job_that_has_ended_is_read_with_its_times_and_no_mark_is_believed_beyond_its_pod() {
    let mark = |mark: &str, at: &str| {
        let long = "x".repeat(1000);
        format!(
            r#"{{"mark":"{mark}","job":"{long}\u0007","run":"7","attempt":"2","at":"{at}","repository":"a/b"}}"#
        )
    };
    let read = |from: &str, to: &str| {
        let marks = [mark("started", from), mark("completed", to)].join("\n");
        ended(0, "Completed", &marks).done.unwrap()
    };
    // 2026-01-01T00:00:20Z and 30 seconds later; the container ended at 00:01:00.
    let done = read("1767225620", "1767225650");
    assert_eq!(done.started.unwrap().as_second(), 1_767_225_620);
    assert_eq!(done.finished.as_second(), 1_767_225_650);
    let name = done.job.job.chars().count();
    assert_eq!((done.job.attempt.as_str(), name), ("2", 140));
    for (from, to) in [
        ("", ""),
        ("soon", "later"),
        ("-1", "99999999999999999999"),
        ("1767225650", "1767229999"),
    ] {
        let done = read(from, to);
        assert_eq!(done.finished.to_string(), "2026-01-01T00:01:00Z", "{to}");
        assert_eq!(done.started.is_some(), from == "1767225650", "{from}");
    }
    // A job that was cut short has not ended.
    let cut = ended(143, "Error", &mark("started", "1767225620"));
    assert_eq!(cut.done, None);
}

#[test]
fn what_a_jobs_gpus_did_is_read_bounded_and_of_the_last_job_alone() {
    let gpu = |number: usize, busy: u8| {
        let long = "A".repeat(90);
        format!(
            r#"{{"mark":"gpu","uuid":"GPU-{number}\u001b[2J{long}","s":4294967295,"busy":{busy}}}"#
        )
    };
    let read = |lines: &[String]| ended(0, "Completed", &lines.join("\n")).done.unwrap().gpus;
    let mark = |mark: &str| format!(r#"{{"mark":"{mark}","job":"a","run":"7"}}"#);
    let (started, completed) = (mark("started"), mark("completed"));
    let many: Vec<String> = (0..100).map(|number| gpu(number, 200)).collect();
    let own = [&[completed.clone()][..], &many].concat();
    let gpus = read(&own);
    assert_eq!(gpus.len(), 16);
    let bounded = |gpu: &gate_report::usage::GpuUsage| {
        gpu.uuid.len() == 40 && gpu.seconds < 1_000_000 && gpu.busy_percent == Some(100)
    };
    assert!(gpus.iter().all(bounded), "{gpus:?}");
    // What is no mark of a GPU, and what an earlier job's were, is not there.
    let noise = r#"{"mark":"gpu","uuid":7}"#.to_owned();
    assert!(read(&[gpu(1, 5), noise, started, completed]).is_empty());
}

#[test]
fn a_pod_that_is_being_removed_keeps_its_end() {
    let mut done = serde_json::to_value(json!({
        "metadata": {"name": "pool-aaaaa", "deletionTimestamp": "2026-01-01T00:02:00Z"},
        "spec": spec(true),
        "status": {"phase": "Succeeded", "initContainerStatuses": agent(&json!({"terminated": {"exitCode": 0}}), false)}
    }))
    .unwrap();
    let runner = read(&serde_json::from_value(done.clone()).unwrap());
    assert_eq!(runner.phase, RunnerPhase::Terminating);
    assert!(!runner.is_active("2026-01-01T00:01:00Z".parse().unwrap()));
    done["status"] = json!({"phase": "Running", "initContainerStatuses": agent(&running(), false)});
    let runner = read(&serde_json::from_value(done).unwrap());
    assert!(runner.is_active("2026-01-01T00:01:00Z".parse().unwrap()));
    assert!(!runner.is_active("2026-01-01T00:03:00Z".parse().unwrap()));
}

#[test]
fn what_a_runner_keeps_off_is_read_back() {
    let pool = fixture::pool(1);
    let spec = pool.spec.clone().unwrap();
    let settings = PodSettings {
        gate_image: "example/cuda-smoke:1".into(),
        image_pull_policy: "IfNotPresent".into(),
        registrar_url: "https://10.96.0.7:8443".into(),
        registrar_ca: "-----BEGIN CERTIFICATE-----".into(),
    };
    let runner = NewRunner {
        name: "pool-aaaaa".into(),
        avoids: ["node-1", "node-2"].map(str::to_owned).into(),
        shuns: ["node-3"].map(str::to_owned).into(),
        retest: Some(Retest {
            uuid: "GPU-1".into(),
            node: "node-4".into(),
            suffix: "x".into(),
            claim: ResourceClaimSpec::default(),
        }),
    };
    let pod = build(&pool, &spec, &settings, &runner);
    assert_eq!(read(&pod).avoids, runner.avoids);
    assert_eq!(read(&pod).retests.as_deref(), Some("GPU-1"));
}
