//! The fleet page: what the operator knows, as [one document](cuda_runner_plan::fleet) and as pages for people.
//!
//! Everything is put together when somebody asks, and forgotten when it is told.

pub mod host;
pub mod page;
pub mod server;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use jiff::Timestamp;
use kube::runtime::reflector::Store;

use crate::config::Config;
use crate::context::Context;
use crate::server::Waits;
use crate::watch::pools::key_of;
use cuda_runner_plan::fleet::{Builder, Fleet, Known, Operator};

/// Who knows the fleet.
pub trait Knows: Send + Sync + 'static {
    /// What is not read yet.
    fn missing(&self) -> Vec<&'static str>;
    /// The fleet now.
    fn fleet(&self, now: Timestamp) -> Fleet;
}

/// The operator's own caches and what it remembers.
pub struct Source {
    ctx: Arc<Context>,
    identity: String,
    /// What must have been read before anything can be said.
    waits: Waits,
}

impl Source {
    /// What this process knows, once it has read what it waits for.
    #[must_use]
    pub fn new(config: &Config, ctx: &Arc<Context>, waits: Waits) -> Self {
        Self {
            ctx: Arc::clone(ctx),
            identity: config.identity.clone(),
            waits,
        }
    }
}

impl Knows for Source {
    fn missing(&self) -> Vec<&'static str> {
        let waits = self.waits.iter().filter(|(_, done)| !*done.borrow());
        waits.map(|(name, _)| *name).collect()
    }

    fn fleet(&self, now: Timestamp) -> Fleet {
        let ctx = &self.ctx;
        let leads = ctx.fence.check().is_ok();
        let operator = Operator {
            name: self.identity.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: ctx.ended.since(),
            leads,
        };
        let nodes = ctx.nodes.as_ref().map(|nodes| nodes.all());
        let mut held = ctx
            .shares
            .others
            .as_ref()
            .and_then(|others| others.by_node());
        if let Some(held) = held.as_mut() {
            ctx.pods
                .add_others(held, |key, runner| ctx.has(key, &runner.owner));
        }
        let mut builder = Builder::new(now, Some(operator), nodes.as_deref(), held.as_ref());
        for resource in ctx.pools.iter().flat_map(Store::state) {
            let key = key_of(&resource);
            let uid = resource.metadata.uid.as_deref().unwrap_or_default();
            let queue = ctx
                .memory
                .of(&key, uid, |memory| memory.github.queue.clone());
            let heard = ctx.listeners.waiting(&key, uid);
            builder.pool(
                &resource,
                Known {
                    read: queue.flatten().as_ref(),
                    heard: heard.as_deref(),
                },
            );
            ctx.pods.each(&key, uid, |runner| {
                let running = ctx.listeners.job_of(&key, uid, &runner.name);
                builder.runner(runner, running.as_ref());
            });
        }
        if leads {
            builder.counts_hours();
        }
        for runner in ctx.ended.last() {
            builder.ended(&runner);
        }
        builder.finish()
    }
}

/// What changes with the fleet, and not with the time alone.
fn fingerprint(mut fleet: Fleet) -> u64 {
    fleet.generated_at = Timestamp::UNIX_EPOCH;
    let mut hasher = DefaultHasher::new();
    // It has string keys, and no numbers that JSON does not know.
    let json = serde_json::to_vec(&fleet).unwrap_or_default();
    json.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reconcile::tests::{Cluster, context};
    use crate::shares::Shares;
    use crate::shares::tests::{labelled, node};
    use crate::watch::nodes::Nodes;
    use crate::watch::others::Held;
    use cuda_runner_plan::fleet::DeviceState;

    #[tokio::test]
    async fn what_a_pod_holds_that_is_of_no_pool_here_is_shown_as_taken() {
        // Given a node with two GPUs
        let mut ctx = Arc::into_inner(context(&Cluster::default()).await).unwrap();
        ctx.shares = Shares::new(Some(Arc::new(Held::whole())), BTreeMap::new());
        let nodes = Nodes::default();
        nodes.apply(&node());
        ctx.nodes = Some(Arc::new(nodes));
        let pool = ctx.pools[0].state()[0].metadata.clone();
        let (name, uid) = (pool.name.as_deref().unwrap(), pool.uid.as_deref().unwrap());
        let ctx = Arc::new(ctx);
        let source = Source {
            ctx: Arc::clone(&ctx),
            identity: String::new(),
            waits: vec![],
        };
        // When one is held by a pod with a pool's label
        for (label, owner, state) in [
            (name, Some(uid), DeviceState::Gate),
            (name, Some("2"), DeviceState::NotOurs), // a namesake has taken its place
            ("elsewhere", Some("2"), DeviceState::NotOurs), // another operator serves it
            (name, None, DeviceState::NotOurs),      // it was left behind
            ("gone", None, DeviceState::NotOurs),    // and its pool is gone
        ] {
            ctx.pods.apply(&labelled(label, owner), true);
            // Then the other is free
            let devices = source.fleet(Timestamp::now()).devices;
            let expected = BTreeMap::from([(state, 1), (DeviceState::Free, 1)]);
            assert_eq!(devices, expected, "{label} {owner:?}");
        }
    }
}
