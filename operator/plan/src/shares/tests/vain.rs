//! Given a pool whose pods no node takes though GPUs are free, then others have these.

use super::*;
use crate::model::time::Shift as _;

#[test]
fn what_no_pod_of_a_pool_takes_is_given_to_others() {
    // Given a GPU, a pool that comes first whose pod has no node, and another that wants it
    let nodes = [with_gpus(0, 1, 0)];
    let (mut stuck, mut other) = (member("a/1", 1, 1, 1, &[]), member("b/1", 1, 1, 1, &[]));
    stuck.is_stuck = true;
    let mut given = |stuck: &mut Member, at: i64| {
        let now = NOW.after(SignedDuration::from_secs(at));
        // A pool that rests claims no more than it has
        stuck.claim.wanted = usize::from(!stuck.before.vain.rests(now));
        let members = [stuck.clone(), other.clone()];
        let found = shares(&nodes, &Others::new(), &members, &BTreeMap::new(), now);
        (stuck.before, other.before) = (
            found[&stuck.key].clone().into(),
            found[&other.key].clone().into(),
        );
        (stuck.before.runners, other.before.runners)
    };
    // Then the scheduler has half a minute, after which the GPU is the other's for five minutes
    let seen = [0, 29, 30, 31, 329, 330, 360, 361].map(|at| given(&mut stuck, at));
    let (first, then) = ((1, 0), (0, 1));
    assert_eq!(seen, [first, first, first, then, then, first, first, then]);
    // And when a pod of its has got a node all the same, all is well
    (stuck.runners, stuck.is_stuck) = (1, false);
    given(&mut stuck, 362);
    assert_eq!(
        stuck.before.vain,
        vain::Vain {
            placed: 1,
            had: 1,
            ..vain::Vain::default()
        }
    );
}

/// Reckons the share of a pool that is alone there; whether it rests by then.
fn rests(pool: &mut Member, nodes: &[Arc<NodeFacts>], now: Timestamp) -> bool {
    let members = std::slice::from_ref(pool);
    let found = shares(nodes, &Others::new(), members, &BTreeMap::new(), now);
    pool.before = found[&pool.key].clone().into();
    pool.before.vain.rests(now)
}

/// The same so many seconds from now, with so many runners on the first node.
fn rests_with(pool: &mut Member, nodes: &[Arc<NodeFacts>], at: i64, runners: usize) -> bool {
    (pool.runners, pool.held) = (runners, vec![("node-0".to_owned(), 1); runners]);
    rests(pool, nodes, NOW.after(SignedDuration::from_secs(at)))
}

#[test]
fn a_runner_that_takes_anothers_place_has_found_no_gpu_more() {
    // Given two GPUs, and a pool that has a pod without a node beside a runner whose jobs take ten seconds each
    let nodes = [with_gpus(0, 2, 0)];
    let mut pool = member("a/1", 2, 1, 1, &[]);
    pool.is_stuck = true;
    let mut rests = |at, runners| rests_with(&mut pool, &nodes, at, runners);
    // Then the other GPU is others' after half a minute, for five
    let jobs = (0..6).flat_map(|job| [(10 * job, 1), (10 * job + 9, 0)]);
    let seen: Vec<bool> = jobs.map(|(at, runners)| rests(at, runners)).collect();
    assert_eq!(seen.iter().position(|rests| *rests), Some(7), "{seen:?}");
    assert!(seen[7..].iter().all(|rests| *rests), "{seen:?}");
    // And its own at once when both have got one
    assert!(!rests(60, 2));
}

#[test]
fn what_a_pool_does_not_get_again_it_claims_until_it_has_rested_once_more() {
    // Given a pool that had two of three GPUs while it rested, and has one by now, with pods that are refused
    let nodes = [with_gpus(0, 3, 0)];
    let mut pool = member("a/1", 3, 1, 1, &[]);
    pool.is_stuck = true;
    let mut kept = |at, runners| {
        let rests = rests_with(&mut pool, &nodes, at, runners);
        rests.then_some(pool.before.vain.had)
    };
    // Then it may have two for five minutes, and one from the next rest on
    let seen = [(0, 2), (1, 2), (31, 1), (330, 1), (331, 1), (361, 1)];
    let seen = seen.map(|(at, runners)| kept(at, runners));
    assert_eq!(seen, [None, None, Some(2), Some(2), None, Some(1)]);
}

#[test]
fn who_is_given_gpus_and_takes_them_is_given_more() {
    // Given a pool with pods that have waited for long, and a GPU more every twenty seconds
    let mut pool = member("a/1", 20, 1, 1, &[]);
    pool.is_stuck = true;
    for gpus in 1..10 {
        let nodes = [with_gpus(0, gpus, 0)];
        for at in [0, 19] {
            let now = NOW.after(SignedDuration::from_secs(i64::from(gpus) * 20 + at));
            assert!(!rests(&mut pool, &nodes, now), "{gpus}");
            pool.runners = usize::try_from(gpus).unwrap();
            pool.held = vec![("node-0".to_owned(), gpus)];
        }
    }
}

#[test]
fn no_node_is_kept_for_a_pool_whose_pods_none_takes() {
    // Given a node with four GPUs of which one is taken, and a pool whose runners need all of them
    let nodes = [with_gpus(0, 4, 0)];
    let mut large = member("a/1", 1, 4, 1, &[]);
    let mut small = member("b/1", 20, 1, 1, &[]);
    (small.held, small.runners) = (vec![("node-0".to_owned(), 1)], 1);
    let mut kept = |until: Option<SignedDuration>| {
        large.before = Arc::new(Share {
            vain: vain::Vain {
                until: until.map(|after| NOW.after(after)),
                ..vain::Vain::default()
            },
            ..Share::default()
        });
        let members = [large.clone(), small.clone()];
        let found = shares(&nodes, &Others::new(), &members, &BTreeMap::new(), NOW);
        !found[&small.key].kept.is_empty()
    };
    // Then the node runs empty for it, but not again for some hours where it has had all GPUs in vain
    let hours = SignedDuration::from_hours;
    assert!(kept(None));
    assert!(!kept(Some(-hours(1))));
    assert!(kept(Some(-hours(7))));
}
