//! How often a scale set's queue is polled, however its server answers.

use std::time::Duration;

use tokio::time::Instant;

/// Polls are so far apart on average, where each is answered at once: a message holds all that has happened since the last.
pub(super) const APART: Duration = Duration::from_millis(50);
/// So many polls may follow one another without a pause, as where many jobs begin together.
pub(super) const AT_ONCE: u32 = 200;
/// A longer message counts as a poll for each so many bytes: reading it takes as much longer. A usual one has a few KiB.
const BYTES: usize = 64 * 1024;

/// The polls of one pool, of whatever session.
pub(super) struct Pace {
    /// When the next poll would come, were all of them [`APART`].
    due: Instant,
}

impl Pace {
    /// Nothing was polled yet.
    pub(super) fn new() -> Self {
        Self {
            due: Instant::now(),
        }
    }

    /// Waits for the turn of the next poll. Nothing that is heard makes it come earlier.
    pub(super) async fn turn(&mut self) {
        let now = Instant::now();
        self.due = self.due.max(now) + APART;
        let ahead = self.due.duration_since(now);
        tokio::time::sleep(ahead.saturating_sub(APART * AT_ONCE)).await;
    }

    /// A message of so many bytes was read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.due += APART * u32::try_from(bytes / BYTES).unwrap_or(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn polls_come_at_once_until_there_were_many_and_then_twenty_a_second() {
        let mut pace = Pace::new();
        let mut turns = async |count: u32| {
            let start = Instant::now();
            for _ in 0..count {
                pace.turn().await;
            }
            start.elapsed()
        };
        // Given a server that answers each poll at once, then the first ones do not wait, and all later ones do
        assert_eq!(turns(AT_ONCE).await, Duration::ZERO);
        assert_eq!(turns(1_000).await, 1_000 * APART);
        // When it has kept polls waiting for a while, then as many more do not wait
        tokio::time::advance(30 * APART).await;
        assert_eq!(turns(30).await, Duration::ZERO);
        assert_eq!(turns(1).await, APART);
        // ... and after a night no more than at first
        tokio::time::advance(100_000 * APART).await;
        assert_eq!(turns(AT_ONCE).await, Duration::ZERO);
        assert_eq!(turns(1).await, APART);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_message_counts_as_many() {
        // Given a server that sends the longest messages that are read
        let (mut pace, start) = (Pace::new(), Instant::now());
        for _ in 0..100 {
            pace.turn().await;
            pace.read(8 * 1024 * 1024);
        }
        // Then they come once in six seconds
        let each = APART * 129;
        assert!(start.elapsed() >= 97 * each, "{:?}", start.elapsed());
    }
}
