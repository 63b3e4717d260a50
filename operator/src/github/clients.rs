//! One client for each address, credential and CA bundle.
use std::sync::Arc;
use super::{CaBundle, Client, Credentials, Error, GitHubUrl};

/// Gives clients, and keeps them. Two credential holders never share one.
#[derive(Default)]
pub struct Clients {}

impl Clients {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The client for this address as this credential. Call it within a tokio runtime.
    pub fn client(&self, url: &GitHubUrl, credentials: &Credentials, ca: Option<&CaBundle>) -> Result<Arc<Client>, Error> {
        todo!("{url} {credentials:?} {ca:?}")
    }
}
