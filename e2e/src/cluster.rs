//! A cluster: made, found again, and taken away without a trace.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, Patch, PatchParams},
    config::KubeConfigOptions,
};
use rustix::process::Signal;
use tokio::task::JoinHandle;

use crate::{
    control_plane::{self, Listen},
    device_plugin::state,
    dra_plugin,
    images::{self, Images, Profile},
    interrupt, kwok,
    network::Link,
    node::{self, Machine},
    paths,
    process::{self, Identity},
    removal,
    report::Story,
    simulator,
    supervisor::{Program, Supervisor},
    tools::{self, Tools},
    wait::wait_for,
};

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether it has a real node.
    pub node: bool,
    /// Simulated nodes.
    pub kwok_nodes: usize,
    /// Devices of the real node.
    pub devices: usize,
    /// Profile of the binaries in the images.
    pub profile: Profile,
    /// Version of Kubernetes.
    pub kubernetes: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node: may_have_node(),
            kwok_nodes: 0,
            devices: 4,
            profile: Profile::Dev,
            kubernetes: tools::KUBERNETES[0],
        }
    }
}

/// How a node offers its devices. Both ways for one resource on one node is not foreseen.
#[derive(Clone, Copy, Debug)]
pub enum Offer {
    /// By a device plugin, as a number.
    Resource,
    /// By dynamic resource allocation, to claims.
    Claims,
}

/// A running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its folder, with everything that it keeps.
    pub dir: PathBuf,
    /// Its link to the machine; none where it has no real node.
    pub link: Option<Link>,
    /// The URL of its simulated GitHub.
    pub github: String,
    /// Its programs.
    pub supervisor: Supervisor,
    /// The built tools.
    pub tools: Tools,
}

/// By then a part of a node has done what it was asked for, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_mins(3);
/// Where the simulated GitHub listens in a network namespace of its own.
const GITHUB_PORT: u16 = 8443;

/// A port that is free now.
fn free_port(address: Ipv4Addr) -> Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

/// Whether this process may have a real node: namespaces, mounts and cgroups need root.
pub fn may_have_node() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a first run has to do before a cluster can start, in this order.
fn ahead(options: Options) -> Result<Vec<(String, Duration)>> {
    let mut parts = Tools::missing(options.kubernetes)?;
    if options.node {
        parts.splice(..0, tools::packages_ahead());
        parts.extend(images::missing(options.profile)?);
    }
    Ok(parts)
}

impl Cluster {
    /// Makes a cluster: control plane, the real node where possible, simulated nodes. No operator yet. It belongs to
    /// this process, and may be removed by anyone once this process is gone, until it is told to [`keep`](Self::keep).
    pub async fn up(name: &str, options: Options, story: &Story) -> Result<Self> {
        let dir = paths::cluster(name)?;
        if let Some(running) = Supervisor::at(&dir)
            .identity()
            .filter(|supervisor| supervisor.alive())
        {
            bail!(
                "the cluster `{name}` runs already (process {}): take it down first with `cargo e2e down --name {name}`",
                running.pid
            );
        }
        let real = options.node;
        if !real && !may_have_node() {
            story.step("SKIPPED: the real node, which needs root. There is one simulated node, for pods that tolerate kwok.x-k8s.io/node, and no container runs: no gate, no job; no image is built, and the suites that need pods are left out");
        }
        story.expect(ahead(options)?);
        if real {
            tools::ensure_packages(story)?;
        }
        let tools = Tools::ensure(options.kubernetes, story)?;
        let images = if real {
            let story = story.clone();
            let build = tokio::task::spawn_blocking(move || {
                images::build_binaries(options.profile, &story)?;
                let images = Images::open(&story)?;
                images.build(options.profile, &story)?;
                anyhow::Ok(images)
            });
            // Held until they are in the cluster's own archive: another tree may build others.
            Some(build.await??)
        } else {
            None
        };
        removal::remove(&dir)?; // A killed run may have left something under this name.
        fs::create_dir_all(&dir)?;
        fs::write(
            dir.join("owner.json"),
            serde_json::to_vec(&Some(Identity::own()?))?,
        )?;
        interrupt::own(&dir);
        let made = Self::start(&dir, options, tools, images, story).await;
        match made {
            Ok(cluster) => Ok(cluster),
            Err(error) => {
                // Logs go with the folder, so what matters of them is in the error already.
                removal::remove(&dir).context("and it could not be taken down either")?;
                Err(error)
            }
        }
    }

    async fn start(
        dir: &Path,
        options: Options,
        tools: Tools,
        images: Option<Images>,
        story: &Story,
    ) -> Result<Self> {
        let real = images.is_some();
        let supervisor = Supervisor::launch(dir, real)?;
        let inside = supervisor
            .identity()
            .context("the supervisor did not write who it is")?;
        let link = real
            .then(|| Link::connect(inside, &node::cgroup(dir)))
            .transpose()?;
        fs::write(dir.join(removal::LINK), serde_json::to_vec(&link)?)?;
        let listen = match &link {
            Some(link) => Listen::private(link.node),
            None => Listen::loopback()?,
        };
        let certs =
            control_plane::credentials(dir, &listen, &[Machine::first(dir), Machine::second(dir)])?;
        control_plane::start(dir, &supervisor, &tools, &certs, &listen, real)?;
        story.step("control plane started");
        let port = real.then_some(GITHUB_PORT);
        let port = port.map_or_else(|| free_port(listen.address), Ok)?;
        let github = simulator::start(dir, &supervisor, (listen.address, port).into()).await?;
        story.step(&format!("simulated GitHub at {github}"));
        let cluster = Self {
            dir: dir.to_path_buf(),
            link,
            github,
            supervisor,
            tools,
        };
        let client = cluster.client().await?;
        if let Some(link) = &cluster.link {
            let machine = Machine::first(dir);
            state::reset(&machine.devices(), options.devices)?;
            images::install_driver(options.profile, &cluster.driver())?;
            machine.start_containerd(&cluster.tools)?;
            let import = cluster.import_images(&machine, images);
            control_plane::ready(&cluster.supervisor, &client).await?;
            story.step("API server ready");
            machine.start(&cluster.tools, link.node)?;
            node::start_proxy(dir, &cluster.supervisor, &cluster.tools)?;
            cluster.start_device_plugin(&machine)?;
            import.await??;
            story.step("images imported");
        } else {
            control_plane::ready(&cluster.supervisor, &client).await?;
            story.step("API server ready");
        }
        kwok::start(dir, &cluster.supervisor, &cluster.tools)?;
        // Without a real node there would be none at all.
        let simulated = options.kwok_nodes.max(usize::from(cluster.link.is_none()));
        kwok::add_nodes(&client, simulated).await?;
        if cluster.link.is_some() {
            cluster
                .wait_for_node(&client, &Machine::first(dir), options.devices)
                .await?;
            story.step(&format!("node ready, {} GPUs", options.devices));
        }
        Ok(cluster)
    }

    /// Takes it down. Nothing of it is left.
    pub fn down(&self) -> Result<()> {
        removal::remove(&self.dir)?;
        interrupt::disown(&self.dir);
        Ok(())
    }

    /// Lets it outlive this process.
    pub fn keep(&self) -> Result<()> {
        fs::write(self.dir.join("owner.json"), "null")?;
        interrupt::disown(&self.dir);
        Ok(())
    }

    /// A client with every right.
    pub async fn client(&self) -> Result<Client> {
        let file = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// The folder with the state files of the first node's devices.
    pub fn devices(&self) -> PathBuf {
        Machine::first(&self.dir).devices()
    }

    /// `kubectl` with every right, in this namespace.
    pub fn kubectl(&self, namespace: &str) -> Command {
        let mut command = Command::new(self.tools.kubernetes("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--namespace", namespace]);
        command
    }

    /// Adds a second real node with this many devices, which it offers in this way.
    pub async fn add_second_node(&self, devices: usize, offer: Offer) -> Result<Machine> {
        let link = self
            .link
            .as_ref()
            .context("only a cluster with one real node can have a second")?;
        let machine = Machine::second(&self.dir);
        machine.forget()?;
        state::reset(&machine.devices(), devices)?;
        self.switch_on(&machine)?;
        let import = self.import_images(&machine, None);
        machine.start(&self.tools, link.node)?;
        match offer {
            Offer::Resource => self.start_device_plugin(&machine)?,
            Offer::Claims => self.start_dra_plugin(&machine)?,
        }
        import.await??;
        let client = self.client().await?;
        match offer {
            Offer::Resource => self.wait_for_node(&client, &machine, devices).await?,
            Offer::Claims => self.published(&machine).await?,
        }
        Ok(machine)
    }

    /// The second node's machine dies: everything on it ends at once, and nobody says so.
    pub fn lose_second_node(&self) -> Result<()> {
        self.supervisor.signal(node::SECOND, Signal::KILL)
    }

    /// The second node's machine is switched on again, with what is on its disk; waits until it offers its devices.
    pub async fn bring_second_node_back(&self) -> Result<()> {
        let link = self.link.as_ref().context("there is no real node")?;
        let machine = Machine::second(&self.dir);
        machine.forget_sockets()?;
        self.switch_on(&machine)?;
        machine.start(&self.tools, link.node)?;
        self.start_device_plugin(&machine)?;
        let devices = state::read_all(&machine.devices())?.len();
        let client = self.client().await?;
        self.wait_for_node(&client, &machine, devices).await
    }

    /// Starts a second machine and its containerd.
    fn switch_on(&self, machine: &Machine) -> Result<()> {
        self.supervisor.nest(machine.name, &machine.dir)?;
        machine.start_containerd(&self.tools)
    }

    /// Removes the second node: everything on it ends at once, and Kubernetes forgets it.
    pub async fn remove_second_node(&self, client: &Client) -> Result<()> {
        self.lose_second_node()?;
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.delete(node::SECOND, &DeleteParams::default()).await?;
        wait_for("the second node to be gone", PATIENCE, async || {
            Ok(nodes.get_opt(node::SECOND).await?.is_none().then_some(()))
        })
        .await
    }

    /// Kills the kubelet of the first node and starts it anew, as an upgrade does; waits until the device plugin has found
    /// it. Containers run on.
    pub async fn restart_kubelet(&self) -> Result<()> {
        self.kill_kubelet().await?;
        self.start_kubelet()?;
        self.let_plugin_back().await
    }

    /// Kills the kubelet of the first node. The device plugin will not come back to the next one yet. Containers run on.
    pub async fn kill_kubelet(&self) -> Result<()> {
        let machine = Machine::first(&self.dir);
        fs::write(machine.devices().join(state::HELD), "")?;
        machine.supervisor.signal("kubelet", Signal::KILL)?;
        wait_for("the kubelet to end", PATIENCE, async || {
            Ok(machine.supervisor.check("kubelet").is_err().then_some(()))
        })
        .await
    }

    /// Starts the kubelet of the first node, whose device plugin is held back.
    pub fn start_kubelet(&self) -> Result<()> {
        let link = self.link.as_ref().context("there is no real node")?;
        Machine::first(&self.dir).start(&self.tools, link.node)
    }

    /// The device plugin comes back to a kubelet that was restarted; waits until the node offers its GPUs.
    pub async fn let_plugin_back(&self) -> Result<()> {
        let machine = Machine::first(&self.dir);
        let log = machine.supervisor.log("device-plugin");
        // The kubelet empties the folder of plugins when it starts, and the plugin registers again.
        let registered = || {
            let said = fs::read_to_string(&log).context("the device plugin has no log")?;
            anyhow::Ok(said.matches("registered ").count())
        };
        let before = registered()?;
        fs::remove_file(machine.devices().join(state::HELD))?;
        wait_for(
            "the device plugin to register again",
            PATIENCE,
            async || Ok((registered()? > before).then_some(())),
        )
        .await?;
        let devices = state::read_all(&machine.devices())?.len();
        let client = self.client().await?;
        self.wait_for_node(&client, &machine, devices).await
    }

    /// `kubectl cordon`, or `uncordon`.
    pub async fn cordon(client: &Client, name: &str, closed: bool) -> Result<()> {
        let nodes: Api<Node> = Api::all(client.clone());
        let patch = serde_json::json!({"spec": {"unschedulable": closed}});
        nodes
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// The folder with the simulated driver, as containers see it.
    pub fn driver(&self) -> PathBuf {
        self.dir.join("driver")
    }

    /// The name of the cgroup of its pods.
    pub fn cgroup(&self) -> String {
        node::cgroup(&self.dir)
    }

    fn start_device_plugin(&self, machine: &Machine) -> Result<()> {
        machine.supervisor.start(
            Program::new("device-plugin", self.supervisor.program())
                .arg("device-plugin")
                .arg(format!("--devices={}", machine.devices().display()))
                .arg(format!("--driver={}", self.driver().display())),
        )
    }

    /// Imports the images of all of a cluster's nodes into one, beside what else there is to do. The first node brings those
    /// that go into the archive.
    fn import_images(&self, machine: &Machine, images: Option<Images>) -> JoinHandle<Result<()>> {
        let (machine, tools) = (machine.clone(), self.tools.clone());
        let archive = self.dir.join("images.tar");
        tokio::task::spawn_blocking(move || {
            if let Some(images) = images {
                images.archive(&archive)?;
            }
            machine.import(&tools, &archive)
        })
    }

    /// Waits until a node's devices are published as its files have them by now.
    pub async fn published(&self, machine: &Machine) -> Result<()> {
        let client = self.client().await?;
        let published = dra_plugin::published(&client, machine.name, &machine.devices()).await;
        published.with_context(|| {
            let log = machine.supervisor.log("dra-plugin");
            let log = fs::read_to_string(log).unwrap_or_default();
            format!("the end of the plugin's log:\n{}", process::tail(&log, 20))
        })
    }

    fn start_dra_plugin(&self, machine: &Machine) -> Result<()> {
        machine.supervisor.start(
            Program::new("dra-plugin", self.supervisor.program())
                .arg("dra-plugin")
                .arg(format!("--devices={}", machine.devices().display()))
                .arg(format!("--driver={}", self.driver().display()))
                .arg(format!("--kubeconfig={}", machine.kubeconfig().display()))
                .arg(format!("--node={}", machine.name)),
        )
    }

    /// Waits until the node is ready and offers this many devices.
    async fn wait_for_node(
        &self,
        client: &Client,
        machine: &Machine,
        devices: usize,
    ) -> Result<()> {
        let nodes: Api<Node> = Api::all(client.clone());
        let offered = wait_for(
            "the node to be ready and to offer its GPUs",
            PATIENCE,
            async || {
                for program in ["containerd", "kubelet"] {
                    machine.supervisor.check(program)?;
                }
                self.supervisor.check("kube-proxy")?;
                let Some(node) = nodes.get_opt(machine.name).await? else {
                    return Ok(None);
                };
                let allocatable = node
                    .status
                    .as_ref()
                    .and_then(|s| s.allocatable.as_ref()?.get("nvidia.com/gpu"));
                Ok((kwok::is_ready(&node)
                    && allocatable.is_some_and(|q| q.0 == devices.to_string()))
                .then_some(()))
            },
        )
        .await;
        offered.with_context(|| {
            let log = fs::read_to_string(machine.supervisor.log("kubelet")).unwrap_or_default();
            format!("the end of the kubelet's log:\n{}", process::tail(&log, 20))
        })
    }
}
