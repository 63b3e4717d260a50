//! Given a device whose time is over, then one pod tries it, and its rule stays until that has passed.

use std::collections::BTreeMap;
use std::sync::Arc;

use gate_report::Class;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::device_taints::{self, Owner};
use crate::fixture::{
    NOW, ago, device_entry, gate_failure, node, observed, pool, published_device, runner,
};
use crate::model::node_marks::Quarantined;
use crate::model::pool::{GpuRequest, Pool, Size};
use crate::model::published::Published;
use crate::model::runner::Waiting;
use crate::{Action, NewRunner, Observed, Passed, Plan};

const NODE: &str = "node-1";

fn device(number: usize) -> PublishedDevice {
    published_device(NODE, number, &format!("GPU-{number}"))
}

fn template(request: &Value) -> ResourceClaimSpec {
    serde_json::from_value(json!({"devices": {"requests": [request]}})).unwrap()
}

fn one() -> Value {
    json!({"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}})
}

/// An entry of a device whose time is over since so many seconds.
fn over(number: usize, since: i64) -> QuarantineStatus {
    QuarantineStatus {
        retest: true,
        ..device_entry(&format!("GPU-{number}"), ago(since + 600), ago(since))
    }
}

/// A pool of so many runners that claim a device each.
fn claiming(size: usize, entries: Vec<QuarantineStatus>) -> Pool {
    let mut pool = pool(1);
    let spec = Arc::make_mut(pool.spec.as_mut().unwrap());
    spec.gpu = GpuRequest::Claim("one-gpu".to_owned());
    spec.size = Size {
        min: size,
        max: size,
    };
    pool.status.quarantine = entries;
    pool
}

/// A node with four devices, and a template for one.
fn world(runners: Vec<Runner>) -> Observed {
    let mut world = observed(runners);
    world.nodes = Some(vec![node(NODE)]);
    world.published = Some(Arc::new(Published::new((0..4).map(device))));
    world.taints_devices = true;
    world.claim_template = ClaimTemplate::Read(Arc::new(template(&one())));
    world
}

fn created(plan: &Plan) -> Vec<&NewRunner> {
    let all = plan.actions.iter().filter_map(|action| match action {
        Action::CreatePod(new) => Some(new),
        _ => None,
    });
    all.collect()
}

/// The devices that new pods of a plan try again.
fn tried(plan: &Plan) -> Vec<&str> {
    let retests = created(plan)
        .into_iter()
        .filter_map(|new| new.retest.as_ref());
    retests.map(|retest| retest.uuid.as_str()).collect()
}

fn drained(plan: &Plan) -> Vec<&str> {
    let all = plan.actions.iter().filter_map(|action| match action {
        Action::Drain(target) => Some(target.name.as_str()),
        _ => None,
    });
    all.collect()
}

/// The devices that rules keep off where a pool's status says this.
fn ruled(entries: &[QuarantineStatus], world: &Observed, now: Timestamp) -> Vec<String> {
    let owner = Owner {
        name: "role".to_owned(),
        uid: "0a1b2c3d".to_owned(),
    };
    let held: Vec<Quarantined> = entries
        .iter()
        .map(|entry| Quarantined {
            pool: pool(1).key,
            entry: entry.clone(),
        })
        .collect();
    let published = world.published.as_deref().unwrap();
    let (changes, _) = device_taints::plan(Effect::NoSchedule, &owner, &held, published, &[], now);
    let rules = changes.into_iter().filter_map(|change| match change {
        device_taints::Change::Apply(rule) => Some(rule.uuid),
        device_taints::Change::Delete { .. } => None,
    });
    rules.collect()
}

fn retesting(pool: &Pool, name: &str, phase: RunnerPhase, number: usize) -> Runner {
    let mut runner = runner(pool, name, phase);
    runner.retests = Some(format!("GPU-{number}"));
    runner.created = ago(10);
    runner
}

#[test]
fn one_of_the_new_pods_tries_the_device_and_the_rule_stays() {
    // However long ago its time was over
    for since in [0, 700, 86_399] {
        let pool = claiming(3, vec![over(0, since)]);
        let world = world(vec![]);
        let plan = crate::plan(&pool, &world, NOW);
        assert_eq!(
            (created(&plan).len(), tried(&plan)),
            (3, vec!["GPU-0"]),
            "{since}"
        );
        assert_eq!(ruled(&plan.status.quarantine, &world, NOW), ["GPU-0"]);
        let told = plan.notices.iter().find(|n| n.reason == "DeviceRetest");
        assert!(told.unwrap().note.contains("GPU-0"), "{told:?}");
    }
}

#[test]
fn the_claim_is_the_templates_for_that_device_alone() {
    let request = json!({"name": "gpu", "exactly": {
        "deviceClassName": "gpu.nvidia.com",
        "selectors": [{"cel": {"expression": "true"}}],
        "tolerations": [{"key": "theirs", "operator": "Exists"}],
    }});
    let claim = narrowed(&template(&request), &device(0)).unwrap();
    assert_eq!(
        serde_json::to_value(claim).unwrap(),
        json!({"devices": {"requests": [{"name": "gpu", "exactly": {
            "deviceClassName": "gpu.nvidia.com",
            "selectors": [
                {"cel": {"expression": "true"}},
                {"cel": {"expression": "device.driver == \"gpu.nvidia.com\" && has(device.attributes[\"gpu.nvidia.com\"].uuid) && device.attributes[\"gpu.nvidia.com\"].uuid == \"GPU-0\""}},
            ],
            "tolerations": [
                {"key": "theirs", "operator": "Exists"},
                {"key": "cudarunner.dev/cuda-smoke-failed", "operator": "Exists", "effect": "NoSchedule"},
            ],
        }}]}})
    );
}

#[test]
fn what_is_no_single_device_is_not_narrowed() {
    let exactly = |field: &str, value: Value| {
        let mut request = one();
        request["exactly"][field] = value;
        template(&request)
    };
    let full = |one: Value, count: usize| Value::from(vec![one; count]);
    let selector = json!({"cel": {"expression": "true"}});
    let toleration = json!({"operator": "Exists"});
    let two = serde_json::from_value(json!({"devices": {"requests": [one(), one()]}})).unwrap();
    let cases = [
        (template(&one()), true),
        (exactly("count", json!(1)), true),
        (exactly("allocationMode", json!("ExactCount")), true),
        (exactly("adminAccess", json!(false)), true),
        (exactly("count", json!(2)), false),
        (exactly("allocationMode", json!("All")), false),
        (exactly("allocationMode", json!("Later")), false),
        (exactly("adminAccess", json!(true)), false),
        (exactly("selectors", full(selector.clone(), 31)), true),
        (exactly("selectors", full(selector, 32)), false),
        (exactly("tolerations", full(toleration.clone(), 15)), true),
        (exactly("tolerations", full(toleration, 16)), false),
        (
            template(&json!({"name": "gpu", "firstAvailable": []})),
            false,
        ),
        (two, false),
        (ResourceClaimSpec::default(), false),
    ];
    for (template, is_suited) in cases {
        let claim = narrowed(&template, &device(0));
        assert_eq!(claim.is_some(), is_suited, "{template:?}");
    }
    for uuid in ["", "GPU-\"", "GPU-1\\", "a b", "ä"] {
        let odd = PublishedDevice {
            uuid: Some(uuid.to_owned()),
            ..device(0)
        };
        assert_eq!(narrowed(&template(&one()), &odd), None, "{uuid}");
    }
}

#[test]
fn where_no_claim_can_be_made_time_ends_it() {
    // Given a template that asks for two devices, one that cannot be read, or a pool without one
    let two = json!({"name": "gpu", "exactly": {"deviceClassName": "a", "count": 2}});
    let two = ClaimTemplate::Read(Arc::new(template(&two)));
    let name = "nvidia.com/gpu".to_owned();
    let by_count = GpuRequest::Resource { name, count: 1 };
    for (template, gpu) in [
        (two, None),
        (ClaimTemplate::Unreadable, None),
        (ClaimTemplate::Unread, Some(by_count)),
    ] {
        let mut pool = claiming(2, vec![over(0, 1)]);
        if let Some(gpu) = gpu {
            Arc::make_mut(pool.spec.as_mut().unwrap()).gpu = gpu;
        }
        let mut world = world(vec![]);
        Arc::make_mut(&mut world.nodes.as_mut().unwrap()[0]).offers = BTreeMap::new();
        world.claim_template = template;
        let plan = crate::plan(&pool, &world, NOW);
        // Then no pod tolerates the taint, which goes
        assert_eq!(tried(&plan), [] as [&str; 0]);
        let entries = &plan.status.quarantine;
        assert!(entries.iter().all(|e| !e.retest), "{entries:?}");
        assert_eq!(ruled(entries, &world, NOW), [] as [&str; 0]);
        // And the entry ends by itself
        pool.status = plan.status;
        let later = NOW + SignedDuration::from_secs(601);
        assert_eq!(crate::plan(&pool, &world, later).status.quarantine, []);
    }
    // A template that could not be read just now changes nothing
    let pool = claiming(2, vec![over(0, 80_000)]);
    let mut world = world(vec![]);
    world.claim_template = ClaimTemplate::Unread;
    let plan = crate::plan(&pool, &world, NOW);
    assert_eq!(tried(&plan), [] as [&str; 0]);
    assert_eq!(ruled(&plan.status.quarantine, &world, NOW), ["GPU-0"]);
}

#[test]
fn an_entry_of_a_suited_pool_says_from_the_beginning_how_it_ends() {
    let pool = claiming(1, vec![]);
    let mut failed = runner(&pool, "pool-aaaaa", RunnerPhase::Failed);
    failed.end = Some(End::Failed(wrong_result(0)));
    let plan = crate::plan(&pool, &world(vec![failed]), NOW);
    assert!(
        plan.status.quarantine[0].retest,
        "{:?}",
        plan.status.quarantine
    );
}

#[test]
fn a_pool_that_makes_no_runners_for_a_day_lets_the_device_go() {
    let left = |since: i64| {
        let pool = claiming(0, vec![over(0, since)]);
        let plan = crate::plan(&pool, &world(vec![]), NOW);
        plan.status.quarantine.len()
    };
    assert_eq!((left(86_399), left(86_400)), (1, 0));
}

/// The gate found that a device computes wrongly.
fn wrong_result(number: usize) -> crate::model::runner::Failure {
    let mut failure = gate_failure(Class::Device);
    failure.code = None;
    failure.code_name = Some("WrongResult".to_owned());
    failure.device = Some(format!("GPU-{number}"));
    failure.at = NOW;
    failure
}

#[test]
fn no_device_is_tried_out_of_turn() {
    let plan_with = |change: &dyn Fn(&mut Pool, &mut Observed)| {
        let mut pool = claiming(3, vec![over(0, 1), over(1, 2)]);
        let mut world = world(vec![]);
        change(&mut pool, &mut world);
        let plan = crate::plan(&pool, &world, NOW);
        let tried: Vec<String> = tried(&plan).into_iter().map(str::to_owned).collect();
        tried
    };
    // The one whose time has been over for longest
    assert_eq!(plan_with(&|_, _| {}), ["GPU-1"]);
    let in_phase = |phase: RunnerPhase| {
        plan_with(&move |pool, world| {
            world.runners = vec![retesting(pool, "pool-aaaaa", phase, 1)];
        })
    };
    for phase in [
        RunnerPhase::Unscheduled,
        RunnerPhase::Preparing,
        RunnerPhase::Gated,
        RunnerPhase::Terminating,
    ] {
        assert_eq!(in_phase(phase), [] as [&str; 0], "{phase:?}");
    }
    // One that has passed holds its device, and is in nobody's way
    assert_eq!(in_phase(RunnerPhase::Idle), ["GPU-0"]);
    // A pod that is not seen yet may be one that tries a device
    let name = || ["pool-aaaaa".to_owned()].into();
    assert_eq!(
        plan_with(&|_, world| world.expected = name()),
        [] as [&str; 0]
    );
    assert_eq!(
        plan_with(&|_, world| world.unanswered = name()),
        [] as [&str; 0]
    );
    // What its driver taints it leaves to the driver; a taint without effect is no hindrance
    for (effect, device_tried) in [("NoSchedule", "GPU-0"), ("None", "GPU-1")] {
        let tainted = plan_with(&|_, world| {
            let all = (0..4).map(|number| PublishedDevice {
                taints: if number == 1 {
                    vec![format!("gpu.nvidia.com/xid=79:{effect}")]
                } else {
                    vec![]
                },
                ..device(number)
            });
            world.published = Some(Arc::new(Published::new(all)));
        });
        assert_eq!(tainted, [device_tried]);
    }
    // Nothing is tried on a node that is quarantined itself
    let of_node = QuarantineStatus {
        device: None,
        scope: None,
        class: Class::Node.into(),
        code: Some(719),
        retest: false,
        until: Some(Time(NOW + SignedDuration::from_mins(5))),
        ..over(0, 1)
    };
    let avoided = plan_with(&|pool, _| pool.status.quarantine.push(of_node.clone()));
    assert_eq!(avoided, [] as [&str; 0]);
}

#[test]
fn a_pass_lifts_it_even_where_another_runner_has_passed_since() {
    let pool = claiming(2, vec![over(0, 1)]);
    let mut idle = retesting(&pool, "pool-aaaaa", RunnerPhase::Idle, 0);
    idle.devices = vec!["GPU-0".to_owned()];
    let mut world = world(vec![idle]);
    let passed = |seconds, number| Passed {
        node: NODE.to_owned(),
        created: ago(seconds),
        devices: vec![format!("GPU-{number}")],
    };
    world.passed = vec![passed(5, 1)];
    assert_eq!(crate::plan(&pool, &world, NOW).status.quarantine.len(), 1);
    world.passed = vec![passed(10, 0), passed(5, 1)];
    assert_eq!(crate::plan(&pool, &world, NOW).status.quarantine, []);
    // And where the device is in another node by now
    world.passed[0].node = "node-2".to_owned();
    assert_eq!(crate::plan(&pool, &world, NOW).status.quarantine.len(), 1);
    let there = PublishedDevice {
        node: "node-2".to_owned(),
        ..device(0)
    };
    let all = (1..4).map(device).chain([
        there,
        PublishedDevice {
            node: "node-2".to_owned(),
            ..device(7)
        },
    ]);
    world.published = Some(Arc::new(Published::new(all)));
    assert_eq!(crate::plan(&pool, &world, NOW).status.quarantine, []);
}

#[test]
fn a_failure_doubles_its_time() {
    let pool = claiming(2, vec![over(0, 1)]);
    let mut failed = retesting(&pool, "pool-aaaaa", RunnerPhase::Failed, 0);
    failed.end = Some(End::Failed(wrong_result(0)));
    for template in [world(vec![]).claim_template, ClaimTemplate::Unread] {
        let mut world = world(vec![failed.clone()]);
        world.claim_template = template;
        let plan = crate::plan(&pool, &world, NOW);
        let [entry] = plan.status.quarantine.as_slice() else {
            panic!("{:?}", plan.status.quarantine);
        };
        assert_eq!((entry.failures, entry.retest), (2, true));
        let until = entry.until.as_ref().unwrap().0;
        assert_eq!(until, NOW + SignedDuration::from_mins(60));
        assert_eq!(ruled(&plan.status.quarantine, &world, NOW), ["GPU-0"]);
    }
}

#[test]
fn an_attempt_that_tells_nothing_is_made_again_later() {
    let rested = |runner: Runner| {
        let pool = claiming(1, vec![over(0, 100)]);
        let world = world(vec![runner]);
        let plan = crate::plan(&pool, &world, NOW);
        let until = plan.status.quarantine[0].until.as_ref().unwrap().0;
        let drained = drained(&plan).len();
        (
            until.duration_since(NOW).as_secs(),
            drained,
            tried(&plan).len(),
        )
    };
    let pool = claiming(1, vec![]);
    // Given one that waits for its device
    let mut waiting = retesting(&pool, "pool-aaaaa", RunnerPhase::Unscheduled, 0);
    assert_eq!(rested(waiting.clone()), (-100, 0, 0));
    waiting.created = ago(60);
    assert_eq!(rested(waiting), (600, 1, 0));
    // Given one that fails for another reason
    let mut failed = retesting(&pool, "pool-aaaaa", RunnerPhase::Failed, 0);
    failed.end = Some(End::Failed(gate_failure(Class::Transient)));
    assert_eq!(rested(failed), (600, 0, 0));
    // One of another device says nothing of this one
    let mut other = retesting(&pool, "pool-aaaaa", RunnerPhase::Unscheduled, 1);
    other.created = ago(60);
    assert_eq!(rested(other).0, -100);
}

#[test]
fn a_runner_that_waits_in_vain_makes_room() {
    let pool = claiming(2, vec![over(0, 1)]);
    let idle = runner(&pool, "pool-aaaaa", RunnerPhase::Idle);
    let mut waiting = runner(&pool, "pool-bbbbb", RunnerPhase::Unscheduled);
    // Given one that the scheduler has not looked at yet
    let plan = crate::plan(&pool, &world(vec![idle.clone(), waiting.clone()]), NOW);
    assert_eq!(drained(&plan), [] as [&str; 0]);
    // Given one for which it has found no device, then that goes, and then another comes
    waiting.waiting = Some(Waiting {
        reason: "Unschedulable".into(),
        message: "cannot allocate all claims".to_owned(),
        container: None,
        image: None,
    });
    let plan = crate::plan(&pool, &world(vec![idle.clone(), waiting.clone()]), NOW);
    assert_eq!(
        (drained(&plan), created(&plan).len()),
        (vec!["pool-bbbbb"], 0)
    );
    let plan = crate::plan(&pool, &world(vec![idle.clone()]), NOW);
    assert_eq!(tried(&plan), ["GPU-0"]);
    // While none may be made, none goes
    let mut refused = world(vec![idle.clone(), waiting.clone()]);
    refused.access = Access::Unchecked;
    assert_eq!(drained(&crate::plan(&pool, &refused, NOW)), [] as [&str; 0]);
    // And one at a time
    let mut three = pool.clone();
    Arc::make_mut(three.spec.as_mut().unwrap()).size = Size { min: 3, max: 3 };
    let mut other = waiting.clone();
    other.name = "pool-ddddd".to_owned();
    let plan = crate::plan(&three, &world(vec![waiting, other]), NOW);
    assert_eq!(drained(&plan), [] as [&str; 0], "one is missing");
    assert_eq!(tried(&plan), ["GPU-0"]);
}

#[test]
fn a_claim_belongs_to_its_pod() {
    let retest = Retest {
        uuid: "GPU-0".to_owned(),
        node: NODE.to_owned(),
        suffix: "x".to_owned(),
        claim: template(&one()),
    };
    let claim = claim("ci", "pool-aaaaa", "uid-1", &retest);
    assert_eq!(claim.metadata.name.as_deref(), Some("pool-aaaaa-retest-x"));
    let owners = claim.metadata.owner_references.unwrap();
    let owner = (
        owners[0].kind.as_str(),
        owners[0].uid.as_str(),
        owners[0].controller,
    );
    assert_eq!(owner, ("Pod", "uid-1", Some(true)));
    assert_eq!(claim.spec, Some(retest.claim));
}

/// What happens to the runners of a pool in one step.
#[derive(Clone, Copy, Debug)]
enum Event {
    Wait(i64),
    Schedule,
    Pass,
    Fail(Class),
    Finish,
    Template(bool),
    Hide(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_i64..4_000).prop_map(Event::Wait),
        3 => Just(Event::Schedule),
        3 => Just(Event::Pass),
        3 => prop_oneof![Just(Class::Device), Just(Class::Transient)].prop_map(Event::Fail),
        2 => Just(Event::Finish),
        1 => any::<bool>().prop_map(Event::Template),
        1 => any::<bool>().prop_map(Event::Hide),
    ]
}

/// A pool, its pods, and the time.
struct Life {
    pool: Pool,
    world: Observed,
    now: Timestamp,
    /// Pods that were made and that the watch does not show.
    hidden: Option<Vec<Runner>>,
    seed: u64,
}

impl Life {
    fn new() -> Self {
        Self {
            pool: claiming(3, vec![over(0, 1), over(1, -30)]),
            world: world(vec![]),
            now: NOW,
            hidden: None,
            seed: 7,
        }
    }

    /// The first pod in this phase.
    fn first(&mut self, phase: RunnerPhase) -> Option<&mut Runner> {
        let mut all = self.world.runners.iter_mut();
        all.find(|r| r.phase == phase)
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Wait(seconds) => self.now = now + SignedDuration::from_secs(seconds),
            Event::Schedule => {
                if let Some(runner) = self.first(RunnerPhase::Unscheduled) {
                    runner.phase = RunnerPhase::Gated;
                    runner.node = Some(NODE.to_owned());
                    runner.since = now;
                }
            }
            Event::Pass => {
                if let Some(runner) = self.first(RunnerPhase::Gated) {
                    runner.phase = RunnerPhase::Idle;
                    runner.gate_passed = true;
                    runner.since = now;
                    let device = runner.retests.clone();
                    runner.devices = vec![device.unwrap_or_else(|| "GPU-3".to_owned())];
                    let passed = Passed {
                        node: NODE.to_owned(),
                        created: runner.created,
                        devices: runner.devices.clone(),
                    };
                    self.world.passed.push(passed);
                }
            }
            Event::Fail(class) => {
                if let Some(runner) = self.first(RunnerPhase::Gated) {
                    let mut failure = wrong_result(2);
                    failure.class = class;
                    failure.at = now;
                    failure.device.clone_from(&runner.retests);
                    runner.phase = RunnerPhase::Failed;
                    runner.since = now;
                    runner.end = Some(End::Failed(failure));
                }
            }
            Event::Finish => {
                let idle = |r: &Runner| r.phase == RunnerPhase::Idle;
                if let Some(place) = self.world.runners.iter().position(idle) {
                    self.world.runners.remove(place);
                }
            }
            Event::Template(readable) => {
                self.world.claim_template = if readable {
                    ClaimTemplate::Read(Arc::new(template(&one())))
                } else {
                    ClaimTemplate::Unreadable
                };
            }
            Event::Hide(true) => self.hidden = Some(self.hidden.take().unwrap_or_default()),
            Event::Hide(false) => {
                let shown = self.hidden.take().unwrap_or_default();
                self.world.runners.extend(shown);
                self.world.expected.clear();
            }
        }
    }

    /// One reconcile.
    fn reconcile(&mut self) -> Plan {
        self.seed += 1;
        self.world.seed = self.seed;
        let plan = crate::plan(&self.pool, &self.world, self.now);
        for action in &plan.actions {
            match action {
                Action::CreatePod(new) => {
                    let mut made = runner(&self.pool, &new.name, RunnerPhase::Unscheduled);
                    made.created = self.now;
                    made.since = self.now;
                    made.avoids = new.avoids.clone();
                    made.retests = new.retest.as_ref().map(|retest| retest.uuid.clone());
                    if let Some(hidden) = &mut self.hidden {
                        self.world.expected.insert(made.name.clone());
                        hidden.push(made);
                    } else {
                        self.world.runners.push(made);
                    }
                }
                Action::Drain(gone) | Action::DeletePod(gone) => {
                    self.world.runners.retain(|r| r.name != gone.name);
                }
                _ => {}
            }
        }
        self.pool.status = plan.status.clone();
        plan
    }
}

proptest! {
    #[test]
    fn one_device_at_a_time_and_none_that_no_rule_keeps_off(
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut life = Life::new();
        for event in events {
            life.happen(event);
            let before = life.pool.status.quarantine.clone();
            let plan = life.reconcile();
            let entries = &life.pool.status.quarantine;
            let rules = ruled(entries, &life.world, life.now);
            // A claim tolerates the taint of a device that a rule of ours keeps off
            for uuid in tried(&plan) {
                prop_assert!(rules.iter().any(|rule| rule == uuid), "{uuid} {entries:?}");
            }
            // One pod at a time is on its way to a verdict, shown or not
            let pods = life.world.runners.iter().chain(life.hidden.iter().flatten());
            let trying = pods.filter(|r| r.retests.is_some() && !r.gate_passed && r.end.is_none());
            prop_assert!(trying.count() <= 1);
            // A rule goes where its entry is lifted or has a reason to end by time, and not otherwise
            for entry in before.iter().filter(|e| e.retest) {
                let uuid = entry.device.clone().unwrap();
                let now = entries.iter().find(|e| e.device == entry.device);
                if let Some(now) = now {
                    prop_assert!(rules.contains(&uuid) || !now.retest, "{uuid} {entries:?}");
                    continue;
                }
                let until = entry.until.as_ref().unwrap().0;
                let day = SignedDuration::from_hours(24);
                let passed = life.world.passed.iter().any(|p| p.devices.contains(&uuid));
                prop_assert!(
                    passed || life.now >= until + day,
                    "{uuid} was lifted without a pass"
                );
            }
        }
    }
}
