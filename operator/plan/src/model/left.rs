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
    /// Answers in a row that it does not exist, while GitHub let the pool in at its own address.
    pub missing: Option<Missing>,
}

/// An address that GitHub does not show: it is gone, or the credentials do not reach it. GitHub does not say which.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Missing {
    /// When GitHub first said so.
    pub since: Timestamp,
    /// How often in a row.
    pub times: u32,
}

impl Missing {
    /// One more such answer, after those `before`.
    #[must_use]
    pub fn once_more(before: Option<Self>, now: Timestamp) -> Self {
        Self {
            since: before.map_or(now, |before| before.since),
            times: before.map_or(1, |before| before.times.saturating_add(1)),
        }
    }
}
