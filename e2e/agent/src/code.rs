//! Exit codes of the real agent's listener.

/// All well.
pub(crate) const SUCCESS: u8 = 0;
/// Not worth another try.
pub(crate) const TERMINATED: u8 = 1;
/// Another agent uses the registration.
pub(crate) const SESSION_CONFLICT: u8 = 5;
/// The server takes no agent of this version any more.
pub(crate) const VERSION_DEPRECATED: u8 = 7;
