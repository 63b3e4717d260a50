//! The registrar over real TLS, with an API server and a backend that answer as they are told.

mod admit;
mod endpoint;
mod hostile;
mod keys;
pub(in crate::registrar) mod kubernetes;
mod stub;
