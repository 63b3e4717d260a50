//! Keeps what a run writes and Kubernetes forgets: every version of every object that ours can be in, every container's
//! log, every argument list.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};

use crate::cluster::Cluster;

/// How often files and processes are looked at: more often than a container can come and go.
const LOOK: Duration = Duration::from_millis(300);

/// Where the record is.
pub(super) fn folder(cluster: &Cluster) -> PathBuf {
    cluster.dir.join("record")
}

/// Starts to record, until the runtime ends.
pub(super) async fn start(cluster: &Cluster) -> Result<()> {
    let folder = folder(cluster);
    fs::create_dir_all(folder.join("logs"))?;
    let client = cluster.client().await?;
    let kinds = [
        ("", "v1", "Pod", "pods"),
        ("", "v1", "Event", "events"),
        ("", "v1", "ConfigMap", "configmaps"),
        ("apps", "v1", "Deployment", "deployments"),
        ("coordination.k8s.io", "v1", "Lease", "leases"),
        ("cudarunner.dev", "v1alpha1", "CudaRunner", "cudarunners"),
    ];
    let streams = kinds.map(|(group, version, kind, plural)| {
        let api_version = if group.is_empty() {
            version.to_owned()
        } else {
            format!("{group}/{version}")
        };
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version,
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        watcher(api, watcher::Config::default())
            .default_backoff()
            .touched_objects()
            .boxed()
    });
    let mut objects = File::create(folder.join("objects.jsonl"))?;
    let mut all = stream::select_all(streams);
    tokio::spawn(async move {
        loop {
            // An error of one watch is followed by its next attempt.
            if let Ok(Some(object)) = all.try_next().await {
                let line = serde_json::to_string(&object).unwrap_or_default();
                if writeln!(objects, "{line}").is_err() {
                    return;
                }
            }
        }
    });
    let (dir, cgroup) = (cluster.dir.clone(), cluster.cgroup());
    std::thread::spawn(move || {
        let mut arguments = BTreeSet::new();
        // Its end is the end of the folder.
        while folder.exists() {
            keep_logs(&dir.join("var/log/pods"), &folder.join("logs"));
            if keep_arguments(&cgroup, &mut arguments, &folder.join("arguments")).is_err() {
                return;
            }
            std::thread::sleep(LOOK);
        }
    });
    Ok(())
}

/// Links every log under another name: it grows on, and stays when the kubelet has removed its own name.
fn keep_logs(from: &Path, to: &Path) {
    let pods = fs::read_dir(from).into_iter().flatten().flatten();
    for pod in pods {
        for container in fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            for log in fs::read_dir(container.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let name = format!(
                    "{}_{}_{}",
                    pod.file_name().to_string_lossy(),
                    container.file_name().to_string_lossy(),
                    log.file_name().to_string_lossy()
                );
                // There already, or gone again.
                let _ = fs::hard_link(log.path(), to.join(name));
            }
        }
    }
}

/// Notes the argument lists of all processes in the cluster's pods.
fn keep_arguments(cgroup: &str, known: &mut BTreeSet<Vec<u8>>, file: &Path) -> Result<()> {
    let before = known.len();
    for process in fs::read_dir("/proc")?.flatten() {
        let inside = fs::read_to_string(process.path().join("cgroup"))
            .is_ok_and(|text| text.contains(cgroup));
        if inside && let Ok(line) = fs::read(process.path().join("cmdline")) {
            known.insert(line);
        }
    }
    if known.len() > before {
        let text: Vec<_> = known
            .iter()
            .map(|line| String::from_utf8_lossy(line).replace('\0', " "))
            .collect();
        fs::write(file, text.join("\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
