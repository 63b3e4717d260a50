//! What the GPU gate found and what it means.
//!
//! - [`Report`]: the verdict that the gate writes, its [`summary`](Report::summary) of at most 4 KiB, and its
//!   [`text`](Report::text) for people.
//! - [`Class`]: what kind of failure it was, with stable exit codes.
//! - [`fault()`] and [`finding()`]: the one table that turns a driver's code, or something that the gate saw itself,
//!   into a class, a meaning and advice.
//! - [`Tries`]: which failed try is followed by another, and which failure stands in the end.
//! - [`time`]: how long the gate may take.
//! - [`preflight`]: what the runner's image and network must offer, and what was found.
//! - `schema`, with the feature of that name: the report's JSON schema.
//! - [`allow`]: which jobs a pool takes.
//! - [`contract`]: names of containers, files and variables that all parts of a runner's pod share.
//! - [`clean`]: text from outside, made harmless for whoever reads it.
//! - [`usage`]: what a GPU did during a job.
//! - [`wire`]: what the gate and the registrar say to each other.
//!
//! Pure values: no I/O, no clock.

pub mod allow;
mod class;
mod clean;
mod codes;
pub mod contract;
mod failure;
mod fault;
mod findings;
mod health;
pub mod preflight;
mod report;
#[cfg(feature = "schema")]
pub mod schema;
mod step;
mod summary;
mod text;
pub mod time;
mod tries;
pub mod usage;
mod version;
pub mod wire;

pub use class::{Class, Confidence, exit};
pub use clean::{clean, clean_all, is_hidden};
pub use codes::listed;
pub use failure::Failure;
pub use fault::{Again, Context, Fault, fault};
pub use findings::{Finding, finding};
pub use health::{DeviceHealth, Fabric, Health, SYMPTOMS, Symptom, Verdict, XIDS};
pub use report::{
    Device, DeviceStep, Driver, DriverModel, Host, Outcome, Peers, Report, SCHEMA, SUMMARY_LIMIT,
    Timings, Warning,
};
pub use step::Step;
pub use tries::{Cause, Next, Tries, Which};
pub use version::{Version, VersionError};
