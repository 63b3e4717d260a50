//! What the credentials may do.
use jiff::Timestamp;

use super::{Client, Error};

/// What the credentials turned out to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// When the token itself expires, where GitHub says so. An App's key does not expire.
    pub expires_at: Option<Timestamp>,
}

impl Client {
    /// Whether the credentials are accepted, reach the scope and may manage its runners.
    ///
    /// Costs what [`Client::list_runners`] costs, and a token for an App that has none yet.
    pub async fn check_access(&self) -> Result<Access, Error> {
        todo!()
    }
}
