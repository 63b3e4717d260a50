//! A stateful GitHub for tests, held to GitHub's own description of its API.
//!
//! [`serve`] answers the REST API over TLS, at the root as github.com does and below `/api/v3` as
//! an Enterprise Server does. Every request and every answer is validated, see [`openapi`]. Tests
//! steer it through `/_sim/` with [`control::Client`]; simulated agents speak to `/_agent/`. The
//! service of runner scale sets, which GitHub does not describe, is below `/tenant/1/`.

pub mod agent;
pub mod answer;
pub mod auth;
pub mod call;
pub mod control;
pub mod deliver;
pub mod dump;
pub mod engine;
pub mod etag;
pub mod events;
mod exchange;
pub mod faults;
pub mod fixtures;
pub mod limits;
pub mod openapi;
pub mod operations;
mod pipeline;
mod registration;
pub mod rest;
mod scale_sets;
mod server;
mod shared;
pub mod state;
pub mod testing;
pub mod text;

pub use server::{Config, serve};
