//! Extra certificate authorities that GitHub's server may be signed by.

use std::{fmt, sync::Arc};

use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::credentials::Fingerprint;

/// Certificates, checked, that are trusted beside the system's own.
#[derive(Clone)]
pub struct CaBundle {
    certificates: Arc<[CertificateDer<'static>]>,
    fingerprint: Fingerprint,
}

/// Why a bundle cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CaBundleError {
    /// It holds no certificate.
    #[error("the CA bundle has no certificate in PEM form (-----BEGIN CERTIFICATE-----)")]
    Empty,
    /// One of its parts is damaged.
    #[error("certificate {number} of the CA bundle cannot be read ({reason})")]
    Damaged {
        /// Which, from 1.
        number: usize,
        /// Why not.
        reason: String,
    },
}

impl CaBundle {
    /// Reads every certificate of a PEM file.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CaBundleError> {
        let mut certificates = Vec::new();
        let mut check = rustls::RootCertStore::empty();
        for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let damaged = |reason: String| CaBundleError::Damaged {
                number: index + 1,
                reason,
            };
            let certificate = certificate.map_err(|error| damaged(error.to_string()))?;
            check
                .add(certificate.clone())
                .map_err(|error| damaged(error.to_string()))?;
            certificates.push(certificate);
        }
        if certificates.is_empty() {
            return Err(CaBundleError::Empty);
        }
        let parts: Vec<&[u8]> = certificates.iter().map(AsRef::as_ref).collect();
        let fingerprint = Fingerprint::of(&parts);
        Ok(Self {
            certificates: certificates.into(),
            fingerprint,
        })
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CaBundle({} certificates, {})",
            self.certificates.len(),
            self.fingerprint
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_certificate_counts_and_a_bad_one_is_named() {
        let one = || {
            rcgen::generate_simple_self_signed(["a".to_owned()])
                .unwrap()
                .cert
                .pem()
        };
        let bundle = CaBundle::from_pem(format!("# ours\n{}{}", one(), one()).as_bytes()).unwrap();
        assert_eq!(bundle.certificates().len(), 2);

        assert_eq!(
            CaBundle::from_pem(b"nothing").unwrap_err(),
            CaBundleError::Empty
        );
        let bad = format!(
            "{}-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
            one()
        );
        let error = CaBundle::from_pem(bad.as_bytes()).unwrap_err();
        assert!(
            matches!(error, CaBundleError::Damaged { number: 2, .. }),
            "{error}"
        );
    }
}
