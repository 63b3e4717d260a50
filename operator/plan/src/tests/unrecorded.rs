//! Given runners that end in whatever way, then no pod goes before a status that tells of it is stored: an operator that ends
//! in between loses nothing of what it would have told.

use cudarunner_crds::{CudaRunnerStatus, Lifetime, MAX_LAST_FAILURES, RunnerPhase};
use gate_report::Class;
use jiff::SignedDuration;
use proptest::prelude::*;

use super::super::fixture::{NOW, ago, gate_failure, listing, observed, resource, runner};
use super::super::{Action, Observed, Plan, Recorded, plan};
use crate::model::hung::{Contradiction, Doubt};
use crate::model::pool::Pool;
use crate::model::runner::{Disruption, End, EndedJob, Failure, Job, Runner, Told, Waiting};
use crate::reason::{ALL, Place, Reason};

/// What becomes of a runner.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Its pod has ended, for this reason; and whether GitHub may still have its entry.
    Failed(Reason, bool),
    /// The same of a pod that somebody deletes.
    Deleted(Reason),
    /// It has been in this phase for too long; what its container waits for.
    Late(RunnerPhase, Option<&'static str>),
    /// Its agent hangs.
    Hangs(Contradiction),
    /// Its node does not answer.
    Unconfirmed,
    /// It has run its job.
    Done,
}

/// Every reason that a runner may fail for, and all else.
fn fates() -> Vec<Fate> {
    use RunnerPhase::{Gated, Preparing, Starting};
    let reasons = ALL.iter().filter(|e| e.places.contains(&Place::Failure));
    let reasons = reasons.map(|entry| entry.reason);
    let mut all: Vec<Fate> = reasons
        .flat_map(|r| {
            [
                Fate::Failed(r, true),
                Fate::Failed(r, false),
                Fate::Deleted(r),
            ]
        })
        .collect();
    all.extend([Gated, Preparing, Starting].map(|phase| Fate::Late(phase, None)));
    all.extend(["ImagePullBackOff", "CreateContainerError"].map(|w| Fate::Late(Starting, Some(w))));
    let about = [
        Contradiction::JobNotBegun,
        Contradiction::JobOver,
        Contradiction::Offline,
    ];
    all.extend(about.map(Fate::Hangs));
    all.extend([Fate::Unconfirmed, Fate::Done]);
    all
}

/// A failure of so many seconds ago.
fn failure(reason: Reason, registered: bool, seconds: i64) -> End {
    End::Failed(Failure {
        reason,
        registered,
        at: ago(seconds),
        ..gate_failure(Class::Transient)
    })
}

/// A job that ended so many seconds ago.
fn ended(seconds: i64) -> EndedJob {
    let job = Job {
        job: "build".to_owned(),
        run: "17".to_owned(),
        repository: "acme/widgets".to_owned(),
        ..Job::default()
    };
    EndedJob {
        job,
        started: None,
        finished: ago(seconds),
        refused: None,
        gpus: vec![],
        exceeded_minutes: None,
    }
}

/// A runner that met its fate so many seconds ago.
fn met(pool: &Pool, name: &str, fate: Fate, seconds: i64) -> Runner {
    use RunnerPhase::{Busy, Failed, Finished, Idle, Terminating};
    let in_phase = |phase, seconds| Runner {
        since: ago(seconds),
        created: ago(4000),
        ..runner(pool, name, phase)
    };
    match fate {
        Fate::Failed(reason, registered) => Runner {
            end: Some(failure(reason, registered, seconds)),
            ..in_phase(Failed, seconds)
        },
        Fate::Deleted(reason) => Runner {
            end: Some(failure(reason, true, seconds)),
            ..in_phase(Terminating, seconds)
        },
        Fate::Late(phase, waits) => Runner {
            waiting: waits.map(|reason| Waiting {
                reason: reason.into(),
                message: String::new(),
                container: Some("runner".to_owned()),
                image: None,
            }),
            ..in_phase(phase, 3600 + seconds)
        },
        Fate::Hangs(about) => Runner {
            doubt: Some(Doubt {
                about,
                since: ago(600 + seconds),
                seen: NOW,
            }),
            phase: if about == Contradiction::JobOver {
                Busy
            } else {
                Idle
            },
            ..in_phase(Idle, 3600)
        },
        Fate::Unconfirmed => Runner {
            disruption: Some(Disruption {
                reason: "DeletionByTaintManager".into(),
                message: String::new(),
                at: Some(ago(seconds + 60)),
                by_own_use: false,
            }),
            gone_by: Some(ago(seconds)),
            ..in_phase(Terminating, seconds + 60)
        },
        Fate::Done => Runner {
            end: Some(End::JobDone(ended(seconds).job)),
            done: Some(Box::new(ended(seconds))),
            ..in_phase(Finished, seconds)
        },
    }
}

fn pool(replicas: i32, lifetime: Lifetime) -> Pool {
    let mut resource = resource();
    resource.spec.replicas = Some(replicas);
    resource.spec.lifetime = lifetime;
    let mut pool = Pool::read(&resource, false);
    pool.status.observed_generation = Some(1);
    pool
}

/// These runners, at a GitHub that hears others.
fn seen(runners: &[Runner]) -> Observed {
    let mut seen = observed(runners.to_vec());
    seen.listing = Some(listing(&["pool-other"]));
    seen
}

/// Names of the pods that a plan may remove.
fn goes(plan: &Plan) -> Vec<&str> {
    let pods = plan.actions.iter().filter_map(Action::removes);
    pods.map(|pod| pod.name.as_str()).collect()
}

/// What a status tells of runners that have ended: who failed for what, in the order of the list, how many in a row, and
/// whose jobs it has.
fn told(status: &CudaRunnerStatus) -> (Vec<(&str, &str)>, i32, Vec<&str>) {
    let failures = status.last_failures.iter();
    let failures = failures.map(|f| (f.runner.as_str(), f.reason.as_str()));
    let jobs = status.last_jobs.iter().map(|job| job.runner.as_str());
    (
        failures.collect(),
        status.consecutive_failures,
        jobs.collect(),
    )
}

proptest! {
    #[test]
    fn an_operator_that_ends_before_its_status_is_stored_leaves_the_next_one_all_that_it_knew(
        is_persistent in any::<bool>(),
        ends in proptest::collection::vec((0..fates().len(), 0..300_i64), 1..=2 * MAX_LAST_FAILURES),
    ) {
        let lifetime = if is_persistent { Lifetime::Persistent } else { Lifetime::Ephemeral };
        let mut pool = pool(i32::try_from(ends.len()).unwrap(), lifetime);
        let runners = ends.iter().zip(0..).map(|((fate, seconds), n)| met(&pool, &format!("pool-{n}"), fates()[*fate], *seconds));
        let runners: Vec<Runner> = runners.collect();

        // Given an operator that carries out its plan, and ends before the status is stored
        let first = plan(&pool, &seen(&runners), NOW);
        let left = runners.iter().filter(|r| !goes(&first).contains(&r.name.as_str()));
        let left: Vec<Runner> = left.cloned().collect();
        // Then the next one tells the same
        let next = plan(&pool, &seen(&left), NOW);
        prop_assert_eq!(told(&next.status), told(&first.status));

        // Given that it was stored, then the pool is looked at again at once, and what was kept for that goes
        if !first.unrecorded.is_empty() {
            prop_assert_eq!(first.next(false, Recorded::Now), Some(SignedDuration::ZERO));
        }
        pool.status = first.status.clone();
        let mut left = left;
        first.are_told(&mut left);
        let second = plan(&pool, &seen(&left), NOW);
        let is_kept_for_a_look = |r: &Runner| matches!(&r.end, Some(End::Failed(failure)) if !failure.registered);
        for runner in left.iter().filter(|r| first.unrecorded.contains(&r.name)) {
            let name = runner.name.as_str();
            prop_assert!(goes(&second).contains(&name) || is_kept_for_a_look(runner), "{name} stays");
        }
        // ... and told it is once
        prop_assert_eq!(told(&second.status), told(&first.status));
        prop_assert!(second.unrecorded.is_empty(), "{:?}", second.unrecorded);
        prop_assert!(second.failed.is_empty(), "{:?}", second.failed);
    }
}

#[test]
fn an_operator_whose_clock_is_behind_ends_what_it_has_told_of() {
    // Given a hung agent whose pod seems to have been made a minute from now
    let mut pool = pool(1, Lifetime::Ephemeral);
    let mut hung = met(&pool, "pool-0", Fate::Hangs(Contradiction::Offline), 0);
    hung.created = NOW + SignedDuration::from_mins(1);
    let hung = [hung];
    for ends in [false, true] {
        let planned = plan(
            &pool,
            &seen(&hung),
            NOW + SignedDuration::from_secs(i64::from(ends)),
        );
        assert_eq!(goes(&planned).contains(&"pool-0"), ends);
        assert_eq!(planned.status.consecutive_failures, 1);
        pool.status = planned.status;
    }
}

#[test]
fn a_persistent_runner_that_fails_after_its_namesake_is_told() {
    // Given a persistent runner that was evicted, whose pod is gone, and another pod of its name
    let pool = pool(1, Lifetime::Persistent);
    let mut evicted = met(&pool, "pool-0", Fate::Deleted(Reason::Evicted), 60);
    evicted.uid = "first".to_owned();
    let successor = Runner {
        created: ago(30),
        told: Some(Told::default()),
        ..runner(&pool, "pool-0", RunnerPhase::Idle)
    };
    let mut observed = seen(std::slice::from_ref(&successor));
    evicted.told = Some(Told::default());
    observed.vanished = vec![evicted];
    let first = plan(&pool, &observed, NOW);
    assert_eq!(first.failed.len(), 1);
    // When that one fails, then it is told as well
    let mut next = pool.clone();
    next.status = first.status.clone();
    let mut failed = [Runner {
        end: Some(failure(Reason::NodeLost, true, 0)),
        ..successor
    }];
    first.are_told(&mut failed);
    assert_eq!(plan(&next, &seen(&failed), NOW).failed.len(), 1);
}

#[test]
fn a_runner_that_was_late_and_went_on_is_told_when_it_ends_once_more() {
    // Given a runner that was overdue, as a status told that has ten others by now
    let mut pool = pool(1, Lifetime::Ephemeral);
    let late = met(&pool, "pool-0", Fate::Late(RunnerPhase::Starting, None), 0);
    let first = plan(&pool, &seen(std::slice::from_ref(&late)), NOW);
    assert_eq!(first.failed.len(), 1);
    pool.status = first.status.clone();
    pool.status.last_failures.clear();
    // When it is there yet, then nothing is told again; when it is evicted, that is
    let mut there = [late.clone()];
    first.are_told(&mut there);
    let second = plan(&pool, &seen(&there), NOW);
    assert_eq!(second.failed.len(), 0);
    let mut evicted = [Runner {
        end: Some(failure(Reason::Evicted, true, 0)),
        ..late
    }];
    second.are_told(&mut evicted);
    assert_eq!(plan(&pool, &seen(&evicted), NOW).failed.len(), 1);
}

#[test]
fn no_pods_are_made_while_many_wait_for_a_status_that_is_not_stored() {
    let pool = pool(2, Lifetime::Ephemeral);
    for (ended, made) in [(22, 2), (23, 0)] {
        let names = (0..ended).map(|number| format!("pool-{number}"));
        let runners: Vec<_> = names
            .map(|name| met(&pool, &name, Fate::Done, 40))
            .collect();
        let plan = plan(&pool, &seen(&runners), NOW);
        let is_new = |action: &&Action| matches!(action, Action::CreatePod(_));
        assert_eq!(plan.actions.iter().filter(is_new).count(), made, "{ended}");
    }
}
