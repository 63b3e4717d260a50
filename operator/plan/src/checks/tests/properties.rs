//! Two pools that require checks of one repository, whatever happens between and during their reconciles.

use proptest::prelude::*;

use super::*;

/// What may happen between and during reconciles.
#[derive(Clone, Debug)]
enum Event {
    Reconcile(usize),
    /// The process dies when it has written the status, or when it has changed GitHub.
    Crash(usize, bool),
    UserAdds(&'static str),
    UserRemoves(&'static str),
    Delete(usize),
    Ask(usize, bool),
}

fn event() -> impl Strategy<Value = Event> {
    let name = prop_oneof![Just("fmt"), Just("gpu"), Just("build")];
    prop_oneof![
        4 => (0..2usize).prop_map(Event::Reconcile),
        1 => (0..2usize, any::<bool>()).prop_map(|(pool, wrote)| Event::Crash(pool, wrote)),
        2 => name.clone().prop_map(Event::UserAdds),
        2 => name.prop_map(Event::UserRemoves),
        1 => (0..2usize).prop_map(Event::Delete),
        1 => (0..2usize, any::<bool>()).prop_map(|(pool, on)| Event::Ask(pool, on)),
    ]
}

proptest! {
    /// Whatever users and pools do, and wherever the operator dies: what users required stays, and nothing of ours does.
    /// What a user adds under a name that is on record as ours cannot be told from ours; that is left out here.
    #[test]
    fn what_is_the_users_stays_and_what_is_ours_goes(events in proptest::collection::vec(event(), 0..40)) {
        let (mut world, mut pools) = two_pools();
        let mut theirs = vec!["fmt".to_owned()];
        for event in events {
            match event {
                Event::Reconcile(number) => act(&mut world, &mut pools, number, true, true),
                Event::Crash(number, wrote) => act(&mut world, &mut pools, number, wrote, !wrote),
                Event::UserAdds(name) => {
                    let ours = pools.iter().any(|pool| recorded(pool, name));
                    if !ours && !theirs.iter().any(|t| t == name) {
                        theirs.push(name.to_owned());
                        world.required("main").push(name.to_owned());
                    }
                }
                Event::UserRemoves(name) => {
                    theirs.retain(|t| t != name);
                    world.required("main").retain(|t| t != name);
                }
                Event::Delete(number) => delete(&mut pools[number]),
                Event::Ask(number, on) => pools[number].spec.required_checks = on.then(on_main),
            }
            for name in &theirs {
                prop_assert!(world.required("main").contains(name), "{name} is lost");
            }
        }
        pools.iter_mut().for_each(delete);
        for _ in 0..4 {
            act(&mut world, &mut pools, 0, true, true);
            act(&mut world, &mut pools, 1, true, true);
        }
        let mut left = world.required("main").clone();
        left.sort();
        theirs.sort();
        prop_assert_eq!(left, theirs);
        prop_assert!(pools.iter().all(|pool| pool.status.as_ref().unwrap().required_checks.is_none()));
    }

    /// Left alone, every pool comes to rest with its checks required.
    #[test]
    fn the_checks_come_to_rest(events in proptest::collection::vec(event(), 0..20)) {
        let (mut world, mut pools) = two_pools();
        for event in events {
            match event {
                Event::Reconcile(number) => act(&mut world, &mut pools, number, true, true),
                Event::Crash(number, wrote) => act(&mut world, &mut pools, number, wrote, !wrote),
                Event::UserRemoves(name) => world.required("main").retain(|t| t != name),
                Event::UserAdds(_) | Event::Delete(_) | Event::Ask(..) => {}
            }
        }
        for _ in 0..3 {
            act(&mut world, &mut pools, 0, true, true);
            act(&mut world, &mut pools, 1, true, true);
        }
        for name in ["gpu", "build"] {
            prop_assert!(world.required("main").iter().any(|t| t == name));
        }
        for number in 0..2 {
            let (pool, observed) = observed_by(&world, &pools, number);
            let plan = crate::plan(&pool, &observed, NOW);
            prop_assert!(plan.actions.iter().all(is_unrelated));
        }
    }
}
