//! Given what failed on which node, then it is the node's, or it is not.

use std::sync::Arc;

use cudarunner_crds::{FailureClass, JobStatus, QuarantineStatus, RunnerPhase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::fixture::{NOW, ago, first_node, gate_failure, node, observed, pool, runner};
use crate::model::runner::{End, Failure, Runner};
use crate::{Action, NodeFacts, Passed, Plan, plan};

/// A failure with this name, in place of a code.
fn failure(reason: Reason, class: Class, name: &str, seconds_ago: i64) -> FailureStatus {
    FailureStatus {
        runner: format!("pool-{seconds_ago}"),
        node: Some("node-1".to_owned()),
        device: None,
        class: class.into(),
        code: None,
        code_name: Some(name.to_owned()),
        shared: false,
        reason: reason.into(),
        message: "m".to_owned(),
        at: Time(ago(seconds_ago)),
    }
}

/// A kubelet whose device plugin had nothing to give.
fn refused(seconds_ago: i64) -> FailureStatus {
    failure(
        Reason::PodRejected,
        Class::Transient,
        NOT_OFFERED,
        seconds_ago,
    )
}

/// A gate to which the driver gave this code, for now.
fn gate(code: i32, seconds_ago: i64) -> FailureStatus {
    FailureStatus {
        code: Some(code),
        ..failure(
            Reason::GateFailed,
            Class::Transient,
            "CUDA_ERROR",
            seconds_ago,
        )
    }
}

fn elsewhere(failure: FailureStatus) -> FailureStatus {
    FailureStatus {
        node: Some("node-2".to_owned()),
        ..failure
    }
}

fn passed(node: &str, seconds_ago: i64) -> Passed {
    Passed {
        node: node.to_owned(),
        created: ago(seconds_ago),
        devices: vec!["GPU-1".to_owned()],
    }
}

/// What is known beside the failures.
struct World {
    pool: Pool,
    observed: Observed,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            pool: pool(1),
            observed: observed(vec![]),
        };
        first_node(&mut world.observed).ready_since = Some(ago(100_000));
        world
    }

    fn passed(passed: &[Passed]) -> Self {
        let mut world = Self::new();
        world.observed.passed = passed.to_vec();
        world
    }

    fn labelled(label: &str, value: &str) -> Self {
        let mut world = Self::new();
        let labels = &mut first_node(&mut world.observed).labels;
        labels.insert(label.to_owned(), value.to_owned());
        world
    }

    /// The class of the first failure, the newest, with the others known before. Its pod was made five seconds earlier.
    fn class_of_last(&self, all: &[FailureStatus]) -> FailureClass {
        let (new, earlier) = all.split_at(1);
        let mut new = new.to_vec();
        let made = new[0].at.0 - SignedDuration::from_secs(5);
        let made = BTreeMap::from([(new[0].runner.clone(), made)]);
        let known = Known {
            pool: &self.pool,
            observed: &self.observed,
            made: &made,
        };
        blame_nodes(&mut new, earlier, known);
        new[0].class.clone()
    }
}

/// What a case is, its failures, newest first, and the gates that passed.
type Case<'a> = (&'a str, Vec<FailureStatus>, &'a [Passed]);

fn all_are(class: Class, cases: &[Case]) {
    for (what, all, passed) in cases {
        assert_eq!(World::passed(passed).class_of_last(all), class, "{what}");
    }
}

#[test]
fn a_node_that_was_not_ready_for_three_attempts_in_a_row_is_to_blame() {
    let no_gate = failure(Reason::GateFailed, Class::Transient, NOT_RUN, 60);
    let blamed = failure(Reason::PodRejected, Class::Node, NOT_OFFERED, 1800);
    let long_ago_or_elsewhere = [passed("node-1", 900), passed("node-2", 1)];
    // Given so many at a time that the list has no place for more, then the next attempt is enough
    let crowd = std::iter::once(0).chain(61..71).map(refused).collect();
    let three = || vec![refused(0), refused(60), refused(120)];
    let with_another = vec![
        refused(0),
        elsewhere(refused(30)),
        refused(60),
        refused(120),
    ];
    let again = vec![refused(0), blamed, refused(1860), refused(1920)];
    all_are(
        Class::Node,
        &[
            ("the third", three(), &[]),
            (
                "one that could not start the gate",
                vec![refused(0), no_gate, refused(120)],
                &[],
            ),
            ("another node's in between", with_another, &[]),
            ("it took a pod long before", three(), &long_ago_or_elsewhere),
            ("again after its time alone", again, &[]),
            ("a crowd before", crowd, &[]),
        ],
    );
}

#[test]
fn a_node_that_was_not_ready_less_often_is_not() {
    let mistake = failure(Reason::PodRejected, Class::Config, NOT_OFFERED, 60);
    let restart = (0..4).map(refused).collect();
    let three_nodes = vec![refused(0), elsewhere(refused(60)), elsewhere(refused(120))];
    let of_the_pod = |at| failure(Reason::PodRejected, Class::Transient, "", at);
    all_are(
        Class::Transient,
        &[
            ("the first", vec![refused(0)], &[]),
            ("the second", vec![refused(0), refused(60)], &[]),
            ("a kubelet that was restarted", restart, &[]),
            ("other nodes", three_nodes, &[]),
            (
                "a mistake of the spec in between",
                vec![refused(0), mistake, refused(120)],
                &[],
            ),
            (
                "it took a pod in between",
                vec![refused(0), refused(60), refused(120)],
                &[passed("node-1", 90)],
            ),
            (
                "long ago",
                vec![refused(0), refused(60), refused(7200)],
                &[],
            ),
            (
                "what no device plugin has caused",
                vec![of_the_pod(0), of_the_pod(60), of_the_pod(120)],
                &[],
            ),
        ],
    );
}

#[test]
fn the_same_fault_twice_in_a_row_is_the_nodes() {
    let plugin = |at| failure(Reason::PodRejected, Class::Transient, NOT_ALLOCATED, at);
    let blamed = FailureStatus {
        class: Class::Node.into(),
        ..gate(802, 3500)
    };
    for (what, all) in [
        (
            "a fabric manager that hangs",
            vec![gate(802, 0), gate(802, 8)],
        ),
        (
            "a device that needs a reset",
            vec![gate(46, 0), gate(46, 8)],
        ),
        ("a plugin that gives no device", vec![plugin(0), plugin(8)]),
        (
            "a finding",
            vec![
                failure(Reason::GateFailed, Class::Transient, "Found", 0),
                failure(Reason::GateFailed, Class::Transient, "Found", 8),
            ],
        ),
        (
            "others in between",
            vec![gate(46, 0), elsewhere(gate(3, 8)), gate(46, 900)],
        ),
        ("again after its quarantine", vec![gate(802, 0), blamed]),
    ] {
        assert_eq!(World::new().class_of_last(&all), Class::Node, "{what}");
    }
}

#[test]
fn a_fault_that_was_there_once_or_passed_is_not() {
    let none = FailureStatus {
        code_name: None,
        ..gate(46, 0)
    };
    let unnamed = |at: i64| FailureStatus {
        code: None,
        at: Time(ago(at)),
        ..none.clone()
    };
    let starved = |at| failure(Reason::GateFailed, Class::Transient, "Starved", at);
    let killed = |at| failure(Reason::GateFailed, Class::Transient, "NodeOutOfMemory", at);
    let unreachable = |at| failure(Reason::RegistrarUnreachable, Class::Transient, "x", at);
    let warming = failure(Reason::NodeWarmingUp, Class::Transient, "CUDA_ERROR", 8);
    all_are(
        Class::Transient,
        &[
            ("the first", vec![gate(46, 0)], &[]),
            // Both pods were there before the first failure
            ("two at once", vec![gate(46, 0), gate(46, 4)], &[]),
            ("another code", vec![gate(46, 0), gate(3, 8)], &[]),
            (
                "another code in between",
                vec![gate(46, 0), gate(3, 8), gate(46, 20)],
                &[],
            ),
            (
                "another node",
                vec![gate(46, 0), elsewhere(gate(46, 8))],
                &[],
            ),
            ("long ago", vec![gate(46, 0), gate(46, 3700)], &[]),
            (
                "a pass in between",
                vec![gate(46, 0), gate(46, 20)],
                &[passed("node-1", 12)],
            ),
            ("without a name", vec![unnamed(0), unnamed(8)], &[]),
            ("the registrar", vec![unreachable(0), unreachable(8)], &[]),
            ("a host without time", vec![starved(0), starved(8)], &[]),
            ("a host without memory", vec![killed(0), killed(8)], &[]),
            (
                "a warm-up before",
                vec![
                    gate(46, 0),
                    FailureStatus {
                        code: Some(46),
                        ..warming
                    },
                ],
                &[],
            ),
        ],
    );
}

#[test]
fn a_pass_of_another_device_does_not_speak_for_the_one_that_failed() {
    let of_device = |device: &str, at| FailureStatus {
        device: Some(device.to_owned()),
        ..gate(46, at)
    };
    let world = World::passed(&[passed("node-1", 12)]);
    let class = |device| world.class_of_last(&[of_device(device, 0), of_device(device, 20)]);
    assert_eq!(class("GPU-1"), Class::Transient);
    assert_eq!(class("GPU-2"), Class::Node);
}

#[test]
fn a_job_speaks_for_its_node_where_it_began_after_the_failure() {
    let class = |started: i64| {
        let job = serde_json::json!({"runner": "pool-job", "node": "node-1", "job": "j",
            "startedAt": Time(ago(started)), "finishedAt": Time(ago(1))});
        let mut world = World::new();
        world.pool.status.last_jobs = vec![serde_json::from_value::<JobStatus>(job).unwrap()];
        world.class_of_last(&[gate(46, 0), gate(46, 20)])
    };
    assert_eq!(class(12), Class::Transient);
    assert_eq!(class(900), Class::Node);
}

#[test]
fn nothing_is_the_nodes_while_it_warms_up() {
    let class = |ready: i64, first: i64| {
        let mut world = World::new();
        first_node(&mut world.observed).ready_since = Some(ago(ready));
        world.class_of_last(&[gate(46, 0), gate(46, first)])
    };
    assert_eq!(class(590, 60), Class::Transient);
    assert_eq!(
        class(650, 60),
        Class::Transient,
        "the first was in its warm-up"
    );
    assert_eq!(class(700, 60), Class::Node);
}

#[test]
fn a_shared_gpu_may_be_busy_for_as_long_as_it_likes() {
    // Shared as the node's labels say, or as the gate alone can see: by MPS, or through a claim
    let labelled = World::labelled("nvidia.com/gpu.replicas", "4");
    let twice = |world: &World, shared, failure: &dyn Fn(i64) -> FailureStatus| {
        let seen = |at| FailureStatus {
            shared,
            ..failure(at)
        };
        world.class_of_last(&[seen(0), seen(8)])
    };
    let hang = |at| failure(Reason::GateFailed, Class::Transient, "Hang", at);
    for (world, shared, class) in [
        (&labelled, false, Class::Transient),
        (&World::new(), true, Class::Transient),
        (&World::new(), false, Class::Node),
    ] {
        for code in [2, 46, 808, 809, 810] {
            assert_eq!(twice(world, shared, &|at| gate(code, at)), class, "{code}");
        }
        assert_eq!(twice(world, shared, &hang), class);
        // What no neighbour can cause: a fabric manager or an MPS server that does not run
        for code in [802, 805, 806, 807] {
            let found = twice(world, shared, &|at| gate(code, at));
            assert_eq!(found, Class::Node, "{code}");
        }
    }
}

#[test]
fn after_a_long_quarantine_for_it_the_first_try_is_enough() {
    let mut world = World::new();
    let entry = |code| QuarantineStatus {
        scope: None,
        node: "node-1".to_owned(),
        device: None,
        class: Class::Node.into(),
        code: Some(code),
        code_name: Some("CUDA_ERROR".to_owned()),
        message: String::new(),
        failures: 3,
        boot_id: None,
        retest: false,
        since: Time(ago(8000)),
        until: Some(Time(ago(800))),
    };
    for (code, class) in [(802, Class::Node), (803, Class::Transient)] {
        world.pool.status.quarantine = vec![entry(code)];
        assert_eq!(world.class_of_last(&[gate(802, 0)]), class, "{code}");
    }
}

/// One reconcile after this failure of a gate on node-1, at a moment; its pod was made a second before.
fn after(pool: &Pool, failure: Failure, nodes: &[Arc<NodeFacts>], at: Timestamp) -> Plan {
    let mut failed = runner(pool, &format!("pool-{at}"), RunnerPhase::Failed);
    failed.created = at - SignedDuration::from_secs(1);
    failed.end = Some(End::Failed(Failure { at, ..failure }));
    let mut world = observed(vec![failed]);
    world.nodes = Some(nodes.to_vec());
    plan(pool, &world, at)
}

/// One reconcile after this failure of a gate on each of so many nodes, of a hundred, within a moment.
fn after_all(
    pool: &mut Pool,
    bad: usize,
    passed: Vec<Passed>,
    remembered: &mut Vec<FailureStatus>,
    at: Timestamp,
) {
    let failed = (1..=bad).map(|number| {
        let mut failed = runner(pool, &format!("pool-{number}-{at}"), RunnerPhase::Failed);
        failed.node = Some(format!("node-{number}"));
        failed.created = at - SignedDuration::from_secs(1);
        let failure = gate_failure(Class::Transient);
        failed.end = Some(End::Failed(Failure { at, ..failure }));
        failed
    });
    let mut world = observed(failed.collect());
    world.nodes = Some(nodes(100));
    world.failures = std::mem::take(remembered);
    world.passed = passed;
    let plan = plan(pool, &world, at);
    pool.status = plan.status;
    *remembered = plan.failures;
}

#[test]
fn a_fault_of_many_nodes_at_a_time_is_as_soon_that_of_each() {
    // Given forty nodes of which a switch or a driver is broken: the status lists the last ten failures
    let (mut pool, mut remembered) = (pool(60), vec![]);
    // When a gate has failed on each of them, then new pods go elsewhere
    after_all(&mut pool, 40, vec![], &mut remembered, NOW);
    assert!(pool.status.quarantine.is_empty());
    let mut world = observed(vec![]);
    world.nodes = Some(nodes(100));
    world.failures = remembered.clone();
    let next = plan(&pool, &world, NOW + SignedDuration::from_secs(30));
    let shuns = next.actions.iter().find_map(|action| match action {
        Action::CreatePod(new) => Some(new.shuns.len()),
        _ => None,
    });
    assert_eq!(shuns, Some(40));
    // ... and when it fails there again, then the fault is that of each
    let again = NOW + SignedDuration::from_secs(60);
    after_all(&mut pool, 40, vec![], &mut remembered, again);
    assert_eq!(pool.status.quarantine.len(), 40);
    // An hour later nothing is remembered
    let later = NOW + SignedDuration::from_hours(3);
    after_all(&mut pool, 0, vec![], &mut remembered, later);
    assert_eq!(remembered, vec![]);
}

fn remembered_of(failures: &[FailureStatus]) -> Vec<FailureStatus> {
    let world = World::new();
    let known = Known {
        pool: &world.pool,
        observed: &world.observed,
        made: &BTreeMap::new(),
    };
    super::remembered(failures.iter(), known, NOW)
}

#[test]
fn a_fault_that_has_passed_is_forgotten_while_that_is_seen() {
    // Given a fault that has left the status
    let (mut pool, mut remembered) = (pool(60), vec![]);
    let mut look = |bad, passed: Vec<Passed>, minutes: i64| {
        let at = NOW + SignedDuration::from_mins(minutes);
        pool.status.last_failures.clear();
        after_all(&mut pool, bad, passed, &mut remembered, at);
        pool.status.quarantine.len()
    };
    assert_eq!(look(1, vec![], 0), 0);
    // When a gate has passed there since, in a pod that is gone when the fault comes again
    let well = Passed {
        created: NOW + SignedDuration::from_secs(60),
        ..passed("node-1", 0)
    };
    look(0, vec![well], 5);
    // Then that is the first time
    assert_eq!(look(1, vec![], 50), 0);
    assert_eq!(look(1, vec![], 55), 1);
}

#[test]
fn what_is_remembered_of_failures_is_bounded() {
    let of = |node: &str, count: i64| {
        let failures = (0..count).map(refused);
        let node = node.to_owned();
        failures.map(move |failure| FailureStatus {
            runner: format!("{node}-{}", failure.runner),
            node: Some(node.clone()),
            ..failure
        })
    };
    let one: Vec<_> = of("node-1", 100).chain(of("node-2", 2)).collect();
    let kept = remembered_of(&one);
    assert_eq!(kept.len(), OF_A_NODE + 2);
    assert!(kept.iter().all(|failure| failure.message.is_empty()));
    let many: Vec<_> = (0..2000)
        .flat_map(|n| of(&format!("node-{n}"), 1))
        .collect();
    assert_eq!(remembered_of(&many).len(), REMEMBERED);
    // One that is in the status and remembered counts once, whatever the message
    let known: Vec<_> = of("node-1", 3).collect();
    assert_eq!(earlier(&known, &kept).len(), kept.len());
}

fn nodes(count: usize) -> Vec<Arc<NodeFacts>> {
    (1..=count).map(|n| node(&format!("node-{n}"))).collect()
}

fn labelled(mut nodes: Vec<Arc<NodeFacts>>, (key, value): (&str, &str)) -> Vec<Arc<NodeFacts>> {
    for node in &mut nodes {
        let labels = &mut Arc::make_mut(node).labels;
        labels.insert(key.to_owned(), value.to_owned());
    }
    nodes
}

fn shunned(pool: &Pool, runners: Vec<Runner>, passed: &[Passed], at: Timestamp) -> Vec<String> {
    let mut world = observed(runners);
    world.nodes = Some(nodes(4));
    world.passed = passed.to_vec();
    let plan = plan(pool, &world, at);
    let new = plan.actions.iter().find_map(|action| match action {
        Action::CreatePod(new) => Some(new.shuns.iter().cloned().collect()),
        _ => None,
    });
    new.expect("a pod is made")
}

#[test]
fn new_pods_go_elsewhere_until_the_node_has_passed_or_an_hour_is_over() {
    for (class, shuns) in [
        (Class::Transient, true),
        (Class::Unknown, true),
        (Class::Internal, false),
    ] {
        let mut pool = pool(1);
        pool.status = after(&pool, gate_failure(class), &nodes(4), NOW).status;
        let at = |seconds| NOW + SignedDuration::from_secs(seconds);
        let expected = if shuns {
            vec!["node-1".to_owned()]
        } else {
            vec![]
        };
        assert_eq!(shunned(&pool, vec![], &[], at(30)), expected, "{class}");
        let well = Passed {
            created: at(5),
            ..passed("node-1", 0)
        };
        assert_eq!(
            shunned(&pool, vec![], &[well], at(30)),
            Vec::<String>::new()
        );
        assert_eq!(shunned(&pool, vec![], &[], at(3601)), Vec::<String>::new());
    }
}

proptest! {
    /// Whatever the code, the pause between tries, and whether the GPU is shared, as the gate or a label says: the node of a
    /// fault that lasts is quarantined with the second or the third of them, for as long as an end says, and longer the next
    /// time. Exempt is what neighbours on a shared GPU cause: out of memory (2), in use (46), and as many clients or
    /// connections of MPS as it takes, or one that ended with another (808 to 810).
    #[test]
    fn a_fault_that_lasts_is_the_nodes_within_three_tries(
        code in prop_oneof![1..1000_i32, proptest::sample::select(OF_OTHERS.to_vec())],
        shared: bool,
        label in proptest::sample::select(vec![
            ("kubernetes.io/os", "linux"),
            ("nvidia.com/gpu.replicas", "1"),
            ("nvidia.com/gpu.replicas", "4"),
            ("nvidia.com/gpu.sharing-strategy", "mps"),
            ("cloud.google.com/gke-gpu-sharing-strategy", "time-sharing"),
        ]),
        pauses in proptest::collection::vec(2..900_i64, 3),
    ) {
        let says_shared = !["1", "linux"].contains(&label.1);
        let is_exempt = (shared || says_shared) && [2, 46, 808, 809, 810].contains(&code);
        let nodes = labelled(nodes(4), label);
        let failure = || Failure { code: Some(code), shared, ..gate_failure(Class::Transient) };
        let mut pool = pool(1);
        let mut at = NOW;
        let mut tries = 0;
        for pause in pauses {
            at += SignedDuration::from_secs(pause);
            tries += 1;
            pool.status = after(&pool, failure(), &nodes, at).status;
            if !pool.status.quarantine.is_empty() {
                break;
            }
        }
        prop_assert!(tries <= 3);
        prop_assert_eq!(pool.status.quarantine.is_empty(), is_exempt);
        let Some(entry) = pool.status.quarantine.first() else {
            return Ok(());
        };
        prop_assert_eq!(&entry.class, &FailureClass::from(Class::Node));
        let until = entry.until.as_ref().expect("an end").0;
        prop_assert!(until > at);
        // At its end the node is tried, and fails again
        pool.status = after(&pool, failure(), &nodes, until).status;
        let entry = &pool.status.quarantine[0];
        prop_assert_eq!(entry.failures, 2);
        prop_assert!(entry.until.as_ref().unwrap().0.duration_since(until) > until.duration_since(at));
    }

    /// Whatever fails in which order: who has to act is changed for faults that may pass alone, and for no fault of the
    /// spec, of ours, or of nobody known.
    #[test]
    fn only_what_may_pass_becomes_the_nodes(
        events in proptest::collection::vec((0..Class::ALL.len(), 0..3_usize, 0..3_i32), 1..12),
        gap in 0i64..600,
    ) {
        let names = [NOT_RUN, NOT_OFFERED, "CUDA_ERROR"];
        let all: Vec<_> = events.iter().zip(0i64..)
            .map(|((class, name, code), n)| FailureStatus {
                code: (*code > 0).then_some(*code),
                ..failure(Reason::GateFailed, Class::ALL[*class], names[*name], n * gap)
            })
            .collect();
        let before = all[0].class.clone();
        let after = World::new().class_of_last(&all);
        if before != after {
            prop_assert_eq!(before, Class::Transient);
            prop_assert_eq!(after, Class::Node);
            prop_assert!(all.len() >= 2);
        }
    }
}
