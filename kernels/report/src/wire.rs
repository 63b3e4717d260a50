//! What a runner's pod and the registrar say to each other.
//!
//! Three requests, each a `POST` with `Authorization: Bearer`, each body at most [`MAX_BODY`] bytes:
//!
//! | path | by | bearer | body | 200 |
//! |---|---|---|---|---|
//! | [`TICKETS`] | `prepare` | the pod's token for [`AUDIENCE`] | none | [`Ticket`] |
//! | [`REPORTS`] | `gpu`, the gate | ticket | the whole [`Report`](crate::Report) | `{}`: the image is changed |
//! | [`REGISTRATIONS`] | `gpu`, in the runner's image | ticket | `{}` | [`Registration`] |
//!
//! Each may come again: an answer can be lost, and a gate that passed repeats its report until its image is changed.
//! The other answers:
//!
//! | status | body | who asked |
//! |---|---|---|
//! | 202 | none | the failing report was noted: ends with the report's class |
//! | 400 | [`Refusal`] | fault of ours: 70 |
//! | 401, 403 | [`Refusal`] | final: 15 |
//! | 429, 503 | [`Refusal`], `Retry-After` | tries again until its deadline, then 16 |

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exchanges the pod's token for a [`Ticket`].
pub const TICKETS: &str = "/v1/tickets";
/// Takes the gate's report.
pub const REPORTS: &str = "/v1/reports";
/// Gives the registration.
pub const REGISTRATIONS: &str = "/v1/registrations";
/// The audience that the pod's projected service-account token must have.
pub const AUDIENCE: &str = "cudarunner.dev/registrar";
/// The longest report, in bytes, that the registrar reads.
pub const MAX_BODY: usize = 256 * 1024;

/// What a runner needs to register itself with GitHub. A secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Registration {
    /// A just-in-time configuration, for `run.sh --jitconfig`.
    #[serde(rename_all = "camelCase")]
    JitConfig {
        /// As GitHub gave it, base64.
        encoded_jit_config: String,
    },
    /// A registration token, for `config.sh`; its other arguments are no secret and stand in the pod.
    RegistrationToken {
        /// As GitHub gave it; valid for about an hour.
        token: String,
    },
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JitConfig { .. } => f.write_str("JitConfig(…)"),
            Self::RegistrationToken { .. } => f.write_str("RegistrationToken(…)"),
        }
    }
}

/// Stands for one pod at the registrar, for an hour. A secret: `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// One word.
    pub ticket: String,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

/// Why the registrar says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// One word in `PascalCase`, for machines.
    pub reason: String,
    /// One sentence, for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_tagged_and_never_printed() {
        let registration = Registration::JitConfig {
            encoded_jit_config: "c2VjcmV0".into(),
        };
        let json = serde_json::to_string(&registration).unwrap();
        assert_eq!(
            json,
            r#"{"kind":"JitConfig","encodedJitConfig":"c2VjcmV0"}"#
        );
        assert_eq!(
            serde_json::from_str::<Registration>(&json).unwrap(),
            registration
        );
        assert!(!format!("{registration:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn a_registration_token_is_never_printed() {
        let registration = Registration::RegistrationToken {
            token: "AABBCC".into(),
        };
        let json = serde_json::to_string(&registration).unwrap();
        assert_eq!(json, r#"{"kind":"RegistrationToken","token":"AABBCC"}"#);
        assert!(!format!("{registration:?}").contains("AABBCC"));
    }

    #[test]
    fn a_ticket_is_never_printed() {
        let json = r#"{"ticket":"AABBCC"}"#;
        let ticket: Ticket = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&ticket).unwrap(), json);
        assert!(!format!("{ticket:?}").contains("AABBCC"));
    }

    #[test]
    fn a_refusal_may_carry_more_than_we_know() {
        let refusal: Refusal =
            serde_json::from_str(r#"{"reason":"Draining","message":"m","since":1}"#).unwrap();
        assert_eq!(refusal.reason, "Draining");
    }
}
