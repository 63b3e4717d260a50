//! Credentials from a Secret: a GitHub App, or a token.

use std::{collections::BTreeMap, fmt};

use aws_lc_rs::digest;
use jiff::Timestamp;
use jsonwebtoken::EncodingKey;
use secrecy::SecretString;

use super::app::{App, Issuer};

/// Key of the App's number or client id in the Secret.
pub const APP_ID: &str = "app-id";
/// Key of the installation's number in the Secret.
pub const INSTALLATION_ID: &str = "installation-id";
/// Key of the App's private key, PEM, in the Secret.
pub const PRIVATE_KEY: &str = "private-key";
/// Key of a token in the Secret.
pub const TOKEN: &str = "token";

/// The names that Actions Runner Controller has for them, whose Secrets are read as they are.
const ALIASES: [(&str, &str); 4] = [
    (APP_ID, "github_app_id"),
    (INSTALLATION_ID, "github_app_installation_id"),
    (PRIVATE_KEY, "github_app_private_key"),
    (TOKEN, "github_token"),
];

/// All keys that are read of the Secret.
pub const CREDENTIAL_KEYS: [&str; 8] = [
    APP_ID,
    INSTALLATION_ID,
    PRIVATE_KEY,
    TOKEN,
    ALIASES[0].1,
    ALIASES[1].1,
    ALIASES[2].1,
    ALIASES[3].1,
];

/// How the operator shows GitHub who it is. `Debug` shows no secret.
#[derive(Clone)]
pub struct Credentials {
    kind: Kind,
    fingerprint: Fingerprint,
}

#[derive(Clone)]
pub(super) enum Kind {
    App(App),
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
        "the Secret has both {token} and {app_keys}; remove one, so that it is clear which credentials are meant"
    )]
    Both {
        /// The token's key.
        token: String,
        /// The App's keys that it has.
        app_keys: String,
    },
    /// Two keys for one thing say different things.
    #[error(
        "the Secret has both {first} and {second}, and they differ; remove one, so that it is clear which is meant"
    )]
    Contradiction {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A part of the App is missing.
    #[error(
        "the Secret has {present} but no {missing}; a GitHub App needs {APP_ID} and {PRIVATE_KEY}, and {INSTALLATION_ID} where it is not to be looked up"
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
    #[error("the Secret's key {key} cannot be used: {hint}")]
    Number {
        /// Which.
        key: &'static str,
        /// Where to find it.
        hint: &'static str,
    },
    /// The private key cannot be used.
    #[error(
        "the Secret's key {key} is no RSA private key in PEM form ({reason}); store the .pem file that GitHub gave you, unchanged"
    )]
    PrivateKey {
        /// Which.
        key: &'static str,
        /// Why not. No part of the key.
        reason: String,
    },
    /// The token contains bytes that no token has.
    #[error("the Secret's key {key} is no token ({reason}); store the token alone, without quotes")]
    Token {
        /// Which.
        key: &'static str,
        /// Why not. No part of the token.
        reason: &'static str,
    },
}

impl Credentials {
    /// Reads a Secret's data: `app-id`, `private-key` and perhaps `installation-id`, or `token`; each under the name that
    /// Actions Runner Controller has for it, too. Other keys do not matter.
    ///
    /// The private key is tried once, so that one that cannot sign is named here and not at the first request.
    pub fn from_secret_data(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, CredentialsError> {
        let mut found = BTreeMap::new();
        for (key, alias) in ALIASES {
            if let Some(value) = either(data, key, alias)? {
                found.insert(key, value);
            }
        }
        let named = |keys: &[&str]| -> Vec<&str> {
            let named = keys.iter().filter_map(|key| found.get(key));
            named.map(|value| value.key).collect()
        };
        let app = named(&[APP_ID, INSTALLATION_ID, PRIVATE_KEY]);
        let missing: Vec<_> = [APP_ID, PRIVATE_KEY]
            .into_iter()
            .filter(|key| !found.contains_key(key))
            .collect();
        match (found.get(TOKEN), app.as_slice(), missing.as_slice()) {
            (Some(value), [], _) => token(*value),
            (Some(value), ..) => Err(CredentialsError::Both {
                token: value.key.into(),
                app_keys: app.join(", "),
            }),
            (None, [], _) => Err(CredentialsError::Empty { found: keys(data) }),
            (None, _, []) => read_app(&found),
            (None, ..) => Err(CredentialsError::Missing {
                present: app.join(", "),
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
        matches!(self.kind, Kind::App(_))
    }

    /// Whether GitHub is to be asked for the App's installation.
    pub(super) const fn is_unlocated(&self) -> bool {
        matches!(
            self.kind,
            Kind::App(App {
                installation: None,
                ..
            })
        )
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

/// A value, and the key under which it is.
#[derive(Clone, Copy)]
struct Value<'data> {
    key: &'static str,
    text: &'data str,
}

/// The value of a key under either of its names.
fn either<'data>(
    data: &'data BTreeMap<String, Vec<u8>>,
    key: &'static str,
    alias: &'static str,
) -> Result<Option<Value<'data>>, CredentialsError> {
    let read = |name: &'static str| {
        let bytes = data.get(name);
        bytes.map(|bytes| text(bytes, key, name)).transpose()
    };
    match (read(key)?, read(alias)?) {
        (Some(first), Some(second)) if first.text != second.text => {
            Err(CredentialsError::Contradiction {
                first: key,
                second: alias,
            })
        }
        (first, second) => Ok(first.or(second)),
    }
}

fn read_app(found: &BTreeMap<&str, Value<'_>>) -> Result<Credentials, CredentialsError> {
    let get = |key: &'static str| {
        let value = found.get(key).copied();
        value.ok_or(CredentialsError::Blank { key })
    };
    let (id, pem) = (get(APP_ID)?, get(PRIVATE_KEY)?);
    let issuer = Issuer::parse(id.text).ok_or(CredentialsError::Number {
        key: id.key,
        hint: "it is neither the \"App ID\" nor the \"Client ID\" on the App's settings page",
    })?;
    let installation = found.get(INSTALLATION_ID).map(|value| {
        value.text.parse::<u64>().map_err(|_| CredentialsError::Number {
            key: value.key,
            hint: "it is no number; it is the last part of the address of the installation's page, …/settings/installations/NUMBER, and may be left out",
        })
    });
    let installation = installation.transpose()?;
    let app = App {
        key: signing_key(pem)?,
        issuer,
        installation,
    };
    app.jwt(Timestamp::UNIX_EPOCH)
        .map_err(|error| CredentialsError::PrivateKey {
            key: pem.key,
            reason: error.to_string(),
        })?;
    let at = installation.map(u64::to_be_bytes);
    let fingerprint = Fingerprint::of(&[
        b"app",
        app.issuer.to_string().as_bytes(),
        at.as_ref().map_or(&[][..], <[u8; 8]>::as_slice),
        pem.text.as_bytes(),
    ]);
    Ok(Credentials {
        kind: Kind::App(app),
        fingerprint,
    })
}

fn signing_key(value: Value<'_>) -> Result<EncodingKey, CredentialsError> {
    let pem = value.text;
    let refuse = |reason: &str| CredentialsError::PrivateKey {
        key: value.key,
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
    EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|error| refuse(&error.to_string()))
}

fn token(value: Value<'_>) -> Result<Credentials, CredentialsError> {
    let (key, token) = (value.key, value.text);
    let refuse = |reason| Err(CredentialsError::Token { key, reason });
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

/// Reads what `key` means from under `name`. Secrets made from files end in a line break more often than not.
fn text<'data>(
    bytes: &'data [u8],
    key: &'static str,
    name: &'static str,
) -> Result<Value<'data>, CredentialsError> {
    let text = std::str::from_utf8(bytes).map_err(|_| match key {
        PRIVATE_KEY => CredentialsError::PrivateKey {
            key: name,
            reason: "it is binary; perhaps it was base64-encoded twice or is in DER form".into(),
        },
        TOKEN => CredentialsError::Token {
            key: name,
            reason: "it is binary",
        },
        _ => CredentialsError::Number {
            key: name,
            hint: "it is binary",
        },
    })?;
    match text.trim() {
        "" => Err(CredentialsError::Blank { key: name }),
        text => Ok(Value { key: name, text }),
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
        assert!(refused(&[(APP_ID, "1")]).contains("has app-id but no private-key"));
        assert!(refused(&[(INSTALLATION_ID, "1")]).contains("no app-id, private-key"));
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
        assert!(with("my-app", "2", "x").contains("Client ID"));
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
    fn secrets_of_actions_runner_controller_are_read_as_they_are() {
        let pem = pem();
        let theirs = [
            ("github_app_id", "12"),
            ("github_app_installation_id", "34"),
            ("github_app_private_key", pem.as_str()),
        ];
        let ours = [
            (APP_ID, "12"),
            (INSTALLATION_ID, "34"),
            (PRIVATE_KEY, pem.as_str()),
        ];
        let read =
            |entries: &[(&str, &str)]| Credentials::from_secret_data(&data(entries)).unwrap();
        // The same App, whichever names its keys have, and in any mixture
        let mixed = [ours[0], theirs[1], theirs[2]];
        let both = [&ours[..], &theirs[..]].concat();
        for entries in [&ours[..], &mixed, &both] {
            assert_eq!(read(entries).fingerprint(), read(&theirs).fingerprint());
        }
        let token = read(&[("github_token", "ghp_x")]);
        assert_eq!(token.fingerprint(), read(&[(TOKEN, "ghp_x")]).fingerprint());
    }

    #[test]
    fn two_names_of_one_thing_may_not_contradict_each_other() {
        let pem = pem();
        let all = [
            (APP_ID, "12", "github_app_id", "13"),
            (INSTALLATION_ID, "34", "github_app_installation_id", "35"),
            (
                PRIVATE_KEY,
                pem.as_str(),
                "github_app_private_key",
                "hunter2",
            ),
            (TOKEN, "ghp_hunter2", "github_token", "ghp_hunter3"),
        ];
        for (key, value, alias, other) in all {
            let message = refused(&[(key, value), (alias, other)]);
            let named = format!("both {key} and {alias}");
            assert!(
                message.contains(&named) && message.contains("differ"),
                "{message}"
            );
            assert!(!message.contains("hunter"), "{message}");
        }
        // And a token is no App, whatever the keys are called
        let message = refused(&[("github_token", "x"), (APP_ID, "1")]);
        assert!(
            message.contains("both github_token and app-id"),
            "{message}"
        );
        let message = refused(&[("github_app_id", "1")]);
        assert!(
            message.contains("github_app_id but no private-key"),
            "{message}"
        );
        let message = refused(&[("github_app_id", "x"), ("github_app_private_key", &pem)]);
        assert!(
            message.contains("key github_app_id cannot be used"),
            "{message}"
        );
    }

    #[test]
    fn the_installation_may_be_left_out_and_a_client_id_serves() {
        let pem = pem();
        let of = |entries: &[(&str, &str)]| {
            Credentials::from_secret_data(&data(&[entries, &[(PRIVATE_KEY, &pem)]].concat()))
                .unwrap()
        };
        let unlocated = of(&[(APP_ID, "12")]);
        assert!(unlocated.is_unlocated());
        let located = of(&[(APP_ID, "12"), (INSTALLATION_ID, "34")]);
        assert!(!located.is_unlocated());
        assert_ne!(unlocated.fingerprint(), located.fingerprint());
        assert!(of(&[(APP_ID, "Iv23liAbCdEfGh012345")]).is_app());
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
