//! The kubelet's plugin of dynamic resource allocation for simulated GPUs, as NVIDIA's driver `gpu.nvidia.com` is: it
//! publishes a `ResourceSlice`, and prepares claims for containerd. A background process of a node that has no device plugin.

mod api;
mod authority;
mod claim;
mod slice;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::Node,
    resource::v1::{Device, ResourceSlice},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::{net::UnixListener, sync::watch};

use crate::{
    device_plugin::state,
    kubelet_service::{Methods, Service},
    kwok,
    node::CDI,
    wait::wait_for,
};

/// The driver's name.
pub const DRIVER: &str = "gpu.nvidia.com";
/// Where the kubelet looks for plugins; its path is fixed.
const REGISTRATIONS: &str = "/var/lib/kubelet/plugins_registry";
/// Where it calls this one.
const ENDPOINT: &str = "/var/lib/kubelet/plugins/gpu.nvidia.com/dra.sock";
/// How often device files and the slice are compared.
const LOOK: Duration = Duration::from_millis(300);

/// What the plugin serves, and where.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// The folder with the devices' state files.
    #[arg(long)]
    pub devices: PathBuf,
    /// The folder with the driver, mounted into every container that gets a device.
    #[arg(long)]
    pub driver: PathBuf,
    /// The node's credentials.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// The node's name, which is also that of its pool of devices.
    #[arg(long)]
    pub node: String,
}

/// The hidden subcommand: serves the kubelet, and keeps the slice as the device files are.
pub async fn run(config: Config) -> Result<()> {
    let file = Kubeconfig::read_from(&config.kubeconfig)?;
    let settings =
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(settings)?;
    let claims = claim::Claims {
        client: client.clone(),
        config: config.clone(),
        cdi: PathBuf::from(CDI),
    };
    let (taken, mut is_taken) = watch::channel(false);
    serve(Path::new(ENDPOINT), api::Plugin { claims })?;
    let registration = Path::new(REGISTRATIONS).join(format!("{DRIVER}-reg.sock"));
    serve(&registration, api::Registration { taken })?;
    // A kubelet that starts removes the slices of its node.
    is_taken.wait_for(|taken| *taken).await?;
    loop {
        if let Err(error) = publish(&client, &config.node, &config.devices).await {
            eprintln!("cannot publish the devices: {error:#}; trying again");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Serves on a socket, in the background.
fn serve(socket: &Path, methods: impl Methods) -> Result<()> {
    std::fs::create_dir_all(socket.parent().context("a socket has a folder")?)?;
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let incoming = stream::unfold(listener, |listener| async {
        let stream = listener.accept().await;
        let stream = stream.map(|(stream, _)| authority::readable(stream));
        Some((stream, listener))
    })
    .boxed();
    let server = tonic::transport::Server::builder()
        .add_service(Service(methods))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    Ok(())
}

/// Writes the node's slice, if it is not as the device files are.
async fn publish(client: &Client, node: &str, folder: &Path) -> Result<()> {
    let wanted = slice::devices(&state::read_all(folder)?);
    let slices: Api<ResourceSlice> = Api::all(client.clone());
    // A node may list its own alone.
    let own = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let name = format!("{node}-{DRIVER}");
    let all = slices.list(&own).await?.items;
    let before = all.into_iter().find(|slice| slice.name_any() == name);
    let owner = Api::<Node>::all(client.clone()).get(node).await?;
    let owner = owner.metadata.uid.context("the node has no uid")?;
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner}]);
    let generation = before
        .as_ref()
        .map_or(0, |slice| slice.spec.pool.generation);
    let mut slice = json!({
        "metadata": {"name": name, "ownerReferences": owner},
        "spec": {
            "driver": DRIVER,
            "nodeName": node,
            "pool": {"name": node, "generation": generation, "resourceSliceCount": 1},
            "devices": wanted,
        },
    });
    let Some(before) = before else {
        slice["spec"]["pool"]["generation"] = 1.into();
        slices
            .create(&PostParams::default(), &serde_json::from_value(slice)?)
            .await?;
        return Ok(());
    };
    let seen = before.spec.devices.iter().flatten().map(without_times);
    let wanted: ResourceSlice = serde_json::from_value(slice.clone())?;
    if before.metadata.owner_references == wanted.metadata.owner_references
        && seen.eq(wanted.spec.devices.iter().flatten().cloned())
    {
        return Ok(());
    }
    slice["metadata"]["resourceVersion"] = json!(before.metadata.resource_version);
    slice["spec"]["pool"]["generation"] = json!(generation.saturating_add(1));
    let slice = serde_json::from_value(slice)?;
    slices
        .replace(&name, &PostParams::default(), &slice)
        .await?;
    Ok(())
}

/// The API server notes when a taint came.
fn without_times(device: &Device) -> Device {
    let mut device = device.clone();
    for taint in device.taints.iter_mut().flatten() {
        taint.time_added = None;
    }
    device
}

/// Waits until a node is ready and its slice shows the devices of this folder.
pub async fn published(client: &Client, node: &str, folder: &Path) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let slices: Api<ResourceSlice> = Api::all(client.clone());
    let name = format!("{node}-{DRIVER}");
    let devices = slice::devices(&state::read_all(folder)?);
    let wanted: Vec<Device> = serde_json::from_value(devices.into())?;
    wait_for(
        "the node to be ready and its GPUs to be published",
        Duration::from_mins(1),
        async || {
            let node = nodes.get_opt(node).await?;
            let ready = node.is_some_and(|node| kwok::is_ready(&node));
            let slice = slices.get_opt(&name).await?;
            let shown = slice.and_then(|slice| slice.spec.devices);
            let shown = shown.iter().flatten().map(without_times);
            Ok((ready && shown.eq(wanted.iter().cloned())).then_some(()))
        },
    )
    .await
}
