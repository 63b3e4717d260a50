//! A replica that stands by hears of jobs, and lets the one that leads know.

use cudarunner_crds::{CudaRunner, LOOK_AGAIN};
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use cuda_runner_plan::model::pool::PoolKey;

/// Asks for another look at GitHub, as a person would, by the pool's annotation. Where that fails the queue is read a little
/// later.
pub async fn ask(client: &Client, pool: &PoolKey, now: Timestamp) {
    let api = Api::<CudaRunner>::namespaced(client.clone(), &pool.namespace);
    let patch = json!({"metadata": {"annotations": {LOOK_AGAIN: format!("webhook {now}")}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    let patched = api.patch_metadata(&pool.name, &params, &patch);
    if let Err(error) = patched.await {
        tracing::warn!(%pool, %error, "the replica that leads could not be told of a webhook");
    }
}
