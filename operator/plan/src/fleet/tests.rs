use cudarunner_crds::{FailureStatus, JobStatus, QuarantineStatus, RunnerPhase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::*;
use crate::Queue;
use crate::fixture::{NOW, ago, gate_failure, hardware, node, pool, resource, runner};
use crate::hours::{JobOfRunner, Seconds};
use crate::model::github::QueuedJob;
use crate::reason::Reason;

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
        shared: false,
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
        scope: None,
        node: "node-1".to_owned(),
        device: device.map(str::to_owned),
        class: gate_report::Class::Device.into(),
        code: Some(719),
        code_name: None,
        message: "it fails".to_owned(),
        failures: 1,
        boot_id: None,
        retest: false,
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
    builder.pool(resource, Known::default());
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
    // Given two jobs of ours, and an older one that asks for something else; the only runner is busy, and the node on which
    // it is not is quarantined
    let queued = |run, name: &str, label: &str| QueuedJob {
        run,
        name: name.to_owned(),
        labels: vec![label.to_owned()],
        ..QueuedJob::default()
    };
    let mut resource = said(|status| {
        status.queued = 2;
        (status.replicas, status.online, status.busy) = (1, 1, 1);
        status.observed_generation = Some(1);
        status.conditions = vec![Condition {
            type_: "GpuHealthy".to_owned(),
            status: "False".to_owned(),
            reason: "NodesQuarantined".to_owned(),
            message: "Quarantined: node-1".to_owned(),
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
    let queue = read(jobs);
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(
        &resource,
        Known {
            read: Some(&queue),
            heard: None,
        },
    );
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
        Some(
            "spec.replicas: 2 jobs wait until a runner has ended its job: spec.replicas is 1, and all are busy"
        )
    );
    // What holds none of them is told of the pool all the same
    assert_eq!(fleet.pools[0].held.len(), 1);
    let listed: Vec<_> = queue.waiting.iter().map(|w| w.job.run_id).collect();
    assert_eq!(
        (listed, queue.waiting_not_listed),
        (vec![Some(8), Some(9)], 0)
    );
    // What GitHub's own runners take is nobody's trouble
    assert!(fleet.unserved.is_empty());
}

/// What was read of a queue.
fn read(jobs: Vec<QueuedJob>) -> Arc<Queue> {
    Arc::new(Queue {
        at: NOW,
        asked: None,
        jobs: Ok(Some(jobs.into())),
        registered: Some([].into()),
        shut_out: None,
    })
}

/// A job that waits.
fn waits(run: u64, labels: &[&str]) -> QueuedJob {
    QueuedJob {
        id: Some(run * 10),
        run,
        name: "train".to_owned(),
        workflow: Some("ci".to_owned()),
        repository: None,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        created_at: Some(ago(90)),
    }
}

#[test]
fn a_job_that_waits_is_listed_with_all_that_is_known_of_it() {
    let queue = read(vec![waits(7, &["cuda"])]);
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(
        &resource(),
        Known {
            read: Some(&queue),
            heard: None,
        },
    );
    let fleet = builder.finish();
    let job = Job {
        id: Some(70),
        name: "train".to_owned(),
        repository: Some("acme/widgets".to_owned()),
        workflow: Some("ci".to_owned()),
        run_id: Some(7),
        url: Some("https://github.com/acme/widgets/actions/runs/7/job/70".to_owned()),
    };
    let labels = vec!["cuda".to_owned()];
    let since = Some(ago(90));
    assert_eq!(
        fleet.pools[0].queue.waiting,
        [WaitingJob { job, labels, since }]
    );
    assert_eq!(fleet.pools[0].queue.jobs, 1);
    assert_eq!(fleet.pools[0].labels, resource().runner_labels());
}

#[test]
fn the_jobs_of_a_scale_set_are_those_that_were_heard_of() {
    // Given a set that GitHub knows by its name alone, so that its jobs do not ask for the pool's labels; and 250 of them
    let heard: Vec<_> = (0..250)
        .map(|run| QueuedJob {
            id: None,
            repository: Some("acme/widgets".to_owned()),
            ..waits(run, &["pool-1b4e28ba"])
        })
        .collect();
    let queue = read(vec![waits(7, &["self-hosted"])]);
    let mut builder = Builder::new(NOW, None, None, None);
    let status = said(|status| status.queued = 300);
    builder.pool(
        &status,
        Known {
            read: Some(&queue),
            heard: Some(&heard),
        },
    );
    let fleet = builder.finish();
    let queue = &fleet.pools[0].queue;
    // Then the oldest hundred are listed, and the others counted
    assert_eq!((queue.waiting.len(), queue.waiting_not_listed), (100, 200));
    let first = &queue.waiting[0].job;
    assert_eq!(
        first.url.as_deref(),
        Some("https://github.com/acme/widgets/actions/runs/0")
    );
    assert_eq!(queue.oldest.as_ref(), Some(first));
}

#[test]
fn jobs_beyond_what_a_scale_set_may_have_are_those_that_were_read() {
    // Given a set that was told of one job, of three that wait; all are in the list of before, with one that runs by now
    let ours = |run| waits(run, &["self-hosted"]);
    let heard = [QueuedJob {
        id: None,
        ..ours(2)
    }];
    let queue = Arc::new(Queue {
        at: ago(200),
        ..Arc::unwrap_or_clone(read(vec![ours(2), ours(3), ours(4), ours(5)]))
    });
    let mut builder = Builder::new(NOW, None, None, None);
    let status = said(|status| status.queued = 3);
    let known = Known {
        read: Some(&queue),
        heard: Some(&heard),
    };
    builder.pool(&status, known);
    // Then no more are listed than are counted, each once, and as old as the list
    let queue = builder.finish().pools.remove(0).queue;
    let runs: Vec<_> = queue.waiting.iter().map(|w| w.job.run_id).collect();
    assert_eq!(runs, [Some(2), Some(3), Some(4)]);
    assert_eq!((queue.waiting_not_listed, queue.as_of), (0, Some(ago(200))));
}

#[test]
fn jobs_that_no_pool_serves_are_listed_once() {
    // Given two pools of a repository, and one of its organization
    let pool = |name: &str, url: &str, labels: &[&str]| {
        let mut pool = resource();
        pool.metadata.name = Some(name.to_owned());
        pool.spec.github.url = format!("https://github.com/{url}");
        pool.spec.labels = labels.iter().map(|label| (*label).to_owned()).collect();
        pool
    };
    let mut read = read(vec![
        waits(9, &["self-hosted", "cuda", "a100"]),
        waits(8, &["self-hosted", "cuda"]),
        waits(7, &["cuda", "h100"]),
        waits(6, &["self-hosted", "big"]),
        waits(5, &["ubuntu-latest"]),
        waits(4, &["self-hosted", "arm64"]),
    ]);
    let others = ["self-hosted".to_owned(), "arm64".to_owned()];
    Arc::make_mut(&mut read).registered = Some([others.into()].into());
    let known = Known {
        read: Some(&read),
        heard: None,
    };
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(&pool("a", "acme/widgets", &["self-hosted", "cuda"]), known);
    builder.pool(
        &pool("b", "acme/widgets", &["self-hosted", "cuda", "b200"]),
        known,
    );
    builder.pool(
        &pool("c", "acme", &["self-hosted", "big"]),
        Known::default(),
    );
    // Then those are listed that ask for what nobody has, and that are not meant for GitHub's own
    let fleet = builder.finish();
    let runs: Vec<_> = fleet.unserved.iter().map(|w| w.job.run_id).collect();
    assert_eq!(
        (runs, fleet.unserved_not_listed),
        (vec![Some(7), Some(9)], 0)
    );
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
        status.other_devices = Some(cudarunner_crds::OtherDevicesStatus {
            jobs: 100,
            failed: 4,
        });
    });
    let fleet = fleet(&resource, &[], None);
    let (own, others) = fleet.compared("GPU-a").unwrap();
    assert_eq!((own.failed, own.jobs, own.suspect), (3, 5, true));
    assert_eq!(
        (others.failed, others.jobs, others.suspect),
        (5, 160, false)
    );
    assert_eq!(fleet.compared("GPU-x"), None);
}

/// A runner of two GPUs that has ended after its job.
fn ended(name: &str, run: i64) -> RunnerHours {
    RunnerHours {
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
            refused: false,
            queued_seconds: None,
            run_seconds: None,
            energy_joules: None,
        }),
    }
}

#[test]
fn runners_that_ended_are_counted_and_nothing_is_shown_twice() {
    // Given two runners of two GPUs that ended, of which the status has one's job
    let resource = said(|status| status.last_jobs = vec![job("train", "GPU-a", "success")]);
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(&resource, Known::default());
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
fn only_a_gate_that_failed_marks_its_device() {
    // Given a node with a GPU, and a runner that ended there without a job, of which no status tells any more
    let state = |reason: Reason, idle: u64, devices: &[&str]| {
        let ended = RunnerHours {
            devices: devices.iter().map(|&uuid| uuid.to_owned()).collect(),
            seconds: Seconds {
                gate: 10,
                idle,
                job: 0,
                lost: 0,
            },
            reason: Some(reason.word()),
            job: None,
            ..ended("pool-jjjjj", 7)
        };
        let nodes = [node("node-1")];
        let mut builder = Builder::new(NOW, None, Some(&nodes), Some(&Others::new()));
        builder.pool(&said(|_| {}), Known::default());
        builder.ended(&ended);
        let fleet = builder.finish();
        let devices = fleet.nodes.iter().flat_map(|node| &node.devices);
        devices.filter(|d| d.state == DeviceState::Failed).count()
    };
    // Then its device is the last thing that a gate found bad only where one did, and where it is known which
    for (reason, idle, devices, failed) in [
        (Reason::GateFailed, 0, &["GPU-a"][..], 1),
        (Reason::GateOverdue, 0, &["GPU-a"], 1),
        (Reason::GateFailed, 0, &["GPU-a", "GPU-b"], 0),
        (Reason::Evicted, 0, &["GPU-a"], 0),
        (Reason::Evicted, 20, &["GPU-a"], 0),
        (Reason::EndedWithoutJob, 20, &["GPU-a"], 0),
    ] {
        assert_eq!(
            state(reason, idle, devices),
            failed,
            "{reason:?} {devices:?}"
        );
    }
}

#[test]
fn a_large_fleet_stays_bounded() {
    // Given more of everything than is listed
    let nodes: Vec<_> = (0..1_200).map(|n| node(&format!("node-{n:04}"))).collect();
    let queue = read(
        (0..300)
            .map(|run| waits(run, &["cuda", "self-hosted"]))
            .collect(),
    );
    let lost = read(
        (0..300)
            .map(|run| waits(run, &["cuda", "nowhere"]))
            .collect(),
    );
    let mut builder = Builder::new(NOW, None, Some(&nodes), None);
    for number in 0..1_100 {
        let mut resource = said(|status| {
            status.last_jobs = vec![job("train", "GPU-e", "success"); 10];
        });
        resource.metadata.name = Some(format!("pool-{number:04}"));
        resource.spec.github.url = format!("https://github.com/acme/widgets-{number}");
        let read = Some(if number % 2 == 0 { &queue } else { &lost });
        builder.pool(&resource, Known { read, heard: None });
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
    let waiting: usize = fleet.pools.iter().map(|p| p.queue.waiting.len()).sum();
    assert_eq!(waiting, MAX_WAITING_OF_ALL);
    assert_eq!(fleet.pools[998].queue.waiting_not_listed, 300);
    assert_eq!(
        (fleet.unserved.len(), fleet.unserved_not_listed),
        (100, 550 * 300 - 100)
    );
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
fn a_word_of_a_later_version_is_read_as_unknown() {
    let device: Device = serde_json::from_str(r#"{"state": "Sold", "price": 1}"#).unwrap();
    assert_eq!(device.state, DeviceState::Unknown);
    let kind: EventKind = serde_json::from_str(r#""Auction""#).unwrap();
    assert_eq!(kind, EventKind::Unknown);
}

#[test]
fn a_failure_is_of_a_gate_only_where_the_gate_failed() {
    let resource = said(|status| {
        let reasons = [
            Reason::GateFailed,
            Reason::GateOverdue,
            Reason::NodeWarmingUp,
            Reason::JobCutShort,
            Reason::Evicted,
            Reason::NodeLost,
            Reason::JobOverAgentRunning,
            Reason::AgentOffline,
            Reason::NeverStarted,
        ];
        let words = reasons.map(Reason::word).into_iter().chain(["Flipped"]);
        status.last_failures = words
            .map(|word| FailureStatus {
                runner: word.to_owned(),
                reason: word.to_owned(),
                ..failure("GPU-a", ago(50))
            })
            .collect();
    });
    let fleet = fleet(&resource, &[], None);
    let of = |kind| {
        let events = fleet.history.iter().filter(|event| event.kind == kind);
        events.map(|e| e.result.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(
        of(EventKind::Gate),
        ["GateFailed", "GateOverdue", "NodeWarmingUp"]
    );
    assert_eq!(of(EventKind::Runner).len(), 7);
}

#[test]
fn a_job_that_the_pool_did_not_let_in_has_not_failed() {
    // Given one that the status has, and one that is remembered alone
    let resource = said(|status| {
        status.last_jobs = vec![JobStatus {
            refused: Some("forks are not allowed".to_owned()),
            ..job("train", "GPU-a", "failure")
        }];
    });
    let mut builder = Builder::new(NOW, None, None, None);
    builder.pool(&resource, Known::default());
    let mut remembered = ended("pool-kkkkk", 8);
    remembered.job.as_mut().unwrap().refused = true;
    builder.ended(&remembered);
    let jobs = builder.finish().history.into_iter();
    let jobs = jobs.filter(|event| event.kind == EventKind::Job);
    let jobs: Vec<_> = jobs.map(|e| (e.result, e.failed)).collect();
    assert_eq!(
        jobs,
        [("failure".to_owned(), false), ("failure".to_owned(), false)]
    );
}
