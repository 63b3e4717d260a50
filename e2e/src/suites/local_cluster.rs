//! The cluster itself: a pod gets a GPU as on a real node, and a cluster that is taken down leaves nothing.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, ServiceAccount};
use kube::{Api, api::PostParams};
use serde_json::json;

use super::Ctx;
use crate::{
    cluster::{Cluster, Options},
    network::Link,
    node::{cgroup as cgroup_name, cgroup_exists},
    paths,
    process::{Identity, marked, output},
    removal,
    report::Story,
};

/// By then a cluster that starts beside others has done what it was asked for.
const PATIENCE: Duration = Duration::from_mins(5);

pub(super) async fn run(ctx: &Ctx) -> Result<()> {
    a_pod_gets_a_device_and_its_driver(ctx).await?;
    a_cluster_beside_it_leaves_nothing_behind(ctx).await?;
    a_killed_run_leaves_nothing_either(ctx).await?;
    what_is_left_of_another_does_no_harm(ctx).await
}

async fn a_pod_gets_a_device_and_its_driver(ctx: &Ctx) -> Result<()> {
    // Given a pod whose init container and container both ask for a GPU
    let look = "ls -L /usr/local/nvidia/lib64/libcuda.so.1 && cat /usr/local/nvidia/simcuda.json > /dev/termination-log";
    let container = |name: &str| {
        json!({
            "name": name, "image": "localhost/pause:dev", "imagePullPolicy": "Never", "command": ["sh", "-c", look],
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
        })
    };
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "gpu"},
        "spec": {"restartPolicy": "Never", "initContainers": [container("gate")], "containers": [container("job")]},
    }))?;
    let pods: Api<Pod> = ctx.api();
    pods.create(&PostParams::default(), &pod).await?;

    // When it has run
    let status = ctx
        .wait_for("the pod to end", PATIENCE, async || {
            let status = pods.get("gpu").await?.status.unwrap_or_default();
            let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
            Ok(ended.then_some(status))
        })
        .await?;

    // Then both have seen the driver's file, and the same healthy device
    let message = |statuses: Option<Vec<ContainerStatus>>| {
        statuses.and_then(|all| all.into_iter().next()?.state?.terminated?.message)
    };
    let (gate, job) = (
        message(status.init_container_statuses),
        message(status.container_statuses),
    );
    let gate = gate.context("the init container left no termination message")?;
    ensure!(
        status.phase.as_deref() == Some("Succeeded"),
        "the pod failed: {gate}"
    );
    ensure!(gate.contains("GPU-"), "no device in {gate}");
    ensure!(
        Some(&gate) == job.as_ref(),
        "the init container had {gate}, the container {job:?}"
    );
    Ok(())
}

async fn a_cluster_beside_it_leaves_nothing_behind(ctx: &Ctx) -> Result<()> {
    // Given what the machine is like, and a second cluster with a pod that runs on its GPU
    let before = traces()?;
    let name = format!("beside-{}", std::process::id());
    let options = Options {
        devices: 1,
        ..Options::default()
    };
    let beside = Cluster::up(&name, options, &Story::silent()).await?;
    let client = beside.client().await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    ctx.wait_for(
        "the second cluster's service account",
        PATIENCE,
        async || {
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
            Ok(accounts.get_opt("default").await?)
        },
    )
    .await?;
    pods.create(&PostParams::default(), &sleeper()?).await?;
    ctx.wait_for("the second cluster's pod to run", PATIENCE, async || {
        let status = pods.get("sleeper").await?.status.unwrap_or_default();
        Ok((status.phase.as_deref() == Some("Running")).then_some(()))
    })
    .await?;
    let (dir, cgroup) = (beside.dir.clone(), beside.cgroup());
    ensure!(
        !marked(&dir).is_empty() && cgroup_exists(&cgroup),
        "the second cluster leaves no trace even while it runs"
    );

    // When it is taken down
    tokio::task::spawn_blocking(move || beside.down()).await??;

    // Then nothing of it is left, and the first one still answers
    nothing_left(&dir, &cgroup, &before)?;
    ctx.client
        .apiserver_version()
        .await
        .context("the first cluster was harmed")?;
    Ok(())
}

async fn a_killed_run_leaves_nothing_either(ctx: &Ctx) -> Result<()> {
    // Given a run of `up` that was killed in the middle
    let before = traces()?;
    let name = format!("killed-{}", std::process::id());
    let dir = paths::cluster(&name)?;
    let program = ctx.cluster.supervisor.program();
    let mut up = tokio::process::Command::new(&program)
        .args(["up", "--name", &name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    ctx.wait_for("the run to have started a kubelet", PATIENCE, async || {
        Ok(dir.join("logs/kubelet.log").exists().then_some(()))
    })
    .await?;
    up.kill().await?;
    let left = marked(&dir);
    ensure!(
        !left.is_empty(),
        "the run was killed before it had started anything"
    );

    // When `down` is called
    let down = tokio::process::Command::new(&program)
        .args(["down", "--name", &name])
        .output()
        .await?;

    // Then nothing of it is left
    ensure!(
        down.status.success(),
        "`down` failed: {}",
        String::from_utf8_lossy(&down.stderr)
    );
    nothing_left(&dir, &cgroup_name(&dir), &before)
}

/// A run that was killed has left its folder, and its interface's name is this cluster's now.
async fn what_is_left_of_another_does_no_harm(ctx: &Ctx) -> Result<()> {
    // Given such a folder
    let link = ctx.cluster.link.clone().context("there is no link")?;
    let dir = paths::cluster(&format!("left-{}", std::process::id()))?;
    std::fs::create_dir_all(&dir)?;
    let link = Link {
        cluster: cgroup_name(&dir),
        ..link
    };
    std::fs::write(dir.join(removal::LINK), serde_json::to_vec(&link)?)?;
    // Nobody is older than the machine
    let owner = Identity {
        start: 0,
        ..Identity::own()?
    };
    std::fs::write(dir.join("owner.json"), serde_json::to_vec(&owner)?)?;
    // When `down` tidies up
    let down = tokio::process::Command::new(ctx.cluster.supervisor.program())
        .args(["down", "--name", "nobody"])
        .output()
        .await?;
    ensure!(down.status.success(), "{down:?}");
    // Then the folder is gone, and this cluster is still there to be asked
    ensure!(!dir.exists(), "the folder {} is left", dir.display());
    let limit = Duration::from_mins(1);
    let fresh = ctx.cluster.client().await?;
    tokio::time::timeout(limit, fresh.apiserver_version())
        .await
        .context("the first cluster does not answer any more")?
        .context("the first cluster was harmed")?;
    Ok(())
}

fn sleeper() -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": "sleeper"},
        "spec": {"containers": [{
            "name": "sleeper", "image": "localhost/pause:dev", "imagePullPolicy": "Never",
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
        }]},
    }))?)
}

fn nothing_left(dir: &Path, cgroup: &str, before: &[String]) -> Result<()> {
    ensure!(
        marked(dir).is_empty(),
        "processes are left: {:?}",
        marked(dir)
    );
    ensure!(!dir.exists(), "the folder {} is left", dir.display());
    ensure!(!cgroup_exists(cgroup), "the cgroup {cgroup} is left");
    let after = traces()?;
    ensure!(
        before == after,
        "the machine has changed: before {before:#?}, after {after:#?}"
    );
    Ok(())
}

/// What a careless cluster would change on the machine: mounts, interfaces, routes, rules, and the folders whose paths
/// Kubernetes fixes. Other clusters' links come and go, and are not ours to judge.
fn traces() -> Result<Vec<String>> {
    let lines = |text: String, keep: fn(&str) -> bool| {
        text.lines()
            .filter(|line| keep(line))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let run = |program: &str, arguments: &[&str]| output(Command::new(program).args(arguments));
    let foreign = |line: &str| !line.contains("cuda-e2e");
    let mut traces = vec![
        std::fs::read_to_string("/proc/self/mounts")?,
        lines(run("ip", &["-brief", "link"])?, foreign),
        lines(run("ip", &["-4", "route"])?, foreign),
        run("ip", &["netns", "list"])?,
        // Not the comments, which hold the time.
        lines(run("iptables-save", &[])?, |line| line.starts_with("-A")),
    ];
    for folder in [
        "/var/lib/kubelet",
        "/var/lib/cni",
        "/var/lib/containerd",
        "/run/containerd",
        "/run/netns",
        "/var/log/pods",
    ] {
        traces.push(format!("{folder}: {}", Path::new(folder).exists()));
    }
    Ok(traces)
}
