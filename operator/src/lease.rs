//! Which of several replicas acts.

use kube::Client;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;

/// Name of the Lease, in the operator's namespace.
const LEASE: &str = "cuda-runner-operator";

/// Waits until this replica leads. The channel turns false when it does not any more: whoever acts must stop at once.
pub async fn lead(
    client: Client,
    namespace: &str,
    identity: &str,
) -> Result<watch::Receiver<bool>, LeaseManagerError> {
    let manager = LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(namespace)
        .with_identity(identity)
        .build()
        .await?;
    // The manager ends when all receivers are gone, that is with the process.
    let (mut leading, _task) = manager.watch().await;
    while !*leading.borrow_and_update() {
        if leading.changed().await.is_err() {
            break;
        }
    }
    Ok(leading)
}
