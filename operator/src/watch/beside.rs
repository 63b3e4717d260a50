//! What pools have in quarantine that other operators serve. Only followed where this one has a selector, and only for the
//! few pools that have something in quarantine: the others never pass here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarunner_crds::CudaRunner;
use futures::StreamExt as _;
use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use tokio::sync::watch as flag;

use super::pools::{key_of, readable};
use super::{Events, PAGE, Pauses, Scope, Waker, log_error, refused};
use crate::observe::others::held_by;
use cuda_runner_plan::model::node_marks::Quarantined;
use cuda_runner_plan::model::pool::PoolKey;

/// Pools with quarantined nodes, as a field selector. See `quarantinedNodes` of the status.
const QUARANTINING: &str = "status.quarantinedNodes!=0";

/// What pools have in quarantine, whoever serves them.
#[derive(Debug, Default)]
pub struct Beside(Mutex<BTreeMap<PoolKey, Vec<Quarantined>>>);

impl Beside {
    /// What the pools have in quarantine that are not this operator's.
    pub fn quarantined(&self, is_own: impl Fn(&PoolKey) -> bool) -> Vec<Quarantined> {
        let pools = self.lock();
        let others = pools.iter().filter(|(key, _)| !is_own(key));
        others.flat_map(|(_, held)| held.clone()).collect()
    }

    /// Takes in what a pool has in quarantine; whether that is news.
    fn put(&self, pool: &CudaRunner) -> bool {
        let (key, held) = (key_of(pool), held_by(pool));
        let mut pools = self.lock();
        if held.is_empty() {
            return pools.remove(&key).is_some();
        }
        let before = pools.insert(key, held.clone());
        before.is_none_or(|before| before != held)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PoolKey, Vec<Quarantined>>> {
        // A panic elsewhere leaves whole values behind, none of them half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows the quarantines of a scope permanently. What changes concerns all pools, and the marks of nodes.
pub async fn follow(
    client: Client,
    scope: Scope,
    beside: Arc<Beside>,
    (pools, waker): (Vec<Store<CudaRunner>>, Arc<Waker>),
    filled: flag::Sender<bool>,
) {
    let api = scope.api::<DeserializeGuard<CudaRunner>>(&client);
    let config = watcher::Config::default()
        .fields(QUARANTINING)
        .page_size(PAGE);
    let mut events: Events<DeserializeGuard<CudaRunner>> =
        watch(api, config).backoff(Pauses::default()).boxed();
    let mut listed = BTreeMap::new();
    while let Some(event) = events.next().await {
        let changed = match event.map(readable) {
            Ok(Some(Event::Init)) => {
                listed.clear();
                false
            }
            Ok(Some(Event::InitApply(pool))) => {
                listed.insert(key_of(&pool), held_by(&pool));
                false
            }
            Ok(Some(Event::InitDone)) => {
                let mut kept = beside.lock();
                kept.retain(|key, _| !scope.covers(&key.namespace));
                let listed = std::mem::take(&mut listed).into_iter();
                kept.extend(listed.filter(|(_, held)| !held.is_empty()));
                drop(kept);
                filled.send_replace(true);
                true
            }
            Ok(Some(Event::Apply(pool))) => beside.put(&pool),
            // To the watch, a pool is gone when its last quarantine has ended.
            Ok(Some(Event::Delete(pool))) => beside.lock().remove(&key_of(&pool)).is_some(),
            Ok(None) => false,
            Err(error) => {
                // An older CRD does not know of the field: nothing is shared then, and nothing waits for it.
                if matches!(refused(&error), Some(400 | 403)) {
                    filled.send_replace(true);
                }
                log_error("quarantines of other pools", &error);
                false
            }
        };
        if changed {
            waker.wake_all(&pools);
            waker.quarantine_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;
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
        let nodes = || -> Vec<String> {
            let held = beside.quarantined(|key| key.name == "own");
            held.into_iter().map(|held| held.entry.node).collect()
        };
        // Given pools of others and of this operator, then the others' quarantines are known, and each once
        assert!(beside.put(&pool("other", &["node-1"])));
        assert!(!beside.put(&pool("other", &["node-1"])));
        assert!(beside.put(&pool("own", &["node-2"])));
        assert_eq!(nodes(), ["node-1"]);
        assert!(beside.put(&pool("other", &["node-1", "node-3"])));
        assert_eq!(nodes(), ["node-1", "node-3"]);

        // And when they end, nothing is left of them
        assert!(beside.put(&pool("other", &[])));
        assert!(!beside.put(&pool("other", &[])));
        assert_eq!(nodes(), [] as [&str; 0]);
    }
}
