//! What is kept of a Secret or a ConfigMap that a pool names: the keys that are read, and of those no more than makes sense.
//!
//! Whoever may write objects and pools in one namespace can make each a mebibyte long.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use cudarunner_crds::KeyReference;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;
use serde::de::DeserializeOwned;

use super::objects::Lookup;
use crate::github::{CREDENTIAL_KEYS, PROXY_USER_KEYS};
use cuda_runner_plan::webhook::{PREVIOUS_SECRET, SECRET};

/// So many names of keys are kept that nobody reads: they tell a person which ones are there instead.
const NAMES: usize = 8;

/// Values by key.
pub type Data = BTreeMap<String, Vec<u8>>;

/// A kind of object of which pools name some.
pub trait Keyed:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// The most bytes that the values may have together that are read of one.
    const MOST: usize;

    /// What is in it.
    fn data(self) -> Data;
}

impl Keyed for Secret {
    /// The longest private key that anybody uses has less than half of it.
    const MOST: usize = 16 * 1024;

    fn data(self) -> Data {
        let data = self.data.into_iter().flatten();
        data.map(|(key, value)| (key, value.0)).collect()
    }
}

impl Keyed for ConfigMap {
    /// All public authorities together have some 220 KiB.
    const MOST: usize = 256 * 1024;

    fn data(self) -> Data {
        let texts = self.data.into_iter().flatten();
        let texts = texts.map(|(key, text)| (key, text.into_bytes()));
        let binary = self.binary_data.into_iter().flatten();
        texts
            .chain(binary.map(|(key, value)| (key, value.0)))
            .collect()
    }
}

/// An object, and which of its keys are read.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Part {
    /// Of the object.
    pub name: String,
    /// Empty before all others of this name.
    keys: Vec<String>,
}

impl Part {
    /// These keys of an object.
    #[must_use]
    pub fn new(name: &str, keys: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
        }
    }

    /// The credentials for GitHub in a Secret.
    #[must_use]
    pub fn credentials(secret: &str) -> Self {
        Self::new(secret, &CREDENTIAL_KEYS)
    }

    /// The user of a proxy in a Secret.
    #[must_use]
    pub fn proxy_user(secret: &str) -> Self {
        Self::new(secret, &PROXY_USER_KEYS)
    }

    /// The secrets of a webhook in a Secret.
    #[must_use]
    pub fn webhook(secret: &str) -> Self {
        Self::new(secret, &[SECRET, PREVIOUS_SECRET])
    }

    /// The certificates in a ConfigMap.
    #[must_use]
    pub fn certificates(reference: &KeyReference) -> Self {
        Self::new(&reference.name, &[&reference.key])
    }

    /// What is kept of the object: these keys, and the names of some others.
    pub(super) fn of<K: Keyed>(&self, object: K) -> Lookup {
        let (mut names, mut length) = (0, 0);
        let mut data = object.data();
        data.retain(|key, value| {
            if self.keys.contains(key) {
                length += value.len();
                return true;
            }
            *value = Vec::new();
            names += 1;
            names <= NAMES
        });
        if length > K::MOST {
            return Lookup::TooLong;
        }
        data.values_mut().for_each(Vec::shrink_to_fit);
        Lookup::Found(Arc::new(data))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(data: &[(&str, usize)]) -> Secret {
        let data = data.iter();
        let data = data.map(|&(key, length)| (key.to_owned(), ByteString(vec![7; length])));
        Secret {
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    /// Names and lengths of what is kept; `None` where it is too long.
    fn kept<K: Keyed>(part: &Part, object: K) -> Option<Vec<(String, usize)>> {
        match part.of(object) {
            Lookup::Found(data) => {
                let data = data.iter();
                Some(data.map(|(key, v)| (key.clone(), v.len())).collect())
            }
            _ => None,
        }
    }

    #[test]
    fn what_is_kept_of_an_object_is_what_is_read_of_it() {
        let (most, part) = (Secret::MOST, Part::credentials("s"));
        let are = |wanted: &[(&str, usize)]| {
            let wanted = wanted.iter();
            Some(wanted.map(|&(k, n)| (k.to_owned(), n)).collect::<Vec<_>>())
        };

        // Given keys of every length that are read, and others, then of the others the names are kept
        for (given, wanted) in [
            (&[("token", 40)][..], are(&[("token", 40)])),
            (
                &[("padding", 1_000_000), ("token", 40)],
                are(&[("padding", 0), ("token", 40)]),
            ),
            (&[("token", most)], are(&[("token", most)])),
            (&[("token", most + 1)], None),
            (&[("app-id", 1), ("private-key", most)], None),
            (&[], are(&[])),
        ] {
            assert_eq!(kept(&part, secret(given)), wanted, "{given:?}");
        }

        // ... and not of ten thousand
        let many: Vec<String> = (0..10_000).map(|n| format!("k{n}")).collect();
        let many: Vec<(&str, usize)> = many.iter().map(|key| (key.as_str(), 60)).collect();
        assert_eq!(kept(&part, secret(&many)).unwrap().len(), NAMES);

        // A ConfigMap has texts and bytes, of which each pool names one
        let map = ConfigMap {
            data: Some([("a".to_owned(), "x".repeat(ConfigMap::MOST))].into()),
            binary_data: Some([("b".to_owned(), ByteString(vec![7; 3]))].into()),
            ..ConfigMap::default()
        };
        let of = |key: &str| kept(&Part::new("m", &[key]), map.clone());
        assert_eq!(of("a"), are(&[("a", ConfigMap::MOST), ("b", 0)]));
        assert_eq!(of("b"), are(&[("a", 0), ("b", 3)]));
    }
}
