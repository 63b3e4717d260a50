//! Times, as the report has them.

use std::time::Duration;

/// A duration in milliseconds, to the microsecond.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64() * 1e3)
}

/// Milliseconds to the microsecond.
pub(crate) fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
