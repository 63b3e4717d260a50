//! A GitHub App: how it signs, and which of its installations it works as.

use std::fmt;

use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, errors};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    Error, Scope,
    ask::{Answer, Ask},
};
use cuda_runner_plan::model::url::encode;

/// How far in the past a JWT is issued, for servers whose clocks are behind: the advice at
/// <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>.
const BACKDATED: i64 = 60;
/// Seconds from now to a JWT's end. GitHub takes none that ends later than in ten minutes.
const LIFETIME: i64 = 9 * 60;

/// What an App signs with. It has no `Debug`.
#[derive(Clone)]
pub(super) struct App {
    pub(super) issuer: Issuer,
    pub(super) key: EncodingKey,
    /// `None` where GitHub is asked for it.
    pub(super) installation: Option<u64>,
}

/// Who a JWT is from: GitHub takes the App's number and its client id.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Issuer {
    Number(u64),
    ClientId(String),
}

impl Issuer {
    /// A number, or a client id as GitHub makes them: `Iv1.` and hexadecimal digits, or `Iv23` and letters and digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Some(Self::Number(number));
        }
        let is_known = |c: char| c.is_ascii_alphanumeric() || c == '.';
        let is_client_id = text.starts_with("Iv") && (10..=64).contains(&text.len());
        (is_client_id && text.chars().all(is_known)).then(|| Self::ClientId(text.to_owned()))
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::ClientId(id) => id.fmt(f),
        }
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a Issuer,
    iat: i64,
    exp: i64,
}

impl App {
    /// A JWT that says who asks.
    pub(super) fn jwt(&self, now: Timestamp) -> Result<SecretString, errors::Error> {
        let now = now.as_second();
        let claims = Claims {
            iss: &self.issuer,
            iat: now.saturating_sub(BACKDATED),
            exp: now.saturating_add(LIFETIME),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key).map(Into::into)
    }

    /// The requests that find the App's installation at an address, the next where one finds none. An account has one
    /// installation of an App at most, so whichever finds one finds the same for all of the account's addresses:
    /// <https://docs.github.com/en/rest/apps/apps?apiVersion=2022-11-28#get-a-repository-installation-for-the-authenticated-app>.
    pub(super) fn lookups(&self, scope: &Scope) -> Vec<Ask> {
        let ask = |path: String| {
            Ask::get(
                format!("{path}/installation"),
                format!("find the installation of App {} at {scope}", self.issuer),
            )
        };
        match scope {
            // The App may not be installed on this repository, and on others of its owner.
            Scope::Repository { owner, name } => vec![
                ask(format!("/repos/{}/{}", encode(owner), encode(name))),
                ask(format!("/orgs/{}", encode(owner))),
                ask(format!("/users/{}", encode(owner))),
            ],
            Scope::Organization { name } => vec![ask(format!("/orgs/{}", encode(name)))],
            Scope::Enterprise { .. } => vec![],
        }
    }

    /// Why no installation was found.
    pub(super) fn nowhere(&self, scope: &Scope) -> Error {
        if matches!(scope, Scope::Enterprise { .. }) {
            return Error::Forbidden {
                action: format!("manage the runners of {scope}"),
                advice: scope.grant(),
                message: "a GitHub App cannot manage the runners of an enterprise".into(),
            };
        }
        Error::NotFound {
            what: format!("an installation of App {} at {scope}", self.issuer),
            message: "Not Found".into(),
            advice: "install the App there, or check app-id in the Secret and spec.github.url"
                .into(),
        }
    }
}

#[derive(Deserialize)]
struct Found {
    id: u64,
}

/// The installation's number.
pub(super) fn found(answer: &Answer, ask: &Ask) -> Result<u64, Error> {
    answer.json::<Found>(ask).map(|found| found.id)
}

/// Whose installation it is that serves an address, where the Secret names none.
pub(super) fn account(scope: &Scope) -> String {
    match scope {
        Scope::Repository { owner: name, .. } | Scope::Organization { name } => name.to_lowercase(),
        Scope::Enterprise { slug } => format!("enterprises/{}", slug.to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_client_id_are_issuers_and_a_name_is_none() {
        assert_eq!(Issuer::parse("12"), Some(Issuer::Number(12)));
        for id in ["Iv23liAbCdEfGh012345", "Iv1.0123456789abcdef"] {
            assert_eq!(Issuer::parse(id), Some(Issuer::ClientId(id.to_owned())));
        }
        for none in [
            "",
            "my-app",
            "Iv23",
            "Iv23li AbCdEfGh01",
            "-1",
            "Ov23liAbCdEfGh012345",
        ] {
            assert_eq!(Issuer::parse(none), None, "{none}");
        }
    }
}
