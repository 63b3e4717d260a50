//! What can go wrong with GitHub, sorted by who has to act.

use std::time::Duration;

use cuda_runner_plan::model::scale_set::Trouble;
use cuda_runner_plan::reason::Reason;
use jiff::{SignedDuration, Timestamp};

/// Why GitHub did not do what was asked.
///
/// Every sentence says what happened, to what, and what to do. None contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The credentials are not accepted.
    #[error("GitHub does not accept the credentials ({message}); {advice}")]
    Unauthorized {
        /// GitHub's words.
        message: String,
        /// What to do.
        advice: String,
    },
    /// The credentials are accepted, and may not do this.
    #[error("the credentials may not {action} ({message}); {advice}")]
    Forbidden {
        /// What was tried.
        action: String,
        /// What to do: grant a permission, in GitHub's words, or take away what is in the way.
        advice: String,
        /// GitHub's words.
        message: String,
    },
    /// It does not exist, or the credentials do not reach it: GitHub does not say which.
    #[error("{what} was not found ({message}); {advice}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// GitHub's words.
        message: String,
        /// What to do.
        advice: String,
    },
    /// A limit of GitHub's, or ours that keeps us from reaching one.
    #[error("no request may be sent to GitHub before {until}: {reason}")]
    RateLimited {
        /// When it is worth trying again.
        until: Timestamp,
        /// Which limit.
        reason: String,
    },
    /// What is there contradicts what was asked.
    #[error("{message}")]
    Conflict {
        /// What is in the way, and what to do.
        message: String,
    },
    /// A runner has a job.
    #[error("{message}")]
    Busy {
        /// Which one.
        message: String,
    },
    /// The request can never work as it is.
    #[error("GitHub refused to {action}: {message}")]
    Validation {
        /// What was tried.
        action: String,
        /// GitHub's words, with the fields at fault.
        message: String,
    },
    /// No answer came.
    #[error("{server} gave no answer to {action}: {message}")]
    Unreachable {
        /// Address of the API.
        server: String,
        /// What was tried.
        action: String,
        /// What the network said.
        message: String,
        /// Whether the request certainly never reached the server.
        undelivered: bool,
    },
    /// The server failed.
    #[error(
        "GitHub failed to {action} with status {status} ({message}); it is tried again, see https://www.githubstatus.com"
    )]
    Server {
        /// What was tried.
        action: String,
        /// HTTP status.
        status: u16,
        /// GitHub's words.
        message: String,
    },
    /// The answer is not what GitHub documents.
    #[error(
        "the answer to {action} cannot be understood ({message}); is a proxy between the operator and GitHub?"
    )]
    Malformed {
        /// What was tried.
        action: String,
        /// Why not. Never the answer itself, which may hold a secret.
        message: String,
    },
}

impl Error {
    /// The reason for conditions.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unauthorized { .. } => Reason::Unauthorized,
            Self::Forbidden { .. } => Reason::Forbidden,
            Self::NotFound { .. } => Reason::NotFound,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::Conflict { .. } => Reason::Conflict,
            Self::Busy { .. } => Reason::Busy,
            Self::Validation { .. } => Reason::Validation,
            Self::Unreachable { .. } => Reason::Unreachable,
            Self::Server { .. } => Reason::Server,
            Self::Malformed { .. } => Reason::Malformed,
        }
    }

    /// Its word, for metrics and logs. Stable.
    #[must_use]
    pub fn category(&self) -> &'static str {
        self.reason().word()
    }

    /// Whether time alone may fix it. Otherwise a person has to change something first.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::Conflict { .. }
                | Self::Busy { .. }
                | Self::Unreachable { .. }
                | Self::Server { .. }
                | Self::Malformed { .. }
        )
    }

    /// How long GitHub wants us to wait, where it said so.
    #[must_use]
    pub fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        self.pause(now).map(SignedDuration::unsigned_abs)
    }

    /// The same, to be added to a moment.
    #[must_use]
    pub fn pause(&self, now: Timestamp) -> Option<SignedDuration> {
        match self {
            Self::RateLimited { until, .. } => {
                Some(until.duration_since(now).max(SignedDuration::ZERO))
            }
            _ => None,
        }
    }

    /// How long to wait: `own`, or longer where GitHub wants that.
    #[must_use]
    pub fn pause_of_at_least(&self, own: SignedDuration, now: Timestamp) -> SignedDuration {
        self.pause(now).map_or(own, |pause| pause.max(own))
    }

    /// Whether no answer came at all: the request may still arrive.
    #[must_use]
    pub const fn is_unanswered(&self) -> bool {
        matches!(self, Self::Unreachable { undelivered, .. } if !*undelivered)
    }

    /// Whether the server may have done what was asked, although no good answer came.
    #[must_use]
    pub const fn leaves_doubt(&self) -> bool {
        match self {
            Self::Unreachable { undelivered, .. } => !*undelivered,
            Self::Server { .. } | Self::Malformed { .. } => true,
            _ => false,
        }
    }
}

/// What the scale-set service did not do.
impl From<&Error> for Trouble {
    fn from(error: &Error) -> Self {
        let reason = if error.is_transient() {
            Reason::ScaleSetUnavailable
        } else {
            Reason::ScaleSetRefused
        };
        Self {
            reason,
            message: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_at_the_reset_and_never_goes_negative() {
        let now = Timestamp::from_second(1_000).unwrap();
        let limited = |until| Error::RateLimited {
            until: Timestamp::from_second(until).unwrap(),
            reason: String::new(),
        };
        assert_eq!(
            limited(1_060).retry_after(now),
            Some(Duration::from_mins(1))
        );
        assert_eq!(limited(900).retry_after(now), Some(Duration::ZERO));
    }

    #[test]
    fn only_a_request_that_may_have_arrived_leaves_doubt() {
        let unreachable = |undelivered| Error::Unreachable {
            server: String::new(),
            action: String::new(),
            message: String::new(),
            undelivered,
        };
        assert!(unreachable(false).leaves_doubt() && unreachable(false).is_unanswered());
        assert!(!unreachable(true).is_unanswered());
        assert!(!unreachable(true).leaves_doubt());
    }
}
