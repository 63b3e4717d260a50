//! The Secret of the authorities and of the tickets' key: all replicas of the operator have the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use secrecy::{ExposeSecret as _, SecretString};

use super::ca::{Authorities, Authority, CaError};
use super::tls::{self, Served, TlsError};
use super::{ServerNames, TicketKey};
use crate::insist::{insist, passes};
use cuda_runner_plan::model::runner::authorities;

/// Name of the Secret.
pub const SECRET: &str = "cuda-runner-registrar-ca";
/// How often the Secret is read again and the server's certificate renewed.
const UPKEEP: Duration = Duration::from_hours(1);
/// How soon upkeep that failed is tried again.
const AGAIN: Duration = Duration::from_mins(1);
/// Replicas that write at the same time get out of each other's way after so many attempts.
const ATTEMPTS: usize = 10;

/// The Secret's key for [`TicketKey`].
const TICKET_KEY: &str = "tickets.key";

/// Keeps the authorities and the tickets' key in a Secret, and serves a certificate of theirs.
pub struct CaStore {
    api: Api<Secret>,
    names: ServerNames,
    served: Arc<Served>,
    tls: Arc<rustls::ServerConfig>,
    now: Mutex<Now>,
}

/// What replicas share.
#[derive(Clone, Debug)]
struct Shared {
    authorities: Authorities,
    tickets: TicketKey,
}

/// What is known at the moment.
struct Now {
    shared: Shared,
    bundle: Arc<str>,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server refused or did not answer.
    #[error(
        "the Secret {SECRET}: {0}; may the operator create, get and update it in its namespace?"
    )]
    Kubernetes(#[source] kube::Error),
    /// The Secret holds something else.
    #[error(
        "the Secret {SECRET} is not as the operator wrote it ({0}); delete it to have a new authority made. Runners whose gate has not run yet are replaced then"
    )]
    Corrupt(String),
    /// Replicas got in each other's way for too long.
    #[error("the Secret {SECRET} was changed by somebody else {ATTEMPTS} times in a row")]
    Contended,
    /// A certificate cannot be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// There is no key for tickets.
    #[error("a key for tickets cannot be made: the system has no random numbers")]
    NoRandom,
    /// A certificate cannot be served.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl StoreError {
    fn passes(&self) -> bool {
        match self {
            Self::Kubernetes(error) => passes(error),
            Self::Contended => true,
            Self::Corrupt(_) | Self::Ca(_) | Self::NoRandom | Self::Tls(_) => false,
        }
    }
}

impl CaStore {
    /// Reads the authorities, or makes them, and issues the server's certificate.
    pub async fn open(
        client: kube::Client,
        namespace: &str,
        names: ServerNames,
    ) -> Result<Arc<Self>, StoreError> {
        let api = Api::namespaced(client, namespace);
        let now = Timestamp::now();
        let what = "the registrar's certificate authority";
        let shared = insist(what, StoreError::passes, || agree(&api, None, now)).await?;
        let (certificate, key) = shared.authorities.current.issue(&names, now)?;
        let served = Arc::new(Served::new(&certificate, &key)?);
        let tls = Arc::new(tls::config(Arc::clone(&served))?);
        let bundle = shared.authorities.bundle().into();
        let now = Mutex::new(Now { shared, bundle });
        Ok(Arc::new(Self {
            api,
            names,
            served,
            tls,
            now,
        }))
    }

    /// The certificates that pods have to trust, PEM.
    #[must_use]
    pub fn bundle(&self) -> Arc<str> {
        Arc::clone(&self.lock().bundle)
    }

    /// The authority that signs, as [`authorities`] has it.
    #[must_use]
    pub fn serving(&self) -> BTreeSet<u64> {
        authorities(&self.lock().shared.authorities.current.certificate)
    }

    /// The key of tickets.
    #[must_use]
    pub fn ticket_key(&self) -> TicketKey {
        self.lock().shared.tickets.clone()
    }

    /// For the server: its certificate follows every rotation and renewal.
    #[must_use]
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.tls)
    }

    /// Rotates and renews, permanently.
    pub async fn maintain(self: Arc<Self>) {
        let mut pause = UPKEEP;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.look_after(Timestamp::now()).await {
                Ok(()) => UPKEEP,
                Err(error) => {
                    tracing::warn!(%error, "the upkeep of the registrar's certificates failed and is tried again");
                    AGAIN
                }
            };
        }
    }

    /// Reads what other replicas have done, rotates what is due, and issues a fresh certificate.
    async fn look_after(&self, now: Timestamp) -> Result<(), StoreError> {
        let known = self.lock().shared.clone();
        let shared = agree(&self.api, Some(known), now).await?;
        let (certificate, key) = shared.authorities.current.issue(&self.names, now)?;
        self.served.renew(&certificate, &key)?;
        let bundle = shared.authorities.bundle().into();
        *self.lock() = Now { shared, bundle };
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Comes to what all replicas have: the authorities of the Secret, rotated where that is due, and its key of tickets. Where
/// there is no Secret, or no key in it, `known` is written, or a new one.
async fn agree(
    api: &Api<Secret>,
    known: Option<Shared>,
    now: Timestamp,
) -> Result<Shared, StoreError> {
    let new_key = || TicketKey::make().ok_or(StoreError::NoRandom);
    let key = || {
        known
            .as_ref()
            .map_or_else(new_key, |known| Ok(known.tickets.clone()))
    };
    for _ in 0..ATTEMPTS {
        let stored = api.get_opt(SECRET).await.map_err(StoreError::Kubernetes)?;
        let shared = if let Some(secret) = &stored {
            let (authorities, tickets) = read(secret)?;
            let rotated = authorities.rotate(now, Authority::make)?;
            let is_due = rotated.is_some() || tickets.is_none();
            let shared = Shared {
                authorities: rotated.unwrap_or(authorities),
                tickets: tickets.map_or_else(key, Ok)?,
            };
            if !is_due {
                return Ok(shared);
            }
            shared
        } else {
            let authorities = known.as_ref().map(|known| known.authorities.clone());
            Shared {
                authorities: authorities.map_or_else(|| Authorities::first(now), Ok)?,
                tickets: key()?,
            }
        };
        let version = stored
            .as_ref()
            .and_then(|s| s.metadata.resource_version.clone());
        let secret = write(&shared, version);
        let params = PostParams::default();
        let written = match stored {
            Some(_) => api.replace(SECRET, &params, &secret).await,
            None => api.create(&params, &secret).await,
        };
        match written {
            Ok(_) => {
                tracing::info!(
                    "the registrar's authorities and its key of tickets were written to the Secret {SECRET}"
                );
                return Ok(shared);
            }
            // Another replica was faster, or the Secret is gone: look again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => return Err(StoreError::Kubernetes(error)),
        }
    }
    Err(StoreError::Contended)
}

fn write(shared: &Shared, resource_version: Option<String>) -> Secret {
    let authorities = &shared.authorities;
    let mut data = BTreeMap::new();
    let mut put =
        |name: &str, text: &str| data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
    put(TICKET_KEY, shared.tickets.text().expose_secret());
    put("current.crt", &authorities.current.certificate);
    put("current.key", authorities.current.key.expose_secret());
    if let Some(next) = &authorities.next {
        put("next.crt", &next.certificate);
        put("next.key", next.key.expose_secret());
    }
    if let Some(previous) = &authorities.previous {
        put("previous.crt", previous);
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            resource_version,
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    }
}

/// A Secret of an older version has no key of tickets.
fn read(secret: &Secret) -> Result<(Authorities, Option<TicketKey>), StoreError> {
    let text = |key: &str| -> Result<Option<String>, StoreError> {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let text = bytes.map(|bytes| String::from_utf8(bytes.0.clone()));
        text.transpose()
            .map_err(|_| StoreError::Corrupt(format!("{key} is no text")))
    };
    let authority = |name: &str| -> Result<Option<Authority>, StoreError> {
        let (certificate, key) = (text(&format!("{name}.crt"))?, text(&format!("{name}.key"))?);
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return Ok(None);
        };
        let read = Authority::read(certificate, SecretString::from(key));
        read.map(Some)
            .map_err(|error| StoreError::Corrupt(format!("{name}: {error}")))
    };
    let current = authority("current")?
        .ok_or_else(|| StoreError::Corrupt("current.crt or current.key is missing".to_owned()))?;
    let tickets = text(TICKET_KEY)?.map(|key| {
        let corrupt = || StoreError::Corrupt(format!("{TICKET_KEY} is no key"));
        TicketKey::read(SecretString::from(key)).ok_or_else(corrupt)
    });
    let authorities = Authorities {
        current,
        next: authority("next")?,
        previous: text("previous.crt")?,
    };
    Ok((authorities, tickets.transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::tests::kubernetes::Secrets;

    const NAMES: fn() -> ServerNames = || ServerNames {
        dns: vec![],
        ips: vec![[127, 0, 0, 1].into()],
    };

    #[tokio::test]
    async fn two_replicas_that_start_together_have_the_same_authority() {
        // Given an API server on which both find no Secret before either creates it
        let secrets = Secrets::default();
        secrets.hide_from_first(2);
        // When both start
        let (one, other) = tokio::join!(
            CaStore::open(secrets.client(), "system", NAMES()),
            CaStore::open(secrets.client(), "system", NAMES()),
        );
        // Then one has made it and the other has taken it over
        assert_eq!(one.unwrap().bundle(), other.unwrap().bundle());
        assert_eq!(secrets.refused(), 1, "there was no race");
    }

    #[tokio::test]
    async fn a_restarted_operator_goes_on_with_what_is_there() {
        let secrets = Secrets::default();
        let first = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .unwrap()
            .bundle();
        assert_eq!(
            CaStore::open(secrets.client(), "system", NAMES())
                .await
                .unwrap()
                .bundle(),
            first
        );
    }

    /// What every replica must have alike.
    fn key(store: &CaStore) -> String {
        store.ticket_key().text().expose_secret().to_owned()
    }

    #[tokio::test]
    async fn the_key_of_tickets_is_shared_and_outlives_a_restart_and_the_secret() {
        let secrets = Secrets::default();
        secrets.hide_from_first(2);
        let open = || CaStore::open(secrets.client(), "system", NAMES());
        // Given two replicas that start together, and one that starts later: one key
        let (one, other) = tokio::join!(open(), open());
        let (one, other) = (one.unwrap(), other.unwrap());
        let first = key(&one);
        assert_eq!(key(&other), first);
        assert_eq!(key(&open().await.unwrap()), first);
        // When the Secret is gone, then it is written again, with the same
        secrets.clear();
        one.look_after(Timestamp::now()).await.unwrap();
        assert_eq!(key(&open().await.unwrap()), first);
    }

    #[tokio::test]
    async fn a_secret_of_an_older_version_gets_a_key_and_keeps_its_authority() {
        // Given a Secret without a key, as an older operator wrote it, or writes it beside this one
        let secrets = Secrets::default();
        let before = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .unwrap();
        let had = key(&before);
        secrets.take_out(TICKET_KEY);
        let store = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .unwrap();
        assert_eq!(store.bundle(), before.bundle());
        assert_ne!(key(&store), had);
        // Then every replica has the new one, and puts it back when it is taken out
        before.look_after(Timestamp::now()).await.unwrap();
        assert_eq!(key(&before), key(&store));
        secrets.take_out(TICKET_KEY);
        before.look_after(Timestamp::now()).await.unwrap();
        assert_eq!(key(&before), key(&store));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_in_trouble_does_not_end_the_start() {
        // Given one that fails at the look, or at the creation, or again and again
        for failures in [
            vec![(0, 500)],
            vec![(1, 500)],
            vec![(0, 503), (1, 429), (3, 500)],
        ] {
            let secrets = Secrets::default();
            secrets.fail(&failures);
            // Then there is an authority all the same
            let store = CaStore::open(secrets.client(), "system", NAMES()).await;
            assert!(store.is_ok(), "{failures:?}: {:?}", store.err());
        }
        // But a right that is missing is reported at once
        let secrets = Secrets::default();
        secrets.fail(&[(0, 403)]);
        let error = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .err();
        assert!(
            matches!(error, Some(StoreError::Kubernetes(_))),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn a_rotation_by_one_replica_reaches_the_other() {
        let secrets = Secrets::default();
        let one = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .unwrap();
        let other = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .unwrap();
        let before = one.bundle();
        // When a successor is due
        let later =
            Timestamp::now() + crate::registrar::ca::LIFE - crate::registrar::ca::SUCCESSION;
        one.look_after(later).await.unwrap();
        other.look_after(later).await.unwrap();
        // Then both have both certificates
        assert!(one.bundle().starts_with(&*before) && one.bundle().len() > before.len());
        assert_eq!(one.bundle(), other.bundle());
    }

    #[tokio::test]
    async fn a_deleted_secret_is_written_again_from_memory() {
        let secrets = Secrets::default();
        let store = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .unwrap();
        let before = store.bundle();
        secrets.clear();
        store.look_after(Timestamp::now()).await.unwrap();
        assert_eq!(store.bundle(), before);
        assert_eq!(
            CaStore::open(secrets.client(), "system", NAMES())
                .await
                .unwrap()
                .bundle(),
            before
        );
    }

    #[tokio::test]
    async fn a_secret_that_is_not_ours_is_not_overwritten() {
        let secrets = Secrets::default();
        secrets.put(Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        });
        let error = CaStore::open(secrets.client(), "system", NAMES())
            .await
            .err()
            .unwrap();
        assert!(
            matches!(error, StoreError::Corrupt(_)) && error.to_string().contains("delete it"),
            "{error}"
        );
    }
}
