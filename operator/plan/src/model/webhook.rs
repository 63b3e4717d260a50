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
    /// The secret that this process has last given to GitHub.
    pub written: Option<Written>,
    /// What came of it.
    pub heard: Heard,
    /// What GitHub has.
    pub hook: KnownHook,
    /// Why it could not be read or changed.
    pub trouble: Option<String>,
    /// No attempt before.
    pub not_before: Option<Timestamp>,
    /// What became of GitHub's last delivery, where it failed and nothing has come since.
    pub failing: Option<String>,
    /// Whether jobs come of which no event tells.
    pub is_untold: bool,
    /// What became of the last attempt to remove one.
    pub removal: Option<Removal>,
    /// Whether another pool that stays has the webhook that the status names.
    pub is_shared: bool,
}

/// A secret that was given to GitHub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The address to which its webhook delivers.
    pub url: String,
    /// The secret's version.
    pub version: String,
}

/// An attempt to remove a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The address to which it delivered.
    pub url: String,
    /// Why it is there still; `None` where it is gone.
    pub failed: Option<NotRemoved>,
}

/// Why a webhook could not be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRemoved {
    /// What happened, and what to do.
    pub why: String,
    /// Whether GitHub accepts the credentials, and they may not see or remove it.
    pub is_refusal: bool,
    /// No attempt before.
    pub not_before: Timestamp,
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
    /// When GitHub last delivered anything with the right signature, as far as this process knows; none where it was seen
    /// since that nothing arrives. It may lie some seconds ahead.
    pub at: Option<Timestamp>,
    /// The queue is to be read at this moment, because of what came last; it may lie some seconds ahead.
    pub read_at: Option<Timestamp>,
}
