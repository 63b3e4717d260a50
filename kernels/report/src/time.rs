//! How long the gate may take: one figure, for one device, from which all others follow.
//!
//! A driver without persistence brings its devices up one after the other, and they are tested one after the other.

/// Seconds for one device, where nothing else was said.
pub const DEFAULT_SECONDS: u64 = 30;

/// A device that is up is tested in less than this, whatever else there is little time for.
const LEAST_TEST: u64 = 10;

/// Seconds for the test of one device that is up, out of the seconds for everything on one device: a third, and not less
/// than ten where there are so many.
#[must_use]
pub const fn of_a_test(seconds: u64) -> u64 {
    let third = seconds.div_ceil(3);
    if third >= LEAST_TEST {
        third
    } else if seconds < LEAST_TEST {
        seconds
    } else {
        LEAST_TEST
    }
}

/// Seconds for one try at everything on so many devices. Whatever is tried again may take as much again.
#[must_use]
pub const fn of_a_try(seconds: u64, devices: u32) -> u64 {
    let further = devices.saturating_sub(1) as u64;
    seconds.saturating_add(of_a_test(seconds).saturating_mul(further))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_further_device_has_its_time() {
        for (seconds, devices, test, all) in [
            (30, 0, 10, 30),
            (30, 1, 10, 30),
            (30, 8, 10, 100),
            (1, 2, 1, 2),
            (20, 2, 10, 30),
            (120, 2, 40, 160),
            (600, 16, 200, 3600),
        ] {
            assert_eq!(
                (of_a_test(seconds), of_a_try(seconds, devices)),
                (test, all),
                "{seconds} s, {devices} devices"
            );
        }
        assert_eq!(of_a_try(u64::MAX, u32::MAX), u64::MAX);
    }
}
