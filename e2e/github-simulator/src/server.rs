//! TLS, connections, and which part answers which path.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::{Router, body::Body, response::IntoResponse as _};
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::{
    agent, control, deliver, dump, engine,
    exchange::Dropped,
    fixtures,
    openapi::Description,
    operations::OPERATIONS,
    pipeline, scale_sets,
    shared::Shared,
    state::{Settings, World},
};

/// What the simulator needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients reach it, such as `https://10.0.0.1:8443`.
    pub public_url: String,
    /// Its certificate and what leads to the authority, PEM.
    pub certificate_chain_pem: String,
    /// Its private key, PEM.
    pub private_key_pem: String,
    /// Folder of GitHub's description, see [`crate::openapi::ensure`].
    pub openapi: PathBuf,
    /// The state is written here a moment after each change.
    pub dump_file: Option<PathBuf>,
    /// What a test may turn later, too.
    pub settings: Settings,
    /// Whether `craton-co/craton-tensor-wasm` exists from the start.
    pub fixtures: bool,
}

/// Serves until the future is dropped.
pub async fn serve(listener: TcpListener, config: Config) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(&config)?));
    let folder = config.openapi.clone();
    // Half a second of work in a debug build: other tasks of the caller go on.
    let description = tokio::task::spawn_blocking(move || {
        let wanted: Vec<(&str, &str)> = OPERATIONS
            .iter()
            .map(|operation| (operation.source, operation.id))
            .collect();
        Description::load(&folder, &wanted)
    })
    .await
    .context("loading GitHub's description")??;
    let mut world = World::new(&config.public_url, config.settings);
    if config.fixtures {
        fixtures::tensor_wasm(&mut world);
    }
    let shared = Arc::new(Shared::new(world, description));
    let routes = Arc::new(Routes {
        control: control::router(Arc::clone(&shared)),
        agent: agent::router(Arc::clone(&shared)),
    });
    tokio::select! {
        result = accept(listener, acceptor, Arc::clone(&shared), routes) => result,
        result = tick(shared, config.dump_file) => result,
    }
}

fn tls(config: &Config) -> Result<ServerConfig> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(config.certificate_chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .context("reading the simulator's certificate chain")?;
    let key = PrivateKeyDer::from_pem_slice(config.private_key_pem.as_bytes())
        .context("reading the simulator's private key")?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("using the simulator's certificate")?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

#[derive(Debug)]
struct Routes {
    control: Router,
    agent: Router,
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    shared: Arc<Shared>,
    routes: Arc<Routes>,
) -> Result<()> {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: give others time to close some.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let acceptor = acceptor.clone();
        let shared = Arc::clone(&shared);
        let routes = Arc::clone(&routes);
        tokio::spawn(async move {
            let stream = match acceptor.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(%peer, %error, "no TLS");
                    return;
                }
            };
            let service = service_fn(move |request| {
                route(Arc::clone(&shared), Arc::clone(&routes), request, peer)
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
}

async fn route(
    shared: Arc<Shared>,
    routes: Arc<Routes>,
    request: Request<Incoming>,
    peer: SocketAddr,
) -> Result<Response<Body>, Dropped> {
    let path = request.uri().path();
    // The web site, which is no part of the API.
    if path == "/" {
        return Ok("GitHub\n".into_response());
    }
    let router = if path.starts_with("/_sim/") {
        &routes.control
    } else if path.starts_with("/_agent/") || path.starts_with("/_logs/") {
        &routes.agent
    } else if scale_sets::answers(path) {
        return scale_sets::handle(shared, request, peer).await;
    } else {
        return pipeline::handle(shared, request, peer).await;
    };
    let answered: Result<Response<Body>, Infallible> =
        router.clone().oneshot(request.map(Body::new)).await;
    Ok(answered.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response()))
}

/// Moves what only time moves.
async fn tick(shared: Arc<Shared>, dump_file: Option<PathBuf>) -> Result<()> {
    let mut every = tokio::time::interval(Duration::from_millis(200));
    let mut changes = shared.changes();
    loop {
        every.tick().await;
        let changed = {
            let mut world = shared.world();
            let now = world.now();
            engine::pump(&mut world, now)
        };
        if changed {
            shared.notify();
        }
        deliver::begin(&shared);
        if let Some(file) = &dump_file
            && changes.has_changed().unwrap_or(false)
        {
            changes.mark_unchanged();
            let text = dump::all(&shared.world()).to_string();
            tokio::fs::write(file, text)
                .await
                .with_context(|| format!("writing {}", file.display()))?;
        }
    }
}
