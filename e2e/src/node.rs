//! Real nodes: containerd and kubelet, in the cluster's own namespaces.
//!
//! The first lives in the cluster's sandbox. A second has a sandbox of its own inside it, because Kubernetes fixes paths
//! (`/var/lib/kubelet/device-plugins`, `/run/netns`); the network namespace is shared, and with it kube-proxy's rules.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    process::{output, poll, remove_dir},
    supervisor::{Program, Supervisor},
    tools::Tools,
};

/// The first node's name.
pub const NAME: &str = "gpu-node";
/// The second node's name.
pub const SECOND: &str = "gpu-node-2";
/// The pause image, which holds a pod's namespaces.
pub const PAUSE: &str = "localhost/pause:dev";
/// Where drivers say what a claimed device brings into a container; inside the node's sandbox.
pub const CDI: &str = "/var/run/cdi";

/// A node, and what tells it from another one of the same cluster.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name in Kubernetes.
    pub name: &'static str,
    /// Its folder.
    pub dir: PathBuf,
    /// Its programs.
    pub supervisor: Supervisor,
    /// The cgroup of its pods.
    pub cgroup: String,
    /// The addresses of its pods.
    pods: &'static str,
    /// Where its kubelet listens.
    kubelet_port: u16,
    /// The certificate of the cluster's authority.
    authority: PathBuf,
    /// The folder with the registries that it trusts.
    registries: PathBuf,
}

impl Machine {
    /// The first node of the cluster in this folder.
    pub fn first(cluster: &Path) -> Self {
        Self {
            name: NAME,
            dir: cluster.to_path_buf(),
            supervisor: Supervisor::at(cluster),
            cgroup: cgroup(cluster),
            pods: "10.244.0.0/20",
            kubelet_port: 10250,
            authority: cluster.join("pki/ca.crt"),
            registries: registries(cluster),
        }
    }

    /// The second one, whose folder is inside the first's.
    pub fn second(cluster: &Path) -> Self {
        let dir = cluster.join("node-2");
        Self {
            name: SECOND,
            supervisor: Supervisor::at(&dir),
            dir,
            cgroup: format!("{}/node-2", cgroup(cluster)),
            pods: "10.244.16.0/20",
            kubelet_port: 10260,
            authority: cluster.join("pki/ca.crt"),
            registries: registries(cluster),
        }
    }

    /// Removes what an earlier machine of this name left: sockets, images, pods. Its credentials stay.
    pub fn forget(&self) -> Result<()> {
        self.forget_sockets()?;
        remove_dir(&self.dir.join("var"))
    }

    /// Removes the sockets of its programs, which have ended: none that starts may be taken for one that listens.
    pub fn forget_sockets(&self) -> Result<()> {
        for socket in [self.containerd(), self.dir.join("supervisor.sock")] {
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", socket.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The folder with the state files of its devices.
    pub fn devices(&self) -> PathBuf {
        self.dir.join("devices")
    }

    fn containerd(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// The file with its kubelet's credentials.
    pub fn kubeconfig(&self) -> PathBuf {
        self.config("kubelet.kubeconfig")
    }

    fn config(&self, name: &str) -> PathBuf {
        self.dir.join("config").join(name)
    }

    /// Starts containerd and waits for its socket: images are imported into it before any pod starts.
    pub fn start_containerd(&self, tools: &Tools) -> Result<()> {
        let cni = self.config("cni");
        fs::create_dir_all(&cni)?;
        // Point to point rather than a bridge: pods on one bridge answer each other directly, past the rules by which
        // kube-proxy translates service addresses back.
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": self.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        fs::write(
            cni.join("10-pods.conflist"),
            serde_json::to_vec_pretty(&network)?,
        )?;

        // Without CAP_SYS_RESOURCE, as in many containers, lowering a score fails, and with it every sandbox. The `opt`
        // plugin would make a folder in the machine's /opt, and plugins of NRI would be the machine's.
        let config = format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  cdi_spec_dirs = ["{CDI}"]
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{}"
"#,
            self.containerd().display(),
            self.registries.display(),
            cni.display(),
        );
        let file = self.config("containerd.toml");
        fs::write(&file, config)?;
        let containerd = tools.containerd("containerd");
        let folder = containerd.parent().unwrap_or(Path::new("/"));
        self.supervisor.start(
            Program::new("containerd", &containerd)
                .arg("--config")
                .arg(file.to_string_lossy())
                // It looks for its shim there, and the machine may have another one.
                .env("PATH", format!("{}:{}", folder.display(), path())),
        )?;
        poll("containerd to listen", Duration::from_mins(2), || {
            self.containerd().exists() || self.supervisor.check("containerd").is_err()
        })?;
        self.supervisor.check("containerd")
    }

    /// Imports an OCI archive into containerd, for Kubernetes.
    pub fn import(&self, tools: &Tools, archive: &Path) -> Result<()> {
        output(self.ctr(tools).args(["image", "import"]).arg(archive)).map(drop)
    }

    /// Gives an image of containerd's another name.
    pub fn tag(&self, tools: &Tools, image: &str, name: &str) -> Result<()> {
        output(
            self.ctr(tools)
                .args(["image", "tag", "--force", image, name]),
        )
        .map(drop)
    }

    /// containerd's client, for what Kubernetes has there.
    fn ctr(&self, tools: &Tools) -> Command {
        let mut command = Command::new(tools.containerd("ctr"));
        command.arg("--address").arg(self.containerd());
        command.args(["--namespace", "k8s.io"]);
        command
    }

    /// Starts the kubelet.
    pub fn start(&self, tools: &Tools, address: Ipv4Addr) -> Result<()> {
        let file = |name: &str| self.config(name).to_string_lossy().into_owned();
        create_cgroup(&self.cgroup)?;
        // The machine's may be a link into /run, which the sandbox covers.
        fs::write(
            self.config("resolv.conf"),
            fs::read("/etc/resolv.conf").unwrap_or_default(),
        )?;
        let kubelet = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd().display()),
            "port": self.kubelet_port,
            "healthzPort": 0,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.authority},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.cgroup),
            "failCgroupV1": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "failSwapOn": false,
            "resolvConf": file("resolv.conf"),
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "maxPods": 250,
            // The operator says much, and suites read the file that is written now: another one follows at 10 MiB by default.
            "containerLogMaxSize": "1Gi",
            // A full disk of the developer's machine is not this cluster's business.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            // Devices that fail or come back are on the node's status this fast.
            "nodeStatusUpdateFrequency": "2s",
            "serializeImagePulls": false,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        });
        fs::write(
            self.config("kubelet.json"),
            serde_json::to_vec_pretty(&kubelet)?,
        )?;
        self.supervisor.start(
            Program::new("kubelet", tools.kubernetes("kubelet"))
                .arg(format!("--config={}", file("kubelet.json")))
                .arg(format!("--kubeconfig={}", file("kubelet.kubeconfig")))
                .arg(format!("--hostname-override={}", self.name))
                .arg(format!("--node-ip={address}"))
                .env("PATH", path()),
        )
    }
}

/// The folder with the registries that the nodes of a cluster trust. containerd reads it at each pull.
fn registries(cluster: &Path) -> PathBuf {
    cluster.join("config/registries")
}

/// Has the nodes of a cluster trust the registry `ADDRESS:PORT`, whose certificate is of this authority.
pub fn trust(cluster: &Path, registry: &str, authority: &Path) -> Result<()> {
    let dir = registries(cluster).join(registry);
    fs::create_dir_all(&dir)?;
    let url = format!("https://{registry}");
    let hosts = format!(
        "server = \"{url}\"\n[host.\"{url}\"]\nca = \"{}\"\n",
        authority.display()
    );
    Ok(fs::write(dir.join("hosts.toml"), hosts)?)
}

/// Starts kube-proxy, whose rules serve every pod of the cluster's network namespace.
pub fn start_proxy(dir: &Path, supervisor: &Supervisor, tools: &Tools) -> Result<()> {
    let file = |name: &str| dir.join("config").join(name).to_string_lossy().into_owned();
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": file("kube-proxy.kubeconfig")},
        "hostnameOverride": NAME,
        "iptables": {"minSyncPeriod": "100ms", "localhostNodePorts": false},
        // Zero leaves the machine's settings alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    fs::write(file("kube-proxy.json"), serde_json::to_vec_pretty(&proxy)?)?;
    supervisor.start(
        Program::new("kube-proxy", tools.kubernetes("kube-proxy"))
            .arg(format!("--config={}", file("kube-proxy.json")))
            .env("PATH", path()),
    )
}

/// Administrators' folders first: CNI plugins, runc and the kubelet call mount, iptables, conntrack.
fn path() -> String {
    format!(
        "/usr/local/sbin:/usr/sbin:/sbin:{}",
        std::env::var("PATH").unwrap_or_default()
    )
}

/// The roots of the machine's cgroup hierarchies: one, or with version 1 one for each controller.
fn cgroup_hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    let mut all: Vec<_> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        // Combined controllers have links to the one folder (`cpu -> cpu,cpuacct`).
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    all.sort();
    all
}

/// The cgroup under which all pods of a cluster are.
fn create_cgroup(name: &str) -> Result<()> {
    for hierarchy in cgroup_hierarchies() {
        let dir = hierarchy.join(name);
        fs::create_dir_all(&dir)
            .with_context(|| format!("cannot create the cgroup {}", dir.display()))?;
        let control = hierarchy.join("cgroup.subtree_control");
        for controller in fs::read_to_string(hierarchy.join("cgroup.controllers"))
            .unwrap_or_default()
            .split_whitespace()
        {
            // Version 2 hands controllers down one by one; what the machine does not hand down, pods do without.
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
    Ok(())
}

/// Removes it, with the pods' cgroups in it. Their processes have ended.
pub fn remove_cgroup(name: &str) -> Result<()> {
    for hierarchy in cgroup_hierarchies() {
        let dir = hierarchy.join(name);
        let mut last = None;
        // The kernel takes a moment to let go of ended processes.
        let done = poll("cgroups to empty", Duration::from_mins(1), || {
            last = remove_tree(&dir).err();
            last.is_none()
        });
        if let (Err(_), Some(error)) = (done, last) {
            return Err(error)
                .with_context(|| format!("cannot remove the cgroup {}", dir.display()));
        }
    }
    Ok(())
}

/// Folders from the leaves up; the files in them are the kernel's.
fn remove_tree(dir: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// The cgroup of the cluster in this folder. Names may repeat between users, folders do not.
pub fn cgroup(dir: &Path) -> String {
    let digest = Sha256::digest(dir.to_string_lossy().as_bytes());
    format!(
        "cuda-runner-e2e-{:02x}{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2], digest[3]
    )
}

/// Whether anything of a cluster's cgroup is left.
pub fn cgroup_exists(name: &str) -> bool {
    cgroup_hierarchies()
        .iter()
        .any(|hierarchy| hierarchy.join(name).exists())
}

/// Whether the cgroup of a pod is left: until it is gone, the kubelet may start a container of it again.
pub fn pod_cgroup_exists(cluster: &str, uid: &str) -> bool {
    let mut folders: Vec<_> = cgroup_hierarchies()
        .iter()
        .map(|hierarchy| hierarchy.join(cluster))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(uid) {
                return true;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    false
}
