//! A registrar over real TLS, and those who ask it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gate_report::wire::{AUDIENCE, PATH};
use gate_report::{Device, Driver, Outcome, Report, SCHEMA, Version};
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsConnector;

use super::kubernetes::{Secrets, pod_token, reviews, token, token_with};
use crate::registrar::{
    Backend, Bounds, CaStore, Decision, KnownRunner, Ledger, Limits, Parts, PodIdentity, Policy,
    PoolKey, Rate, RegisterError, Registration, Reviewer, RunnerLookup, ServerNames, serve,
};

/// Where gates ask from.
pub(super) const HONEST: [u8; 4] = [127, 0, 0, 1];
pub(super) const JIT: &str = "c2VjcmV0LWppdC1jb25maWc=";

/// A backend that knows pods by their names, and registers as it is told.
pub(super) struct StubBackend {
    pub(super) registered: AtomicUsize,
    pub(super) notes: Mutex<Vec<Decision>>,
    pub(super) fails: Mutex<Option<RegisterError>>,
    slow: Option<Arc<Notify>>,
}

impl Backend for StubBackend {
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
                    min_compute_capability: Version::new(7, 0),
                    min_cuda_version: Version::new(12, 0),
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

pub(super) struct Registrar {
    address: SocketAddr,
    pub(super) ca: Arc<CaStore>,
    pub(super) backend: Arc<StubBackend>,
    pub(super) reviews: Arc<AtomicUsize>,
    _stop: oneshot::Sender<()>,
}

pub(super) fn limits() -> Limits {
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

pub(super) async fn registrar(limits: Limits, slow: Option<Arc<Notify>>) -> Registrar {
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
    let backend = Arc::new(StubBackend {
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
            backend: Arc::clone(&backend),
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
        backend,
        reviews,
        _stop: stop,
    }
}

impl Registrar {
    /// A connection from an address of this machine, before the handshake.
    pub(super) async fn reach(&self, from: [u8; 4]) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(self.address).await
    }

    pub(super) async fn connect(
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

    pub(super) async fn send(
        &self,
        token: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let token = token.map(known_as);
        let sent = self.send_from(HONEST, token.as_deref(), body).await;
        sent.unwrap()
    }

    pub(super) async fn send_from(
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
    pub(super) async fn ask(&self, token: &str) -> (u16, String) {
        outcome(&self.send(Some(token), body(&report("pool-a"))).await)
    }

    /// Waits until somebody is being registered.
    pub(super) async fn comes_to_the_desk(&self) {
        let first = async {
            while self.registered() == 0 {
                tokio::task::yield_now().await;
            }
        };
        let first = tokio::time::timeout(Duration::from_secs(10), first);
        first.await.expect("no request has come to the backend");
    }

    pub(super) fn registered(&self) -> usize {
        self.backend.registered.load(Ordering::SeqCst)
    }
}

/// The token that the tests call so.
pub(super) fn known_as(name: &str) -> String {
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

pub(super) fn outcome(answer: &Response<Bytes>) -> (u16, String) {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    (
        answer.status().as_u16(),
        body["reason"].as_str().unwrap_or_default().to_owned(),
    )
}

pub(super) fn report(pod: &str) -> Report {
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

pub(super) fn body(report: &Report) -> Vec<u8> {
    serde_json::to_vec(report).unwrap()
}
