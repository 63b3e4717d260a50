//! The hourly limit of requests for each credential.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::state::World;

/// What a credential has used of its hour.
#[derive(Debug, Clone, Serialize)]
pub struct Budget {
    /// Requests an hour.
    pub limit: u32,
    /// Requests of this hour that counted.
    pub used: u32,
    /// When the next hour begins.
    pub reset: Timestamp,
}

impl Budget {
    /// What is left.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        self.limit.saturating_sub(self.used)
    }

    /// The headers of every answer.
    #[must_use]
    pub fn headers(&self) -> [(Cow<'static, str>, String); 5] {
        [
            ("x-ratelimit-limit".into(), self.limit.to_string()),
            ("x-ratelimit-remaining".into(), self.remaining().to_string()),
            ("x-ratelimit-used".into(), self.used.to_string()),
            (
                "x-ratelimit-reset".into(),
                self.reset.as_second().to_string(),
            ),
            ("x-ratelimit-resource".into(), "core".to_owned()),
        ]
    }
}

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
