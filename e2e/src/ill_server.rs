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
use futures::{StreamExt as _, stream};
use github_simulator::control::Client as GitHub;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{certs::Certificates, tls};

/// What a line would begin with that a server forges.
pub(crate) const FORGED: &str = "FORGED";
/// Runners of one page.
const CROWD: usize = 883_000;
/// The beginning of an answer that is a long one for the operator, in bytes.
const BEGINNING: usize = 65 * 1024;
/// Runners and jobs of a heavy list.
const HEAVY: (usize, usize) = (600, 3_000);
/// A long body, in bytes.
const LONG: usize = 16 * 1024 * 1024;

/// What a server does.
#[derive(Clone, Debug)]
pub(crate) enum Ill {
    /// A page of runners beyond number, each of them tiny.
    Crowd,
    /// Each page is good, and there is always another one.
    Endless,
    /// An answer of many MiB.
    Long,
    /// A refusal of as many.
    LongRefusal,
    /// An answer, byte by byte.
    Trickle,
    /// The beginning of a long answer, and nothing more.
    Stall,
    /// Good answers, each as long as one may be: a list of runners that never changes, and a queue, with labels without
    /// measure.
    Heavy,
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
pub(crate) struct IllServer {
    /// Its address.
    pub(crate) url: String,
    does: Arc<Does>,
    task: AbortHandle,
}

/// What it does, and how often it was asked.
struct Does {
    ill: Ill,
    /// Made once: such a server is not to cost the machine more than its answers do.
    body: Bytes,
    /// Likewise, of jobs.
    jobs: Bytes,
    asked: AtomicUsize,
}

impl Drop for IllServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl IllServer {
    /// Starts one.
    pub(crate) async fn start(address: IpAddr, keys: &TlsAcceptor, ill: Ill) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let url = format!("https://{}", listener.local_addr()?);
        let does = Arc::new(Does {
            body: ill.body().into(),
            jobs: ill.jobs().into(),
            ill,
            asked: AtomicUsize::default(),
        });
        let (keys, serves) = (keys.clone(), Arc::clone(&does));
        let serving = tls::serve(listener, move |stream| {
            connection(stream, keys.clone(), Arc::clone(&serves))
        });
        Ok(Self {
            url,
            does,
            task: tokio::spawn(serving).abort_handle(),
        })
    }

    /// Requests, or connections where it never came to one.
    pub(crate) fn asked(&self) -> usize {
        self.does.asked.load(Ordering::Relaxed)
    }
}

/// Keys for servers at this address, in this folder: gives the acceptor, and the authority that has to be trusted.
pub(crate) fn keys(dir: &Path, address: IpAddr) -> Result<(TlsAcceptor, String)> {
    let certs = Certificates::create(dir, "Servers that mean ill")?;
    certs.server("server", &[], &[address])?;
    let read = |file: &str| {
        std::fs::read_to_string(dir.join(file)).with_context(|| format!("cannot read {file}"))
    };
    let keys = tls::acceptor(&read("server.crt")?, &read("server.key")?)?;
    Ok((keys, read("ca.crt")?))
}

async fn connection(stream: TcpStream, keys: TlsAcceptor, does: Arc<Does>) {
    if let Ill::Silent = does.ill {
        does.asked.fetch_add(1, Ordering::Relaxed);
        let () = std::future::pending().await;
    }
    // Whoever asks hangs up on most of them.
    tls::converse(keys, stream, |request| {
        does.asked.fetch_add(1, Ordering::Relaxed);
        let does = Arc::clone(&does);
        async move { does.answer(request).await }
    })
    .await;
}

impl Ill {
    /// What is the same in each answer.
    fn body(&self) -> String {
        match self {
            Self::Crowd => {
                let tiny = vec![r#"{"id":1,"name":""}"#; CROWD].join(",");
                format!(r#"{{"total_count":{CROWD},"runners":[{tiny}]}}"#)
            }
            Self::Endless => {
                let runner = |id| json!({"id": id, "name": format!("runner-{id}"), "os": "linux", "status": "online", "busy": false, "labels": []});
                let runners: Vec<Value> = (1..=100).map(runner).collect();
                json!({"total_count": u32::MAX, "runners": runners}).to_string()
            }
            Self::Long => {
                let long = "x".repeat(LONG);
                format!(r#"{{"total_count":1,"runners":[],"x":"{long}"}}"#)
            }
            Self::LongRefusal => "x".repeat(LONG),
            Self::Stall => " ".repeat(BEGINNING),
            Self::Heavy => {
                let label = |label: String| json!({"name": label});
                let runner = |id| json!({"id": id, "name": format!("runner-{id}"), "status": "online", "labels": labels(id, 6).map(label).collect::<Vec<_>>()});
                let runners: Vec<Value> = (1..=100).map(runner).collect();
                let padding = "x".repeat(3 * 1024 * 1024);
                json!({"total_count": HEAVY.0, "runners": runners, "padding": padding}).to_string()
            }
            Self::Deep => format!(
                r#"{{"total_count":1,"runners":{}"#,
                "[".repeat(1_000_000)
            ),
            Self::Escapes => {
                json!({"message": escaped("no"), "errors": [escaped("a")], "documentation_url": escaped("b")})
                    .to_string()
            }
            Self::Limits(_) => r#"{"message":"API rate limit exceeded"}"#.to_owned(),
            Self::Trickle | Self::Silent | Self::Redirect(_) | Self::Forger(_) | Self::Trap => {
                String::new()
            }
        }
    }
}

impl Ill {
    /// What is the same in each answer that lists jobs.
    fn jobs(&self) -> String {
        let Self::Heavy = self else {
            return String::new();
        };
        let job = |id| json!({"id": id, "name": format!("job-{id}"), "status": "queued", "labels": labels(id, 40).collect::<Vec<_>>()});
        let jobs: Vec<Value> = (1..=100).map(job).collect();
        json!({"total_count": HEAVY.1, "jobs": jobs}).to_string()
    }
}

/// So many labels, each of a KiB less a little, that nothing else has.
fn labels(of: usize, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{of:08}{number:08}").repeat(62))
}

impl Does {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let answer = Response::builder().header(header::CONTENT_TYPE, "application/json");
        let answer = match &self.ill {
            Ill::Crowd | Ill::Endless | Ill::Long | Ill::Deep => answer,
            Ill::LongRefusal | Ill::Escapes => answer.status(StatusCode::FORBIDDEN),
            Ill::Limits(reset) => answer
                .status(StatusCode::FORBIDDEN)
                .header("x-ratelimit-remaining", "0")
                .header("x-ratelimit-reset", *reset)
                .header(header::RETRY_AFTER, *reset),
            Ill::Redirect(to) => answer
                .status(StatusCode::TEMPORARY_REDIRECT)
                .header(header::LOCATION, to),
            Ill::Silent | Ill::Trap => answer.status(StatusCode::NOT_FOUND),
            Ill::Trickle => {
                let drops = stream::unfold((), async |()| {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    Some((anyhow::Ok(Bytes::from_static(b" ")), ()))
                });
                return Ok(answer.body(Body::from_stream(drops))?);
            }
            Ill::Stall => {
                let beginning = stream::iter([anyhow::Ok(self.body.clone())]);
                let all = beginning.chain(stream::pending());
                return Ok(answer.body(Body::from_stream(all))?);
            }
            Ill::Heavy => return self.heavy(&request),
            Ill::Forger(github) => return forge(github, request).await,
        };
        Ok(answer.body(Body::from(self.body.clone()))?)
    }

    /// An answer that is good, of its kind, and says that it will not change.
    fn heavy(&self, request: &Request<Incoming>) -> Result<Response<Body>> {
        let answer = Response::builder()
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ETAG, "\"heavy\"");
        if request.headers().contains_key(header::IF_NONE_MATCH) {
            let answer = answer.status(StatusCode::NOT_MODIFIED);
            return Ok(answer.body(Body::empty())?);
        }
        let path = request.uri().path();
        let body = if path.ends_with("/jobs") {
            self.jobs.clone()
        } else if path.ends_with("/actions/runs") {
            json!({"total_count": 1, "workflow_runs": [{"id": 1}]})
                .to_string()
                .into()
        } else {
            self.body.clone()
        };
        Ok(answer.body(Body::from(body))?)
    }
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
        && let Ok(mut reported) = serde_json::from_slice(&body)
    {
        distort(&mut reported);
        body = reported.to_string().into();
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
