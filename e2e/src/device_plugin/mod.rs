//! The kubelet's device plugin for simulated GPUs, as NVIDIA's real one is: it lists devices with their health, and on
//! allocation injects the driver into the container. A background process of the cluster.

mod api;
pub mod state;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, stream};
use tokio::{net::UnixListener, sync::watch};

pub use api::Config;
pub(crate) use api::{CONTROL, DRIVER_PATH, SETTINGS, SMI_PATH};
use state::Device;

use crate::kubelet_service::Service;

/// The kubelet's folder for plugins; its path is fixed.
const PLUGINS: &str = "/var/lib/kubelet/device-plugins";
/// How often device files are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// The hidden subcommand: serves, registers with the kubelet, and does both again when the kubelet restarts (it empties
/// its folder then).
pub async fn run(config: Config) -> Result<()> {
    let (sender, devices) = watch::channel(state::read_all(&config.devices)?);
    let folder = config.devices.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            match state::read_all(&folder) {
                Ok(now) => drop(sender.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                })),
                Err(error) => eprintln!("device files: {error:#}"),
            }
        }
    });
    let socket = Path::new(PLUGINS).join(format!("{}.sock", config.resource.replace('/', "-")));
    loop {
        while config.devices.join(state::HELD).exists() {
            tokio::time::sleep(LOOK).await;
        }
        if let Err(error) = serve_once(&config, &devices, &socket).await {
            eprintln!("{error:#}; trying again");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Serves until the socket disappears.
async fn serve_once(
    config: &Config,
    devices: &watch::Receiver<Vec<Device>>,
    socket: &Path,
) -> Result<()> {
    let _ = tokio::fs::remove_file(socket).await;
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let incoming = stream::unfold(listener, |listener| async {
        let stream = listener.accept().await.map(|(stream, _)| stream);
        Some((stream, listener))
    })
    .boxed();
    let plugin = api::DevicePlugin::new(config.clone(), devices.clone());
    let server = tonic::transport::Server::builder()
        .add_service(Service(plugin))
        .serve_with_incoming(incoming);
    let server = tokio::spawn(server);
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    let outcome = async {
        api::register(
            &Path::new(PLUGINS).join("kubelet.sock"),
            &name,
            &config.resource,
        )
        .await?;
        println!("registered {} with the kubelet", config.resource);
        while socket.exists() && !server.is_finished() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
    .await;
    server.abort();
    outcome
}
