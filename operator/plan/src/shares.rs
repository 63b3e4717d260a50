//! How pools that may use the same nodes share the GPUs there.
//!
//! For each extended resource the free devices are given out one runner at a time: to the namespace that holds the fewest
//! for its weight, and within it to the pool that does. First come runners that are being placed, then those that are
//! wanted, then what is left over, so that a pool without jobs can be assigned one. Before these a scale set of whose jobs
//! nothing can be known is offered one for a moment, to hear of them ([`room`]). Nothing that a pool holds is taken from it.
//! The same facts give the same shares, whoever reckons.
//!
//! Where several operators serve the pools of a cluster, each reckons twice: first what all pools would have by what every
//! operator sees alike, and then, of what its own pools have by that, what each of them has by what it alone knows. So all
//! offers together are what is there, though none knows of the others' jobs before a status shows them.

pub mod room;
mod rounds;
#[cfg(test)]
mod tests;
pub mod vain;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cudarunner_crds::{CudaRunnerStatus, DemandStatus};
use jiff::Timestamp;

use crate::NodeFacts;
use crate::fleet::Others;
use crate::model::pool::{PoolKey, RegistrationKind, Size};
pub use crate::placement::Place;
use crate::placement::admits;
use room::Room;
use rounds::{Rounds, Sharer};
use vain::Vain;

/// The heaviest weight.
pub const HEAVIEST: u32 = 10;
/// So many quarantined nodes count of what a status shows: it is kept of the pools of other operators, too.
const MOST_AVOIDED: usize = 100;

/// What a pool needs of the GPUs that it shares, as its spec says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Needs {
    /// The extended resource.
    pub resource: String,
    /// Devices of one runner, at least 1.
    pub count: u32,
    /// Its weight among the pools of its namespace.
    pub weight: u32,
    /// How many runners it has.
    pub size: Size,
    /// How they register.
    pub registration: RegistrationKind,
    /// Where its pods may go.
    pub place: Place,
}

impl Needs {
    /// What every operator knows of it: of a place in many words no more than the architecture and the compute capability.
    #[must_use]
    pub fn seen(&self) -> Self {
        Self {
            place: self.place.bounded(),
            ..self.clone()
        }
    }
}

/// What a pool would have, if there were nobody else.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claim {
    /// Runners that it wants, those that are there included.
    pub wanted: usize,
    /// Runners for which it takes what nobody wants.
    pub most: usize,
    /// Whether it is a scale set with a job for each of its runners: GitHub tells of no more than it was offered. By what all
    /// operators see, one without any job is none.
    pub is_full: bool,
    /// Nodes where none of its pods may go.
    pub avoids: BTreeSet<String>,
}

impl Claim {
    /// What a pool's status tells of it to another process.
    #[must_use]
    pub fn of(needs: &Needs, status: &CudaRunnerStatus) -> Self {
        let Size { min, max } = needs.size;
        let count = |number: i32| usize::try_from(number).unwrap_or_default();
        let (wanted, most) = if let Some(demand) = &status.demand {
            (count(demand.wanted), count(demand.most).min(max))
        } else {
            let jobs = count(status.busy).saturating_add(count(status.queued));
            let wanted = min.saturating_add(jobs).min(max);
            (wanted, most(needs.registration, max, wanted))
        };
        let avoided = status.quarantine.iter().take(MOST_AVOIDED);
        Self {
            wanted: wanted.min(max),
            most,
            is_full: false,
            avoids: avoided.map(|entry| entry.node.clone()).collect(),
        }
    }

    /// The same, where every operator sees that the pool has so many runners: a scale set with a job for each of them comes
    /// before those without any where something is left over.
    #[must_use]
    pub fn seen(self, needs: &Needs, runners: usize) -> Self {
        let is_set = needs.registration == RegistrationKind::ScaleSet;
        let is_full = is_set && self.wanted > needs.size.min && self.wanted >= runners;
        Self { is_full, ..self }
    }

    /// As the pool's status has it.
    #[must_use]
    pub fn demand(&self) -> DemandStatus {
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        DemandStatus {
            wanted: count(self.wanted),
            most: count(self.most),
        }
    }
}

/// Runners for which a pool takes what nobody wants: only a scale set is assigned jobs before it asks.
#[must_use]
pub fn most(registration: RegistrationKind, max: usize, wanted: usize) -> usize {
    match registration {
        RegistrationKind::ScaleSet => max,
        RegistrationKind::JitConfig | RegistrationKind::Token => wanted,
    }
}

/// A pool among those that share nodes.
#[derive(Clone, Debug)]
pub struct Member {
    /// Which.
    pub key: PoolKey,
    /// What it asks for.
    pub needs: Arc<Needs>,
    /// What it would have.
    pub claim: Claim,
    /// The node of each of its pods that has one, and the devices that it holds there.
    pub held: Vec<(String, u32)>,
    /// How many of them are runners that go on.
    pub runners: usize,
    /// How many are about to give their devices back.
    pub ending: usize,
    /// Its pods that may get a node at any moment.
    pub pending: usize,
    /// When a runner of its last began or ended.
    pub served: Option<Timestamp>,
    /// Whether one of its pods has waited for a node for long, or the API server has refused the last one.
    pub is_stuck: bool,
    /// Its last share.
    pub before: Arc<Share>,
}

/// A pool as every operator sees it: its claim is what its status tells, and nothing is known of its last share.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The pool.
    pub member: Member,
    /// Whether this operator serves it.
    pub is_own: bool,
}

/// What a pool may have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Share {
    /// Runners, those that have a node included.
    pub runners: usize,
    /// For how many of these there is no GPU: a scale set is offered them for a moment, to hear of its jobs, beside pools of
    /// another operator that have what is there.
    pub beyond: usize,
    /// How many had one and went on.
    pub placed: usize,
    /// Whether another pool has runners to come on a node of this one's: it waits for a GPU there, or its pod is not placed yet,
    /// or it is to be heard.
    pub is_contended: bool,
    /// Whether the next GPU that becomes free there is for this pool.
    pub is_next: bool,
    /// Nodes whose free GPUs are for others: kept for a larger runner, or given to a pool that cannot go elsewhere instead.
    pub kept: BTreeSet<String>,
    /// What it is offered beyond the jobs that it knows of.
    pub room: Room,
    /// What has become of GPUs that it was given.
    pub vain: Vain,
    /// Whether pools of other operators share the resource: these have to know what it would have.
    pub is_beside: bool,
}

impl Share {
    /// Runners that may be there, placed or not, where so many are wanted and so many have a node by now. Where nobody else
    /// waits, pods beyond the share ask a cluster autoscaler for nodes. Where somebody does, only whose turn it is has one.
    #[must_use]
    pub fn admits(&self, wanted: usize, placed: usize) -> usize {
        if !self.is_contended {
            return wanted;
        }
        // What a runner gave back since is nobody's before it is given anew.
        let own = self.runners.saturating_sub(self.beyond);
        let given = own.saturating_sub(self.placed);
        let runners = own.min(placed.saturating_add(given));
        // Whose turn it was has been served since.
        let is_next = self.is_next && placed <= self.placed;
        let next = runners.saturating_add(usize::from(is_next));
        wanted.min(next.max(placed))
    }
}

/// The shares of pools, by name; a pool without any node has none. `others` are the devices that pods hold which are no
/// runners of `members`, `weights` the namespaces' where they are not 1.
#[must_use]
pub fn shares(
    nodes: &[Arc<NodeFacts>],
    others: &Others,
    members: &[Member],
    weights: &BTreeMap<String, u32>,
    now: Timestamp,
) -> BTreeMap<PoolKey, Share> {
    shares_beside(nodes, others, (members, &[]), weights, now)
}

/// The same of an operator's pools, where others serve some of those that are `seen`, its own among them.
#[must_use]
pub fn shares_beside(
    nodes: &[Arc<NodeFacts>],
    others: &Others,
    (members, seen): (&[Member], &[Seen]),
    weights: &BTreeMap<String, u32>,
    now: Timestamp,
) -> BTreeMap<PoolKey, Share> {
    let mut by_resource: BTreeMap<&str, Pools> = BTreeMap::new();
    for member in members {
        let pools = by_resource.entry(&member.needs.resource).or_default();
        pools.own.push(member);
    }
    for Seen { member, is_own } in seen {
        // Where this operator has no pool, it has nothing to share.
        if let Some(pools) = by_resource.get_mut(member.needs.resource.as_str()) {
            let seen = if *is_own {
                &mut pools.own_as_seen
            } else {
                &mut pools.of_others
            };
            seen.push(member);
        }
    }
    let all = by_resource.into_iter();
    all.flat_map(|(resource, pools)| {
        Ground::new(resource, nodes, others).shares(&pools, weights, now)
    })
    .collect()
}

/// The pools that share a resource.
#[derive(Default)]
struct Pools<'a> {
    own: Vec<&'a Member>,
    /// As every operator sees them: those of others, and its own.
    of_others: Vec<&'a Member>,
    own_as_seen: Vec<&'a Member>,
}

/// The nodes of pools that say the same of where they may run.
type Alike<'m> = HashMap<(&'m Place, &'m BTreeSet<String>), Option<Arc<[usize]>>>;

/// Nodes that offer a resource, be it none of it at present.
struct Ground<'a> {
    nodes: Vec<&'a NodeFacts>,
    /// Devices of each, without what others hold.
    devices: Vec<u32>,
    index: HashMap<&'a str, usize>,
}

impl<'a> Ground<'a> {
    fn new(resource: &str, nodes: &'a [Arc<NodeFacts>], others: &Others) -> Self {
        let offers = |node: &NodeFacts| node.offers.get(resource).copied().unwrap_or_default();
        let nodes = nodes.iter().map(Arc::as_ref);
        // One that offers none just now is one all the same. Where devices are claimed, only the scheduler knows how many are free.
        let nodes: Vec<&NodeFacts> = nodes
            .filter(|node| node.offers.contains_key(resource))
            .collect();
        let held = |node: &NodeFacts| others.get(&node.name)?.get(resource).copied();
        let devices = nodes
            .iter()
            .map(|node| offers(node).saturating_sub(held(node).unwrap_or_default()))
            .collect();
        let names = nodes.iter().enumerate();
        let index = names.map(|(n, node)| (node.name.as_str(), n)).collect();
        Self {
            nodes,
            devices,
            index,
        }
    }

    fn shares<'m>(
        &self,
        pools: &Pools<'m>,
        weights: &BTreeMap<String, u32>,
        now: Timestamp,
    ) -> Vec<(PoolKey, Share)> {
        let mut alike = HashMap::new();
        let mut read = |members: &[&'m Member]| -> Vec<Sharer> {
            let all = members.iter();
            all.map(|member| self.sharer(member, weights, &mut alike, now))
                .collect()
        };
        let others = pools.of_others.len();
        let mut sharers = read(&pools.of_others);
        let beside = (others > 0).then(|| {
            sharers.extend(read(&pools.own_as_seen));
            Rounds::new(&self.devices, &sharers, now).seen(others)
        });
        sharers.truncate(others);
        sharers.extend(read(&pools.own));
        let rounds = Rounds::new(&self.devices, &sharers, now);
        let rounds = match beside {
            Some(beside) => rounds.beside(beside),
            None => rounds,
        };
        let rounds = rounds.run();
        let named = |kept: &[usize]| kept.iter().map(|n| self.nodes[*n].name.clone()).collect();
        // Of a pool without any node it is not known what there will be. What its runners hold is not free all the same.
        let own = pools.own.iter().zip(others..);
        let with_nodes = own.filter(|(_, i)| sharers[*i].nodes.is_some());
        let found = with_nodes.map(|(member, i)| {
            // Whose GPUs nobody waits for, or looks at, has those soon that its own runners give back.
            let back = if rounds.others_wait(i) || rounds.is_looked_at(i) {
                0
            } else {
                member.ending
            };
            let there = member.runners.saturating_add(back);
            let beyond = rounds.beyond(i);
            let runners = there.saturating_add(rounds.given(i)).saturating_add(beyond);
            let is_vain = member.is_stuck && sharers[i].wanted > 0 && rounds.given(i) > 0;
            let share = Share {
                runners,
                beyond,
                placed: member.runners,
                is_contended: rounds.others_come(i) || rounds.is_looked_at(i),
                is_next: rounds.is_next(i),
                kept: named(rounds.kept_from(i)),
                room: rounds.room(i, runners, member.claim.wanted),
                vain: member.before.vain.seen(is_vain, member.runners, now),
                is_beside: others > 0,
            };
            (member.key.clone(), share)
        });
        found.collect()
    }

    /// A pool as the rounds see it.
    fn sharer<'m>(
        &self,
        member: &'m Member,
        weights: &BTreeMap<String, u32>,
        alike: &mut Alike<'m>,
        now: Timestamp,
    ) -> Sharer {
        let place = &member.needs.place;
        let nodes = alike.entry((place, &member.claim.avoids));
        let nodes = nodes.or_insert_with(|| self.admitted(place, &member.claim.avoids));
        let nodes = nodes.clone();
        let mut held = BTreeMap::new();
        for (node, devices) in &member.held {
            if let Some(n) = self.index.get(node.as_str()) {
                let sum: &mut u32 = held.entry(*n).or_default();
                *sum = sum.saturating_add(*devices);
            }
        }
        let weight = |weight: u32| weight.clamp(1, HEAVIEST);
        let of_namespace = weights.get(&member.key.namespace).copied().unwrap_or(1);
        let runners = member.runners;
        Sharer {
            key: member.key.clone(),
            weights: (weight(of_namespace), weight(member.needs.weight)),
            count: member.needs.count.max(1),
            nodes,
            held,
            pending: member
                .pending
                .min(member.claim.wanted.saturating_sub(runners)),
            wanted: member.claim.wanted.saturating_sub(runners),
            most: member.claim.most.saturating_sub(runners),
            is_full: member.claim.is_full,
            served: member.served,
            room: member.before.room.heard(member.claim.wanted, now),
            may_keep: member.before.vain.may_keep(now),
        }
    }

    /// Nodes where a pool's pods may go; `None` where there is none, whatever it avoids.
    fn admitted(&self, place: &Place, avoids: &BTreeSet<String>) -> Option<Arc<[usize]>> {
        let all = self.nodes.iter().enumerate();
        let all: Vec<usize> = all
            .filter(|(_, node)| admits(place, node))
            .map(|(n, _)| n)
            .collect();
        let well = all.iter().copied();
        let well = well.filter(|n| !avoids.contains(&self.nodes[*n].name));
        (!all.is_empty()).then(|| well.collect())
    }
}
