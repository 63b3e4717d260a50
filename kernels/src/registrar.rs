//! The registrar's client: asks for the ticket, hands the report in, asks for the registration and for a job's container.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gate_report::wire::{
    JOB_CONTAINER, JobContainer, JobContainerState, MAX_BODY, REGISTRATIONS, REPORTS, Refusal,
    Registration, TICKETS, Ticket,
};
use gate_report::{Context, Failure, Finding, Report, Step, exit, finding};
use serde::de::{DeserializeOwned, IgnoredAny};
use ureq::config::Config;
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

/// Longest time for one request, answer included: the registrar calls GitHub meanwhile.
const REQUEST: Duration = Duration::from_secs(20);
/// Longest time for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// First and longest pause between two requests.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest answer that is read.
const MAX_ANSWER: u64 = 256 * 1024;
/// Longest ticket or registration: Linux takes no longer variable into an environment.
const LONGEST_WORD: usize = 128 * 1024 - 64;
/// Longest message of the registrar's that is repeated, in characters.
const LONGEST_MESSAGE: usize = 2500;

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed: the runner's image follows.
    Admitted,
    /// The failing report was noted.
    Noted,
}

/// Why the registrar gives nothing.
#[derive(Debug)]
pub enum Error {
    /// The registrar said no, and asking again will not help.
    Refused {
        /// One word.
        reason: String,
        /// One sentence.
        message: String,
    },
    /// It did not say anything in time; with what was heard last.
    Unreachable(String),
    /// A fault of ours.
    Internal(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { reason, message } => write!(f, "refused, {reason}: {message}"),
            Self::Unreachable(text) | Self::Internal(text) => f.write_str(text),
        }
    }
}

impl Error {
    /// With which a container ends.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } => exit::REFUSED,
            Self::Unreachable(_) => exit::UNREACHABLE,
            Self::Internal(_) => exit::INTERNAL,
        }
    }

    /// As a report has it.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let context = Context::at(Step::Registration);
        let fault = match self {
            Self::Refused { .. } => finding(Finding::Refused, context),
            Self::Unreachable(_) => finding(Finding::Unreachable, context),
            Self::Internal(_) => finding(Finding::Internal, context),
        };
        Failure {
            class: fault.class,
            step: Step::Registration,
            code: None,
            code_name: match self {
                Self::Refused { reason, .. } => reason.clone(),
                _ => fault.name.into(),
            },
            call: None,
            device: None,
            uuid: None,
            message: match self {
                Self::Refused { message, .. } => message.clone(),
                _ => format!("{self}. {}", fault.meaning),
            },
            advice: fault.advice.into(),
            confidence: fault.confidence,
            shared: false,
        }
    }
}

/// A registrar.
#[derive(Debug)]
pub struct Registrar {
    agent: Agent,
    url: String,
}

/// What became of one request.
enum Try<T> {
    /// `None` where it was noted and nothing is given.
    Done(Option<T>),
    Failed(Error),
    /// Worth another, after a pause if the registrar named one.
    Again(String, Option<Duration>),
    /// Ended by the deadline of all tries.
    CutShort,
}

/// What the registrar gives. The rest of the answer's text may hold a secret, so no error repeats it.
trait Given: DeserializeOwned {
    /// Whether who takes it can use it.
    fn is_plain(&self) -> bool;
}

impl Given for IgnoredAny {
    fn is_plain(&self) -> bool {
        true
    }
}

impl Given for Ticket {
    fn is_plain(&self) -> bool {
        is_word(&self.ticket) && self.job.as_deref().is_none_or(is_word)
    }
}

/// What Kubernetes says in it is cleaned by whoever shows it.
impl Given for JobContainerState {
    fn is_plain(&self) -> bool {
        true
    }
}

impl Given for Registration {
    /// The agent's start reads it as one word, and takes it into its environment.
    fn is_plain(&self) -> bool {
        let (Self::JitConfig {
            encoded_jit_config: word,
        }
        | Self::RegistrationToken { token: word }) = self;
        is_word(word)
    }
}

/// The registrar has an address: no name is looked up, which a static program could not do with the image's own
/// libraries.
#[derive(Debug)]
struct AddressOnly;

impl Resolver for AddressOnly {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let address: IpAddr = host.parse().map_err(|_| ureq::Error::HostNotFound)?;
        let mut addresses = self.empty();
        addresses.push(SocketAddr::new(address, uri.port_u16().unwrap_or(443)));
        Ok(addresses)
    }
}

impl Registrar {
    /// A client that trusts the given authorities (PEM) and no others, speaks through no proxy and follows no redirect:
    /// each would carry the token to someone else.
    pub fn new(url: &str, ca: &str) -> Result<Self, Error> {
        let wrong = |what| Err(Error::Internal(format!("the registrar's URL {url} {what}")));
        if !url.starts_with("https://") {
            return wrong("is not https");
        }
        let uri = url.parse::<Uri>().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_err() {
            return wrong("has a name where an IP address is needed");
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(authorities(ca)?))
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .user_agent(concat!("cuda-smoke/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self {
            agent: Agent::with_parts(config, DefaultConnector::new(), AddressOnly),
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// A ticket for the pod's token. The token is read for each request: the kubelet renews it.
    pub fn ticket(
        &self,
        token: impl Fn() -> Result<String, Error>,
        deadline: Instant,
    ) -> Result<Ticket, Error> {
        self.ask(TICKETS, &token, Some(b""), deadline)
            .and_then(given)
    }

    /// Hands the report in.
    pub fn report(
        &self,
        ticket: &str,
        report: &Report,
        deadline: Instant,
    ) -> Result<Verdict, Error> {
        let body = body(report)?;
        let bearer = || Ok(ticket.to_owned());
        let answer: Option<IgnoredAny> = self.ask(REPORTS, &bearer, Some(&body), deadline)?;
        Ok(match answer {
            Some(_) => Verdict::Admitted,
            None => Verdict::Noted,
        })
    }

    /// The registration of the pod whose ticket this is.
    pub fn registration(&self, ticket: &str, deadline: Instant) -> Result<Registration, Error> {
        let bearer = || Ok(ticket.to_owned());
        self.ask(REGISTRATIONS, &bearer, Some(b"{}"), deadline)
            .and_then(given)
    }

    /// Asks for a job's container, whose ticket for that this is.
    pub fn job_container(
        &self,
        ticket: &str,
        wanted: &JobContainer,
        deadline: Instant,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(wanted).unwrap_or_default();
        let bearer = || Ok(ticket.to_owned());
        let answer: Option<IgnoredAny> = self.ask(JOB_CONTAINER, &bearer, Some(&body), deadline)?;
        given(answer).map(|_| ())
    }

    /// How far the job's container is.
    pub fn job_container_state(
        &self,
        ticket: &str,
        deadline: Instant,
    ) -> Result<JobContainerState, Error> {
        self.ask(JOB_CONTAINER, &|| Ok(ticket.to_owned()), None, deadline)
            .and_then(given)
    }

    /// Asks again and again until there is an answer or the deadline has passed. Without a body it is a `GET`.
    fn ask<T: Given>(
        &self,
        path: &str,
        bearer: &dyn Fn() -> Result<String, Error>,
        body: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<Option<T>, Error> {
        let url = format!("{}{path}", self.url);
        let late = |heard: &str| {
            let text = format!("No answer of use from {url} in time: {heard}");
            Err(Error::Unreachable(text))
        };
        let (mut pause, mut heard) = (PAUSE.0, "it did not answer".to_owned());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wished = match self.once(&url, &bearer()?, body, left) {
                Try::Done(answer) => return Ok(answer),
                Try::Failed(error) => return Err(error),
                // Why there was no answer, the tries before this one know.
                Try::CutShort => return late(&heard),
                Try::Again(words, wished) => {
                    heard = words;
                    wished
                }
            };
            let wait = wished.map_or_else(|| jittered(pause), |wished| wished.max(PAUSE.0));
            pause = (pause * 2).min(PAUSE.1);
            if deadline.saturating_duration_since(Instant::now()) <= wait {
                return late(&heard);
            }
            thread::sleep(wait);
        }
    }

    fn once<T: Given>(
        &self,
        url: &str,
        bearer: &str,
        body: Option<&[u8]>,
        left: Duration,
    ) -> Try<T> {
        let limit = Some(left.min(REQUEST));
        let bearer = format!("Bearer {}", bearer.trim());
        let answer = match body {
            Some(body) => self
                .agent
                .post(url)
                .header(header::AUTHORIZATION, bearer)
                .header(header::CONTENT_TYPE, "application/json")
                .config()
                .timeout_global(limit)
                .build()
                .send(body),
            None => self
                .agent
                .get(url)
                .header(header::AUTHORIZATION, bearer)
                .config()
                .timeout_global(limit)
                .build()
                .call(),
        };
        match answer {
            Ok(answer) => understand(answer),
            Err(ureq::Error::Timeout(_)) if left < REQUEST => Try::CutShort,
            Err(error) => Try::Again(error.to_string(), None),
        }
    }
}

fn given<T>(answer: Option<T>) -> Result<T, Error> {
    answer.ok_or_else(|| Error::Internal("the registrar noted a request that is no report".into()))
}

/// What an answer means.
fn understand<T: Given>(mut answer: Response<Body>) -> Try<T> {
    let status = answer.status();
    let wished = answer
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let text = match answer
        .body_mut()
        .with_config()
        .limit(MAX_ANSWER)
        .read_to_vec()
    {
        Ok(text) => text,
        Err(error) => {
            return Try::Again(format!("the registrar's answer broke off: {error}"), None);
        }
    };
    match status {
        StatusCode::OK => match serde_json::from_slice::<T>(&text) {
            Ok(given) if given.is_plain() => Try::Done(Some(given)),
            Ok(_) => Try::Failed(Error::Internal(
                "the registrar's answer holds nothing that could be used".into(),
            )),
            // The parser's words may quote a secret; where it stopped says enough.
            Err(error) => Try::Failed(Error::Internal(format!(
                "the registrar's answer was not understood at column {}; check that operator and gate have the same version",
                error.column()
            ))),
        },
        StatusCode::ACCEPTED => Try::Done(None),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let Refusal { reason, message } = refusal(status, &text);
            Try::Failed(Error::Refused { reason, message })
        }
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
            Try::Failed(Error::Internal(format!(
                "the registrar could not read the request: {}",
                refusal(status, &text).message
            )))
        }
        _ => {
            let refusal = refusal(status, &text);
            Try::Again(
                format!(
                    "the registrar answered {}: {}: {}",
                    status.as_u16(),
                    refusal.reason,
                    refusal.message
                ),
                wished,
            )
        }
    }
}

/// The registrar's own words, no more than a few lines of them, or at least the status.
fn refusal(status: StatusCode, text: &[u8]) -> Refusal {
    match serde_json::from_slice::<Refusal>(text) {
        Ok(refusal) => Refusal {
            reason: gate_report::clean(&refusal.reason, 64),
            message: gate_report::clean(&refusal.message, LONGEST_MESSAGE),
        },
        Err(_) => Refusal {
            reason: format!("Status{}", status.as_u16()),
            message: format!("The registrar answered {status} without saying why."),
        },
    }
}

fn is_word(word: &str) -> bool {
    (1..=LONGEST_WORD).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic())
}

/// The whole report, or its summary where the whole is longer than the registrar reads.
fn body(report: &Report) -> Result<Vec<u8>, Error> {
    let whole = serde_json::to_vec(report)
        .map_err(|error| Error::Internal(format!("the report could not be written: {error}")))?;
    Ok(if whole.len() <= MAX_BODY {
        whole
    } else {
        report.summary().into_bytes()
    })
}

fn authorities(pem: &str) -> Result<Vec<Certificate<'static>>, Error> {
    let certificates: Vec<_> = ureq::tls::parse_pem(pem.as_bytes())
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::Internal(
            "the registrar's CA holds no certificate".into(),
        ));
    }
    Ok(certificates)
}

/// Between half of `pause` and the whole: a hundred gates that were turned away together do not come back together.
fn jittered(pause: Duration) -> Duration {
    // The standard library's only source of randomness.
    let random = RandomState::new().build_hasher().finish() % 1000;
    pause / 2 + pause / 2 * u32::try_from(random).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(status: u16, retry_after: &[u8], body: Vec<u8>) -> Try<Registration> {
        let mut answer = Response::builder().status(status);
        if let Ok(value) = header::HeaderValue::from_bytes(retry_after) {
            answer = answer.header(header::RETRY_AFTER, value);
        }
        understand(answer.body(Body::builder().data(body)).unwrap())
    }

    #[test]
    fn a_registration_that_no_agent_could_read_is_none() {
        let given = |word: &str| {
            let body = serde_json::json!({"kind": "JitConfig", "encodedJitConfig": word});
            answer(200, b"", body.to_string().into_bytes())
        };
        assert!(matches!(given("c2VjcmV0"), Try::Done(Some(_))));
        for word in ["", "two words", "a\nb", "\u{0}", &"x".repeat(140_000)] {
            assert!(
                matches!(given(word), Try::Failed(_)),
                "{} bytes",
                word.len()
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_the_registrar_answers_it_is_understood_in_a_few_plain_words(
            status in 200..600_u16,
            retry_after in proptest::collection::vec(any::<u8>(), 0..30),
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            text in "\\PC{0,50}|[\u{0}-\u{1f}\u{7f}-\u{9f}]{1,20}",
            times in 1..3000_usize,
        ) {
            let refusal = serde_json::json!({"reason": text.repeat(times), "message": text.repeat(times)});
            for body in [bytes, refusal.to_string().into_bytes()] {
                let said = match answer(status, &retry_after, body) {
                    Try::Done(_) | Try::CutShort => continue,
                    Try::Failed(error) => error.to_string(),
                    Try::Again(heard, _) => heard,
                };
                prop_assert!(said.chars().count() <= 3000);
                prop_assert!(!said.contains(char::is_control), "{:?}", said);
            }
        }
    }

    #[test]
    fn a_registrar_has_an_address_and_no_name() {
        let key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertificateParams::default().self_signed(&key);
        let ca = ca.unwrap().pem();
        for (url, good) in [
            ("https://10.0.0.1:8443", true),
            ("https://[fd00::1]:8443/", true),
            ("https://registrar.svc:8443", false),
            ("http://10.0.0.1:8443", false),
            ("https://", false),
        ] {
            assert_eq!(Registrar::new(url, &ca).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn pauses_are_spread() {
        let pauses: Vec<_> = (0..100).map(|_| jittered(Duration::from_secs(1))).collect();
        assert!(
            pauses
                .iter()
                .all(|pause| (500..=1000).contains(&pause.as_millis()))
        );
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }

    #[test]
    fn a_report_that_is_too_long_goes_in_short() {
        let mut report = Report::new("0");
        assert_eq!(body(&report).unwrap(), serde_json::to_vec(&report).unwrap());
        report.version = "x".repeat(MAX_BODY);
        assert!(body(&report).unwrap().len() <= gate_report::SUMMARY_LIMIT);
    }
}
