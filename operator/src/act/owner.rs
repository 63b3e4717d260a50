//! Writes who serves a pool: one field of its status, apart from the rest of it, and only as it was read. Of two operators
//! that take a pool at once, the slower is refused.

use std::time::Duration;

use cudarunner_crds::{CudaRunner, OperatorStatus};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use super::is_status;
use crate::context::{CONTROLLER, Context};
use cuda_runner_plan::model::pool::{Pool, PoolKey};

/// How often a pool is given back that changes meanwhile, or cannot be read. After that the next operator does not wait for
/// it for long.
const ATTEMPTS: u32 = 5;
/// Between two of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Names this operator in the pool.
pub async fn take(ctx: &Context, pool: &Pool) -> Result<(), kube::Error> {
    let version = pool.resource_version.as_deref();
    write(ctx, &pool.key, version, Some(ctx.ownership.own())).await?;
    tracing::info!(pool = %pool.key, before = ?pool.status.operator, "this operator serves the pool");
    Ok(())
}

/// Names nobody in a pool that this operator selects no more, so that the next one needs not wait.
pub async fn give_back(ctx: &Context, key: &PoolKey, uid: &str) {
    for _ in 0..ATTEMPTS {
        match try_to_give_back(ctx, key, uid).await {
            Ok(()) => return,
            Err(error) => {
                tracing::info!(pool = %key, %error, "a pool is not given back yet");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the resource is still there.
pub async fn is_there(ctx: &Context, key: &PoolKey, uid: &str) -> Result<bool, kube::Error> {
    let found = match find(ctx, key).await {
        // The CRD is gone, and every resource with it.
        Err(error) if is_status(&error, 404) => None,
        found => found?,
    };
    Ok(found.is_some_and(|pool| pool.metadata.uid.as_deref() == Some(uid)))
}

/// The resource of this name, as the API server has it.
async fn find(ctx: &Context, key: &PoolKey) -> Result<Option<CudaRunner>, kube::Error> {
    let api = Api::<CudaRunner>::namespaced(ctx.client.clone(), &key.namespace);
    // By its name: a right to get single ones is not needed.
    let only = ListParams::default().fields(&format!("metadata.name={}", key.name));
    Ok(api.list(&only).await?.items.into_iter().next())
}

async fn try_to_give_back(ctx: &Context, key: &PoolKey, uid: &str) -> Result<(), kube::Error> {
    let Some(pool) = find(ctx, key).await? else {
        return Ok(());
    };
    let is_left = pool.metadata.uid.as_deref() == Some(uid)
        && pool.operator() == Some(ctx.ownership.own())
        && !ctx.ownership.selects(pool.labels());
    if !is_left {
        return Ok(());
    }
    let version = pool.metadata.resource_version.as_deref();
    write(ctx, key, version, None).await?;
    tracing::info!(pool = %key, "the selector takes the pool in no more: it is given back");
    Ok(())
}

async fn write(
    ctx: &Context,
    key: &PoolKey,
    version: Option<&str>,
    operator: Option<&OperatorStatus>,
) -> Result<(), kube::Error> {
    let api = Api::<CudaRunner>::namespaced(ctx.client.clone(), &key.namespace);
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": version},
        "status": {"operator": operator},
    }));
    let params = PatchParams {
        field_manager: Some(CONTROLLER.to_owned()),
        ..PatchParams::default()
    };
    match api.patch_status(&key.name, &params, &patch).await {
        Err(error) if !is_status(&error, 404) => Err(error),
        _ => Ok(()),
    }
}
