//! The two parts of an API server that the registrar uses: one Secret, and reviews of tokens.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gate_report::wire::AUDIENCE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::client::Body;
use serde_json::json;

/// A namespace with at most one Secret, and optimistic locking as the real one has it.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    secret: Option<Secret>,
    version: u64,
    hidden: usize,
    refused: usize,
    asked: usize,
    failing: BTreeMap<usize, u16>,
}

impl Secrets {
    pub(crate) fn client(&self) -> Client {
        let this = self.clone();
        client(move |method, _, body| this.answer(&method, &body))
    }

    /// The first so many looks find nothing, whatever there is.
    pub(crate) fn hide_from_first(&self, looks: usize) {
        self.lock().hidden = looks;
    }

    /// Writes that came too late.
    pub(crate) fn refused(&self) -> usize {
        self.lock().refused
    }

    /// These requests, counted from 0, are answered with these codes.
    pub(crate) fn fail(&self, failures: &[(usize, u16)]) {
        self.lock().failing.extend(failures.iter().copied());
    }

    pub(crate) fn clear(&self) {
        self.lock().secret = None;
    }

    /// Somebody takes a key out of the Secret.
    pub(crate) fn take_out(&self, key: &str) {
        let mut kept = self.lock();
        kept.version += 1;
        let version = kept.version.to_string();
        let secret = kept.secret.as_mut().unwrap();
        secret.data.as_mut().unwrap().remove(key).unwrap();
        secret.metadata.resource_version = Some(version);
    }

    pub(crate) fn put(&self, secret: Secret) {
        self.lock().secret = Some(secret);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }

    fn answer(&self, method: &Method, body: &[u8]) -> Response<Body> {
        let mut kept = self.lock();
        let number = kept.asked;
        kept.asked += 1;
        if let Some(code) = kept.failing.get(&number) {
            return status(StatusCode::from_u16(*code).unwrap());
        }
        if *method == Method::GET {
            if kept.hidden > 0 {
                kept.hidden -= 1;
                return status(StatusCode::NOT_FOUND);
            }
            return kept
                .secret
                .as_ref()
                .map_or_else(|| status(StatusCode::NOT_FOUND), ok);
        }
        let mut new: Secret = serde_json::from_slice(body).unwrap();
        let known = kept
            .secret
            .as_ref()
            .map(|secret| secret.metadata.resource_version.clone());
        let good = match *method {
            Method::POST => known.is_none(),
            Method::PUT => known.is_some_and(|version| version == new.metadata.resource_version),
            _ => panic!("unexpected {method}"),
        };
        if !good {
            kept.refused += 1;
            return status(StatusCode::CONFLICT);
        }
        kept.version += 1;
        new.metadata.resource_version = Some(kept.version.to_string());
        let answer = ok(&new);
        kept.secret = Some(new);
        answer
    }
}

/// Reviews tokens by their last part, and counts.
pub(super) fn reviews(tokens: &[(&str, TokenReviewStatus)]) -> (Client, Arc<AtomicUsize>) {
    let tokens: BTreeMap<String, TokenReviewStatus> = tokens
        .iter()
        .map(|(token, status)| ((*token).to_owned(), status.clone()))
        .collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let client = client(move |method, path, body| {
        assert_eq!(
            (method, path.as_str()),
            (Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews")
        );
        count.fetch_add(1, Ordering::SeqCst);
        let mut review: TokenReview = serde_json::from_slice(&body).unwrap();
        let signature = review.spec.token.rsplit('.').next().unwrap();
        if signature == "outage" {
            return status(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let unknown = TokenReviewStatus {
            error: Some("unknown\n\u{1b}[2J".to_owned() + &"x".repeat(100_000)),
            ..TokenReviewStatus::default()
        };
        review.status = Some(tokens.get(signature).cloned().unwrap_or(unknown));
        ok(&review)
    });
    (client, asked)
}

/// A token as a pod has it, which the reviews know by `name`.
pub(super) fn token(name: &str, pod: &str, uid: &str) -> String {
    token_with(
        name,
        &json!({
            "aud": [AUDIENCE], "exp": 9_999_999_999_u64,
            "kubernetes.io": {"namespace": "ci", "pod": {"name": pod, "uid": uid}},
        }),
    )
}

/// A token with these claims.
pub(super) fn token_with(name: &str, claims: &serde_json::Value) -> String {
    format!("e30.{}.{name}", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// What the API server says of a pod's token.
pub(super) fn pod_token(pod: &str, uid: &str, audience: &str) -> TokenReviewStatus {
    let extra =
        [("pod-name", pod), ("pod-uid", uid), ("node-name", "node-a")].map(|(key, value)| {
            (
                format!("authentication.kubernetes.io/{key}"),
                vec![value.to_owned()],
            )
        });
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![audience.to_owned()]),
        user: Some(UserInfo {
            username: Some("system:serviceaccount:ci:default".to_owned()),
            extra: Some(extra.into()),
            ..UserInfo::default()
        }),
        error: None,
    }
}

pub(super) fn client(
    answer: impl Fn(Method, String, Vec<u8>) -> Response<Body> + Clone + Send + Sync + 'static,
) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes().to_vec();
            // Another task may come in between a look and a write, as on a network.
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(answer(parts.method, parts.uri.path().to_owned(), body))
        }
    });
    Client::new(service, "default")
}

pub(super) fn ok<T: serde::Serialize>(object: &T) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(object).unwrap()))
}

pub(super) fn status(code: StatusCode) -> Response<Body> {
    let reason = code.canonical_reason().unwrap().replace(' ', "");
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": reason, "code": code.as_u16()});
    let mut response = Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() = code;
    response
}
