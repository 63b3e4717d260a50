//! The private protocol with the simulator.

use std::{collections::BTreeMap, env, fs, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use rustls::crypto::aws_lc_rs;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use ureq::{
    Agent,
    http::{Method, Request, StatusCode},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem},
};

/// Where Debian keeps the authorities that a host trusts.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A long poll; the server answers earlier when there is something to say.
pub(crate) const POLL: Duration = Duration::from_secs(50);

/// A connection to the server.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    base: String,
    secret: String,
    http: Agent,
}

/// Why the server said no.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Refusal {
    /// What the agent's behaviour depends on.
    pub(crate) kind: String,
    /// What the agent prints.
    pub(crate) message: String,
}

/// What became of a call that was answered.
pub(crate) type Answered<T> = Result<T, Refusal>;

/// A job that was picked up.
#[expect(clippy::struct_field_names, reason = "the server calls it jobId")]
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    pub(crate) job_id: u64,
    /// What its file says.
    pub(crate) job: workflow_file::Job,
    /// Runs until the server releases it.
    pub(crate) hold: bool,
    /// Whether the server lets it use container hooks.
    pub(crate) container_hooks: bool,
    /// The context `secrets`; all of it is masked.
    pub(crate) secrets: BTreeMap<String, String>,
    /// The context `github`, as far as the server fills it.
    pub(crate) github: BTreeMap<String, String>,
    /// What started the run.
    pub(crate) event: Value,
}

impl Job {
    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        if self.job.name.is_empty() {
            &self.job.key
        } else {
            &self.job.name
        }
    }
}

/// What an agent that waits is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", untagged, rename_all_fields = "camelCase")]
pub(crate) enum Message {
    /// There is a job of this number.
    Job { job_id: u64 },
    /// Ask at this address from now on.
    Migration { broker_base_url: String },
}

/// What the server wants of a running job.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Control {
    /// Stop, and why.
    pub(crate) cancel: Option<String>,
    pub(crate) released: bool,
}

/// Who hears of the steps of a job.
pub(crate) trait Steps {
    /// The step with this number, from 1, begins.
    fn begins(&self, number: usize);
    /// It ended so, with this in its summary.
    fn ended(&self, number: usize, conclusion: &str, summary: &str);
}

/// The steps of a job, told to the server.
#[derive(Debug)]
pub(crate) struct Reported<'a> {
    pub(crate) server: &'a Server,
    pub(crate) job: u64,
}

impl Steps for Reported<'_> {
    fn begins(&self, number: usize) {
        self.server.step(self.job, number, &json!({}));
    }

    fn ended(&self, number: usize, conclusion: &str, summary: &str) {
        let report = json!({"conclusion": conclusion, "summary": summary});
        self.server.step(self.job, number, &report);
    }
}

/// What registering sends.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Registration<'a> {
    pub(crate) url: &'a str,
    pub(crate) token: &'a str,
    pub(crate) name: &'a str,
    pub(crate) labels: Vec<&'a str>,
    pub(crate) group: Option<&'a str>,
    pub(crate) work: &'a str,
    pub(crate) version: String,
    pub(crate) ephemeral: bool,
    pub(crate) replace: bool,
    pub(crate) no_default_labels: bool,
}

/// What registering gives.
#[derive(Debug, Deserialize)]
pub(crate) struct Registered {
    pub(crate) replaced: bool,
    pub(crate) files: BTreeMap<String, Value>,
}

impl Server {
    /// `base` ends in `/_agent`; the secret may be empty before registration.
    pub(crate) fn new(base: &str, secret: &str) -> Result<Self> {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
            .root_certs(RootCerts::new_with_certs(&roots()?))
            .build();
        let http = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(POLL + Duration::from_secs(15)))
            .user_agent("simulated-agent")
            .build()
            .new_agent();
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            secret: secret.to_owned(),
            http,
        })
    }

    fn call(&self, method: &Method, path: &str, body: &str) -> Result<(StatusCode, String)> {
        let url = format!("{}{path}", self.base);
        let kind = if body.starts_with(['{', '[']) {
            "application/json"
        } else {
            "text/plain; charset=utf-8"
        };
        let request = Request::builder()
            .method(method)
            .uri(&url)
            .header("authorization", format!("Bearer {}", self.secret))
            .header("content-type", kind)
            .body(body.to_owned())
            .with_context(|| format!("building {method} {url}"))?;
        let mut response = self
            .http
            .run(request)
            .with_context(|| format!("{method} {url}"))?;
        let text = response
            .body_mut()
            .read_to_string()
            .with_context(|| format!("{method} {url}: reading the answer"))?;
        if response.status().is_server_error() {
            return Err(anyhow!("{method} {url} answered {}", response.status()));
        }
        Ok((response.status(), text))
    }

    /// A call whose refusals have a meaning; `None` is an answer without content.
    fn ask<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: &str,
    ) -> Result<Answered<Option<T>>> {
        let (status, text) = self.call(method, path, body)?;
        if status == StatusCode::NO_CONTENT {
            return Ok(Ok(None));
        }
        if status.is_success() {
            let value = serde_json::from_str(&text)
                .with_context(|| format!("the answer to {method} {path} is not understood"))?;
            return Ok(Ok(Some(value)));
        }
        let refusal = serde_json::from_str(&text)
            .map_err(|_| anyhow!("{method} {path} answered {status}: {text}"))?;
        Ok(Err(refusal))
    }

    /// Adds a runner.
    pub(crate) fn register(&self, registration: &Registration<'_>) -> Result<Answered<Registered>> {
        let body = json!(registration).to_string();
        self.ask(&Method::POST, "/register", &body)?
            .map(|made| made.ok_or_else(|| anyhow!("registering answered nothing")))
            .map_or_else(|refusal| Ok(Err(refusal)), |made| made.map(Ok))
    }

    /// Removes a runner.
    pub(crate) fn remove(&self, url: &str, token: &str, runner: u64) -> Result<Answered<()>> {
        let body = json!({"url": url, "token": token, "runnerId": runner}).to_string();
        Ok(self.ask::<()>(&Method::POST, "/remove", &body)?.map(drop))
    }

    /// Opens a session; gives its name.
    pub(crate) fn open(&self, version: &str) -> Result<Answered<String>> {
        let body = json!({"version": version}).to_string();
        let answered = self.ask::<Value>(&Method::POST, "/sessions", &body)?;
        Ok(answered.map(|opened| {
            opened
                .as_ref()
                .and_then(|opened| opened.get("sessionId"))
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        }))
    }

    /// Ends a session; that it does not work out concerns nobody.
    pub(crate) fn close(&self, session: &str) {
        let _ = self.call(&Method::DELETE, &format!("/sessions/{session}"), "");
    }

    /// The same server at another address.
    pub(crate) fn moved(&self, base: &str) -> Self {
        Self {
            base: base.to_owned(),
            ..self.clone()
        }
    }

    /// Waits for a job.
    pub(crate) fn message(&self, session: &str) -> Result<Answered<Option<Message>>> {
        let path = format!("/sessions/{session}/message?wait={}", POLL.as_secs());
        self.ask(&Method::GET, &path, "")
    }

    /// Picks a job up.
    pub(crate) fn acquire(&self, job: u64) -> Result<Answered<Job>> {
        match self.ask(&Method::POST, &format!("/jobs/{job}/acquire"), "")? {
            Ok(Some(job)) => Ok(Ok(job)),
            Ok(None) => Err(anyhow!("the job was given without content")),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Waits for what the server wants of a running job.
    pub(crate) fn control(&self, job: u64) -> Result<Answered<Option<Control>>> {
        let path = format!("/jobs/{job}/control?wait={}", POLL.as_secs());
        self.ask(&Method::GET, &path, "")
    }

    /// Adds lines to the log of a job.
    pub(crate) fn log(&self, job: u64, lines: &str) -> Result<()> {
        self.call(&Method::POST, &format!("/jobs/{job}/log"), lines)
            .map(drop)
    }

    /// Reports a step. It is worth no second try: the job's end says it again.
    fn step(&self, job: u64, number: usize, report: &Value) {
        let path = format!("/jobs/{job}/steps/{number}");
        let _ = self.call(&Method::POST, &path, &report.to_string());
    }

    /// Says how a job ended.
    pub(crate) fn complete(
        &self,
        job: u64,
        conclusion: &str,
        annotations: &[&str],
        summary: &str,
    ) -> Result<Answered<()>> {
        let body =
            json!({"conclusion": conclusion, "annotations": annotations, "summary": summary});
        let body = body.to_string();
        let path = format!("/jobs/{job}/complete");
        Ok(self.ask::<()>(&Method::POST, &path, &body)?.map(drop))
    }
}

/// The authorities of `SSL_CERT_FILE`, else those of the system.
fn roots() -> Result<Vec<Certificate<'static>>> {
    let path =
        env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(SYSTEM_ROOTS), PathBuf::from);
    let text = fs::read(&path)
        .with_context(|| format!("reading the trusted authorities from {}", path.display()))?;
    Ok(parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect())
}
