//! The CA's Secret.
use std::sync::Arc;
use tokio::sync::watch;
use super::ServerNames;

/// Keeps the CA in a Secret, so that all replicas of the operator have the same one.
pub struct CaStore {}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {}

impl CaStore {
    /// Reads the CA, or makes it, and issues the server's certificate.
    pub async fn open(client: kube::Client, namespace: &str, names: ServerNames) -> Result<Arc<Self>, StoreError> {
        todo!()
    }
    /// The certificates that pods have to trust, PEM.
    #[must_use]
    pub fn bundle(&self) -> Arc<str> {
        todo!()
    }
    /// Tells of every new bundle.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<str>> {
        todo!()
    }
    /// For the server: its certificate follows every rotation and renewal.
    #[must_use]
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        todo!()
    }
    /// Makes the certificate out to other names from now on.
    pub fn rename(&self, names: ServerNames) -> Result<(), StoreError> {
        todo!()
    }
    /// Rotates and renews, for good. Drop it to stop.
    pub async fn maintain(self: Arc<Self>) {
        todo!()
    }
}
