//! Given pools of several operators, each of which knows its own jobs and of the others' what statuses tell, then all offers
//! together fit, and nobody waits for ever to be heard.

use super::*;
use crate::model::time::Shift as _;
use crate::shares::room::{GLANCE, SLOT};

/// Pools and their operators; each claim as its operator knows it, and as its status tells.
struct Operators {
    nodes: Vec<Arc<NodeFacts>>,
    others: Others,
    pools: Vec<(usize, Member, Claim)>,
}

impl Operators {
    /// Pools of operators by these numbers, whose statuses tell what is so.
    fn new(nodes: &[Arc<NodeFacts>], pools: impl IntoIterator<Item = (usize, Member)>) -> Self {
        let pools = pools.into_iter();
        Self {
            nodes: nodes.to_vec(),
            others: Others::new(),
            pools: pools
                .map(|(operator, member)| {
                    let told = Claim {
                        is_full: false,
                        ..member.claim.clone()
                    };
                    (operator, member, told)
                })
                .collect(),
        }
    }

    /// Every operator reckons.
    fn reckon(&mut self, seconds: i64) -> Vec<Share> {
        let mut all = BTreeMap::new();
        let operators: BTreeSet<usize> = self.pools.iter().map(|(by, _, _)| *by).collect();
        for operator in operators {
            let own = self.pools.iter().filter(|(by, _, _)| *by == operator);
            let own: Vec<Member> = own.map(|(_, member, _)| member.clone()).collect();
            let seen: Vec<Seen> = self.pools.iter().map(|pool| seen(pool, operator)).collect();
            let found = shares_beside(
                &self.nodes,
                &self.others,
                (&own, &seen),
                &BTreeMap::new(),
                now(seconds),
            );
            all.extend(found);
        }
        let found = self.pools.iter_mut().map(|(_, member, _)| {
            let share = all.get(&member.key).cloned().unwrap_or_default();
            member.before = Arc::new(share.clone());
            share
        });
        found.collect()
    }

    fn offers(&mut self, seconds: i64) -> Vec<usize> {
        let found = self.reckon(seconds);
        found.iter().map(|share| share.runners).collect()
    }
}

fn now(seconds: i64) -> Timestamp {
    NOW.after(SignedDuration::from_secs(seconds))
}

/// A pool as every operator sees it.
fn seen((by, member, told): &(usize, Member, Claim), operator: usize) -> Seen {
    Seen {
        member: Member {
            claim: told.clone().seen(&member.needs, member.runners),
            before: Arc::default(),
            ..member.clone()
        },
        is_own: *by == operator,
    }
}

/// A pool that holds so many GPUs of the first node.
fn holding(name: &str, wanted: usize, held: usize) -> Member {
    let mut member = member(name, wanted, 1, 1, &[]);
    member.held = vec![("node-0".to_owned(), 1); held];
    member.runners = held;
    member
}

/// A scale set whose jobs fill its offer.
fn silent(name: &str) -> Member {
    let mut member = member(name, 0, 1, 1, &[]);
    member.claim.is_full = true;
    member
}

#[test]
fn pools_of_several_operators_share_as_those_of_one() {
    let nodes = [with_gpus(0, 12, 0)];
    let offers = |pools: Vec<(usize, Member)>| Operators::new(&nodes, pools).offers(0);
    let wanting = |name, weight| member(name, 20, 1, weight, &[]);
    // Namespaces evenly, and the pools of one by weight
    assert_eq!(
        offers(vec![(0, wanting("a/1", 1)), (1, wanting("b/1", 10))]),
        [6, 6]
    );
    assert_eq!(
        offers(vec![(0, wanting("a/1", 1)), (1, wanting("a/2", 3))]),
        [3, 9]
    );
    assert_eq!(
        offers(vec![
            (0, wanting("a/1", 1)),
            (1, wanting("b/1", 1)),
            (0, wanting("b/2", 3)),
            (2, wanting("b/3", 2)),
        ]),
        [6, 1, 3, 2]
    );
    // What nobody wants is offered by all of them together once
    let idle = |name| member(name, 0, 1, 1, &[]);
    assert_eq!(
        offers(vec![(0, idle("a/1")), (1, idle("b/1")), (1, idle("b/2"))]),
        [6, 3, 3]
    );
    // And whom no operator serves has what it holds
    let mut operators =
        Operators::new(&nodes, [(0, wanting("a/1", 1)), (1, holding("b/1", 20, 2))]);
    operators.pools[1].2 = Claim::default();
    assert_eq!(operators.offers(0)[0], 10);
}

#[test]
fn what_only_its_operator_knows_moves_gpus_between_its_own_pools_alone() {
    // Given two operators that have half of the GPUs each, by what statuses tell
    let nodes = [with_gpus(0, 8, 0)];
    let wanting = |name| member(name, 20, 1, 1, &[]);
    let pools = [
        (0, wanting("a/1")),
        (0, wanting("a/2")),
        (1, wanting("b/1")),
    ];
    let mut operators = Operators::new(&nodes, pools);
    assert_eq!(operators.offers(0), [2, 2, 4]);
    // When the jobs of a pool have ended, and its status does not say so yet, then its neighbour has what it had
    (
        operators.pools[0].1.claim.wanted,
        operators.pools[0].1.claim.most,
    ) = (0, 0);
    assert_eq!(operators.offers(1), [0, 4, 4]);
    // And when it does, then the other operator has its part
    operators.pools[0].2 = operators.pools[0].1.claim.clone();
    operators.pools[1].2.wanted = 2;
    operators.pools[1].2.most = 2;
    assert_eq!(operators.offers(2), [0, 2, 6]);
}

#[test]
fn whose_jobs_fill_its_runners_grows_beside_an_idle_one() {
    // Given a scale set with four jobs and four runners, and an idle one of another operator, whose name comes first
    let nodes = [with_gpus(0, 8, 0)];
    let mut operators = Operators::new(
        &nodes,
        [(0, member("a/1", 0, 1, 1, &[])), (1, holding("b/1", 4, 4))],
    );
    operators.pools[1].1.claim.is_full = true;
    assert_eq!(operators.offers(0), [3, 5]);
    // When it has a fifth job, then it is offered a sixth runner, and so on until it has all
    for (jobs, offers) in [(5, [2, 6]), (6, [1, 7]), (7, [0, 8]), (8, [0, 8])] {
        operators.pools[1].1.claim.wanted = jobs;
        operators.pools[1].2.wanted = jobs;
        let found = operators.reckon(60);
        let there = found.iter().map(|share| share.runners - share.beyond);
        assert_eq!(there.collect::<Vec<_>>(), offers, "{jobs}");
    }
}

#[test]
fn whose_turn_it_is_all_operators_know() {
    // Given a GPU that a runner of one operator's pool holds, and another operator's pool that waits as well
    let nodes = [with_gpus(0, 1, 0)];
    let pools = [(0, holding("a/1", 5, 1)), (1, member("b/1", 5, 1, 1, &[]))];
    let found = Operators::new(&nodes, pools).reckon(0);
    // Then it is the other's turn, and none asks for nodes beyond that
    assert_eq!((found[0].admits(5, 1), found[1].admits(5, 0)), (1, 1));
    // And where both of the other operator's wait, one of them has it
    let pools = [
        (0, holding("a/1", 5, 1)),
        (1, member("b/1", 5, 1, 1, &[])),
        (1, member("b/2", 5, 1, 1, &[])),
    ];
    let found = Operators::new(&nodes, pools).reckon(0);
    let pods = found.iter().zip([1, 0, 0]);
    let pods: Vec<usize> = pods
        .map(|(share, placed)| share.admits(5, placed))
        .collect();
    assert_eq!(pods, [1, 1, 0]);
}

#[test]
fn a_node_is_kept_for_a_large_runner_of_another_operator() {
    // Given two nodes with one GPU taken each, and another operator's pool whose runners need a whole one
    let nodes = [with_gpus(0, 4, 0), with_gpus(1, 4, 0)];
    let mut small = member("b/1", 20, 1, 1, &[]);
    small.held = vec![("node-0".to_owned(), 1), ("node-1".to_owned(), 1)];
    small.runners = 2;
    let pools = [(0, member("a/1", 1, 4, 1, &[])), (1, small)];
    let found = Operators::new(&nodes, pools).reckon(0);
    // Then one of them is left to run empty, and the small ones are told to keep off it
    assert!(found[0].is_next && found[0].runners == 0 && found[0].kept.is_empty());
    assert_eq!(found[1].runners, 5);
    assert_eq!(found[1].kept, BTreeSet::from(["node-0".to_owned()]));
}

#[test]
fn who_is_not_heard_has_a_glance_beside_another_operators_backlog() {
    // Given a pool that has all GPUs and wants more, and a scale set of another operator of which nothing is known
    let nodes = [with_gpus(0, 2, 0)];
    let mut operators = Operators::new(&nodes, [(0, holding("a/1", 20, 2)), (1, silent("b/1"))]);
    // Then it is offered a runner for ten seconds, though none is free; no device is idle for that, and no pod is made
    for (at, offers) in [
        (0, [2, 1]),
        (9, [2, 1]),
        (10, [2, 0]),
        (299, [2, 0]),
        (300, [2, 1]),
    ] {
        assert_eq!(operators.offers(at), offers, "{at}");
        assert_eq!(operators.pools[1].1.before.admits(1, 0), 0, "{at}");
    }
    // When a job comes, and its status tells of it, then the next GPU is for it
    operators.pools[1].1.claim.wanted = 1;
    operators.pools[1].2.wanted = 1;
    let found = operators.reckon(302);
    assert_eq!((found[0].admits(20, 2), found[1].admits(1, 0)), (2, 1));
    assert!(found[1].is_next && found[1].beyond == 0);
}

#[test]
fn an_idle_scale_set_is_heard_though_anothers_has_the_gpu() {
    let nodes = [with_gpus(0, 1, 0)];
    let mut operators = Operators::new(&nodes, [(0, silent("a/1")), (1, silent("b/1"))]);
    let offers = [0, 9, 10, 69, 70, 79, 80].map(|at| operators.offers(at)[1]);
    assert_eq!(offers, [1, 1, 0, 0, 1, 1, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn all_offers_of_all_operators_are_what_is_there(
        (nodes, others) in cluster(), members in pools(),
        held in proptest::collection::vec((0..6_usize, 0..6_usize), 0..12),
        known in proptest::collection::vec((0..3_usize, (0..12_usize, 0..12_usize), any::<bool>()), 6),
        steps in proptest::collection::vec((0..15_i64, 0..6_usize, 0..12_usize, any::<bool>()), 20),
    ) {
        // Given pools of up to three operators with runners on nodes that have room for them, whatever others hold
        let mut free: Vec<u32> = nodes.iter().zip(&others)
            .map(|(node, others)| node.offers[GPU].saturating_sub(*others)).collect();
        let there: u32 = free.iter().sum();
        let pools = members.into_iter().zip(&known);
        let pools: Vec<(usize, Member)> = pools.map(|(mut member, (operator, (_, most), is_full))| {
            (member.claim.most, member.claim.is_full) = (member.claim.wanted + most, *is_full);
            (*operator, member)
        }).collect();
        let mut operators = Operators::new(&nodes, pools);
        operators.others = held_by_others(&others);
        for (pool, n) in held {
            let (pool, n) = (pool % operators.pools.len(), n % nodes.len());
            let member = &mut operators.pools[pool].1;
            let count = member.needs.count;
            if free[n] >= count {
                free[n] -= count;
                member.held.push((nodes[n].name.clone(), count));
                member.runners += 1;
            }
        }
        // ... and statuses that are behind
        for ((_, _, told), (_, (wanted, most), _)) in operators.pools.iter_mut().zip(&known) {
            (told.wanted, told.most) = (*wanted, *wanted + most);
        }
        let slots = usize::try_from(there.div_ceil(SLOT)).unwrap();
        let mut at = 0;
        for (seconds, pool, wanted, is_told) in steps {
            // When time passes, and what is wanted changes, and a status tells of it or not yet
            at += seconds;
            let pool = pool % operators.pools.len();
            let (_, member, told) = &mut operators.pools[pool];
            member.claim.wanted = wanted;
            if is_told {
                (told.wanted, told.most) = (wanted, member.claim.most);
            }
            let found = operators.reckon(at);

            // Then what is offered is there
            let (mut offered, mut beyond) = (0, [0; 3]);
            for ((by, member, _), share) in operators.pools.iter().zip(&found) {
                if *share == Share::default() {
                    // It has no node.
                    offered += u32::try_from(member.runners).unwrap() * member.needs.count;
                    continue;
                }
                prop_assert!(share.runners >= member.runners);
                offered += u32::try_from(share.runners - share.beyond).unwrap() * member.needs.count;
                beyond[*by] += share.beyond;
                prop_assert!(share.beyond == 0 || member.claim.is_full);
                // Except to hear of jobs: for ten seconds, one runner at a time for each 16 devices of each operator
                let since = share.room.since.map(|since| now(at).duration_since(since));
                prop_assert!(share.beyond == 0 || since.is_some_and(|passed| passed < GLANCE), "{share:?}");
            }
            prop_assert!(offered <= there, "{offered} of {there}");
            prop_assert!(beyond.iter().all(|beyond| *beyond <= slots), "{beyond:?} of {slots}");
        }

        // And every operator finds the same, in whichever order the pools come
        let before = operators.reckon(at);
        operators.pools.reverse();
        let mut after = operators.reckon(at);
        after.reverse();
        prop_assert_eq!(before, after);
    }
}
