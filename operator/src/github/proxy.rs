//! The way to GitHub's server: straight, or through a proxy.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::{
    client::{legacy::connect::proxy::Tunnel, proxy::matcher::Matcher},
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

use super::connect::{BoxError, Guarded};

/// A proxy, and the hosts that are reached without it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    url: Uri,
    no_proxy: Vec<String>,
}

/// Why a proxy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It does not parse, or has another scheme.
    #[error("the proxy's address is none; write http://HOST:PORT")]
    Address,
    /// It holds a user or a password, which would stand in every pod.
    #[error(
        "the proxy's address holds a user or a password, which everybody who may see pods could read; use a proxy that lets the cluster in without"
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
        if url.scheme_str() != Some("http") || url.host().is_none_or(str::is_empty) || is_absurd {
            return Err(ProxyError::Address);
        }
        Ok(Self {
            url,
            no_proxy: no_proxy.to_vec(),
        })
    }

    /// The exceptions, in the form of the variable `no_proxy`.
    #[must_use]
    pub fn exceptions(&self) -> String {
        self.no_proxy.join(",")
    }

    /// Whether this server is reached through the proxy.
    fn is_for(&self, server: &Uri) -> bool {
        Matcher::builder()
            .all(self.url.to_string())
            .no(self.exceptions())
            .build()
            .intercept(server)
            .is_some()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.to_string().trim_end_matches('/'))
    }
}

/// Connects straight, or has a proxy connect: TLS goes through either unread.
#[derive(Clone)]
pub(super) enum Way {
    Straight(Guarded),
    Through(Tunnel<Guarded>),
}

impl Way {
    /// The way to `server`.
    pub(super) fn to(server: &Uri, proxy: Option<&Proxy>, tcp: Guarded) -> Self {
        match proxy.filter(|proxy| proxy.is_for(server)) {
            Some(proxy) => Self::Through(Tunnel::new(proxy.url.clone(), tcp)),
            None => Self::Straight(tcp),
        }
    }
}

impl Service<Uri> for Way {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Straight(tcp) => tcp.poll_ready(cx),
            Self::Through(tunnel) => tunnel.poll_ready(cx).map_err(Into::into),
        }
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        match self {
            Self::Straight(tcp) => tcp.call(server),
            Self::Through(tunnel) => {
                let connecting = tunnel.call(server);
                Box::pin(async move {
                    connecting
                        .await
                        .map_err(|error| format!("the proxy did not connect: {error}").into())
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(no_proxy: &[&str]) -> Proxy {
        let no_proxy: Vec<_> = no_proxy.iter().map(|&host| host.to_owned()).collect();
        Proxy::parse("http://proxy.example.com:3128", &no_proxy).unwrap()
    }

    #[test]
    fn exceptions_are_hosts_domains_and_networks() {
        let server = |text: &str| text.parse::<Uri>().unwrap();
        let with = proxy(&["ghe.example.com", ".internal", "10.0.0.0/8"]);
        assert!(with.is_for(&server("https://api.github.com")));
        for direct in [
            "https://ghe.example.com",
            "https://git.internal",
            "https://10.1.2.3:8443",
        ] {
            assert!(!with.is_for(&server(direct)), "{direct}");
        }
    }

    #[test]
    fn an_address_with_a_password_is_refused_and_not_repeated() {
        let error = Proxy::parse("http://me:secret@proxy:3128", &[]).unwrap_err();
        assert_eq!(error, ProxyError::Credentials);
        assert!(!error.to_string().contains("secret"));
        for bad in [
            "proxy:3128",
            "socks5://proxy:1080",
            "https://proxy:3128",
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
