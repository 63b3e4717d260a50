//! Plays gate, agent and kubelet for pods on simulated nodes, where no container runs: the same requests to the
//! registrar, the same words in the pod's status.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use gate_report::{
    Device, Driver, Outcome, Report,
    contract::{GPU, MAIN, gate, mark},
    wire::{AUDIENCE, REGISTRATIONS, REPORTS, Registration, TICKETS, Ticket},
};
use github_simulator::control::Client as Http;
use http::{Method, StatusCode, header};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Pod, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{gpu, suites::Ctx};

/// Long enough for what a pod does by itself.
const LIMIT: Duration = Duration::from_mins(1);

/// A runner that is registered and waits for a job.
pub(crate) struct Runner {
    pod: Pod,
    /// GitHub's number for it.
    entry: u64,
}

/// The namespace in which it plays.
pub(crate) struct Player<'a> {
    ctx: &'a Ctx,
    /// It is the same for all pods.
    registrar: Option<Registrar>,
}

impl<'a> Player<'a> {
    pub(crate) fn new(ctx: &'a Ctx) -> Self {
        Self {
            ctx,
            registrar: None,
        }
    }

    /// Brings every pod whose gate runs to an idle runner, until there are so many; gives the new ones.
    pub(crate) async fn bring_up(&mut self, known: &[Runner], count: usize) -> Result<Vec<Runner>> {
        let mut new: Vec<Runner> = vec![];
        let ctx = self.ctx;
        let what = format!("{count} runners");
        ctx.wait_for(&what, LIMIT, async || {
            for pod in ctx.pods().await? {
                let is_known = known.iter().chain(&new).any(|r| r.pod.uid() == pod.uid());
                if !is_known && gpu::gate_runs(&pod) {
                    new.push(self.pass(pod).await?);
                }
            }
            Ok((known.len() + new.len() >= count).then_some(()))
        })
        .await?;
        Ok(new)
    }

    /// The gate of this pod passes, and its agent goes online.
    async fn pass(&mut self, pod: Pod) -> Result<Runner> {
        let report = report(&pod);
        let token = self.token(&pod).await?;
        let registrar = match &mut self.registrar {
            Some(known) => known,
            none => none.insert(Registrar::of(&pod)?),
        };
        let Ticket { ticket, .. } = registrar.asked(TICKETS, &token, None).await?;
        let body = serde_json::to_value(&report)?;
        let _: Value = registrar.asked(REPORTS, &ticket, Some(&body)).await?;
        let nothing = json!({});
        let answer = registrar.asked(REGISTRATIONS, &ticket, Some(&nothing));
        let runner = Runner {
            entry: entry(&answer.await?)?,
            pod,
        };
        self.patch(&runner, idle(&report.summary())).await?;
        Ok(runner)
    }

    /// The token that the kubelet mounts.
    pub(crate) async fn token(&self, pod: &Pod) -> Result<String> {
        let accounts: Api<ServiceAccount> = self.ctx.api();
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request("default", &PostParams::default(), &request)
            .await?;
        answer
            .status
            .and_then(|status| status.token)
            .context("the API server gave no token")
    }

    /// The runner's job ends, and the runner with it: first for GitHub, then for the kubelet.
    pub(crate) async fn finish(&self, runner: &Runner) -> Result<()> {
        self.ctx.github.delete_runner(runner.entry).await?;
        self.patch(runner, finished()).await
    }

    async fn patch(&self, runner: &Runner, status: Value) -> Result<()> {
        let pods: Api<Pod> = self.ctx.api();
        let patch = Patch::Strategic(json!({"status": status}));
        pods.patch_status(&runner.pod.name_any(), &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

/// The registrar, as a pod finds it.
pub(crate) struct Registrar(Http);

impl Registrar {
    /// Its address and its authority are in the pod.
    pub(crate) fn of(pod: &Pod) -> Result<Self> {
        let (url, authority) = (gate::REGISTRAR_URL, gate::REGISTRAR_CA);
        let http = Http::new(variable(pod, url)?, variable(pod, authority)?)?;
        Ok(Self(http))
    }

    /// What it answers, whatever that is.
    pub(crate) async fn ask(
        &self,
        path: &str,
        bearer: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Vec<u8>)> {
        let bearer = format!("Bearer {bearer}");
        let headers = [(header::AUTHORIZATION.as_str(), bearer.as_str())];
        let sent = self.0.send(Method::POST, path, &headers, body);
        let (status, _, answer) = sent.await?;
        Ok((status, answer.to_vec()))
    }

    /// Its answer where it agrees at once. A pod would ask again; here that would be counted as the product's.
    async fn asked<T: DeserializeOwned>(
        &self,
        path: &str,
        bearer: &str,
        body: Option<&Value>,
    ) -> Result<T> {
        let (status, answer) = self.ask(path, bearer, body).await?;
        ensure!(
            status == StatusCode::OK,
            "the registrar answered {status} at {path}: {}",
            String::from_utf8_lossy(&answer)
        );
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// The value of a variable that the gate is told.
fn variable<'a>(pod: &'a Pod, name: &str) -> Result<&'a str> {
    let init = pod
        .spec
        .iter()
        .flat_map(|s| s.init_containers.iter().flatten());
    init.flat_map(|container| container.env.iter().flatten())
        .find(|variable| variable.name == name)
        .and_then(|variable| variable.value.as_deref())
        .with_context(|| format!("the gate has no {name}"))
}

/// What a gate on one healthy device reports.
pub(crate) fn report(pod: &Pod) -> Report {
    let uid = pod.uid().unwrap_or_default();
    Report {
        outcome: Outcome::Passed,
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        namespace: pod.namespace(),
        pod: pod.metadata.name.clone(),
        requested_devices: Some(1),
        attempts: 1,
        driver: Some(Driver {
            cuda_version: Some("12.9".to_owned()),
            ..Driver::default()
        }),
        devices: vec![Device {
            name: "NVIDIA A100-SXM4-80GB".to_owned(),
            uuid: format!("GPU-{uid}"),
            compute_capability: "8.0".to_owned(),
            concurrent_managed_access: true,
            managed_memory: true,
            ..Device::default()
        }],
        ..Report::new(env!("CARGO_PKG_VERSION"))
    }
}

/// GitHub's number for the runner, from its just-in-time configuration.
fn entry(registration: &Registration) -> Result<u64> {
    let Registration::JitConfig { encoded_jit_config } = registration else {
        anyhow::bail!("the registrar gave no just-in-time configuration");
    };
    let files: Value = serde_json::from_slice(&STANDARD.decode(encoded_jit_config)?)?;
    let settings = files[".runner"].as_str().context("it has no .runner")?;
    let settings: Value = serde_json::from_slice(&STANDARD.decode(settings)?)?;
    let id = settings["AgentId"].as_str().context("it has no AgentId")?;
    Ok(id.parse()?)
}

pub(crate) fn conditions(ready: bool) -> Value {
    let now = Timestamp::now();
    let ready = if ready { "True" } else { "False" };
    json!([
        {"type": "Initialized", "status": "True", "lastTransitionTime": now},
        {"type": "Ready", "status": ready, "lastTransitionTime": now},
        {"type": "ContainersReady", "status": ready, "lastTransitionTime": now},
    ])
}

pub(crate) fn container(name: &str, ready: bool, state: &Value) -> Value {
    json!({
        "name": name, "image": "", "imageID": "", "restartCount": 0,
        "ready": ready, "started": ready, "state": state,
    })
}

pub(crate) fn ended(message: &str) -> Value {
    let now = Timestamp::now();
    json!({"terminated": {"exitCode": 0, "reason": "Completed", "message": message, "startedAt": now, "finishedAt": now}})
}

/// The agent in the container of the GPUs, after the gate that left this.
pub(crate) fn agent(report: &str, ready: bool, state: &Value) -> Value {
    let mut agent = container(GPU, ready, state);
    agent["restartCount"] = json!(1);
    // The change of the image ended the gate.
    agent["lastState"] = ended(report);
    agent["lastState"]["terminated"]["exitCode"] = json!(143);
    agent
}

/// A state of a container.
pub(crate) fn running() -> Value {
    json!({"running": {"startedAt": Timestamp::now()}})
}

/// The gate has passed; the agent listens for jobs.
pub(crate) fn idle(report: &str) -> Value {
    json!({
        "phase": "Running",
        "conditions": conditions(true),
        "initContainerStatuses": [agent(report, true, &running())],
        "containerStatuses": [container(MAIN, true, &running())],
    })
}

/// The agent has ended, with the hooks' mark of a finished job.
pub(crate) fn finished() -> Value {
    finished_with("suites/bench", 1)
}

/// The same of a job of this repository, in a run of this number.
pub(crate) fn finished_with(repository: &str, run: usize) -> Value {
    let mark = json!({
        "mark": mark::COMPLETED,
        "job": run.to_string(), "run": run.to_string(), "workflow": "bench", "repository": repository,
    });
    let mut agent = container(GPU, false, &ended(&mark.to_string()));
    agent["restartCount"] = json!(1);
    json!({
        "phase": "Succeeded",
        "conditions": conditions(false),
        "initContainerStatuses": [agent],
        "containerStatuses": [container(MAIN, false, &ended(""))],
    })
}
