//! One scope on one server, seen with one credential.

/// Asks GitHub. Made by [`Clients`](super::Clients); cheap to share.
pub struct Client {}
