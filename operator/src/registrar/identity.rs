//! Which pod is asking.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate_report::wire::AUDIENCE;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::Api;
use kube::api::PostParams;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::Instant;

use super::keys::PublishedKeys;
use super::ledger::Digest;

/// A gate that has to ask again is not reviewed again for this long. Whether its pod is still there, the stores say.
const KNOWN: Duration = Duration::from_mins(1);
/// So many reviews are kept: those of a thousand runners that start at once.
const MOST_KNOWN: usize = 1024;

/// A pod, as a token vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodIdentity {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// Node of the pod, where the API server says so (Kubernetes 1.30 and later).
    pub node: Option<String>,
}

/// Why it is not known which pod is asking.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The token is good for nothing here.
    #[error("the token is not accepted: {0}")]
    NotAccepted(String),
    /// The token is somebody's, and not a pod's.
    #[error("the token of {0} is bound to no pod")]
    NoPod(String),
    /// The API server did not say.
    #[error("the API server could not be asked whose token it is: {0}")]
    Unavailable(String),
}

/// Tells whose token it is: by the keys that the cluster publishes, and where these do not decide it, by a `TokenReview`.
/// See <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>.
#[derive(Clone)]
pub struct Reviewer {
    keys: Arc<PublishedKeys>,
    api: Api<TokenReview>,
    known: Arc<Mutex<VecDeque<Known>>>,
}

/// What was found a moment ago. Of the token only its digest is kept.
struct Known {
    token: Digest,
    pod: PodIdentity,
    at: Instant,
}

impl Reviewer {
    /// Asks through this client.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        Self {
            keys: Arc::new(PublishedKeys::new(client.clone())),
            api: Api::all(client),
            known: Arc::default(),
        }
    }

    /// The pod that a token is bound to, where this was found a moment ago.
    pub(super) fn known(&self, token: &SecretString) -> Option<PodIdentity> {
        let token = Digest::of(token.expose_secret().as_bytes());
        let mut known = self.lock();
        while known.front().is_some_and(|k| k.at.elapsed() >= KNOWN) {
            known.pop_front();
        }
        let found = known.iter().find(|known| known.token == token);
        found.map(|known| known.pod.clone())
    }

    /// The pod that a token is bound to. Whether it is still there, the stores say.
    pub async fn pod_of(&self, token: &SecretString) -> Result<PodIdentity, IdentityError> {
        let pod = match self.keys.pod_of(token.expose_secret()).await? {
            Some(pod) => pod,
            None => self.review(token).await?,
        };
        let mut known = self.lock();
        if known.len() >= MOST_KNOWN {
            known.pop_front();
        }
        known.push_back(Known {
            token: Digest::of(token.expose_secret().as_bytes()),
            pod: pod.clone(),
            at: Instant::now(),
        });
        Ok(pod)
    }

    async fn review(&self, token: &SecretString) -> Result<PodIdentity, IdentityError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.expose_secret().to_owned(),
                audiences: Some(vec![AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let answer = self.api.create(&PostParams::default(), &review).await;
        // The request holds the token; what kube says of a failure does not.
        let status = answer
            .map_err(|error| IdentityError::Unavailable(error.to_string()))?
            .status
            .ok_or_else(|| IdentityError::Unavailable("it answered without a status".to_owned()))?;
        if status.authenticated != Some(true) {
            return Err(IdentityError::NotAccepted(
                status
                    .error
                    .unwrap_or_else(|| "no reason is given".to_owned()),
            ));
        }
        // A server that does not know audiences would accept any token of the cluster.
        if !status
            .audiences
            .iter()
            .flatten()
            .any(|audience| audience == AUDIENCE)
        {
            return Err(IdentityError::NotAccepted(format!(
                "it is not for the audience {AUDIENCE}"
            )));
        }
        pod_of(&status.user.unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Service-account tokens name their pod in the user's extra fields.
/// See <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#schema-for-service-account-private-claims>.
fn pod_of(user: &UserInfo) -> Result<PodIdentity, IdentityError> {
    let extra = |key: &str| {
        let values = user
            .extra
            .as_ref()?
            .get(&format!("authentication.kubernetes.io/{key}"))?;
        values.first().cloned()
    };
    let username = user.username.as_deref().unwrap_or("nobody");
    let namespace = username
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, _)| namespace.to_owned());
    match (namespace, extra("pod-name"), extra("pod-uid")) {
        (Some(namespace), Some(name), Some(uid)) => Ok(PodIdentity {
            namespace,
            name,
            uid,
            node: extra("node-name"),
        }),
        _ => Err(IdentityError::NoPod(username.to_owned())),
    }
}
