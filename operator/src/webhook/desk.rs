//! Who takes deliveries: their secrets, and the pools that they wake.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use cudarunner_crds::{CudaRunner, ScalingSource};
use jiff::Timestamp;
use kube::Client;
use kube::runtime::reflector::Store;
use secrecy::SecretString;

use super::server::Outcome;
use super::{HookName, Webhooks};
use crate::act::wake;
use crate::context::Context;
use crate::github::JobEvent;
use crate::observe::webhook::secrets_of;
use cuda_runner_plan::model::github::QueuedJob;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::webhook::Heard;

/// Whom the endpoint asks.
pub trait Desk: Send + Sync + 'static {
    /// The secrets by which deliveries of this webhook are signed; none where it is no webhook of ours.
    fn secrets(&self, id: &str) -> impl Future<Output = Option<Vec<SecretString>>> + Send;
    /// Takes in what this webhook delivered: an event, or that it delivers at all. Says whether a pool is woken.
    fn arrived(&self, id: &str, event: Option<JobEvent>) -> impl Future<Output = bool> + Send;
    /// Counts a delivery.
    fn count(&self, outcome: Outcome);
}

/// The operator's own.
pub struct OperatorDesk {
    ctx: Arc<Context>,
    webhooks: Arc<Webhooks>,
    /// Writes on a replica that stands by, too.
    client: Client,
}

impl OperatorDesk {
    /// One for the pools of these caches.
    #[must_use]
    pub fn new(ctx: Arc<Context>, webhooks: Arc<Webhooks>, client: Client) -> Self {
        Self {
            ctx,
            webhooks,
            client,
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

    async fn arrived(&self, id: &str, event: Option<JobEvent>) -> bool {
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
        let now = Timestamp::now();
        let read_at = event.map(|_| self.webhooks.read_at(id, now));
        let leads = self.ctx.fence.check().is_ok();
        for pool in woken {
            let is_news = self.ctx.memory.with(&pool, |memory| {
                let before = memory.webhook;
                memory.webhook = Heard {
                    at: Some(read_at.unwrap_or(now)),
                    read_at: read_at.or(before.read_at),
                };
                memory.webhook != before
            });
            if is_news && leads {
                self.ctx.waker.wake(&pool.key);
            } else if is_news {
                wake::ask(&self.client, &pool.key, now).await;
            }
        }
        true
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
