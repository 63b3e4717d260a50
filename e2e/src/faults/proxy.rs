//! Stands between one operator and both servers: names and counts every request, and does harm to one of them.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::body::Body;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustix::process::Signal;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{
    events,
    fault::{DELAY, Fault, OUTAGE, PAST_THE_LEASE},
    pace::Pace,
    progress::{Plan, Progress},
    request::{Kind, Server, kind},
};
use crate::tls;

/// The longest body that is read as a whole.
const LONGEST: usize = 64 * 1024 * 1024;
/// A connection that was idle for longer is not used again: servers close theirs after 30 s or more, perhaps just now.
const IDLE: Duration = Duration::from_secs(20);

/// Sends a signal to one of the replicas.
pub(super) type Kill = Arc<dyn Fn(usize, Signal) + Send + Sync>;

/// Where a connection is accepted. Each replica has its own way to the API server, and all have one to GitHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Door {
    server: Server,
    replica: Option<usize>,
}

/// Where the servers are, and the keys of a run.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) acceptor: TlsAcceptor,
    pub(super) client: ClientConfig,
    pub(super) kubernetes: String,
    pub(super) github: String,
}

impl Keys {
    /// Reads a server's certificate and key, and the authorities of the servers.
    pub(super) fn new(
        certificate: &str,
        key: &str,
        authorities: &[String],
        kubernetes: String,
        github: String,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
                roots.add(certificate?)?;
            }
        }
        let provider = aws_lc_rs::default_provider();
        let client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            acceptor: tls::acceptor(certificate, key)?,
            client,
            kubernetes,
            github,
        })
    }
}

/// Ends a connection without a word.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is closed on purpose")
    }
}

impl std::error::Error for Closed {}

type Answer = Result<Response<Body>, Closed>;

/// What all connections of a proxy share.
pub(super) struct Shared {
    http: Http<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// The API server's real base.
    kubernetes: String,
    /// GitHub's real base, and the one that the operator sees.
    github: (String, String),
    pub(super) progress: Arc<Progress>,
    away: watch::Sender<Option<Door>>,
    kill: Kill,
    /// The replica that has last renewed its lease.
    leader: AtomicUsize,
}

/// A proxy that serves until it is dropped.
pub(super) struct Proxy {
    /// Where the API server seems to be, for each replica.
    pub(super) kubernetes: Vec<String>,
    /// Where GitHub seems to be.
    pub(super) github: String,
    pub(super) shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

impl Proxy {
    /// Starts one for so many replicas, on loopback.
    pub(super) async fn start(
        keys: &Keys,
        plan: Option<Plan>,
        replicas: usize,
        kill: Kill,
        pace: &Pace,
    ) -> Result<Self> {
        let listen = async || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let url = format!("https://{}", listener.local_addr()?);
            anyhow::Ok((listener, url))
        };
        let (github, github_url) = listen().await?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(keys.client.clone())
            .https_only()
            .enable_http1()
            .build();
        let shared = Arc::new(Shared {
            http: Http::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE)
                .build(connector),
            kubernetes: keys.kubernetes.clone(),
            github: (keys.github.clone(), github_url.clone()),
            progress: Arc::new(Progress::new(plan, pace)),
            away: watch::Sender::new(None),
            kill,
            leader: AtomicUsize::new(0),
        });
        let serve = |listener, server, replica| {
            let (acceptor, shared) = (keys.acceptor.clone(), Arc::clone(&shared));
            let door = Door { server, replica };
            let converse =
                move |stream| Arc::clone(&shared).converse(door, acceptor.clone(), stream);
            tokio::spawn(tls::serve(listener, converse)).abort_handle()
        };
        let mut tasks = vec![serve(github, Server::GitHub, None)];
        let mut kubernetes = vec![];
        for replica in 0..replicas {
            let (listener, url) = listen().await?;
            tasks.push(serve(listener, Server::Kubernetes, Some(replica)));
            kubernetes.push(url);
        }
        Ok(Self {
            kubernetes,
            github: github_url,
            shared,
            tasks,
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Door {
    /// Whether it is shut where this is away: an API server for one replica, or a server for all.
    fn is_shut(self, away: Option<Self>) -> bool {
        away.is_some_and(|away| {
            away.server == self.server && (away.replica.is_none() || away.replica == self.replica)
        })
    }
}

impl Shared {
    async fn converse(self: Arc<Self>, door: Door, acceptor: TlsAcceptor, stream: TcpStream) {
        if door.is_shut(*self.away.borrow()) {
            return;
        }
        let answer = |request| answer(Arc::clone(&self), door, request);
        tokio::select! {
            () = tls::converse(acceptor, stream, answer) => (),
            () = self.away(door) => (),
        }
    }

    /// Waits until what is behind this door is away.
    async fn away(&self, door: Door) {
        let mut away = self.away.subscribe();
        // The sender lives as long as we do.
        let _ = away.wait_for(|away| door.is_shut(*away)).await;
    }

    /// The replica that asks, or that acts where both come by one way.
    fn replica(&self, door: Door) -> usize {
        door.replica
            .unwrap_or_else(|| self.leader.load(Ordering::SeqCst))
    }

    /// GitHub's address in what goes to GitHub and comes from there. What the operator writes into the cluster stays as it is.
    fn rewrite(&self, server: Server, body: Bytes, back: bool) -> Bytes {
        if server == Server::Kubernetes {
            return body;
        }
        let (real, shown) = &self.github;
        let (from, to) = if back { (shown, real) } else { (real, shown) };
        match std::str::from_utf8(&body) {
            Ok(text) if text.contains(from.as_str()) => text.replace(from.as_str(), to).into(),
            _ => body,
        }
    }
}

async fn answer(shared: Arc<Shared>, door: Door, request: Request<Incoming>) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    let kind = kind(door.server, request.method(), request.uri().path(), query);
    if let Some(replica) = door.replica
        && kind.what == "update:leases"
    {
        shared.leader.store(replica, Ordering::SeqCst);
    }
    let Some(fault) = shared.progress.meet(&kind) else {
        return forward(shared, kind, request).await;
    };
    if let Some((code, body)) = fault.answer(door.server) {
        shared.progress.over();
        return Ok(response(code, body));
    }
    let signal = |signal| (shared.kill)(shared.replica(door), signal);
    match fault {
        Fault::KillBefore => signal(Signal::KILL),
        Fault::KillAfter => {
            let unheard = Unheard(&shared);
            let _ = forward(Arc::clone(&shared), kind, request).await;
            std::mem::forget(unheard);
            signal(Signal::KILL);
        }
        Fault::Hang => {
            signal(Signal::STOP);
            let answer = forward(Arc::clone(&shared), kind, request).await;
            let replica = shared.replica(door);
            tokio::spawn(async move {
                tokio::time::sleep(PAST_THE_LEASE).await;
                (shared.kill)(replica, Signal::CONT);
                shared.progress.over();
            });
            return answer;
        }
        Fault::Isolated => {
            let replica = Some(shared.replica(door));
            let server = Server::Kubernetes;
            outage(&shared, Door { server, replica }, PAST_THE_LEASE);
        }
        Fault::Lost => {
            let _unheard = Unheard(&shared);
            let _ = forward(Arc::clone(&shared), kind, request).await;
        }
        Fault::Delay => {
            // Goes on where the client has given up.
            let late = tokio::spawn(async move {
                tokio::time::sleep(DELAY).await;
                let answer = forward(Arc::clone(&shared), kind, request).await;
                shared.progress.over();
                answer
            });
            return late.await.unwrap_or(Err(Closed));
        }
        _ => {
            let replica = None;
            outage(&shared, Door { replica, ..door }, OUTAGE);
        }
    }
    Err(Closed)
}

/// Ends a fault whose request the operator has given up meanwhile: this goes with its connection.
struct Unheard<'a>(&'a Shared);

impl Drop for Unheard<'_> {
    fn drop(&mut self) {
        self.0.progress.over();
    }
}

fn outage(shared: &Arc<Shared>, door: Door, lasts: Duration) {
    shared.away.send_replace(Some(door));
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        tokio::time::sleep(lasts).await;
        shared.away.send_replace(None);
        shared.progress.over();
    });
}

fn response(code: u16, body: String) -> Response<Body> {
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    if code == 429 {
        let soon = header::HeaderValue::from_static("1");
        answer.headers_mut().insert(header::RETRY_AFTER, soon);
    }
    answer
}

async fn forward(shared: Arc<Shared>, kind: Kind, request: Request<Incoming>) -> Answer {
    tokio::time::timeout(Duration::from_mins(5), pass(&shared, kind, request))
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or(Closed)
}

async fn pass(
    shared: &Arc<Shared>,
    kind: Kind,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let (mut parts, body) = request.into_parts();
    let body = Limited::new(body, LONGEST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    let base = match kind.server {
        Server::Kubernetes => &shared.kubernetes,
        Server::GitHub => &shared.github.0,
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = format!("{base}{path}").parse::<Uri>().context("no URI")?;
    for name in [
        header::HOST,
        header::ACCEPT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONNECTION,
    ] {
        parts.headers.remove(name);
    }
    let body = Full::new(shared.rewrite(kind.server, body, true));
    let (mut parts, body) = shared
        .http
        .request(Request::from_parts(parts, body))
        .await?
        .into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    if kind.is_watch() && parts.status.is_success() {
        let reported = events::watch(Arc::clone(&shared.progress), kind.events(), body);
        return Ok(Response::from_parts(parts, reported));
    }
    let body = Limited::new(body, LONGEST).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = Body::from(shared.rewrite(kind.server, body, false));
    Ok(Response::from_parts(parts, body))
}
