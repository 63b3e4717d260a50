//! The keys that the cluster publishes for the tokens of its service accounts. With them a pod's token is judged here, and the
//! API server need not be asked about each.
//! See <https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery>.

use std::time::Duration;

use gate_report::wire::AUDIENCE;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::claims::{self, Claims};
use super::{IdentityError, PodIdentity};

/// Where every API server serves them, whatever the issuer's public address is. A key that is not used any more is
/// forgotten after [`GOOD_FOR`].
const KEYS: &str = "/openid/v1/jwks";
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// How long what was read is taken for true.
const GOOD_FOR: Duration = Duration::from_hours(1);
/// How soon it is read again for a token whose key is not among them, and after it could not be read: the keys may
/// have been changed a moment ago, and a token may name whatever it likes.
const AGAIN: Duration = Duration::from_mins(1);
/// How long a pod waits for them before its token is reviewed instead.
const PATIENCE: Duration = Duration::from_secs(5);
/// What an API server signs with: nothing symmetric, whose key would be a secret.
const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
];

/// The published keys, read when a token has to be judged.
pub(super) struct PublishedKeys {
    client: Client,
    last: Mutex<Option<LastRead>>,
}

struct LastRead {
    at: Instant,
    /// `None` where they could not be read.
    keys: Option<Keys>,
}

struct Keys {
    issuer: String,
    keys: JwkSet,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
}

impl PublishedKeys {
    /// Reads them through this client.
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            last: Mutex::default(),
        }
    }

    /// The pod that a token is bound to. `None` where the keys do not decide it: they may not be read, or the token names
    /// another key or issuer, which the API server may know all the same.
    ///
    /// # Errors
    ///
    /// If the token is signed by one of the keys, or pretends to be, and is not good.
    pub(super) async fn pod_of(&self, token: &str) -> Result<Option<PodIdentity>, IdentityError> {
        let Ok(header) = jsonwebtoken::decode_header(token) else {
            return Ok(None);
        };
        let Some(key) = header.kid.filter(|_| ALGORITHMS.contains(&header.alg)) else {
            return Ok(None);
        };
        let mut last = self.last.lock().await;
        let is_stale = last.as_ref().is_none_or(|last| {
            let age = last.at.elapsed();
            age >= GOOD_FOR || (!last.has(&key) && age >= AGAIN)
        });
        if is_stale {
            *last = Some(self.read().await);
        }
        let keys = last.as_ref().and_then(|last| last.keys.as_ref());
        keys.map_or(Ok(None), |keys| keys.judge(token, &key, header.alg))
    }

    async fn read(&self) -> LastRead {
        let read = async {
            let Discovery { issuer } = self.get(DISCOVERY).await?;
            let keys = self.get(KEYS).await?;
            Ok::<_, kube::Error>(Keys { issuer, keys })
        };
        let keys = match tokio::time::timeout(PATIENCE, read).await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(late) => Err(late.to_string()),
        };
        if let Err(error) = &keys {
            tracing::info!(
                error,
                "the keys of service accounts' tokens cannot be read; the API server is asked of each token instead"
            );
        }
        LastRead {
            at: Instant::now(),
            keys: keys.ok(),
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, kube::Error> {
        let request = http::Request::get(path).body(Vec::new());
        let request = request.map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

impl LastRead {
    fn has(&self, key: &str) -> bool {
        let keys = self.keys.as_ref();
        keys.is_some_and(|keys| keys.keys.find(key).is_some())
    }
}

impl Keys {
    fn judge(
        &self,
        token: &str,
        key: &str,
        algorithm: Algorithm,
    ) -> Result<Option<PodIdentity>, IdentityError> {
        let key = self.keys.find(key).map(DecodingKey::from_jwk);
        let Some(Ok(key)) = key else {
            return Ok(None);
        };
        let mut validation = Validation::new(algorithm);
        validation.validate_nbf = true;
        validation.leeway = claims::CLOCKS;
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        match jsonwebtoken::decode::<Claims>(token, &key, &validation) {
            Ok(token) => token.claims.pod().map(Some),
            // An API server may know several issuers, and tells the first alone.
            Err(error) if *error.kind() == ErrorKind::InvalidIssuer => Ok(None),
            Err(error) => Err(IdentityError::NotAccepted(error.to_string())),
        }
    }
}
