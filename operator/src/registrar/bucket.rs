//! How often something may be done.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// `burst` at once, `per_minute` in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// In the long run.
    pub per_minute: u32,
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            left: f64::from(rate.burst),
            at: Instant::now(),
        }
    }

    /// Whether there is one left. `Err` says when the next is.
    pub(super) fn has_one(&mut self, rate: Rate) -> Result<(), Duration> {
        let now = Instant::now();
        let per_second = f64::from(rate.per_minute) / 60.0;
        let gained = per_second * (now - self.at).as_secs_f64();
        self.left = f64::from(rate.burst).min(self.left + gained);
        self.at = now;
        if self.left >= 1.0 {
            return Ok(());
        }
        let wait = Duration::try_from_secs_f64((1.0 - self.left) / per_second);
        Err(wait.unwrap_or(Duration::from_mins(1)))
    }

    /// Takes one.
    pub(super) fn take(&mut self, rate: Rate) -> Result<(), Duration> {
        self.has_one(rate)?;
        self.left -= 1.0;
        Ok(())
    }

    /// When it was last used.
    pub(super) fn at(&self) -> Instant {
        self.at
    }
}

/// Lets a log line through now and then.
#[derive(Debug)]
pub(super) struct Quiet {
    rate: Rate,
    state: Mutex<(Bucket, u64)>,
}

impl Quiet {
    /// At this rate.
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            state: Mutex::new((Bucket::new(rate), 0)),
        }
    }

    /// Whether the line may be written; if so, how many were not since the last one.
    pub(super) fn lets_through(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, held_back) = &mut *state;
        if bucket.take(self.rate).is_ok() {
            Some(std::mem::take(held_back))
        } else {
            *held_back = held_back.saturating_add(1);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_that_were_held_back_are_counted() {
        let quiet = Quiet::new(Rate {
            burst: 2,
            per_minute: 1,
        });
        let said: Vec<_> = (0..5).map(|_| quiet.lets_through()).collect();
        assert_eq!(said, [Some(0), Some(0), None, None, None]);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(quiet.lets_through(), Some(3));
    }
}
