//! Whether the clock was set back: what is to be done at a moment would wait until that comes again.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use cuda_runner_plan::model::time::Shift as _;

/// A clock that is set back by less holds nothing up for longer.
const STEP: SignedDuration = SignedDuration::from_secs(5);

/// The clock, looked at from time to time together with one that nobody sets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Option<(Timestamp, Instant)>,
}

impl Clock {
    /// Looks at the clock, at `tick` of the other one. Whether it was set back since the last look.
    pub fn is_set_back(&mut self, now: Timestamp, tick: Instant) -> bool {
        let last = self.last.replace((now, tick));
        last.is_some_and(|(at, then)| {
            let passed = SignedDuration::try_from(tick.saturating_duration_since(then));
            now.after(STEP) < at.after(passed.unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_is_known_by_one_that_nobody_sets() {
        let (now, tick) = (Timestamp::constant(1_000_000, 0), Instant::now());
        let seconds = |count: i64| SignedDuration::from_secs(count);
        // Given a minute between two looks
        for (shown, is_set_back) in [
            (60, false),
            // It goes a little slower or faster, or is set forward
            (58, false),
            (62, false),
            (90_000, false),
            // It is set back, by a minute or by a day
            (0, true),
            (-86_400, true),
        ] {
            let mut clock = Clock::default();
            assert!(!clock.is_set_back(now, tick), "nobody has looked before");
            let then = tick + std::time::Duration::from_mins(1);
            let shown = now.after(seconds(shown));
            assert_eq!(clock.is_set_back(shown, then), is_set_back, "{shown}");
            // And once only
            assert!(!clock.is_set_back(shown, then));
        }
    }
}
