//! The operator's HTTPS endpoint: a pod's token in, a ticket out; its report in, the agent's image on; its ticket in, the
//! registration out. And where jobs bring their containers: a job's image in, and how far that is out.
//!
//! - [`ca`]: our own certificate authority, and its rotation, as values; [`store`] keeps it in a Secret.
//! - [`address`]: where pods reach it.
//! - [`tls`]: the server's certificate, renewed while it runs.
//! - [`door`]: how many connections there may be, and how many from one address.
//! - [`identity`]: which pod is asking; `claims`: whether it is worth a question; `keys`: whether the cluster signed it.
//! - [`ticket`]: what a pod shows after that.
//! - [`ledger`]: one registration for each pod, and so many requests for each pool.
//! - [`admit`](mod@admit): whether its report is good enough.
//! - [`backend`]: the seam to the rest of the operator.
//! - [`server`]: the endpoint itself; `desk`: what is done on each request of a runner's, `job`: on those of its job.

pub mod address;
pub mod admit;
pub mod backend;
mod bucket;
pub mod ca;
mod claims;
mod desk;
pub mod door;
pub mod identity;
mod job;
mod keys;
pub mod ledger;
pub mod server;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;
pub mod ticket;
pub mod tls;

pub use admit::{Decision, Policy, admit};
pub use backend::{Backend, JobRunner, KnownRunner, RegisterError, Registration, RunnerLookup};
pub use bucket::Rate;
pub use ca::ServerNames;
pub use cuda_runner_plan::model::key::PoolKey;
pub use door::Bounds;
pub use identity::{IdentityError, PodIdentity, Reviewer};
pub use ledger::Ledger;
pub use server::{Limits, Parts, serve};
pub use store::CaStore;
pub use ticket::{Purpose, TicketKey};
