//! Given what two operators say of the fleet, then together it is true of both.

use std::sync::Arc;

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, QuarantineStatus, RunnerPhase};
use jiff::Timestamp;

use super::*;
use crate::NodeFacts;
use crate::Queue;
use crate::fixture::{NOW, ago, node as facts, pool as parsed, resource, runner};
use crate::fleet::DeviceState::{Free, Gate, Idle, Job, NotOurs, Quarantined};
use crate::fleet::{Builder, Event, EventKind, HoursRow, Known, Others};
use crate::model::github::QueuedJob;

/// An operator, the pool that it serves at a repository, and what it sees of node-1: how many GPUs pods of others hold, and its
/// own runners.
struct Of<'a> {
    name: &'a str,
    url: &'a str,
    labels: &'a [&'a str],
    others: Option<u32>,
    runners: &'a [(&'a str, RunnerPhase, Option<&'a str>)],
    jobs: &'a [(u64, &'a [&'a str])],
    quarantine: Vec<QuarantineStatus>,
}

impl Default for Of<'_> {
    fn default() -> Self {
        Self {
            name: "a",
            url: "acme/widgets",
            labels: &["self-hosted", "cuda"],
            others: Some(0),
            runners: &[],
            jobs: &[],
            quarantine: vec![],
        }
    }
}

fn resource_of(of: &Of<'_>) -> CudaRunner {
    let mut resource = resource();
    resource.metadata.name = Some(format!("pool-{}", of.name));
    resource.spec.github.url = format!("https://github.com/{}", of.url);
    resource.spec.labels = of.labels.iter().map(|label| (*label).to_owned()).collect();
    resource.status = Some(CudaRunnerStatus {
        quarantine: of.quarantine.clone(),
        ..CudaRunnerStatus::default()
    });
    resource
}

fn document(of: &Of<'_>) -> Fleet {
    seen(of, Some(&[facts("node-1")]))
}

fn seen(of: &Of<'_>, nodes: Option<&[Arc<NodeFacts>]>) -> Fleet {
    let operator = Operator {
        name: format!("operator-{}", of.name),
        version: "0.1.0".to_owned(),
        since: ago(3_600),
        leads: true,
    };
    let others = of.others.map(|count| {
        let held = BTreeMap::from([("nvidia.com/gpu".to_owned(), count)]);
        Others::from([("node-1".to_owned(), held)])
    });
    let resource = resource_of(of);
    let job = |(run, labels): &(u64, &[&str])| QueuedJob {
        id: Some(run * 10),
        run: *run,
        name: "train".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..QueuedJob::default()
    };
    let queue = Arc::new(Queue {
        at: ago(1),
        asked: None,
        jobs: Ok(Some(of.jobs.iter().map(job).collect())),
        registered: Some([].into()),
        shut_out: None,
    });
    let mut builder = Builder::new(NOW, Some(operator), nodes, others.as_ref());
    let known = Known {
        read: Some(&queue),
        heard: None,
    };
    builder.pool(&resource, known);
    for (name, phase, uuid) in of.runners {
        let mut runner = runner(&parsed(1), name, *phase);
        runner.is_over = false;
        runner.devices_held = BTreeMap::from([("nvidia.com/gpu".to_owned(), 1)]);
        runner.devices = uuid.iter().map(|uuid| (*uuid).to_owned()).collect();
        builder.runner(&runner, None);
    }
    builder.finish()
}

fn quarantine(device: Option<&str>) -> Vec<QuarantineStatus> {
    let entry = serde_json::json!({"node": "node-1", "device": device, "class": "device", "code": 719, "message": "it fails", "failures": 1, "since": "1970-01-12T13:00:00Z"});
    vec![serde_json::from_value(entry).unwrap()]
}

/// How many devices are in each state.
fn counts(fleet: &Fleet) -> Vec<(DeviceState, u32)> {
    fleet.devices.clone().into_iter().collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_device_is_whose_operator_knows_it_and_not_ours_only_where_all_say_so() {
    let (busy, idle) = (RunnerPhase::Busy, RunnerPhase::Idle);
    for (situation, a, b, expected) in [
        (
            "each sees the other's runner, and a pod of a third",
            Of {
                others: Some(2),
                runners: &[("a-1", busy, Some("GPU-a"))],
                ..Of::default()
            },
            Of {
                name: "b",
                others: Some(2),
                runners: &[("b-1", idle, Some("GPU-b"))],
                ..Of::default()
            },
            vec![(Free, 5), (Idle, 1), (Job, 1), (NotOurs, 1)],
        ),
        (
            "the first has not seen the other's new runner yet",
            Of {
                others: Some(1),
                ..Of::default()
            },
            Of {
                name: "b",
                others: Some(1),
                runners: &[
                    ("b-1", idle, Some("GPU-b")),
                    ("b-2", RunnerPhase::Gated, None),
                ],
                ..Of::default()
            },
            vec![(Free, 6), (Gate, 1), (Idle, 1)],
        ),
        (
            "the second sees no pods of others",
            Of {
                others: Some(3),
                runners: &[("a-1", busy, None)],
                ..Of::default()
            },
            Of {
                name: "b",
                others: None,
                runners: &[("b-1", idle, None)],
                ..Of::default()
            },
            vec![(Free, 4), (Idle, 1), (Job, 1), (NotOurs, 2)],
        ),
        (
            "the second has a device in quarantine that the first takes for free",
            Of::default(),
            Of {
                name: "b",
                quarantine: quarantine(Some("GPU-c")),
                ..Of::default()
            },
            vec![(Free, 7), (Quarantined, 1)],
        ),
        (
            "the second has the node in quarantine, and a runner of the first is there",
            Of {
                runners: &[("a-1", busy, Some("GPU-a"))],
                ..Of::default()
            },
            Of {
                name: "b",
                others: Some(1),
                quarantine: quarantine(None),
                ..Of::default()
            },
            vec![(Job, 1), (Quarantined, 7)],
        ),
    ] {
        let expected: BTreeMap<_, _> = expected.into_iter().collect();
        let (a, b) = (document(&a), document(&b));
        // ... whoever comes first
        for fleet in [a.clone().joined(b.clone()), b.joined(a)] {
            assert_eq!(fleet.devices, expected, "{situation}");
            assert_eq!(fleet.nodes.len(), 1, "{situation}");
            assert_eq!(fleet.nodes[0].devices.len(), 8, "{situation}");
            assert_eq!(fleet.pools.len(), 2, "{situation}");
        }
    }
}

#[test]
fn a_runner_is_with_its_own_operator() {
    // Given a runner of the second on a device of which the first knows that others hold it
    let b = Of {
        name: "b",
        runners: &[("b-1", RunnerPhase::Idle, Some("GPU-b"))],
        ..Of::default()
    };
    let a = Of {
        others: Some(1),
        ..Of::default()
    };
    let fleet = document(&a).joined(document(&b));
    // Then the device has its name and its runner
    let device = &fleet.nodes[0].devices[0];
    assert_eq!(device.uuid.as_deref(), Some("GPU-b"));
    assert_eq!(device.pool.as_deref(), Some("ci/pool-b"));
    let names: Vec<_> = fleet.operators().map(|o| o.name.as_str()).collect();
    assert_eq!(names, ["operator-a", "operator-b"]);
}

#[test]
fn three_operators_are_as_two() {
    let of = |name, others| Of {
        name,
        others: Some(others),
        runners: match name {
            "a" => &[("a-1", RunnerPhase::Idle, None)],
            "b" => &[("b-1", RunnerPhase::Idle, None)],
            _ => &[
                ("c-1", RunnerPhase::Idle, None),
                ("c-2", RunnerPhase::Busy, None),
            ],
        },
        ..Of::default()
    };
    let all = ["a", "b", "c"];
    let documents = all.map(|name| document(&of(name, if name == "c" { 3 } else { 4 })));
    let fleet = documents.into_iter().reduce(Fleet::joined).unwrap();
    assert_eq!(
        counts(&fleet),
        [(Free, 3), (Idle, 3), (Job, 1), (NotOurs, 1)]
    );
    assert_eq!(fleet.operators().count(), 3);
}

#[test]
fn a_node_that_one_alone_sees_is_as_that_one_says() {
    // Given an operator for some namespaces, which sees no nodes
    let b = Of {
        name: "b",
        others: None,
        runners: &[("b-1", RunnerPhase::Idle, None)],
        ..Of::default()
    };
    let b = seen(&b, None);
    let a = document(&Of {
        others: Some(1),
        ..Of::default()
    });
    let fleet = a.joined(b);
    assert_eq!(counts(&fleet), [(Free, 7), (Idle, 1)]);
    assert!(fleet.nodes_visible && fleet.others_visible);
}

#[test]
fn nodes_beyond_the_list_are_counted_once() {
    // Given 1,200 nodes of eight devices, of which each operator lists the first thousand
    let nodes: Vec<_> = (0..1_200).map(|n| facts(&format!("node-{n:04}"))).collect();
    let of = |name| {
        let of = Of {
            name,
            ..Of::default()
        };
        seen(&of, Some(&nodes))
    };
    let fleet = of("a").joined(of("b"));
    assert_eq!(counts(&fleet), [(Free, 9_600)]);
    assert_eq!((fleet.nodes.len(), fleet.nodes_not_listed), (1_000, 200));
}

#[test]
fn a_job_that_another_operators_pool_takes_is_not_lost() {
    // Given two pools of one repository, at an operator each, and the queue that both have read
    let jobs: &[(u64, &[&str])] = &[
        (7, &["self-hosted", "cuda", "b200"]),
        (8, &["self-hosted", "cuda", "a100"]),
        (9, &["self-hosted", "cuda"]),
    ];
    let a = document(&Of {
        jobs,
        ..Of::default()
    });
    let runs = |fleet: &Fleet| -> Vec<_> { fleet.unserved.iter().map(|w| w.job.run_id).collect() };
    assert_eq!(runs(&a), [Some(7), Some(8)]);
    let b = |url, jobs| {
        document(&Of {
            name: "b",
            url,
            labels: &["self-hosted", "cuda", "b200"],
            jobs,
            ..Of::default()
        })
    };
    // Then one is left that neither takes, once
    assert_eq!(runs(&a.clone().joined(b("acme/widgets", jobs))), [Some(8)]);
    // And a pool of another repository takes none of them
    assert_eq!(runs(&a.joined(b("acme/gadgets", &[]))), [Some(7), Some(8)]);
}

#[test]
fn a_pool_that_both_show_is_told_once_as_it_was_read_last() {
    let document = |at: Timestamp, queued: i32| {
        let mut fleet = document(&Of::default());
        fleet.pools[0].queue.as_of = Some(at);
        fleet.pools[0].queue.jobs = queued;
        fleet
    };
    let (old, new) = (document(ago(100), 1), document(ago(1), 2));
    for fleet in [old.clone().joined(new.clone()), new.joined(old)] {
        let queued: Vec<_> = fleet.pools.iter().map(|pool| pool.queue.jobs).collect();
        assert_eq!(queued, [2]);
    }
}

#[test]
fn history_and_hours_are_of_all() {
    let event = |runner: &str, at| Event {
        at,
        kind: EventKind::Gate,
        result: "passed".to_owned(),
        failed: false,
        pool: "ci/pool".to_owned(),
        runner: runner.to_owned(),
        node: None,
        devices: vec![],
        job: None,
        message: None,
    };
    let with = |events: Vec<Event>, pool: &str| {
        let mut fleet = document(&Of::default());
        fleet.history = events;
        let row = HoursRow {
            pool: pool.to_owned(),
            runners: 1,
            job_seconds: 60,
            ..HoursRow::default()
        };
        fleet.hours = Some(Hours {
            from: Some(ago(i64::from(u8::try_from(pool.len()).unwrap()))),
            runners: 1,
            rows: vec![row],
        });
        fleet
    };
    let a = with(vec![event("x", ago(1)), event("y", ago(30))], "ci/one");
    let b = with(vec![event("y", ago(30)), event("z", ago(20))], "ci/three");
    let c = with(vec![], "ci/one");
    let fleet = a.joined(b).joined(c);
    let runners: Vec<_> = fleet.history.iter().map(|e| e.runner.as_str()).collect();
    assert_eq!(runners, ["x", "z", "y"]);
    let hours = fleet.hours.unwrap();
    let rows = hours
        .rows
        .iter()
        .map(|row| (row.pool.as_str(), row.job_seconds));
    assert_eq!(
        rows.collect::<Vec<_>>(),
        [("ci/one", 120), ("ci/three", 60)]
    );
    assert_eq!((hours.runners, hours.from), (3, Some(ago(8))));
}
