//! What is seen and what may be done, as plain values: no client, no clock, no wire form.

pub mod action;
pub mod backoff;
pub mod checks;
pub mod claim;
pub mod github;
pub mod hardware;
pub mod hung;
pub mod jobs;
pub mod key;
pub mod left;
pub mod life;
pub mod node_marks;
pub mod observed;
pub mod pool;
pub mod proxy;
pub mod published;
pub mod quantity;
pub mod rerun;
pub mod runner;
pub mod scale_set;
pub mod time;
pub mod url;
pub mod verification;
pub mod webhook;
