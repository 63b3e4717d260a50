//! Given scale sets of whose jobs nobody knows, then each is heard within a bound, and what that costs is bounded.

use super::*;
use crate::model::time::Shift as _;
use crate::shares::room::{GLANCE, IDLE_REST, LOOK, PACE, REST, SLOT};

/// No job of the simulation runs longer, in seconds.
const LONGEST: i64 = 60;
/// From a reckoning to what is done because of it: the next step.
const STEP: i64 = 1;

/// A scale set that is full: nothing is known of its jobs beyond these.
fn silent(name: &str) -> Member {
    let mut member = member(name, 0, 1, 1, &[]);
    member.claim.is_full = true;
    member
}

/// A pool that has `held` runners on the first node and wants more.
fn backlog(name: &str, held: usize) -> Member {
    let mut member = member(name, 20, 1, 1, &[]);
    member.held = vec![("node-0".to_owned(), 1); held];
    member.runners = held;
    member
}

/// Reckons, and takes the rooms in.
fn reckon(nodes: &[Arc<NodeFacts>], members: &mut [Member], seconds: i64) -> Vec<Share> {
    let now = NOW.after(SignedDuration::from_secs(seconds));
    let found = shares(nodes, &Others::new(), members, &BTreeMap::new(), now);
    let taken = members.iter_mut().map(|member| {
        let share = found[&member.key].clone();
        member.before = Arc::new(share.clone());
        share
    });
    taken.collect()
}

#[test]
fn who_is_not_heard_has_a_glance_before_a_backlog_and_the_backlog_what_that_leaves() {
    let nodes = [with_gpus(0, 2, 0)];
    let offers = |members: &mut [Member], at: i64| -> Vec<usize> {
        let found = reckon(&nodes, members, at);
        found.iter().map(|share| share.runners).collect()
    };
    // Given a pool that has all GPUs and wants more, and one of which nothing is known
    let mut members = [backlog("a/busy", 2), silent("a/silent")];
    let found = reckon(&nodes, &mut members, 0);
    // Then the next GPU is not for the backlog: no pod waits for it
    assert_eq!((found[0].admits(20, 2), found[1].runners), (2, 0));
    // When a GPU is free, then the silent pool is offered it for ten seconds
    (members[0].runners, members[0].held) = (1, vec![("node-0".to_owned(), 1)]);
    assert_eq!(offers(&mut members, 20), [1, 1]);
    assert_eq!(offers(&mut members, 29), [1, 1]);
    // And where nothing came, the other has it; for five minutes there is no further glance
    assert_eq!(offers(&mut members, 30), [2, 0]);
    assert_eq!(offers(&mut members, 319), [2, 0]);
    assert_eq!(offers(&mut members, 320), [1, 1]);
    // When a job comes, then it is known, and its pool has less than the other
    members[1].claim.wanted = 1;
    assert_eq!(offers(&mut members, 322), [1, 1]);
    assert_eq!(members[1].before.room.glance, None);
    // And its room is gone when the job has its runner: it may have more
    assert_eq!(members[1].before.room.since, None);
}

#[test]
fn what_nobody_wants_goes_round_among_those_that_are_not_heard() {
    // Given a GPU, and two scale sets without a job
    let nodes = [with_gpus(0, 1, 0)];
    let mut members = [silent("a/1"), silent("a/2")];
    let mut who = |at: i64| {
        let found = reckon(&nodes, &mut members, at);
        found.iter().position(|share| share.runners == 1)
    };
    // Then each is offered it for ten seconds, and again each minute
    let seen: Vec<Option<usize>> = [0, 9, 10, 19, 20, 79, 80, 90].map(&mut who).into();
    assert_eq!(seen, [0, 0, 1, 1, 0, 0, 1, 0].map(Some));
    assert_eq!((GLANCE.as_secs(), IDLE_REST.as_secs()), (10, 60));
}

#[test]
fn an_offer_that_is_full_grows_into_what_nobody_wants_at_once() {
    // Given two scale sets that are offered two GPUs each
    let nodes = [with_gpus(0, 4, 0)];
    let mut members = [silent("a/1"), silent("a/2")];
    let runners = |found: Vec<Share>| [found[0].runners, found[1].runners];
    assert_eq!(runners(reckon(&nodes, &mut members, 0)), [2, 2]);
    // When one of them has as many jobs as that, and nobody knows of more, then it is offered one more at a time
    for (jobs, offered) in [(2, [3, 1]), (3, [4, 0])] {
        members[0].claim.wanted = jobs;
        assert_eq!(runners(reckon(&nodes, &mut members, 60)), offered);
    }
}

#[test]
fn while_a_device_is_waited_for_others_have_pods_for_an_autoscaler_now_and_then() {
    let nodes = [with_gpus(0, 1, 0)];
    let mut members = [backlog("a/busy", 1), silent("a/silent")];
    let mut pods = |at: i64| reckon(&nodes, &mut members, at)[0].admits(20, 1);
    assert_eq!([0, 59, 60, 119, 120].map(&mut pods), [1, 1, 20, 20, 1]);
}

#[test]
fn who_makes_many_scale_sets_delays_no_other_namespace() {
    // Given a namespace with fifty silent scale sets, another with one, and a backlog that leaves one GPU of eight free
    let nodes = [with_gpus(0, 8, 0)];
    let mut members: Vec<Member> = (0..50).map(|n| silent(&format!("a/{n}"))).collect();
    members.extend([silent("b/1"), backlog("c/1", 7)]);
    // Then the one has its turn after the first of them, and again as soon as it may
    let mut heard = vec![];
    for at in 0..700 {
        let found = reckon(&nodes, &mut members, at);
        if found[50].room.since.is_some() && found[50].room.glance == found[50].room.since {
            heard.push(at);
        }
    }
    heard.dedup_by_key(|at| *at / 60);
    assert_eq!(heard, [30, 330, 630]);
}

/// A cluster, GitHub and time, in steps of a second.
struct World {
    nodes: Vec<Arc<NodeFacts>>,
    members: Vec<Member>,
    /// Jobs of each pool that GitHub has assigned to nobody, and since when.
    hidden: Vec<Vec<i64>>,
    /// Pods that are there by the last reckoning, placed or not.
    pods: Vec<usize>,
    /// Pool, node and end of each runner.
    runners: Vec<(usize, String, i64)>,
    free: Vec<u32>,
    /// The longest that a job was not heard.
    longest: i64,
    /// Seconds that each pool's glances have kept a device from others.
    idle: Vec<i64>,
}

impl World {
    fn new(gpus: &[u32], members: Vec<Member>) -> Self {
        let nodes = gpus.iter().enumerate();
        Self {
            nodes: nodes.map(|(n, gpus)| with_gpus(n, *gpus, 0)).collect(),
            hidden: vec![vec![]; members.len()],
            pods: vec![0; members.len()],
            runners: vec![],
            free: gpus.to_vec(),
            longest: 0,
            idle: vec![0; members.len()],
            members,
        }
    }

    /// One second: `lasts` is how long runners last that begin in it.
    fn step(&mut self, at: i64, lasts: i64) -> Result<(), TestCaseError> {
        self.end(at);
        // Pods that are there take what is free, before anybody reckons: those of a backlog first.
        self.schedule(at + lasts);
        let (before, pods) = (self.free.clone(), self.pods.clone());
        for (member, pods) in self.members.iter_mut().zip(&pods) {
            member.pending = pods.saturating_sub(member.runners);
            member.claim.is_full = member.claim.wanted >= member.runners;
        }
        let found = reckon(&self.nodes, &mut self.members, at);
        let there: u32 = self.nodes.iter().map(|node| node.offers[GPU]).sum();
        let offered: usize = found.iter().map(|share| share.runners).sum();
        prop_assert!(offered <= usize::try_from(there).unwrap());
        let is_free = before.iter().any(|free| *free > 0);
        for (i, share) in found.iter().enumerate() {
            let is_glance = share.room.glance.is_some() && share.room.glance == share.room.since;
            self.idle[i] += i64::from(is_glance && is_free);
            // GitHub assigns what waits as far as the offer goes.
            let member = &mut self.members[i];
            let hidden = &mut self.hidden[i];
            while !hidden.is_empty() && member.claim.wanted < share.runners {
                self.longest = self.longest.max(at - hidden.remove(0));
                member.claim.wanted += 1;
            }
            // One job after the other; and whose job is known waits for its share, not to be heard.
            if member.claim.wanted > member.runners {
                hidden.fill(at);
            }
            self.pods[i] = share.admits(member.claim.wanted, member.runners);
        }
        let waits = self.hidden.iter().flatten().map(|since| at - since).max();
        self.longest = self.longest.max(waits.unwrap_or_default());
        Ok(())
    }

    fn end(&mut self, at: i64) {
        let (over, going): (Vec<_>, Vec<_>) = self
            .runners
            .drain(..)
            .partition(|(_, _, until)| *until <= at);
        self.runners = going;
        for (i, node, _) in over {
            let n = self.nodes.iter().position(|n| n.name == node).unwrap();
            self.free[n] += 1;
            let member = &mut self.members[i];
            let held = member.held.iter().position(|(name, _)| *name == node);
            member.held.remove(held.unwrap());
            member.runners -= 1;
            self.pods[i] = self.pods[i].saturating_sub(1);
            if member.claim.wanted < 20 {
                member.claim.wanted -= 1;
            }
        }
    }

    fn schedule(&mut self, until: i64) {
        for i in 0..self.members.len() {
            while self.members[i].runners < self.pods[i]
                && let Some(n) = self.free.iter().position(|free| *free > 0)
            {
                self.free[n] -= 1;
                let node = self.nodes[n].name.clone();
                self.runners.push((i, node.clone(), until));
                let member = &mut self.members[i];
                member.held.push((node, 1));
                member.runners += 1;
                member.served = Some(NOW.after(SignedDuration::from_secs(until)));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_scale_set_with_a_job_is_heard_within_the_bound(
        gpus in proptest::collection::vec(1..6_u32, 1..4),
        busy in 1..3_usize, quiet in 1..12_usize, in_one in any::<bool>(),
        lasts in proptest::collection::vec(2..LONGEST, 40),
        jobs in proptest::collection::vec((0..12_usize, 0..1000_i64), 0..12),
    ) {
        // Given pools that always want more, others of whose jobs GitHub tells only those who are offered one, and runners
        // that end again and again
        let name = |n: usize| if in_one { format!("one/{n}") } else { format!("{n}/{n}") };
        let mut members: Vec<Member> = (0..busy).map(|n| backlog(&name(n), 0)).collect();
        members.extend((busy..busy + quiet).map(|n| silent(&name(n))));
        let all: i64 = gpus.iter().copied().map(i64::from).sum();
        let slots = (all + i64::from(SLOT) - 1) / i64::from(SLOT);
        let mut world = World::new(&gpus, members);
        let seconds = 2000;
        for at in 0..seconds {
            for (pool, _) in jobs.iter().filter(|(_, from)| *from == at) {
                world.hidden[busy + pool % quiet].push(at);
            }
            let lasts = lasts[usize::try_from(at).unwrap() % lasts.len()];
            world.step(at, lasts)?;
        }

        // Then each job is heard in time: a rest, or the turns of all others, each of which may need the one device that there
        // is, and the next device in a time of looking
        let jobs = i64::try_from(jobs.len()).unwrap();
        let turn = PACE.as_secs().max(LONGEST + GLANCE.as_secs());
        let turns = turn * (i64::try_from(quiet).unwrap() + jobs) / slots;
        let bound = REST.as_secs().max(turns) + LOOK.as_secs() + 2 * LONGEST + STEP;
        prop_assert!(world.longest <= bound, "{} s, and the bound is {bound}", world.longest);

        // And no glance costs others more than ten seconds, each pool's not oftener than once in five minutes
        let mut sum = 0;
        for idle in &world.idle[busy..] {
            prop_assert!(*idle <= (GLANCE.as_secs() + STEP) * (seconds / REST.as_secs() + 1 + jobs), "{idle}");
            sum += idle;
        }
        prop_assert!(sum <= slots * (GLANCE.as_secs() + STEP) * (seconds / PACE.as_secs() + 1 + jobs), "{sum}");
    }
}
