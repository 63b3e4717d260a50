//! Given what is known of the scale set, then it is made, listened to, and removed.

use std::sync::Arc;

use cudarunner_crds::RegistrationMode;

use super::*;
use crate::condition::kind;
use crate::fixture::{NOW, observed, resource, runner};
use crate::model::scale_set::Heard;
use crate::shares::{Share, room::Room};
use crate::{Entry, Listing, plan};

fn pool() -> Pool {
    let mut resource = resource();
    resource.spec.registration = RegistrationMode::ScaleSet;
    let mut pool = Pool::read(&resource, false);
    pool.status.observed_generation = Some(1);
    pool
}

fn set(labels: &[&str]) -> ScaleSet {
    ScaleSet {
        id: 7,
        name: "pool-1b4e28ba".to_owned(),
        labels: labels.iter().map(|l| (*l).to_owned()).collect(),
    }
}

fn seen(known: Known) -> Observed {
    let mut seen = observed(vec![]);
    seen.scale_set = Some(ScaleSetFacts {
        known,
        ..ScaleSetFacts::default()
    });
    seen
}

fn of_set(plan: &Plan) -> Vec<&Action> {
    let is_ours = |action: &&Action| {
        matches!(
            action,
            Action::CreateScaleSet(_)
                | Action::UpdateScaleSet(..)
                | Action::DeleteScaleSet(_)
                | Action::DeleteUnusedScaleSet(_)
                | Action::Listen { .. }
                | Action::StopListening
        )
    };
    plan.actions.iter().filter(is_ours).collect()
}

fn wanted_set() -> NewScaleSet {
    NewScaleSet {
        name: "pool-1b4e28ba".to_owned(),
        group: None,
        labels: vec!["self-hosted".to_owned(), "cuda".to_owned()],
    }
}

#[test]
fn one_that_is_missing_is_made_and_one_that_nobody_has_looked_for_is_not() {
    let mut pool = pool();
    pool.status.registered_at = None;
    assert_eq!(
        of_set(&plan(&pool, &seen(Known::Unknown), NOW)),
        [] as [&Action; 0]
    );
    // Where it will be, and its name, are in the status before it is there
    let here = "https://github.com/acme/widgets".to_owned();
    for registered_at in [None, Some(here)] {
        pool.status.registered_at = registered_at;
        pool.status.scale_set = None;
        let planned = plan(&pool, &seen(Known::Absent), NOW);
        assert_eq!(of_set(&planned), [] as [&Action; 0]);
        assert_eq!(planned.wake, Some(SignedDuration::ZERO));
        pool.status = planned.status;
    }
    let planned = plan(&pool, &seen(Known::Absent), NOW);
    assert_eq!(of_set(&planned), [&Action::CreateScaleSet(wanted_set())]);
    assert_eq!(planned.wake, Some(SignedDuration::ZERO));
}

#[test]
fn one_that_is_there_is_listened_to_once() {
    let mut pool = pool();
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
    let planned = plan(&pool, &seen, NOW);
    let listen = |capacity, session: Option<&str>| Action::Listen {
        set: 7,
        capacity,
        session: session.map(str::to_owned),
    };
    assert_eq!(of_set(&planned), [&listen(1, None)]);

    // The session is in the status, for whoever comes next
    let heard = Heard {
        is_quiet: false,
        number: 3,
        is_settled: true,
        is_lost: false,
        session: Some("session".to_owned()),
        oldest: None,
        taken_back: None,
        opened: Some(NOW),
        statistics: Some(Statistics::default()),
        trouble: None,
    };
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = Some(Listening {
            set: 7,
            capacity: 1,
            heard,
        });
    }
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(of_set(&planned), [] as [&Action; 0]);
    assert_eq!(planned.acted_on, Some((7, 3)));
    let status = planned.status.scale_set.unwrap();
    assert_eq!(
        (status.id, status.session.as_deref(), status.capacity),
        (7, Some("session"), 1)
    );

    // A process that comes after it ends that session
    pool.status.scale_set = Some(status);
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = None;
    }
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(of_set(&planned), [&listen(1, Some("session"))]);
}

#[test]
fn a_glance_is_offered_and_not_shown() {
    let mut resource = resource();
    resource.spec.registration = RegistrationMode::ScaleSet;
    resource.spec.replicas = Some(8);
    let mut pool = Pool::read(&resource, false);
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
    for (before, offered, seconds, shown) in [
        (0, 1, 5, 0),  // one runner more, a moment ago
        (0, 1, 15, 1), // and longer than a glance
        (0, 4, 5, 4),  // no glance
        (1, 0, 5, 0),  // the end of one
    ] {
        let room = Room {
            since: Some(NOW - SignedDuration::from_secs(seconds)),
            ..Room::default()
        };
        seen.share = Some(Arc::new(Share {
            runners: offered,
            room,
            ..Share::default()
        }));
        pool.status.scale_set = Some(ScaleSetStatus {
            id: 7,
            capacity: before,
            ..ScaleSetStatus::default()
        });
        let planned = plan(&pool, &seen, NOW);
        let offers = |action: &&Action| matches!(action, Action::Listen { capacity, .. } if *capacity == offered);
        assert!(planned.actions.iter().any(|action| offers(&action)));
        assert_eq!(
            planned.status.scale_set.unwrap().capacity,
            shown,
            "{offered} after {seconds} s"
        );
        // And it is looked at again when it has lasted
        let again = SignedDuration::from_secs(7);
        assert!(shown == i32::try_from(offered).unwrap() || planned.wake <= Some(again));
    }
}

#[test]
fn one_whose_session_nobody_can_end_is_made_anew_where_nothing_is_lost_by_it() {
    let pool = pool();
    let lost = |phases: &[RunnerPhase]| {
        let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
        let runners = phases
            .iter()
            .map(|phase| runner(&pool, "pool-aaaaa", *phase));
        seen.runners = runners.collect();
        let heard = Heard {
            is_lost: true,
            ..Heard::default()
        };
        if let Some(facts) = &mut seen.scale_set {
            facts.listening = Some(Listening {
                set: 7,
                capacity: 1,
                heard,
            });
        }
        let planned = plan(&pool, &seen, NOW);
        of_set(&planned).contains(&&Action::DeleteUnusedScaleSet(7))
    };
    for nothing in [
        &[][..],
        &[RunnerPhase::Unscheduled],
        &[RunnerPhase::Preparing],
    ] {
        assert!(lost(nothing), "{nothing:?}");
    }
    for phase in [
        RunnerPhase::Gated,
        RunnerPhase::Starting,
        RunnerPhase::Idle,
        RunnerPhase::Busy,
        RunnerPhase::Terminating,
    ] {
        assert!(!lost(&[phase]), "{phase:?}");
    }
}

#[test]
fn labels_are_asked_for_once_and_what_came_of_it_is_said() {
    let pool = pool();
    let mut seen = seen(Known::Present(set(&["pool-1b4e28ba"])));
    let planned = plan(&pool, &seen, NOW);
    assert!(of_set(&planned).contains(&&Action::UpdateScaleSet(7, wanted_set())));
    asked(&mut seen, wanted_set());
    let planned = plan(&pool, &seen, NOW);
    assert!(matches!(of_set(&planned)[..], [Action::Listen { .. }]));
    let condition = planned
        .status
        .conditions
        .iter()
        .find(|c| c.type_ == kind::QUEUE_SERVED)
        .unwrap();
    assert_eq!(condition.reason, "LabelsNotHonoured");
    assert!(
        condition.message.contains("runs-on: pool-1b4e28ba"),
        "{}",
        condition.message
    );
}

fn asked(seen: &mut Observed, asked: NewScaleSet) {
    if let Some(facts) = &mut seen.scale_set {
        facts.asked = Some(asked);
    }
}

#[test]
fn a_set_that_keeps_its_old_labels_is_named_with_what_to_do() {
    let pool = pool();
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda", "old"])));
    asked(&mut seen, wanted_set());
    let planned = plan(&pool, &seen, NOW);
    assert!(matches!(of_set(&planned)[..], [Action::Listen { .. }]));
    let conditions = planned.status.conditions.iter();
    let said = conditions.filter(|c| c.reason == "LabelsNotHonoured");
    let said: Vec<&str> = said.map(|c| c.message.as_str()).collect();
    assert!(said[0].contains("[self-hosted, cuda, old]") && said[0].contains("delete the pool"));
}

#[test]
fn a_change_that_failed_is_tried_again_and_not_taken_for_done() {
    let mut pool = pool();
    pool.status.scale_set = Some(ScaleSetStatus {
        id: 7,
        runner_group: Some("old".to_owned()),
        ..ScaleSetStatus::default()
    });
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
    let update = Action::UpdateScaleSet(7, wanted_set());
    let planned = plan(&pool, &seen, NOW);
    assert!(of_set(&planned).contains(&&update));
    let group = |plan: &Plan| plan.status.scale_set.clone().unwrap().runner_group;
    assert_eq!(group(&planned).as_deref(), Some("old"));

    asked(&mut seen, wanted_set());
    assert_eq!(group(&plan(&pool, &seen, NOW)), None);
    if let Some(facts) = &mut seen.scale_set {
        facts.is_unwritten = true;
    }
    assert!(of_set(&plan(&pool, &seen, NOW)).contains(&&update));
}

#[test]
fn while_nothing_can_register_only_what_runs_is_offered() {
    let pool = pool();
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
    seen.access = Access::Refused {
        reason: Reason::RateLimited,
        message: "later".to_owned(),
        transient: true,
    };
    assert_eq!(of_set(&plan(&pool, &seen, NOW)), [] as [&Action; 0]);
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = Some(Listening {
            set: 7,
            capacity: 1,
            ..Listening::default()
        });
    }
    let nothing = Action::Listen {
        set: 7,
        capacity: 0,
        session: None,
    };
    assert_eq!(of_set(&plan(&pool, &seen, NOW)), [&nothing]);
}

#[test]
fn a_spec_that_cannot_be_carried_out_takes_no_jobs() {
    let mut pool = pool();
    pool.spec = Err(crate::model::pool::SpecError::Template("no".to_owned()));
    let mut seen = seen(Known::Present(set(&[])));
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = Some(Listening::default());
    }
    assert_eq!(of_set(&plan(&pool, &seen, NOW)), [&Action::StopListening]);
}

#[test]
fn a_pool_that_never_got_into_github_goes_at_once() {
    let mut pool = pool();
    pool.status.registered_at = None;
    pool.deleting = Some(NOW);
    let mut seen = seen(Known::Unknown);
    seen.access = Access::Refused {
        reason: Reason::SecretNotFound,
        message: "create it".to_owned(),
        transient: false,
    };
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(planned.actions, [Action::RemoveFinalizer]);

    // With a scale set in its status it waits: it may be removed yet
    pool.status.scale_set = Some(ScaleSetStatus::default());
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(planned.actions, []);
}

#[test]
fn a_pool_that_registers_otherwise_gives_its_scale_set_up_after_its_runners() {
    let before = pool();
    let mut pool = crate::fixture::pool(1);
    pool.status.scale_set = Some(ScaleSetStatus::default());
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = Some(Listening::default());
    }
    seen.runners = vec![runner(
        &before,
        "pool-aaaaa",
        cudarunner_crds::RunnerPhase::Busy,
    )];
    assert_eq!(of_set(&plan(&pool, &seen, NOW)), [&Action::StopListening]);
    seen.runners = vec![];
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(
        of_set(&planned),
        [&Action::StopListening, &Action::DeleteScaleSet(7)]
    );
}

#[test]
fn a_pool_that_is_deleted_takes_its_scale_set_along_as_the_last_thing() {
    let mut pool = pool();
    pool.deleting = Some(NOW);
    pool.status.scale_set = Some(ScaleSetStatus::default());
    pool.status.registered_at = Some("https://github.com/acme/widgets".to_owned());
    let mut seen = seen(Known::Present(set(&["self-hosted", "cuda"])));
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = Some(Listening::default());
    }

    // First nobody listens any more, and entries without a pod go
    seen.listing = Some(Listing {
        at: NOW,
        entries: vec![Entry {
            id: 9,
            name: "pool-aaaaa".to_owned(),
            busy: false,
            online: Some(true),
            version: None,
            of_scale_set: true,
        }],
        is_whole: true,
    });
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(of_set(&planned), [&Action::StopListening]);
    assert!(
        planned
            .actions
            .iter()
            .any(|a| matches!(a, Action::DeleteEntry(_)))
    );

    // Then the scale set, and then the resource
    seen.listing = Some(Listing {
        at: NOW,
        entries: vec![],
        is_whole: true,
    });
    if let Some(facts) = &mut seen.scale_set {
        facts.listening = None;
    }
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(planned.actions, [Action::DeleteScaleSet(7)]);
    if let Some(facts) = &mut seen.scale_set {
        facts.known = Known::Absent;
    }
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(planned.actions, [Action::RemoveFinalizer]);
    assert_eq!(planned.status.scale_set, None);
}

#[test]
fn what_keeps_it_from_working_is_said_and_waited_for() {
    let pool = pool();
    let mut seen = seen(Known::Unknown);
    if let Some(facts) = &mut seen.scale_set {
        facts.trouble = Some(Trouble {
            reason: Reason::ScaleSetRefused,
            message: "the credentials may not".to_owned(),
        });
        facts.not_before = Some(NOW + SignedDuration::from_secs(7));
    }
    let planned = plan(&pool, &seen, NOW);
    assert_eq!(of_set(&planned), [] as [&Action; 0]);
    assert!(
        planned
            .wake
            .is_some_and(|w| w <= SignedDuration::from_secs(7))
    );
    let served = planned.status.conditions.iter();
    let served = served.filter(|c| c.reason == "ScaleSetRefused").count();
    assert_eq!(
        served, 1,
        "a fixed number of runners is online all the same"
    );
}

#[test]
fn one_whose_creation_had_no_answer_goes_when_the_pool_registers_otherwise() {
    // Given a pool that is about to make one, in a group
    let mut pool = pool();
    pool.spec_mut().runner_group = Some("gpu".to_owned());
    pool.status = plan(&pool, &seen(Known::Absent), NOW).status;
    let planned = plan(&pool, &seen(Known::Absent), NOW);
    assert!(matches!(of_set(&planned)[..], [Action::CreateScaleSet(_)]));
    // When no answer comes, and its spec asks for another registration, then the one that is found by its name is removed
    pool.spec_mut().registration = RegistrationKind::JitConfig;
    let there = seen(Known::Present(set(&["cuda"])));
    let planned = plan(&pool, &there, NOW);
    assert_eq!(of_set(&planned), [&Action::DeleteScaleSet(7)]);
    assert!(planned.status.scale_set.is_some());
    // And where it goes to another group, the one that is found is moved there
    let spec = pool.spec_mut();
    spec.registration = RegistrationKind::ScaleSet;
    spec.runner_group = None;
    let planned = plan(&pool, &there, NOW);
    let moves =
        |action: &&&Action| matches!(action, Action::UpdateScaleSet(7, new) if new.group.is_none());
    assert!(of_set(&planned).iter().any(|a| moves(&a)), "{planned:?}");
}
