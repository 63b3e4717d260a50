//! Pools that other operators serve, as far as this one has to know: what they have in quarantine, and what they would have of
//! GPUs that are shared. Only followed where this one has a selector. Of its own pools the other watch tells.
//!
//! Another operator's pools are many, and their authors are strangers: of each only what is read is kept, and bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Client, ResourceExt as _};
use tokio::sync::watch as flag;

use super::pools::{key_of, readable};
use super::{Events, PAGE, Pauses, Scope, Waker, log_error, refused};
use crate::observe::others::held_by;
use crate::selector::PoolSelector;
use crate::shares::known::Known;
use cuda_runner_plan::model::node_marks::Quarantined;
use cuda_runner_plan::model::pool::{PoolKey, Spec};

/// Pools with quarantined nodes, as a field selector. See `quarantinedNodes` of the status.
const QUARANTINING: &str = "status.quarantinedNodes!=0";

/// Which pools are followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// All: they share GPUs.
    All,
    /// Those that have something in quarantine, where this operator sees no nodes and knows of no shares.
    Quarantining,
}

/// What is kept of pools, whoever serves them.
#[derive(Debug, Default)]
pub struct Beside {
    own: Option<PoolSelector>,
    pools: Mutex<BTreeMap<PoolKey, Kept>>,
}

/// What is kept of a pool.
#[derive(Debug, Default)]
struct Kept {
    quarantined: Vec<Quarantined>,
    /// Nothing of one that cannot be carried out, and of this operator's own.
    known: Option<Arc<Known>>,
    /// The generation that this was read from.
    generation: Option<i64>,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.quarantined.is_empty() && self.known.is_none()
    }
}

/// What has changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct News {
    quarantines: bool,
    shares: bool,
}

impl Beside {
    /// Nothing is known yet. What `own` selects is this operator's own.
    #[must_use]
    pub fn new(own: Option<PoolSelector>) -> Self {
        Self {
            own,
            pools: Mutex::default(),
        }
    }

    /// What the pools have in quarantine that are not this operator's.
    pub fn quarantined(&self, is_own: impl Fn(&PoolKey) -> bool) -> Vec<Quarantined> {
        let pools = self.lock();
        let others = pools.iter().filter(|(key, _)| !is_own(key));
        others
            .flat_map(|(_, kept)| kept.quarantined.clone())
            .collect()
    }

    /// The pools that the selector leaves out, as all operators see them.
    #[must_use]
    pub fn pools(&self) -> Vec<(PoolKey, Arc<Known>)> {
        let pools = self.lock();
        let known = pools.iter();
        let known = known.filter_map(|(key, kept)| Some((key.clone(), kept.known.clone()?)));
        known.collect()
    }

    /// What is to be kept of a pool.
    fn read(&self, pool: &CudaRunner) -> Kept {
        let is_own = self
            .own
            .as_ref()
            .is_none_or(|own| own.matches(pool.labels()));
        Kept {
            quarantined: held_by(pool),
            known: if is_own { None } else { self.known(pool) },
            generation: pool.metadata.generation,
        }
    }

    /// A template is read when it has changed, and not with each status.
    fn known(&self, pool: &CudaRunner) -> Option<Arc<Known>> {
        let before = self.lock().get(&key_of(pool)).and_then(|kept| {
            let known = kept.known.clone()?;
            let is_same = pool.metadata.uid.as_ref() == Some(&known.uid)
                && kept.generation.is_some()
                && kept.generation == pool.metadata.generation;
            is_same.then(|| Arc::clone(&known.needs))
        });
        let needs = match before {
            Some(needs) => needs,
            // Which addresses may be asked without TLS, its own operator knows.
            None => Arc::new(Spec::read(pool, true).ok()?.needs?.seen()),
        };
        Some(Arc::new(Known::of(pool, needs)))
    }

    /// Takes in a pool as the watch does.
    #[cfg(test)]
    pub(crate) fn show(&self, pool: &CudaRunner) {
        self.put(key_of(pool), self.read(pool));
    }

    /// Takes in a pool, or that it is gone.
    fn put(&self, key: PoolKey, kept: Kept) -> News {
        let mut pools = self.lock();
        let before = pools.remove(&key).unwrap_or_default();
        let news = News {
            quarantines: before.quarantined != kept.quarantined,
            shares: before.known != kept.known,
        };
        if !kept.is_empty() {
            pools.insert(key, kept);
        }
        news
    }

    /// Takes in what a list of a scope holds.
    fn replace(&self, scope: &Scope, listed: BTreeMap<PoolKey, Kept>) {
        let mut pools = self.lock();
        pools.retain(|key, _| !scope.covers(&key.namespace));
        pools.extend(listed.into_iter().filter(|(_, kept)| !kept.is_empty()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PoolKey, Kept>> {
        // A panic elsewhere leaves whole values behind, none of them half-written.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the pools of a scope permanently. What they have in quarantine concerns all pools, and the marks of nodes; what they
/// would have, the shares.
pub async fn follow(
    client: Client,
    (scope, which): (Scope, Which),
    beside: Arc<Beside>,
    (pools, waker): (Vec<Store<CudaRunner>>, Arc<Waker>),
    filled: flag::Sender<bool>,
) {
    let api = scope.api::<DeserializeGuard<CudaRunner>>(&client);
    let mut config = watcher::Config::default().page_size(PAGE);
    if which == Which::Quarantining {
        config = config.fields(QUARANTINING);
    }
    let mut events: Events<DeserializeGuard<CudaRunner>> =
        watch(api, config).backoff(Pauses::default()).boxed();
    let mut listed = BTreeMap::new();
    while let Some(event) = events.next().await {
        let news = match event.map(readable) {
            Ok(Some(Event::Init)) => {
                listed.clear();
                News::default()
            }
            Ok(Some(Event::InitApply(pool))) => {
                listed.insert(key_of(&pool), beside.read(&pool));
                News::default()
            }
            Ok(Some(Event::InitDone)) => {
                beside.replace(&scope, std::mem::take(&mut listed));
                filled.send_replace(true);
                News {
                    quarantines: true,
                    shares: true,
                }
            }
            Ok(Some(Event::Apply(pool))) => beside.put(key_of(&pool), beside.read(&pool)),
            // To the watch of quarantines, a pool is gone when its last one has ended.
            Ok(Some(Event::Delete(pool))) => beside.put(key_of(&pool), Kept::default()),
            Ok(None) => News::default(),
            Err(error) => {
                // An older CRD does not know of the field: nothing is shared then, and nothing waits for it.
                if matches!(refused(&error), Some(400 | 403)) {
                    filled.send_replace(true);
                }
                log_error("pools of other operators", &error);
                News::default()
            }
        };
        if news.quarantines {
            waker.wake_all(&pools);
            waker.quarantine_changed();
        }
        if news.shares {
            waker.shares.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;
    use cudarunner_crds::ScalingSource;
    use serde_json::json;

    #[test]
    fn what_others_have_in_quarantine_is_known_until_it_ends() {
        let pool = |name: &str, nodes: &[&str]| {
            let mut pool = fixture::resource();
            pool.metadata.name = Some(name.to_owned());
            let entry =
                |node: &&str| json!({"node": node, "class": "device", "since": fixture::NOW});
            let entries: Vec<_> = nodes.iter().map(entry).collect();
            let status = json!({"quarantine": entries});
            pool.status = Some(serde_json::from_value(status).unwrap());
            pool
        };
        let beside = Beside::default();
        let put = |pool: CudaRunner| beside.put(key_of(&pool), beside.read(&pool)).quarantines;
        let nodes = || -> Vec<String> {
            let held = beside.quarantined(|key| key.name == "own");
            held.into_iter().map(|held| held.entry.node).collect()
        };
        // Given pools of others and of this operator, then the others' quarantines are known, and each once
        assert!(put(pool("other", &["node-1"])));
        assert!(!put(pool("other", &["node-1"])));
        assert!(put(pool("own", &["node-2"])));
        assert_eq!(nodes(), ["node-1"]);
        assert!(put(pool("other", &["node-1", "node-3"])));
        assert_eq!(nodes(), ["node-1", "node-3"]);

        // And when they end, nothing is left of them
        assert!(put(pool("other", &[])));
        assert!(!put(pool("other", &[])));
        assert_eq!(nodes(), [] as [&str; 0]);
        assert_eq!(beside.lock().len(), 1);
    }

    /// A pool that another operator serves, with a status.
    fn served(status: serde_json::Value) -> CudaRunner {
        let mut pool = fixture::scaled(ScalingSource::ScaleSet, 0, 4);
        pool.metadata.name = Some("other".to_owned());
        pool.metadata.generation = Some(1);
        pool.status = Some(serde_json::from_value(status).unwrap());
        pool
    }

    #[test]
    fn only_what_shares_rest_on_is_news_for_them() {
        let beside = Beside::new(Some("shard=a".parse().unwrap()));
        let put = |pool: &CudaRunner| beside.put(key_of(pool), beside.read(pool)).shares;
        let status = |more: serde_json::Value| {
            let mut status = json!({
                "operator": {"namespace": "system", "name": "other"},
                "demand": {"wanted": 1, "most": 4},
            });
            let more = more.as_object().unwrap().clone();
            status.as_object_mut().unwrap().extend(more);
            served(status)
        };
        let ended = json!({"lastJobs": [{"runner": "other-1", "job": "j", "startedAt": fixture::NOW, "finishedAt": fixture::NOW}]});
        // Given another operator's pool, then what is only shown of it is no news, and what it would have is
        for (pool, is_news) in [
            (status(json!({})), true),
            (
                status(json!({"replicas": 3, "online": 2, "gpu": "1 x nvidia.com/gpu"})),
                false,
            ),
            (status(json!({"demand": {"wanted": 2, "most": 4}})), true),
            (status(ended), true),
            (
                status(json!({"operator": {"namespace": "system", "name": "next"}})),
                true,
            ),
        ] {
            assert_eq!(put(&pool), is_news, "{:?}", pool.status);
        }
        // When its selector is moved so that it is this operator's own, then the other watch tells of it
        let mut own = status(json!({}));
        own.labels_mut().insert("shard".to_owned(), "a".to_owned());
        assert!(put(&own));
        assert!(beside.pools().is_empty() && beside.lock().is_empty());
    }

    #[test]
    fn what_is_kept_of_a_strangers_pool_is_bounded() {
        // Given a pool with as large a template and status as anybody may write
        let long = "x".repeat(25_000);
        let terms =
            json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": [long]}]}]);
        let required =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
        let entries: Vec<_> = (0..1000)
            .map(|n| json!({"node": format!("node-{n}"), "class": "config", "since": fixture::NOW}))
            .collect();
        let mut pool = served(json!({"quarantine": entries}));
        pool.spec.template = Some(json!({"spec": {
            "affinity": {"nodeAffinity": required},
            "containers": [{"name": "runner", "image": long}],
        }}));
        let beside = Beside::new(Some("shard=a".parse().unwrap()));
        beside.put(key_of(&pool), beside.read(&pool));

        // Then what is kept of it for the shares has a few kilobytes
        let [(_, known)] = &beside.pools()[..] else {
            panic!("it is not known");
        };
        let length = format!("{known:?}").len();
        assert!(length < 8192, "{length}");
    }

    #[test]
    fn a_template_is_read_again_when_it_has_changed() {
        let beside = Beside::new(Some("shard=a".parse().unwrap()));
        let mut pool = served(json!({}));
        let needs = |pool: &CudaRunner| {
            beside.put(key_of(pool), beside.read(pool));
            Arc::clone(&beside.pools()[0].1.needs)
        };
        let first = needs(&pool);
        pool.status.get_or_insert_default().busy = 1;
        assert!(Arc::ptr_eq(&first, &needs(&pool)));
        pool.metadata.generation = Some(2);
        pool.spec.gpu.count = Some(2);
        assert_eq!(needs(&pool).count, 2);
    }
}
