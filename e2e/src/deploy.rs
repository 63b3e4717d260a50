//! The operator on a cluster: installed by Helm as a user would, or, without a real node, as a process beside it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    certs,
    cluster::Cluster,
    helm::{self, Helm, NAMESPACE, RELEASE},
    images::{self, Profile},
    node,
    process::{self, Identity},
    supervisor::Program,
    wait::wait_for,
};

/// The chart with the CRD of `CudaRunner`.
pub const CRDS: &str = "cuda-runner-operator-crds";

/// By then an operator is ready, on a machine that has other things to do.
const READY: Duration = Duration::from_mins(3);

/// Installs the charts, with such changes of the operator's values, and waits until the operator is ready.
pub async fn install(cluster: &Cluster, profile: Profile, changes: &[&str]) -> Result<()> {
    charts(cluster, changes).await?;
    let client = cluster.client().await?;
    if cluster.link.is_some() {
        return ready(&client, READY).await;
    }
    let beside = beside(cluster, &client, profile, "info,cuda_runner_operator=debug").await?;
    beside.start(cluster)?;
    beside.listens(cluster).await
}

/// Installs the charts with such changes of the operator's values, and waits for nothing. Without a real node no operator comes of it, only its rights.
pub async fn charts(cluster: &Cluster, changes: &[&str]) -> Result<()> {
    helm(cluster, &helm::charts(), &[CRDS, RELEASE], changes).await
}

/// Does something while values of the operator's installation are others, given as `name=value`.
pub async fn with_values<T>(
    cluster: &Cluster,
    changes: &[&str],
    work: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    upgrade(cluster, changes).await?;
    let outcome = work().await;
    and_back(outcome, upgrade(cluster, &[]).await)
}

/// Does something while no operator runs: as `kubectl scale deployment --replicas 0` has it.
pub async fn without<T>(client: &Client, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let before = deployments.get(RELEASE).await?.spec.replicas.unwrap_or(1);
    let scale = async |replicas: i32| {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let params = PatchParams::default();
        deployments.patch_scale(RELEASE, &params, &patch).await
    };
    scale(0).await?;
    let outcome = async {
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        wait_for("the operator to be gone", READY, async || {
            let left = pods.list(&ListParams::default()).await?.items;
            Ok(left.is_empty().then_some(()))
        })
        .await?;
        work().await
    }
    .await;
    scale(before).await?;
    and_back(outcome, ready(client, READY).await)
}

/// What came of some work, where all is as before again. Its own error says more than what follows from it.
fn and_back<T>(outcome: Result<T>, back: Result<()>) -> Result<T> {
    outcome.and_then(|value| back.map(|()| value))
}

/// Installs a second operator by this release's name, in a namespace of the same name, and waits until it is ready.
pub async fn second(cluster: &Cluster, release: &'static str, changes: &[&str]) -> Result<()> {
    let helm = Helm::new(&cluster.tools, &cluster.dir);
    let values = all_values(cluster, changes)?;
    tokio::task::spawn_blocking(move || {
        helm.install_as(&helm::charts(), RELEASE, (release, release), &values)
    })
    .await??;
    let client = cluster.client().await?;
    let deployments: Api<Deployment> = Api::namespaced(client, release);
    wait_for("the second operator to be ready", READY, async || {
        let all = deployments.list(&ListParams::default()).await?.items;
        let ready = all.iter().filter_map(|d| d.status.as_ref()?.ready_replicas);
        Ok((ready.sum::<i32>() > 0).then_some(()))
    })
    .await
}

/// Removes a second operator, and its namespace.
pub async fn remove_second(cluster: &Cluster, release: &'static str) -> Result<()> {
    let helm = Helm::new(&cluster.tools, &cluster.dir);
    tokio::task::spawn_blocking(move || helm.uninstall(release, release)).await??;
    let namespaces: Api<Namespace> = Api::all(cluster.client().await?);
    namespaces.delete(release, &DeleteParams::default()).await?;
    Ok(())
}

/// Changes values of the operator's installation, and waits until it is ready.
async fn upgrade(cluster: &Cluster, changes: &[&str]) -> Result<()> {
    helm(cluster, &helm::charts(), &[RELEASE], changes).await?;
    ready(&cluster.client().await?, READY).await
}

/// Installs both charts from a folder, with such changes of the operator's values, and waits until it is ready.
pub async fn upgrade_from(cluster: &Cluster, charts: &Path, changes: &[&str]) -> Result<()> {
    helm(cluster, charts, &[CRDS, RELEASE], changes).await?;
    ready(&cluster.client().await?, READY).await
}

/// Installs or upgrades charts of a folder; the CRD's has no values of ours.
async fn helm(
    cluster: &Cluster,
    charts: &Path,
    names: &[&'static str],
    changes: &[&str],
) -> Result<()> {
    let helm = Helm::new(&cluster.tools, &cluster.dir);
    let all = all_values(cluster, changes)?;
    let (charts, names) = (charts.to_owned(), names.to_owned());
    tokio::task::spawn_blocking(move || {
        names.into_iter().try_for_each(|name| {
            let values = if name == RELEASE { all.as_slice() } else { &[] };
            helm.install_from(&charts, name, values)
        })
    })
    .await?
}

/// The values of an operator's installation, with such changes.
fn all_values(cluster: &Cluster, changes: &[&str]) -> Result<Vec<String>> {
    let mut all = values(cluster.link.is_some());
    // The simulated GitHub has the API server's address.
    all.push(format!(
        "githubAddresses.allow={{{}}}",
        github_address(cluster)?
    ));
    all.extend(changes.iter().map(|&change| change.to_owned()));
    Ok(all)
}

/// Kills the operator's processes where they stand, and its pods with them; waits until as many others are ready.
pub async fn kill(cluster: &Cluster, client: &Client) -> Result<()> {
    let killed = running_pods(client).await?;
    for pod in &killed {
        kill_pod(cluster, client, pod).await?;
    }
    // The Deployment's own word is a moment behind.
    wait_for("another operator to be ready", READY, async || {
        let others = ready_pods(client)
            .await?
            .iter()
            .filter(|name| !killed.contains(name))
            .count();
        Ok((others == killed.len()).then_some(()))
    })
    .await
}

/// Whether a pod is ready, and stays for now.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Stops the operator's processes where they stand: they answer nobody, until [`kill`] ends them.
pub async fn freeze(cluster: &Cluster, client: &Client) -> Result<()> {
    for pod in running_pods(client).await? {
        for process in processes(cluster, client, &pod).await?.1 {
            process.signal(Signal::STOP);
        }
    }
    Ok(())
}

/// The names of the operator's pods that are ready.
async fn ready_pods(client: &Client) -> Result<Vec<String>> {
    pods_that(client, is_ready).await
}

/// The names of the operator's pods that run, at least one. One that was stopped is not ready after some seconds.
async fn running_pods(client: &Client) -> Result<Vec<String>> {
    let running = pods_that(client, |pod| {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && phase == Some("Running")
    })
    .await?;
    ensure!(!running.is_empty(), "no operator runs");
    Ok(running)
}

async fn pods_that(client: &Client, is_meant: fn(&Pod) -> bool) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let all = pods.list(&ListParams::default()).await?.items;
    let meant = all.into_iter().filter(is_meant);
    Ok(meant.filter_map(|pod| pod.metadata.name).collect())
}

/// The uid of one of the operator's pods, and its processes.
async fn processes(
    cluster: &Cluster,
    client: &Client,
    pod: &str,
) -> Result<(String, Vec<Identity>)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let uid = pods.get(pod).await?.metadata.uid;
    let uid = uid.context("a pod without uid")?;
    let processes = process::in_pod(&cluster.cgroup(), &uid);
    Ok((uid, processes))
}

/// Kills one of the operator's processes, and its pod: a container that is started again would wait ever longer.
pub async fn kill_pod(cluster: &Cluster, client: &Client, pod: &str) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let (uid, processes) = processes(cluster, client, pod).await?;
    pods.delete(pod, &DeleteParams::default().grace_period(0))
        .await?;
    for process in processes {
        process.signal(Signal::KILL);
    }
    // The kubelet may start the container once more before it hears of the deletion: there would be two operators.
    let cgroup = cluster.cgroup();
    tokio::task::spawn_blocking(move || {
        process::poll("the killed operator's pod to be gone", READY, || {
            for process in process::in_pod(&cgroup, &uid) {
                process.signal(Signal::KILL);
            }
            !node::pod_cgroup_exists(&cgroup, &uid)
        })
    })
    .await??;
    Ok(())
}

/// Where the simulated GitHub is, without its port.
pub fn github_address(cluster: &Cluster) -> Result<IpAddr> {
    let address = cluster.github.trim_start_matches("https://");
    let address: SocketAddr = address.parse().context("the simulator's address")?;
    Ok(address.ip())
}

fn values(real: bool) -> Vec<String> {
    let mut values: Vec<String> = [
        "image.repository=localhost/cuda-runner-operator",
        "image.tag=dev",
        "gateImage.repository=localhost/cuda-smoke",
        "gateImage.tag=dev",
        "logLevel=info\\,cuda_runner_operator=debug",
        "logFormat=text",
    ]
    .map(str::to_owned)
    .into();
    if !real {
        // Its rights are wanted all the same. Nothing runs there, the Job after it neither.
        values.extend(["replicas=0", "uninstallHook.enabled=false"].map(str::to_owned));
    }
    values
}

/// Waits until the operator's pods are ready.
pub async fn ready(client: &Client, limit: Duration) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    wait_for("the operator to be ready", limit, async || {
        let deployment = deployments.get(RELEASE).await?;
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let status = deployment.status.unwrap_or_default();
        let current = status.observed_generation == deployment.metadata.generation;
        // A predecessor that was told to go counts no more among the replicas, and acts until it has gone.
        let there = pods.list(&ListParams::default()).await?.items.len();
        let alone = i32::try_from(there) == Ok(wanted);
        Ok((alone
            && current
            && status.updated_replicas == Some(wanted)
            && status.ready_replicas == Some(wanted))
        .then_some(()))
    })
    .await
}

/// The operator as a process beside the cluster.
#[derive(Clone, Debug)]
pub struct Beside {
    program: Program,
    health: SocketAddr,
}

/// The operator as a process, as its own service account: as an administrator it would escape fairness.
pub async fn beside(
    cluster: &Cluster,
    client: &Client,
    profile: Profile,
    log: &str,
) -> Result<Beside> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(24 * 3600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = accounts
        .create_token_request(RELEASE, &PostParams::default(), &request)
        .await?;
    let token = answer
        .status
        .and_then(|status| status.token)
        .context("the API server gave no token")?;
    let kubeconfig = Beside::kubeconfig(cluster);
    with_token(&cluster.kubeconfig(), &token, &kubeconfig)?;
    // Held together, so that they differ; free again when the operator wants them.
    let (registrar, health) = (
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    );
    let (registrar, health) = (registrar.local_addr()?, health.local_addr()?);
    let program = Program::new(
        Beside::NAME,
        images::artifact(profile, "cuda-runner-operator"),
    )
    .arg("run")
    .arg("--gate-image=localhost/cuda-smoke:dev")
    .arg(format!("--operator-namespace={NAMESPACE}"))
    .arg(format!("--registrar-listen={registrar}"))
    .arg(format!("--registrar-url=https://{registrar}"))
    .arg(format!("--health-listen={health}"))
    .arg(format!(
        "--allow-github-address={}",
        github_address(cluster)?
    ))
    .env("KUBECONFIG", kubeconfig.to_string_lossy())
    .env("RUST_LOG", log);
    Ok(Beside { program, health })
}

impl Beside {
    /// Its name in the cluster.
    pub const NAME: &str = "operator";

    /// The kubeconfig with its service account.
    pub fn kubeconfig(cluster: &Cluster) -> PathBuf {
        cluster.dir.join("config/operator.kubeconfig")
    }

    /// The file that runs.
    pub fn binary(&self) -> &Path {
        &self.program.path
    }

    /// The same with the fleet page at this address of the machine, and where that will be.
    pub fn with_page(&self, at: IpAddr) -> Result<(Self, SocketAddr)> {
        let page = TcpListener::bind((at, 0))?.local_addr()?;
        let mut other = self.clone();
        other.program = other.program.arg(format!("--fleet-listen={page}"));
        Ok((other, page))
    }

    /// Starts it, and again once it has ended; does not wait.
    pub fn start(&self, cluster: &Cluster) -> Result<()> {
        cluster.supervisor.start(self.program.clone())
    }

    /// Waits until it listens.
    pub async fn listens(&self, cluster: &Cluster) -> Result<()> {
        wait_for("the operator's health port", READY, async || {
            cluster.supervisor.check(Self::NAME)?;
            Ok(tokio::net::TcpStream::connect(self.health)
                .await
                .is_ok()
                .then_some(()))
        })
        .await
    }
}

/// The administrator's kubeconfig with a token in place of the certificate.
fn with_token(admin: &Path, token: &str, to: &Path) -> Result<()> {
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(admin)?)?;
    config["users"][0]["user"] = json!({"token": token});
    certs::secret(to, &config.to_string())
}

/// The metrics of each of the operator's pods that are ready.
pub async fn metrics(client: &Client) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut pages = Vec::new();
    for pod in pods.list(&ListParams::default()).await?.items {
        if is_ready(&pod) {
            let name = pod.metadata.name.unwrap_or_default();
            let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:8080/proxy/metrics");
            let request = http::Request::get(path).body(Vec::new())?;
            pages.push(client.request_text(request).await?);
        }
    }
    Ok(pages)
}

/// What the operator's pods have logged, one text for each container run that is still known.
pub async fn operator_log(client: &Client, lines: Option<i64>) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut logs = Vec::new();
    for pod in pods.list(&ListParams::default()).await?.items {
        let name = pod.metadata.name.unwrap_or_default();
        for previous in [true, false] {
            let params = LogParams {
                previous,
                tail_lines: lines,
                ..LogParams::default()
            };
            // There is not always a run before.
            if let Ok(log) = pods.logs(&name, &params).await {
                logs.push(log);
            }
        }
    }
    Ok(logs)
}

/// An installation that failed: what did, and below it the operator's pods and what they say.
pub async fn failed(cluster: &Cluster, error: anyhow::Error) -> anyhow::Error {
    let look = async {
        let client = cluster.client().await?;
        let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        let shown: Vec<_> = pods
            .list(&ListParams::default())
            .await?
            .into_iter()
            .map(|pod| json!({"name": pod.metadata.name, "status": pod.status}))
            .collect();
        let logs = operator_log(&client, Some(40)).await?.join("\n");
        anyhow::Ok((shown, logs))
    };
    anyhow!(failure(&error, &look.await))
}

/// The failure comes first: whatever is below it may be empty.
fn failure(error: &anyhow::Error, seen: &Result<(Vec<Value>, String)>) -> String {
    let below = match seen {
        Ok((pods, _)) if pods.is_empty() => "there is no pod of the operator".to_owned(),
        Ok((pods, logs)) => format!(
            "the operator's pods, and the end of its log:\n{:#}\n{logs}",
            json!(pods)
        ),
        Err(why) => format!("the operator's pods cannot be read: {why:#}"),
    };
    format!("the operator could not be installed: {error:#}\n{below}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_installation_names_what_failed_before_all_else() {
        let failed = anyhow!("the chart has no value `x`").context("helm install");
        let pod = json!({"name": "operator-1"});
        for (seen, below) in [
            (
                Ok((vec![], String::new())),
                "there is no pod of the operator",
            ),
            (Ok((vec![pod], "started".to_owned())), "operator-1"),
            (
                Err(anyhow!("no API server")),
                "cannot be read: no API server",
            ),
        ] {
            let said = failure(&failed, &seen);
            let head =
                "the operator could not be installed: helm install: the chart has no value `x`\n";
            assert!(said.starts_with(head) && said.contains(below), "{said}");
        }
    }
}
