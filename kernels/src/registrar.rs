//! The registrar's client: hands the report in and asks for the registration.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gate_report::wire::{MAX_BODY, PATH, Refusal, Registration};
use gate_report::{Context, Failure, Finding, Report, Step, exit, finding};
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::args::GateArgs;

/// Longest time for one request, answer included: the registrar calls GitHub meanwhile.
const REQUEST: Duration = Duration::from_secs(20);
/// Longest time for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// First and longest pause between two requests.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Longest answer that is read.
const MAX_ANSWER: u64 = 256 * 1024;
/// Longest registration: Linux takes no longer variable into an environment.
const LONGEST_REGISTRATION: usize = 128 * 1024 - 64;
/// Longest message of the registrar's that is repeated, in characters.
const LONGEST_MESSAGE: usize = 2500;

/// What the registrar decided.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Here is the registration.
    Registered(Registration),
    /// The failing report was noted.
    Noted,
    /// No, and asking again will not help.
    Refused(Refusal),
}

/// Why there is no registration.
#[derive(Debug)]
pub(crate) enum Error {
    /// The registrar said no.
    Refused { reason: String, message: String },
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
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } => exit::REFUSED,
            Self::Unreachable(_) => exit::UNREACHABLE,
            Self::Internal(_) => exit::INTERNAL,
        }
    }

    pub(crate) fn failure(&self) -> Failure {
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
        }
    }
}

/// A registrar, and how to prove to it who we are.
pub(crate) struct Registrar<'a> {
    agent: Agent,
    url: String,
    args: &'a GateArgs,
}

/// What became of one request.
enum Try {
    Done(Answer),
    Failed(Error),
    /// Worth another, after a pause if the registrar named one.
    Again(String, Option<Duration>),
}

impl<'a> Registrar<'a> {
    /// A client that trusts the given authorities and no others, speaks through no proxy and follows no redirect:
    /// each would carry the token to someone else.
    pub(crate) fn new(args: &'a GateArgs) -> Result<Self, Error> {
        if !args.registrar_url.starts_with("https://") {
            return Err(Error::Internal(format!(
                "the registrar's URL {} is not https",
                args.registrar_url
            )));
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(authorities(&args.registrar_ca)?))
            .unversioned_rustls_crypto_provider(Arc::new(
                rustls::crypto::aws_lc_rs::default_provider(),
            ))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .user_agent(concat!("cuda-smoke/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self {
            agent,
            url: format!("{}{PATH}", args.registrar_url.trim_end_matches('/')),
            args,
        })
    }

    /// Hands the report in, again and again until there is an answer or the deadline has passed.
    pub(crate) fn submit(&self, report: &Report, deadline: Instant) -> Result<Answer, Error> {
        let body = body(report)?;
        let mut pause = PAUSE.0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (heard, wished) = match self.once(&body, left) {
                Try::Done(answer) => return Ok(answer),
                Try::Failed(error) => return Err(error),
                Try::Again(heard, wished) => (heard, wished),
            };
            let wait = wished.map_or_else(|| jittered(pause), |wished| wished.max(PAUSE.0));
            pause = (pause * 2).min(PAUSE.1);
            if deadline.saturating_duration_since(Instant::now()) <= wait {
                return Err(Error::Unreachable(format!(
                    "No registration from {} in time: {heard}",
                    self.url
                )));
            }
            thread::sleep(wait);
        }
    }

    fn once(&self, body: &[u8], left: Duration) -> Try {
        // Read every time: the kubelet renews it.
        let token = match fs::read_to_string(&self.args.token_file) {
            Ok(token) => token,
            Err(error) => {
                return Try::Failed(Error::Internal(format!(
                    "the service-account token {} could not be read: {error}",
                    self.args.token_file.display()
                )));
            }
        };
        let answer = self
            .agent
            .post(&self.url)
            .config()
            .timeout_global(Some(left.min(REQUEST)))
            .build()
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .send(body);
        match answer {
            Ok(answer) => understand(answer),
            Err(error) => Try::Again(error.to_string(), None),
        }
    }
}

/// What an answer means.
fn understand(mut answer: Response<Body>) -> Try {
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
        StatusCode::OK => match serde_json::from_slice(&text) {
            Ok(registration) if is_plain(&registration) => {
                Try::Done(Answer::Registered(registration))
            }
            Ok(_) => Try::Failed(Error::Internal(
                "the registrar's answer holds no registration that the agent could read".into(),
            )),
            // The parser's words may quote the registration; where it stopped says enough.
            Err(error) => Try::Failed(Error::Internal(format!(
                "the registrar's answer was not understood at column {}; check that operator and gate have the same version",
                error.column()
            ))),
        },
        StatusCode::ACCEPTED => Try::Done(Answer::Noted),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Try::Done(Answer::Refused(refusal(status, &text)))
        }
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => {
            Try::Failed(Error::Internal(format!(
                "the registrar could not read the report: {}",
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

/// Whether it is one word, as both kinds are: the agent's start reads it as such, and takes it into its environment.
fn is_plain(registration: &Registration) -> bool {
    let (Registration::JitConfig {
        encoded_jit_config: word,
    }
    | Registration::RegistrationToken { token: word }) = registration;
    (1..=LONGEST_REGISTRATION).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic())
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

    fn answer(status: u16, retry_after: &[u8], body: Vec<u8>) -> Try {
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
        assert!(matches!(
            given("c2VjcmV0"),
            Try::Done(Answer::Registered(_))
        ));
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
                    Try::Done(Answer::Refused(refusal)) => refusal.reason + &refusal.message,
                    Try::Done(_) => continue,
                    Try::Failed(error) => error.to_string(),
                    Try::Again(heard, _) => heard,
                };
                prop_assert!(said.chars().count() <= 3000);
                prop_assert!(!said.contains(char::is_control), "{:?}", said);
            }
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
