//! Keys and certificates of a throw-away cluster.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// The folder with a cluster's keys and certificates.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// Makes an authority, `ca.crt`.
    pub fn create(dir: &Path, authority: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(authority, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        fs::write(dir.join("ca.crt"), certificate.pem())?;
        Ok(Self {
            dir: dir.to_path_buf(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The key pair of service accounts: `sa.key`, `sa.pub`.
    pub fn service_account(&self) -> Result<()> {
        let key = KeyPair::generate()?;
        secret(&self.dir.join("sa.key"), &key.serialize_pem())?;
        Ok(fs::write(self.dir.join("sa.pub"), key.public_key_pem())?)
    }

    /// A file of the folder.
    pub fn path(&self, file: &str) -> String {
        self.dir.join(file).to_string_lossy().into_owned()
    }

    /// `NAME.crt` and `NAME.key` for a server with these names and addresses.
    pub fn server(&self, file: &str, names: &[&str], addresses: &[IpAddr]) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(file, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for dns in names {
            params
                .subject_alt_names
                .push(SanType::DnsName((*dns).try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(file, &params)
    }

    /// `NAME.crt` and `NAME.key` for a Kubernetes user.
    pub fn client(&self, file: &str, user: &str, group: &str) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, Some(group));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, &params)
    }

    fn sign(&self, file: &str, params: &CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.dir.join(format!("{file}.crt")), certificate.pem())?;
        secret(&self.dir.join(format!("{file}.key")), &key.serialize_pem())
    }

    /// A kubeconfig for a client made before. The certificates are inside, so the file can be moved.
    pub fn kubeconfig(&self, client: &str, server: &str, to: &Path) -> Result<()> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let inline = |file: String| -> Result<String> {
            let pem =
                fs::read(self.dir.join(&file)).with_context(|| format!("cannot read {file}"))?;
            Ok(STANDARD.encode(pem))
        };
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cuda-runner-e2e",
            "contexts": [{"name": "cuda-runner-e2e", "context": {"cluster": "cuda-runner-e2e", "user": client}}],
            "clusters": [{"name": "cuda-runner-e2e", "cluster": {
                "server": server,
                "certificate-authority-data": inline("ca.crt".to_owned())?,
            }}],
            "users": [{"name": client, "user": {
                "client-certificate-data": inline(format!("{client}.crt"))?,
                "client-key-data": inline(format!("{client}.key"))?,
            }}],
        });
        secret(to, &serde_json::to_string_pretty(&config)?)
    }
}

/// The user is the common name, its group the organization: so Kubernetes reads certificates.
fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// Writes a file that only its owner reads, from the first byte on.
pub fn secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::options()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
