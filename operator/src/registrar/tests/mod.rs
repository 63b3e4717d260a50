//! The registrar over real TLS, with an API server and a desk that answer as they are told.

mod admit;
mod endpoint;
pub(in crate::registrar) mod kubernetes;
