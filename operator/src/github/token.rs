//! Installation tokens of a GitHub App.
//!
//! An App signs a JWT with its key, and trades it for a token of one of its installations:
//! <https://docs.github.com/en/rest/apps/apps?apiVersion=2022-11-28#create-an-installation-access-token-for-an-app>.
//! The token may do what the App was granted, lives for an hour, and is never written anywhere.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};
use octocrab::Octocrab;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Error,
    ask::{Answer, Ask},
    barred::barred,
    single::Single,
};

/// A token is renewed so long before it expires.
const MARGIN: SignedDuration = SignedDuration::from_secs(5 * 60);
/// A younger token that is refused is not replaced: GitHub's own copies lag, and another one would be as young.
const YOUNG: Duration = Duration::from_secs(30);

/// The tokens of one installation, one at a time.
pub(super) struct Tokens {
    app: u64,
    installation: u64,
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

impl Tokens {
    pub(super) fn new(app: u64, installation: u64) -> Self {
        Self {
            app,
            installation,
            single: Single::default(),
        }
    }

    /// The token at hand, or a new one where it is about to expire. However many ask, one is minted: only then `app`, who
    /// signs as the App, has `ask` answered.
    pub(super) async fn current(
        &self,
        app: &Octocrab,
        ask: &Ask,
        answer: Pin<&mut impl Future<Output = Result<Answer, Error>>>,
    ) -> Result<Minted, Error> {
        let now = Timestamp::now();
        self.single
            .get(
                |minted| now + MARGIN < minted.value.expires_at,
                |_| self.mint(app, ask, answer),
            )
            .await
    }

    /// The request for a token.
    pub(super) fn ask(&self) -> Ask {
        Ask::write(
            Method::POST,
            format!("/app/installations/{}/access_tokens", self.installation),
            format!(
                "mint a token for installation {} of App {}",
                self.installation, self.app
            ),
        )
    }

    /// Forgets a token that was refused. False where the next one would be no better.
    pub(super) async fn discard(&self, refused: &Minted) -> bool {
        if refused.at.elapsed() < YOUNG {
            return false;
        }
        // Somebody else may have replaced it already.
        self.single.forget(|last| last.at == refused.at).await;
        true
    }

    async fn mint(
        &self,
        app: &Octocrab,
        ask: &Ask,
        answer: Pin<&mut impl Future<Output = Result<Answer, Error>>>,
    ) -> Result<Minted, Error> {
        let at = Instant::now();
        let answer = answer.await?;
        if answer.status != StatusCode::CREATED {
            return Err(self.refusal(&answer, ask));
        }
        let wire: Wire = answer.json(ask)?;
        // The same connections, signing with another token.
        let signed = app.user_access_token(wire.token);
        Ok(Minted {
            octocrab: signed.map_err(|_| Error::Malformed {
                action: "mint an installation token".into(),
                message: "the token cannot be used".into(),
            })?,
            permissions: Arc::new(wire.permissions.unwrap_or_default()),
            expires_at: wire.expires_at,
            at,
        })
    }

    fn refusal(&self, answer: &Answer, ask: &Ask) -> Error {
        let Self {
            app, installation, ..
        } = self;
        let message = answer.message();
        match answer.status {
            StatusCode::UNAUTHORIZED => Error::Unauthorized {
                advice: if message.contains("'Expiration time'") || message.contains("'Issued at'") {
                    "set the clock of the operator's node".into()
                } else {
                    format!("check that private-key is a key of App {app}, and that this key was not deleted")
                },
                message,
            },
            StatusCode::NOT_FOUND => Error::NotFound {
                what: format!("installation {installation} of App {app}"),
                message,
                advice: "check installation-id and app-id in the Secret, and that the App is still installed".into(),
            },
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
