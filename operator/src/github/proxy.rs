//! The way to GitHub's server: straight, or through a proxy.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{Hash, Hasher},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::{self, connect::proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use octocrab::OctoBody;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use super::connect::{BoxError, Guarded, Reach};
use super::{Fingerprint, Proxy};

/// Key of the user's name in a proxy's Secret.
const USERNAME: &str = "username";
/// Key of the user's password.
const PASSWORD: &str = "password";
/// All keys that are read of the Secret.
pub const PROXY_USER_KEYS: [&str; 2] = [USERNAME, PASSWORD];

/// A proxy, and as whom it is asked.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ProxyWay {
    /// The proxy.
    pub proxy: Proxy,
    /// Its user, where it asks for one.
    pub user: Option<ProxyUser>,
}

/// A proxy's user. `Debug` shows neither name nor password.
#[derive(Clone)]
pub struct ProxyUser {
    header: HeaderValue,
    fingerprint: Fingerprint,
}

/// What is wrong with a proxy's Secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProxyUserError {
    /// A key is missing or empty.
    #[error("it has no key {0}, or an empty one; a proxy's Secret needs {USERNAME} and {PASSWORD}")]
    Missing(&'static str),
    /// A value cannot stand in an address, where the runner's programs have it.
    #[error(
        "its key {0} holds a line break, or a character that has a meaning in addresses: write the latter as % and two hexadecimal digits, %40 for @ and %25 for %"
    )]
    Unencoded(&'static str),
}

impl ProxyUser {
    /// Reads a Secret's data. The values are written as in an address, since the runner's programs have them there.
    pub fn from_secret_data(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, ProxyUserError> {
        let read = |key: &'static str| {
            let text = data
                .get(key)
                .and_then(|bytes| std::str::from_utf8(bytes).ok());
            // The kubelet passes the value on as it is, with the line break of an editor.
            let text = text.filter(|text| !text.is_empty());
            let text = text.ok_or(ProxyUserError::Missing(key))?;
            let plain = is_encoded(text).then(|| percent_decode_str(text).collect::<Vec<u8>>());
            plain.ok_or(ProxyUserError::Unencoded(key))
        };
        let (name, password) = (read(USERNAME)?, read(PASSWORD)?);
        let fingerprint = Fingerprint::of(&[b"proxy", &name, &password]);
        // <https://www.rfc-editor.org/rfc/rfc7617>
        let basic = STANDARD.encode([&name[..], b":", &password[..]].concat());
        let mut header = HeaderValue::try_from(format!("Basic {basic}"))
            .map_err(|_| ProxyUserError::Unencoded(PASSWORD))?;
        header.set_sensitive(true);
        Ok(Self {
            header,
            fingerprint,
        })
    }
}

/// Whether a text may stand in the user's part of an address: <https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1>.
fn is_encoded(text: &str) -> bool {
    let mut parts = text.split('%');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=".contains(c);
    let is_code = |part: &str| {
        let code = part.get(..2);
        code.is_some_and(|code| code.chars().all(|c| c.is_ascii_hexdigit()))
    };
    parts.next().is_none_or(|first| first.chars().all(is_plain))
        && parts.all(|part| is_code(part) && part.chars().all(is_plain))
}

impl fmt::Debug for ProxyUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUser({:?})", self.fingerprint)
    }
}

impl PartialEq for ProxyUser {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for ProxyUser {}

impl Hash for ProxyUser {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

/// Whether this server is reached through the proxy.
fn is_for(proxy: &Proxy, server: &Uri) -> bool {
    Matcher::builder()
        .all(proxy.to_string())
        .no(proxy.exceptions())
        .build()
        .intercept(server)
        .is_some()
}

/// Connects straight, or has a proxy connect, which may be reached by TLS itself: TLS goes through either unread.
#[derive(Clone)]
pub(super) enum Way {
    Straight(Guarded),
    Through(Box<Tunnel<HttpsConnector<Guarded>>>),
}

impl Way {
    /// The way to `server`.
    fn to(server: &Uri, through: Option<&ProxyWay>, tcp: Guarded, tls: &ClientConfig) -> Self {
        let Some(through) = through.filter(|through| is_for(&through.proxy, server)) else {
            return Self::Straight(tcp);
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let tunnel = Tunnel::new(through.proxy.uri().clone(), connector);
        Self::Through(Box::new(match &through.user {
            Some(user) => tunnel.with_auth(user.header.clone()),
            None => tunnel,
        }))
    }
}

/// How the tunnel calls a refusal with 407; its type is private.
const WITHOUT_USER: &str = "proxy authorization required";

/// Why the proxy did not connect.
fn refusal(error: &impl fmt::Display) -> String {
    let error = error.to_string();
    if error.contains(WITHOUT_USER) {
        return "the proxy does not accept the user: name a Secret with username and password in spec.github.proxy.credentialsRef, and check it".to_owned();
    }
    format!("the proxy did not connect: {error}")
}

impl Service<Uri> for Way {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
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
            Self::Straight(tcp) => {
                let connecting = tcp.call(server);
                Box::pin(async move { connecting.await.map(MaybeHttpsStream::Http) })
            }
            Self::Through(tunnel) => {
                let connecting = tunnel.call(server);
                Box::pin(async move { connecting.await.map_err(|error| refusal(&error).into()) })
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
    through: Option<&ProxyWay>,
    reach: Arc<Reach>,
) -> HttpClient {
    let way = Way::to(server, through, Guarded::new(reach), &tls);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        // Plain http was refused when the address was parsed, unless it is allowed.
        .https_or_http()
        .enable_http1()
        .wrap_connector(way);
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
    fn a_user_is_written_as_in_an_address_and_shown_nowhere() {
        let read = |name: &str, password: &str| {
            let data = [(USERNAME, name), (PASSWORD, password)];
            let data = data.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
            ProxyUser::from_secret_data(&data.into())
        };
        let user = read("me", "hunter2%40%25").unwrap();
        assert_eq!(
            user.header,
            format!("Basic {}", STANDARD.encode("me:hunter2@%"))
        );
        assert!(!format!("{user:?} {:?}", user.header).contains("hunter2"));
        assert_ne!(user, read("me", "other").unwrap());
        for bad in ["a@b", "a:b", "a/b", "50%", "%4", "%zz", "a b", "ä", "a\n"] {
            assert_eq!(
                read("me", bad).unwrap_err(),
                ProxyUserError::Unencoded(PASSWORD),
                "{bad}"
            );
        }
        assert_eq!(
            read("", "x").unwrap_err(),
            ProxyUserError::Missing(USERNAME)
        );
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
