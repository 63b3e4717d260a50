//! What was seen at addresses that a pool has left.

use jiff::Timestamp;

use super::github::Listing;

/// What was seen at an address that the pool has left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Left {
    /// The pool's entries there, as last read.
    pub listing: Option<Listing>,
    /// The pool's scale set there, as last read with them.
    pub set: Option<u64>,
    /// Why it could not be asked.
    pub trouble: Option<String>,
    /// When it may be asked again.
    pub ask_again: Option<Timestamp>,
}
