//! What a credential may still ask.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Serialize;

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
