//! What is known of the webhook by which GitHub says that jobs wait.

use jiff::Timestamp;

/// What is known of the webhook of a pool that is to have one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WebhookFacts {
    /// The address to which GitHub is to deliver; none where the operator takes no webhooks.
    pub url: Option<String>,
    /// Why there is no secret for it, and what to do.
    pub secret_trouble: Option<String>,
    /// Changes with the secret.
    pub secret_version: Option<String>,
    /// The secret that this process has last given to GitHub, by its version.
    pub written: Option<String>,
    /// What came of it.
    pub heard: Heard,
    /// What GitHub has.
    pub hook: KnownHook,
    /// Why it could not be read or changed.
    pub trouble: Option<String>,
    /// No attempt before.
    pub not_before: Option<Timestamp>,
    /// What became of GitHub's last delivery, where it failed and nothing has come.
    pub failing: Option<String>,
    /// The address of one that was removed.
    pub removed: Option<String>,
    /// Whether another pool that stays has the webhook that the status names.
    pub is_shared: bool,
}

/// What is known of a webhook on GitHub.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum KnownHook {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// There is none.
    Absent,
    /// This one.
    Present(Hook),
    /// The credentials may not see or make webhooks, in these words.
    NotAllowed(String),
}

/// A webhook on GitHub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// GitHub's number for it.
    pub id: u64,
    /// Where it delivers.
    pub url: String,
    /// Whether it is on, is told of jobs and of nothing else, and delivers JSON by TLS that is checked.
    pub is_right: bool,
}

/// What came by a webhook.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Heard {
    /// Whether GitHub has delivered anything with the right signature since the process began.
    pub any: bool,
    /// The queue is to be read at this moment, because of what came last; it may lie some seconds ahead.
    pub read_at: Option<Timestamp>,
}
