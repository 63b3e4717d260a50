//! Workflow files: what the simulated GitHub reads and the simulated agent runs.
//!
//! Only the part of GitHub's syntax that jobs of this kind use. A key, a context or a function outside of it is an error
//! with its name, never ignored.

mod expression;
mod file;
mod job;
mod matrix;
mod parts;

pub use expression::{Error as ExpressionError, Scope, Status, condition, render, text};
pub use file::{Error, File};
pub use job::{Container, Credentials, Job, RunDefaults, Service, Step};
pub use parts::{Ordered, Text};
