//! Our own certificate authority, and its rotation, as values.
//!
//! A pod is given the bundle when it is created, and may wait long for a GPU before its gate uses it. So an authority is
//! in the bundle for [`NOTICE`] before it signs anything, and stays in it until it expires.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use secrecy::{ExposeSecret as _, SecretString};
use time::OffsetDateTime;
use x509_parser::pem::parse_x509_pem;

/// How long an authority is valid.
pub const LIFE: SignedDuration = SignedDuration::from_hours(360 * 24);
/// How long before the end of an authority its successor is made and put into the bundle.
pub const SUCCESSION: SignedDuration = SignedDuration::from_hours(180 * 24);
/// How long a successor is in the bundle before it signs: the longest that a pod may wait for a GPU.
pub const NOTICE: SignedDuration = SignedDuration::from_hours(120 * 24);
/// How long a server's certificate is valid.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Clocks differ: a certificate is valid from a little before it was made.
const SKEW: SignedDuration = SignedDuration::from_hours(1);

/// What the server is called: what its certificate is made out to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}

/// A certificate authority. `Debug` does not show its key.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PKCS#8 as PEM.
    pub key: SecretString,
    /// When it was made.
    pub since: Timestamp,
    /// When it expires.
    pub until: Timestamp,
}

/// The authorities that replicas share.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// The one that signs.
    pub current: Authority,
    /// The one that will.
    pub next: Option<Authority>,
    /// The certificate of the one that did, while it is valid; PEM.
    pub previous: Option<String>,
}

/// Why an authority or a certificate cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The library refused to make it.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What was stored is no certificate.
    #[error("a stored certificate cannot be read: {0}")]
    Read(String),
    /// A time that certificates cannot hold.
    #[error("the time {0} cannot be in a certificate")]
    Time(Timestamp),
}

impl Authority {
    /// Makes an authority with a fresh ECDSA P-256 key.
    pub fn make(now: Timestamp) -> Result<Self, CaError> {
        let (since, until) = (now, now + LIFE);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(
            DnType::CommonName,
            format!("cuda-runner registrar {}", since.as_second()),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(since - SKEW)?;
        params.not_after = date(until)?;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            key: key.serialize_pem().into(),
            since,
            until,
        })
    }

    /// Reads an authority from its PEM files.
    pub fn read(certificate: String, key: SecretString) -> Result<Self, CaError> {
        let (since, until) = validity(&certificate)?;
        // A key of another kind shows now, not at the first handshake.
        KeyPair::from_pem(key.expose_secret())?;
        Ok(Self {
            certificate,
            key,
            since: since + SKEW,
            until,
        })
    }

    /// Issues a server's certificate: the certificate as PEM, and its key.
    pub fn issue(
        &self,
        names: &ServerNames,
        now: Timestamp,
    ) -> Result<(String, SecretString), CaError> {
        let mut params = CertificateParams::new(names.dns.clone())?;
        params
            .subject_alt_names
            .extend(names.ips.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "cuda-runner registrar");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date(now - SKEW)?;
        params.not_after = date((now + LEAF_LIFE).min(self.until))?;
        let signer = Issuer::from_ca_cert_pem(
            &self.certificate,
            KeyPair::from_pem(self.key.expose_secret())?,
        )?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &signer)?;
        Ok((certificate.pem(), key.serialize_pem().into()))
    }
}

impl Authorities {
    /// The first authority of an installation.
    pub fn first(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self {
            current: Authority::make(now)?,
            next: None,
            previous: None,
        })
    }

    /// The certificates that a pod has to trust, PEM.
    #[must_use]
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let all = [
            Some(self.current.certificate.as_str()),
            next,
            self.previous.as_deref(),
        ];
        all.into_iter().flatten().collect()
    }

    /// What becomes of them with time; `None` while nothing changes. `make` makes a new authority.
    pub fn rotate(
        &self,
        now: Timestamp,
        make: impl FnOnce(Timestamp) -> Result<Authority, CaError>,
    ) -> Result<Option<Self>, CaError> {
        if now >= self.current.until {
            // Nothing of it can be used any more: as if there had been none.
            let current = self.next.clone().filter(|next| now < next.until);
            let current = current.map_or_else(|| make(now), Ok)?;
            return Ok(Some(Self {
                current,
                next: None,
                previous: None,
            }));
        }
        if let Some(next) = self.next.as_ref().filter(|next| now >= next.since + NOTICE) {
            return Ok(Some(Self {
                current: next.clone(),
                next: None,
                previous: Some(self.current.certificate.clone()),
            }));
        }
        if self.next.is_none() && now >= self.current.until - SUCCESSION {
            return Ok(Some(Self {
                next: Some(make(now)?),
                ..self.clone()
            }));
        }
        let expired = self
            .previous
            .as_deref()
            .map(validity)
            .transpose()?
            .is_some_and(|(_, until)| now >= until);
        Ok(expired.then(|| Self {
            previous: None,
            ..self.clone()
        }))
    }
}

fn date(moment: Timestamp) -> Result<OffsetDateTime, CaError> {
    OffsetDateTime::from_unix_timestamp(moment.as_second()).map_err(|_| CaError::Time(moment))
}

/// From when to when a certificate is valid.
fn validity(pem: &str) -> Result<(Timestamp, Timestamp), CaError> {
    let unreadable = |error: &dyn std::fmt::Display| CaError::Read(error.to_string());
    let (_, block) = parse_x509_pem(pem.as_bytes()).map_err(|error| unreadable(&error))?;
    let certificate = block.parse_x509().map_err(|error| unreadable(&error))?;
    let validity = certificate.validity();
    let moment = |seconds| Timestamp::from_second(seconds).map_err(|error| unreadable(&error));
    Ok((
        moment(validity.not_before.timestamp())?,
        moment(validity.not_after.timestamp())?,
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::{WebPkiServerVerifier, danger::ServerCertVerifier as _};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};
    use rustls::{RootCertStore, crypto::aws_lc_rs};

    use super::*;

    const BEGIN: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn names() -> ServerNames {
        ServerNames {
            dns: vec![],
            ips: vec![[10, 96, 0, 7].into()],
        }
    }

    fn trusts(bundle: &str, leaf: &str, now: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
        let name = ServerName::try_from("10.96.0.7").unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            now.as_second().unsigned_abs(),
        ));
        verifier
            .verify_server_cert(&leaf, &[], &name, &[], now)
            .is_ok()
    }

    #[test]
    fn a_bundle_is_good_for_as_long_as_a_pod_may_wait() {
        // Three years, looked after once a day
        let mut authorities = Authorities::first(BEGIN).unwrap();
        let mut bundles: Vec<(Timestamp, String)> = vec![];
        let mut made = 1;
        for day in 0..3 * 365 {
            let now = BEGIN + DAY * day;
            let changed = authorities.rotate(now, |now| {
                made += 1;
                Authority::make(now)
            });
            if let Some(changed) = changed.unwrap() {
                authorities = changed;
            }
            if bundles
                .last()
                .is_none_or(|(_, last)| *last != authorities.bundle())
            {
                bundles.push((now, authorities.bundle()));
            }
            if day % 15 != 0 {
                continue;
            }
            // The certificate of today, and that of a replica whose last look was a leaf's life ago
            let (leaf, _) = authorities.current.issue(&names(), now).unwrap();
            for (index, (_, bundle)) in bundles.iter().enumerate() {
                let last_given = bundles.get(index + 1).map_or(now, |(next, _)| *next);
                if last_given + NOTICE > now {
                    assert!(
                        trusts(bundle, &leaf, now),
                        "day {day}: the bundle last given on {last_given} is of no use"
                    );
                }
            }
        }
        assert!(made > 3, "nothing was rotated in three years");
    }

    #[test]
    fn an_operator_that_was_away_for_years_starts_afresh() {
        let authorities = Authorities::first(BEGIN).unwrap();
        let now = BEGIN + DAY * 1000;
        let fresh = authorities.rotate(now, Authority::make).unwrap().unwrap();
        let (leaf, _) = fresh.current.issue(&names(), now).unwrap();
        assert!(trusts(&fresh.bundle(), &leaf, now));
        assert!(!trusts(&authorities.bundle(), &leaf, now));
    }

    #[test]
    fn what_is_read_is_what_was_made() {
        let made = Authority::make(BEGIN).unwrap();
        let read = Authority::read(made.certificate.clone(), made.key.clone()).unwrap();
        assert_eq!((read.since, read.until), (made.since, made.until));
        assert!(Authority::read("x".into(), made.key.clone()).is_err());
        assert!(Authority::read(made.certificate.clone(), "x".to_owned().into()).is_err());
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn an_authority_signs_no_other_authority_and_no_other_name() {
        let authorities = Authorities::first(BEGIN).unwrap();
        let other = ServerNames {
            dns: vec!["example.com".to_owned()],
            ips: vec![],
        };
        let (leaf, _) = authorities.current.issue(&other, BEGIN).unwrap();
        assert!(!trusts(&authorities.bundle(), &leaf, BEGIN));
        let (leaf, _) = authorities.current.issue(&names(), BEGIN).unwrap();
        assert!(
            !trusts(&authorities.bundle(), &leaf, BEGIN + LEAF_LIFE + DAY),
            "a leaf outlives its end"
        );
    }
}
