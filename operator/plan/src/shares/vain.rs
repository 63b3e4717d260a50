//! GPUs that are given to a pool whose pods no node takes all the same: for want of CPU, say. They would be idle for ever.

use jiff::{SignedDuration, Timestamp};

use crate::model::time::Shift as _;

/// So long the scheduler has to place a pod for which there is a GPU. It tries one again after ten seconds at the latest. See
/// <https://kubernetes.io/docs/reference/config-api/kube-scheduler-config.v1/>, `podMaxBackoffSeconds`.
pub const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// For this time the pool claims no more than it has.
pub const REST: SignedDuration = SignedDuration::from_mins(5);

/// For this time after that no node is kept for it: while the last job there goes on, all other devices would be idle.
const KEEPS_AGAIN: SignedDuration = SignedDuration::from_hours(6);

/// What has become of GPUs that a pool was given.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Vain {
    /// Since when it has some that no pod of its takes.
    pub since: Option<Timestamp>,
    /// Until when it is, or was, given no more. Forgotten when a pod finds a GPU all the same.
    pub until: Option<Timestamp>,
    /// The most runners that had a node since then.
    pub placed: usize,
    /// The same of the last time that GPUs were idle for it: so many it may have while it rests.
    pub had: usize,
}

impl Vain {
    /// Whether the pool is given no more.
    #[must_use]
    pub fn rests(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Whether a node may be kept for the pool until all of its devices are free.
    #[must_use]
    pub fn may_keep(&self, now: Timestamp) -> bool {
        self.until
            .is_none_or(|until| until.after(KEEPS_AGAIN) <= now)
    }

    /// What is known now, where the pool has GPUs that are free and pods that have waited for long, or not, and so many
    /// runners with a node. One that takes another's place is no progress: the GPUs that are free are free still.
    #[must_use]
    pub fn seen(self, is_vain: bool, runners: usize, now: Timestamp) -> Self {
        if runners > self.placed {
            return Self {
                placed: runners,
                had: runners,
                ..Self::default()
            };
        }
        if self.rests(now) {
            return self;
        }
        let since = is_vain.then(|| self.since.unwrap_or(now));
        let is_over = since.is_some_and(|since| since.after(PATIENCE) <= now);
        Self {
            since: since.filter(|_| !is_over),
            until: if is_over {
                Some(now.after(REST))
            } else {
                self.until
            },
            placed: since.map_or(runners, |_| self.placed.max(runners)),
            // What it had before its last rest it may not get again.
            had: match since {
                Some(_) if self.since.is_some() || self.until.is_none() => self.had.max(runners),
                _ => runners,
            },
        }
    }

    /// When that may be different by itself.
    #[must_use]
    pub fn again(&self, now: Timestamp) -> Option<Timestamp> {
        let rest = self.until;
        let kept = rest.map(|until| until.after(KEEPS_AGAIN));
        let moments = [self.since.map(|at| at.after(PATIENCE)), rest, kept];
        moments.into_iter().flatten().filter(|at| *at > now).min()
    }
}
