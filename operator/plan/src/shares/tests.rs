//! Given nodes, pools and what others hold, then all offers together fit, every pool has its turn, and nothing moves by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::ScalingSource;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::json;

mod beside;
mod heard;
mod vain;

use super::*;
use crate::fixture::{NOW, node, scaled};
use crate::model::pool::Pool;

const GPU: &str = "nvidia.com/gpu";

/// A pool that wants `wanted` runners, on nodes of these zones.
fn member(name: &str, wanted: usize, count: u32, weight: u32, zones: &[usize]) -> Member {
    let (namespace, _) = name.split_once('/').unwrap();
    let mut resource = scaled(ScalingSource::ScaleSet, 0, 20);
    resource.spec.scaling.as_mut().unwrap().weight = i32::try_from(weight).unwrap();
    resource.spec.gpu.count = Some(i32::try_from(count).unwrap());
    let zones: Vec<String> = zones.iter().map(ToString::to_string).collect();
    let terms = json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": zones}]}]);
    let required =
        json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
    if !zones.is_empty() {
        resource.spec.template = Some(json!({"spec": {"affinity": {"nodeAffinity": required}}}));
    }
    Member {
        key: PoolKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
        needs: Pool::read(&resource, false)
            .spec
            .unwrap()
            .needs
            .clone()
            .unwrap(),
        claim: Claim {
            wanted,
            most: 20,
            is_full: false,
            avoids: BTreeSet::new(),
        },
        held: vec![],
        runners: 0,
        ending: 0,
        pending: 0,
        served: None,
        is_stuck: false,
        before: Arc::default(),
    }
}

/// A node with so many GPUs, in a zone.
fn with_gpus(number: usize, gpus: u32, zone: usize) -> Arc<NodeFacts> {
    let mut node = NodeFacts::clone(&node(&format!("node-{number}")));
    node.offers = BTreeMap::from([(GPU.to_owned(), gpus)]);
    node.labels.insert("zone".to_owned(), zone.to_string());
    Arc::new(node)
}

fn held_by_others(held: &[u32]) -> Others {
    let held = held.iter().enumerate();
    held.map(|(n, held)| {
        (
            format!("node-{n}"),
            BTreeMap::from([(GPU.to_owned(), *held)]),
        )
    })
    .collect()
}

fn runners(nodes: &[Arc<NodeFacts>], members: &[Member]) -> Vec<usize> {
    let shares = shares(nodes, &Others::new(), members, &BTreeMap::new(), NOW);
    members.iter().map(|m| shares[&m.key].runners).collect()
}

#[test]
fn namespaces_share_evenly_and_pools_within_one_by_weight() {
    let nodes = [with_gpus(0, 12, 0)];
    let wanting = |name, weight| member(name, 20, 1, weight, &[]);
    // However many pools a namespace has, and however heavy they are
    let members = [
        wanting("a/1", 1),
        wanting("b/1", 10),
        wanting("b/2", 5),
        wanting("b/3", 5),
    ];
    assert_eq!(runners(&nodes, &members), [6, 3, 2, 1]);
    // Unless the administrator says otherwise
    let weights = BTreeMap::from([("a".to_owned(), 3)]);
    let heavy = shares(&nodes, &Others::new(), &members, &weights, NOW);
    assert_eq!(heavy[&members[0].key].runners, 9);
    // What one does not want is the others', and what nobody wants is offered all the same
    let members = [member("a/1", 2, 1, 1, &[]), wanting("b/1", 1)];
    assert_eq!(runners(&nodes, &members), [2, 10]);
    let members = [member("a/1", 0, 1, 1, &[]), member("b/1", 0, 1, 1, &[])];
    assert_eq!(runners(&nodes, &members), [6, 6]);
}

#[test]
fn whose_turn_it_is_asks_for_one_runner_more_and_others_for_none() {
    // Given a GPU that a runner of one pool holds, and another pool that waits as well
    let nodes = [with_gpus(0, 1, 0)];
    let mut holds = member("a/1", 5, 1, 1, &[]);
    (holds.held, holds.runners) = (vec![("node-0".to_owned(), 1)], 1);
    let waits = member("b/1", 5, 1, 1, &[]);
    let found = shares(
        &nodes,
        &Others::new(),
        &[holds.clone(), waits.clone()],
        &BTreeMap::new(),
        NOW,
    );
    let (one, other) = (&found[&holds.key], &found[&waits.key]);
    // Then it is the other's turn
    assert_eq!((one.admits(5, 1), one.runners), (1, 1));
    assert_eq!((other.admits(5, 0), other.runners), (1, 0));
    // ... and not once more, before that is known to be over
    assert_eq!(other.admits(5, 1), 1);
    // And what a runner gives back is not its pool's before it is given anew
    assert_eq!(one.admits(5, 0), 0);
    // And where nobody else waits, all pods ask for nodes
    let found = shares(
        &nodes,
        &Others::new(),
        &[holds.clone()],
        &BTreeMap::new(),
        NOW,
    );
    assert_eq!(found[&holds.key].admits(5, 1), 5);
}

#[test]
fn a_pool_that_lost_its_runner_a_moment_ago_comes_after_the_other() {
    let nodes = [with_gpus(0, 1, 0)];
    let (mut one, mut other) = (member("a/1", 1, 1, 1, &[]), member("a/2", 1, 1, 1, &[]));
    one.served = Some(NOW);
    other.served = Some(NOW - SignedDuration::from_secs(60));
    let members = [one, other];
    assert_eq!(runners(&nodes, &members), [0, 1]);
}

#[test]
fn a_node_is_kept_for_a_large_runner() {
    // Given two nodes with one GPU taken each, and a pool whose runners need a whole one
    let nodes = [with_gpus(0, 4, 0), with_gpus(1, 4, 0)];
    let large = member("a/1", 1, 4, 1, &[]);
    let mut small = member("b/1", 20, 1, 1, &[]);
    small.held = vec![("node-0".to_owned(), 1), ("node-1".to_owned(), 1)];
    small.runners = 2;
    let found = shares(
        &nodes,
        &Others::new(),
        &[large.clone(), small.clone()],
        &BTreeMap::new(),
        NOW,
    );
    // Then one of them is left to run empty, and the small ones are told to keep off it
    assert_eq!(found[&small.key].runners, 5);
    assert_eq!(
        found[&small.key].kept,
        BTreeSet::from(["node-0".to_owned()])
    );
    assert!(found[&large.key].is_next && found[&large.key].runners == 0);
    assert!(found[&large.key].kept.is_empty());
}

#[test]
fn who_can_go_elsewhere_leaves_alone_what_only_another_can_use() {
    // Given a GPU on each of two nodes, and two pools that were given one each
    let nodes = [with_gpus(0, 1, 0), with_gpus(1, 1, 1)];
    let kept = |zones: &[usize]| {
        let members = [member("a/1", 1, 1, 1, zones), member("b/1", 1, 1, 1, &[])];
        let found = shares(&nodes, &Others::new(), &members, &BTreeMap::new(), NOW);
        members.map(|member| found[&member.key].kept.iter().cloned().collect::<String>())
    };
    // Then the one that may go to either is told to leave the other's alone, and where both may, nobody is
    assert_eq!(kept(&[0]), ["", "node-0"]);
    assert_eq!(kept(&[]), ["", ""]);
}

#[test]
fn where_no_node_is_for_a_pool_nothing_is_said() {
    let nodes = [with_gpus(0, 4, 0)];
    let elsewhere = member("a/1", 1, 1, 1, &[7]);
    assert!(shares(&nodes, &Others::new(), &[elsewhere], &BTreeMap::new(), NOW).is_empty());
    // One that it has in quarantine is there
    let mut avoids = member("a/1", 1, 1, 1, &[]);
    avoids.claim.avoids.insert("node-0".to_owned());
    assert_eq!(runners(&nodes, &[avoids]), [0]);
    // So is one whose device plugin has no device left
    let wants = || member("a/1", 1, 1, 1, &[]);
    assert_eq!(runners(&[with_gpus(0, 0, 0)], &[wants()]), [0]);
    // And of one where devices are claimed, and no plugin has ever counted them, the scheduler alone knows
    let mut claimed = NodeFacts::clone(&with_gpus(0, 0, 0));
    claimed.offers.clear();
    let none = shares(
        &[Arc::new(claimed)],
        &Others::new(),
        &[wants()],
        &BTreeMap::new(),
        NOW,
    );
    assert!(none.is_empty());
}

prop_compose! {
    /// Nodes, in three zones, and what others hold of them.
    fn cluster()(nodes in proptest::collection::vec((0..9_u32, 0..3_usize, 0..4_u32), 1..6))
        -> (Vec<Arc<NodeFacts>>, Vec<u32>)
    {
        let all = nodes.iter().enumerate();
        let facts = all.map(|(n, (gpus, zone, _))| with_gpus(n, *gpus, *zone)).collect();
        (facts, nodes.iter().map(|(_, _, others)| *others).collect())
    }
}

prop_compose! {
    fn pools()(pools in proptest::collection::vec(
        ((0..3_usize, 0..12_usize), (1..5_u32, 1..11_u32), proptest::sample::subsequence(vec![0_usize, 1, 2], 1..=3), 0..3_usize),
        1..6,
    )) -> Vec<Member> {
        let all = pools.into_iter().enumerate();
        all.map(|(n, ((namespace, wanted), (count, weight), zones, pending))| {
            let mut member = member(&format!("{namespace}/{n}"), wanted, count, weight, &zones);
            member.pending = pending;
            member
        })
        .collect()
    }
}

/// Places pods up to what is admitted, wherever the scheduler finds room, on kept nodes last; who was served.
struct Scheduler {
    nodes: Vec<Arc<NodeFacts>>,
    free: Vec<u32>,
    members: Vec<Member>,
    now: Timestamp,
    /// Pool and node of each runner, the oldest first.
    runners: Vec<(usize, usize)>,
}

/// Whoever ends is among so many of the oldest: jobs end at some time.
const OLDEST: usize = 4;

impl Scheduler {
    fn shares(&self) -> BTreeMap<PoolKey, Share> {
        shares(
            &self.nodes,
            &Others::new(),
            &self.members,
            &BTreeMap::new(),
            NOW,
        )
    }

    fn may_go(&self, member: &Member, n: usize) -> bool {
        admits(&member.needs.place, &self.nodes[n])
    }

    /// One pod gets a node, if one can; whose.
    fn schedule(&mut self) -> Option<usize> {
        let found = self.shares();
        for i in 0..self.members.len() {
            let member = &self.members[i];
            let Some(share) = found.get(&member.key) else {
                continue;
            };
            if share.admits(member.claim.wanted, member.runners) <= member.runners {
                continue;
            }
            let count = member.needs.count;
            let room = (0..self.nodes.len())
                .filter(|n| self.free[*n] >= count && self.may_go(member, *n))
                .min_by_key(|n| (share.kept.contains(&self.nodes[*n].name), *n));
            if let Some(n) = room {
                self.free[n] -= count;
                self.now += SignedDuration::from_secs(1);
                let name = self.nodes[n].name.clone();
                let (now, member) = (self.now, &mut self.members[i]);
                member.held.push((name, count));
                member.runners += 1;
                member.served = Some(now);
                self.runners.push((i, n));
                return Some(i);
            }
        }
        None
    }

    /// One of the oldest runners ends.
    fn end(&mut self, which: usize) {
        let among = self.runners.len().clamp(1, OLDEST);
        if self.runners.is_empty() {
            return;
        }
        let (i, n) = self.runners.remove(which % among);
        let name = &self.nodes[n].name;
        let held = &mut self.members[i].held;
        let (_, count) = held.remove(held.iter().position(|(node, _)| node == name).unwrap());
        self.free[n] += count;
        self.members[i].runners -= 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_offers_together_are_what_is_there(
        (nodes, others) in cluster(), members in pools(),
        held in proptest::collection::vec((0..6_usize, 0..6_usize), 0..12),
    ) {
        // Given runners of these pools on nodes that have room for them, whatever others hold
        let mut members = members;
        let mut free: Vec<u32> = nodes.iter().zip(&others)
            .map(|(node, others)| node.offers[GPU].saturating_sub(*others)).collect();
        let there: u32 = free.iter().sum();
        for (pool, n) in held {
            let (pool, n) = (pool % members.len(), n % nodes.len());
            let count = members[pool].needs.count;
            if free[n] >= count {
                free[n] -= count;
                members[pool].held.push((nodes[n].name.clone(), count));
                members[pool].runners += 1;
            }
        }
        let others = held_by_others(&others);
        let found = shares(&nodes, &others, &members, &BTreeMap::new(), NOW);

        // Then what all pools offer is there, and each offers what it has at least
        let mut offered = 0;
        for member in &members {
            let runners = found.get(&member.key).map_or(member.runners, |share| share.runners);
            prop_assert!(runners >= member.runners);
            offered += u32::try_from(runners).unwrap() * member.needs.count;
        }
        prop_assert!(offered <= there, "{offered} of {there}");

        // And whoever reckons finds the same, in whichever order the pools come
        members.reverse();
        prop_assert_eq!(found, shares(&nodes, &others, &members, &BTreeMap::new(), NOW));
    }

    #[test]
    fn every_pool_has_its_turn(
        (nodes, _) in cluster(), members in pools(), in_one in any::<bool>(),
        ends in proptest::collection::vec(0..OLDEST, 300),
    ) {
        // Given pools that always want more, of one namespace or each of its own, and nodes that are full
        let mut members = members;
        for (number, member) in members.iter_mut().enumerate() {
            member.key.namespace = if in_one { "one".to_owned() } else { number.to_string() };
            (member.claim.wanted, member.claim.most, member.pending) = (20, 20, 0);
        }
        let free = nodes.iter().map(|node| node.offers[GPU]).collect();
        let mut scheduler = Scheduler { nodes, free, members, now: NOW, runners: vec![] };
        let mut served = vec![0; scheduler.members.len()];
        while scheduler.schedule().is_some() {}

        // When runners end one after the other
        for which in ends {
            scheduler.end(which);
            while let Some(i) = scheduler.schedule() {
                served[i] += 1;
            }
        }

        // Then each pool that fits anywhere is served again, or still has a runner
        for (i, member) in scheduler.members.iter().enumerate() {
            let count = member.needs.count;
            let fits = (0..scheduler.nodes.len())
                .any(|n| scheduler.may_go(member, n) && scheduler.nodes[n].offers[GPU] >= count);
            prop_assert!(!fits || served[i] > 0 || member.runners > 0, "{} waits for ever", member.key);
        }
    }

    #[test]
    fn nothing_moves_while_nothing_changes((nodes, _) in cluster(), members in pools()) {
        // Given pools that have had made what they want
        let free = nodes.iter().map(|node| node.offers[GPU]).collect();
        let mut scheduler = Scheduler { nodes, free, members, now: NOW, runners: vec![] };
        while scheduler.schedule().is_some() {}
        // Then a runner that ends and whose place is taken at once leaves every offer as it was
        let before = scheduler.shares();
        prop_assert_eq!(&before, &scheduler.shares());
        for (key, share) in &before {
            let member = scheduler.members.iter().find(|m| m.key == *key).unwrap();
            prop_assert!(share.runners >= member.runners);
        }
    }
}
