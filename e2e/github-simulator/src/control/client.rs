//! The client of the control API.

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

use super::types::{
    Budget, Clock, JobView, Log, NewApp, NewCredential, NewEnterprise, NewJob, NewOrganization,
    NewRepository, NewRun, NewRunner, Problem, PublishedApp, PublishedInstallation, PublishedToken,
    ScaleSetView, StartedRun, State, UpdateInstallation, UpdateRepository, UpdateWorkflow,
};
use crate::{
    faults::Fault,
    state::{Seen, Settings, Violation},
    text,
};

/// Longer than any answer takes, slowed ones included. Without an end, a machine that is gone is waited for until TCP
/// gives up, a quarter of an hour.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection that was idle for longer is not used again: the server closes it after 30 s, perhaps just now.
const IDLE: Duration = Duration::from_secs(20);

/// Why a call to the control API failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authority's certificate cannot be used.
    #[error("the simulator's authority cannot be used: {0}")]
    Authority(String),
    /// No answer.
    #[error("the simulator at {url} did not answer: {reason}")]
    Unreachable {
        /// What was called.
        url: String,
        /// Why it failed.
        reason: String,
    },
    /// It said no.
    #[error("the simulator refused {call}: {status}: {reason}")]
    Refused {
        /// What was called.
        call: String,
        /// The status.
        status: StatusCode,
        /// Its words.
        reason: String,
    },
    /// An answer of another form.
    #[error("the simulator's answer to {call} is not as expected: {reason}")]
    Unexpected {
        /// What was called.
        call: String,
        /// Why.
        reason: String,
    },
}

/// Speaks to the control API.
#[derive(Debug, Clone)]
pub struct Client {
    base: String,
    http: Http<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// A client for the simulator at `base`, trusting only the authorities in `ca_pem`.
    pub fn new(base: &str, ca_pem: &str) -> Result<Self, Error> {
        let authority = |error: &dyn std::fmt::Display| Error::Authority(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|error| authority(&error))?;
            roots.add(certificate).map_err(|error| authority(&error))?;
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| authority(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            http: Http::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE)
                .build(connector),
        })
    }

    /// Any request to the simulator: status, headers and body. Suites use it for REST, too.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(StatusCode, http::HeaderMap, Bytes), Error> {
        let url = format!("{}{path}", self.base);
        let unreachable = |reason: String| Error::Unreachable {
            url: url.clone(),
            reason,
        };
        let mut request = Request::builder().method(method).uri(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bytes = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| unreachable(error.to_string()))?;
        let exchange = async {
            let response = self
                .http
                .request(request)
                .await
                .map_err(|error| unreachable(chain(&error)))?;
            let (parts, body) = response.into_parts();
            let bytes = body
                .collect()
                .await
                .map_err(|error| unreachable(chain(&error)))?
                .to_bytes();
            Ok((parts.status, parts.headers, bytes))
        };
        let late = || unreachable(format!("nothing came within {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| late())?
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Error> {
        let call = format!("{method} {path}");
        let unexpected = |error: serde_json::Error| Error::Unexpected {
            call: call.clone(),
            reason: error.to_string(),
        };
        let body = body.map(|body| json!(body));
        let (status, _, bytes) = self.send(method, path, &[], body.as_ref()).await?;
        if !status.is_success() {
            let reason = serde_json::from_slice::<Problem>(&bytes).map_or_else(
                |_| String::from_utf8_lossy(&bytes).into_owned(),
                |problem| problem.error,
            );
            return Err(Error::Refused {
                call,
                status,
                reason,
            });
        }
        // An empty answer reads as null, which fits `()`.
        let text: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
        serde_json::from_slice(text).map_err(unexpected)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Error> {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn patch(&self, path: &str, body: &(impl Serialize + Sync)) -> Result<(), Error> {
        self.call(Method::PATCH, path, Some(body)).await
    }

    async fn delete(&self, path: &str) -> Result<(), Error> {
        self.call(Method::DELETE, path, None::<&()>).await
    }

    /// Whether it answers.
    pub async fn ready(&self) -> bool {
        self.get::<()>("/_sim/ready").await.is_ok()
    }

    /// The whole state.
    pub async fn state(&self) -> Result<State, Error> {
        self.get("/_sim/state").await
    }

    /// What a test may turn.
    pub async fn settings(&self) -> Result<Settings, Error> {
        self.get("/_sim/settings").await
    }

    /// Changes some settings; names as in [`Settings`], camel case.
    pub async fn change_settings(&self, changes: &Value) -> Result<(), Error> {
        self.patch("/_sim/settings", changes).await
    }

    /// Lets time pass at once.
    pub async fn advance(&self, seconds: u32) -> Result<(), Error> {
        let clock = Clock {
            advance_seconds: seconds,
        };
        self.post("/_sim/clock", &clock).await
    }

    /// Makes a repository.
    pub async fn create_repository(&self, new: &NewRepository) -> Result<(), Error> {
        self.post("/_sim/repositories", new).await
    }

    /// Changes a repository.
    pub async fn update_repository(
        &self,
        full_name: &str,
        update: &UpdateRepository,
    ) -> Result<(), Error> {
        self.patch(&format!("/_sim/repositories/{full_name}"), update)
            .await
    }

    /// Deletes a repository with all that it holds.
    pub async fn delete_repository(&self, full_name: &str) -> Result<(), Error> {
        self.delete(&format!("/_sim/repositories/{full_name}"))
            .await
    }

    /// Switches a workflow off or on.
    pub async fn update_workflow(
        &self,
        repository: &str,
        workflow: &str,
        update: &UpdateWorkflow,
    ) -> Result<(), Error> {
        let path = format!("/_sim/repositories/{repository}/workflows/{workflow}");
        self.patch(&path, update).await
    }

    /// Makes an organization, or changes its groups.
    pub async fn create_organization(&self, new: &NewOrganization) -> Result<(), Error> {
        self.post("/_sim/organizations", new).await
    }

    /// Makes an enterprise, or changes it.
    pub async fn create_enterprise(&self, new: &NewEnterprise) -> Result<(), Error> {
        self.post("/_sim/enterprises", new).await
    }

    /// Makes an App.
    pub async fn create_app(&self, new: &NewApp) -> Result<PublishedApp, Error> {
        self.post("/_sim/apps", new).await
    }

    /// Changes an installation.
    pub async fn update_installation(
        &self,
        id: u64,
        update: &UpdateInstallation,
    ) -> Result<(), Error> {
        self.patch(&format!("/_sim/installations/{id}"), update)
            .await
    }

    /// Uninstalls an App.
    pub async fn delete_installation(&self, id: u64) -> Result<(), Error> {
        self.delete(&format!("/_sim/installations/{id}")).await
    }

    /// Makes a personal token; gives the secret.
    pub async fn create_token(&self, new: &NewCredential) -> Result<String, Error> {
        let made: PublishedToken = self.post("/_sim/tokens", new).await?;
        Ok(made.token)
    }

    /// Revokes a personal token.
    pub async fn delete_token(&self, name: &str) -> Result<(), Error> {
        self.delete(&format!("/_sim/tokens/{}", text::percent_encode(name)))
            .await
    }

    /// Queues a single job.
    pub async fn queue(&self, new: &NewJob) -> Result<StartedRun, Error> {
        self.post("/_sim/jobs", new).await
    }

    /// All jobs.
    pub async fn jobs(&self) -> Result<Vec<JobView>, Error> {
        self.get("/_sim/jobs").await
    }

    /// One job.
    pub async fn job(&self, id: u64) -> Result<JobView, Error> {
        self.get(&format!("/_sim/jobs/{id}")).await
    }

    /// What a job printed.
    pub async fn job_log(&self, id: u64) -> Result<String, Error> {
        let log: Log = self.get(&format!("/_sim/jobs/{id}/log")).await?;
        Ok(log.log)
    }

    /// Lets a held job end.
    pub async fn release(&self, job: u64) -> Result<(), Error> {
        self.post(&format!("/_sim/jobs/{job}/release"), &()).await
    }

    /// Starts a run by any event.
    pub async fn start_run(&self, new: &NewRun) -> Result<StartedRun, Error> {
        self.post("/_sim/runs", new).await
    }

    /// Cancels a run, as a person would.
    pub async fn cancel_run(&self, run: u64) -> Result<(), Error> {
        self.post(&format!("/_sim/runs/{run}/cancel"), &()).await
    }

    /// Adds a runner that a user has, which never comes online; gives its number.
    pub async fn create_runner(&self, new: &NewRunner) -> Result<u64, Error> {
        let made: PublishedInstallation = self.post("/_sim/runners", new).await?;
        Ok(made.id)
    }

    /// Removes a runner behind everybody's back.
    pub async fn delete_runner(&self, id: u64) -> Result<(), Error> {
        self.delete(&format!("/_sim/runners/{id}")).await
    }

    /// All runner scale sets.
    pub async fn scale_sets(&self) -> Result<Vec<ScaleSetView>, Error> {
        self.get("/_sim/scale-sets").await
    }

    /// Ends the session of a scale set, as the service does at will.
    pub async fn end_session(&self, scale_set: u64) -> Result<(), Error> {
        self.delete(&format!("/_sim/scale-sets/{scale_set}/session"))
            .await
    }

    /// Deletes a scale set behind everybody's back.
    pub async fn delete_scale_set(&self, id: u64) -> Result<(), Error> {
        self.delete(&format!("/_sim/scale-sets/{id}")).await
    }

    /// Injects a fault; gives its number.
    pub async fn inject(&self, fault: &Fault) -> Result<u64, Error> {
        let made: PublishedInstallation = self.post("/_sim/faults", fault).await?;
        Ok(made.id)
    }

    /// Faults that still wait, with how often they hit.
    pub async fn faults(&self) -> Result<Vec<Fault>, Error> {
        self.get("/_sim/faults").await
    }

    /// Takes all faults back.
    pub async fn clear_faults(&self) -> Result<(), Error> {
        self.delete("/_sim/faults").await
    }

    /// Sets the budget of a credential.
    pub async fn set_budget(&self, budget: &Budget) -> Result<(), Error> {
        self.post("/_sim/budgets", budget).await
    }

    /// REST requests after number `since`.
    pub async fn requests(&self, since: u64) -> Result<Vec<Seen>, Error> {
        self.get(&format!("/_sim/requests?since={since}")).await
    }

    /// What broke GitHub's description.
    pub async fn violations(&self) -> Result<Vec<Violation>, Error> {
        self.get("/_sim/violations").await
    }

    /// Forgets what broke GitHub's description, for tests that break it on purpose.
    pub async fn clear_violations(&self) -> Result<(), Error> {
        self.delete("/_sim/violations").await
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
