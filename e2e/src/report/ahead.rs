//! How far a first run is: what is still to be installed and built before the story can begin, and how long that takes.

use std::time::Duration;

/// So much of the expected time must be over before it says how fast this machine is.
const ENOUGH: Duration = Duration::from_secs(30);

/// What there is to do, each part with the time that it takes on two cores.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    parts: Vec<(String, Duration)>,
    /// How many there were.
    all: usize,
    /// The expected time of those that are over, and the time that they took.
    expected: Duration,
    took: Duration,
}

impl Ahead {
    /// Begins anew, with these parts.
    pub(super) fn expect(&mut self, parts: Vec<(String, Duration)>) {
        *self = Self {
            all: parts.len(),
            parts,
            ..Self::default()
        };
    }

    /// Where a part stands in all of it, and how long the rest takes, itself included; `None` for one that nobody expected.
    pub(super) fn at(&self, part: &str) -> Option<String> {
        self.parts.iter().find(|(name, _)| name == part)?;
        let number = self.all.saturating_sub(self.parts.len()) + 1;
        let left: Duration = self.parts.iter().map(|(_, time)| *time).sum();
        Some(format!(
            "{number} of {}, about {} left",
            self.all,
            minutes(self.scaled(left))
        ))
    }

    /// A part is over.
    pub(super) fn done(&mut self, part: &str, took: Duration) {
        if let Some(place) = self.parts.iter().position(|(name, _)| name == part) {
            self.expected += self.parts.remove(place).1;
            self.took += took;
        }
    }

    /// As fast as this machine has been so far.
    fn scaled(&self, time: Duration) -> Duration {
        if self.expected < ENOUGH {
            return time;
        }
        time.mul_f64(self.took.as_secs_f64() / self.expected.as_secs_f64())
    }
}

/// For people who wait.
fn minutes(time: Duration) -> String {
    match time.as_secs().div_ceil(60) {
        0 | 1 => "a minute".to_owned(),
        minutes => format!("{minutes} minutes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_far_it_is_and_learns_how_fast_the_machine_is() {
        let seconds = Duration::from_secs;
        let mut ahead = Ahead::default();
        ahead.expect(vec![
            ("etcd".to_owned(), seconds(60)),
            ("helm".to_owned(), seconds(120)),
            ("kwok".to_owned(), seconds(30)),
        ]);
        assert_eq!(
            ahead.at("etcd").as_deref(),
            Some("1 of 3, about 4 minutes left")
        );
        // Twice as slow as expected
        ahead.done("etcd", seconds(120));
        assert_eq!(
            ahead.at("helm").as_deref(),
            Some("2 of 3, about 5 minutes left")
        );
        ahead.done("helm", seconds(240));
        assert_eq!(
            ahead.at("kwok").as_deref(),
            Some("3 of 3, about a minute left")
        );
        // What nobody expected says nothing, and changes nothing
        assert_eq!(ahead.at("lua"), None);
        ahead.done("lua", seconds(1_000));
        assert_eq!(
            ahead.at("kwok").as_deref(),
            Some("3 of 3, about a minute left")
        );
    }
}
