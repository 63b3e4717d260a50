//! `cargo e2e`: a local cluster with simulated GPUs and a simulated GitHub, the demo, the suites and the benchmarks.
#![expect(
    clippy::must_use_candidate,
    reason = "a harness: a forgotten result shows at once"
)]

pub mod audit;
pub mod bench;
pub mod book;
pub mod browser;
pub mod certs;
pub mod check;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod deploy;
pub mod device_plugin;
pub mod dra_plugin;
pub mod example;
pub mod faults;
pub mod gpu;
pub mod helm;
mod ill_server;
pub mod images;
pub mod interrupt;
mod kubelet_service;
pub mod kwok;
pub mod network;
pub mod node;
pub mod on_path;
pub mod paths;
pub mod process;
pub mod proxy;
mod random;
pub mod registry;
pub mod removal;
pub mod report;
pub mod simulator;
pub mod suites;
pub mod supervisor;
mod tls;
pub mod tools;
pub mod wait;
mod words;
