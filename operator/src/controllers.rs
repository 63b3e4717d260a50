//! The controllers: they start when this replica leads and has seen the cluster, and end when it does not lead any more.

use std::collections::HashMap;
use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::runtime::Controller;
use kube::runtime::controller::{Config as ControllerConfig, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store};

use crate::context::Context;
use crate::device_taints;
use crate::error::RunError;
use crate::lease::Election;
use crate::node_marks;
use crate::owner;
use crate::reconcile::{on_error, reconcile};
use crate::shares;
use crate::watch::stores::Filled;
use cuda_runner_plan::model::pool::PoolKey;

/// What the controller takes for no bound.
const UNBOUNDED: u16 = 0;

/// Acts, for as long as this replica leads.
pub async fn control(
    election: &mut Election,
    ctx: Arc<Context>,
    mut woken: UnboundedReceiver<ObjectRef<CudaRunner>>,
    ready: Vec<Filled>,
) -> Result<(), RunError> {
    if election.is_alone() {
        return tokio::select! {
            ended = act(ctx, woken, ready) => ended,
            never = election.hold() => match never {},
        };
    }
    tracing::info!("standing by for the lease");
    ctx.waker.listen();
    tokio::select! {
        () = election.win() => {}
        () = forget_gone(&ctx, &mut woken) => return Err(RunError::Ended("the waker")),
    }
    tokio::select! {
        ended = act(ctx, woken, ready) => ended,
        () = election.keep() => Err(RunError::LeaseLost),
    }
}

/// Acts, as soon as the cluster has been seen.
async fn act(
    ctx: Arc<Context>,
    woken: UnboundedReceiver<ObjectRef<CudaRunner>>,
    ready: Vec<Filled>,
) -> Result<(), RunError> {
    for (name, mut filled) in ready {
        if filled.wait_for(|done| *done).await.is_err() {
            return Err(RunError::Ended(name));
        }
    }
    tracing::info!("acting");
    let waker = Arc::clone(&ctx.waker);
    shares::begin(&ctx);
    ctx.pods.begin(Timestamp::now());
    waker.lead();
    waker.listen();
    waker.wake_all(&ctx.pools);
    // Marking nodes and tainting devices never end, and neither does sharing nodes.
    tokio::select! {
        () = controllers(Arc::clone(&ctx), woken) => {}
        () = node_marks::follow(&ctx, &waker) => {}
        () = device_taints::follow(&ctx, &waker) => {}
        () = shares::follow(&ctx, &waker) => {}
    }
    Err(RunError::Ended("the controller"))
}

/// What is known of a pool goes with it, also while another replica leads: gates bring their reports to this one, too.
async fn forget_gone(ctx: &Context, woken: &mut UnboundedReceiver<ObjectRef<CudaRunner>>) {
    while let Some(pool) = woken.next().await {
        if ctx.pools.iter().all(|store| store.get(&pool).is_none()) {
            ctx.forget(&key(pool.namespace, pool.name));
        }
    }
}

fn key(namespace: Option<String>, name: String) -> PoolKey {
    PoolKey {
        namespace: namespace.unwrap_or_default(),
        name,
    }
}

/// One controller for each scope, fed by the wakes of its own resources.
async fn controllers(ctx: Arc<Context>, woken: UnboundedReceiver<ObjectRef<CudaRunner>>) {
    let mut inputs = vec![];
    let mut all = vec![];
    for store in &ctx.pools {
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        inputs.push(sender);
        all.push(controller(store.clone(), receiver, Arc::clone(&ctx)));
    }
    let mut routes = Routes::default();
    let route = woken.for_each(|pool| {
        if let Some(sender) = inputs.get(routes.of(&ctx.pools, &pool)) {
            // The controller ends only with the process.
            let _ = sender.unbounded_send(pool);
        }
        std::future::ready(())
    });
    tokio::join!(route, futures::future::join_all(all));
}

/// Which controller has the pools of a namespace: the number of the store that showed one.
#[derive(Default)]
struct Routes(HashMap<Option<String>, usize>);

impl Routes {
    /// The controller of a pool. One that is gone is in no store, and its own controller alone knows whether a reconcile of it
    /// is under way; where none has had a pool of its namespace, none is, and any finds out that it is gone.
    fn of(&mut self, stores: &[Store<CudaRunner>], pool: &ObjectRef<CudaRunner>) -> usize {
        let found = stores.iter().position(|store| store.get(pool).is_some());
        if let Some(found) = found {
            self.0.insert(pool.namespace.clone(), found);
        }
        let home = self.0.get(&pool.namespace).copied();
        home.unwrap_or_default()
    }
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
                Err(ControllerError::ObjectNotFound(gone)) => {
                    owner::gone(&ctx, key(gone.namespace, gone.name));
                }
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

    use cuda_runner_plan::fixture;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;

    use super::*;
    use crate::reconcile::tests::{Cluster, context};
    use crate::watch::reference;

    #[test]
    fn a_pool_that_is_gone_is_its_own_controllers_who_may_be_at_work_on_it() {
        // Given two scopes, and a pool in the second
        let scope = |pools: &[CudaRunner]| {
            let (store, mut writer) = reflector::store();
            for pool in pools {
                writer.apply_watcher_event(&Event::Apply(pool.clone()));
            }
            (store, writer)
        };
        let resource = fixture::resource();
        let (first, _first) = scope(&[]);
        let (second, mut writer) = scope(std::slice::from_ref(&resource));
        let stores = [first, second];
        let pool = ObjectRef::from_obj(&resource);
        let mut routes = Routes::default();
        assert_eq!(routes.of(&stores, &pool), 1);

        // When it is gone, or selected no more, then its wakes go where its reconciles run, however many come
        writer.apply_watcher_event(&Event::Delete(resource));
        for _ in 0..2 {
            assert_eq!(routes.of(&stores, &pool), 1);
        }
        // And one of a namespace without pools goes to any
        let other = ObjectRef::new("pool").within("ml");
        assert_eq!(routes.of(&stores, &other), 0);
    }

    #[tokio::test]
    async fn what_is_known_of_a_pool_goes_with_it() {
        for leads in [true, false] {
            // Given a pool that the operator has counted something of, and that is in no store
            let ctx = context(&Cluster::default()).await;
            let gone = PoolKey {
                namespace: "ci".to_owned(),
                name: "gone".to_owned(),
            };
            ctx.metrics.registered(&gone, "ok");
            let is_known = || ctx.metrics.page(|_| true, vec![]).contains("gone");
            assert!(is_known());

            // When it is woken, on the replica that leads or on another
            let (sender, mut woken) = futures::channel::mpsc::unbounded();
            sender.unbounded_send(reference(&gone)).unwrap();
            let ctx = &ctx;
            let woken = async {
                if leads {
                    controller(ctx.pools[0].clone(), woken, Arc::clone(ctx)).await;
                } else {
                    forget_gone(ctx, &mut woken).await;
                }
            };

            // Then nothing is left of it
            let forgotten = async {
                while is_known() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = woken => panic!("it ended"),
                done = tokio::time::timeout(Duration::from_secs(10), forgotten) => done.unwrap(),
            }
        }
    }
}
