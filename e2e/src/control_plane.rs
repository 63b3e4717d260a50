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
#[expect(
    clippy::too_many_lines,
    reason = "flags of four programs, one after the other"
)]
pub fn start(
    dir: &Path,
    supervisor: &Supervisor,
    tools: &Tools,
    certs: &Certificates,
    listen: &Listen,
    pods_reach_it: bool,
) -> Result<()> {
    let config = dir.join("config");
    let file = |name: &str| config.join(name).to_string_lossy().into_owned();
    let etcd = format!("http://127.0.0.1:{}", listen.etcd);
    let peer = format!("http://127.0.0.1:{}", listen.etcd_peer);
    supervisor.start(
        Program::new("etcd", tools.etcd())
            .arg(format!("--data-dir={}", dir.join("etcd").display()))
            // The data lives as long as the processes: nothing to save over a power cut.
            .arg("--unsafe-no-fsync")
            .arg(format!("--listen-client-urls={etcd}"))
            .arg(format!("--advertise-client-urls={etcd}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .arg("--log-level=warn"),
    )?;

    // Every request in the audit log once, when it is answered: suites count them.
    fs::write(
        config.join("audit.json"),
        r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[{"level":"Metadata"}]}"#,
    )?;
    let mut api = Program::new("kube-apiserver", tools.kubernetes("kube-apiserver"))
        .arg(format!("--etcd-servers={etcd}"))
        .arg(format!(
            "--bind-address={}",
            if pods_reach_it {
                Ipv4Addr::UNSPECIFIED
            } else {
                listen.address
            }
        ))
        .arg(format!("--secure-port={}", listen.api))
        .arg(format!("--tls-cert-file={}", certs.path("apiserver.crt")))
        .arg(format!(
            "--tls-private-key-file={}",
            certs.path("apiserver.key")
        ))
        .arg(format!("--client-ca-file={}", certs.path("ca.crt")))
        .arg(format!(
            "--kubelet-client-certificate={}",
            certs.path("apiserver-kubelet.crt")
        ))
        .arg(format!(
            "--kubelet-client-key={}",
            certs.path("apiserver-kubelet.key")
        ))
        .arg("--kubelet-preferred-address-types=InternalIP")
        .arg("--authorization-mode=Node,RBAC")
        .arg("--enable-admission-plugins=NodeRestriction")
        .arg("--allow-privileged=true")
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(format!(
            "--service-account-key-file={}",
            certs.path("sa.pub")
        ))
        .arg(format!(
            "--service-account-signing-key-file={}",
            certs.path("sa.key")
        ))
        .arg(format!("--service-cluster-ip-range={SERVICE_RANGE}"))
        .arg(format!("--audit-policy-file={}", file("audit.json")))
        .arg(format!(
            "--audit-log-path={}",
            dir.join("logs/audit.log").display()
        ))
        .arg(format!("--cert-dir={}", dir.join("pki").display()));
    api = if pods_reach_it {
        api.arg(format!("--advertise-address={}", listen.address))
    } else {
        // A loopback address cannot be an endpoint of the `kubernetes` service.
        api.arg("--endpoint-reconciler-type=none")
    };
    supervisor.start(api)?;

    supervisor.start(
        Program::new(
            "kube-controller-manager",
            tools.kubernetes("kube-controller-manager"),
        )
        .arg(format!(
            "--kubeconfig={}",
            file("controller-manager.kubeconfig")
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
        .arg("--node-monitor-grace-period=120s"),
    )?;

    fs::write(
        config.join("scheduler.json"),
        serde_json::to_vec(&serde_json::json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "leaderElection": {"leaderElect": false},
            // The default of 50 holds hundreds of pods to many seconds, whoever made them.
            "clientConnection": {"kubeconfig": file("scheduler.kubeconfig"), "qps": 1000, "burst": 2000},
        }))?,
    )?;
    supervisor.start(
        Program::new("kube-scheduler", tools.kubernetes("kube-scheduler"))
            .arg(format!("--config={}", file("scheduler.json")))
            .arg("--secure-port=0"),
    )
}

/// Waits until the API server says that it is ready.
pub async fn ready(supervisor: &Supervisor, client: &Client) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
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
            anyhow::bail!("the API server was not ready within 60 s: {last}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
