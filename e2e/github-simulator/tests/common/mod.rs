//! A simulator on a port of its own, and a small REST client.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "a part of tests, of which each uses its own"
)]

use std::ops::Deref;

use github_simulator::{
    control::{NewApp, NewCredential, PublishedApp},
    testing,
};
use http::{HeaderMap, Method};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// The repository of the fixtures.
pub(crate) const REPO: &str = "/repos/craton-co/craton-tensor-wasm";

/// A running simulator, with a client of the REST API; it ends with the test.
pub(crate) struct Simulator(testing::Simulator);

impl Deref for Simulator {
    type Target = testing::Simulator;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

impl Simulator {
    pub(crate) async fn start() -> Self {
        Self(testing::Simulator::start().await.unwrap())
    }

    /// One request, with a credential or without.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<Value>,
    ) -> Reply {
        self.send_with(method, path, token, body, &[]).await
    }

    pub(crate) async fn send_with(
        &self,
        method: &str,
        path: &str,
        token: &str,
        body: Option<Value>,
        more: &[(&str, &str)],
    ) -> Reply {
        let authorization = format!("Bearer {token}");
        let mut headers = vec![("user-agent", "test")];
        if !token.is_empty() {
            headers.push(("authorization", authorization.as_str()));
        }
        headers.extend_from_slice(more);
        let method: Method = method.parse().unwrap();
        let (status, headers, bytes) = self
            .control
            .send(method, path, &headers, body.as_ref())
            .await
            .unwrap();
        Reply {
            status: status.as_u16(),
            headers,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// A classic token of an administrator of everything.
    pub(crate) async fn admin(&self) -> String {
        let scopes = ["repo", "admin:org", "manage_runners:enterprise"].map(str::to_owned);
        let new = NewCredential {
            name: "admin".to_owned(),
            scopes: Some(scopes.into()),
            admin: true,
            ..NewCredential::default()
        };
        self.control.create_token(&new).await.unwrap()
    }

    /// An App that is installed on `craton-co`.
    pub(crate) async fn app(&self) -> PublishedApp {
        let new = NewApp {
            slug: "cuda-runner".to_owned(),
            owner: "craton-co".to_owned(),
            install_on: "craton-co".to_owned(),
            ..NewApp::default()
        };
        self.control.create_app(&new).await.unwrap()
    }

    /// No request and no answer broke GitHub's description.
    pub(crate) async fn assert_clean(&self) {
        let violations = self.control.violations().await.unwrap();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// The JWT of an App, issued so many seconds ago and good for so many.
pub(crate) fn jwt(app: &PublishedApp, issued_ago: i64, lasts: i64) -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iat": now - issued_ago, "exp": now + lasts, "iss": app.id.to_string()});
    let key = EncodingKey::from_rsa_pem(app.private_key.as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &key).unwrap()
}
