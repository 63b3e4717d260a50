//! Pods' tokens judged by the keys that the cluster publishes, and by reviews where these do not decide it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use gate_report::wire::AUDIENCE;
use http::{Method, StatusCode};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kube::Client;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::super::{IdentityError, PodIdentity, Reviewer};
use super::kubernetes::{client, ok, pod_token, status};

const ISSUER: &str = "https://kubernetes.default.svc";

/// A key of an API server.
struct Signer {
    id: &'static str,
    key: EncodingKey,
}

impl Signer {
    fn new(id: &'static str) -> Self {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        Self {
            id,
            key: EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
        }
    }

    fn published(&self) -> Jwk {
        let mut key = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        key.common.key_id = Some(self.id.to_owned());
        key
    }

    fn token(&self, change: fn(&mut Value)) -> String {
        let mut claims = json!({
            "iss": ISSUER, "aud": [AUDIENCE], "exp": 9_999_999_999_u64, "nbf": 1_000_000, "sub": "system:serviceaccount:ci:default",
            "kubernetes.io": {
                "namespace": "ci",
                "pod": {"name": "pool-a", "uid": "u"},
                "node": {"name": "node-a", "uid": "m"},
            },
        });
        change(&mut claims);
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

/// An API server that publishes these keys, if any, and reviews every token as the same pod's; and what it was asked.
#[derive(Clone, Default)]
struct ApiServer {
    keys: Arc<Mutex<Option<Vec<Jwk>>>>,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl ApiServer {
    fn publish(&self, signers: &[&Signer]) {
        let keys = signers.iter().map(|signer| signer.published());
        *self.keys.lock().unwrap() = Some(keys.collect());
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn client(&self) -> Client {
        let server = self.clone();
        client(move |method, path, body| {
            let (what, answer) = match (method, path.as_str()) {
                (Method::GET, "/.well-known/openid-configuration") => (
                    "issuer",
                    ok(&json!({"issuer": ISSUER, "jwks_uri": "https://elsewhere.example/keys"})),
                ),
                (Method::GET, "/openid/v1/jwks") => {
                    let keys = server.keys.lock().unwrap().clone().unwrap_or_default();
                    ("keys", ok(&JwkSet { keys }))
                }
                (Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews") => {
                    let mut review: Value = serde_json::from_slice(&body).unwrap();
                    review["status"] =
                        serde_json::to_value(pod_token("pool-a", "u", AUDIENCE)).unwrap();
                    ("review", ok(&review))
                }
                other => panic!("unexpected {other:?}"),
            };
            server.asked.lock().unwrap().push(what);
            if what != "review" && server.keys.lock().unwrap().is_none() {
                return status(StatusCode::FORBIDDEN);
            }
            answer
        })
    }
}

fn pod() -> PodIdentity {
    PodIdentity {
        namespace: "ci".to_owned(),
        name: "pool-a".to_owned(),
        uid: "u".to_owned(),
        node: Some("node-a".to_owned()),
    }
}

async fn said(reviewer: &Reviewer, token: String) -> Result<PodIdentity, IdentityError> {
    reviewer.pod_of(&token.into()).await
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_published_key_needs_no_review() {
    // Given an API server that publishes two keys
    let (one, two) = (Signer::new("one"), Signer::new("two"));
    let server = ApiServer::default();
    server.publish(&[&one, &two]);
    let reviewer = Reviewer::new(server.client());
    // When pods show tokens, then the keys are read once
    assert_eq!(said(&reviewer, one.token(|_| {})).await, Ok(pod()));
    assert_eq!(said(&reviewer, two.token(|_| {})).await, Ok(pod()));
    assert_eq!(server.asked(), ["issuer", "keys"]);
    // And after an hour once more: a key may have been withdrawn
    server.publish(&[&two]);
    tokio::time::advance(Duration::from_mins(59)).await;
    assert_eq!(said(&reviewer, one.token(|_| {})).await, Ok(pod()));
    assert_eq!(server.asked(), [""; 0]);
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(said(&reviewer, one.token(|_| {})).await, Ok(pod()));
    assert_eq!(server.asked(), ["issuer", "keys", "review"]);
}

#[tokio::test]
async fn a_token_that_pretends_to_be_signed_or_is_not_good_is_refused_without_a_review() {
    let (good, false_one) = (Signer::new("one"), Signer::new("one"));
    let server = ApiServer::default();
    server.publish(&[&good]);
    let reviewer = Reviewer::new(server.client());
    for (token, why) in [
        (false_one.token(|_| {}), "InvalidSignature"),
        (
            good.token(|c| c["exp"] = json!(1_000_000)),
            "ExpiredSignature",
        ),
        (
            good.token(|c| c["nbf"] = json!(9_999_999_990_u64)),
            "ImmatureSignature",
        ),
        (
            good.token(|c| c["aud"] = json!("somebody")),
            "InvalidAudience",
        ),
        (
            good.token(|c| drop(c.as_object_mut().unwrap().remove("aud"))),
            "aud",
        ),
        (
            good.token(|c| drop(c.as_object_mut().unwrap().remove("exp"))),
            "exp",
        ),
        (
            good.token(|c| drop(c.as_object_mut().unwrap().remove("kubernetes.io"))),
            "bound to no pod",
        ),
        (
            good.token(|c| drop(c["kubernetes.io"].as_object_mut().unwrap().remove("pod"))),
            "bound to no pod",
        ),
    ] {
        let refused = said(&reviewer, token).await.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}, not {why}");
    }
    assert_eq!(server.asked(), ["issuer", "keys"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_keys_do_not_decide_is_asked_of_the_api_server() {
    // Given a token of another key, one of another issuer, and one that a secret would have signed
    let (known, new) = (Signer::new("known"), Signer::new("new"));
    let server = ApiServer::default();
    server.publish(&[&known]);
    let reviewer = Reviewer::new(server.client());
    let mut symmetric = Header::new(Algorithm::HS256);
    symmetric.kid = Some("known".to_owned());
    let secret = EncodingKey::from_secret(b"known");
    let symmetric = jsonwebtoken::encode(&symmetric, &json!({}), &secret).unwrap();
    let other = known.token(|c| c["iss"] = json!("https://former.example"));
    assert_eq!(said(&reviewer, other).await, Ok(pod()));
    assert_eq!(said(&reviewer, symmetric).await, Ok(pod()));
    assert_eq!(
        said(&reviewer, "no.token.at all".to_owned()).await,
        Ok(pod())
    );
    assert_eq!(
        server.asked(),
        ["issuer", "keys", "review", "review", "review"]
    );
    // Then a key that nobody knows has the keys read again, at most once a minute
    server.publish(&[&known, &new]);
    assert_eq!(said(&reviewer, new.token(|_| {})).await, Ok(pod()));
    assert_eq!(server.asked(), ["review"]);
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(said(&reviewer, new.token(|_| {})).await, Ok(pod()));
    assert_eq!(server.asked(), ["issuer", "keys"]);
}

#[tokio::test(start_paused = true)]
async fn where_the_keys_may_not_be_read_each_token_is_reviewed() {
    let signer = Signer::new("one");
    let server = ApiServer::default();
    let reviewer = Reviewer::new(server.client());
    assert_eq!(said(&reviewer, signer.token(|_| {})).await, Ok(pod()));
    assert_eq!(
        said(&reviewer, signer.token(|c| c["jti"] = json!("2"))).await,
        Ok(pod())
    );
    assert_eq!(server.asked(), ["issuer", "review", "review"]);
    // Once they may be read, they are used within a minute
    server.publish(&[&signer]);
    tokio::time::advance(Duration::from_mins(1)).await;
    assert_eq!(
        said(&reviewer, signer.token(|c| c["jti"] = json!("3"))).await,
        Ok(pod())
    );
    assert_eq!(server.asked(), ["issuer", "keys"]);
}
