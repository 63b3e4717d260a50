//! GPUs that are given to a pool whose pods no node takes all the same: for want of CPU, say. They would be idle for ever.

use jiff::{SignedDuration, Timestamp};

use crate::model::time::Shift as _;

/// So long the scheduler has to place a pod for which there is a GPU. It tries one again after ten seconds at the latest. See
/// <https://kubernetes.io/docs/reference/config-api/kube-scheduler-config.v1/>, `podMaxBackoffSeconds`.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// For this time the pool claims no more than it has.
pub const REST: SignedDuration = SignedDuration::from_mins(5);

/// What has become of GPUs that a pool was given.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Vain {
    /// Since when it has some that no pod of its takes.
    pub since: Option<Timestamp>,
    /// Until when it is given no more.
    pub until: Option<Timestamp>,
    /// The most runners that had a node since then.
    pub placed: usize,
}

impl Vain {
    /// Whether the pool is given no more.
    #[must_use]
    pub fn rests(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// What is known now, where the pool has GPUs that are free and pods that have waited for long, or not, and so many
    /// runners with a node. One that takes another's place is no progress: the GPUs that are free are free still.
    #[must_use]
    pub fn seen(self, is_vain: bool, runners: usize, now: Timestamp) -> Self {
        let has_progress = runners > self.placed;
        if self.rests(now) && !has_progress {
            return self;
        }
        let since = self.since.or(Some(now));
        let since = since.filter(|_| is_vain && !has_progress);
        let is_over = since.is_some_and(|since| since.after(PATIENCE) <= now);
        Self {
            since: since.filter(|_| !is_over),
            until: is_over.then(|| now.after(REST)),
            placed: since.map_or(runners, |_| self.placed.max(runners)),
        }
    }

    /// When that may be different by itself.
    #[must_use]
    pub fn again(&self, now: Timestamp) -> Option<Timestamp> {
        let moments = [self.since.map(|at| at.after(PATIENCE)), self.until];
        moments.into_iter().flatten().filter(|at| *at > now).min()
    }
}
