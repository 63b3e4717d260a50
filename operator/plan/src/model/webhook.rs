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
    /// Attempts in a row that have failed.
    pub tries: i32,
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

/// The first word of what a replica that stands by writes of a webhook.
const NOTE: &str = "webhook";

impl Heard {
    /// What a replica that stands by writes into the annotation `cudarunner.dev/look-again`, for the one that leads: the moment
    /// at which something came, and the one at which the queue is to be read because of it, in RFC 3339.
    #[must_use]
    pub fn note(&self) -> String {
        let moments = self.at.iter().chain(&self.read_at);
        moments.fold(NOTE.to_owned(), |note, moment| format!("{note} {moment}"))
    }

    /// Reads such a note; `None` where a person, or somebody else, has written the annotation.
    #[must_use]
    pub fn of_note(note: &str) -> Option<Self> {
        let moments = note.strip_prefix(NOTE)?.strip_prefix(' ')?;
        let moments: Result<Vec<Timestamp>, _> = moments.split(' ').map(str::parse).collect();
        match moments.ok()?[..] {
            [at] => Some(Self {
                at: Some(at),
                read_at: None,
            }),
            [at, read_at] => Some(Self {
                at: Some(at),
                read_at: Some(read_at),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, ago};

    #[test]
    fn what_a_standby_writes_the_leader_reads() {
        for heard in [
            Heard {
                at: Some(NOW),
                read_at: None,
            },
            Heard {
                at: Some(NOW),
                read_at: Some(ago(-2)),
            },
        ] {
            assert_eq!(Heard::of_note(&heard.note()), Some(heard));
        }
        for other in [
            "",
            "now",
            "webhook",
            "webhook ",
            "webhook soon",
            "webhookish",
        ] {
            assert_eq!(Heard::of_note(other), None, "{other}");
        }
    }
}
