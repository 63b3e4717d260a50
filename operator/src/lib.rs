//! The operator, as a library: the binary only parses its flags and starts it.
//!
//! Data flows one way through a visit: [`watch`] → [`observe`] → [`plan`] (pure) → [`act`] → [`status`], called by
//! [`reconcile`]. The [`registrar`] answers the gates; its [`desk`] is the only other caller of GitHub's write side.

pub mod act;
pub mod backoff;
pub mod config;
pub mod context;
pub mod desk;
pub mod error;
pub mod github;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod node_marks;
pub mod observe;
pub mod plan;
pub mod pool;
pub mod reconcile;
pub mod registrar;
pub mod run;
pub mod server;
pub mod status;
pub mod telemetry;
pub mod watch;
