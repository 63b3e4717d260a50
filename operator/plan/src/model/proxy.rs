//! A proxy on the way to GitHub.

use std::fmt;

use http::Uri;

/// A proxy, and the hosts that are reached without it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    url: Uri,
    exceptions: Vec<String>,
    secret: Option<String>,
}

/// Why a proxy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It does not parse, or has another scheme.
    #[error("the proxy's address is none; write http://HOST:PORT or https://HOST:PORT")]
    Address,
    /// It holds a user or a password, which would stand in every pod.
    #[error(
        "the proxy's address holds a user or a password, which everybody who may see pods could read; put them into a Secret, and name that in spec.github.proxy.credentialsRef"
    )]
    Credentials,
}

impl Proxy {
    /// Reads an address and its exceptions.
    pub fn parse(url: &str, no_proxy: &[String]) -> Result<Self, ProxyError> {
        if url.contains('@') {
            return Err(ProxyError::Credentials);
        }
        let url: Uri = url.trim().parse().map_err(|_| ProxyError::Address)?;
        let has_port = url.authority().is_some_and(|a| {
            let after = a.as_str().rsplit(']').next().unwrap_or_default();
            after.contains(':')
        });
        let is_absurd = has_port && url.port_u16().is_none_or(|port| port == 0);
        if !matches!(url.scheme_str(), Some("http" | "https"))
            || url.host().is_none_or(str::is_empty)
            || is_absurd
        {
            return Err(ProxyError::Address);
        }
        Ok(Self {
            url,
            exceptions: no_proxy.to_vec(),
            secret: None,
        })
    }

    /// The same for a user whose name and password are in this Secret.
    #[must_use]
    pub fn with_secret(self, secret: Option<&str>) -> Self {
        Self {
            secret: secret.map(str::to_owned),
            ..self
        }
    }

    /// The Secret with the user's name and password, where the proxy asks for them.
    #[must_use]
    pub fn secret(&self) -> Option<&str> {
        self.secret.as_deref()
    }

    /// The proxy's address with these two words, of which each stands for what is in the Secret, before the host.
    #[must_use]
    pub fn as_user(&self, name: &str, password: &str) -> String {
        let text = self.to_string();
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", &text));
        format!("{scheme}://{name}:{password}@{rest}")
    }

    /// The exceptions, in the form of the variable `no_proxy`.
    #[must_use]
    pub fn exceptions(&self) -> String {
        self.exceptions.join(",")
    }

    /// The proxy's own address.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.url
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.to_string().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_password_is_refused_and_not_repeated() {
        let error = Proxy::parse("http://me:secret@proxy:3128", &[]).unwrap_err();
        assert_eq!(error, ProxyError::Credentials);
        assert!(!error.to_string().contains("secret"));
        for bad in [
            "proxy:3128",
            "socks5://proxy:1080",
            "https://",
            "http://proxy:99999",
        ] {
            assert_eq!(
                Proxy::parse(bad, &[]).unwrap_err(),
                ProxyError::Address,
                "{bad}"
            );
        }
    }
}
