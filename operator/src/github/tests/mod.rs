//! The client against a server that answers as each test says, over real TLS.

mod auth;
mod checks;
mod hooks;
mod proxy;
mod refusals;
mod registering;
mod reruns;
mod room;
mod runners;
mod runs;
pub(crate) mod scale_sets;
pub(crate) mod stub;
