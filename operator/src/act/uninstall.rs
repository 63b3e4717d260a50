//! Lets go of every pool when the operator is uninstalled: without it nobody would take the finalizer off.

use std::collections::HashSet;
use std::time::Duration;

use cudarunner_crds::CudaRunner;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use tokio::time::{Instant, sleep};

use super::{is_status, put_finalizers};
use crate::act::events::event_of;
use crate::config::Uninstall;
use crate::context::CONTROLLER;
use crate::watch::Scope;
use cuda_runner_plan::model::pool::{FINALIZER, Pool};
use cuda_runner_plan::teardown;

/// How long an operator may take to end, and how long the pools may change under our hands after that.
const LIMIT: Duration = Duration::from_secs(100);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Why not every pool was let go.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// Nothing can be listed.
    #[error("the {what} cannot be listed: {source}; run it again with the right to list them")]
    List {
        /// Pods or pools.
        what: &'static str,
        /// Why not.
        source: kube::Error,
    },
    /// An operator would put the finalizers back.
    #[error(
        "the operator's pod {0} has not ended, and would put the finalizers back: remove the operator first"
    )]
    Running(String),
    /// Somebody puts the finalizer back.
    #[error(
        "the finalizer {FINALIZER} came back on {0}: another operator serves it, so it is not touched from here on"
    )]
    ComesBack(String),
    /// A pool cannot be changed; others may have been let go.
    #[error(
        "the finalizer {FINALIZER} cannot be taken off {pool}: {source}; run it again when it can"
    )]
    Refused {
        /// Which.
        pool: String,
        /// Why not.
        source: kube::Error,
    },
    /// A pool changes all the time.
    #[error("{0} changes faster than its finalizer can be taken off; run it again")]
    Busy(String),
}

/// Waits until no operator runs, then takes its finalizer off every pool, and says on each what stays on GitHub.
pub async fn uninstall(client: &Client, args: &Uninstall) -> Result<(), UninstallError> {
    ended(client, args).await?;
    let recorder = Recorder::new(
        client.clone(),
        Reporter {
            controller: CONTROLLER.to_owned(),
            instance: None,
        },
    );
    let deadline = Instant::now() + LIMIT;
    let mut reported = HashSet::new();
    let mut let_go = HashSet::new();
    loop {
        let held = held(client, args).await?;
        let mut refused = None;
        for resource in &held {
            let pool = Pool::read(resource, true);
            if let_go.contains(&pool.uid) {
                return Err(UninstallError::ComesBack(pool.key.to_string()));
            }
            if reported.insert(pool.uid.clone()) {
                say(&recorder, resource, &pool).await;
            }
            match put_finalizers(client, &pool, false).await {
                Ok(()) => {
                    tracing::info!(pool = %pool.key, "let go");
                    let_go.insert(pool.uid);
                }
                // Changed meanwhile: the next look tells.
                Err(error) if is_status(&error, 409) => {
                    if Instant::now() >= deadline {
                        return Err(UninstallError::Busy(pool.key.to_string()));
                    }
                }
                Err(source) => {
                    refused.get_or_insert(UninstallError::Refused {
                        pool: pool.key.to_string(),
                        source,
                    });
                }
            }
        }
        if let Some(error) = refused {
            return Err(error);
        }
        if held.is_empty() {
            remove_lease(client, args).await;
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// Removes the operator's Lease, so that another operator can take its pools over: it may have lost its rights before it could
/// give it back. What fails here keeps no pool.
async fn remove_lease(client: &Client, args: &Uninstall) {
    let own = args.operator();
    let leases = Api::<Lease>::namespaced(client.clone(), &own.namespace);
    match leases.delete(&own.name, &DeleteParams::default()).await {
        Ok(_) => tracing::info!(lease = %own, "removed the Lease"),
        Err(error) if is_status(&error, 404) => {}
        Err(error) => {
            tracing::warn!(lease = %own, %error, "the Lease was not removed: delete it before another operator is to take the pools over");
        }
    }
}

/// Waits until no operator's pod is left.
async fn ended(client: &Client, args: &Uninstall) -> Result<(), UninstallError> {
    let pods = Api::<Pod>::namespaced(client.clone(), &args.operator_namespace);
    let params = ListParams::default().labels(&args.operator_selector);
    let deadline = Instant::now() + LIMIT;
    loop {
        let listed = pods.list_metadata(&params).await;
        let left = listed.map_err(|source| UninstallError::List {
            what: "operator's pods",
            source,
        })?;
        match left.items.first() {
            None => return Ok(()),
            Some(pod) if Instant::now() >= deadline => {
                return Err(UninstallError::Running(pod.name_any()));
            }
            Some(_) => sleep(PAUSE).await,
        }
    }
}

/// The operator's pools with our finalizer.
async fn held(client: &Client, args: &Uninstall) -> Result<Vec<CudaRunner>, UninstallError> {
    let mut held = vec![];
    for scope in Scope::of(&args.watch_namespace) {
        let pools: Api<CudaRunner> = scope.api(client);
        let selected = ListParams {
            label_selector: args.pool_selector.as_ref().map(ToString::to_string),
            ..ListParams::default()
        };
        match pools.list(&selected).await {
            Ok(list) => held.extend(list.items),
            // The CRD is gone already, and every pool with it.
            Err(error) if is_status(&error, 404) => {}
            Err(source) => {
                return Err(UninstallError::List {
                    what: "pools",
                    source,
                });
            }
        }
    }
    let own = args.operator();
    // What another operator serves is not let go.
    held.retain(|pool| pool.may_be_of(&own) && pool.finalizers().iter().any(|f| f == FINALIZER));
    Ok(held)
}

/// An Event that is lost is not worth a pool that nobody can delete.
async fn say(recorder: &Recorder, resource: &CudaRunner, pool: &Pool) {
    let notice = teardown::without_operator(pool);
    let event = event_of(&notice, "Uninstall", None);
    if let Err(error) = recorder.publish(&event, &resource.object_ref(&())).await {
        tracing::warn!(pool = %pool.key, %error, "an Event was not published");
    }
}

#[cfg(test)]
mod tests;
