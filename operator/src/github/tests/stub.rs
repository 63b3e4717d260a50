//! A server that records what it is asked and answers as it is told.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::github::{
    APP_ID, CaBundle, Client, Clients, Credentials, GitHubUrl, INSTALLATION_ID, PRIVATE_KEY,
    ProxyWay, Reach, TOKEN,
    credentials::tests::{data, pem},
};

/// A listing as fresh as can be.
pub(crate) const NOW: Duration = Duration::ZERO;

/// The stub's own address may be asked.
pub(crate) fn here() -> Reach {
    Reach {
        allowed: vec!["127.0.0.1/32".parse().unwrap()],
        denied: vec![],
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Method and the part of the path that tells requests apart.
    pub(crate) fn line(&self) -> String {
        let path = self
            .path
            .split_once("/actions/runners")
            .map_or(self.path.as_str(), |(_, rest)| rest);
        format!("{} {path}", self.method)
    }
}

/// What to answer.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    ending: Ending,
}

enum Ending {
    Whole,
    /// The length is not said before.
    Streamed,
    /// The connection ends within the body.
    Cut,
    /// The connection ends without any answer.
    HangUp,
}

pub(crate) fn reply(status: u16, body: &Value) -> Reply {
    raw(status, &body.to_string())
}

pub(crate) fn raw(status: u16, body: &str) -> Reply {
    Reply {
        status,
        headers: Vec::new(),
        body: body.as_bytes().to_vec(),
        ending: Ending::Whole,
    }
}

pub(crate) fn hang_up() -> Reply {
    Reply {
        ending: Ending::HangUp,
        ..raw(200, "")
    }
}

pub(crate) fn error(status: u16, message: &str) -> Reply {
    reply(
        status,
        &json!({"message": message, "documentation_url": "https://docs.github.com"}),
    )
}

impl Reply {
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn streamed(mut self) -> Self {
        self.ending = Ending::Streamed;
        self
    }

    pub(crate) fn cut(mut self) -> Self {
        self.ending = Ending::Cut;
        self
    }

    fn into_response(self) -> Result<Response<BoxBody<Bytes, std::io::Error>>, std::io::Error> {
        let body = Bytes::from(self.body);
        let mut response = Response::builder().status(StatusCode::from_u16(self.status).unwrap());
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        let body = match self.ending {
            Ending::HangUp => return Err(std::io::Error::other("hang up")),
            Ending::Whole => Full::new(body)
                .map_err(|never: Infallible| match never {})
                .boxed(),
            Ending::Streamed => {
                let frames = [Ok(Frame::data(body))];
                StreamBody::new(futures::stream::iter(frames)).boxed()
            }
            Ending::Cut => {
                response = response.header("content-length", body.len() + 1);
                let frames = [Ok(Frame::data(body)), Err(std::io::Error::other("cut"))];
                StreamBody::new(futures::stream::iter(frames)).boxed()
            }
        };
        Ok(response.body(body).unwrap())
    }
}

/// TLS for servers of this machine, and the certificate that says so.
pub(crate) fn here_by_tls() -> (Arc<rustls::ServerConfig>, String) {
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key.unwrap())
        .unwrap();
    (Arc::new(tls), certificate.cert.pem())
}

/// The server.
pub(crate) struct Stub {
    address: String,
    authority: String,
    ca: CaBundle,
    seen: Arc<Mutex<Vec<Seen>>>,
    clients: Clients,
}

impl Stub {
    /// Starts one that answers with `script`, which is told how many requests came before.
    pub(crate) async fn start(script: impl FnMut(&Seen, usize) -> Reply + Send + 'static) -> Self {
        let (tls, authority) = here_by_tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let script = Arc::new(Mutex::new(script));
        tokio::spawn({
            let seen = seen.clone();
            async move {
                let acceptor = TlsAcceptor::from(tls);
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (acceptor, seen, script) = (acceptor.clone(), seen.clone(), script.clone());
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else {
                            return;
                        };
                        let service = service_fn(|request: Request<Incoming>| {
                            let (seen, script) = (seen.clone(), script.clone());
                            async move {
                                let request = arrived(request).await;
                                let before = {
                                    let mut seen = seen.lock().unwrap();
                                    seen.push(request.clone());
                                    seen.len() - 1
                                };
                                (script.lock().unwrap())(&request, before).into_response()
                            }
                        });
                        // A script that hangs up makes this an error.
                        let _ = http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    });
                }
            }
        });
        Self {
            address,
            ca: CaBundle::from_pem(authority.as_bytes()).unwrap(),
            authority,
            seen,
            clients: Clients::new(here()),
        }
    }

    /// A client for `owner`, as the web shows it, with a token.
    pub(crate) fn client(&self, owner: &str) -> Arc<Client> {
        self.client_as(
            owner,
            &Credentials::from_secret_data(&data(&[(TOKEN, "ghp_t")])).unwrap(),
        )
    }

    /// A client with a token that trusts another server, too.
    pub(crate) fn client_trusting(&self, owner: &str, other: &Self) -> Arc<Client> {
        let both = format!("{}{}", self.authority, other.authority);
        let bundle = CaBundle::from_pem(both.as_bytes()).unwrap();
        let url = GitHubUrl::parse(&format!("https://{}/{owner}", self.address), false).unwrap();
        let credentials = Credentials::from_secret_data(&data(&[(TOKEN, "ghp_t")])).unwrap();
        self.clients
            .client("ci", &url, &credentials, Some(&bundle), None)
            .unwrap()
    }

    /// A client for a repository, as installation 34 of App 12.
    pub(crate) fn app_client(&self, owner: &str) -> Arc<Client> {
        self.app_client_with(owner, &[(APP_ID, "12"), (INSTALLATION_ID, "34")])
    }

    /// A client of the App that these keys name, with the tests' private key.
    pub(crate) fn app_client_with(&self, owner: &str, keys: &[(&str, &str)]) -> Arc<Client> {
        let data = data(&[keys, &[(PRIVATE_KEY, &pem())]].concat());
        self.client_as(owner, &Credentials::from_secret_data(&data).unwrap())
    }

    pub(crate) fn client_as(&self, owner: &str, credentials: &Credentials) -> Arc<Client> {
        let url = GitHubUrl::parse(&format!("https://{}/{owner}", self.address), false).unwrap();
        self.clients
            .client("ci", &url, credentials, Some(&self.ca), None)
            .unwrap()
    }

    /// A client that goes through a proxy, whose authority it trusts, too.
    pub(crate) fn client_through(
        &self,
        owner: &str,
        through: &ProxyWay,
        authority: &str,
    ) -> Arc<Client> {
        let url = GitHubUrl::parse(&format!("https://{}/{owner}", self.address), false).unwrap();
        let token = Credentials::from_secret_data(&data(&[(TOKEN, "ghp_t")])).unwrap();
        let both = format!("{}{authority}", self.authority);
        let bundle = CaBundle::from_pem(both.as_bytes()).unwrap();
        self.clients
            .client("ci", &url, &token, Some(&bundle), Some(through))
            .unwrap()
    }

    /// A client for a pool of a namespace with this token, beside those of other servers.
    pub(crate) fn client_of(
        &self,
        clients: &Clients,
        namespace: &str,
        token: &str,
        owner: &str,
    ) -> Arc<Client> {
        let url = GitHubUrl::parse(&format!("https://{}/{owner}", self.address), false).unwrap();
        let token = Credentials::from_secret_data(&data(&[(TOKEN, token)])).unwrap();
        clients
            .client(namespace, &url, &token, Some(&self.ca), None)
            .unwrap()
    }

    /// The certificate that it is trusted by, PEM.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

async fn arrived(request: Request<Incoming>) -> Seen {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Seen {
        method: parts.method,
        path: parts.uri.to_string(),
        headers: parts.headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    }
}

/// A page of a listing.
pub(crate) fn page(total: usize, runners: &[Value]) -> Value {
    json!({"total_count": total, "runners": runners})
}

/// An entry as GitHub shows it.
pub(crate) fn runner(id: u64, name: &str, status: &str, busy: bool) -> Value {
    json!({
        "id": id, "name": name, "os": "linux", "status": status, "busy": busy, "ephemeral": true, "version": null,
        "labels": [{"name": "self-hosted", "type": "read-only"}, {"id": 7, "name": "cuda", "type": "custom"}],
    })
}

/// The answer to a registration.
pub(crate) fn registered(id: u64, name: &str) -> Reply {
    reply(
        201,
        &json!({"runner": runner(id, name, "offline", false), "encoded_jit_config": "c2VjcmV0"}),
    )
}
