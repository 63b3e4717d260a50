//! What holds of every plan, whatever was seen.

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::RunnerPhase;
use gate_report::Class;
use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

/// A runner that enters `phase` now.
fn entering(pool: &Pool, name: &str, phase: RunnerPhase, now: Timestamp) -> Runner {
    let mut runner = runner(pool, name, phase);
    runner.since = now;
    if let Some(End::Failed(failure)) = &mut runner.end {
        failure.at = now;
    }
    runner
}

/// A small world in which plans come true: pods move on by themselves, actions are carried out.
#[derive(Debug)]
struct World {
    runners: BTreeMap<String, Runner>,
    entries: BTreeSet<String>,
}

impl World {
    fn carry_out(&mut self, pool: &Pool, actions: &[Action], now: Timestamp) {
        for action in actions {
            match action {
                Action::CreatePod(new) => {
                    let entering = entering(pool, &new.name, RunnerPhase::Unscheduled, now);
                    assert!(
                        self.runners.insert(new.name.clone(), entering).is_none(),
                        "a name was used twice"
                    );
                }
                Action::Drain(t) => {
                    let busy = self
                        .runners
                        .get(&t.name)
                        .is_some_and(|r| r.phase == RunnerPhase::Busy);
                    if !busy {
                        self.entries.remove(&t.name);
                        self.runners.remove(&t.name);
                    }
                }
                Action::DeletePod(t) => {
                    let phase = self.runners.remove(&t.name).map(|r| r.phase);
                    assert!(
                        phase != Some(RunnerPhase::Busy),
                        "a busy runner's pod was removed"
                    );
                }
                Action::DeleteEntry(e) => {
                    self.entries.remove(&e.name);
                }
                _ => {}
            }
        }
    }

    /// Every pod takes the next step that `dice` chooses.
    fn move_on(&mut self, pool: &Pool, dice: &[u8], now: Timestamp) {
        let names: Vec<String> = self.runners.keys().cloned().collect();
        for (name, die) in names.into_iter().zip(dice.iter().cycle()) {
            let old = self.runners[&name].phase;
            let next = match (old, die % 4) {
                (RunnerPhase::Unscheduled, 0..=2) => RunnerPhase::Gated,
                (RunnerPhase::Gated, 0..=2) => RunnerPhase::Starting,
                (RunnerPhase::Gated, _) => RunnerPhase::Failed,
                (RunnerPhase::Starting, _) => RunnerPhase::Idle,
                (RunnerPhase::Idle, 0) => RunnerPhase::Busy,
                (RunnerPhase::Busy, 0 | 1) => RunnerPhase::Finished,
                (same, _) => same,
            };
            if next == RunnerPhase::Starting {
                self.entries.insert(name.clone());
            }
            if next == RunnerPhase::Finished {
                self.entries.remove(&name);
            }
            if next != old {
                self.runners
                    .insert(name.clone(), entering(pool, &name, next, now));
            }
        }
    }

    fn observe(&self, seed: u64, now: Timestamp) -> Observed {
        let mut observed = observed(self.runners.values().cloned().collect());
        observed.seed = seed;
        let names: Vec<&str> = self.entries.iter().map(String::as_str).collect();
        observed.listing = Some(Listing {
            at: now,
            ..listing(&names)
        });
        observed
    }
}

#[test]
fn a_runner_that_was_taken_away_is_told_once_though_nothing_of_it_is_left() {
    let mut pool = pool(1);
    let mut seen = observed(vec![]);
    let mut gone = runner(&pool, "pool-aaaaa", RunnerPhase::Terminating);
    let failure = Failure::new(
        Reason::Evicted,
        Class::Transient,
        "Drained.".to_owned(),
        NOW,
        true,
    );
    gone.end = Some(End::Failed(failure));
    seen.vanished = vec![gone];
    let first = plan(&pool, &seen, NOW);
    let reported = |plan: &Plan| {
        plan.notices
            .iter()
            .filter(|n| n.reason == Reason::Evicted)
            .count()
    };
    assert_eq!(first.status.last_failures[0].runner, "pool-aaaaa");
    assert_eq!((reported(&first), first.status.replicas), (1, 0));
    assert_eq!(removed(&first), Vec::<&str>::new());

    pool.status = first.status;
    let second = plan(&pool, &seen, NOW);
    assert_eq!(
        (reported(&second), second.status.last_failures.len()),
        (0, 1)
    );
}

proptest! {
    #[test]
    fn never_too_many_never_a_busy_one_and_always_settled_in_the_end(
        steps in proptest::collection::vec((0..6_i32, proptest::collection::vec(any::<u8>(), 1..8), any::<u64>()), 1..20),
    ) {
        let mut world = World { runners: BTreeMap::new(), entries: BTreeSet::new() };
        let mut status = pool(0).status;
        let mut now = NOW;
        for (replicas, dice, seed) in &steps {
            let mut pool = pool(*replicas);
            pool.status = status;
            let before = world.runners.values().filter(|r| r.end.is_none()).count();
            let plan = super::plan(&pool, &world.observe(*seed, now), now);
            world.carry_out(&pool, &plan.actions, now);
            let after = world.runners.values().filter(|r| r.end.is_none()).count();
            prop_assert!(after <= before.max(usize::try_from(*replicas).unwrap()));
            status = plan.status;
            world.move_on(&pool, dice, now);
            now += SignedDuration::from_secs(60);
        }
        // Nothing fails any more: the pool settles at what was asked, and so does GitHub.
        let mut pool = pool(2);
        for seed in 0..40_u64 {
            pool.status = status;
            let plan = super::plan(&pool, &world.observe(seed, now), now);
            world.carry_out(&pool, &plan.actions, now);
            status = plan.status;
            world.move_on(&pool, &[2], now);
            for r in world.runners.values_mut() {
                if r.phase == RunnerPhase::Busy {
                    *r = entering(&pool, &r.name, RunnerPhase::Finished, now);
                    world.entries.remove(&r.name);
                }
            }
            now += SignedDuration::from_secs(60);
        }
        let idle: BTreeSet<_> = world.runners.values().filter(|r| r.phase == RunnerPhase::Idle).map(|r| r.name.clone()).collect();
        prop_assert_eq!(idle.len(), 2, "{:?}", world.runners);
        prop_assert_eq!(&world.entries, &idle);
    }
}

#[test]
fn a_runner_that_was_asked_to_go_has_not_failed_unless_it_had_a_job() {
    let pool = pool(1);
    for (reason, failures) in [
        (Reason::GateFailed, 0),
        (Reason::EndedWithoutJob, 0),
        (Reason::JobCutShort, 1),
    ] {
        let mut gone = runner(&pool, "pool-aaaaa", RunnerPhase::Terminating);
        let mut failure = gate_failure(Class::Transient);
        failure.reason = reason;
        gone.end = Some(End::Failed(failure));
        let plan = plan(&pool, &observed(vec![gone]), NOW);
        assert_eq!(plan.status.last_failures.len(), failures, "{reason}");
    }
}

#[test]
fn a_note_is_cut_to_the_bytes_that_the_api_server_takes() {
    let cut = |note: &str| {
        let notice = Notice {
            warning: false,
            reason: crate::reason::Stored::parse("Reason"),
            note: note.to_owned(),
            about: None,
        };
        notice.cut()
    };
    assert_eq!(cut("short"), "short");
    for letter in ["a", "ü", "…", "𝄞"] {
        let long = cut(&letter.repeat(2000));
        assert!(long.len() <= 1024 && long.len() > 1015 && long.ends_with('…'));
    }
}
