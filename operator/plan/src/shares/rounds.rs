//! The rounds in which devices of one resource are given out. Where other operators serve some of the pools, what all
//! operators reckon alike comes first ([`Rounds::seen`]), and an operator gives out what its own pools have by that.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use jiff::Timestamp;

use super::room::{Room, SLOT};
use crate::model::pool::PoolKey;

/// A multiple of all weights, so that what somebody holds for its weight is a whole number.
const WHOLE: u64 = 2520;

/// So many nodes are named at most that a pool's pods should leave alone: each pod carries the names.
const MOST_KEPT: usize = 64;

/// A pool, with nodes by their number.
pub(super) struct Sharer {
    pub(super) key: PoolKey,
    /// Of its namespace, and its own: 1 to 10.
    pub(super) weights: (u32, u32),
    /// Devices of one runner.
    pub(super) count: u32,
    /// Where a runner may start, in order; `None` where no node is for the pool at all.
    pub(super) nodes: Option<Arc<[usize]>>,
    /// Devices that its runners hold.
    pub(super) held: BTreeMap<usize, u32>,
    /// Runners beyond those that have a node: those that may get one at any moment, those that are wanted, and those that could be used.
    pub(super) pending: usize,
    pub(super) wanted: usize,
    pub(super) most: usize,
    pub(super) served: Option<Timestamp>,
    /// Whether it may have jobs that nobody knows of, and what it was offered to hear of them.
    pub(super) is_full: bool,
    pub(super) room: Room,
    /// Whether a node may be kept for it.
    pub(super) may_keep: bool,
}

impl Sharer {
    fn nodes(&self) -> &[usize] {
        self.nodes.as_deref().unwrap_or_default()
    }

    /// Its devices, in runners and by weight.
    fn devices(&self, given: usize) -> u64 {
        let given = u64::try_from(given).unwrap_or(u64::MAX);
        let held = self
            .held
            .values()
            .fold(0_u64, |sum, held| sum.saturating_add(u64::from(*held)));
        held.saturating_add(given.saturating_mul(u64::from(self.count)))
    }
}

/// What somebody holds for its weight.
fn by_weight(devices: u64, weight: u32) -> u64 {
    let whole = WHOLE.checked_div(u64::from(weight)).unwrap_or(WHOLE);
    devices.saturating_mul(whole)
}

/// Which namespace comes next: the one that holds least for its weight, and of those alike the one that was served longest ago.
type Turn<'a> = (u64, Option<Timestamp>, &'a str);

/// Pools of a namespace, in the same order; with the number of each.
type Queue<'a> = BinaryHeap<Reverse<(Turn<'a>, usize)>>;

/// What pools of other operators have by what all operators reckon alike, and what that leaves to one of them. These pools
/// are the first of the sharers.
pub(super) struct Beside {
    /// Devices of each node that its pools have by that.
    free: Vec<u32>,
    /// The node of each runner that each of the others was given: before a pool of this operator waits, then for what is asked
    /// for, then what is left over.
    given: Vec<(Vec<usize>, Parts)>,
    /// Nodes that are kept for one of the others.
    kept: BTreeMap<usize, usize>,
    /// How many of the others wait for each node, before any pool of this operator and after the first.
    ahead: Vec<usize>,
    behind: Vec<usize>,
}

/// How many of somebody's runners were given before a moment.
#[derive(Clone, Copy, Default)]
struct Parts {
    early: usize,
    asked: usize,
}

/// What has been given out.
pub(super) struct Rounds<'a> {
    sharers: &'a [Sharer],
    /// So many of them, the first, are others' to serve: what they were given is known.
    others: usize,
    devices: &'a [u32],
    free: Vec<u32>,
    /// The node of each runner that each was given.
    given: Vec<Vec<usize>>,
    by_namespace: BTreeMap<&'a str, u64>,
    last_served: BTreeMap<&'a str, Option<Timestamp>>,
    /// Who waits, and whether the next GPU there is for it.
    waiting: BTreeMap<usize, bool>,
    /// How many wait for each node, and how many of others come after those of this operator.
    line: Vec<usize>,
    behind: Vec<usize>,
    /// Who was given something, in order.
    log: Vec<usize>,
    /// Who waits, in order, and after how many of those.
    order: Vec<(usize, usize)>,
    /// Who has runners to come, and how many of these for each node.
    coming: Vec<bool>,
    comers: Vec<usize>,
    /// Nodes whose free devices are kept for somebody, and how many these are.
    kept: BTreeMap<usize, (usize, u32)>,
    /// Nodes whose free devices are for others than each.
    kept_from: Vec<Vec<usize>>,
    /// Who has a glance, whoever waits, and who waits for one.
    glances: Vec<bool>,
    waits_to_look: Vec<bool>,
    /// Who has a glance at what others have.
    beyond: Vec<bool>,
    /// Glances for which others wait that may begin yet.
    slots: usize,
    /// What others have that is not given yet: what is asked for, and what is left over.
    asked_by_others: Vec<(usize, usize)>,
    left_to_others: Vec<(usize, usize)>,
    /// Where pools of other operators may go.
    is_shared: Vec<bool>,
    /// Where others are to have no pod that would take the device of such a one.
    looked_at: Vec<bool>,
    now: Timestamp,
}

impl<'a> Rounds<'a> {
    /// `devices` are those of each node, runners' included.
    pub(super) fn new(devices: &'a [u32], sharers: &'a [Sharer], now: Timestamp) -> Self {
        let mut rounds = Self {
            sharers,
            others: 0,
            devices,
            free: devices.to_vec(),
            given: vec![vec![]; sharers.len()],
            by_namespace: BTreeMap::new(),
            last_served: BTreeMap::new(),
            waiting: BTreeMap::new(),
            line: vec![0; devices.len()],
            behind: vec![0; devices.len()],
            log: vec![],
            order: vec![],
            coming: sharers.iter().map(|s| s.wanted > 0).collect(),
            comers: vec![0; devices.len()],
            kept: BTreeMap::new(),
            kept_from: vec![],
            glances: vec![false; sharers.len()],
            waits_to_look: vec![false; sharers.len()],
            beyond: vec![false; sharers.len()],
            slots: 0,
            asked_by_others: vec![],
            left_to_others: vec![],
            is_shared: vec![false; devices.len()],
            looked_at: vec![false; devices.len()],
            now,
        };
        for (i, sharer) in sharers.iter().enumerate() {
            for node in rounds.waits_for(i) {
                let comes = usize::from(sharer.wanted > 0);
                rounds.comers[node] = rounds.comers[node].saturating_add(comes);
            }
            for (node, held) in &sharer.held {
                rounds.free[*node] = rounds.free[*node].saturating_sub(*held);
            }
            let namespace = sharer.key.namespace.as_str();
            let sum = rounds.by_namespace.entry(namespace).or_default();
            *sum = sum.saturating_add(sharer.devices(0));
            let last = rounds.last_served.entry(namespace).or_default();
            *last = sharer.served.max(*last);
        }
        rounds
    }

    pub(super) fn run(mut self) -> Self {
        self.round(|s| s.pending, false, true);
        self.glance();
        self.round(|s| s.wanted, true, true);
        self.let_others_wait();
        self.keep();
        for (i, node) in std::mem::take(&mut self.left_to_others) {
            self.give(i, node);
        }
        self.glance_when_idle();
        // What is left over is given by name among those alike: it must not move with each runner that ends.
        self.round(|s| s.most, false, false);
        self.glance_at_what_others_have();
        self
    }

    /// What every operator reckons alike, as it comes to one for which the first `others` of the sharers are others'. Nobody is
    /// heard: when somebody last was is known to its own operator alone.
    pub(super) fn seen(mut self, others: usize) -> Beside {
        self.round(|s| s.pending, false, true);
        self.round(|s| s.wanted, true, true);
        let first_own = self.order.iter().find(|(i, _)| *i >= others);
        let early = first_own.map_or(self.log.len(), |(_, after)| *after);
        let mut parts = vec![Parts::default(); self.sharers.len()];
        for (n, i) in self.log.iter().enumerate() {
            parts[*i].asked = parts[*i].asked.saturating_add(1);
            parts[*i].early = parts[*i].early.saturating_add(usize::from(n < early));
        }
        // Whose jobs fill its runners comes first by one runner, so that it grows.
        self.glance_when_idle();
        self.round(|s| s.most, false, false);

        let mut free = vec![0_u32; self.devices.len()];
        let own = self.given.iter().zip(self.sharers).skip(others);
        let own = own.flat_map(|(given, sharer)| given.iter().map(|node| (*node, sharer.count)));
        let kept = self.kept.iter().filter(|(_, (by, _))| *by >= others);
        for (node, devices) in own.chain(kept.map(|(node, (_, devices))| (*node, *devices))) {
            free[node] = free[node].saturating_add(devices);
        }
        let (mut ahead, mut behind) = (vec![0; free.len()], vec![0; free.len()]);
        let mut is_own = vec![false; free.len()];
        for (i, _) in &self.order {
            for node in self.waits_for(*i) {
                is_own[node] |= *i >= others;
                if *i < others {
                    let line = if is_own[node] {
                        &mut behind
                    } else {
                        &mut ahead
                    };
                    line[node] = usize::saturating_add(line[node], 1);
                }
            }
        }
        let kept = self.kept.iter().filter(|(_, (by, _))| *by < others);
        Beside {
            free,
            kept: kept.map(|(node, (by, _))| (*node, *by)).collect(),
            given: self.given.into_iter().zip(parts).take(others).collect(),
            ahead,
            behind,
        }
    }

    /// The same rounds, where pools of other operators have what all reckon that they have.
    pub(super) fn beside(mut self, beside: Beside) -> Self {
        self.others = beside.given.len();
        self.free = beside.free;
        for (i, (nodes, parts)) in beside.given.into_iter().enumerate() {
            let sharer = &self.sharers[i];
            if sharer.wanted > 0 || sharer.most > 0 {
                for node in self.waits_for(i) {
                    self.is_shared[node] = true;
                }
            }
            for (n, node) in nodes.into_iter().enumerate() {
                if n < parts.early {
                    self.give(i, node);
                } else if n < parts.asked {
                    self.asked_by_others.push((i, node));
                } else {
                    self.left_to_others.push((i, node));
                }
            }
        }
        let kept = beside.kept.into_iter();
        self.kept = kept.map(|(node, by)| (node, (by, 0))).collect();
        (self.line, self.behind) = (beside.ahead, beside.behind);
        self
    }

    /// What others ask for that comes after the first pool of this operator.
    fn let_others_wait(&mut self) {
        for (i, node) in std::mem::take(&mut self.asked_by_others) {
            self.give(i, node);
        }
        for (line, behind) in self.line.iter_mut().zip(&self.behind) {
            *line = line.saturating_add(*behind);
        }
    }

    /// What a pool is offered beyond the jobs that it knows of, where it is offered and known to want so many runners.
    pub(super) fn room(&self, sharer: usize, offered: usize, wanted: usize) -> Room {
        let room = self.sharers[sharer].room.offers(offered, wanted, self.now);
        let room = room.waiting(self.waits_to_look[sharer], self.now);
        if self.glances[sharer] && self.others_wait(sharer) {
            room.awaited()
        } else {
            room
        }
    }

    /// Whether another pool looks for jobs on a node of a pool's.
    pub(super) fn is_looked_at(&self, sharer: usize) -> bool {
        let mut nodes = self.waits_for(sharer).into_iter();
        nodes.any(|node| self.looked_at[node])
    }

    /// Runners of a pool beyond those that have a node.
    pub(super) fn given(&self, sharer: usize) -> usize {
        self.given[sharer].len()
    }

    /// Runners that a pool is offered beyond these, though others have what is there.
    pub(super) fn beyond(&self, sharer: usize) -> usize {
        usize::from(self.beyond[sharer])
    }

    /// Whether somebody else waits for a node of a pool's.
    pub(super) fn others_wait(&self, sharer: usize) -> bool {
        let own = usize::from(self.waiting.contains_key(&sharer));
        let mut nodes = self.waits_for(sharer).into_iter();
        nodes.any(|node| self.line[node] > own)
    }

    /// Whether somebody else has runners to come there: those that were given and are not placed yet, too.
    pub(super) fn others_come(&self, sharer: usize) -> bool {
        let own = usize::from(self.coming[sharer]);
        let mut nodes = self.waits_for(sharer).into_iter();
        nodes.any(|node| self.comers[node] > own)
    }

    /// Whether a pool waits, nobody before it does, and nobody's pods are to be placed there first.
    pub(super) fn is_next(&self, sharer: usize) -> bool {
        self.waiting.get(&sharer) == Some(&true)
    }

    /// Nodes whose free devices are for others.
    pub(super) fn kept_from(&self, sharer: usize) -> &[usize] {
        &self.kept_from[sharer]
    }

    /// Gives out runners up to `goal`; `in_line` where those for whom there is nothing wait.
    fn round(&mut self, goal: fn(&Sharer) -> usize, in_line: bool, by_turn: bool) {
        let mut queues: BTreeMap<&str, Queue> = BTreeMap::new();
        for (i, sharer) in self.sharers.iter().enumerate().skip(self.others) {
            if self.given(i) < goal(sharer) {
                let queue = queues.entry(&sharer.key.namespace).or_default();
                queue.push(Reverse((self.turn(i, by_turn), i)));
            }
        }
        let next = |rounds: &Self, queue: &Queue<'a>| {
            let Reverse((_, first)) = queue.peek()?;
            Some(Reverse(rounds.turn_of_namespace(*first, by_turn)))
        };
        let mut turns: BinaryHeap<_> = queues.values().filter_map(|q| next(self, q)).collect();
        while let Some(Reverse((_, _, namespace))) = turns.pop() {
            let Some(queue) = queues.get_mut(namespace) else {
                continue;
            };
            if let Some(Reverse((_, i))) = queue.pop() {
                if !self.place(i) {
                    if in_line {
                        self.wait(i);
                    }
                } else if self.given(i) < goal(&self.sharers[i]) {
                    queue.push(Reverse((self.turn(i, by_turn), i)));
                }
            }
            turns.extend(next(self, queue));
        }
    }

    /// Scale sets that have all that they are known to want, and may want more: the namespace that was heard longest ago
    /// comes first, however many pools it has, and in it the pool that was.
    fn silent(&self, is_due: impl Fn(&Room) -> bool) -> Vec<usize> {
        let own = self.sharers.iter().enumerate().skip(self.others);
        let silent = own.filter(|(i, sharer)| {
            let given = self.given(*i);
            sharer.is_full && given == sharer.wanted && given < sharer.most && is_due(&sharer.room)
        });
        let mut silent: Vec<usize> = silent.map(|(i, _)| i).collect();
        let mut looked: BTreeMap<&str, Option<Timestamp>> = BTreeMap::new();
        for Sharer { room, key, .. } in self.sharers {
            let last = looked.entry(&key.namespace).or_default();
            *last = room.looked.max(*last);
        }
        silent.sort_by_key(|i| {
            let Sharer { room, key, .. } = &self.sharers[*i];
            let of_namespace = looked.get(key.namespace.as_str());
            (!room.is_glance(self.now), of_namespace, room.until, key)
        });
        silent
    }

    /// Glances that keep others waiting: some at a time. Where nothing is free, the next device is for one.
    fn glance(&mut self) {
        let now = self.now;
        let used = self.sharers.iter().filter(|s| s.room.has_slot(now)).count();
        self.slots = self.all_slots().saturating_sub(used);
        let is_wanted = self.wanted_nodes();
        let mut due = self.silent(|room| room.is_due(now));
        due.retain(|i| self.waits_for(*i).iter().any(|node| is_wanted[*node]));
        for i in due {
            let room = self.sharers[i].room;
            let may = room.is_glance(now) || self.slots > 0;
            if may && self.place(i) {
                self.begin_glance(i);
                self.look(i);
            } else if may && self.sharers[i].count == 1 && !self.is_beside(i) {
                self.waits_to_look[i] = true;
                if room.is_looking(now) {
                    self.look(i);
                }
            }
        }
    }

    /// Glances that may go on at a time for which others wait.
    fn all_slots(&self) -> usize {
        let devices = self.devices.iter().copied().fold(0, u32::saturating_add);
        usize::try_from(devices.div_ceil(SLOT)).unwrap_or(usize::MAX)
    }

    fn begin_glance(&mut self, i: usize) {
        let is_new = !self.sharers[i].room.is_glance(self.now);
        self.slots = self.slots.saturating_sub(usize::from(is_new));
        self.glances[i] = true;
    }

    /// Whether pools of other operators may go to a node of a pool's.
    fn is_beside(&self, i: usize) -> bool {
        self.waits_for(i).iter().any(|node| self.is_shared[*node])
    }

    /// Glances of those that were given nothing to look with, where pools of other operators have what is there, or wait for
    /// it. Such a one takes no device: the next one to be free cannot be had for it, as another operator's pods take that. It
    /// is offered all the same, some at a time.
    fn glance_at_what_others_have(&mut self) {
        let now = self.now;
        let is_wanted = self.wanted_nodes();
        let theirs = self.given.iter().take(self.others).flatten();
        let mut is_theirs = vec![false; self.devices.len()];
        theirs.for_each(|node| is_theirs[*node] = true);
        let mut left = self.all_slots();
        for i in self.silent(|room| room.is_due(now) || room.is_due_when_idle(now)) {
            let mut nodes = self.waits_for(i);
            nodes.retain(|node| self.is_shared[*node]);
            let room = self.sharers[i].room;
            let is_awaited = nodes.iter().any(|node| is_wanted[*node]);
            let may = if is_awaited {
                room.is_due(now) && (room.is_glance(now) || self.slots > 0)
            } else {
                room.is_due_when_idle(now) && nodes.iter().any(|node| is_theirs[*node])
            };
            if may && left > 0 {
                left = left.saturating_sub(1);
                self.beyond[i] = true;
                if is_awaited {
                    self.begin_glance(i);
                }
            }
        }
    }

    /// Where somebody is known to want more than it was given.
    fn wanted_nodes(&self) -> Vec<bool> {
        let mut is_wanted = vec![false; self.devices.len()];
        let all = self.sharers.iter().enumerate();
        let wanting = all.filter(|(i, sharer)| self.given(*i) < sharer.wanted);
        for node in wanting.flat_map(|(i, _)| self.waits_for(i)) {
            is_wanted[node] = true;
        }
        is_wanted
    }

    fn look(&mut self, i: usize) {
        for node in self.waits_for(i) {
            self.looked_at[node] = true;
        }
    }

    /// Glances at what nobody wants.
    fn glance_when_idle(&mut self) {
        let now = self.now;
        for i in self.silent(|room| room.is_due_when_idle(now)) {
            self.place(i);
        }
    }

    fn turn_of_namespace(&self, i: usize, by_turn: bool) -> Turn<'a> {
        let sharer = &self.sharers[i];
        let namespace = sharer.key.namespace.as_str();
        let devices = self.by_namespace.get(namespace).copied();
        let last = self.last_served.get(namespace).copied();
        (
            by_weight(devices.unwrap_or_default(), sharer.weights.0),
            last.flatten().filter(|_| by_turn),
            namespace,
        )
    }

    fn turn(&self, i: usize, by_turn: bool) -> Turn<'a> {
        let sharer = &self.sharers[i];
        (
            by_weight(sharer.devices(self.given(i)), sharer.weights.1),
            sharer.served.filter(|_| by_turn),
            &sharer.key.name,
        )
    }

    /// Gives a pool one runner more, on the node that has the least room for it.
    fn place(&mut self, i: usize) -> bool {
        let sharer = &self.sharers[i];
        let roomy = sharer.nodes().iter().copied();
        let roomy = roomy.filter(|node| self.free[*node] >= sharer.count);
        let Some(node) = roomy.min_by_key(|node| self.free[*node]) else {
            return false;
        };
        self.free[node] = self.free[node].saturating_sub(sharer.count);
        self.give(i, node);
        true
    }

    fn give(&mut self, i: usize, node: usize) {
        let sharer = &self.sharers[i];
        self.given[i].push(node);
        self.log.push(i);
        let sum = self
            .by_namespace
            .entry(sharer.key.namespace.as_str())
            .or_default();
        *sum = sum.saturating_add(u64::from(sharer.count));
    }

    /// The nodes on which a pool's runner would fit, were others to end.
    fn waits_for(&self, i: usize) -> Vec<usize> {
        let sharer = &self.sharers[i];
        let nodes = sharer.nodes().iter().copied();
        nodes
            .filter(|node| self.devices[*node] >= sharer.count)
            .collect()
    }

    fn others_were_given(&self, i: usize, nodes: &[usize]) -> bool {
        let all = self.given.iter().enumerate();
        let mut given = all.filter(|(other, given)| *other != i && !given.is_empty());
        given.any(|(other, _)| {
            let theirs = self.sharers[other].nodes();
            nodes.iter().any(|node| theirs.binary_search(node).is_ok())
        })
    }

    /// There is nothing for a pool. Whose turn it is has one node kept for it: others would take each device of a large
    /// runner as it becomes free, for ever.
    fn wait(&mut self, i: usize) {
        let nodes = self.waits_for(i);
        if nodes.is_empty() {
            return;
        }
        let is_first = nodes.iter().all(|node| self.line[*node] == 0);
        // A pod more would take what somebody was given whose own is not placed yet.
        let is_looked_at = nodes.iter().any(|node| self.looked_at[*node]);
        let is_next = is_first && !is_looked_at && !self.others_were_given(i, &nodes);
        self.waiting.insert(i, is_next);
        self.order.push((i, self.log.len()));
        for node in &nodes {
            self.line[*node] = self.line[*node].saturating_add(1);
        }
        let may_keep = is_first && self.sharers[i].may_keep;
        let fullest = nodes
            .into_iter()
            .max_by_key(|node| (self.free[*node], Reverse(*node)));
        if let Some(node) = fullest.filter(|node| may_keep && self.free[*node] > 0) {
            let devices = std::mem::take(&mut self.free[node]);
            self.kept.insert(node, (i, devices));
        }
    }

    /// Says which nodes are for others, once it is known who has runners to come. It is for the scheduler to place them, and
    /// it knows of no shares.
    fn keep(&mut self) {
        let mut given: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (i, nodes) in self.given.iter().enumerate() {
            for node in nodes {
                given.entry(*node).or_default().insert(i);
            }
        }
        let all = 0..self.sharers.len();
        self.kept_from = all.map(|i| self.for_others(i, &given)).collect();
    }

    fn for_others(&self, i: usize, given: &BTreeMap<usize, BTreeSet<usize>>) -> Vec<usize> {
        let own = &self.given[i];
        let kept = self.kept.iter().filter(|(_, (by, _))| *by != i);
        let kept = kept.map(|(node, _)| *node);
        let kept = kept.filter(|node| !own.contains(node));
        let taken = given.iter().filter(|(node, by)| self.takes(i, **node, by));
        let nodes = kept.chain(taken.map(|(node, _)| *node));
        let its = self.sharers[i].nodes();
        let its = nodes.filter(|node| its.binary_search(node).is_ok());
        its.take(MOST_KEPT).collect()
    }

    /// Whether a runner that a pool was given on another node would, on this one, take what somebody was given that cannot go
    /// to that other node instead.
    fn takes(&self, i: usize, node: usize, given: &BTreeSet<usize>) -> bool {
        let count = self.sharers[i].count;
        let others = || self.given[i].iter().filter(|other| **other != node);
        let can_change = |by: &usize| {
            let by = &self.sharers[*by];
            others().any(|other| {
                by.count <= self.free[*other].saturating_add(count)
                    && by.nodes().binary_search(other).is_ok()
            })
        };
        self.free[node] < count
            && others().next().is_some()
            && given.iter().any(|by| *by != i && !can_change(by))
    }
}
