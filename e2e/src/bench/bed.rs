//! What a row works on: a cluster of its own with simulated nodes, and the operator as a process beside it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    cluster::{Cluster, Options},
    deploy::{self, Beside},
    helm::{NAMESPACE, RELEASE},
    images::Profile,
    kwok,
    process::{self, Identity},
    report::Story,
    suites::Ctx,
    wait::wait_for,
};

/// The profile of what is measured.
pub(super) const PROFILE: Profile = Profile::Release;
/// GPUs of a simulated node.
pub(super) const GPUS: usize = 8;
/// How much of the operator's log an error shows.
const LOG: usize = 15;
/// Longest wait for the fleet page.
const SOON: Duration = Duration::from_secs(30);
/// Where the API server leads to the fleet's document.
pub(super) const DOCUMENT: &str = "/api/v1/namespaces/cuda-runner-system/services/cuda-runner-operator-fleet:fleet/proxy/api/fleet";

/// How to measure.
pub struct Run {
    /// How often, where a row is not counted in other ways.
    pub runs: usize,
    /// What is said meanwhile.
    pub story: Story,
}

/// A cluster, and an operator that a row starts and kills.
pub(super) struct Bed {
    /// The cluster.
    pub(super) cluster: Cluster,
    /// A client with every right.
    pub(super) client: Client,
    operator: Beside,
}

impl Bed {
    /// Works on a bed with room for so many runners. It is taken down whatever comes of it.
    pub(super) async fn with<T>(
        runners: usize,
        work: impl AsyncFnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let options = Options {
            node: false,
            kwok_nodes: runners.div_ceil(GPUS),
            profile: PROFILE,
            ..Options::default()
        };
        let name = format!("bench-{}", std::process::id());
        let cluster = Cluster::up(&name, options, &Story::silent()).await?;
        let outcome = async {
            let bed = Self::furnish(&cluster).await?;
            Box::pin(work(&bed)).await
        }
        .await
        .with_context(|| {
            let log = cluster.supervisor.log(Beside::NAME);
            let log = std::fs::read_to_string(log).unwrap_or_default();
            format!("the operator's last words:\n{}", process::tail(&log, LOG))
        });
        cluster.down()?;
        outcome
    }

    async fn furnish(cluster: &Cluster) -> Result<Self> {
        deploy::charts(cluster, &[]).await?;
        let client = cluster.client().await?;
        Ok(Self {
            // As it is shipped: what it says by default.
            operator: deploy::beside(cluster, &client, PROFILE, "info").await?,
            cluster: cluster.clone(),
            client,
        })
    }

    /// A namespace with a repository and credentials.
    pub(super) async fn ctx(&self, name: &str) -> Result<Ctx> {
        Ctx::new(&self.cluster, name).await
    }

    /// A client as the operator's own service account, on fresh connections: what the floor is measured with.
    pub(super) async fn bare(&self) -> Result<Client> {
        let file = Kubeconfig::read_from(Beside::kubeconfig(&self.cluster))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// Starts the operator; gives the moment. Does not wait.
    pub(super) fn start(&self) -> Result<Instant> {
        let now = Instant::now();
        self.operator.start(&self.cluster)?;
        Ok(now)
    }

    /// Starts the operator and waits until it listens.
    pub(super) async fn started(&self) -> Result<()> {
        self.start()?;
        self.operator.listens(&self.cluster).await
    }

    /// The same, with the fleet page; where that is.
    pub(super) async fn started_with_page(&self) -> Result<SocketAddr> {
        self.with_page_at(Ipv4Addr::LOCALHOST.into()).await
    }

    async fn with_page_at(&self, address: IpAddr) -> Result<SocketAddr> {
        let (with_page, page) = self.operator.with_page(address)?;
        with_page.start(&self.cluster)?;
        with_page.listens(&self.cluster).await?;
        wait_for("the fleet page", SOON, async || {
            Ok(TcpStream::connect(page).await.is_ok().then_some(()))
        })
        .await?;
        Ok(page)
    }

    /// The same, with the chart's Service before the page, as the plugin finds it. The API server leads to addresses of pods
    /// only, and to none of the loopback interface: a simulated pod has an address of the machine.
    pub(super) async fn started_with_service(&self) -> Result<SocketAddr> {
        deploy::charts(&self.cluster, &["fleetPage.enabled=true"]).await?;
        let page = self.with_page_at(own_address()?).await?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let pod = serde_json::from_value(json!({
            "metadata": {
                "name": "fleet-page",
                "labels": {"app.kubernetes.io/name": RELEASE, "app.kubernetes.io/instance": RELEASE},
            },
            "spec": {
                "nodeName": kwok::name(0),
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "operator",
                    "image": "operator",
                    "ports": [{"name": "fleet", "containerPort": page.port()}],
                }],
            },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
        wait_for("the simulated pod of the page", SOON, async || {
            Ok(deploy::is_ready(&pods.get("fleet-page").await?).then_some(()))
        })
        .await?;
        let ip = page.ip().to_string();
        let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
        pods.patch_status(
            "fleet-page",
            &PatchParams::default(),
            &Patch::Merge(&status),
        )
        .await?;
        wait_for("the API server to lead to the page", SOON, async || {
            let request = http::Request::get(DOCUMENT).body(vec![])?;
            Ok(self.client.request_text(request).await.ok().map(drop))
        })
        .await?;
        Ok(page)
    }

    /// Kills the operator where it stands.
    pub(super) async fn kill(&self) -> Result<()> {
        let supervisor = &self.cluster.supervisor;
        supervisor.signal(Beside::NAME, Signal::KILL)?;
        wait_for(
            "the killed operator to end",
            Duration::from_secs(10),
            async || Ok(supervisor.check(Beside::NAME).is_err().then_some(())),
        )
        .await
    }

    /// The processor's time that each program of the cluster has had, in seconds, and the bench itself.
    pub(super) fn processor(&self) -> Result<BTreeMap<String, f64>> {
        let all = process::marked(&self.cluster.dir).into_iter();
        let mut used = BTreeMap::new();
        for (program, seconds) in all.chain([Identity::own()?]).filter_map(Identity::usage) {
            *used.entry(program).or_default() += seconds;
        }
        Ok(used)
    }

    /// Resident memory of the operator in MiB: now, and at its peak.
    pub(super) fn memory(&self) -> Result<(f64, f64)> {
        let binary = self.operator.binary().file_name();
        let runs = process::marked(&self.cluster.dir)
            .into_iter()
            .find(|process| {
                let used = process.usage();
                used.is_some_and(|(program, _)| binary.is_some_and(|name| name == program.as_str()))
            });
        runs.context("the operator does not run")?.memory()
    }
}

/// The machine's address to others. Nothing is sent.
fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // An address of a documentation's network: any would do.
    let to_others = socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9));
    to_others.context("this machine has no address but those of the loopback interface")?;
    Ok(socket.local_addr()?.ip())
}

/// The spec of a pool whose pods go to simulated nodes.
pub(super) fn pool(replicas: usize) -> Value {
    json!({
        "replicas": replicas,
        "template": {"spec": {"tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]}},
    })
}

/// The same, with gates that are played by hand.
pub(crate) fn gated_pool(replicas: usize) -> Value {
    let mut spec = pool(replicas);
    let (name, value) = kwok::GATE_BY_HAND;
    spec["template"]["metadata"] = json!({"annotations": {name: value}});
    spec
}
