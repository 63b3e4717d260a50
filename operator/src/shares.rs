//! The shares of all pools, reckoned for all at once when what they rest on has changed, from what every replica and every
//! operator sees alike. Pools of other operators are reckoned with and never acted upon.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, OperatorStatus, RunnerPhase};
use jiff::{SignedDuration, Timestamp};
use kube::runtime::reflector::Store;

use crate::clock::Clock;
use crate::context::Context;
use crate::guard;
use crate::watch::Waker;
use crate::watch::nodes::Nodes;
use crate::watch::others::{Held, add_all, add_runner};
use crate::watch::pools::key_of;
use cuda_runner_plan::demand::is_stuck;
use cuda_runner_plan::fleet::Others;
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::shares::{Claim, Member, Needs, Seen, Share, shares_beside};

pub mod known;

use known::{Known, served};

/// Changes within this time are taken together.
const PAUSE: Duration = Duration::from_millis(100);
/// So many times as long as it took the shares rest: it costs a twentieth of one core at most.
const REST: u32 = 20;
/// How often it is looked at whether other operators live whose pools share.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// At so many of them. Statuses name them, and only operators write those.
const MOST_OPERATORS: usize = 100;

/// The shares, by pool.
type Table = BTreeMap<PoolKey, Arc<Share>>;

/// The shares as last reckoned, and what is known of others for them.
#[derive(Debug, Default)]
pub struct Shares {
    /// What pods hold that are no runners, where the operator may see them.
    pub others: Option<Arc<Held>>,
    weights: BTreeMap<String, u32>,
    table: RwLock<Table>,
    clock: Mutex<Clock>,
    /// Operators whose Leases nobody holds.
    gone: RwLock<BTreeSet<OperatorStatus>>,
}

impl Shares {
    /// None was reckoned yet. `weights` are the namespaces'.
    #[must_use]
    pub fn new(others: Option<Arc<Held>>, weights: BTreeMap<String, u32>) -> Self {
        Self {
            others,
            weights,
            table: RwLock::default(),
            clock: Mutex::default(),
            gone: RwLock::default(),
        }
    }

    /// They are reckoned, at `tick` of a clock that nobody sets: where the other one was set back since the last time, all
    /// begins anew, as no moment counts that is in them.
    fn begin(&self, now: Timestamp, tick: Instant) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.is_set_back(now, tick) {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.clear();
        }
    }

    /// The share of a pool.
    #[must_use]
    pub fn of(&self, key: &PoolKey) -> Option<Arc<Share>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(key).map(Arc::clone)
    }

    /// How long the shares that were reckoned at a moment may stay as they are, though nothing changes: a moment that has
    /// passed since has not been looked at.
    fn rest(&self, reckoned: Timestamp, now: Timestamp) -> Duration {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let moments = table
            .values()
            .flat_map(|share| [share.room.again(reckoned), share.vain.again(reckoned)]);
        let rest = moments.flatten().min().map(|at| at.duration_since(now));
        rest.map_or(Duration::MAX, |rest| {
            rest.max(SignedDuration::ZERO).unsigned_abs()
        })
    }

    fn is_gone(&self, operator: &OperatorStatus) -> bool {
        let gone = self.gone.read().unwrap_or_else(PoisonError::into_inner);
        gone.contains(operator)
    }

    /// Takes in which operators are gone; whether that is news.
    fn note_gone(&self, new: BTreeSet<OperatorStatus>) -> bool {
        let mut gone = self.gone.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = *gone != new;
        *gone = new;
        is_news
    }

    /// Takes in new shares; the pools whose share is another now.
    fn replace(&self, new: BTreeMap<PoolKey, Share>) -> Vec<PoolKey> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let gone = table.keys().filter(|key| !new.contains_key(*key));
        let mut changed: Vec<PoolKey> = gone.cloned().collect();
        let differs =
            |key: &PoolKey, share: &Share| table.get(key).is_none_or(|old| **old != *share);
        let others = new.iter().filter(|(key, share)| differs(key, share));
        changed.extend(others.map(|(key, _)| key.clone()));
        *table = new
            .into_iter()
            .map(|(key, share)| (key, Arc::new(share)))
            .collect();
        changed
    }
}

/// Keeps the shares up to date permanently, and wakes whose share has changed. Rests permanently where nodes are not seen.
pub async fn follow(ctx: &Context, waker: &Waker) {
    let Some(nodes) = &ctx.nodes else {
        return std::future::pending().await;
    };
    tokio::join!(
        follow_pools(ctx, nodes, waker),
        follow_operators(ctx, waker)
    );
}

async fn follow_pools(ctx: &Context, nodes: &Nodes, waker: &Waker) {
    loop {
        let (now, begun) = (Timestamp::now(), Instant::now());
        match guard::step(|| reckon(ctx, nodes, now)) {
            Ok(changed) => changed.iter().for_each(|pool| waker.wake(pool)),
            Err(panicked) => tracing::error!(%panicked, "the shares of pools stay as they are"),
        }
        tokio::time::sleep(PAUSE.max(begun.elapsed().saturating_mul(REST))).await;
        // A glance that is over is a change like any other.
        let rest = ctx.shares.rest(now, Timestamp::now());
        let _ = tokio::time::timeout(rest, waker.shares.notified()).await;
    }
}

/// Looks at the Leases of other operators whose pools share: those of one that is gone can use no GPU.
async fn follow_operators(ctx: &Context, waker: &Waker) {
    loop {
        let mut gone = BTreeSet::new();
        for operator in other_operators(ctx) {
            if !ctx.ownership.lives(&operator).await {
                gone.insert(operator);
            }
        }
        if ctx.shares.note_gone(gone) {
            waker.shares.notify_one();
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The operators that other pools name.
fn other_operators(ctx: &Context) -> BTreeSet<OperatorStatus> {
    let beside = ctx.beside.pools().into_iter();
    let beside = beside.filter_map(|(_, known)| known.operator.clone());
    let here = ctx.pools.iter().flat_map(Store::state);
    let here = here.filter_map(|resource| resource.operator().cloned());
    let all = beside
        .chain(here)
        .filter(|named| named != ctx.ownership.own());
    let all: BTreeSet<OperatorStatus> = all.collect();
    all.into_iter().take(MOST_OPERATORS).collect()
}

/// Reckons the shares of all pools where nodes are seen: before the first of them is looked at.
pub fn begin(ctx: &Context) {
    if let Some(nodes) = &ctx.nodes {
        let _ = guard::step(|| reckon(ctx, nodes, Timestamp::now()));
    }
}

fn reckon(ctx: &Context, nodes: &Nodes, now: Timestamp) -> Vec<PoolKey> {
    ctx.shares.begin(now, Instant::now());
    let Facts { own, seen, others } = facts(ctx, now);
    let weights = &ctx.shares.weights;
    let new = shares_beside(&nodes.all(), &others, (&own, &seen), weights, now);
    ctx.shares.replace(new)
}

/// What the pods of a pool have.
#[derive(Default)]
struct Tally {
    held: Vec<(String, u32)>,
    runners: usize,
    ending: usize,
    waiting: Vec<String>,
    is_stuck: bool,
    served: Option<Timestamp>,
}

impl Tally {
    fn add(&mut self, runner: &Runner, resource: Option<&str>, now: Timestamp) {
        if runner.is_active(now) && runner.phase == RunnerPhase::Unscheduled {
            if is_stuck(runner, now) {
                self.is_stuck |= !runner.is_gated();
            } else if !runner.is_gated() {
                self.waiting.push(runner.name.clone());
            }
            return;
        }
        let Some(node) = runner.node.as_ref().filter(|_| !runner.is_over) else {
            return;
        };
        let held = resource.and_then(|name| runner.devices_held.get(name).copied());
        self.held.push((node.clone(), held.unwrap_or_default()));
        if runner.is_active(now) {
            self.runners = self.runners.saturating_add(1);
        } else {
            self.ending = self.ending.saturating_add(1);
        }
        self.served = self.served.max(Some(runner.created));
    }
}

/// A pool that shares GPUs, and what its pods have.
struct Pool<'a> {
    /// The resource of one that is this operator's.
    own: Option<&'a CudaRunner>,
    needs: Arc<Needs>,
    /// As every operator sees it; left out where all pools are this one's.
    known: Option<Arc<Known>>,
    tally: Tally,
}

impl Pool<'_> {
    fn uid(&self) -> Option<&str> {
        let own = self.own.and_then(|own| own.metadata.uid.as_deref());
        own.or_else(|| self.known.as_ref().map(|known| known.uid.as_str()))
    }
}

/// What the shares rest on.
struct Facts {
    /// The pools of this operator.
    own: Vec<Member>,
    /// All pools as every operator sees them, where there are others'.
    seen: Vec<Seen>,
    /// What everybody else holds.
    others: Others,
}

/// The pools that share GPUs, and what everybody else holds.
fn facts(ctx: &Context, now: Timestamp) -> Facts {
    let resources: Vec<Arc<CudaRunner>> = ctx.pools.iter().flat_map(Store::state).collect();
    let mut pools = pools(ctx, &resources);
    let others = ctx.shares.others.as_ref();
    let mut others = others.and_then(|held| held.by_node()).unwrap_or_default();
    let mut beside = Others::new();
    ctx.pods
        .add_others(&mut others, |key, runner| match pools.get_mut(key) {
            Some(pool) if pool.uid() == Some(&runner.owner) => {
                let shared = Some(pool.needs.resource.as_str());
                pool.tally.add(runner, shared, now);
                // One of before a change of the spec holds what others share.
                add_runner(&mut beside, runner, shared);
                true
            }
            // Its pool is gone, is none that is seen here, or cannot be carried out and has no share.
            _ => false,
        });
    add_all(&mut others, &beside);
    let (mut own, mut seen) = (vec![], vec![]);
    for (key, pool) in pools {
        if let Some(known) = &pool.known {
            seen.push(Seen {
                member: member_as_seen(ctx, key.clone(), known, &pool.tally),
                is_own: pool.own.is_some(),
            });
        }
        if let Some(resource) = pool.own {
            own.push(member(ctx, key, resource, pool.needs, pool.tally));
        }
    }
    Facts { own, seen, others }
}

/// The pools that share GPUs: this operator's, and those that others serve or may.
fn pools<'a>(ctx: &Context, resources: &'a [Arc<CudaRunner>]) -> HashMap<PoolKey, Pool<'a>> {
    let operator = ctx.ownership.own();
    let beside = ctx.beside.pools();
    let is_alone = beside.is_empty() && resources.iter().all(|r| r.may_be_of(operator));
    let here = resources.iter().filter_map(|resource| {
        let needs = ctx.specs.read(resource).ok()?.needs.clone()?;
        let known = || Arc::new(Known::of(resource, Arc::new(needs.seen())));
        let pool = Pool {
            own: Some(resource.as_ref()).filter(|resource| resource.may_be_of(operator)),
            known: (!is_alone).then(known),
            tally: Tally::default(),
            needs,
        };
        Some((key_of(resource), pool))
    });
    let mut pools: HashMap<PoolKey, Pool> = here.collect();
    for (key, known) in beside {
        // One whose label has changed may be shown twice for a moment.
        pools.entry(key).or_insert_with(|| Pool {
            own: None,
            needs: Arc::clone(&known.needs),
            known: Some(known),
            tally: Tally::default(),
        });
    }
    pools
}

/// A pool as every operator sees it.
fn member_as_seen(ctx: &Context, key: PoolKey, known: &Known, tally: &Tally) -> Member {
    Member {
        key,
        needs: Arc::clone(&known.needs),
        claim: known.claim(tally.runners, |operator| ctx.shares.is_gone(operator)),
        held: tally.held.clone(),
        runners: tally.runners,
        ending: tally.ending,
        pending: tally.waiting.len(),
        served: known.served(tally.served),
        is_stuck: false,
        before: Arc::default(),
    }
}

/// A pool as its own operator sees it.
fn member(
    ctx: &Context,
    key: PoolKey,
    resource: &CudaRunner,
    needs: Arc<Needs>,
    tally: Tally,
) -> Member {
    let uid = resource.metadata.uid.as_deref().unwrap_or_default();
    let none = CudaRunnerStatus::default();
    let status = resource.status.as_ref().unwrap_or(&none);
    let served = served(status).max(tally.served);
    let known = ctx.memory.of(&key, uid, |memory| {
        let is_unseen = |name: &&String| !tally.waiting.contains(name);
        let unseen = memory.expected.keys().filter(is_unseen).count();
        let is_refused = memory.pod_refused.is_some();
        (memory.claim.clone(), unseen, is_refused)
    });
    let (claim, unseen, is_refused) = known.unwrap_or_default();
    let claim = match claim {
        Some(claim) => claim,
        None if resource.metadata.deletion_timestamp.is_some() => Claim::default(),
        None => Claim::of(&needs, status),
    };
    Member {
        before: ctx.shares.of(&key).unwrap_or_default(),
        is_stuck: tally.is_stuck || is_refused,
        key,
        needs,
        claim,
        runners: tally.runners,
        ending: tally.ending,
        pending: tally.waiting.len().saturating_add(unseen),
        held: tally.held,
        served,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cudarunner_crds::{ARCH_LABEL, DemandStatus, POOL_LABEL, ScalingSource};
    use k8s_openapi::api::core::v1::{Node, Pod};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::runtime::{reflector, watcher};
    use serde_json::{Value, json};

    use super::*;
    use crate::reconcile::tests::{Cluster, context};
    use crate::watch::beside::Beside;
    use cuda_runner_plan::fixture;
    use cuda_runner_plan::model::time::Shift as _;
    use cuda_runner_plan::shares::room::{GLANCE, Room};
    use kube::ResourceExt as _;

    #[test]
    fn a_glance_that_ends_while_shares_rest_is_looked_at_at_once() {
        // Given a glance, and shares that were reckoned a moment before its end
        let (since, moment) = (fixture::NOW, SignedDuration::from_millis(50));
        let share = Share {
            room: Room {
                since: Some(since),
                ..Room::default()
            },
            ..Share::default()
        };
        let shares = Shares::default();
        shares.replace(BTreeMap::from([(fixture::pool(1).key, share)]));
        let end = since.after(GLANCE);
        let reckoned = end - moment;

        // Then its end is waited for, and is due at once where it has passed meanwhile
        assert_eq!(shares.rest(reckoned, reckoned), moment.unsigned_abs());
        assert_eq!(shares.rest(reckoned, end + moment), Duration::ZERO);
        // And after that there is nothing to wait for
        assert_eq!(shares.rest(end, end), Duration::MAX);
    }

    /// A node with two GPUs.
    pub(crate) fn node() -> Node {
        let node = json!({"metadata": {"name": "node-1", "labels": {ARCH_LABEL: "amd64"}}, "status": {
            "allocatable": {"nvidia.com/gpu": "2"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        }});
        serde_json::from_value(node).unwrap()
    }

    /// A pod on it.
    fn pod(name: &str, metadata: &Value, gpus: &str) -> Pod {
        let limits = json!({"limits": {"nvidia.com/gpu": gpus}});
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ci", "uid": name},
            "spec": {"nodeName": "node-1", "containers": [{"name": "main", "resources": limits}]},
            "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
        });
        for (key, value) in metadata.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    /// A pod on it with a GPU, the label of a pool, and an owner of this uid.
    pub(crate) fn labelled(pool: &str, owner: Option<&str>) -> Pod {
        let owner = owner.map(|uid| {
            json!({"apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "name": pool, "uid": uid})
        });
        let owners: Vec<_> = owner.into_iter().collect();
        pod(
            "labelled",
            &json!({"labels": {POOL_LABEL: pool}, "ownerReferences": owners}),
            "1",
        )
    }

    #[tokio::test]
    async fn what_others_hold_is_no_pools_and_who_is_concerned_is_woken() {
        // Given a node with two GPUs, and a pool that wants one runner
        let nodes = Nodes::default();
        nodes.apply(&node());
        let held = Arc::new(Held::whole());
        let mut ctx = Arc::into_inner(context(&Cluster::default()).await).unwrap();
        ctx.shares = Shares::new(Some(Arc::clone(&held)), BTreeMap::new());
        let key = key_of(&ctx.pools[0].state()[0]);
        let reckoned = |ctx: &Context| {
            let changed = reckon(ctx, &nodes, Timestamp::now());
            (changed.contains(&key), ctx.shares.of(&key).unwrap().runners)
        };
        assert_eq!(reckoned(&ctx), (true, 1));
        assert_eq!(reckoned(&ctx), (false, 1));

        // When a pod that is no runner takes one, then the other is left; and when it takes both, none is
        for (gpus, share) in [("1", (false, 1)), ("2", (true, 0)), ("1", (true, 1))] {
            assert!(held.take(&pod("notebook", &json!({}), gpus)));
            assert_eq!(reckoned(&ctx), share, "{gpus}");
        }
        // And so it is with a pod that has a pool's label and is not of a pool that has a share, until it is over
        let (store, mut writer) = reflector::store();
        let mut invalid = ctx.pools[0].state()[0].as_ref().clone();
        invalid.metadata.name = Some("invalid".to_owned());
        invalid.metadata.uid = Some("3".to_owned());
        invalid.spec.github.url = "nowhere".to_owned();
        writer.apply_watcher_event(&watcher::Event::Apply(invalid));
        ctx.pools.push(store);
        for (pool, owner) in [
            ("elsewhere", Some("2")),       // another operator serves it
            (key.name.as_str(), Some("2")), // a namesake has taken its place
            ("invalid", Some("3")),         // it cannot be carried out
            (key.name.as_str(), None),      // it was left behind
            ("gone", None),                 // and its pool is gone
        ] {
            let mut left = labelled(pool, owner);
            ctx.pods.apply(&left, true);
            assert_eq!(reckoned(&ctx), (true, 0), "{pool} {owner:?}");
            left.status = serde_json::from_value(json!({"phase": "Succeeded"})).unwrap();
            ctx.pods.apply(&left, true);
            assert_eq!(reckoned(&ctx), (true, 1), "{pool} {owner:?}");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_begins_the_shares_anew() {
        // Given the share of a pool, with what is known of it by moments
        let (now, tick) = (fixture::NOW, Instant::now());
        let (shares, key) = (Shares::default(), fixture::pool(1).key);
        shares.begin(now, tick);
        shares.replace(BTreeMap::from([(key.clone(), Share::default())]));
        let minute = Duration::from_mins(1);
        for (passed, is_kept) in [(60, true), (-3_600, false)] {
            // When a minute passes by the one clock, then it goes where the other one was set back
            let shown = now + SignedDuration::from_secs(passed);
            shares.begin(shown, tick + minute);
            assert_eq!(shares.of(&key).is_some(), is_kept, "{passed}");
        }
    }

    /// A scale set that wants so many runners, as its status tells, and the operator that this names.
    fn wanting(name: &str, operator: Option<&str>, wanted: i32) -> CudaRunner {
        let mut pool = fixture::scaled(ScalingSource::ScaleSet, 0, 8);
        pool.metadata.name = Some(name.to_owned());
        pool.metadata.uid = Some(format!("uid of {name}"));
        pool.status = Some(CudaRunnerStatus {
            operator: operator.map(|name| OperatorStatus {
                name: name.to_owned(),
                ..OperatorStatus::default()
            }),
            demand: Some(DemandStatus {
                wanted,
                most: wanted,
            }),
            ..CudaRunnerStatus::default()
        });
        pool
    }

    /// An operator with these pools, which selects no other.
    async fn serving(pools: Vec<CudaRunner>) -> Context {
        let mut ctx = Arc::into_inner(context(&Cluster::default()).await).unwrap();
        let (store, mut writer) = reflector::store();
        for pool in pools {
            writer.apply_watcher_event(&watcher::Event::Apply(pool));
        }
        ctx.pools = vec![store];
        ctx.shares = Shares::new(Some(Arc::new(Held::whole())), BTreeMap::new());
        ctx.beside = Arc::new(Beside::new(Some("shard=a".parse().unwrap())));
        ctx
    }

    /// What an operator's pool has, and which pools are woken.
    fn reckoned(ctx: &Context, pool: &str) -> (usize, Vec<String>) {
        let nodes = Nodes::default();
        nodes.apply(&node());
        let woken = reckon(ctx, &nodes, Timestamp::now());
        let key = PoolKey {
            name: pool.to_owned(),
            ..fixture::pool(1).key
        };
        let names = woken.into_iter().map(|key| key.name);
        (ctx.shares.of(&key).unwrap().runners, names.collect())
    }

    #[tokio::test]
    async fn another_operators_pool_has_its_part_and_is_not_woken() {
        // Given a node with two GPUs, and a pool that wants both beside another operator's that wants none
        let ctx = serving(vec![wanting("own", Some(""), 2)]).await;
        ctx.beside.show(&wanting("other", Some("other"), 0));
        assert_eq!(reckoned(&ctx, "own"), (2, vec!["own".to_owned()]));
        // When that wants some, too, then they have one each, whichever of the watches shows it
        ctx.beside.show(&wanting("other", Some("other"), 2));
        assert_eq!(reckoned(&ctx, "own"), (1, vec!["own".to_owned()]));
        let both = vec![
            wanting("own", Some(""), 2),
            wanting("other", Some("other"), 2),
        ];
        assert_eq!(
            reckoned(&serving(both).await, "own"),
            (1, vec!["own".to_owned()])
        );
        // And what its runner holds is its part
        ctx.pods
            .apply(&labelled("other", Some("uid of other")), true);
        assert_eq!(reckoned(&ctx, "own").0, 1);
        ctx.beside.show(&wanting("other", Some("other"), 1));
        assert_eq!(reckoned(&ctx, "own").0, 1);
        ctx.pods
            .apply(&labelled("other", Some("uid of a namesake")), true);
        ctx.beside.show(&wanting("other", Some("other"), 0));
        assert_eq!(reckoned(&ctx, "own").0, 1);
    }

    #[tokio::test]
    async fn whom_no_operator_serves_claims_nothing() {
        // Given a node with two GPUs, and a pool that wants both beside one that does, too
        let ctx = serving(vec![wanting("own", Some(""), 2)]).await;
        let other = wanting("other", Some("other"), 2);
        let mut deleted = other.clone();
        deleted.metadata.deletion_timestamp = Some(Time(fixture::NOW));
        // Then that has a part while an operator serves it, and no longer
        for (pool, share) in [
            (&other, 1),
            (&wanting("other", None, 2), 2),
            (&deleted, 2),
            (&other, 1),
        ] {
            ctx.beside.show(pool);
            assert_eq!(reckoned(&ctx, "own").0, share, "{:?}", pool.status);
        }
        let operator = other.operator().unwrap().clone();
        assert!(other_operators(&ctx).contains(&operator));
        assert!(ctx.shares.note_gone(BTreeSet::from([operator])));
        assert_eq!(reckoned(&ctx, "own").0, 2);
        assert!(ctx.shares.note_gone(BTreeSet::new()));
        assert_eq!(reckoned(&ctx, "own").0, 1);
    }

    #[tokio::test]
    async fn a_pool_whose_pods_are_refused_takes_no_gpus_for_them() {
        // Given a pool of which the API server refuses a pod
        let ctx = context(&Cluster::default()).await;
        let pool = ctx.specs.pool(&ctx.pools[0].state()[0]);
        let is_stuck = || facts(&ctx, Timestamp::now()).own[0].is_stuck;
        assert!(!is_stuck());
        let refused = |why: Option<&str>| {
            let why = why.map(str::to_owned);
            ctx.memory.with(&pool, |memory| memory.pod_refused = why);
        };
        // Then what it is given is known to be in vain, until one is made
        refused(Some("exceeded quota: gpus"));
        assert!(is_stuck());
        refused(None);
        assert!(!is_stuck());
    }

    #[tokio::test]
    async fn what_a_pool_holds_beside_what_it_asks_for_is_not_free() {
        // Given a pool and its runner, two containers of which have a GPU each
        let mut ctx = Arc::into_inner(context(&Cluster::default()).await).unwrap();
        let mut resource = ctx.pools[0].state()[0].as_ref().clone();
        let (name, uid) = (resource.name_any(), resource.metadata.uid.clone());
        let mut runner = labelled(&name, uid.as_deref());
        let containers = &mut runner.spec.as_mut().unwrap().containers;
        containers.push(containers[0].clone());
        ctx.pods.apply(&runner, true);
        for (generation, gpu, of_pool, of_others) in [
            (1, "nvidia.com/gpu", 2, None),
            // When it asks for another resource from now on, then they are held all the same
            (2, "nvidia.com/mig-1g.10gb", 0, Some(2)),
        ] {
            resource.metadata.generation = Some(generation);
            resource.spec.gpu.resource = gpu.to_owned();
            let (store, mut writer) = reflector::store();
            writer.apply_watcher_event(&watcher::Event::Apply(resource.clone()));
            ctx.pools = vec![store];
            let Facts { own, others, .. } = facts(&ctx, Timestamp::now());
            let held: u32 = own[0].held.iter().map(|(_, count)| count).sum();
            let beside = others
                .get("node-1")
                .and_then(|node| node.get("nvidia.com/gpu"));
            assert_eq!((held, beside.copied()), (of_pool, of_others), "{gpu}");
        }
    }
}
