//! Times, as the report has them.

use std::time::Instant;

/// Milliseconds since `start`, to the microsecond.
pub(crate) fn milliseconds(start: Instant) -> f64 {
    rounded(start.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds to the microsecond.
pub(crate) fn rounded(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}
