//! A stateful GitHub for tests, held to GitHub's own description of its API.
//!
//! [`serve`] answers the REST API over TLS, at the root as github.com does and below `/api/v3` as
//! an Enterprise Server does. Every request and every answer is validated, see [`openapi`]. Tests
//! steer it through `/_sim/` with [`control::Client`]; simulated agents speak to `/_agent/`.

pub mod agent;
pub mod auth;
pub mod control;
pub mod dump;
pub mod engine;
pub mod etag;
pub mod faults;
pub mod fixtures;
pub mod limits;
pub mod openapi;
pub mod operations;
mod pipeline;
pub mod rest;
mod server;
pub mod state;
pub mod text;

pub use server::{Config, serve};
