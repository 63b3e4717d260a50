//! What the gate and the registrar say to each other.
//!
//! `POST {url}`[`PATH`] with `Authorization: Bearer <service-account token for` [`AUDIENCE`]`>` and the whole
//! [`Report`](crate::Report) as the body, at most [`MAX_BODY`] bytes. The answers:
//!
//! | status | body | the gate |
//! |---|---|---|
//! | 200 | [`Registration`] | stores it and ends with 0 |
//! | 202 | none | its failing report was noted: ends with the report's class |
//! | 400 | [`Refusal`] | fault of ours: 70 |
//! | 401, 403 | [`Refusal`] | final: 15 |
//! | 429, 503 | [`Refusal`], `Retry-After` | tries again until its deadline, then 16 |

use std::fmt;

use serde::{Deserialize, Serialize};

/// The registrar's path.
pub const PATH: &str = "/v1/registrations";
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

/// Why the registrar gives no registration.
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
    fn a_refusal_may_carry_more_than_we_know() {
        let refusal: Refusal =
            serde_json::from_str(r#"{"reason":"Draining","message":"m","since":1}"#).unwrap();
        assert_eq!(refusal.reason, "Draining");
    }
}
