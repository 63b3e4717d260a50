//! Times, as the report has them.

use std::time::Instant;

/// Milliseconds since `start`, to the microsecond.
pub(crate) fn milliseconds(start: Instant) -> f64 {
    rounded(start.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds to the microsecond. What is no number, as a broken driver may give, is 0: JSON has none, and a device whose
/// line cannot be read would be missing in the report.
pub(crate) fn rounded(ms: f64) -> f64 {
    let rounded = (ms * 1e3).round() / 1e3;
    if rounded.is_finite() { rounded } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_always_a_number() {
        for (ms, expected) in [
            (1.234_567, 1.235),
            (f64::NAN, 0.0),
            (f64::INFINITY, 0.0),
            (f64::MAX, 0.0),
        ] {
            assert!((rounded(ms) - expected).abs() < f64::EPSILON, "{ms}");
        }
    }
}
