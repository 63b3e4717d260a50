//! The registrar over real TLS, with an API server and a backend that answer as they are told.

mod admit;
mod endpoint;
mod hostile;
mod job;
mod keys;
pub(crate) mod kubernetes;
mod stub;
