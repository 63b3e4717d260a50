//! GitHub servers that mean ill, one for each thing that a server can do to those who ask it.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::body::Body;
use futures::stream;
use github_simulator::control::Client as GitHub;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::certs::Certificates;

/// What a line would begin with that a server forges.
pub(super) const FORGED: &str = "FORGED";
/// Runners of one page.
const CROWD: usize = 883_000;
/// The body of a refusal, in bytes.
const LONG: usize = 16 * 1024 * 1024;

/// What a server does.
#[derive(Clone, Debug)]
pub(super) enum Ill {
    /// A page of runners beyond number, each of them tiny.
    Crowd,
    /// Pages without an end.
    Endless,
    /// A refusal of many MiB.
    LongRefusal,
    /// An answer, byte by byte.
    Trickle,
    /// It takes connections and says nothing.
    Silent,
    /// Lists within lists.
    Deep,
    /// A refusal that moves cursors and forges lines.
    Escapes,
    /// Limits that end before they begin, or never.
    Limits(&'static str),
    /// It sends those who ask to somebody else.
    Redirect(String),
    /// GitHub's own answers, with names that move cursors, and jobs that end in the year 9999.
    Forger(Box<GitHub>),
    /// Nobody should come here.
    Trap,
}

/// A server that serves until it is dropped.
pub(super) struct IllServer {
    /// Its address.
    pub(super) url: String,
    asked: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for IllServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl IllServer {
    /// Requests, or connections where it never came to one.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Keys for servers at this address, in this folder: gives the acceptor, and the authority that has to be trusted.
pub(super) fn keys(dir: &Path, address: IpAddr) -> Result<(TlsAcceptor, String)> {
    let certs = Certificates::create(dir, "Servers that mean ill")?;
    certs.server("server", &[], &[address])?;
    let read =
        |file: &str| std::fs::read(dir.join(file)).with_context(|| format!("cannot read {file}"));
    let chain = CertificateDer::pem_slice_iter(&read("server.crt")?).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")?)?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let authority = String::from_utf8(read("ca.crt")?)?;
    Ok((TlsAcceptor::from(Arc::new(config)), authority))
}

/// Starts one.
pub(super) async fn start(address: IpAddr, keys: &TlsAcceptor, ill: Ill) -> Result<IllServer> {
    let listener = TcpListener::bind((address, 0)).await?;
    let url = format!("https://{}", listener.local_addr()?);
    let asked: Arc<AtomicUsize> = Arc::default();
    let serving = serve(listener, keys.clone(), Arc::new(ill), Arc::clone(&asked));
    Ok(IllServer {
        url,
        asked,
        task: tokio::spawn(serving).abort_handle(),
    })
}

async fn serve(listener: TcpListener, keys: TlsAcceptor, ill: Arc<Ill>, asked: Arc<AtomicUsize>) {
    // They end with the one that accepted them.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (keys, ill, asked) = (keys.clone(), Arc::clone(&ill), Arc::clone(&asked));
        connections.spawn(connection(stream, keys, ill, asked));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, keys: TlsAcceptor, ill: Arc<Ill>, asked: Arc<AtomicUsize>) {
    if let Ill::Silent = *ill {
        asked.fetch_add(1, Ordering::Relaxed);
        let () = std::future::pending().await;
    }
    let Ok(stream) = keys.accept(stream).await else {
        return;
    };
    let service = service_fn(|request| {
        asked.fetch_add(1, Ordering::Relaxed);
        let ill = Arc::clone(&ill);
        async move { answer(&ill, request).await }
    });
    // Whoever asks hangs up on most of them.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(ill: &Ill, request: Request<Incoming>) -> Result<Response<Body>> {
    let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
    let runner = r#"{"id":1,"name":"a","os":"","status":"online","busy":false,"labels":[]}"#;
    let page = |runners: usize| {
        let all = vec![runner; runners].join(",");
        format!(r#"{{"total_count":1000000000,"runners":[{all}]}}"#)
    };
    Ok(match ill {
        Ill::Crowd => {
            let all = "{},".repeat(CROWD);
            answer.body(Body::from(format!(
                r#"{{"total_count":1,"runners":[{all}{runner}]}}"#
            )))?
        }
        Ill::Endless => {
            let next = format!("<https://{}>; rel=\"next\"", request.uri());
            answer
                .header(header::LINK, next)
                .body(Body::from(page(100)))?
        }
        Ill::LongRefusal => answer
            .status(StatusCode::FORBIDDEN)
            .body(Body::from("x".repeat(LONG)))?,
        Ill::Trickle => answer.body(Body::from_stream(stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Some((anyhow::Ok(Bytes::from_static(b" ")), ()))
        })))?,
        Ill::Deep => {
            let deep = "[".repeat(1_000_000);
            answer.body(Body::from(format!(r#"{{"total_count":1,"runners":{deep}"#)))?
        }
        Ill::Escapes => {
            let told = json!({"message": escaped("no"), "errors": [escaped("a")], "documentation_url": escaped("b")});
            answer
                .status(StatusCode::FORBIDDEN)
                .body(Body::from(told.to_string()))?
        }
        Ill::Limits(reset) => answer
            .status(StatusCode::FORBIDDEN)
            .header("x-ratelimit-remaining", "0")
            .header("x-ratelimit-reset", *reset)
            .header(header::RETRY_AFTER, *reset)
            .body(Body::from(r#"{"message":"API rate limit exceeded"}"#))?,
        Ill::Redirect(to) => answer
            .status(StatusCode::TEMPORARY_REDIRECT)
            .header(header::LOCATION, to)
            .body(Body::empty())?,
        Ill::Forger(github) => forge(github, request).await?,
        Ill::Silent | Ill::Trap => answer.status(StatusCode::NOT_FOUND).body(Body::empty())?,
    })
}

/// A name that clears a screen, sets a title, turns the direction of text, and begins a line of its own.
fn escaped(name: &str) -> String {
    format!("{name}\u{1b}[2J\u{1b}]0;owned\u{7}\u{202e}\r\n{FORGED} a line\u{0}")
}

async fn forge(github: &GitHub, request: Request<Incoming>) -> Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let body: Option<Value> = serde_json::from_slice(&body).ok();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let headers: Vec<(&str, &str)> = parts
        .headers
        .iter()
        .filter(|(name, _)| ![header::HOST, header::CONTENT_LENGTH].contains(name))
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
        .filter(|(name, _)| *name != "content-type")
        .collect();
    let (status, mut headers, body) = github
        .send(parts.method, path, &headers, body.as_ref())
        .await?;
    let mut body = body;
    if path.contains("/actions/runs")
        && let Ok(mut told) = serde_json::from_slice(&body)
    {
        distort(&mut told);
        body = told.to_string().into();
    }
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
    ] {
        headers.remove(name);
    }
    let reset = header::HeaderValue::from_static("-9223372036854775808");
    headers.insert("x-ratelimit-reset", reset);
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    Ok(answer)
}

/// Names and ends of jobs, as nobody has them.
fn distort(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(distort),
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), &mut *value) {
                    ("completed_at", Value::String(at)) => {
                        "9999-12-30T22:00:00.999999999Z".clone_into(at);
                    }
                    ("started_at", Value::String(at)) => "-009999-01-02T01:59:59Z".clone_into(at),
                    (
                        "name" | "workflow_name" | "conclusion" | "display_title",
                        Value::String(text),
                    ) => {
                        *text = escaped(text);
                    }
                    _ => distort(value),
                }
            }
        }
        _ => {}
    }
}
