//! Plays kubelet, gate and agent for the pods of one namespace, and keeps count of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{TryStreamExt as _, future::BoxFuture};
use gate_report::Report;
use gate_report::contract::{GPU, MAIN, PREPARE, mark};
use gate_report::wire::{REGISTRATIONS, REPORTS, Registration, TICKETS, Ticket};
use github_simulator::control::{Client as Http, JobView};
use http::{Method, StatusCode, header};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    bench::player::{self, Registrar},
    gpu, simulator,
    suites::Ctx,
};

/// A version that the simulated GitHub takes.
const VERSION: &str = "2.338.0";
/// How long an agent takes to end.
const ENDING: Duration = Duration::from_secs(1);
/// How long a message is waited for.
const POLL: u32 = 20;

/// The GPUs of the nodes.
pub(crate) trait Devices: Send + Sync {
    /// One for this pod, until it is dropped.
    fn take(self: Arc<Self>, pod: &Pod) -> Box<dyn Device>;
}

/// A pod's GPU.
pub(crate) trait Device: Send + Sync {
    /// What the gate finds.
    fn report(&self, pod: &Pod) -> Report;
    /// Runs the job with this key to its end; whether it went well.
    fn run<'a>(&'a self, job: &'a str) -> BoxFuture<'a, bool>;
}

/// GPUs that compute, and jobs that take no time.
pub(super) struct Sound;

impl Devices for Sound {
    fn take(self: Arc<Self>, _: &Pod) -> Box<dyn Device> {
        Box::new(Self)
    }
}

impl Device for Sound {
    fn report(&self, pod: &Pod) -> Report {
        player::report(pod)
    }

    fn run<'a>(&'a self, _: &'a str) -> BoxFuture<'a, bool> {
        Box::pin(async { true })
    }
}

/// The pods that are there, by uid: name, and whether it has not ended.
type Live = BTreeMap<String, (String, bool)>;

/// Plays until it is dropped.
pub(crate) struct Node {
    live: watch::Receiver<Live>,
    most: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Node {
    pub(crate) fn start(ctx: &Ctx, devices: Arc<dyn Devices>) -> Self {
        let (sender, live) = watch::channel(Live::new());
        let most = Arc::default();
        let follow = follow(ctx.clone(), devices, sender, Arc::clone(&most));
        let task = tokio::spawn(follow).abort_handle();
        Self { live, most, task }
    }

    /// The largest crowd of pods that had not ended.
    pub(super) fn most(&self) -> Vec<String> {
        locked(&self.most).clone()
    }

    /// How many pods there are.
    pub(super) fn pods(&self) -> usize {
        self.live.borrow().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(
    ctx: Ctx,
    devices: Arc<dyn Devices>,
    live: watch::Sender<Live>,
    most: Arc<Mutex<Vec<String>>>,
) {
    let mut played = BTreeSet::new();
    // They end with us.
    let mut plays = tokio::task::JoinSet::new();
    let pods: Api<Pod> = ctx.api();
    let mut events = Box::pin(watcher(pods, watcher::Config::default()));
    loop {
        match events.try_next().await {
            Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) => {
                let uid = pod.uid().unwrap_or_default();
                let entry = (pod.name_any(), !has_ended(&pod));
                live.send_modify(|live| drop(live.insert(uid.clone(), entry)));
                if gpu::gate_runs(&pod) && !has_ended(&pod) && played.insert(uid) {
                    let device = Arc::clone(&devices).take(&pod);
                    plays.spawn(until_gone(ctx.clone(), pod, device, live.subscribe()));
                }
            }
            Ok(Some(Event::Delete(pod))) => {
                let uid = pod.uid().unwrap_or_default();
                live.send_modify(|live| drop(live.remove(&uid)));
            }
            Ok(Some(Event::Init)) => live.send_modify(BTreeMap::clear),
            Ok(Some(Event::InitDone)) | Err(_) => {}
            Ok(None) => return,
        }
        let crowd: Vec<String> = live
            .borrow()
            .values()
            .filter(|(_, live)| *live)
            .map(|(name, _)| name.clone())
            .collect();
        let mut most = locked(&most);
        if crowd.len() > most.len() {
            *most = crowd;
        }
    }
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some()
}

/// The agent of a pod, as far as it has come.
struct Agent {
    ctx: Ctx,
    pod: Pod,
    http: Http,
    secret: String,
    /// What its gate has said.
    summary: String,
    device: Box<dyn Device>,
    job: Mutex<Option<u64>>,
}

async fn until_gone(ctx: Ctx, pod: Pod, device: Box<dyn Device>, mut live: watch::Receiver<Live>) {
    let uid = pod.uid().unwrap_or_default();
    let gone = live.wait_for(|live| live.get(&uid).is_none_or(|(_, live)| !live));
    let agent = tokio::select! {
        agent = gate(&ctx, &pod, device) => agent,
        _ = gone => return,
    };
    let Ok(agent) = agent else { return };
    let gone = live.wait_for(|live| live.get(&uid).is_none_or(|(_, live)| !live));
    tokio::select! {
        _ = agent.run() => return,
        _ = gone => (),
    }
    // A signal cancels the job.
    let job = *locked(&agent.job);
    if let Some(job) = job {
        let _ = agent.complete(job, "cancelled").await;
    }
}

/// The gate passes, and asks for the registration until it has it; or it fails, and the pod with it.
async fn gate(ctx: &Ctx, pod: &Pod, device: Box<dyn Device>) -> Result<Agent> {
    let report = device.report(pod);
    let asks = Asks {
        ctx,
        pod,
        registrar: Registrar::of(pod)?,
    };
    let token = player::Player::new(ctx).token(pod).await?;
    let Ticket { ticket, .. } = asks.until_answered(TICKETS, &token, None).await?;
    let body = serde_json::to_value(&report)?;
    if !report.passed() {
        let _ = asks.registrar.ask(REPORTS, &ticket, Some(&body)).await;
        patch(ctx, pod, &gate_failed(&report)).await?;
        bail!("the gate failed");
    }
    // The kubelet starts the agent where the image has been changed, whatever the registrar has answered by then.
    tokio::select! {
        let_in = asks.let_in() => let_in?,
        refused = asks.reports(&ticket, &body) => refused?,
    }
    let changed = player::agent(&report.summary(), false, &player::running());
    let starting = json!({"phase": "Running", "initContainerStatuses": [changed]});
    patch(ctx, pod, &starting).await?;
    let nothing = json!({});
    let registration: Registration = asks
        .until_answered(REGISTRATIONS, &ticket, Some(&nothing))
        .await?;
    let github = Http::new(
        &ctx.cluster.github,
        &simulator::authority(&ctx.cluster.dir)?,
    )?;
    let files = match registration {
        Registration::JitConfig { encoded_jit_config } => {
            let files: BTreeMap<String, String> =
                serde_json::from_slice(&STANDARD.decode(encoded_jit_config)?)?;
            let key = files.get(".credentials_rsaparams").context("no key")?;
            serde_json::from_slice(&STANDARD.decode(key)?)?
        }
        Registration::RegistrationToken { token } => configure(ctx, pod, &github, &token).await?,
    };
    let summary = report.summary();
    let secret = files["d"].as_str().context("no secret")?.to_owned();
    let agent = Agent {
        ctx: ctx.clone(),
        pod: pod.clone(),
        http: github,
        secret,
        summary,
        device,
        job: Mutex::default(),
    };
    Ok(agent)
}

/// The requests of a pod to the registrar.
struct Asks<'a> {
    ctx: &'a Ctx,
    pod: &'a Pod,
    registrar: Registrar,
}

impl Asks<'_> {
    /// Asks again until there is an answer; a refusal is the pod's end.
    async fn until_answered<T: DeserializeOwned>(
        &self,
        path: &str,
        bearer: &str,
        body: Option<&Value>,
    ) -> Result<T> {
        loop {
            if let Some(answer) = self.once(path, bearer, body).await? {
                return Ok(answer);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Reports again and again, as the gate does until it is ended. Returns where it is refused.
    async fn reports(&self, ticket: &str, report: &Value) -> Result<()> {
        loop {
            let _: Option<Value> = self.once(REPORTS, ticket, Some(report)).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// An answer that agrees, if there is one.
    async fn once<T: DeserializeOwned>(
        &self,
        path: &str,
        bearer: &str,
        body: Option<&Value>,
    ) -> Result<Option<T>> {
        match self.registrar.ask(path, bearer, body).await {
            Ok((StatusCode::OK, answer)) => Ok(Some(serde_json::from_slice(&answer)?)),
            Ok((StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, answer)) => {
                let why = String::from_utf8_lossy(&answer);
                let name = if path == TICKETS { PREPARE } else { GPU };
                let mut refused = player::container(name, false, &exit(15, &why));
                refused["restartCount"] = json!(i32::from(path == REGISTRATIONS));
                let failed = json!({"phase": "Failed", "initContainerStatuses": [refused]});
                patch(self.ctx, self.pod, &failed).await?;
                bail!("the registrar refused: {why}")
            }
            _ => Ok(None),
        }
    }

    /// Waits until the pod has the runner's image.
    async fn let_in(&self) -> Result<()> {
        let pods: Api<Pod> = self.ctx.api();
        loop {
            if gpu::is_let_in(&pods.get(&self.pod.name_any()).await?) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// `config.sh`, with the arguments of the pod; gives the file with the key.
async fn configure(ctx: &Ctx, pod: &Pod, github: &Http, token: &str) -> Result<Value> {
    let arguments: Vec<String> = gpu::container(pod)
        .into_iter()
        .flat_map(|container| container.args.iter().flatten())
        .flat_map(|argument| argument.split(' '))
        .map(str::to_owned)
        .collect();
    let labels = arguments.iter().position(|a| a == "--labels");
    let labels = labels
        .and_then(|at| arguments.get(at + 1))
        .map_or("", String::as_str);
    let body = json!({
        "url": format!("{}/{}", ctx.cluster.github, ctx.repository),
        "token": token, "name": pod.name_any(), "labels": labels.split(',').collect::<Vec<_>>(),
        "group": null, "work": "_work", "version": VERSION, "replace": true,
        "ephemeral": arguments.iter().any(|a| a == "--ephemeral"), "noDefaultLabels": false,
    });
    let (status, _, answer) = github
        .send(Method::POST, "/_agent/register", &[], Some(&body))
        .await?;
    if !status.is_success() {
        bail!("config.sh: {status}");
    }
    let answer: Value = serde_json::from_slice(&answer)?;
    Ok(answer["files"][".credentials_rsaparams"].clone())
}

impl Agent {
    /// Listens for jobs; the container ends with it.
    async fn run(&self) -> Result<()> {
        if let Ok(github) = self.listen().await {
            let mark = json!({
                "mark": mark::COMPLETED, "job": github["job"], "run": github["run_id"],
                "workflow": github["workflow"], "repository": github["repository"],
            });
            return self
                .patch("Succeeded", false, &exit(0, &mark.to_string()))
                .await;
        }
        // A process takes a moment to end. The pod of a runner that was removed is deleted meanwhile.
        tokio::time::sleep(ENDING).await;
        self.patch("Failed", false, &exit(1, "")).await
    }

    /// One job where it takes no more; else it ends with an error.
    async fn listen(&self) -> Result<Value> {
        let session = self
            .ask(Method::POST, "/sessions", Some(json!({"version": VERSION})))
            .await?;
        let session = session["sessionId"]
            .as_str()
            .context("no session")?
            .to_owned();
        let persistent = self
            .pod
            .annotations()
            .contains_key("cudarunner.dev/lifetime");
        self.listens(true).await?;
        loop {
            let offer = self
                .ask(
                    Method::GET,
                    &format!("/sessions/{session}/message?wait={POLL}"),
                    None,
                )
                .await?;
            let Some(job) = offer["jobId"].as_u64() else {
                continue;
            };
            let reported = self
                .ask(Method::POST, &format!("/jobs/{job}/acquire"), None)
                .await?;
            *locked(&self.job) = Some(job);
            self.listens(false).await?;
            let cancelled = reported["hold"] == true && self.held(job).await?;
            let key = reported["github"]["job"].as_str().unwrap_or_default();
            let conclusion = if cancelled {
                "cancelled"
            } else if self.device.run(key).await {
                "success"
            } else {
                "failure"
            };
            self.complete(job, conclusion).await?;
            *locked(&self.job) = None;
            if !persistent {
                return Ok(reported["github"].clone());
            }
            self.listens(true).await?;
        }
    }

    /// Waits until the job may end; whether it was cancelled.
    async fn held(&self, job: u64) -> Result<bool> {
        loop {
            let control = self
                .ask(
                    Method::GET,
                    &format!("/jobs/{job}/control?wait={POLL}"),
                    None,
                )
                .await?;
            // It says why.
            let cancelled = control["cancel"].is_string();
            if cancelled || control["released"] == true {
                return Ok(cancelled);
            }
        }
    }

    async fn complete(&self, job: u64, conclusion: &str) -> Result<()> {
        let body = json!({"conclusion": conclusion});
        self.ask(Method::POST, &format!("/jobs/{job}/complete"), Some(body))
            .await?;
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let bearer = format!("Bearer {}", self.secret);
        let headers = [(header::AUTHORIZATION.as_str(), bearer.as_str())];
        let path = format!("/_agent{path}");
        let (status, _, answer) = self
            .http
            .send(method, &path, &headers, body.as_ref())
            .await?;
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&answer));
        }
        let text: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        Ok(serde_json::from_slice(text)?)
    }

    /// Started, and ready for as long as it has no job.
    async fn listens(&self, idle: bool) -> Result<()> {
        self.patch("Running", idle, &player::running()).await
    }

    async fn patch(&self, phase: &str, ready: bool, state: &Value) -> Result<()> {
        let mut agent = player::agent(&self.summary, ready, state);
        agent["started"] = json!(phase == "Running");
        // The main container ends as the agent did. Until then it has been started by the agent's having been online.
        let main = match phase {
            "Running" => player::container(MAIN, true, &player::running()),
            _ => player::container(MAIN, false, state),
        };
        let status = json!({
            "phase": phase,
            "conditions": player::conditions(ready),
            "initContainerStatuses": [agent],
            "containerStatuses": [main],
        });
        patch(&self.ctx, &self.pod, &status).await
    }
}

/// The gate has left this report, and the pod ends with it.
fn gate_failed(report: &Report) -> Value {
    let ended = exit(report.exit_code().into(), &report.summary());
    json!({
        "phase": "Failed",
        "conditions": player::conditions(false),
        "initContainerStatuses": [player::container(GPU, false, &ended)],
        "containerStatuses": [player::container(MAIN, false, &ended)],
    })
}

/// The scheduler takes the pod of a job away, for another one.
pub(super) async fn take_away(ctx: &Ctx, job: &JobView) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    let name = job.runner.as_deref().context("the job has no runner")?;
    let mark = json!({
        "mark": mark::STARTED, "job": job.key, "run": job.run.to_string(), "attempt": job.attempt.to_string(),
        "repository": ctx.repository,
    });
    let ended = exit(137, &mark.to_string());
    let target = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "lastTransitionTime": Timestamp::now(),
    });
    let status = json!({
        "phase": "Failed",
        "conditions": [target],
        "initContainerStatuses": [player::agent("", false, &ended)],
        "containerStatuses": [player::container(MAIN, false, &ended)],
    });
    patch(ctx, &pods.get(name).await?, &status).await
}

/// An agent that waits for a job ends with an error, and its pod with it.
pub(super) async fn end_agent(ctx: &Ctx, runner: &str) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    let ended = exit(1, "");
    let status = json!({
        "phase": "Failed",
        "conditions": player::conditions(false),
        "initContainerStatuses": [player::agent("", false, &ended)],
        "containerStatuses": [player::container(MAIN, false, &ended)],
    });
    patch(ctx, &pods.get(runner).await?, &status).await
}

fn exit(code: i32, message: &str) -> Value {
    let mut state = player::ended(message);
    state["terminated"]["exitCode"] = json!(code);
    state
}

async fn patch(ctx: &Ctx, pod: &Pod, status: &Value) -> Result<()> {
    let pods: Api<Pod> = ctx.api();
    // Of this pod, and not of a later one of its name.
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
    let params = PatchParams::default();
    pods.patch_status(&pod.name_any(), &params, &Patch::Strategic(patch))
        .await?;
    Ok(())
}
