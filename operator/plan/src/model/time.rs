//! Moments and durations that others give: no arithmetic on them can fail, whatever they say.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer};

/// The first moment that is believed of anybody.
const EARLIEST: Timestamp = Timestamp::UNIX_EPOCH;
/// The last moment that is believed of anybody: the year 2200.
const LATEST: Timestamp = Timestamp::constant(7_258_118_400, 0);

/// Arithmetic that stays at the ends of the calendar instead of failing there.
pub trait Shift {
    /// So much later.
    #[must_use]
    fn after(self, wait: SignedDuration) -> Timestamp;

    /// So much earlier.
    #[must_use]
    fn before(self, wait: SignedDuration) -> Timestamp;
}

impl Shift for Timestamp {
    fn after(self, wait: SignedDuration) -> Timestamp {
        let end = if wait.is_negative() {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        };
        self.checked_add(wait).unwrap_or(end)
    }

    fn before(self, wait: SignedDuration) -> Timestamp {
        let end = if wait.is_negative() {
            Timestamp::MAX
        } else {
            Timestamp::MIN
        };
        self.checked_sub(wait).unwrap_or(end)
    }
}

/// A moment that a server tells: one before 1970 or after 2200 becomes the nearest within.
pub fn reported<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    Ok(Timestamp::deserialize(deserializer)?.clamp(EARLIEST, LATEST))
}

/// The same, of a moment that may be absent.
pub fn perhaps_reported<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Timestamp>, D::Error> {
    let moment = Option::<Timestamp>::deserialize(deserializer)?;
    Ok(moment.map(|moment| moment.clamp(EARLIEST, LATEST)))
}

/// Reads a duration as Kubernetes writes it, `1h30m` for example. One that is longer than any clock counts is the
/// longest there is.
#[must_use]
pub fn duration(text: &str) -> Option<SignedDuration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic())?);
        let is_digit_or_point = |c: char| c.is_ascii_digit() || c == '.';
        let end = after.find(is_digit_or_point).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        if !number.chars().all(is_digit_or_point) {
            return None;
        }
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    let is_given = !text.is_empty();
    is_given.then(|| SignedDuration::try_from_secs_f64(seconds).unwrap_or(SignedDuration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_as_kubernetes_writes_them() {
        for (text, seconds) in [
            ("10m", Some(600)),
            ("1h30m", Some(5_400)),
            ("30m1.5h", Some(7_200)),
            ("1500ms500ms", Some(2)),
            ("0m", Some(0)),
            ("99999999h", Some(359_999_996_400)),
            ("", None),
            ("h", None),
            ("10", None),
            ("-5m", None),
            ("infh", None),
            ("1e9h", None),
            ("5 m", None),
            ("٣h", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_secs()), seconds, "{text:?}");
        }
        assert_eq!(
            duration("99999999999999999999h"),
            Some(SignedDuration::MAX),
            "longer than any clock counts"
        );
    }

    #[test]
    fn what_a_server_tells_stays_within_a_few_centuries() {
        #[derive(Deserialize)]
        struct Job {
            #[serde(deserialize_with = "reported")]
            created: Timestamp,
            #[serde(default, deserialize_with = "perhaps_reported")]
            completed: Option<Timestamp>,
        }
        let job = r#"{"created": "-009000-01-02T00:00:00Z", "completed": "9999-12-30T22:00:00Z"}"#;
        let job: Job = serde_json::from_str(job).unwrap();
        assert_eq!((job.created, job.completed), (EARLIEST, Some(LATEST)));
        let job = r#"{"created": "2026-03-02T08:00:00Z"}"#;
        let job: Job = serde_json::from_str(job).unwrap();
        assert_eq!(job.created.to_string(), "2026-03-02T08:00:00Z");
        assert_eq!(job.completed, None);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,40}", more in "[0-9.]{0,30}(ms|s|m|h|x)") {
            let _ = duration(&text);
            prop_assert!(duration(&more).is_none_or(|d| !d.is_negative()));
        }

        #[test]
        fn no_moment_is_too_far(
            from in -377_705_023_201_i64..=253_402_207_200,
            wait in any::<i64>(),
        ) {
            let from = Timestamp::from_second(from).unwrap();
            let wait = SignedDuration::from_secs(wait);
            prop_assert_eq!(from.after(wait) >= from, !wait.is_negative());
            prop_assert_eq!(from.before(wait) <= from, !wait.is_negative());
        }
    }
}
