//! Every answer of the endpoint.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gate_report::wire::{AUDIENCE, MAX_BODY, PATH};
use gate_report::{Device, Driver, Outcome, Report, SCHEMA};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsConnector;

use super::kubernetes::{Secrets, pod_token, reviews, token, token_with};
use crate::registrar::{
    Bounds, CaStore, Decision, Desk, KnownRunner, Ledger, Limits, Parts, PodIdentity, Policy,
    PoolKey, Rate, RegisterError, Registration, Reviewer, RunnerLookup, ServerNames, Version,
    serve,
};

/// Where gates ask from.
const HONEST: [u8; 4] = [127, 0, 0, 1];
const JIT: &str = "c2VjcmV0LWppdC1jb25maWc=";

/// A desk that knows pods by their names, and registers as it is told.
struct StubDesk {
    registered: AtomicUsize,
    notes: Mutex<Vec<Decision>>,
    fails: Mutex<Option<RegisterError>>,
    slow: Option<Arc<Notify>>,
}

impl Desk for StubDesk {
    async fn runner(&self, pod: &PodIdentity) -> RunnerLookup {
        match pod.name.as_str() {
            "stranger" => RunnerLookup::Unknown,
            "new" => RunnerLookup::NotYetKnown,
            "closing" => RunnerLookup::Closing,
            "served" => RunnerLookup::Served,
            _ => RunnerLookup::Known(KnownRunner {
                pool: PoolKey {
                    namespace: pod.namespace.clone(),
                    name: "pool".into(),
                },
                policy: Policy {
                    devices: Some(1),
                    min_compute_capability: Version { major: 7, minor: 0 },
                    min_cuda_version: Version {
                        major: 12,
                        minor: 0,
                    },
                    require_managed_memory: false,
                    require_preflight: false,
                    pod: pod.name.clone(),
                    node: pod.node.clone(),
                },
            }),
        }
    }

    async fn register(
        &self,
        _: &PodIdentity,
        _: &KnownRunner,
    ) -> Result<Registration, RegisterError> {
        self.registered.fetch_add(1, Ordering::SeqCst);
        if let Some(slow) = &self.slow {
            slow.notified().await;
        }
        let fails = self.fails.lock().unwrap().take();
        fails.map_or_else(
            || Ok(Registration::JitConfig(SecretString::from(JIT.to_owned()))),
            Err,
        )
    }

    async fn note_report(&self, _: &PodIdentity, _: &KnownRunner, _: &Report, decision: &Decision) {
        self.notes.lock().unwrap().push(decision.clone());
    }
}

struct Registrar {
    address: SocketAddr,
    ca: Arc<CaStore>,
    desk: Arc<StubDesk>,
    reviews: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

fn limits() -> Limits {
    Limits {
        door: Bounds {
            connections: 24,
            per_address: 12,
            handshakes_per_address: 8,
            arrivals: Rate {
                burst: 40,
                per_minute: 6000,
            },
            refusals: Rate {
                burst: 8,
                per_minute: 60,
            },
        },
        reviews: 4,
        pool: Rate {
            burst: 5,
            per_minute: 60,
        },
        request_timeout: Duration::from_secs(5),
    }
}

async fn registrar(limits: Limits, slow: Option<Arc<Notify>>) -> Registrar {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let names = ServerNames {
        dns: vec![],
        ips: vec![[127, 0, 0, 1].into()],
    };
    let ca = CaStore::open(Secrets::default().client(), "system", names)
        .await
        .unwrap();
    let (client, reviews) = reviews(&[
        ("good", pod_token("pool-a", "u-a", AUDIENCE)),
        ("also-good", pod_token("pool-b", "u-b", AUDIENCE)),
        (
            "all-audiences",
            pod_token("pool-a", "u-a", "https://kubernetes.default.svc"),
        ),
    ]);
    let desk = Arc::new(StubDesk {
        registered: AtomicUsize::new(0),
        notes: Mutex::default(),
        fails: Mutex::default(),
        slow,
    });
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(serve(
        listener,
        ca.server_config(),
        Parts {
            reviewer: Reviewer::new(client),
            desk: Arc::clone(&desk),
            ledger: Arc::new(Ledger::default()),
            limits,
        },
        async {
            let _ = stopped.await;
        },
    ));
    Registrar {
        address,
        ca,
        desk,
        reviews,
        _stop: stop,
    }
}

impl Registrar {
    /// A connection from an address of this machine, before the handshake.
    async fn reach(&self, from: [u8; 4]) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(self.address).await
    }

    async fn connect(
        &self,
        bundle: &str,
        from: [u8; 4],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = self.reach(from).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    async fn send(&self, token: Option<&str>, body: impl Into<Bytes>) -> Response<Bytes> {
        let token = token.map(known_as);
        let sent = self.send_from(HONEST, token.as_deref(), body).await;
        sent.unwrap()
    }

    async fn send_from(
        &self,
        from: [u8; 4],
        token: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = self.connect(&self.ca.bundle(), from).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::post(PATH).header(header::HOST, "registrar");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body.into()))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(
            parts,
            body.collect().await?.to_bytes(),
        ))
    }

    /// Status and reason of the answer to a passing report of pool-a.
    async fn ask(&self, token: &str) -> (u16, String) {
        outcome(&self.send(Some(token), body(&report("pool-a"))).await)
    }

    /// Waits until somebody is being registered.
    async fn comes_to_the_desk(&self) {
        let first = async {
            while self.registered() == 0 {
                tokio::task::yield_now().await;
            }
        };
        let first = tokio::time::timeout(Duration::from_secs(10), first);
        first.await.expect("no request has come to the desk");
    }

    fn registered(&self) -> usize {
        self.desk.registered.load(Ordering::SeqCst)
    }
}

/// The token that the tests call so.
fn known_as(name: &str) -> String {
    match name {
        "good" | "outage" | "unsigned" | "all-audiences" => token(name, "pool-a", "u-a"),
        "also-good" => token(name, "pool-b", "u-b"),
        "other-pod" => token("good", "pool-b", "u-b"),
        "stranger" | "new" | "closing" | "served" => token(name, name, "u"),
        "other-audience" => token_with(
            name,
            &json!({"aud": ["kubernetes"], "exp": 9_999_999_999_u64}),
        ),
        "expired" => token_with(name, &json!({"aud": [AUDIENCE], "exp": 1_000_000})),
        "no-pod" => token_with(name, &json!({"aud": [AUDIENCE], "exp": 9_999_999_999_u64})),
        "long" => token(&"x".repeat(9000), "pool-a", "u-a"),
        _ => name.to_owned(),
    }
}

fn outcome(answer: &Response<Bytes>) -> (u16, String) {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    (
        answer.status().as_u16(),
        body["reason"].as_str().unwrap_or_default().to_owned(),
    )
}

fn report(pod: &str) -> Report {
    Report {
        schema: SCHEMA.to_owned(),
        outcome: Outcome::Passed,
        pod: Some(pod.to_owned()),
        node: Some("node-a".to_owned()),
        driver: Some(Driver {
            cuda_version: Some("12.9".to_owned()),
            ..Driver::default()
        }),
        devices: vec![Device {
            uuid: "GPU-1".to_owned(),
            compute_capability: "8.0".to_owned(),
            ..Device::default()
        }],
        ..Report::default()
    }
}

fn body(report: &Report) -> Vec<u8> {
    serde_json::to_vec(report).unwrap()
}

#[tokio::test]
async fn a_pod_that_passed_gets_one_registration() {
    let registrar = registrar(limits(), None).await;
    let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let given: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(
        (given["kind"].as_str(), given["encodedJitConfig"].as_str()),
        (Some("JitConfig"), Some(JIT))
    );
    // With another report it gets no second one
    let other = Report {
        version: "another".to_owned(),
        ..report("pool-a")
    };
    assert_eq!(
        outcome(&registrar.send(Some("good"), body(&other)).await),
        (403, "AlreadyRegistered".to_owned())
    );
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_given_again() {
    // Given a gate that has hung up before GitHub had answered
    let go = Arc::new(Notify::new());
    let registrar = Arc::new(registrar(limits(), Some(Arc::clone(&go))).await);
    let first = tokio::spawn({
        let registrar = Arc::clone(&registrar);
        async move { registrar.ask("good").await }
    });
    registrar.comes_to_the_desk().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    go.notify_one();
    // When it asks again, with the same report
    let answer = loop {
        let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
        if outcome(&answer) != (503, "UnderWay".to_owned()) {
            break answer;
        }
    };
    // Then it gets what GitHub has made once
    let given: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(given["encodedJitConfig"].as_str(), Some(JIT), "{given}");
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn who_is_not_a_runner_is_told_apart() {
    let registrar = registrar(limits(), None).await;
    for (token, status, reason, reviews) in [
        // Who cannot be a runner costs no review
        ("forged", 401, "TokenNotAccepted", 0),
        ("other-audience", 401, "TokenNotAccepted", 0),
        ("expired", 401, "TokenNotAccepted", 0),
        ("long", 401, "TokenNotAccepted", 0),
        ("no-pod", 403, "NoPod", 0),
        ("stranger", 403, "NoRunner", 0),
        ("closing", 403, "Closing", 0),
        ("served", 403, "AlreadyRegistered", 0),
        ("new", 503, "NotYetKnown", 0),
        // Who says to be one has to be vouched for
        ("unsigned", 401, "TokenNotAccepted", 1),
        ("all-audiences", 401, "TokenNotAccepted", 1),
        ("outage", 503, "IdentityUnavailable", 1),
    ] {
        let before = registrar.reviews.load(Ordering::SeqCst);
        assert_eq!(
            registrar.ask(token).await,
            (status, reason.to_owned()),
            "{token}"
        );
        let asked = registrar.reviews.load(Ordering::SeqCst) - before;
        assert_eq!(asked, reviews, "{token}");
    }
    // What the token says of itself counts for nothing
    assert_eq!(
        registrar.ask("other-pod").await,
        (200, String::new()),
        "the token is pool-a's, whatever it claims"
    );
    let nameless = registrar.send(None, body(&report("pool-a"))).await;
    assert_eq!(outcome(&nameless), (401, "NoToken".to_owned()));
}

#[tokio::test]
async fn what_can_be_tried_again_says_when() {
    let registrar = registrar(limits(), None).await;
    *registrar.desk.fails.lock().unwrap() = Some(RegisterError::Retry {
        after: Duration::from_millis(6500),
        reason: "RateLimited".into(),
        message: "later".into(),
    });
    let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
    assert_eq!(outcome(&answer), (503, "RateLimited".to_owned()));
    assert_eq!(answer.headers()[header::RETRY_AFTER], "7");
    // The failure has not used the pod's registration up
    assert_eq!(registrar.ask("good").await.0, 200);
}

#[tokio::test]
async fn reports_are_judged_before_anything_is_registered() {
    let registrar = registrar(limits(), None).await;
    let failed = Report {
        outcome: Outcome::Failed,
        ..report("pool-a")
    };
    assert_eq!(
        registrar.send(Some("good"), body(&failed)).await.status(),
        StatusCode::ACCEPTED
    );
    let other = registrar.send(Some("good"), body(&report("pool-b"))).await;
    assert_eq!(outcome(&other), (403, "OtherPod".to_owned()));
    let garbled = registrar.send(Some("good"), "{").await;
    assert_eq!(outcome(&garbled), (400, "ReportInvalid".to_owned()));
    let long = registrar.send(Some("good"), vec![b' '; MAX_BODY + 1]).await;
    assert_eq!(outcome(&long), (400, "ReportNotRead".to_owned()));
    assert_eq!(registrar.registered(), 0);
    let notes = registrar.desk.notes.lock().unwrap();
    assert!(
        matches!(
            notes.as_slice(),
            [Decision::Failed, Decision::Refuse { .. }]
        ),
        "{notes:?}"
    );
}

#[tokio::test]
async fn requests_of_one_pod_at_the_same_time_register_it_once() {
    let go = Arc::new(Notify::new());
    let registrar = Arc::new(registrar(limits(), Some(Arc::clone(&go))).await);
    let first = tokio::spawn({
        let registrar = Arc::clone(&registrar);
        async move { registrar.ask("good").await }
    });
    registrar.comes_to_the_desk().await;
    assert_eq!(registrar.ask("good").await, (503, "UnderWay".to_owned()));
    go.notify_one();
    assert_eq!(first.await.unwrap().0, 200);
    assert_eq!(registrar.registered(), 1);
}

#[tokio::test]
async fn a_pool_that_asks_too_often_waits_and_a_slow_answer_ends() {
    let never = Some(Arc::new(Notify::new()));
    let short = Limits {
        pool: Rate {
            burst: 2,
            per_minute: 1,
        },
        request_timeout: Duration::from_millis(200),
        ..limits()
    };
    let registrar = registrar(short, never).await;
    assert_eq!(registrar.ask("good").await, (503, "Timeout".to_owned()));
    assert_eq!(
        registrar.ask("also-good").await.0,
        403,
        "the report is another pod's"
    );
    let answer = registrar.send(Some("good"), body(&report("pool-a"))).await;
    assert_eq!(outcome(&answer), (429, "TooManyRequests".to_owned()));
    let wait: u64 = answer.headers()[header::RETRY_AFTER]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((30..=60).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_gate_that_waits_is_reviewed_once() {
    let registrar = registrar(limits(), None).await;
    for _ in 0..4 {
        assert_eq!(registrar.ask("good").await.0, 200);
    }
    assert_eq!(registrar.reviews.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_no_tls_ends() {
    let registrar = registrar(limits(), None).await;
    let mut stream = registrar.reach(HONEST).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    ends(&mut stream).await;
}

/// Waits until the other side has hung up.
async fn ends(stream: &mut (impl AsyncRead + Unpin)) {
    let rest = tokio::time::timeout(Duration::from_secs(10), async {
        // A reset is an end, too.
        let _ = stream.read_to_end(&mut vec![]).await;
    });
    rest.await.expect("the connection is still open");
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on() {
    let registrar = registrar(limits(), None).await;
    // Given one who says nothing before the handshake, one after it, and one whose request has no end
    let mut before = registrar.reach(HONEST).await.unwrap();
    let bundle = registrar.ca.bundle();
    let mut after = registrar.connect(&bundle, HONEST).await.unwrap();
    let mut long = registrar.connect(&bundle, HONEST).await.unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nx: {}", "x".repeat(100_000));
    let _ = long.write_all(head.as_bytes()).await;
    // Then each is hung up on
    tokio::join!(ends(&mut before), ends(&mut after), ends(&mut long));
}

#[tokio::test]
async fn hostile_neighbours_do_not_hold_a_gate_up() {
    let registrar = Arc::new(registrar(limits(), None).await);
    // Given one who holds as many silent connections as it gets
    let mut silent = vec![];
    for _ in 0..100 {
        silent.push(registrar.reach([127, 0, 0, 2]).await.unwrap());
    }
    // And one who shows token after token that look like a runner's
    let flood = |from: [u8; 4]| {
        let registrar = Arc::clone(&registrar);
        tokio::spawn(async move {
            for number in 0.. {
                let token = token(&format!("guess-{number}"), "pool-a", "u-a");
                let _ = registrar.send_from(from, Some(&token), "{}").await;
            }
        })
    };
    let floods = [127, 127, 127, 127].map(|first| flood([first, 0, 0, 3]));
    while registrar.reviews.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    // When a gate asks, again and again for a while
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let asked = Instant::now();
        assert_eq!(registrar.ask("good").await.0, 200);
        slowest = slowest.max(asked.elapsed());
    }
    // Then it is served at once
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    // And the API server was hardly asked: a burst, and one a second
    let most = limits().door.refusals.burst as usize + 2 * floods.len();
    let reviews = registrar.reviews.load(Ordering::SeqCst);
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap();
    assert!(reviews <= most + seconds, "{reviews} reviews");
    for flood in floods {
        flood.abort();
    }
}

#[tokio::test]
async fn a_client_with_another_authority_does_not_speak_to_us() {
    let registrar = registrar(limits(), None).await;
    let other = CaStore::open(
        Secrets::default().client(),
        "system",
        ServerNames::default(),
    )
    .await
    .unwrap();
    assert!(registrar.connect(&other.bundle(), HONEST).await.is_err());
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_and_no_registration_is_logged() {
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let registrar = registrar(limits(), None).await;
    registrar.ask("good").await;
    for _ in 0..40 {
        registrar.ask("forged-token").await;
    }
    registrar.ask("unsigned").await;
    let log = String::from_utf8_lossy(&written.0.lock().unwrap()).into_owned();
    // Those who are sent away are told of, now and then, and in short
    let told = log.matches("the registrar does not know who asks").count();
    assert!((1..=11).contains(&told), "told {told} times: {log}");
    for secret in [JIT, "forged-token", "Bearer good", &known_as("good")] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn words_of_others_are_cut_before_they_are_passed_on() {
    let registrar = registrar(limits(), None).await;
    let answer = registrar.send(Some("unsigned"), "{}").await;
    let said: Value = serde_json::from_slice(answer.body()).unwrap();
    let message = said["message"].as_str().unwrap();
    assert!(
        message.contains("unknown") && message.len() <= 2000,
        "{message}"
    );
    assert!(!message.contains(char::is_control), "{message:?}");
}
