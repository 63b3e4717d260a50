//! What a job's log says of tests, read line by line: a log may be long, and nothing else of it is kept.

use super::TestSum;

/// A longer line cannot be a test's result.
const LONGEST_LINE: usize = 1024;

/// Reads a log in pieces.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
    sum: TestSum,
}

impl Reader {
    pub(super) fn take(&mut self, piece: &[u8]) {
        for &byte in piece {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            }
        }
    }

    pub(super) fn finish(mut self) -> TestSum {
        self.end_line();
        self.sum
    }

    fn end_line(&mut self) {
        if let Some(passed) = passed(&String::from_utf8_lossy(&self.line)) {
            self.sum.results = self.sum.results.saturating_add(1);
            self.sum.passed = self.sum.passed.saturating_add(passed);
        }
        self.line.clear();
    }
}

/// The number before `passed` in a line with a test's result; colours may surround its words.
///
/// Only GitHub's time may stand before the result: a log also shows the scripts that it ran, such as an `echo` of one.
fn passed(line: &str) -> Option<u64> {
    let (before, result) = line.split_once("test result: ")?;
    let before = before.trim_start_matches('\u{feff}').trim();
    if !(before.is_empty() || before.parse::<jiff::Timestamp>().is_ok()) {
        return None;
    }
    let (before, _) = result.split_once(" passed")?;
    let number: String = before
        .chars()
        .rev()
        .take_while(char::is_ascii_digit)
        .collect();
    number.chars().rev().collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(log: &str) -> TestSum {
        let mut reader = Reader::default();
        // In pieces, as the network cuts it.
        log.as_bytes()
            .chunks(7)
            .for_each(|piece| reader.take(piece));
        reader.finish()
    }

    #[test]
    fn results_add_up() {
        let log = "2026-11-25T08:00:00.1Z running 6 tests\n\
            2026-11-25T08:00:00.2Z test result: ok. 6 passed; 0 failed; 0 ignored\n\
            2026-11-25T08:00:00.3Z test result: \u{1b}[32mok\u{1b}[m. 40 passed; 0 failed\r\n\
            2026-11-25T08:00:00.4Z test result: FAILED. 0 passed; 2 failed";
        let expected = TestSum {
            results: 3,
            passed: 46,
        };
        assert_eq!(sum(log), expected);
    }

    #[test]
    fn a_script_that_is_only_shown_does_not_count() {
        let log = "echo \"test result: ok. $total passed\"\nall tests passed\n\
            2026-11-25T08:00:00.1234567Z echo 'test result: ok. 46 passed; 0 failed'\n";
        assert_eq!(sum(log), TestSum::default());
        assert_eq!(sum(&"x".repeat(100_000)), TestSum::default());
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_log_is_read_to_its_end(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3_000), 0..8),
            result in "test result: ok\\. [0-9]{0,40} passed.{0,20}\n",
        ) {
            let mut reader = Reader::default();
            for piece in &pieces {
                reader.take(piece);
                reader.take(result.as_bytes());
                prop_assert!(reader.line.len() <= LONGEST_LINE);
            }
            let _ = reader.finish();
        }
    }
}
