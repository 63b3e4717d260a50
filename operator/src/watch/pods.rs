//! The runner pods, by pool.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarunner_crds::MAX_LAST_FAILURES;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch as flag;

use super::{Events, PAGE, Pauses, Scope, Waker, log_error, others};
use crate::guard::{self, Panicked};
use crate::observe::pod::read;
use cuda_runner_plan::Passed;
use cuda_runner_plan::fleet::Others;
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::runner::{End, Failure, Gone, Runner};

/// The runner pods of all pools: of each, only what the plan reads.
#[derive(Debug, Default)]
pub struct Pods {
    // A node of such a map has room for eleven, and most pools have fewer: the room must be cheap.
    pools: RwLock<HashMap<PoolKey, BTreeMap<String, Box<Runner>>>>,
    vanished: Mutex<HashMap<PoolKey, Vec<Runner>>>,
    gone: Mutex<VecDeque<(PoolKey, Arc<Gone>)>>,
}

/// Runners whose pods are gone and that nobody has told of yet: so many are kept, of all pools together. They wait for a
/// job's conclusion some minutes at most.
const MOST_GONE: usize = 10_000;

impl Pods {
    /// The runners of a pool.
    #[must_use]
    pub fn of(&self, pool: &PoolKey) -> Vec<Runner> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools
            .get(pool)
            .map(|runners| runners.values().map(|r| Runner::clone(r)).collect())
            .unwrap_or_default()
    }

    /// Shows the runners of a pool, one by one. `look` must be short: the watch waits.
    pub fn each(&self, pool: &PoolKey, look: impl FnMut(&Runner)) {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let runners = pools.get(pool).into_iter().flat_map(BTreeMap::values);
        runners.map(Box::as_ref).for_each(look);
    }

    /// Uids of the pods of a pool.
    #[must_use]
    pub fn uids(&self, pool: &PoolKey) -> BTreeSet<String> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let runners = pools.get(pool).into_iter().flat_map(BTreeMap::values);
        runners.map(|runner| runner.uid.clone()).collect()
    }

    /// Runners that ended or had no time to, and whose pods were gone within milliseconds because somebody else took them away. Kept until
    /// `is_told`.
    pub fn vanished(&self, pool: &PoolKey, is_told: impl Fn(&Runner) -> bool) -> Vec<Runner> {
        let mut all = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(vanished) = all.get_mut(pool) else {
            return vec![];
        };
        vanished.retain(|runner| !is_told(runner));
        let left = vanished.clone();
        if left.is_empty() {
            all.remove(pool);
        }
        left
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, pool: &PoolKey) {
        let mut all = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(pool);
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

    /// Keeps a runner whose pod is gone.
    fn note_gone(&self, key: &PoolKey, runner: Runner, at: Timestamp) {
        let mut gone = self.gone_ones();
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

    /// Shows the runners of all pools, one by one. What counts of what they hold is what their pods have: no pool's author can
    /// say more than the scheduler has granted. `look` must be short: the watch waits.
    pub fn every(&self, mut look: impl FnMut(&PoolKey, &Runner)) {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        for (key, runners) in pools.iter() {
            for runner in runners.values() {
                look(key, runner);
            }
        }
    }

    /// Adds what the runners of pools hold that other operators serve.
    pub fn add_beside(&self, is_own: impl Fn(&PoolKey) -> bool, held: &mut Others) {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let others = pools.iter().filter(|(pool, _)| !is_own(pool));
        let runners = others.flat_map(|(_, runners)| runners.values());
        runners.for_each(|runner| others::add_runner(held, runner));
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

    /// Takes in a pod; the pool that it belongs to if anything that we read has changed.
    pub(crate) fn apply(&self, pod: &Pod) -> Option<PoolKey> {
        let key = pool_of(pod)?;
        let mut runner = read(pod);
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let runners = pools.entry(key.clone()).or_default();
        if let Some(before) = runners.get(&runner.name) {
            runner.follow(before);
        }
        let changed = runners.get(&runner.name).map(Box::as_ref) != Some(&runner);
        runners.insert(runner.name.clone(), Box::new(runner));
        changed.then_some(key)
    }

    /// Takes a pod away; `leads` where this replica tells of it.
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
        if leads {
            self.note_gone(key, runner.clone(), Timestamp::now());
        }
        drop(pools);
        let is_news = match &runner.end {
            Some(End::JobDone(_)) => true,
            Some(End::Failed(failure)) => failure.is_unasked(),
            // Nobody saw it end: it was deleted by force.
            None => Failure::deleted(&runner, Timestamp::UNIX_EPOCH).is_some(),
        };
        if is_news {
            let mut all = self.vanished.lock().unwrap_or_else(PoisonError::into_inner);
            let vanished = all.entry(key.clone()).or_default();
            if vanished.len() < MAX_LAST_FAILURES {
                vanished.push(runner);
            }
        }
    }

    /// Removes what a new list of `scope` does not hold; the pools concerned.
    fn retain(
        &self,
        scope: &Scope,
        listed: &HashSet<(PoolKey, String)>,
        leads: bool,
    ) -> Vec<PoolKey> {
        let mut changed = vec![];
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        for (key, runners) in pools.iter_mut() {
            let covered = scope.covers(&key.namespace);
            let is_gone = |name: &str| covered && !listed.contains(&(key.clone(), name.to_owned()));
            let mut gone = runners.extract_if(.., |name, _| is_gone(name)).peekable();
            if gone.peek().is_some() {
                changed.push(key.clone());
            }
            for (_, runner) in gone.filter(|_| leads) {
                self.note_gone(key, *runner, Timestamp::now());
            }
        }
        pools.retain(|_, runners| !runners.is_empty());
        changed
    }
}

/// The pool of a pod: by its label, and only if the pool also owns the pod.
fn pool_of(pod: &Pod) -> Option<PoolKey> {
    let name = pod.labels().get(cudarunner_crds::POOL_LABEL)?;
    pod.owner_references()
        .iter()
        .any(|o| o.kind == "CudaRunner" && o.name == *name)
        .then(|| PoolKey {
            namespace: pod.namespace().unwrap_or_default(),
            name: name.clone(),
        })
}

/// Takes in a pod, and wakes its pool.
fn take(pods: &Pods, pod: &Pod, waker: &Waker) {
    let changed = said(guard::step(|| pods.apply(pod)), pod);
    if let Some(pool) = changed.flatten() {
        waker.wake(&pool);
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
                if let Some(key) = pool_of(&pod) {
                    listed.insert((key, pod.name_any()));
                }
                take(&pods, &pod, &waker);
            }
            Ok(Event::InitDone) => {
                for pool in pods.retain(&scope, &listed, waker.is_listening()) {
                    waker.wake(&pool);
                }
                waker.shares.notify_one();
                listed = HashSet::new();
                ready.send_replace(true);
            }
            Ok(Event::Apply(pod)) => take(&pods, &pod, &waker),
            Ok(Event::Delete(pod)) => {
                if let Some(pool) = pool_of(&pod) {
                    said(
                        guard::step(|| pods.remove(&pool, &pod, waker.is_listening())),
                        &pod,
                    );
                    waker.wake(&pool);
                    waker.shares.notify_one();
                }
            }
            Err(error) => log_error("pods", &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_kubernetes_took_away_is_kept_until_that_is_told() {
        // Given pods of which one was evicted, and two deleted, one of them idle, in the state in which they vanish
        let pods = Pods::default();
        let key = fixture_key();
        for (name, conditions) in [
            (
                "pool-aaaaa",
                json!([{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]),
            ),
            ("pool-bbbbb", json!([])),
            (
                "pool-ccccc",
                json!([{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]),
            ),
        ] {
            let phase = if name == "pool-ccccc" {
                "Running"
            } else {
                "Failed"
            };
            let pod = json!({
                "metadata": {"name": name, "namespace": "ci"},
                "spec": {
                    "initContainers": [{"name": "gpu", "image": "runner:1"}],
                    "containers": [{"name": "main", "image": "gate:1"}],
                },
                "status": {"phase": phase, "conditions": conditions, "initContainerStatuses": [{
                    "name": "gpu", "image": "", "imageID": "", "ready": true, "restartCount": 1,
                    "state": {"running": {}},
                }]},
            });
            pods.remove(&key, &serde_json::from_value(pod).unwrap(), false);
        }

        // Then the first is still shown, and gone when it has been reported
        let names = |reported: bool| -> Vec<String> {
            let vanished = pods.vanished(&key, |_| reported).into_iter();
            vanished.map(|runner| runner.name).collect()
        };
        assert_eq!(names(false), ["pool-aaaaa"]);
        assert_eq!(names(true), Vec::<String>::new());
        assert_eq!(names(false), Vec::<String>::new());
    }

    /// A pod of this name, that is ready.
    fn idle(name: &str) -> Pod {
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "ci", "uid": name, "labels": {cudarunner_crds::POOL_LABEL: "pool"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "CudaRunner", "name": "pool", "uid": "u"}
                ],
            },
            "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn each_pod_that_goes_is_kept_until_it_is_told_of() {
        // Given three pods, of which one goes while the watch looks, and one while it does not
        let (pods, key) = (Pods::default(), fixture_key());
        for name in ["pool-aaaaa", "pool-bbbbb", "pool-ccccc"] {
            pods.apply(&idle(name));
        }
        pods.remove(&key, &idle("pool-aaaaa"), true);
        let listed = HashSet::from([(key.clone(), "pool-ccccc".to_owned())]);
        assert_eq!(pods.retain(&Scope::Cluster, &listed, true).len(), 1);

        // Then both are kept, and each is told of once
        let names = || -> Vec<String> {
            let gone = pods.gone(&key).into_iter();
            gone.map(|gone| gone.runner.name.clone()).collect()
        };
        assert_eq!(names(), ["pool-aaaaa", "pool-bbbbb"]);
        assert!(pods.told("pool-aaaaa"));
        assert!(!pods.told("pool-aaaaa"));
        assert_eq!(names(), ["pool-bbbbb"]);

        // And where another replica leads, nothing is kept
        pods.remove(&key, &idle("pool-ccccc"), false);
        assert_eq!(names(), ["pool-bbbbb"]);
        pods.forget(&key);
        assert_eq!(names(), Vec::<String>::new());
    }

    #[test]
    fn of_those_that_nobody_tells_of_the_oldest_are_dropped() {
        let (pods, key) = (Pods::default(), fixture_key());
        let one = read(&idle("pool-aaaaa"));
        for _ in 0..=MOST_GONE {
            pods.note_gone(&key, one.clone(), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(pods.gone(&key).len(), MOST_GONE);
    }

    fn fixture_key() -> PoolKey {
        PoolKey {
            namespace: "ci".to_owned(),
            name: "pool".to_owned(),
        }
    }

    use http::{Request, Response};
    use kube::client::Body;
    use std::convert::Infallible;

    #[tokio::test]
    async fn pods_are_read_a_few_at_a_time() {
        let (asked, mut first) = tokio::sync::mpsc::channel(1);
        let service = tower::service_fn(move |request: Request<Body>| {
            let asked = asked.clone();
            async move {
                let _ = asked.send(request.uri().to_string()).await;
                std::future::pending::<()>().await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let client = Client::new(service, "default");
        let (ready, _) = flag::channel(false);
        let waker = Arc::new(Waker::new().0);
        let following = follow(client, Scope::Cluster, Arc::default(), waker, ready);
        let uri = tokio::select! {
            uri = first.recv() => uri.unwrap(),
            () = following => panic!("the watch ended"),
        };
        assert!(uri.contains(&format!("limit={PAGE}")), "{uri}");
    }
}
