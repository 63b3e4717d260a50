//! The runner pods, by pool.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarunner_crds::RunnerPhase;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch as flag;

use super::others::{Counts, add_all, add_runner, held_of};
use super::{Events, PAGE, Pauses, Scope, Waker, log_error};
use crate::guard::{self, Panicked};
use crate::observe::pod::read;
use cuda_runner_plan::Passed;
use cuda_runner_plan::fleet::Others;
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::rerun::{Pass, Passes};
use cuda_runner_plan::model::runner::{End, Failure, Gone, Runner};
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::rerun::RECENT;

/// Runners by pool and name. A node of the inner map has room for eleven, and most pools have fewer: the room must be cheap.
type Runners = BTreeMap<PoolKey, BTreeMap<String, Box<Runner>>>;

/// Namespace and name of a pod.
type PodKey = (String, String);

/// The runner pods of all pools: of each, only what the plan reads.
#[derive(Debug, Default)]
pub struct Pods {
    pools: RwLock<Runners>,
    /// What pods hold, and on which node, that have a pool's label and that no pool owns: left over, restored, made by hand.
    /// Locked after `pools`.
    strays: Mutex<HashMap<PodKey, (String, Counts)>>,
    /// In the order in which they went. Locked after `pools`.
    vanished: Mutex<VecDeque<Vanished>>,
    gone: Mutex<VecDeque<(PoolKey, Arc<Gone>)>>,
    /// Locked after `pools`.
    passes: Mutex<GonePasses>,
}

/// The gates that passed of pods that are gone.
#[derive(Debug, Default)]
struct GonePasses {
    /// From when on none is missing; unknown before the first list.
    since: Option<Timestamp>,
    all: VecDeque<Pass>,
}

/// Gates of pods that are gone, of all pools together. They matter for half an hour.
const MOST_PASSES: usize = 10_000;

/// Runners whose pods are gone and that nobody has told of yet: so many are kept, of all pools together. They wait for a
/// job's conclusion some minutes at most.
const MOST_GONE: usize = 10_000;

/// A runner whose pod was gone before its end was told.
#[derive(Debug)]
struct Vanished {
    pool: PoolKey,
    runner: Box<Runner>,
    at: Timestamp,
}

/// Those that are kept, of all pools together. They are told of within seconds.
const MOST_VANISHED: usize = 4096;

/// What another replica that led has had no time to tell was seen so long before this one leads at most.
const TAKEOVER: SignedDuration = SignedDuration::from_mins(2);

impl Pods {
    /// The runners of the pool with this uid. Those of an earlier pool of its name are not its own: the garbage collector
    /// removes them.
    #[must_use]
    pub fn of(&self, pool: &PoolKey, uid: &str) -> Vec<Runner> {
        let mut runners = vec![];
        self.each(pool, uid, |runner| runners.push(runner.clone()));
        runners
    }

    /// Shows the runners of the pool with this uid, one by one. `look` must be short: the watch waits.
    pub fn each(&self, pool: &PoolKey, uid: &str, look: impl FnMut(&Runner)) {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        own(&pools, pool, uid).for_each(look);
    }

    /// Uids of the pods of a pool.
    #[must_use]
    pub fn uids(&self, pool: &PoolKey) -> BTreeSet<String> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let runners = pools.get(pool).into_iter().flat_map(BTreeMap::values);
        runners.map(|runner| runner.uid.clone()).collect()
    }

    /// The runners of the pool with this uid, and those that ended or had no time to and whose pods were gone within
    /// milliseconds, because somebody else took them away: these are kept until `is_told`. None is in neither, or in both.
    pub fn look(
        &self,
        pool: &PoolKey,
        uid: &str,
        is_told: impl Fn(&Runner) -> bool,
    ) -> (Vec<Runner>, Vec<Runner>) {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let there = own(&pools, pool, uid).cloned().collect();
        let mut all = self.vanished_ones();
        all.retain(|one| one.pool != *pool || one.runner.owner == uid && !is_told(&one.runner));
        let vanished = all.iter().filter(|one| one.pool == *pool);
        let vanished = vanished.map(|one| Runner::clone(&one.runner));
        (there, vanished.collect())
    }

    /// The names of the runners of a pool that are kept because they have vanished.
    pub fn vanished(&self, pool: &PoolKey) -> Vec<String> {
        let all = self.vanished_ones();
        let of_pool = all.iter().filter(|one| one.pool == *pool);
        of_pool.map(|one| one.runner.name.clone()).collect()
    }

    /// This replica leads from now on. Of runners that have vanished it tells those of which the one before it may have had no
    /// time to, and that were not there for that one to remove.
    pub fn begin(&self, now: Timestamp) {
        self.vanished_ones().retain(|one| {
            let has_ended = one.runner.end.is_some() || one.runner.reached == RunnerPhase::Busy;
            now < one.at.after(TAKEOVER) && has_ended
        });
    }

    fn vanished_ones(&self) -> MutexGuard<'_, VecDeque<Vanished>> {
        self.vanished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &PoolKey) {
        self.vanished_ones().retain(|one| one.pool != *pool);
        self.gone_ones().retain(|(of, _)| of != pool);
    }

    /// Runners of a pool whose pods are gone, in the order in which they went; kept until [`Self::told`].
    pub fn gone(&self, pool: &PoolKey) -> Vec<Arc<Gone>> {
        let gone = self.gone_ones();
        let of_pool = gone.iter().filter(|(of, _)| of == pool);
        of_pool.map(|(_, gone)| Arc::clone(gone)).collect()
    }

    /// Whether a runner whose pod is gone, by its uid, had not been told of until now.
    pub fn told(&self, uid: &str) -> bool {
        let mut gone = self.gone_ones();
        let place = gone.iter().position(|(_, gone)| gone.runner.uid == uid);
        place.and_then(|place| gone.remove(place)).is_some()
    }

    fn gone_ones(&self) -> MutexGuard<'_, VecDeque<(PoolKey, Arc<Gone>)>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a runner whose pod is gone, once: a pod that is taken from its pool may be given back, and taken again.
    fn note_gone(&self, key: &PoolKey, runner: Runner, at: Timestamp) {
        let mut gone = self.gone_ones();
        gone.retain(|(_, kept)| kept.runner.uid != runner.uid);
        if gone.len() >= MOST_GONE
            && let Some((pool, lost)) = gone.pop_front()
        {
            tracing::warn!(%pool, runner = lost.runner.name, "the hours of a runner are lost: too many have ended at once");
        }
        gone.push_back((key.clone(), Arc::new(Gone { runner, at })));
    }

    /// The pool and the runner of a pod.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<(PoolKey, Runner)> {
        // A runner's name is its pool's, a hyphen, and the suffix.
        let (pool, _) = name.rsplit_once('-')?;
        let key = PoolKey {
            namespace: namespace.to_owned(),
            name: pool.to_owned(),
        };
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let runner = Runner::clone(pools.get(&key)?.get(name)?);
        Some((key, runner))
    }

    /// Adds what pods hold that have a pool's label and are no pool's: strays, and each runner of which `is_own` says no. What
    /// counts is what their pods have: no pool's author can say more than the scheduler has granted. `is_own` must be short:
    /// the watch waits.
    pub fn add_others(&self, held: &mut Others, mut is_own: impl FnMut(&PoolKey, &Runner) -> bool) {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        for (key, runners) in pools.iter() {
            let others = runners.values().filter(|runner| !is_own(key, runner));
            others.for_each(|runner| add_runner(held, runner, None));
        }
        let strays = self.strays();
        add_all(held, strays.values().map(|(node, counts)| (node, counts)));
    }

    fn strays(&self) -> MutexGuard<'_, HashMap<PodKey, (String, Counts)>> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gates of all pools that passed and whose pods are still there. Of pods that only look like a pool's own
    /// nothing is believed: `is_pool` knows the uids.
    #[must_use]
    pub fn passed(&self, is_pool: impl Fn(&PoolKey, &str) -> bool) -> Vec<Passed> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let runners = pools
            .iter()
            .flat_map(|(pool, runners)| runners.values().map(move |r| (pool, r)));
        runners
            .filter(|(pool, r)| r.gate_passed && is_pool(pool, &r.owner))
            .map(|(_, r)| r)
            .filter_map(|r| {
                Some(Passed {
                    node: r.node.clone()?,
                    created: r.created,
                    devices: r.devices.clone(),
                })
            })
            .collect()
    }

    /// The gates that passed lately and whose pods are there, or were; `None` before pods have been listed. Each counts, also
    /// of a pool of another operator: at worst a job is not run again.
    #[must_use]
    pub fn passes(&self, now: Timestamp) -> Option<Passes> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let gone = self.gone_passes();
        let there = pools.values().flat_map(BTreeMap::values);
        let there = there.filter_map(|runner| pass_of(runner, now));
        let gone_lately = gone.all.iter().filter(|pass| is_recent(pass.bound, now));
        Some(Passes {
            since: gone.since?,
            all: gone_lately.cloned().chain(there).collect(),
        })
    }

    fn gone_passes(&self) -> MutexGuard<'_, GonePasses> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what matters of a runner whose pod is gone. `leads` where this replica tells of it.
    fn keep(&self, key: &PoolKey, runner: Runner, leads: bool) {
        let now = Timestamp::now();
        if let Some(pass) = pass_of(&runner, now) {
            let mut gone = self.gone_passes();
            gone.all.retain(|pass| is_recent(pass.bound, now));
            if gone.all.len() >= MOST_PASSES
                && let Some(lost) = gone.all.pop_front()
            {
                gone.since = gone.since.max(Some(lost.bound));
            }
            gone.all.push_back(pass);
        }
        if leads {
            self.note_gone(key, runner, now);
        }
    }

    /// Takes in a pod: the pools concerned, if anything that we read has changed. `leads` where this replica tells of runners
    /// that are gone.
    pub(crate) fn apply(&self, pod: &Pod, leads: bool) -> Option<Vec<PoolKey>> {
        let (at, own) = (pod_key(pod), pool_of(pod));
        let runner = own.map(|own| (own, Box::new(read(pod))));
        let held = held_of(pod).filter(|_| runner.is_none());
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = self.note_stray(at.clone(), held);
        let mut concerned = vec![];
        let own = runner.as_ref().map(|(own, _)| own);
        if let Some((left, runner)) = take_out(&mut pools, &at, own) {
            self.keep(&left, *runner, leads);
            concerned.push(left);
        }
        if let Some((own, mut runner)) = runner {
            let runners = pools.entry(own.clone()).or_default();
            let before = runners.get(&runner.name);
            if let Some(before) = before {
                runner.follow(before);
                // Another pod has its name, and the watch missed its end.
                if before.uid != runner.uid {
                    self.went(&own, Runner::clone(before), leads, false);
                }
            }
            if before != Some(&runner) {
                concerned.push(own);
            }
            runners.insert(runner.name.clone(), runner);
        }
        (is_news || !concerned.is_empty()).then_some(concerned)
    }

    /// Notes what a pod holds that is no pool's; whether that is news.
    fn note_stray(&self, at: PodKey, held: Option<(String, Counts)>) -> bool {
        let mut strays = self.strays();
        match held {
            Some(held) => strays.insert(at, held.clone()) != Some(held),
            None => strays.remove(&at).is_some(),
        }
    }

    /// Takes a pod away: the pools concerned. `leads` where this replica tells of it.
    pub(crate) fn delete(&self, pod: &Pod, leads: bool) -> Vec<PoolKey> {
        // What it was at last may be news, too: whose it is.
        let mut concerned = self.apply(pod, leads).unwrap_or_default();
        if let Some(own) = pool_of(pod) {
            self.remove(&own, pod, leads);
            concerned.push(own);
        }
        self.note_stray(pod_key(pod), None);
        concerned
    }

    fn remove(&self, key: &PoolKey, pod: &Pod, leads: bool) {
        let mut runner = read(pod);
        let name = &runner.name;
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(runners) = pools.get_mut(key) {
            let before = runners.remove(name);
            if let Some(before) = before {
                runner.follow(&before);
            }
            if runners.is_empty() {
                pools.remove(key);
            }
        }
        // Before the runners are shown without it: in between it would be in neither.
        self.went(key, runner, leads, true);
    }

    /// Keeps what matters of a runner whose pod is gone; whether somebody saw how.
    fn went(&self, key: &PoolKey, runner: Runner, leads: bool, is_seen: bool) {
        // Nobody saw it end: it was deleted by force.
        let is_deleted = || {
            (is_seen || runner.disruption.is_some())
                && Failure::deleted(&runner, Timestamp::UNIX_EPOCH).is_some()
        };
        let is_news = runner.done.is_some()
            || match &runner.end {
                Some(End::JobDone(_)) => true,
                Some(End::Failed(failure)) => failure.is_unasked(),
                None => is_deleted(),
            };
        if is_news {
            let runner = Box::new(runner.clone());
            self.note_vanished(key, runner, leads, Timestamp::now());
        }
        self.keep(key, runner, leads);
    }

    /// Keeps a runner until its end is told.
    fn note_vanished(&self, pool: &PoolKey, runner: Box<Runner>, leads: bool, at: Timestamp) {
        let mut all = self.vanished_ones();
        // Where another replica leads, nobody asks for them.
        let kept = if leads { RECENT } else { TAKEOVER };
        let is_over = |one: &Vanished| one.at.after(kept) <= at;
        while all.len() >= MOST_VANISHED || all.front().is_some_and(is_over) {
            let lost = all.pop_front();
            if let Some(Vanished { pool, runner, .. }) = lost.filter(|_| leads) {
                tracing::warn!(%pool, runner = runner.name, "how a runner ended was not reported: too many have ended at once, or too long ago");
            }
        }
        let pool = pool.clone();
        all.push_back(Vanished { pool, runner, at });
    }

    /// Removes what a new list of `scope` does not hold; the pools concerned.
    fn retain(&self, scope: &Scope, listed: &HashSet<PodKey>, leads: bool) -> Vec<PoolKey> {
        let mut changed = vec![];
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        for (key, runners) in pools.iter_mut() {
            let covered = scope.covers(&key.namespace);
            let is_gone =
                |name: &str| covered && !listed.contains(&(key.namespace.clone(), name.to_owned()));
            let mut gone = runners.extract_if(.., |name, _| is_gone(name)).peekable();
            if gone.peek().is_some() {
                changed.push(key.clone());
            }
            for (_, runner) in gone {
                self.went(key, *runner, leads, false);
            }
        }
        // Whatever came and went since the watch broke off is in no list.
        self.gone_passes().since = Some(Timestamp::now());
        pools.retain(|_, runners| !runners.is_empty());
        let mut strays = self.strays();
        strays.retain(|at, _| !scope.covers(&at.0) || listed.contains(at));
        changed
    }
}

/// The runners of the pool with this uid.
fn own<'a>(
    pools: &'a Runners,
    pool: &PoolKey,
    uid: &'a str,
) -> impl Iterator<Item = &'a Runner> + use<'a> {
    let runners = pools.get(pool).into_iter().flat_map(BTreeMap::values);
    runners.map(Box::as_ref).filter(move |r| r.owner == uid)
}

/// The pool of a pod: by its label, and only if the pool also owns the pod.
#[must_use]
pub fn pool_of(pod: &Pod) -> Option<PoolKey> {
    let name = pod.labels().get(cudarunner_crds::POOL_LABEL)?;
    pod.owner_references()
        .iter()
        .any(|o| o.kind == "CudaRunner" && o.name == *name)
        .then(|| PoolKey {
            namespace: pod.namespace().unwrap_or_default(),
            name: name.clone(),
        })
}

/// A gate that passed lately, if a runner's did.
fn pass_of(runner: &Runner, now: Timestamp) -> Option<Pass> {
    let bound = runner.life.bound.unwrap_or(runner.created);
    let has_passed = runner.gate_passed && is_recent(bound, now);
    Some(Pass {
        node: runner.node.clone().filter(|_| has_passed)?,
        devices: runner.devices.clone(),
        bound,
    })
}

/// Whether a gate of then can still clear a device.
fn is_recent(bound: Timestamp, now: Timestamp) -> bool {
    now < bound.after(RECENT)
}

fn pod_key(pod: &Pod) -> PodKey {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Takes a pod out of the pool that has it, unless that is its `own`: its label or its owner may have been others.
fn take_out(
    pools: &mut Runners,
    (namespace, name): &PodKey,
    own: Option<&PoolKey>,
) -> Option<(PoolKey, Box<Runner>)> {
    let has = |runners: &BTreeMap<_, _>| runners.contains_key(name);
    if own.and_then(|own| pools.get(own)).is_some_and(has) {
        return None;
    }
    let first = PoolKey {
        namespace: namespace.clone(),
        name: String::new(),
    };
    let mut others = pools
        .range(first..)
        .take_while(|(key, _)| key.namespace == *namespace);
    let key = others.find(|(_, runners)| has(runners))?.0.clone();
    let runners = pools.get_mut(&key)?;
    let runner = runners.remove(name)?;
    if runners.is_empty() {
        pools.remove(&key);
    }
    Some((key, runner))
}

/// Takes in a pod, and wakes the pools concerned.
fn take(pods: &Pods, pod: &Pod, waker: &Waker) {
    let changed = said(guard::step(|| pods.apply(pod, waker.leads())), pod);
    if let Some(pools) = changed.flatten() {
        for pool in &pools {
            waker.wake(pool);
        }
        waker.shares.notify_one();
    }
}

/// A pod on which we fail hides no other.
fn said<T>(done: Result<T, Panicked>, pod: &Pod) -> Option<T> {
    done.inspect_err(
        |error| tracing::error!(pod = pod.name_any(), %error, "a pod could not be read"),
    )
    .ok()
}

/// Follows the pods of a scope permanently; `ready` turns true after the first list.
pub async fn follow(
    client: Client,
    scope: Scope,
    pods: Arc<Pods>,
    waker: Arc<Waker>,
    ready: flag::Sender<bool>,
) {
    let config = watcher::Config::default()
        .labels(cudarunner_crds::POOL_LABEL)
        .page_size(PAGE);
    let mut events: Events<Pod> = watch(scope.api(&client), config)
        .backoff(Pauses::default())
        .boxed();
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.insert(pod_key(&pod));
                take(&pods, &pod, &waker);
            }
            Ok(Event::InitDone) => {
                for pool in pods.retain(&scope, &listed, waker.leads()) {
                    waker.wake(&pool);
                }
                waker.shares.notify_one();
                listed = HashSet::new();
                ready.send_replace(true);
            }
            Ok(Event::Apply(pod)) => take(&pods, &pod, &waker),
            Ok(Event::Delete(pod)) => {
                let gone = guard::step(|| pods.delete(&pod, waker.leads()));
                for pool in said(gone, &pod).unwrap_or_default() {
                    waker.wake(&pool);
                }
                waker.shares.notify_one();
            }
            Err(error) => log_error("pods", &error),
        }
    }
}

#[cfg(test)]
mod tests;
