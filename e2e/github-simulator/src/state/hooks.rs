//! Webhooks and their deliveries.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Scope;

/// A webhook of a repository or an organization.
#[derive(Debug, Clone)]
pub struct Hook {
    /// Its number.
    pub id: u64,
    /// Whose it is.
    pub scope: Scope,
    /// Whether it delivers.
    pub active: bool,
    /// What it is told of.
    pub events: Vec<String>,
    /// Where it delivers.
    pub url: String,
    /// `json` or `form`.
    pub content_type: String,
    /// What its deliveries are signed with.
    pub secret: Option<String>,
    /// `0` or `1`.
    pub insecure_ssl: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// What came of the last delivery: the code, and a word.
    pub last: Option<(u16, String)>,
    /// Its deliveries, oldest first.
    pub deliveries: Vec<Delivery>,
}

/// An attempt to deliver an event.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its number.
    pub id: u64,
    /// The event's number, the same in every attempt.
    pub guid: String,
    /// When it was made.
    pub at: Timestamp,
    /// Whether an earlier attempt was made.
    pub redelivery: bool,
    /// What happened, such as `workflow_job`.
    pub event: String,
    /// What happened to it, such as `queued`.
    pub action: Option<String>,
    /// What is delivered.
    pub payload: Value,
    /// It is signed with another secret than the webhook's.
    pub forged: bool,
    /// What came of it, once it is known: the code, a word, and the seconds.
    pub outcome: Option<(u16, String, f64)>,
}

/// What a test does to deliveries.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Troubles {
    /// None is made.
    pub lose: bool,
    /// Each is made so often more.
    pub repeat: u32,
    /// They are kept back for this time, and made in the opposite order then.
    pub hold_millis: u32,
    /// A job is `queued`, `waiting` and `queued`, as with an approval.
    pub approvals: bool,
    /// They are signed with another secret.
    pub forge: bool,
}
