//! The server's certificate, renewed while it runs.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto::aws_lc_rs};
use secrecy::{ExposeSecret as _, SecretString};

/// The certificate in use: each handshake takes what is there at that moment.
pub(super) struct Served(RwLock<Arc<CertifiedKey>>);

/// Why a certificate cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Its PEM is none.
    #[error("the server's certificate or key is no PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// The library refuses it.
    #[error("the server's certificate cannot be used: {0}")]
    Rustls(#[from] rustls::Error),
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Served")
    }
}

impl Served {
    /// Serves this certificate at first.
    pub(super) fn new(certificate: &str, key: &SecretString) -> Result<Self, TlsError> {
        Ok(Self(RwLock::new(Arc::new(certified(certificate, key)?))))
    }

    /// Serves this certificate from now on.
    pub(super) fn renew(&self, certificate: &str, key: &SecretString) -> Result<(), TlsError> {
        let new = Arc::new(certified(certificate, key)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// TLS for a server with this certificate.
pub(super) fn config(served: Arc<Served>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(served);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certified(certificate: &str, key: &SecretString) -> Result<CertifiedKey, TlsError> {
    let chain =
        CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key.expose_secret().as_bytes())?;
    let key = aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(CertifiedKey::new(chain, key))
}
