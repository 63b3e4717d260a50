//! A registrar over real TLS, and those who ask it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cuda_runner_plan::model::runner::JobPod;
use cudarunner_crds::JobContainers;
use gate_report::wire::{AUDIENCE, JobContainer, REGISTRATIONS, REPORTS, TICKETS, Ticket};
use gate_report::{Device, Driver, Outcome, Report, SCHEMA, Version};
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsConnector;

use super::kubernetes::{Secrets, pod_token, reviews, token, token_with};
use crate::registrar::{
    Backend, Bounds, CaStore, Decision, JobRunner, KnownRunner, Ledger, Limits, Parts, PodIdentity,
    Policy, PoolKey, Purpose, Rate, RegisterError, Registration, Reviewer, RunnerLookup,
    ServerNames, serve,
};

/// Where gates ask from.
pub(super) const HONEST: [u8; 4] = [127, 0, 0, 1];
pub(super) const JIT: &str = "c2VjcmV0LWppdC1jb25maWc=";

/// A backend that knows pods by their names, and registers as it is told.
pub(super) struct StubBackend {
    pub(super) registered: AtomicUsize,
    /// How often an image was to be changed.
    pub(super) let_in: AtomicUsize,
    /// Whether the pods' images were changed, as the watch shows it.
    pub(super) shown: AtomicBool,
    pub(super) notes: Mutex<Vec<Decision>>,
    pub(super) fails: Mutex<Option<RegisterError>>,
    /// The job's containers of the pods that take some, as the watch shows them; `None`: jobs run in the agent's.
    pub(super) job: Mutex<Option<JobPod>>,
    /// What was brought for a job.
    pub(super) brought: Mutex<Vec<JobContainer>>,
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
                    require_peer_access: false,
                    require_preflight: false,
                    pod: pod.name.clone(),
                    node: pod.node.clone(),
                },
                image: Some("example/runner:1".into()),
                let_in: self.shown.load(Ordering::SeqCst),
                shared: false,
                takes_containers: self.job.lock().unwrap().is_some(),
            }),
        }
    }

    async fn job_runner(&self, pod: &PodIdentity) -> RunnerLookup<JobRunner> {
        // One that is online is known all the same.
        let asked = match pod.name.as_str() {
            "served" => "pool-a",
            other => other,
        };
        let asked = PodIdentity {
            name: asked.to_owned(),
            ..pod.clone()
        };
        self.runner(&asked).await.and_then(|known| {
            let Some(pod) = self.job.lock().unwrap().clone() else {
                return RunnerLookup::Unknown;
            };
            RunnerLookup::Known(JobRunner {
                pool: known.pool,
                let_in: known.let_in,
                pod,
                containers: JobContainers {
                    services: asked.name != "pool-b",
                    ..JobContainers::default()
                },
                rights: None,
            })
        })
    }

    async fn bring(
        &self,
        _: &PodIdentity,
        _: &JobRunner,
        wanted: &JobContainer,
    ) -> Result<(), RegisterError> {
        self.brought.lock().unwrap().push(wanted.clone());
        self.fails.lock().unwrap().take().map_or(Ok(()), Err)
    }

    async fn let_in(
        &self,
        _: &PodIdentity,
        _: &KnownRunner,
        summary: &str,
    ) -> Result<(), RegisterError> {
        assert!(Report::read(summary.as_bytes()).unwrap().passed());
        self.let_in.fetch_add(1, Ordering::SeqCst);
        self.fails.lock().unwrap().take().map_or(Ok(()), Err)
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
            burst: 15,
            per_minute: 60,
        },
        looks: Rate {
            burst: 3,
            per_minute: 1,
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
        let_in: AtomicUsize::new(0),
        shown: AtomicBool::new(false),
        notes: Mutex::default(),
        fails: Mutex::default(),
        job: Mutex::default(),
        brought: Mutex::default(),
        slow,
    });
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(serve(
        listener,
        ca.server_config(),
        Parts {
            reviewer: Reviewer::new(client),
            ca: Arc::clone(&ca),
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

    /// A request of an honest pod.
    pub(super) async fn post(
        &self,
        path: &str,
        bearer: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        self.post_from(HONEST, path, bearer, body).await.unwrap()
    }

    pub(super) async fn post_from(
        &self,
        from: [u8; 4],
        path: &str,
        bearer: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        self.send(from, Method::POST, path, bearer, body).await
    }

    async fn send(
        &self,
        from: [u8; 4],
        method: Method,
        path: &str,
        bearer: Option<&str>,
        body: impl Into<Bytes>,
    ) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = self.connect(&self.ca.bundle(), from).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path);
        let mut request = request.header(header::HOST, "registrar");
        if let Some(bearer) = bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let request = request.body(Full::new(body.into()))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(
            parts,
            body.collect().await?.to_bytes(),
        ))
    }

    /// A look of an honest pod.
    pub(super) async fn get(&self, path: &str, bearer: Option<&str>) -> Response<Bytes> {
        let sent = self.send(HONEST, Method::GET, path, bearer, "");
        sent.await.unwrap()
    }

    /// Status and reason of the answer to who shows the token that the tests call so.
    pub(super) async fn show(&self, token: &str) -> (u16, String) {
        outcome(&self.post(TICKETS, Some(&known_as(token)), "").await)
    }

    /// What the registrar gives for a token.
    pub(super) async fn fetch_tickets(&self, token: &str) -> Ticket {
        let answer = self.post(TICKETS, Some(&known_as(token)), "").await;
        serde_json::from_slice(answer.body()).unwrap()
    }

    /// A ticket as the registrar gives it for a token.
    pub(super) async fn fetch_ticket(&self, token: &str) -> String {
        self.fetch_tickets(token).await.ticket
    }

    /// A ticket of this pod, without the registrar's help.
    pub(super) fn ticket_of(&self, pod: &str) -> String {
        self.ticket_for(pod, Purpose::Runner)
    }

    /// The same of a job's.
    pub(super) fn job_ticket_of(&self, pod: &str) -> String {
        self.ticket_for(pod, Purpose::Job)
    }

    fn ticket_for(&self, pod: &str, purpose: Purpose) -> String {
        let identity = PodIdentity {
            namespace: "ci".into(),
            name: pod.into(),
            uid: pod.replace("pool", "u"),
            node: Some("node-a".into()),
        };
        let key = self.ca.ticket_key();
        let ticket = key.issue(&identity, purpose, Timestamp::now());
        ticket.expose_secret().to_owned()
    }

    /// Brings a report for this pod's ticket.
    pub(super) async fn bring(&self, pod: &str, body: impl Into<Bytes>) -> Response<Bytes> {
        let ticket = self.ticket_of(pod);
        self.post(REPORTS, Some(&ticket), body).await
    }

    /// Asks for the registration for this pod's ticket.
    pub(super) async fn register(&self, pod: &str) -> Response<Bytes> {
        let ticket = self.ticket_of(pod);
        self.post(REGISTRATIONS, Some(&ticket), "{}").await
    }

    /// The whole way of an honest pod: status and reason of the last answer.
    pub(super) async fn ask(&self, token: &str) -> (u16, String) {
        let ticket = self.fetch_ticket(token).await;
        let passed = body(&report("pool-a"));
        let answer = self.post(REPORTS, Some(&ticket), passed).await;
        if answer.status() != 200 {
            return outcome(&answer);
        }
        outcome(&self.post(REGISTRATIONS, Some(&ticket), "{}").await)
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
