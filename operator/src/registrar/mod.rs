//! The operator's HTTPS endpoint: report in, registration out.
//!
//! - [`ca`]: our own certificate authority, and its rotation, as values; [`store`] keeps it in a Secret.
//! - [`tls`]: the server's certificate, renewed while it runs.
//! - [`identity`]: which pod is asking.
//! - [`ledger`]: one registration for each pod, and so many requests for each pool.
//! - [`admit`](mod@admit): whether its report is good enough.
//! - [`desk`]: the seam to the rest of the operator.
//! - [`server`]: the endpoint itself.

pub mod admit;
pub mod ca;
pub mod desk;
pub mod identity;
pub mod ledger;
pub mod server;
pub mod store;
#[cfg(test)]
mod tests;
pub mod tls;

pub use admit::{Decision, Policy, Version, admit};
pub use ca::ServerNames;
pub use desk::{Desk, KnownRunner, PoolKey, RegisterError, Registration, RunnerLookup};
pub use identity::{IdentityError, PodIdentity, Reviewer};
pub use ledger::Ledger;
pub use server::{Limits, Parts, serve};
pub use store::CaStore;
