//! How a scale set is heard that is offered nothing: GitHub tells it of no job then, so that nobody knows whether it has any.
//!
//! A scale set whose jobs fill its offer is *silent*: it may have more. It is offered one runner beyond them for a moment, a
//! *glance*: where there is a job, GitHub assigns it at once. What a scale set was offered is remembered as its [`Room`].

use jiff::{SignedDuration, Timestamp};

use crate::model::time::Shift as _;

/// A glance ends after this time: long enough for a reconcile, and for a poll with the new offer to be answered. Whoever was
/// offered something within this time has been heard.
pub const GLANCE: SignedDuration = SignedDuration::from_secs(10);
/// After a glance that brought nothing, and for which others waited, a scale set has none for this time.
pub const REST: SignedDuration = SignedDuration::from_mins(5);
/// For this time where nobody waits: then a glance costs two requests.
pub const IDLE_REST: SignedDuration = SignedDuration::from_mins(1);
/// One glance for which others wait begins in this time for each [`SLOT`] devices.
pub const PACE: SignedDuration = SignedDuration::from_secs(30);
/// While a scale set waits for a device to have a glance at, pods of others would take it: they have none beyond their share
/// for so long. Then, for as long again, they have, so that a cluster autoscaler sees them.
pub const LOOK: SignedDuration = SignedDuration::from_mins(1);
/// Devices for each of which one glance is made at a time, for which others wait.
pub const SLOT: u32 = 16;

/// What a scale set was offered beyond the jobs that it knows of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Room {
    /// Since when it is offered more.
    pub since: Option<Timestamp>,
    /// Until when it was offered more before that.
    pub until: Option<Timestamp>,
    /// Whether that ended without a job for it.
    pub is_vain: bool,
    /// When its last glance began for which others waited; none once it had a job.
    pub glance: Option<Timestamp>,
    /// When that was, be it that it had a job: namespaces take turns by this.
    pub looked: Option<Timestamp>,
    /// Since when it waits for a device to have a glance at.
    pub waits: Option<Timestamp>,
    /// Runners that it is offered in all.
    pub offered: usize,
}

impl Room {
    /// The room of a scale set that is known to want so many runners by now: when these are all that it was offered, it may
    /// have still more.
    #[must_use]
    pub fn heard(self, wanted: usize, now: Timestamp) -> Self {
        if self.since.is_some() && wanted >= self.offered {
            return Self {
                until: Some(now),
                looked: self.looked,
                ..Self::default()
            };
        }
        self
    }

    /// The room of a scale set that is offered so many runners from now on, and is known to want so many.
    #[must_use]
    pub fn offers(self, offered: usize, wanted: usize, now: Timestamp) -> Self {
        if offered > wanted {
            let since = self.since.or(Some(now));
            return Self {
                since,
                offered,
                ..self
            };
        }
        if self.since.is_some() {
            return Self {
                since: None,
                until: Some(now),
                is_vain: true,
                ..self
            };
        }
        self
    }

    /// This room, where others wait for what it is.
    #[must_use]
    pub fn awaited(self) -> Self {
        Self {
            glance: self.since,
            looked: self.since,
            ..self
        }
    }

    /// This room of one that waits for a device, or does not.
    #[must_use]
    pub fn waiting(self, waits: bool, now: Timestamp) -> Self {
        Self {
            waits: self.waits.or(Some(now)).filter(|_| waits),
            ..self
        }
    }

    /// Whether others are to have no pod that would take the next device.
    #[must_use]
    pub fn is_looking(&self, now: Timestamp) -> bool {
        self.turns(now).is_none_or(|turns| turns % 2 == 0)
    }

    /// How often it has ceased or begun to look since it waits.
    fn turns(&self, now: Timestamp) -> Option<i64> {
        let waits = now.duration_since(self.waits?);
        waits.as_secs().checked_div(LOOK.as_secs())
    }

    /// When it does so again.
    fn turn(&self, now: Timestamp) -> Option<Timestamp> {
        let seconds = self
            .turns(now)?
            .saturating_add(1)
            .saturating_mul(LOOK.as_secs());
        Some(self.waits?.after(SignedDuration::from_secs(seconds)))
    }

    /// Whether this is a glance that goes on.
    #[must_use]
    pub fn is_glance(&self, now: Timestamp) -> bool {
        let goes_on = |since: Timestamp| self.glance == Some(since) && now < since.after(GLANCE);
        self.since.is_some_and(goes_on)
    }

    /// Whether it is time for a glance that keeps others waiting, or it goes on.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        let is_over = |at: Option<Timestamp>, rest| at.is_none_or(|at| at.after(rest) <= now);
        let is_new = self.since.is_none();
        self.is_glance(now) || is_new && is_over(self.until, GLANCE) && is_over(self.glance, REST)
    }

    /// Whether it is time for one where nobody waits, or it goes on.
    #[must_use]
    pub fn is_due_when_idle(&self, now: Timestamp) -> bool {
        let until = self.until.filter(|_| self.is_vain);
        match self.since {
            Some(since) => now < since.after(GLANCE),
            None => until.is_none_or(|until| until.after(IDLE_REST) <= now),
        }
    }

    /// Whether a glance, for which others waited, takes its place among those of this time.
    #[must_use]
    pub fn has_slot(&self, now: Timestamp) -> bool {
        self.glance.is_some_and(|glance| now < glance.after(PACE))
    }

    /// When that may be different by itself.
    #[must_use]
    pub fn again(&self, now: Timestamp) -> Option<Timestamp> {
        let until = self.until.filter(|_| self.since.is_none());
        let moments = [
            self.since.map(|at| at.after(GLANCE)),
            until.map(|at| at.after(GLANCE)),
            until.filter(|_| self.is_vain).map(|at| at.after(IDLE_REST)),
            self.glance.map(|at| at.after(REST)),
            self.glance.map(|at| at.after(PACE)),
            self.turn(now),
        ];
        moments.into_iter().flatten().filter(|at| *at > now).min()
    }
}
