//! Installation tokens of a GitHub App.
//!
//! An App signs a JWT with its key, and trades it for a token of one of its installations:
//! <https://docs.github.com/en/rest/apps/apps?apiVersion=2022-11-28#create-an-installation-access-token-for-an-app>.
//! The token may do what the App was granted, lives for an hour, and is never written anywhere.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use octocrab::Octocrab;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Error,
    app::App,
    ask::{Answer, Ask},
    barred::barred,
    single::Single,
};

/// A token is renewed so long before it expires.
const MARGIN: SignedDuration = SignedDuration::from_secs(5 * 60);
/// A younger token that is refused is not replaced: GitHub's own copies lag, and another one would be as young.
const YOUNG: Duration = Duration::from_secs(30);

/// More permissions GitHub does not have.
const MOST_PERMISSIONS: usize = 500;

/// The tokens of one installation, one at a time.
pub(super) struct Tokens {
    pub(super) app: App,
    /// The installation, where the credentials name none and it was found.
    found: Mutex<Option<u64>>,
    single: Single<Minted>,
}

/// A token, ready to sign with.
#[derive(Clone)]
pub(super) struct Minted {
    pub(super) octocrab: Octocrab,
    /// What the App was granted, such as `administration: write`.
    pub(super) permissions: Arc<BTreeMap<String, String>>,
    expires_at: Timestamp,
    pub(super) at: Instant,
}

#[derive(Deserialize)]
struct Wire {
    token: String,
    expires_at: Timestamp,
    #[serde(default)]
    permissions: Option<BTreeMap<String, String>>,
}

impl Minted {
    /// Whether the next one would be no better where this one is refused.
    pub(super) fn is_young(&self) -> bool {
        self.at.elapsed() < YOUNG
    }
}

impl Tokens {
    pub(super) fn new(app: App) -> Self {
        Self {
            app,
            found: Mutex::default(),
            single: Single::default(),
        }
    }

    /// The token at hand, or a new one where it is about to expire. However many ask, one is minted: only then `mint` is
    /// carried out.
    pub(super) async fn current(
        &self,
        mint: Pin<&mut impl Future<Output = Result<Minted, Error>>>,
    ) -> Result<Minted, Error> {
        let now = Timestamp::now();
        self.single
            .get(|minted| now + MARGIN < minted.value.expires_at, |_| mint)
            .await
    }

    /// The App's installation, where it is known.
    pub(super) fn installation(&self) -> Option<u64> {
        self.app.installation.or(*self.found())
    }

    /// Keeps the installation that was found.
    pub(super) fn keep(&self, installation: u64) {
        *self.found() = Some(installation);
    }

    fn found(&self) -> MutexGuard<'_, Option<u64>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signs as the App itself, over the same connections.
    pub(super) fn as_app(&self, unsigned: &Octocrab) -> Result<Octocrab, Error> {
        let signed = self.app.jwt(Timestamp::now()).ok();
        let signed = signed.and_then(|jwt| unsigned.user_access_token(jwt).ok());
        signed.ok_or_else(|| Error::Unauthorized {
            message: "the App's key does not sign".into(),
            advice: "replace private-key in the Secret of spec.github.credentialsRef".into(),
        })
    }

    /// The request for a token.
    pub(super) fn ask(&self, installation: u64) -> Ask {
        Ask::write(
            Method::POST,
            format!("/app/installations/{installation}/access_tokens"),
            format!(
                "mint a token for installation {installation} of App {}",
                self.app.issuer
            ),
        )
    }

    /// Forgets a token that was refused.
    pub(super) async fn discard(&self, refused: &Minted) {
        // Somebody else may have replaced it already.
        self.single.forget(|last| last.at == refused.at).await;
    }

    /// Reads the token from the answer to [`Tokens::ask`], which was put at `at`.
    pub(super) fn read(
        &self,
        unsigned: &Octocrab,
        answer: &Answer,
        ask: &Ask,
        at: Instant,
    ) -> Result<Minted, Error> {
        if answer.status != StatusCode::CREATED {
            return Err(self.refusal(answer, ask));
        }
        let wire: Wire = answer.of_tokens(&ask.action)?.json(ask)?;
        let permissions = wire.permissions.unwrap_or_default().into_iter();
        // The same connections, signing with another token.
        let signed = unsigned.user_access_token(wire.token);
        Ok(Minted {
            octocrab: signed.map_err(|_| Error::Malformed {
                action: "mint an installation token".into(),
                message: "the token cannot be used".into(),
            })?,
            permissions: Arc::new(permissions.take(MOST_PERMISSIONS).collect()),
            expires_at: wire.expires_at,
            at,
        })
    }

    /// Why the App itself is not accepted.
    pub(super) fn unauthorized(&self, answer: &Answer) -> Error {
        let message = answer.message();
        Error::Unauthorized {
            advice: if message.contains("'Expiration time'") || message.contains("'Issued at'") {
                "set the clock of the operator's node".into()
            } else {
                format!(
                    "check that private-key is a key of App {}, and that this key was not deleted",
                    self.app.issuer
                )
            },
            message,
        }
    }

    fn refusal(&self, answer: &Answer, ask: &Ask) -> Error {
        let message = answer.message();
        match answer.status {
            StatusCode::UNAUTHORIZED => self.unauthorized(answer),
            StatusCode::NOT_FOUND => {
                let installation = self.installation().unwrap_or_default();
                // It may have been installed anew, under another number.
                *self.found() = None;
                Error::NotFound {
                    what: format!("installation {installation} of App {}", self.app.issuer),
                    message,
                    advice: "check installation-id and app-id in the Secret, and that the App is still installed".into(),
                }
            }
            StatusCode::FORBIDDEN => Error::Forbidden {
                action: ask.action.clone(),
                advice: barred(answer).unwrap_or(
                    "grant access again: the installation may be suspended, see the App's installation page",
                ).into(),
                message,
            },
            _ => Error::Validation {
                action: ask.action.clone(),
                message,
            },
        }
    }
}
