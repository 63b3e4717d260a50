//! What a pod shows after its token was reviewed: a ticket, good for itself, at every replica and after a restart. Nothing is
//! stored of it; the key lies beside the authorities.

use std::fmt;

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::{IdentityError, PodIdentity, claims};

/// How long a ticket is good: longer than a pod may take from its node to its agent, with the pulls of both images and the gate.
const LIFE: SignedDuration = SignedDuration::from_hours(2);
/// Bytes of a key.
const KEY: usize = 32;

/// The key of tickets. `Debug` does not show it.
#[derive(Clone)]
pub struct TicketKey {
    text: SecretString,
    key: hmac::Key,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(…)")
    }
}

/// Whose a ticket is.
#[derive(Deserialize, Serialize)]
struct Claims {
    namespace: String,
    name: String,
    uid: String,
    node: Option<String>,
    /// Seconds since 1970.
    until: i64,
}

impl TicketKey {
    /// A new key; `None` where the system has no random numbers.
    #[must_use]
    pub fn make() -> Option<Self> {
        let mut key = [0; KEY];
        rand::fill(&mut key).ok()?;
        Self::read(URL_SAFE_NO_PAD.encode(key).into())
    }

    /// Reads a key as it was written.
    #[must_use]
    pub fn read(text: SecretString) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.expose_secret()).ok()?;
        let is_whole = bytes.len() == KEY;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        is_whole.then_some(Self { text, key })
    }

    /// The key as text.
    #[must_use]
    pub fn text(&self) -> &SecretString {
        &self.text
    }

    /// A ticket of this pod.
    #[must_use]
    pub fn issue(&self, pod: &PodIdentity, now: Timestamp) -> SecretString {
        let claims = Claims {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            node: pod.node.clone(),
            until: now.saturating_add(LIFE).map_or(0, Timestamp::as_second),
        };
        let claims = serde_json::to_vec(&claims).unwrap_or_default();
        let tag = hmac::sign(&self.key, &claims);
        let (claims, tag) = (
            URL_SAFE_NO_PAD.encode(claims),
            URL_SAFE_NO_PAD.encode(tag.as_ref()),
        );
        format!("{claims}.{tag}").into()
    }

    /// The pod that a ticket is of. Nothing of it is read before it is known to be ours.
    pub fn pod_of(&self, ticket: &str, now: Timestamp) -> Result<PodIdentity, IdentityError> {
        let no = |why: &str| IdentityError::NotAccepted(why.to_owned());
        if ticket.len() > claims::LONGEST {
            return Err(no("it is longer than a ticket"));
        }
        let claims = self
            .signed(ticket)
            .and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok())
            .ok_or_else(|| no("it is no ticket of this operator"))?;
        if claims.until <= now.as_second() {
            return Err(no("the ticket has expired"));
        }
        Ok(PodIdentity {
            namespace: claims.namespace,
            name: claims.name,
            uid: claims.uid,
            node: claims.node,
        })
    }

    fn signed(&self, ticket: &str) -> Option<Vec<u8>> {
        let (claims, tag) = ticket.split_once('.')?;
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        // In a time that tells nothing of the right one.
        hmac::verify(&self.key, &claims, &tag).ok()?;
        Some(claims)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

    fn pod() -> PodIdentity {
        PodIdentity {
            namespace: "ci".to_owned(),
            name: "pool-aaaaa".to_owned(),
            uid: "u".to_owned(),
            node: Some("node-1".to_owned()),
        }
    }

    #[test]
    fn a_ticket_is_good_for_its_pod_for_two_hours_wherever_the_key_is() {
        // Given a ticket, and a replica that has read the key
        let key = TicketKey::make().unwrap();
        let ticket = key.issue(&pod(), NOW);
        let replica = TicketKey::read(key.text().clone()).unwrap();
        let read = |seconds| {
            let now = NOW + SignedDuration::from_secs(seconds);
            replica.pod_of(ticket.expose_secret(), now)
        };
        // Then it tells the pod, and no longer than an hour
        assert_eq!(read(0), Ok(pod()));
        assert_eq!(read(7199), Ok(pod()));
        assert!(read(7200).unwrap_err().to_string().contains("expired"));
        // And another key knows nothing of it
        let other = TicketKey::make().unwrap();
        let refused = other.pod_of(ticket.expose_secret(), NOW).unwrap_err();
        assert!(refused.to_string().contains("no ticket"), "{refused}");
        assert!(!format!("{key:?}").contains(key.text().expose_secret()));
    }

    #[test]
    fn a_key_is_read_whole_or_not_at_all() {
        for text in ["", "c2hvcnQ", "no base64!"] {
            assert!(TicketKey::read(text.to_owned().into()).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_ticket_that_was_changed_is_refused(at in 0..400_usize, with in "[A-Za-z0-9_.-]") {
            let key = TicketKey::make().unwrap();
            let good = key.issue(&pod(), NOW);
            let good = good.expose_secret();
            let at = at % good.len();
            let changed = format!("{}{with}{}", &good[..at], &good[at + 1..]);
            // The last characters of base64 hold bits that mean nothing: those are refused, too.
            prop_assert_eq!(key.pod_of(&changed, NOW).is_ok(), changed == good);
        }

        #[test]
        fn whatever_is_shown_is_read_or_refused(text in "\\PC{0,200}", times in 1..2000_usize) {
            let key = TicketKey::make().unwrap();
            prop_assert!(key.pod_of(&text, NOW).is_err());
            prop_assert!(key.pod_of(&text.repeat(times), NOW).is_err());
        }
    }
}
