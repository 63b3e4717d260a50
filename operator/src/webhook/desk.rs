//! Who takes deliveries: their secrets, and the pools that they wake.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarunner_crds::{CudaRunner, ScalingSource};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::Client;
use kube::runtime::reflector::Store;
use secrecy::SecretString;
use tokio::sync::Notify;

use super::server::Outcome;
use super::{HookName, Webhooks};
use crate::act::wake;
use crate::context::Context;
use crate::github::JobEvent;
use crate::observe::webhook::secrets_of;
use cuda_runner_plan::model::github::QueuedJob;
use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::model::webhook::Heard;

/// Pools of which the replica that leads is told at a time.
const AT_ONCE: usize = 8;

/// Whom the endpoint asks.
pub trait Desk: Send + Sync + 'static {
    /// The secrets by which deliveries of this webhook are signed; none where it is no webhook of ours.
    fn secrets(&self, id: &str) -> impl Future<Output = Option<Vec<SecretString>>> + Send;
    /// Takes in what this webhook delivered: an event, or that it delivers at all. Says whether a pool is woken.
    fn arrived(&self, id: &str, event: Option<JobEvent>) -> bool;
    /// Passes on what arrived, beside the answers, and never ends.
    fn pass_on(&self) -> impl Future<Output = ()> + Send;
    /// Counts a delivery.
    fn count(&self, outcome: Outcome);
}

/// The operator's own.
pub struct OperatorDesk {
    ctx: Arc<Context>,
    webhooks: Arc<Webhooks>,
    /// Writes on a replica that stands by, too.
    client: Client,
    /// What the replica that leads is to be told of, of each pool the last.
    news: Mutex<BTreeMap<PoolKey, Heard>>,
    /// There is more of it.
    more: Notify,
}

impl OperatorDesk {
    /// One for the pools of these caches.
    #[must_use]
    pub fn new(ctx: Arc<Context>, webhooks: Arc<Webhooks>, client: Client) -> Self {
        Self {
            ctx,
            webhooks,
            client,
            news: Mutex::default(),
            more: Notify::new(),
        }
    }

    /// What the replica that leads is to be told of.
    fn news(&self) -> MutexGuard<'_, BTreeMap<PoolKey, Heard>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes a pool, wherever it is reconciled.
    async fn pass(&self, pool: &PoolKey, heard: &Heard) {
        if self.ctx.fence.check().is_ok() {
            self.ctx.waker.wake(pool);
        } else {
            wake::ask(&self.client, pool, heard).await;
        }
    }

    fn find(&self, id: &str) -> Option<HookName> {
        let all = || {
            let pools = self.pools(|_| true);
            pools
                .into_iter()
                .map(|(name, _)| name)
                .collect::<BTreeSet<_>>()
        };
        self.webhooks.find(id, all)
    }

    /// The pools that are woken by webhooks, each with its own.
    fn pools(&self, wanted: impl Fn(&CudaRunner) -> bool) -> Vec<(HookName, Pool)> {
        let all = self.ctx.pools.iter().flat_map(Store::state);
        let by_webhook = all.filter(|resource| {
            let scaling = resource.spec.scaling.as_ref();
            let is_asked = scaling.is_some_and(|s| s.source == ScalingSource::Webhook);
            is_asked && resource.metadata.deletion_timestamp.is_none() && wanted(resource)
        });
        by_webhook
            .filter_map(|resource| {
                let pool = self.ctx.specs.pool(&resource);
                let name = HookName::of(&pool, pool.spec.as_ref().ok()?)?;
                Some((name, pool))
            })
            .collect()
    }

    /// The pools of a webhook.
    fn pools_of(&self, hook: &HookName) -> Vec<Pool> {
        let here = |resource: &CudaRunner| {
            resource.metadata.namespace.as_deref() == Some(hook.namespace.as_str())
        };
        let pools = self.pools(here).into_iter();
        pools
            .filter(|(name, _)| name == hook)
            .map(|(_, pool)| pool)
            .collect()
    }
}

impl Desk for OperatorDesk {
    async fn secrets(&self, id: &str) -> Option<Vec<SecretString>> {
        let hook = self.find(id)?;
        let pools = self.pools_of(&hook);
        let first = pools.first()?;
        let secrets = secrets_of(&self.ctx, &self.webhooks, &hook, &first.key);
        secrets.await.ok()
    }

    fn arrived(&self, id: &str, event: Option<JobEvent>) -> bool {
        let Some(hook) = self.find(id) else {
            return false;
        };
        let pools = self.pools_of(&hook).into_iter();
        let woken: Vec<Pool> = pools
            .filter(|pool| is_about(pool, event.as_ref()))
            .collect();
        if woken.is_empty() {
            return false;
        }
        // However much comes, what follows from it has its pauses: a ping, too, may be sent at any rate.
        let moment = self.webhooks.read_at(id, Timestamp::now());
        for pool in woken {
            let news = self.ctx.memory.with(&pool, |memory| {
                let before = memory.webhook;
                let read_at = event.as_ref().map(|_| moment).or(before.read_at);
                let at = Some(moment);
                memory.webhook = Heard { at, read_at };
                Some(memory.webhook).filter(|heard| *heard != before)
            });
            if let Some(heard) = news {
                self.news().insert(pool.key, heard);
                self.more.notify_one();
            }
        }
        true
    }

    async fn pass_on(&self) {
        loop {
            self.more.notified().await;
            let waiting = std::mem::take(&mut *self.news());
            let all = futures::stream::iter(waiting);
            let pass = |(pool, heard)| async move { self.pass(&pool, &heard).await };
            all.for_each_concurrent(AT_ONCE, pass).await;
        }
    }

    fn count(&self, outcome: Outcome) {
        self.ctx.metrics.delivered(outcome.word());
    }
}

/// Whether an event may change what a pool should do: it is of its repository, and of a job that it could take.
fn is_about(pool: &Pool, event: Option<&JobEvent>) -> bool {
    let (Ok(spec), Some(event)) = (&pool.spec, event) else {
        return event.is_none();
    };
    let job = QueuedJob {
        labels: event.labels.clone(),
        ..QueuedJob::default()
    };
    spec.url.is_of(&event.repository) && job.is_served_by(&spec.labels)
}

#[cfg(test)]
mod tests;
