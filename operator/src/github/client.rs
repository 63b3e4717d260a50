//! One scope on one server, seen with one credential.

use std::sync::Arc;

use http::StatusCode;

use super::{
    Error, Fingerprint, GitHubUrl,
    ask::{Answer, Ask},
    barred::barred,
    budget::Usage,
    groups::Groups,
    pages::Tagged,
    queue::Kept,
    runners::Pages,
    scale_sets::Agents,
    service::Connection,
    single::Single,
    transport::Transport,
    versions::Lifecycles,
};

/// Asks GitHub. Made by [`Clients`](super::Clients); cheap to share.
pub struct Client {
    url: GitHubUrl,
    pub(super) transport: Arc<Transport>,
    pub(super) listing: Single<Arc<Pages>>,
    pub(super) groups: Single<Groups>,
    pub(super) queue: Kept,
    pub(super) tagged: Tagged,
    pub(super) lifecycles: Lifecycles,
    pub(super) service: Single<Arc<Connection>>,
    pub(super) agents: Single<Agents>,
}

impl Client {
    pub(super) fn new(url: GitHubUrl, transport: Arc<Transport>) -> Self {
        Self {
            url,
            transport,
            listing: Single::default(),
            groups: Single::default(),
            queue: Kept::default(),
            tagged: Tagged::default(),
            lifecycles: Lifecycles::default(),
            service: Single::default(),
            agents: Single::default(),
        }
    }

    /// Whose runners it is about.
    #[must_use]
    pub const fn url(&self) -> &GitHubUrl {
        &self.url
    }

    /// What the credential has spent, by all who use it.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.transport.budget().usage()
    }

    /// Whether less than a tenth of what GitHub grants each hour is left, or nothing may be sent: what can be done without
    /// waits.
    #[must_use]
    pub fn is_short(&self) -> bool {
        let usage = self.usage();
        let left = usage.remaining.zip(usage.limit);
        usage.paused_until.is_some() || left.is_some_and(|(left, limit)| left < limit / 10)
    }

    /// Tells the credential from others without a word of it, as in [`Clients::usage`](super::Clients::usage).
    #[must_use]
    pub fn credential(&self) -> Fingerprint {
        self.transport.id()
    }

    /// What a status means that the caller did not expect.
    pub(super) fn refusal(&self, answer: &Answer, ask: &Ask) -> Error {
        let action = ask.action.clone();
        let message = answer.message();
        match answer.status {
            StatusCode::FORBIDDEN => Error::Forbidden {
                action,
                advice: self.advice(answer),
                message,
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => Error::NotFound {
                what: self.url.scope().to_string(),
                message,
                // GitHub hides what the credentials may not see.
                advice: format!(
                    "check spec.github.url ({}), and that the credentials reach it and have {}",
                    self.url,
                    self.url.scope().permission()
                ),
            },
            StatusCode::CONFLICT => Error::Conflict {
                message: format!("GitHub could not {action}: {message}"),
            },
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                Error::Validation { action, message }
            }
            status => Error::Malformed {
                action,
                message: format!("unexpected status {status}: {message}"),
            },
        }
    }

    /// Like `refusal`, for what needs another permission than the runners do.
    pub(super) fn judged(&self, answer: &Answer, ask: &Ask, permission: &str) -> Error {
        match self.refusal(answer, ask) {
            Error::Forbidden {
                action, message, ..
            } if barred(answer).is_none() => Error::Forbidden {
                action,
                advice: format!("grant {permission}"),
                message,
            },
            Error::NotFound { what, message, .. } => Error::NotFound {
                what,
                message,
                advice: format!("does it exist, and do the credentials have {permission}?"),
            },
            other => other,
        }
    }

    /// What is in the way; or the permission that would have helped: GitHub's own hint, else what its documentation asks
    /// for.
    fn advice(&self, answer: &Answer) -> String {
        if let Some(advice) = barred(answer) {
            return advice.to_owned();
        }
        // <https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#resource-not-accessible>
        match answer.header("x-accepted-github-permissions") {
            Some(permissions) if !permissions.is_empty() => {
                format!(
                    "grant the permission {permissions} ({})",
                    self.url.scope().permission()
                )
            }
            _ => self.url.scope().grant(),
        }
    }
}
