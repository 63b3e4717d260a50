//! The REST API: one handler for each operation, under one lock.

pub mod apps;
pub mod checks;
pub mod contents;
pub mod hooks;
pub mod notes;
pub mod protection;
pub mod rate_limit;
pub mod render;
pub mod repos;
pub mod rules;
pub mod rulesets;
pub mod runners;
pub mod runs;
pub mod workflows;
