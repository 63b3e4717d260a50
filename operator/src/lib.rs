//! The operator, as a library: the binary only parses its flags and starts it.
//!
//! Data flows one way: [`watch`] → [`observe`] → [`cuda_runner_plan`] (pure, a crate of its own) → [`act`], the one
//! writer; [`reconcile`] calls them in this order, for the [`controllers`]. [`listen`] hears of a scale set's jobs. The [`registrar`] answers the
//! gates; [`registration`] is the only other caller of GitHub's write side. [`fleet`] only reads. [`webhook`] takes
//! GitHub's events, which only wake.
//!
//! Where what others say becomes decisions, no arithmetic may fail: the lint `arithmetic_side_effects` looks after it.

pub mod act;
pub mod clock;
pub mod config;
pub mod connection;
pub mod context;
pub mod controllers;
pub mod device_taints;
pub mod ended;
pub mod error;
pub mod fleet;
pub mod github;
pub mod guard;
pub mod insist;
pub mod kubernetes;
pub mod lease;
pub mod listen;
#[cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
pub mod memory;
pub mod metrics;
pub mod node_marks;
#[cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
pub mod observe;
pub mod owner;
pub mod per_pool;
pub mod reconcile;
pub mod registrar;
pub mod registration;
pub mod run;
pub mod selector;
pub mod server;
pub mod shares;
pub mod specs;
pub mod telemetry;
pub mod watch;
pub mod webhook;
