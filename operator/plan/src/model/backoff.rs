//! Pauses that grow.

use jiff::SignedDuration;

use crate::model::pool::fingerprint;

/// The pause after `failures` in a row: doubled each time up to `longest`, spread by up to a fifth either way so that
/// many pools do not come back at once. The spread depends on `key` alone, so that the answer never changes.
#[must_use]
pub fn exponential(
    first: SignedDuration,
    longest: SignedDuration,
    failures: i32,
    key: &str,
) -> SignedDuration {
    if failures <= 0 {
        return SignedDuration::ZERO;
    }
    let doublings = u32::try_from(failures.saturating_sub(1))
        .unwrap_or_default()
        .min(20);
    let pause = first.saturating_mul(1 << doublings).min(longest);
    let spread = i64::from_str_radix(&fingerprint(&format!("{key}/{failures}"))[..4], 16);
    // 0..=65535 becomes 80..=120 percent.
    let percent = spread.unwrap_or_default().saturating_mul(41) / 65_536;
    let hundredth = i64::try_from(pause.as_millis()).unwrap_or(i64::MAX) / 100;
    SignedDuration::from_millis(hundredth.saturating_mul(percent.saturating_add(80)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_up_to_its_limit_and_stays_near_the_nominal_pause() {
        let first = SignedDuration::from_secs(10);
        let longest = SignedDuration::from_mins(10);
        let mut nominal = first;
        for failures in 1..40 {
            let pause = exponential(first, longest, failures, "pool");
            assert!(
                pause >= nominal * 4 / 5 && pause <= nominal * 6 / 5,
                "{failures}: {pause:?}"
            );
            nominal = (nominal * 2).min(longest);
        }
        assert_eq!(exponential(first, longest, 0, "pool"), SignedDuration::ZERO);
    }

    #[test]
    fn two_pools_do_not_come_back_together() {
        let pause = |key| {
            exponential(
                SignedDuration::from_secs(60),
                SignedDuration::from_mins(10),
                3,
                key,
            )
        };
        assert_ne!(pause("a"), pause("b"));
        assert_eq!(pause("a"), pause("a"));
    }
}
