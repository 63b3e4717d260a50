//! Our own certificate authority, as values.
use std::net::IpAddr;

/// What the server is called: what its certificate is made out to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}
