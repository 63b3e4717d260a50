//! The operator, as a library: the binary only parses its flags and starts it.

pub mod github;
pub mod registrar;
