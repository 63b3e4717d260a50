//! The hourly limit of requests for each credential.

use jiff::{SignedDuration, Timestamp};

use crate::state::{Budget, World};

/// The budget of a credential, renewed when its hour is over.
pub fn budget<'a>(world: &'a mut World, credential: &str, now: Timestamp) -> &'a mut Budget {
    let limit = world.settings.hourly_limit;
    let reset = now
        .checked_add(SignedDuration::from_hours(1))
        .unwrap_or(now);
    let fresh = Budget {
        limit,
        used: 0,
        reset,
    };
    let budget = world
        .budgets
        .entry(credential.to_owned())
        .or_insert_with(|| fresh.clone());
    // At the second that was announced, not at its fraction.
    if budget.reset.as_second() <= now.as_second() {
        *budget = fresh;
    }
    budget
}
