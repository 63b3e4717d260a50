//! The operator, as a library: the binary only parses its flags and starts it.
//!
//! Data flows one way through a visit: [`watch`] → [`observe`] → [`cuda_runner_plan`] (pure, a crate of its own) → [`act`] → [`status`], called by
//! [`reconcile`]. The [`registrar`] answers the gates; its [`desk`] is the only other caller of GitHub's write side.
//!
//! Where what others say becomes decisions, no arithmetic may fail: the lint `arithmetic_side_effects` looks after it.

pub mod act;
pub mod config;
pub mod context;
pub mod desk;
pub mod error;
pub mod github;
pub mod guard;
pub mod insist;
pub mod lease;
#[cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
pub mod memory;
pub mod metrics;
pub mod node_marks;
#[cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
pub mod observe;
pub mod reconcile;
pub mod registrar;
pub mod run;
pub mod server;
pub mod specs;
#[cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
pub mod status;
pub mod telemetry;
pub mod watch;
