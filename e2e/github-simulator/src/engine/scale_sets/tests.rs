#![allow(
    clippy::unwrap_used,
    reason = "what is missing in a test makes it fail"
)]

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde_json::Value;

use super::*;
use crate::{
    engine::{self, NewRun},
    fixtures,
    rest::runners,
    state::{JobTemplate, MessageSession, RunnerGroup, ScaleSetLabel, Scope, Session, Settings},
};

const LABELS: [&str; 2] = ["self-hosted", "cuda"];

struct Stage {
    world: World,
    now: Timestamp,
}

impl Stage {
    fn new() -> Self {
        let mut world = World::new("https://github.test", Settings::default());
        fixtures::tensor_wasm(&mut world);
        let now = world.now();
        Self { world, now }
    }

    fn set(&mut self, name: &str, capacity: usize) -> u64 {
        let id = self.world.next_id();
        let labels = LABELS
            .iter()
            .map(|label| ScaleSetLabel {
                kind: "System".to_owned(),
                name: (*label).to_owned(),
            })
            .collect();
        let set = ScaleSet {
            id,
            scope: Scope::Organization("craton-co".to_owned()),
            name: name.to_owned(),
            group: 1,
            labels,
            disable_update: true,
            created_at: self.now,
            session: None,
            changes: std::collections::VecDeque::new(),
            messages: BTreeMap::new(),
            last_message: 0,
            offers: BTreeSet::new(),
        };
        self.world.scale_sets.insert(id, set);
        self.listen(id, capacity);
        id
    }

    fn listen(&mut self, set: u64, capacity: usize) {
        let session = MessageSession {
            id: format!("session-{set}"),
            owner: "test".to_owned(),
            capacity,
            tokens: BTreeMap::new(),
            open_calls: 0,
            last_seen: self.now,
        };
        self.world.scale_sets.get_mut(&set).unwrap().session = Some(session);
        pump(&mut self.world, self.now);
    }

    fn advertise(&mut self, set: u64, capacity: usize) {
        let set = self.world.scale_sets.get_mut(&set).unwrap();
        set.session.as_mut().unwrap().capacity = capacity;
        pump(&mut self.world, self.now);
    }

    /// Queues so many jobs of one run.
    fn queue(&mut self, count: usize) -> Vec<u64> {
        let repository = self.world.repository(fixtures::TENSOR_WASM).unwrap();
        let workflow = *repository.workflows.keys().next().unwrap();
        let template = JobTemplate {
            key: "job".to_owned(),
            labels: vec!["CUDA".to_owned()],
            ..JobTemplate::default()
        };
        let new = NewRun {
            repository: fixtures::TENSOR_WASM.to_owned(),
            workflow,
            event: "push".to_owned(),
            branch: "main".to_owned(),
            pull_request: None,
            fork: None,
            jobs: Some(vec![template; count]),
            conclusion: None,
        };
        let run = engine::create_run(&mut self.world, new, self.now).unwrap();
        self.world.runs[&run].jobs.iter().copied().collect()
    }

    /// An ephemeral runner that is online.
    fn runner(&mut self, name: &str, set: Option<u64>) -> u64 {
        let new = runners::New {
            scope: Scope::Organization("craton-co".to_owned()),
            name: name.to_owned(),
            labels: LABELS.map(str::to_owned).into(),
            group: 1,
            ephemeral: true,
            jit: true,
            default_labels: false,
            scale_set: set,
        };
        let id = runners::add(&mut self.world, new, self.now);
        let runner = self.world.runners.get_mut(&id).unwrap();
        runner.session = Some(Session {
            id: name.to_owned(),
            open_calls: 1,
            last_seen: self.now,
        });
        pump(&mut self.world, self.now);
        id
    }

    fn numbers(&self, set: u64) -> Statistics {
        statistics(&self.world, &self.world.scale_sets[&set], self.now)
    }

    fn assigned(&self, set: u64) -> usize {
        self.numbers(set).total_assigned_jobs
    }

    fn next(&mut self, set: u64, last: u64) -> Option<(u64, Vec<Value>)> {
        let message = next_message(&mut self.world, set, last, self.now)?;
        Some((message.id, serde_json::from_str(&message.body).unwrap()))
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        pump(&mut self.world, self.now);
    }
}

fn kinds(changes: &[Value]) -> Vec<&str> {
    changes
        .iter()
        .map(|change| change["messageType"].as_str().unwrap())
        .collect()
}

#[test]
fn capacity_limits_what_is_assigned() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 1);
    let jobs = stage.queue(3);
    assert_eq!(stage.assigned(set), 1);
    assert_eq!(stage.numbers(set).total_available_jobs, 2);
    assert_eq!(stage.world.jobs[&jobs[0]].scale_set, Some(set), "in order");
    stage.advertise(set, 3);
    assert_eq!(stage.assigned(set), 3);
    stage.advertise(set, 0);
    assert_eq!(stage.assigned(set), 3, "nothing is revoked");
}

#[test]
fn a_running_job_takes_room() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 1);
    let jobs = stage.queue(2);
    let runner = stage.runner("one", Some(set));
    engine::acquire(&mut stage.world, jobs[0], runner, stage.now).unwrap();
    pump(&mut stage.world, stage.now);
    let numbers = stage.numbers(set);
    assert_eq!(
        (numbers.total_assigned_jobs, numbers.total_running_jobs),
        (1, 1)
    );
    assert_eq!(
        (numbers.total_busy_runners, numbers.total_idle_runners),
        (1, 0)
    );
    engine::complete(&mut stage.world, jobs[0], Conclusion::Success, stage.now);
    pump(&mut stage.world, stage.now);
    assert_eq!(stage.world.jobs[&jobs[1]].scale_set, Some(set));
    assert_eq!(stage.numbers(set).total_registered_runners, 0);
}

#[test]
fn two_sets_are_filled_up_to_their_capacities() {
    let mut stage = Stage::new();
    let large = stage.set("large", 5);
    let small = stage.set("small", 1);
    stage.queue(4);
    assert_eq!((stage.assigned(small), stage.assigned(large)), (1, 3));
    stage.queue(4);
    assert_eq!(
        (stage.assigned(small), stage.assigned(large)),
        (1, 3),
        "the second run waits for the first"
    );
}

#[test]
fn a_set_and_its_runners_keep_to_each_other() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 0);
    let own = stage.runner("own", Some(set));
    let jobs = stage.queue(2);
    let phase = |stage: &Stage, job| stage.world.jobs[&job].phase.clone();
    assert_eq!(
        phase(&stage, jobs[0]),
        JobPhase::Queued,
        "not for any runner"
    );
    stage.advertise(set, 1);
    assert!(matches!(phase(&stage, jobs[0]), JobPhase::Assigned { runner, .. } if runner == own));
    engine::remove_runner(&mut stage.world, own, stage.now);
    assert_eq!(
        stage.assigned(set),
        1,
        "it waits for another runner of the set"
    );
    let ordinary = stage.runner("ordinary", None);
    assert_eq!(phase(&stage, jobs[0]), JobPhase::Queued);
    assert!(
        matches!(phase(&stage, jobs[1]), JobPhase::Assigned { runner, .. } if runner == ordinary)
    );
}

#[test]
fn an_idle_ordinary_runner_comes_first() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 5);
    stage.runner("ordinary", None);
    let jobs = stage.queue(2);
    assert_eq!(stage.world.jobs[&jobs[0]].scale_set, None);
    assert_eq!(stage.world.jobs[&jobs[1]].scale_set, Some(set));
    assert_eq!(stage.numbers(set).total_available_jobs, 0);
}

#[test]
fn a_group_that_hides_from_the_repository_gets_nothing() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 5);
    let hidden = RunnerGroup {
        id: 7,
        name: "hidden".to_owned(),
        selected: Some(["craton-co/other".to_owned()].into()),
    };
    let owner = stage.world.organizations.get_mut("craton-co").unwrap();
    owner.groups.insert(7, hidden);
    stage.world.scale_sets.get_mut(&set).unwrap().group = 7;
    stage.queue(1);
    let numbers = stage.numbers(set);
    assert_eq!(
        (numbers.total_assigned_jobs, numbers.total_available_jobs),
        (0, 0)
    );
}

#[test]
fn jobs_of_an_ended_session_are_queued_again() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 3);
    let jobs = stage.queue(3);
    let busy = stage.runner("busy", Some(set));
    engine::acquire(&mut stage.world, jobs[0], busy, stage.now).unwrap();
    let offered = stage.runner("offered", Some(set));
    assert_eq!(stage.world.runners[&offered].job, Some(jobs[1]));
    assert!(end_session(&mut stage.world, set, stage.now));
    assert!(!end_session(&mut stage.world, set, stage.now));
    assert_eq!(stage.world.runners[&offered].job, None);
    let numbers = stage.numbers(set);
    assert_eq!(
        (numbers.total_assigned_jobs, numbers.total_available_jobs),
        (1, 2)
    );
    let (_, reported) = stage.next(set, 0).unwrap();
    assert_eq!(
        kinds(&reported),
        ["JobStarted"],
        "what was taken back is not reported"
    );
    stage.listen(set, 3);
    assert_eq!(stage.assigned(set), 3);
}

#[test]
fn a_listener_that_does_not_poll_loses_its_session() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 1);
    stage.queue(1);
    stage.pass(120);
    assert_eq!(stage.assigned(set), 1);
    stage.pass(1);
    assert_eq!(stage.assigned(set), 0);
    assert!(stage.world.scale_sets[&set].session.is_none());
}

#[test]
fn a_deleted_set_takes_its_idle_runners_along() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 2);
    let jobs = stage.queue(2);
    let busy = stage.runner("busy", Some(set));
    engine::acquire(&mut stage.world, jobs[0], busy, stage.now).unwrap();
    let idle = stage.runner("idle", Some(set));
    assert!(delete(&mut stage.world, set, stage.now));
    assert!(stage.world.runners.contains_key(&busy));
    assert!(!stage.world.runners.contains_key(&idle));
    assert_eq!(stage.world.jobs[&jobs[1]].phase, JobPhase::Queued);
    assert_eq!(stage.world.jobs[&jobs[1]].scale_set, None);
    engine::complete(&mut stage.world, jobs[0], Conclusion::Success, stage.now);
    assert!(stage.world.runners.is_empty());
}

#[test]
fn messages_come_in_batches_and_again_until_they_are_acknowledged() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 60);
    stage.queue(60);
    let (first, reported) = stage.next(set, 0).unwrap();
    assert_eq!((first, reported.len()), (1, 50));
    assert_eq!(stage.next(set, 0).unwrap(), (1, reported), "the same again");
    let (second, reported) = stage.next(set, 1).unwrap();
    assert_eq!((second, reported.len()), (2, 10));
    assert!(stage.next(set, 2).is_none());
    let entry = stage.world.scale_sets.get_mut(&set).unwrap();
    entry.messages.remove(&1);
    assert_eq!(stage.next(set, 0).unwrap().0, 2);
    stage
        .world
        .scale_sets
        .get_mut(&set)
        .unwrap()
        .messages
        .clear();
    assert!(stage.next(set, 0).is_none());
}

#[test]
fn a_number_from_another_life_hides_messages() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 1);
    stage.queue(1);
    assert!(stage.next(set, 9).is_none());
    assert_eq!(stage.next(set, 0).unwrap().0, 1);
}

#[test]
fn a_job_tells_its_life() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 1);
    let jobs = stage.queue(1);
    let (_, reported) = stage.next(set, 0).unwrap();
    assert_eq!(kinds(&reported), ["JobAssigned"]);
    assert_eq!(reported[0]["runnerRequestId"], jobs[0]);
    assert_eq!(reported[0]["repositoryName"], "craton-tensor-wasm");
    assert_eq!(reported[0]["ownerName"], "craton-co");
    assert_eq!(reported[0]["finishTime"], NO_TIME);
    assert_ne!(reported[0]["scaleSetAssignTime"], NO_TIME);
    let runner = stage.runner("one", Some(set));
    engine::acquire(&mut stage.world, jobs[0], runner, stage.now).unwrap();
    engine::complete(&mut stage.world, jobs[0], Conclusion::Failure, stage.now);
    let (_, reported) = stage.next(set, 1).unwrap();
    assert_eq!(kinds(&reported), ["JobStarted", "JobCompleted"]);
    assert_eq!(reported[0]["runnerName"], "one");
    assert_eq!(reported[1]["runnerId"], runner);
    assert_eq!(reported[1]["result"], "failed");
    assert_ne!(reported[1]["finishTime"], NO_TIME);
}

#[test]
fn a_job_that_is_cancelled_before_it_ran_has_no_runner() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 1);
    let jobs = stage.queue(1);
    let run = stage.world.jobs[&jobs[0]].run;
    assert!(engine::cancel_run(&mut stage.world, run, stage.now));
    let (_, reported) = stage.next(set, 0).unwrap();
    assert_eq!(kinds(&reported), ["JobAssigned", "JobCompleted"]);
    assert_eq!(reported[1]["result"], "canceled");
    assert_eq!(reported[1]["runnerId"], 0);
    assert_eq!(reported[1]["runnerName"], "");
    assert_eq!(stage.assigned(set), 0);
}

#[test]
fn offered_jobs_have_to_be_acquired() {
    let mut stage = Stage::new();
    stage.world.settings.scale_sets_offer = true;
    let one = stage.set("one", 1);
    let other = stage.set("other", 5);
    let jobs = stage.queue(2);
    let (_, reported) = stage.next(one, 0).unwrap();
    assert_eq!(
        kinds(&reported),
        ["JobAvailable"],
        "as far as the capacity goes"
    );
    let url = reported[0]["acquireJobUrl"].as_str().unwrap();
    assert!(url.contains(&format!("/{one}/acquirejobs")), "{url}");
    assert_eq!(stage.next(other, 0).unwrap().1.len(), 2, "to both");
    assert_eq!((stage.assigned(one), stage.assigned(other)), (0, 0));
    assert_eq!(
        acquire(&mut stage.world, one, &jobs[..1], stage.now),
        jobs[..1]
    );
    assert_eq!(
        acquire(&mut stage.world, other, &jobs, stage.now),
        jobs[1..]
    );
    assert_eq!((stage.assigned(one), stage.assigned(other)), (1, 1));
    assert_eq!(kinds(&stage.next(one, 1).unwrap().1), ["JobAssigned"]);
    assert!(end_session(&mut stage.world, other, stage.now));
    assert!(
        stage.next(one, 2).is_none(),
        "one more is available, which is no news"
    );
}

#[test]
fn a_job_that_no_runner_begins_is_taken_back_and_assigned_again_three_times() {
    let mut stage = Stage::new();
    stage.world.settings.session_seconds = 10_000;
    let set = stage.set("gpu", 1);
    stage.queue(1);
    let mut last = stage.next(set, 0).unwrap().0;
    for pause in [30, 60, 120] {
        stage.pass(299);
        assert_eq!(stage.assigned(set), 1);
        stage.pass(1);
        let numbers = stage.numbers(set);
        assert_eq!(
            (numbers.total_assigned_jobs, numbers.total_available_jobs),
            (0, 1)
        );
        let (id, changes) = stage.next(set, last).unwrap();
        assert_eq!(kinds(&changes), ["JobCompleted"]);
        assert_eq!(
            (&changes[0]["result"], &changes[0]["runnerName"]),
            (&"canceled".into(), &"".into())
        );
        stage.pass(pause - 1);
        assert_eq!(stage.assigned(set), 0);
        stage.pass(1);
        assert_eq!(stage.assigned(set), 1);
        last = stage.next(set, id).unwrap().0;
    }
    // Then it stays
    for _ in 0..10 {
        stage.pass(100);
    }
    assert_eq!(stage.assigned(set), 1);
}

#[test]
fn numbers_alone_are_no_news() {
    let mut stage = Stage::new();
    let set = stage.set("gpu", 0);
    stage.queue(2);
    assert_eq!(stage.numbers(set).total_available_jobs, 2);
    assert_eq!(stage.next(set, 0), None);
}
