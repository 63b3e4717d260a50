//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use kube::Client;

use crate::{
    certs::Certificates,
    node::Machine,
    supervisor::{Program, Supervisor},
    tools::Tools,
};

/// The range of service addresses; the first is the API server's own.
const SERVICE_RANGE: &str = "10.96.0.0/16";
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// By then the API server is ready, on a machine that has other things to do.
const READY: Duration = Duration::from_mins(3);

/// Where the parts listen.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// The address that clients and pods use.
    pub address: Ipv4Addr,
    /// The API server's port.
    pub api: u16,
    /// etcd's port for clients, on loopback.
    pub etcd: u16,
    /// etcd's port for peers, which there are none of.
    pub etcd_peer: u16,
}

impl Listen {
    /// In a network namespace of one's own every port is free.
    pub fn private(address: Ipv4Addr) -> Self {
        Self {
            address,
            api: 6443,
            etcd: 2379,
            etcd_peer: 2380,
        }
    }

    /// On the machine's own loopback: three ports that are free now.
    pub fn loopback() -> Result<Self> {
        let listeners: Vec<_> = (0..3)
            .map(|_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .collect::<Result<_, _>>()
            .context("no free port on loopback")?;
        // Held together until here, so they differ.
        let ports: Vec<_> = listeners
            .iter()
            .map(|l| l.local_addr().map(|a| a.port()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            address: Ipv4Addr::LOCALHOST,
            api: ports[0],
            etcd: ports[1],
            etcd_peer: ports[2],
        })
    }

    /// The API server's URL.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.api)
    }
}

/// Certificates for everyone, and kubeconfigs in the cluster's folder: `kubeconfig` for the administrator, the others
/// under `config/`, a kubelet's in the folder of its node.
pub fn credentials(dir: &Path, listen: &Listen, nodes: &[Machine]) -> Result<Certificates> {
    let certs = Certificates::create(&dir.join("pki"), "cuda-runner-e2e")?;
    certs.service_account()?;
    certs.server(
        "apiserver",
        &[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ],
        &[
            IpAddr::V4(listen.address),
            IpAddr::V4(API_SERVICE),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
        ],
    )?;
    fs::create_dir_all(dir.join("config"))?;
    for (file, user, group) in [
        ("admin", "admin", "system:masters"),
        ("apiserver-kubelet", "kube-apiserver", "system:masters"),
        ("controller-manager", "system:kube-controller-manager", ""),
        ("scheduler", "system:kube-scheduler", ""),
        ("kube-proxy", "system:kube-proxy", ""),
        ("kwok", "kwok", "system:masters"),
    ] {
        certs.client(file, user, group)?;
        certs.kubeconfig(
            file,
            &listen.url(),
            &dir.join(format!("config/{file}.kubeconfig")),
        )?;
    }
    for node in nodes {
        let user = format!("system:node:{}", node.name);
        certs.client(node.name, &user, "system:nodes")?;
        let kubeconfig = node.kubeconfig();
        fs::create_dir_all(kubeconfig.parent().unwrap_or(dir))?;
        certs.kubeconfig(node.name, &listen.url(), &kubeconfig)?;
    }
    fs::rename(dir.join("config/admin.kubeconfig"), dir.join("kubeconfig"))?;
    Ok(certs)
}

/// Starts the four programs; does not wait.
pub fn start(
    dir: &Path,
    supervisor: &Supervisor,
    tools: &Tools,
    certs: &Certificates,
    listen: &Listen,
    pods_reach_it: bool,
) -> Result<()> {
    supervisor.start(etcd(dir, tools, listen))?;
    supervisor.start(api_server(dir, tools, certs, listen, pods_reach_it)?)?;
    supervisor.start(controller_manager(dir, tools, certs))?;
    supervisor.start(scheduler(dir, tools)?)
}

fn etcd(dir: &Path, tools: &Tools, listen: &Listen) -> Program {
    let etcd = etcd_url(listen);
    let peer = format!("http://127.0.0.1:{}", listen.etcd_peer);
    Program::new("etcd", tools.etcd())
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        // The data lives as long as the processes: nothing to save over a power cut.
        .arg("--unsafe-no-fsync")
        .arg(format!("--listen-client-urls={etcd}"))
        .arg(format!("--advertise-client-urls={etcd}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=default={peer}"))
        .arg("--log-level=warn")
}

fn etcd_url(listen: &Listen) -> String {
    format!("http://127.0.0.1:{}", listen.etcd)
}

/// A file among the settings.
fn config(dir: &Path, name: &str) -> String {
    dir.join("config").join(name).to_string_lossy().into_owned()
}

fn api_server(
    dir: &Path,
    tools: &Tools,
    certs: &Certificates,
    listen: &Listen,
    pods_reach_it: bool,
) -> Result<Program> {
    let audit = config(dir, "audit.json");
    // Every request in the audit log once, when it is answered: suites count them.
    fs::write(
        &audit,
        r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[{"level":"Metadata"}]}"#,
    )?;
    let file = |flag: &str, name: &str| format!("--{flag}={}", certs.path(name));
    let address = if pods_reach_it {
        Ipv4Addr::UNSPECIFIED
    } else {
        listen.address
    };
    let api = Program::new("kube-apiserver", tools.kubernetes("kube-apiserver"))
        .arg(format!("--etcd-servers={}", etcd_url(listen)))
        .arg(format!("--bind-address={address}"))
        .arg(format!("--secure-port={}", listen.api))
        .arg(file("tls-cert-file", "apiserver.crt"))
        .arg(file("tls-private-key-file", "apiserver.key"))
        .arg(file("client-ca-file", "ca.crt"))
        .arg(file("kubelet-client-certificate", "apiserver-kubelet.crt"))
        .arg(file("kubelet-client-key", "apiserver-kubelet.key"))
        .arg("--kubelet-preferred-address-types=InternalIP")
        .arg("--authorization-mode=Node,RBAC")
        .arg("--enable-admission-plugins=NodeRestriction")
        .arg("--allow-privileged=true")
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(file("service-account-key-file", "sa.pub"))
        .arg(file("service-account-signing-key-file", "sa.key"))
        .arg(format!("--service-cluster-ip-range={SERVICE_RANGE}"))
        .arg(format!("--audit-policy-file={audit}"))
        .arg(format!(
            "--audit-log-path={}",
            dir.join("logs/audit.log").display()
        ))
        // It begins another one at 100 MB by default, and suites read on in one.
        .arg("--audit-log-maxsize=100000")
        .arg(format!("--cert-dir={}", dir.join("pki").display()));
    Ok(if pods_reach_it {
        api.arg(format!("--advertise-address={}", listen.address))
    } else {
        // A loopback address cannot be an endpoint of the `kubernetes` service.
        api.arg("--endpoint-reconciler-type=none")
    })
}

fn controller_manager(dir: &Path, tools: &Tools, certs: &Certificates) -> Program {
    const NAME: &str = "kube-controller-manager";
    Program::new(NAME, tools.kubernetes(NAME))
        .arg(format!(
            "--kubeconfig={}",
            config(dir, "controller-manager.kubeconfig")
        ))
        .arg(format!("--root-ca-file={}", certs.path("ca.crt")))
        .arg(format!(
            "--service-account-private-key-file={}",
            certs.path("sa.key")
        ))
        .arg("--use-service-account-credentials=true")
        .arg("--leader-elect=false")
        .arg("--secure-port=0")
        .args(["--kube-api-qps=1000", "--kube-api-burst=2000"])
        // Simulated nodes beat seldom.
        .arg("--node-monitor-grace-period=120s")
}

fn scheduler(dir: &Path, tools: &Tools) -> Result<Program> {
    let file = config(dir, "scheduler.json");
    fs::write(
        &file,
        serde_json::to_vec(&serde_json::json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": false},
            // The default of 50 holds hundreds of pods to many seconds, whoever made them.
            "clientConnection": {"kubeconfig": config(dir, "scheduler.kubeconfig"), "qps": 1000, "burst": 2000},
        }))?,
    )?;
    Ok(
        Program::new("kube-scheduler", tools.kubernetes("kube-scheduler"))
            .arg(format!("--config={file}"))
            .arg("--secure-port=0"),
    )
}

/// Waits until the API server says that it is ready.
pub async fn ready(supervisor: &Supervisor, client: &Client) -> Result<()> {
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let answer = client.request_text(request).await;
        if matches!(answer.as_deref(), Ok("ok")) {
            return Ok(());
        }
        for program in ["etcd", "kube-apiserver"] {
            supervisor.check(program)?;
        }
        if tokio::time::Instant::now() > deadline {
            let last = answer.unwrap_or_else(|error| error.to_string());
            anyhow::bail!(
                "the API server was not ready within {} s: {last}",
                READY.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
