//! Tries addresses from the pod's own network, all at the same time: the gate needs no tool of the runner's image.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gate_report::preflight::{Check, PreflightFinding};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Error, Proxy};

/// Time for one address, further tries included.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries: a pod's network may need a moment after its start.
const PAUSE: Duration = Duration::from_millis(500);
/// Where Debian and distroless images keep the public authorities.
const PUBLIC: &str = "/etc/ssl/certs/ca-certificates.crt";
/// File with the cluster's own authorities, as OpenSSL names it. Here they come on top of the public ones.
const EXTRA: &str = "SSL_CERT_FILE";

/// Tries that are under way.
pub(crate) struct Trials(Vec<(String, JoinHandle<PreflightFinding>)>);

/// Begins to try all of them.
pub(crate) fn start(urls: &[String]) -> Trials {
    if urls.is_empty() {
        return Trials(vec![]);
    }
    let way = Way::from_environment();
    let trial = |url: &String| {
        let (way, own) = (way.clone(), url.clone());
        (url.clone(), thread::spawn(move || way.attempt(&own)))
    };
    Trials(urls.iter().map(trial).collect())
}

impl Trials {
    /// What came of them. None takes much longer than its deadline.
    pub(crate) fn findings(self) -> Vec<PreflightFinding> {
        let ended = |(url, trial): (String, JoinHandle<_>)| {
            trial.join().unwrap_or_else(|_| {
                failed(&url, "could not be tried", "Please send us the gate's log.")
            })
        };
        self.0.into_iter().map(ended).collect()
    }
}

/// The way to the outside.
#[derive(Clone)]
struct Way {
    agent: Agent,
    proxy: Option<Proxy>,
}

impl Way {
    fn from_environment() -> Self {
        let proxy = Proxy::try_from_env();
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(authorities()))
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy.clone())
            // Whoever redirects has answered.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("cuda-smoke/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, proxy }
    }

    /// One address. Any answer over HTTP will do.
    fn attempt(&self, url: &str) -> PreflightFinding {
        let deadline = Instant::now() + DEADLINE;
        let mut before = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self
                .agent
                .get(url)
                .config()
                .timeout_global(Some(left))
                .build()
                .call();
            let Err(error) = answer else {
                return PreflightFinding::ok(Check::Egress, url);
            };
            let trouble = Trouble::of(&error);
            let soon = Instant::now() + PAUSE;
            // A try that the deadline cut short says less than the one before it.
            let (trouble, error) = match before {
                Some(before) if trouble == Trouble::TimedOut => before,
                _ => (trouble, error),
            };
            if trouble.is_final() || soon >= deadline {
                return trouble.finding(url, &error, self.proxy_for(url));
            }
            before = Some((trouble, error));
            thread::sleep(PAUSE);
        }
    }

    /// The proxy that is asked for this address, without its credentials.
    fn proxy_for(&self, url: &str) -> Option<String> {
        let proxy = self.proxy.as_ref()?;
        let uri = url.parse().ok()?;
        (!proxy.is_no_proxy(&uri)).then(|| format!("{}:{}", proxy.host(), proxy.port()))
    }
}

/// The kinds of failure that are worth telling apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    NotResolved,
    Refused,
    TimedOut,
    NotTrusted,
    Proxy,
    Other,
}

impl Trouble {
    fn of(error: &Error) -> Self {
        match error {
            Error::HostNotFound => Self::NotResolved,
            Error::Timeout(_) => Self::TimedOut,
            Error::Rustls(rustls::Error::InvalidCertificate(_)) => Self::NotTrusted,
            Error::ConnectProxyFailed(_) | Error::InvalidProxyUrl => Self::Proxy,
            Error::Io(io) => match io.kind() {
                ErrorKind::ConnectionRefused => Self::Refused,
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
                _ if is_certificate(io) => Self::NotTrusted,
                // The standard library has no kind for what getaddrinfo says.
                _ if io.to_string().contains("failed to lookup address") => Self::NotResolved,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }

    /// Whether another try within seconds is pointless.
    fn is_final(self) -> bool {
        matches!(self, Self::TimedOut | Self::NotTrusted)
    }

    fn finding(self, url: &str, error: &Error, proxy: Option<String>) -> PreflightFinding {
        let by_proxy = proxy
            .map(|p| format!(" through the proxy {p}"))
            .unwrap_or_default();
        let finding = match self {
            Self::NotResolved => failed(
                url,
                &format!("cannot be reached{by_proxy}: the name does not resolve"),
                "Check the address in spec.preflight.egress, and the cluster's DNS.",
            ),
            Self::Refused => failed(
                url,
                &format!("refuses the connection{by_proxy}"),
                "Check the address, the firewall, and whether a proxy is needed (spec.github.proxy).",
            ),
            Self::TimedOut => failed(
                url,
                &format!("did not answer within {} s{by_proxy}", DEADLINE.as_secs()),
                "A firewall or NetworkPolicy may drop the way there; allow it, or set spec.github.proxy.",
            ),
            Self::NotTrusted => failed(
                url,
                &format!("shows a certificate that is not trusted{by_proxy}"),
                "A proxy that inspects TLS needs its authority in spec.github.caBundleRef; otherwise check the address.",
            ),
            Self::Proxy => failed(
                url,
                &format!("cannot be reached{by_proxy}: {error}"),
                "Check the proxy in spec.github.proxy, and what it allows.",
            ),
            Self::Other => failed(
                url,
                &format!("cannot be reached{by_proxy}: {error}"),
                "Check the address, the firewall and the proxy.",
            ),
        };
        PreflightFinding {
            found: Some(format!("{self:?}")),
            transient: self == Self::TimedOut,
            ..finding
        }
    }
}

fn failed(url: &str, what: &str, advice: &str) -> PreflightFinding {
    PreflightFinding::failed(Check::Egress, url, format!("{url} {what}"), advice)
}

/// Whether TLS failed on the certificate: rustls hands its errors through as I/O.
fn is_certificate(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

/// The public authorities and the cluster's own. A file that is not there adds nothing.
fn authorities() -> Vec<Certificate<'static>> {
    let extra = std::env::var(EXTRA).unwrap_or_default();
    [PUBLIC, &extra]
        .into_iter()
        .filter_map(|path| fs::read(path).ok())
        .flat_map(|pem| {
            ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect::<Vec<_>>()
        })
        .collect()
}
