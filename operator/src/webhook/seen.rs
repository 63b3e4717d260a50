//! Deliveries that have come, so that none is taken twice.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::time::Instant;

/// For so long a delivery is remembered.
const REMEMBERED: Duration = Duration::from_hours(1);
/// So many are at most; the oldest go first.
const MOST: usize = 10_000;

/// What tells a delivery from others.
type Mark = [u8; 16];

/// Deliveries that have come lately: of one webhook each is known by GitHub's number for it, and by its signature, since the
/// number is not signed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    marks: HashSet<Mark>,
    order: VecDeque<(Instant, [Mark; 2])>,
}

impl Seen {
    /// Whether a delivery is new. From then on it is not.
    pub(super) fn is_new(&mut self, hook: &str, delivery: &str, signature: &[u8]) -> bool {
        let now = Instant::now();
        while let Some((at, marks)) = self.order.front()
            && (now.duration_since(*at) >= REMEMBERED || self.order.len() >= MOST)
        {
            for mark in marks {
                self.marks.remove(mark);
            }
            self.order.pop_front();
        }
        let marks = [
            mark(hook, b"delivery", delivery.as_bytes()),
            mark(hook, b"signature", signature),
        ];
        if marks.iter().any(|mark| self.marks.contains(mark)) {
            return false;
        }
        self.marks.extend(marks);
        self.order.push_back((now, marks));
        true
    }
}

fn mark(hook: &str, kind: &[u8], value: &[u8]) -> Mark {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [hook.as_bytes(), kind, value] {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    }
    let digest = context.finish();
    let mut mark = Mark::default();
    let length = mark.len();
    mark.copy_from_slice(&digest.as_ref()[..length]);
    mark
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_delivery_is_taken_once_by_whatever_number() {
        let mut seen = Seen::default();
        assert!(seen.is_new("hook", "guid-1", b"one"));
        assert!(!seen.is_new("hook", "guid-1", b"other"), "redelivered");
        assert!(
            !seen.is_new("hook", "guid-2", b"one"),
            "replayed by another number"
        );
        assert!(seen.is_new("other", "guid-1", b"one"), "another webhook");
        tokio::time::advance(REMEMBERED).await;
        assert!(seen.is_new("hook", "guid-1", b"one"), "after an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_come_the_memory_is_bounded() {
        let mut seen = Seen::default();
        for number in 0..MOST + 100 {
            let number = number.to_string();
            assert!(seen.is_new("hook", &number, number.as_bytes()));
        }
        assert_eq!((seen.order.len(), seen.marks.len()), (MOST, 2 * MOST));
        assert!(!seen.is_new("hook", &(MOST + 99).to_string(), b"x"));
        assert!(seen.is_new("hook", "0", b"0"), "the oldest was forgotten");
    }
}
