//! The Secret of the operator's own webhooks: their names and their secrets are made from it, the same ones in every replica.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use secrecy::{ExposeSecret as _, SecretString};

use super::HookName;
use crate::insist::{insist, passes};

/// Name of the Secret.
pub const SECRET: &str = "cuda-runner-webhooks";
/// The key from which names are made: another one makes all webhooks anew.
const ID: &str = "id.key";
/// The key from which secrets are made.
const CURRENT: &str = "current.key";
/// The one before it, while it is rotated.
const PREVIOUS: &str = "previous.key";
/// Bytes of a key.
const KEY: usize = 32;
/// Digits of a webhook's name.
const ID_DIGITS: usize = 32;
/// Digits of a secret's version.
const VERSION_DIGITS: usize = 8;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server refused or did not answer.
    #[error("the Secret {SECRET}: {0}; may the operator create and get it in its namespace?")]
    Kubernetes(#[from] kube::Error),
    /// The Secret holds something else.
    #[error(
        "the Secret {SECRET}: its {0} is no key as the operator writes it; delete the Secret to have webhooks made anew"
    )]
    Corrupt(&'static str),
    /// There are no random numbers.
    #[error("a key for webhooks cannot be made: the system has no random numbers")]
    NoRandom,
}

/// The keys. `Debug` does not show them.
pub struct Keys {
    id: hmac::Key,
    current: hmac::Key,
    previous: Option<hmac::Key>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Reads the keys, or makes them.
    pub async fn open(client: Client, namespace: &str) -> Result<Self, KeysError> {
        let api = Api::namespaced(client, namespace);
        let may_pass =
            |error: &KeysError| matches!(error, KeysError::Kubernetes(error) if passes(error));
        insist("the keys of webhooks", may_pass, || agree(&api)).await
    }

    /// The name of a webhook in its address: nobody guesses it, and another installation has another one.
    #[must_use]
    pub fn id(&self, hook: &HookName) -> String {
        let mut digits = hex(hmac::sign(&self.id, &hook.bytes()).as_ref());
        digits.truncate(ID_DIGITS);
        digits
    }

    /// The secrets of a webhook that the operator makes: the one that is given to GitHub, and the one before.
    #[must_use]
    pub fn secrets(&self, hook: &HookName) -> Vec<SecretString> {
        let keys = std::iter::once(&self.current).chain(&self.previous);
        keys.map(|key| hex(hmac::sign(key, &hook.bytes()).as_ref()).into())
            .collect()
    }

    /// What changes with a secret, and says nothing of it without the keys.
    #[must_use]
    pub fn version(&self, secret: &SecretString) -> String {
        let text = format!("version\n{}", secret.expose_secret());
        let mut digits = hex(hmac::sign(&self.id, text.as_bytes()).as_ref());
        digits.truncate(VERSION_DIGITS);
        digits
    }

    /// Keys for tests.
    #[cfg(test)]
    pub(crate) fn of(id: u8, current: u8, previous: Option<u8>) -> Self {
        let key = |byte| hmac::Key::new(hmac::HMAC_SHA256, &[byte; KEY]);
        Self {
            id: key(id),
            current: key(current),
            previous: previous.map(key),
        }
    }
}

/// Bytes in hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut digits, byte| {
        // Writing to a String cannot fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// What all replicas have: the Secret that is there, or the one that is made first.
async fn agree(api: &Api<Secret>) -> Result<Keys, KeysError> {
    if let Some(secret) = api.get_opt(SECRET).await? {
        return read(&secret);
    }
    let new = Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            (ID.to_owned(), ByteString(random()?)),
            (CURRENT.to_owned(), ByteString(random()?)),
        ])),
        ..Secret::default()
    };
    // Another replica may be faster: a conflict is looked at again.
    let made = api.create(&PostParams::default(), &new).await?;
    tracing::info!("the keys of webhooks were written to the Secret {SECRET}");
    read(&made)
}

fn random() -> Result<Vec<u8>, KeysError> {
    let mut key = [0; KEY];
    rand::fill(&mut key).map_err(|_| KeysError::NoRandom)?;
    Ok(URL_SAFE_NO_PAD.encode(key).into_bytes())
}

fn read(secret: &Secret) -> Result<Keys, KeysError> {
    let key = |name: &'static str| {
        let text = secret.data.as_ref().and_then(|data| data.get(name));
        let bytes = text.map(|text| URL_SAFE_NO_PAD.decode(&text.0));
        match bytes {
            Some(Ok(bytes)) if bytes.len() == KEY => {
                Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
            }
            Some(_) => Err(KeysError::Corrupt(name)),
            None => Ok(None),
        }
    };
    Ok(Keys {
        id: key(ID)?.ok_or(KeysError::Corrupt(ID))?,
        current: key(CURRENT)?.ok_or(KeysError::Corrupt(CURRENT))?,
        previous: key(PREVIOUS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registrar::tests::kubernetes::Secrets;

    fn hook(namespace: &str, address: &str, secret: Option<&str>) -> HookName {
        HookName {
            namespace: namespace.to_owned(),
            address: address.to_owned(),
            secret: secret.map(str::to_owned),
        }
    }

    #[tokio::test]
    async fn two_replicas_that_start_together_have_the_same_keys() {
        let secrets = Secrets::default();
        secrets.hide_from_first(2);
        let (one, other) = tokio::join!(
            Keys::open(secrets.client(), "system"),
            Keys::open(secrets.client(), "system"),
        );
        let hook = hook("ci", "https://github.com/acme/widgets", None);
        let told = |keys: &Keys| {
            let secrets = keys.secrets(&hook);
            let secrets: Vec<_> = secrets
                .iter()
                .map(|s| s.expose_secret().to_owned())
                .collect();
            (keys.id(&hook), secrets)
        };
        let (one, other) = (one.unwrap(), other.unwrap());
        assert_eq!(told(&one), told(&other));
        assert_eq!(told(&one).1.len(), 1);
        assert_eq!(format!("{one:?}"), "Keys(…)");
    }

    #[test]
    fn no_two_webhooks_share_a_name_or_a_secret() {
        let keys = Keys::of(1, 2, Some(3));
        let hooks = [
            hook("ci", "https://github.com/acme/widgets", None),
            hook("ci2", "https://github.com/acme/widgets", None),
            hook("ci", "https://github.com/acme/widgets2", None),
            hook("ci", "https://github.com/acme/widgets", Some("hook")),
        ];
        let mut told: Vec<String> = hooks.iter().map(|hook| keys.id(hook)).collect();
        assert!(told.iter().all(|id| id.len() == ID_DIGITS));
        for hook in &hooks {
            let secrets = keys.secrets(hook);
            told.extend(secrets.iter().map(|s| s.expose_secret().to_owned()));
        }
        let count = told.len();
        told.sort();
        told.dedup();
        assert_eq!(told.len(), count);
        // And another installation has others
        assert_ne!(Keys::of(9, 2, None).id(&hooks[0]), keys.id(&hooks[0]));
    }

    #[test]
    fn a_key_that_is_none_is_named() {
        let mut secret = Secret::default();
        let mut data = BTreeMap::from([
            (ID.to_owned(), ByteString(random().unwrap())),
            (CURRENT.to_owned(), ByteString(b"short".to_vec())),
        ]);
        secret.data = Some(data.clone());
        assert!(read(&secret).unwrap_err().to_string().contains(CURRENT));
        data.insert(CURRENT.to_owned(), ByteString(random().unwrap()));
        secret.data = Some(data);
        assert!(read(&secret).unwrap().previous.is_none());
    }
}
