//! The moments of a pod's life, from which the seconds are counted that it holds its GPUs.

use jiff::Timestamp;

use super::runner::Runner;

/// The moments of a pod's life, as far as they are known. Whole seconds, as Kubernetes tells them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Life {
    /// When the scheduler gave it a node, and its GPUs with that.
    pub bound: Option<Timestamp>,
    /// When its agent was first online.
    pub online: Option<Timestamp>,
    /// Since when its agent is idle, while it is.
    pub idle: Option<Timestamp>,
    /// Since when its agent is busy; kept when it ends so.
    pub busy: Option<Timestamp>,
    /// Seconds of the times before in which it was busy.
    pub was_busy: u64,
    /// When its last container ended.
    pub over: Option<Timestamp>,
    /// Whether it was asked to go before it ended.
    pub asked: bool,
    /// Whether it runs many jobs.
    pub is_persistent: bool,
}

/// Whole seconds from one moment to another; none where it is before.
#[must_use]
pub fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_second().saturating_sub(from.as_second())).unwrap_or_default()
}

impl Runner {
    /// Adds what an earlier look at the same pod has shown, and a later one does not any more.
    pub fn follow(&mut self, before: &Self) {
        if self.uid != before.uid {
            return;
        }
        // The kubelet may start the container of the GPUs once more as the pod ends: that hides the gate's report.
        if self.end.is_some() && self.devices.is_empty() {
            self.devices.clone_from(&before.devices);
            self.hardware.clone_from(&before.hardware);
        }
        let (life, was) = (&mut self.life, &before.life);
        life.bound = life.bound.or(was.bound);
        life.online = was.online.or(life.online);
        life.was_busy = was.was_busy;
        if before.end.is_some() {
            life.asked = was.asked;
        }
        let Some(since) = was.busy else { return };
        // One that has ended since then has ended in its job.
        match life.idle {
            Some(idle) => life.was_busy = was.was_busy.saturating_add(seconds(since, idle)),
            None => life.busy = Some(since),
        }
    }
}
