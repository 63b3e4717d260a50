//! A replica that stands by hears of jobs, and lets the one that leads know.

use std::time::Duration;

use cudarunner_crds::{CudaRunner, LOOK_AGAIN};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::webhook::Heard;

/// For an answer of the API server: what is told later than that, the one that leads has read by itself.
const LONGEST: Duration = Duration::from_secs(10);

/// Asks for another look at GitHub, as a person would, by the pool's annotation, with what was heard. Where that fails the
/// queue is read a little later.
pub async fn ask(client: &Client, pool: &PoolKey, heard: &Heard) {
    let api = Api::<CudaRunner>::namespaced(client.clone(), &pool.namespace);
    let patch = json!({"metadata": {"annotations": {LOOK_AGAIN: heard.note()}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    let patched = api.patch_metadata(&pool.name, &params, &patch);
    let error = match tokio::time::timeout(LONGEST, patched).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(elapsed) => elapsed.to_string(),
    };
    tracing::warn!(%pool, error, "the replica that leads could not be notified of a webhook");
}
