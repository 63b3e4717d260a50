//! Credentials from a Secret: a GitHub App, or a token.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::digest;
use octocrab::{auth, auth::AppAuth, models::AppId};
use secrecy::SecretString;

/// Key of the App's number in the Secret.
pub const APP_ID: &str = "app-id";
/// Key of the installation's number in the Secret.
pub const INSTALLATION_ID: &str = "installation-id";
/// Key of the App's private key, PEM, in the Secret.
pub const PRIVATE_KEY: &str = "private-key";
/// Key of a token in the Secret.
pub const TOKEN: &str = "token";

/// How the operator shows GitHub who it is. `Debug` shows no secret.
#[derive(Clone)]
pub struct Credentials {
    kind: Kind,
    fingerprint: Fingerprint,
}

#[derive(Clone)]
pub(super) enum Kind {
    App { app: AppAuth, installation: u64 },
    Token(SecretString),
}

/// Identifies credentials without revealing them: equal where, and only where, the credentials are equal.
///
/// A rotated Secret has another fingerprint, so it gets a client of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// What is wrong with the Secret's data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Neither an App nor a token is there.
    #[error(
        "the Secret has none of the keys {APP_ID}, {INSTALLATION_ID}, {PRIVATE_KEY} (a GitHub App) or {TOKEN} (a token); it has {found}"
    )]
    Empty {
        /// The keys that it does have.
        found: String,
    },
    /// Both are there.
    #[error(
        "the Secret has both {TOKEN} and {app_keys}; remove one, so that it is clear which credentials are meant"
    )]
    Both {
        /// The App's keys that it has.
        app_keys: String,
    },
    /// A part of the App is missing.
    #[error(
        "the Secret has {present} but no {missing}; a GitHub App needs {APP_ID}, {INSTALLATION_ID} and {PRIVATE_KEY}"
    )]
    Missing {
        /// Keys that are there.
        present: String,
        /// Keys that are not.
        missing: String,
    },
    /// A value is empty.
    #[error("the Secret's key {key} is empty")]
    Blank {
        /// Which.
        key: &'static str,
    },
    /// A number is none.
    #[error("the Secret's key {key} is no number; {hint}")]
    Number {
        /// Which.
        key: &'static str,
        /// Where to find it.
        hint: &'static str,
    },
    /// The private key cannot be used.
    #[error(
        "the Secret's key {PRIVATE_KEY} is no RSA private key in PEM form ({reason}); store the .pem file that GitHub gave you, unchanged"
    )]
    PrivateKey {
        /// Why not. No part of the key.
        reason: String,
    },
    /// The token contains bytes that no token has.
    #[error(
        "the Secret's key {TOKEN} is no token ({reason}); store the token alone, without quotes"
    )]
    Token {
        /// Why not. No part of the token.
        reason: &'static str,
    },
}

impl Credentials {
    /// Reads a Secret's data: `app-id`, `installation-id` and `private-key`, or `token`. Other keys do not matter.
    ///
    /// The private key is tried once, so that one that cannot sign is named here and not at the first request.
    pub fn from_secret_data(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, CredentialsError> {
        let app_keys = [APP_ID, INSTALLATION_ID, PRIVATE_KEY];
        let (present, missing): (Vec<_>, Vec<_>) = app_keys
            .into_iter()
            .partition(|key| data.contains_key(*key));
        match (data.get(TOKEN), present.as_slice(), missing.as_slice()) {
            (Some(_), [], _) => token(text(data, TOKEN)?),
            (Some(_), _, _) => Err(CredentialsError::Both {
                app_keys: present.join(", "),
            }),
            (None, [], _) => Err(CredentialsError::Empty { found: keys(data) }),
            (None, _, []) => app(
                text(data, APP_ID)?,
                text(data, INSTALLATION_ID)?,
                text(data, PRIVATE_KEY)?,
            ),
            (None, ..) => Err(CredentialsError::Missing {
                present: present.join(", "),
                missing: missing.join(", "),
            }),
        }
    }

    /// Identifies these credentials without revealing them.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether they are a GitHub App's.
    #[must_use]
    pub const fn is_app(&self) -> bool {
        matches!(self.kind, Kind::App { .. })
    }

    pub(super) const fn kind(&self) -> &Kind {
        &self.kind
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_app() { "App" } else { "Token" };
        write!(f, "Credentials({kind}, {:?})", self.fingerprint)
    }
}

impl Fingerprint {
    /// Each part goes in with its length, so that no two lists of parts look alike.
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Self(bytes)
    }

    pub(super) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    /// Enough of it to tell two apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(4)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

fn app(id: &str, installation: &str, pem: &str) -> Result<Credentials, CredentialsError> {
    let number = |key, value: &str, hint| {
        value
            .parse::<u64>()
            .map_err(|_| CredentialsError::Number { key, hint })
    };
    let app_id = number(
        APP_ID,
        id,
        "it is the \"App ID\" on the App's settings page, not its client ID or its name",
    )?;
    let installation_id = number(
        INSTALLATION_ID,
        installation,
        "it is the last part of the address of the installation's page, …/settings/installations/NUMBER",
    )?;
    let key = signing_key(pem)?;
    let fingerprint = Fingerprint::of(&[
        b"app",
        &app_id.to_be_bytes(),
        &installation_id.to_be_bytes(),
        pem.as_bytes(),
    ]);
    Ok(Credentials {
        kind: Kind::App {
            app: AppAuth {
                app_id: AppId(app_id),
                key,
            },
            installation: installation_id,
        },
        fingerprint,
    })
}

fn signing_key(pem: &str) -> Result<auth::EncodingKey, CredentialsError> {
    let refuse = |reason: &str| CredentialsError::PrivateKey {
        reason: reason.into(),
    };
    if !pem.contains("-----BEGIN") {
        return Err(refuse(
            "it does not begin with -----BEGIN RSA PRIVATE KEY-----",
        ));
    }
    if pem.contains("\\n") {
        return Err(refuse(
            "it contains the two characters \\n instead of line breaks",
        ));
    }
    if pem.contains("BEGIN PUBLIC KEY") || pem.contains("BEGIN CERTIFICATE") {
        return Err(refuse("it is a public key or a certificate"));
    }
    if pem.contains("ENCRYPTED") {
        return Err(refuse("it is protected by a passphrase"));
    }
    // jsonwebtoken's errors name the kind of fault and repeat nothing of the key.
    let key = auth::EncodingKey::from_rsa_pem(pem.as_bytes())
        .map_err(|error| refuse(&error.to_string()))?;
    auth::create_jwt(AppId(0), &key).map_err(|error| refuse(&error.to_string()))?;
    Ok(key)
}

fn token(token: &str) -> Result<Credentials, CredentialsError> {
    let refuse = |reason| Err(CredentialsError::Token { reason });
    if token.contains(char::is_whitespace) {
        return refuse("it contains a space or a line break");
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return refuse("it contains bytes that are no printable ASCII");
    }
    if token.contains(['"', '\'']) {
        return refuse("it contains quotes");
    }
    Ok(Credentials {
        fingerprint: Fingerprint::of(&[b"token", token.as_bytes()]),
        kind: Kind::Token(token.into()),
    })
}

/// Secrets made from files end in a line break more often than not.
fn text<'data>(
    data: &'data BTreeMap<String, Vec<u8>>,
    key: &'static str,
) -> Result<&'data str, CredentialsError> {
    let bytes = data.get(key).map(Vec::as_slice).unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_err(|_| match key {
        PRIVATE_KEY => CredentialsError::PrivateKey {
            reason: "it is binary; perhaps it was base64-encoded twice or is in DER form".into(),
        },
        TOKEN => CredentialsError::Token {
            reason: "it is binary",
        },
        key => CredentialsError::Number {
            key,
            hint: "it is binary",
        },
    })?;
    match text.trim() {
        "" => Err(CredentialsError::Blank { key }),
        text => Ok(text),
    }
}

fn keys(data: &BTreeMap<String, Vec<u8>>) -> String {
    if data.is_empty() {
        return "no key at all".into();
    }
    data.keys().cloned().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A key of 2048 bits in PKCS#8 form, made for each run.
    pub(in crate::github) fn pem() -> String {
        use std::sync::OnceLock;
        static PEM: OnceLock<String> = OnceLock::new();
        PEM.get_or_init(|| {
            rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
                .unwrap()
                .serialize_pem()
        })
        .clone()
    }

    pub(in crate::github) fn data(entries: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect()
    }

    fn refused(entries: &[(&str, &str)]) -> String {
        Credentials::from_secret_data(&data(entries))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_app_and_a_token_are_read_with_the_line_breaks_that_editors_leave() {
        let pem = format!("{}\n", pem());
        let app = data(&[
            (APP_ID, "12\n"),
            (INSTALLATION_ID, " 34 "),
            (PRIVATE_KEY, &pem),
        ]);
        assert!(Credentials::from_secret_data(&app).unwrap().is_app());
        let token =
            Credentials::from_secret_data(&data(&[(TOKEN, "ghp_x\n"), ("note", "mine")])).unwrap();
        assert!(!token.is_app());
        assert_eq!(
            token.fingerprint(),
            Credentials::from_secret_data(&data(&[(TOKEN, "ghp_x")]))
                .unwrap()
                .fingerprint()
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(refused(&[]).contains("no key at all"));
        assert!(refused(&[("password", "x")]).contains("it has password"));
        assert!(refused(&[(APP_ID, "1")]).contains("no installation-id, private-key"));
        assert!(refused(&[(TOKEN, "x"), (APP_ID, "1")]).contains("both token and app-id"));
        assert!(refused(&[(TOKEN, " \n")]).contains("token is empty"));
    }

    #[test]
    fn bad_values_are_named_and_not_repeated() {
        let with = |id: &str, installation: &str, key: &str| {
            refused(&[
                (APP_ID, id),
                (INSTALLATION_ID, installation),
                (PRIVATE_KEY, key),
            ])
        };
        assert!(with("Iv23abc", "2", "x").contains("not its client ID"));
        assert!(with("1", "x", "x").contains("settings/installations"));
        for (key, reason) in [
            ("hunter2", "does not begin with"),
            (
                r"-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
                "line breaks",
            ),
            (
                "-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----",
                "public key",
            ),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nhunter2\n-----END ENCRYPTED PRIVATE KEY-----",
                "passphrase",
            ),
            (
                "-----BEGIN RSA PRIVATE KEY-----\naHVudGVyMg==\n-----END RSA PRIVATE KEY-----",
                "private-key is no RSA",
            ),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nhunter2",
                "private-key is no RSA",
            ),
        ] {
            let message = with("1", "2", key);
            assert!(message.contains(reason), "{message}");
            assert!(
                !message.contains("hunter2") && !message.contains("aHVudGVyMg"),
                "{message}"
            );
        }
        assert!(refused(&[(TOKEN, "\"ghp_hunter2\"")]).contains("quotes"));
        assert!(refused(&[(TOKEN, "ghp_a ghp_hunter2")]).contains("space"));
    }

    #[test]
    fn an_elliptic_curve_key_is_refused() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let message = refused(&[(APP_ID, "1"), (INSTALLATION_ID, "2"), (PRIVATE_KEY, &pem)]);
        assert!(message.contains("no RSA private key"), "{message}");
    }

    #[test]
    fn another_value_anywhere_is_another_fingerprint() {
        let pem = pem();
        let of = |id: &str, installation: &str| {
            let data = data(&[
                (APP_ID, id),
                (INSTALLATION_ID, installation),
                (PRIVATE_KEY, &pem),
            ]);
            Credentials::from_secret_data(&data).unwrap().fingerprint()
        };
        assert_eq!(of("1", "2"), of("1", "2"));
        assert_ne!(of("1", "2"), of("1", "3"));
        assert_ne!(of("1", "2"), of("2", "2"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let token = Credentials::from_secret_data(&data(&[(TOKEN, "ghp_hunter2")])).unwrap();
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}
