//! The clients that pools used last: a deletion goes on with them when the Secret is gone, and what a pool has left at another
//! server is removed with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Client;
use crate::per_pool::PerPool;
use cuda_runner_plan::model::pool::{Pool, PoolKey};

/// The last clients of all pools.
#[derive(Default)]
pub struct LastClients(PerPool<Last>);

#[derive(Default)]
struct Last {
    in_use: Option<Arc<Client>>,
    /// Those that GitHub has answered, by address.
    worked: BTreeMap<String, Arc<Client>>,
}

impl LastClients {
    /// Notes the client of a pool.
    pub fn uses(&self, pool: &Pool, client: &Arc<Client>) {
        self.0
            .with(pool, |last| last.in_use = Some(Arc::clone(client)));
    }

    /// Notes that GitHub has answered a client at an address.
    pub fn worked(&self, pool: &Pool, url: String, client: Arc<Client>) {
        self.0.with(pool, |last| last.worked.insert(url, client));
    }

    /// The client that the pool uses, or used last, wherever that was.
    #[must_use]
    pub fn in_use(&self, pool: &Pool) -> Option<Arc<Client>> {
        self.0.with(pool, |last| last.in_use.clone())
    }

    /// The client that last worked at an address.
    #[must_use]
    pub fn at(&self, pool: &Pool, url: &str) -> Option<Arc<Client>> {
        self.0.with(pool, |last| last.worked.get(url).cloned())
    }

    /// Drops those of other addresses.
    pub fn keep(&self, pool: &Pool, is_needed: impl Fn(&String) -> bool) {
        self.0
            .with(pool, |last| last.worked.retain(|url, _| is_needed(url)));
    }

    /// Forgets a pool.
    pub fn forget(&self, key: &PoolKey) {
        self.0.forget(key);
    }
}
