//! The controllers: they start when this replica leads and has seen the cluster, and end when it does not lead any more.

use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt as _};
use kube::runtime::Controller;
use kube::runtime::controller::{Config as ControllerConfig, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store};

use crate::config::Config;
use crate::context::Context;
use crate::error::RunError;
use crate::kubernetes::renewing;
use crate::reconcile::{on_error, reconcile};
use crate::watch::pools;
use crate::watch::stores::Filled;
use crate::{lease, node_marks};
use cuda_runner_plan::model::pool::PoolKey;

/// What the controller takes for no bound.
const UNBOUNDED: u16 = 0;

/// Acts, as soon as this replica leads and has seen the cluster.
pub async fn control(
    config: &Config,
    ctx: Arc<Context>,
    woken: UnboundedReceiver<ObjectRef<CudaRunner>>,
    ready: Vec<Filled>,
) -> Result<(), RunError> {
    let mut leading = None;
    if config.leader_elect {
        tracing::info!("standing by for the lease");
        let client = renewing(&ctx.fence).await?;
        let lead = lease::lead(client, &config.operator_namespace, &config.identity);
        leading = Some(lead.await?);
    }
    for (name, mut filled) in ready {
        if filled.wait_for(|done| *done).await.is_err() {
            return Err(RunError::Ended(name));
        }
    }
    tracing::info!("acting");
    let fence = ctx.fence.clone();
    let waker = Arc::clone(&ctx.waker);
    waker.listen();
    for resource in ctx.pools.iter().flat_map(Store::state) {
        waker.wake(&pools::key_of(&resource));
    }
    let acting = async {
        // Marking nodes never ends.
        tokio::select! {
            () = controllers(Arc::clone(&ctx), woken) => {}
            () = node_marks::follow(&ctx, &waker) => {}
        }
    };
    let Some(mut leading) = leading else {
        acting.await;
        return Err(RunError::Ended("the controller"));
    };
    // A lease that was ours before this start is ours at once: nothing may be written until it is renewed.
    tokio::select! {
        () = fence.opens() => {}
        _ = leading.wait_for(|leads| !leads) => return Err(RunError::LeaseLost),
    }
    tokio::select! {
        () = acting => Err(RunError::Ended("the controller")),
        _ = leading.wait_for(|leads| !leads) => Err(RunError::LeaseLost),
        () = fence.closes() => Err(RunError::LeaseLost),
    }
}

/// One controller for each scope, fed by the wakes of its own resources.
async fn controllers(ctx: Arc<Context>, woken: UnboundedReceiver<ObjectRef<CudaRunner>>) {
    let mut inputs = vec![];
    let mut all = vec![];
    for store in &ctx.pools {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        inputs.push((store.clone(), sender));
        all.push(controller(store.clone(), receiver, Arc::clone(&ctx)));
    }
    let route = woken.for_each(|pool| {
        // A pool that is gone is in none of them, and any finds that out.
        let input = inputs
            .iter()
            .find(|(store, _)| store.get(&pool).is_some())
            .or(inputs.first());
        if let Some((_, sender)) = input {
            // The controller ends only with the process.
            let _ = sender.unbounded_send(pool);
        }
        std::future::ready(())
    });
    tokio::join!(route, futures::future::join_all(all));
}

/// The watch of the resources is ours; the controller gets the wakes alone.
async fn controller(
    store: Store<CudaRunner>,
    woken: impl Stream<Item = ObjectRef<CudaRunner>> + Send + 'static,
    ctx: Arc<Context>,
) {
    Controller::for_stream(futures::stream::pending(), store)
        .with_config(ControllerConfig::default().concurrency(UNBOUNDED))
        .reconcile_on(woken)
        .run(reconcile, on_error, Arc::clone(&ctx))
        .for_each(|result| {
            match result {
                Err(ControllerError::ObjectNotFound(gone)) => ctx.forget(&PoolKey {
                    namespace: gone.namespace.unwrap_or_default(),
                    name: gone.name,
                }),
                Err(ControllerError::QueueError(error)) => {
                    tracing::warn!(%error, "the controller's queue");
                }
                _ => {}
            }
            std::future::ready(())
        })
        .await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::reconcile::tests::{Cluster, context};
    use crate::watch::reference;

    #[tokio::test]
    async fn what_is_known_of_a_pool_goes_with_it() {
        // Given a pool that the operator has counted something of, and that is in no store
        let ctx = context(&Cluster::default()).await;
        let gone = PoolKey {
            namespace: "ci".to_owned(),
            name: "gone".to_owned(),
        };
        ctx.metrics.registered(&gone, "ok");
        let is_known = || ctx.metrics.page(|_| true, vec![]).contains("gone");
        assert!(is_known());

        // When it is woken
        let (sender, woken) = futures::channel::mpsc::unbounded();
        sender.unbounded_send(reference(&gone)).unwrap();

        // Then nothing is left of it
        let forgotten = async {
            while is_known() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = controller(ctx.pools[0].clone(), woken, Arc::clone(&ctx)) => panic!("it ended"),
            done = tokio::time::timeout(Duration::from_secs(10), forgotten) => done.unwrap(),
        }
    }
}
