//! How often a scale set's queue is polled, however its server answers.

use std::time::Duration;

use tokio::time::Instant;

/// Polls are so far apart on average, where each is answered at once: a message holds all that has happened since the last.
const APART: Duration = Duration::from_secs(1);
/// So many polls may follow one another without a pause, as where many jobs begin together.
pub(super) const AT_ONCE: u32 = 60;

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn polls_come_at_once_until_there_were_many_and_then_one_a_second() {
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
}
