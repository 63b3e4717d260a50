//! The way to GitHub's server: straight, or through a proxy.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::{
        legacy::{self, connect::proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use octocrab::OctoBody;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use super::Proxy;
use super::connect::{BoxError, Guarded, Reach};

/// Whether this server is reached through the proxy.
fn is_for(proxy: &Proxy, server: &Uri) -> bool {
    Matcher::builder()
        .all(proxy.to_string())
        .no(proxy.exceptions())
        .build()
        .intercept(server)
        .is_some()
}

/// Connects straight, or has a proxy connect: TLS goes through either unread.
#[derive(Clone)]
pub(super) enum Way {
    Straight(Guarded),
    Through(Tunnel<Guarded>),
}

impl Way {
    /// The way to `server`.
    fn to(server: &Uri, proxy: Option<&Proxy>, tcp: Guarded) -> Self {
        match proxy.filter(|proxy| is_for(proxy, server)) {
            Some(proxy) => Self::Through(Tunnel::new(proxy.uri().clone(), tcp)),
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

/// Connections without a request that are kept, of a client to one server. Whatever a burst of requests has opened beyond
/// them is closed: each costs some 40 KiB.
const IDLE: usize = 4;

/// A client of one server, by the way to it.
pub(super) type HttpClient = legacy::Client<hyper_rustls::HttpsConnector<Way>, OctoBody>;

pub(super) fn http_client(
    tls: ClientConfig,
    server: &Uri,
    proxy: Option<&Proxy>,
    reach: Arc<Reach>,
) -> HttpClient {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        // Plain http was refused when the address was parsed, unless it is allowed.
        .https_or_http()
        .enable_http1()
        .wrap_connector(Way::to(server, proxy, Guarded::new(reach)));
    legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_mins(1))
        .pool_max_idle_per_host(IDLE)
        .build(connector)
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
        assert!(is_for(&with, &server("https://api.github.com")));
        for direct in [
            "https://ghe.example.com",
            "https://git.internal",
            "https://10.1.2.3:8443",
        ] {
            assert!(!is_for(&with, &server(direct)), "{direct}");
        }
    }
}
