use cudarunner_crds::{FailureStatus, JobStatus, QuarantineStatus, RunnerPhase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::*;
use crate::fixture::{NOW, ago, gate_failure, hardware, node, pool, resource, runner};
use crate::hours::{JobOfRunner, Seconds};
use crate::model::github::QueuedJob;

/// A resource with a status that says something.
fn said(change: impl FnOnce(&mut CudaRunnerStatus)) -> CudaRunner {
    let mut resource = resource();
    let mut status = CudaRunnerStatus::default();
    change(&mut status);
    resource.status = Some(status);
    resource
}

/// A runner that holds one GPU of node-1.
fn holding(name: &str, phase: RunnerPhase, uuid: Option<&str>) -> Runner {
    let mut runner = runner(&pool(1), name, phase);
    runner.is_over = false;
    runner.devices_held = BTreeMap::from([("nvidia.com/gpu".to_owned(), 1)]);
    runner.devices = uuid.into_iter().map(str::to_owned).collect();
    runner
}

fn failure(device: &str, at: Timestamp) -> FailureStatus {
    FailureStatus {
        runner: "pool-fffff".to_owned(),
        node: Some("node-1".to_owned()),
        device: Some(device.to_owned()),
        class: gate_report::Class::Device.into(),
        code: Some(719),
        code_name: None,
        reason: "GateFailed".to_owned(),
        message: "the kernel faulted".to_owned(),
        at: Time(at),
    }
}

fn job(name: &str, device: &str, conclusion: &str) -> JobStatus {
    JobStatus {
        job: name.to_owned(),
        conclusion: Some(conclusion.to_owned()),
        runner: "pool-jjjjj".to_owned(),
        node: Some("node-1".to_owned()),
        devices: vec![device.to_owned()],
        started_at: None,
        finished_at: Time(ago(30)),
        workflow: "ci".to_owned(),
        repository: Some("acme/widgets".to_owned()),
        run_id: Some(7),
        attempt: None,
        url: None,
        refused: None,
        gpu: vec![],
        exceeded_minutes: None,
        awaits_conclusion: false,
    }
}

fn quarantine(device: Option<&str>) -> QuarantineStatus {
    QuarantineStatus {
        node: "node-1".to_owned(),
        device: device.map(str::to_owned),
        class: gate_report::Class::Device.into(),
        code: Some(719),
        code_name: None,
        message: "it fails".to_owned(),
        failures: 1,
        boot_id: None,
        since: Time(ago(60)),
        until: Some(Time(NOW)),
    }
}

fn fleet(resource: &CudaRunner, runners: &[Runner], others: Option<u32>) -> Fleet {
    let others = others.map(|count| {
        let held = BTreeMap::from([("nvidia.com/gpu".to_owned(), count)]);
        Others::from([("node-1".to_owned(), held)])
    });
    let mut builder = Builder::new(NOW, None, Some(&[node("node-1")]), others.as_ref());
    builder.pool(resource, None);
    for runner in runners {
        builder.runner(runner, None);
    }
    builder.finish()
}

/// The states of the devices of the first node, each with the UUID that is known.
fn states(fleet: &Fleet) -> Vec<(DeviceState, Option<&str>)> {
    let devices = fleet.nodes[0].devices.iter();
    devices.map(|d| (d.state, d.uuid.as_deref())).collect()
}

#[test]
fn every_device_of_a_node_is_shown_once_with_what_it_is_used_for() {
    use DeviceState::{Failed, Free, Gate, Idle, Job, NotOurs, Quarantined};
    // Given a node with eight GPUs: three are runners', two are pods' of others, one is quarantined, one failed its gate
    let resource = said(|status| {
        status.quarantine = vec![quarantine(Some("GPU-c"))];
        status.last_failures = vec![failure("GPU-d", ago(50)), failure("GPU-a", ago(500))];
        status.last_jobs = vec![job("train", "GPU-e", "success")];
    });
    let runners = [
        holding("pool-aaaaa", RunnerPhase::Busy, Some("GPU-a")),
        holding("pool-bbbbb", RunnerPhase::Idle, Some("GPU-b")),
        holding("pool-ccccc", RunnerPhase::Gated, None),
    ];
    let fleet = fleet(&resource, &runners, Some(2));
    // Then each of the eight is there once; which of the last two is GPU-e nobody can say
    assert_eq!(
        states(&fleet),
        [
            (Job, Some("GPU-a")),
            (Idle, Some("GPU-b")),
            (Quarantined, Some("GPU-c")),
            (Failed, Some("GPU-d")),
            (Gate, None),
            (Free, None),
            (NotOurs, None),
            (NotOurs, None),
        ]
    );
    assert_eq!(fleet.devices[&NotOurs], 2);
    assert_eq!(fleet.nodes[0].gpus, Some(8));
}

#[test]
fn a_device_that_was_seen_is_named_where_no_pod_of_others_may_hold_it() {
    let resource = said(|status| status.last_jobs = vec![job("train", "GPU-e", "success")]);
    let fleet = fleet(&resource, &[], Some(0));
    assert_eq!(states(&fleet)[0], (DeviceState::Free, Some("GPU-e")));
    assert_eq!(states(&fleet).len(), 8);
}

#[test]
fn a_quarantined_node_has_no_free_device() {
    let resource = said(|status| status.quarantine = vec![quarantine(None)]);
    let runners = [holding("pool-aaaaa", RunnerPhase::Gated, None)];
    let fleet = fleet(&resource, &runners, None);
    assert_eq!(fleet.devices[&DeviceState::Quarantined], 7);
    assert_eq!(fleet.devices[&DeviceState::Gate], 1);
    assert!(!fleet.others_visible);
}

#[test]
fn a_runner_holds_its_devices_until_its_pod_is_over() {
    for (phase, is_over, state) in [
        (RunnerPhase::Unscheduled, false, None),
        (RunnerPhase::Finished, false, Some(DeviceState::Ending)),
        (RunnerPhase::Finished, true, None),
        (RunnerPhase::Failed, false, Some(DeviceState::Failed)),
        (RunnerPhase::Failed, true, None),
        (RunnerPhase::Terminating, false, Some(DeviceState::Ending)),
    ] {
        let mut runner = holding("pool-aaaaa", phase, None);
        runner.is_over = is_over;
        if phase == RunnerPhase::Failed {
            let failure = gate_failure(gate_report::Class::Transient);
            runner.end = Some(crate::model::runner::End::Failed(failure));
        }
        let fleet = fleet(&said(|_| {}), &[runner], None);
        let held = fleet.nodes[0].devices.iter().find(|d| d.runner.is_some());
        assert_eq!(held.map(|d| d.state), state, "{phase:?} {is_over}");
        assert_eq!(fleet.nodes[0].devices.len(), 8);
    }
}

#[test]
fn a_pod_that_only_looks_like_a_runner_is_passed_over() {
    let mut runner = holding("pool-aaaaa", RunnerPhase::Busy, Some("GPU-a"));
    runner.owner = "another".to_owned();
    let fleet = fleet(&said(|_| {}), &[runner], None);
    assert_eq!(fleet.devices[&DeviceState::Free], 8);
    assert!(fleet.history.is_empty());
}

#[test]
fn the_oldest_job_and_why_it_waits_are_said() {
    // Given two jobs of ours, and an older one that asks for something else
    let queued = |run, name: &str, label: &str| QueuedJob {
        run,
        name: name.to_owned(),
        labels: vec![label.to_owned()],
        created_at: None,
    };
    let mut resource = said(|status| {
        status.queued = 2;
        status.observed_generation = Some(1);
        status.conditions = vec![Condition {
            type_: "GpuHealthy".to_owned(),
            status: "False".to_owned(),
            reason: "NodeQuarantined".to_owned(),
            message: "node-1 fails the gate".to_owned(),
            observed_generation: None,
            last_transition_time: Time(NOW),
        }];
    });
    // By the pool's name, which is a label where the spec names none
    resource.spec.labels.clear();
    let jobs = vec![
        queued(9, "second", "pool"),
        queued(8, "<script>alert(1)</script>\u{202e}", "pool"),
        queued(1, "lint", "ubuntu-latest"),
    ];
    let queue = Queue {
        at: NOW,
        asked: None,
        jobs: Ok(Some(jobs)),
        registered: vec![],
        shut_out: None,
    };
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(&resource, Some(&queue));
    let fleet = builder.finish();
    let queue = &fleet.pools[0].queue;
    assert_eq!(queue.jobs, 2);
    let oldest = queue.oldest.as_ref().unwrap();
    // What a terminal or a reader would trip over is gone; what a page has to escape is not
    assert_eq!(oldest.name, "<script>alert(1)</script>");
    assert_eq!(
        oldest.url.as_deref(),
        Some("https://github.com/acme/widgets/actions/runs/8")
    );
    assert_eq!(
        queue.why.as_deref(),
        Some("GpuHealthy (NodeQuarantined): node-1 fails the gate")
    );
    assert_eq!(fleet.pools[0].held.len(), 1);
}

#[test]
fn a_device_is_compared_with_the_others_of_its_pools() {
    let on = |uuid: &str, jobs, failed| cudarunner_crds::DeviceStatus {
        uuid: uuid.to_owned(),
        node: Some("node-1".to_owned()),
        jobs,
        failed,
        suspect: failed > 2,
    };
    let resource = said(|status| {
        status.devices = vec![on("GPU-a", 5, 3), on("GPU-b", 40, 1), on("GPU-c", 20, 0)];
    });
    let fleet = fleet(&resource, &[], None);
    let (own, others) = fleet.compared("GPU-a").unwrap();
    assert_eq!((own.failed, own.jobs, own.suspect), (3, 5, true));
    assert_eq!((others.failed, others.jobs, others.suspect), (1, 60, false));
    assert_eq!(fleet.compared("GPU-x"), None);
}

#[test]
fn runners_that_ended_are_counted_and_nothing_is_shown_twice() {
    // Given two runners of two GPUs that ended, of which the status has one's job
    let ended = |name: &str, run| RunnerHours {
        namespace: "ci".to_owned(),
        pool: "pool".to_owned(),
        runner: name.to_owned(),
        uid: name.to_owned(),
        node: Some("node-1".to_owned()),
        gpus: 2,
        devices: vec!["GPU-a".to_owned(), "GPU-b".to_owned()],
        product: None,
        held_from: Some(ago(100)),
        held_until: ago(30),
        seconds: Seconds {
            gate: 10,
            idle: 20,
            job: 40,
            lost: 0,
        },
        reason: None,
        job: Some(JobOfRunner {
            repository: Some("acme/widgets".to_owned()),
            workflow: "ci".to_owned(),
            run_id: Some(run),
            attempt: Some(1),
            job: "train".to_owned(),
            conclusion: Some("failure".to_owned()),
            queued_seconds: None,
            run_seconds: None,
            energy_joules: None,
        }),
    };
    let resource = said(|status| status.last_jobs = vec![job("train", "GPU-a", "success")]);
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(&resource, None);
    builder.ended(&ended("pool-jjjjj", 7));
    builder.ended(&ended("pool-kkkkk", 8));
    let fleet = builder.finish();
    let jobs = fleet.history.iter().filter(|e| e.kind == EventKind::Job);
    let jobs: Vec<_> = jobs.map(|e| (e.runner.as_str(), e.failed)).collect();
    assert_eq!(jobs, [("pool-jjjjj", false), ("pool-kkkkk", true)]);
    let hours = fleet.hours.unwrap();
    assert_eq!((hours.runners, hours.rows.len()), (2, 1));
    assert_eq!(hours.rows[0].job_seconds, 2 * 2 * 40);
    assert_eq!(hours.from, Some(ago(30)));
}

#[test]
fn a_large_fleet_stays_bounded() {
    // Given more of everything than is listed
    let nodes: Vec<_> = (0..1_200).map(|n| node(&format!("node-{n:04}"))).collect();
    let mut builder = Builder::new(NOW, None, Some(&nodes), None);
    for number in 0..1_100 {
        let mut resource = said(|status| {
            status.last_jobs = vec![job("train", "GPU-e", "success"); 10];
        });
        resource.metadata.name = Some(format!("pool-{number:04}"));
        builder.pool(&resource, None);
        for name in ["a", "b", "c", "d", "e"] {
            let mut runner = holding(name, RunnerPhase::Idle, Some("GPU-a"));
            runner.node = Some(format!("node-{number:04}"));
            runner.hardware = Some(hardware("NVIDIA A100", "580"));
            builder.runner(&runner, None);
        }
    }
    let fleet = builder.finish();
    assert_eq!((fleet.nodes.len(), fleet.nodes_not_listed), (1_000, 200));
    assert_eq!((fleet.pools.len(), fleet.pools_not_listed), (1_000, 100));
    assert_eq!(fleet.history.len(), MAX_HISTORY);
    let bytes = serde_json::to_vec(&fleet).unwrap().len();
    assert!(bytes < 4 << 20, "{bytes} bytes");
}

#[test]
fn an_address_that_may_hold_a_secret_is_not_repeated() {
    let mut resource = said(|_| {});
    resource.spec.github.url = "https://me:ghp_secret@github.com/acme/widgets".to_owned();
    let fleet = fleet(&resource, &[], None);
    assert!(
        !serde_json::to_string(&fleet)
            .unwrap()
            .contains("ghp_secret")
    );
}

#[test]
fn a_state_of_a_later_version_is_read_as_unknown() {
    let device: Device = serde_json::from_str(r#"{"state": "Sold", "price": 1}"#).unwrap();
    assert_eq!(device.state, DeviceState::Unknown);
}
