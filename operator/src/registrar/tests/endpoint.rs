//! Every answer of the endpoint.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gate_report::wire::{AUDIENCE, MAX_BODY, PATH};
use gate_report::{Device, Driver, Outcome, Report, SCHEMA};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use secrecy::SecretString;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsConnector;

use super::kubernetes::{Secrets, pod_token, reviews};
use crate::registrar::{
    CaStore, Decision, Desk, KnownRunner, Ledger, Limits, Parts, PodIdentity, Policy, PoolKey,
    RegisterError, Registration, Reviewer, RunnerLookup, ServerNames, Version, serve,
};

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
    _stop: oneshot::Sender<()>,
}

fn limits() -> Limits {
    Limits {
        connections: 8,
        reviews: 4,
        pool_burst: 5,
        pool_per_minute: 60,
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
    let mut nobody = pod_token("x", "u-x", AUDIENCE);
    nobody.user.as_mut().unwrap().extra = None;
    let client = reviews(&[
        ("good", pod_token("pool-a", "u-a", AUDIENCE)),
        ("also-good", pod_token("pool-b", "u-b", AUDIENCE)),
        ("stranger", pod_token("stranger", "u-s", AUDIENCE)),
        ("new", pod_token("new", "u-n", AUDIENCE)),
        ("closing", pod_token("closing", "u-c", AUDIENCE)),
        (
            "other-audience",
            pod_token("pool-a", "u-a", "https://kubernetes.default.svc"),
        ),
        ("no-pod", nobody),
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
        _stop: stop,
    }
}

impl Registrar {
    async fn connect(
        &self,
        bundle: &str,
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
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    async fn send(&self, token: Option<&str>, body: impl Into<Bytes>) -> Response<Bytes> {
        let stream = self.connect(&self.ca.bundle()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::post(PATH).header(header::HOST, "registrar");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let answer = sender
            .send_request(request.body(Full::new(body.into())).unwrap())
            .await
            .unwrap();
        let (parts, body) = answer.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
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
    for (token, status, reason) in [
        ("forged", 401, "TokenNotAccepted"),
        ("other-audience", 401, "TokenNotAccepted"),
        ("no-pod", 403, "NoPod"),
        ("stranger", 403, "NoRunner"),
        ("closing", 403, "Closing"),
        ("new", 503, "NotYetKnown"),
        ("outage", 503, "IdentityUnavailable"),
    ] {
        assert_eq!(
            registrar.ask(token).await,
            (status, reason.to_owned()),
            "{token}"
        );
    }
    let nameless = registrar.send(None, body(&report("pool-a"))).await;
    assert_eq!(outcome(&nameless), (401, "NoToken".to_owned()));
    assert_eq!(registrar.registered(), 0);
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
        pool_burst: 2,
        pool_per_minute: 1,
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
async fn one_who_sends_nothing_holds_nobody_up() {
    // Given as many silent clients as there are connections, less one
    let registrar = registrar(limits(), None).await;
    let mut silent = vec![];
    for _ in 0..limits().connections - 1 {
        silent.push(TcpStream::connect(registrar.address).await.unwrap());
    }
    // Then others are served
    assert_eq!(registrar.ask("good").await.0, 200);
    // And what is no TLS ends
    silent[0]
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut rest = vec![];
    tokio::time::timeout(Duration::from_secs(5), silent[0].read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
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
    assert!(registrar.connect(&other.bundle()).await.is_err());
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
    registrar.ask("forged-token").await;
    let log = String::from_utf8_lossy(&written.0.lock().unwrap()).into_owned();
    assert!(
        log.contains("the registrar does not know who asks"),
        "nothing was logged: {log}"
    );
    for secret in [JIT, "forged-token", "Bearer good"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
