//! What a token says of itself. Before somebody has vouched for it, it is good for a refusal, and for nothing else.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gate_report::wire::AUDIENCE;
use jiff::Timestamp;
use serde::Deserialize;

use super::{IdentityError, PodIdentity};

/// The longest token, in bytes. A pod's is about a thousand.
pub(super) const LONGEST: usize = 8 * 1024;
/// The clocks of this machine and of the API server, which issues tokens, may differ by so many seconds.
pub(super) const CLOCKS: u64 = 60;

/// The claims in use. See
/// <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims>.
#[derive(Deserialize)]
pub(super) struct Claims {
    aud: Audience,
    exp: f64,
    #[serde(rename = "kubernetes.io")]
    bound: Option<Bound>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    pod: Option<Object>,
    node: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    uid: String,
}

impl Claims {
    /// The pod that the token is bound to.
    pub(super) fn pod(self) -> Result<PodIdentity, IdentityError> {
        let bound = self.bound;
        let bound = bound.and_then(|bound| Some((bound.namespace, bound.pod?, bound.node)));
        let Some((namespace, pod, node)) = bound else {
            return Err(IdentityError::NoPod("a service account".to_owned()));
        };
        Ok(PodIdentity {
            namespace,
            name: pod.name,
            uid: pod.uid,
            node: node.map(|node| node.name),
        })
    }
}

/// The pod that a token claims to be bound to; or why the API server need not be asked.
pub(super) fn pod_of(token: &str, now: Timestamp) -> Result<PodIdentity, IdentityError> {
    let no = |why: &str| IdentityError::NotAccepted(why.to_owned());
    if token.len() > LONGEST {
        return Err(no("it is longer than a pod's token"));
    }
    let claims = claims(token).ok_or_else(|| no("it is no service-account token"))?;
    let is_for_us = match &claims.aud {
        Audience::One(audience) => audience == AUDIENCE,
        Audience::Several(audiences) => audiences.iter().any(|audience| audience == AUDIENCE),
    };
    if !is_for_us {
        return Err(no("it is not for the registrar"));
    }
    let clocks = Duration::from_secs(CLOCKS).as_secs_f64();
    let lasts = claims.exp + clocks > now.as_duration().as_secs_f64();
    if !lasts {
        return Err(no("it has expired"));
    }
    claims.pod()
}

/// The middle of its three parts.
fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_000_000, 0);

    fn token(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn good() -> Value {
        json!({
            "aud": [AUDIENCE], "exp": 1_000_600, "sub": "system:serviceaccount:ci:default",
            "kubernetes.io": {"namespace": "ci", "pod": {"name": "pool-a", "uid": "u"}, "node": {"name": "n", "uid": "m"}},
        })
    }

    #[test]
    fn a_token_that_cannot_be_good_needs_no_review() {
        let said = |change: fn(&mut Value)| {
            let mut claims = good();
            change(&mut claims);
            pod_of(&token(&claims), NOW).map(|pod| (pod.namespace, pod.name, pod.uid))
        };
        let pod = ("ci", "pool-a", "u");
        let pod = Ok((pod.0.to_owned(), pod.1.to_owned(), pod.2.to_owned()));
        assert_eq!(said(|_| {}), pod);
        assert_eq!(said(|c| c["aud"] = json!(AUDIENCE)), pod);
        // The API server's clock is a little behind
        assert_eq!(said(|c| c["exp"] = json!(999_990)), pod);
        for (change, why) in [
            (
                (|c| c["aud"] = json!("https://kubernetes.default.svc")) as fn(&mut Value),
                "not for the registrar",
            ),
            (|c| c["aud"] = json!([]), "not for the registrar"),
            (|c| c["aud"] = json!(7), "no service-account token"),
            (|c| c["exp"] = json!(999_900), "expired"),
            (|c| c["exp"] = Value::Null, "no service-account token"),
            (|c| c["kubernetes.io"] = Value::Null, "bound to no pod"),
            (
                |c| c["kubernetes.io"]["pod"] = Value::Null,
                "bound to no pod",
            ),
            (|c| c["long"] = json!("x".repeat(LONGEST)), "longer"),
        ] {
            let refused = said(change).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}, not {why}");
        }
        for token in ["", ".", "..", "a.b.c", "a.b.c.d", "secret"] {
            assert!(pod_of(token, NOW).is_err(), "{token}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_token_holds_it_is_read_or_refused(
            token in "\\PC{0,100}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            exp in any::<f64>(),
            depth in 0..4000_usize,
        ) {
            let _ = pod_of(&token, NOW);
            let encoded = |bytes: &[u8]| format!("a.{}.b", URL_SAFE_NO_PAD.encode(bytes));
            let _ = pod_of(&encoded(&payload), NOW);
            let deep = format!("{{\"aud\":{}", "[".repeat(depth));
            prop_assert!(pod_of(&encoded(deep.as_bytes()), NOW).is_err());
            let odd = format!("{{\"aud\":\"{AUDIENCE}\",\"exp\":{exp:?}}}");
            prop_assert!(pod_of(&encoded(odd.as_bytes()), NOW).is_err());
        }
    }
}
