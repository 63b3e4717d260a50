//! The device plugin API, v1beta1, as far as it is used: messages and services by hand, which is less than a generator.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    pin::Pin,
};

use anyhow::{Context as _, Result};
use clap::Args;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, body::Body, codegen::http, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::state::{self, Device};
use crate::{
    images::SMI,
    kubelet_service::{Methods, unused},
};

/// What the plugin serves.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// The folder with the devices' state files.
    #[arg(long)]
    pub devices: PathBuf,
    /// The folder with the driver, mounted into every container that gets a device.
    #[arg(long)]
    pub driver: PathBuf,
    /// The resource's name, such as `nvidia.com/gpu`.
    #[arg(long, default_value = "nvidia.com/gpu")]
    pub resource: String,
}

/// Where containers find the driver, as NVIDIA's own toolkit has it on GKE.
pub(crate) const DRIVER_PATH: &str = "/usr/local/nvidia/lib64";

/// Where they find its tool.
pub(crate) const SMI_PATH: &str = "/usr/bin/nvidia-smi";

/// Where the simulated driver reads what to simulate. Not in the environment: the gate has a cleared one.
pub(crate) const SETTINGS: &str = "/usr/local/nvidia/simcuda.json";

/// The driver's control device.
pub(crate) const CONTROL: &str = "/dev/nvidiactl";

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct RegisterRequest {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    resource_name: String,
    #[prost(message, optional, tag = "4")]
    options: Option<DevicePluginOptions>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DevicePluginOptions {
    #[prost(bool, tag = "1")]
    pre_start_required: bool,
    #[prost(bool, tag = "2")]
    get_preferred_allocation_available: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<ListedDevice>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ListedDevice {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    health: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    container_requests: Vec<ContainerAllocateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerAllocateRequest {
    #[prost(string, repeated, tag = "1")]
    devices_ids: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    container_responses: Vec<ContainerAllocateResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerAllocateResponse {
    #[prost(map = "string, string", tag = "1")]
    envs: HashMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "1")]
    container_path: String,
    #[prost(string, tag = "2")]
    host_path: String,
    #[prost(bool, tag = "3")]
    read_only: bool,
}

/// Tells the kubelet where the plugin listens.
pub(super) async fn register(kubelet: &Path, endpoint: &str, resource: &str) -> Result<()> {
    let channel = tonic::transport::Endpoint::try_from(format!("unix://{}", kubelet.display()))?
        .connect()
        .await
        .context("the kubelet does not listen for plugins")?;
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .context("the kubelet closed the connection")?;
    let request = RegisterRequest {
        version: "v1beta1".to_owned(),
        endpoint: endpoint.to_owned(),
        resource_name: resource.to_owned(),
        options: Some(DevicePluginOptions::default()),
    };
    let path = http::uri::PathAndQuery::from_static("/v1beta1.Registration/Register");
    let codec: ProstCodec<RegisterRequest, Empty> = ProstCodec::default();
    client
        .unary(Request::new(request), path, codec)
        .await
        .context("the kubelet refused the plugin")?;
    Ok(())
}

/// The service that the kubelet calls.
#[derive(Clone, Debug)]
pub(super) struct DevicePlugin {
    config: Config,
    devices: watch::Receiver<Vec<Device>>,
}

impl DevicePlugin {
    /// Serves the devices of the channel.
    pub(super) fn new(config: Config, devices: watch::Receiver<Vec<Device>>) -> Self {
        Self { config, devices }
    }

    /// The devices now and after each change.
    fn list_and_watch(
        &self,
    ) -> impl Stream<Item = Result<ListAndWatchResponse, Status>> + Send + use<> {
        let mut receiver = self.devices.clone();
        receiver.mark_changed();
        stream::unfold(receiver, |mut receiver| async {
            receiver.changed().await.ok()?;
            let devices = receiver.borrow_and_update().iter().map(listed).collect();
            Some((Ok(ListAndWatchResponse { devices }), receiver))
        })
    }

    /// The driver, what it simulates, and a plain file in the place of its control device.
    fn mounts(&self, devices: &[&Device]) -> Result<Vec<Mount>, Status> {
        let driver = mount(DRIVER_PATH, &self.config.driver);
        let Some(first) = devices.first() else {
            return Ok(vec![driver]);
        };
        let failed = |error| Status::internal(format!("{error:#}"));
        let folder = &self.config.devices;
        let control = state::new_control_file(folder, &first.uuid).map_err(failed)?;
        let settings = state::new_settings_file(folder, devices).map_err(failed)?;
        Ok(vec![
            driver,
            mount(SMI_PATH, &self.config.driver.join(SMI)),
            mount(CONTROL, &control),
            mount(SETTINGS, &settings),
        ])
    }

    /// What each container is given.
    fn allocate(&self, request: AllocateRequest) -> Result<AllocateResponse, Status> {
        // Read again: a device broken a moment ago is broken for the container that gets it now.
        let known = state::read_all(&self.config.devices)
            .map_err(|error| Status::internal(format!("{error:#}")))?;
        if let Some(lost) = known.iter().position(|device| device.lost) {
            return Err(Status::unknown(format!(
                "Unable to retrieve list of available devices: error creating nvml.Device {lost}: nvml: GPU is lost"
            )));
        }
        let container_responses = request
            .container_requests
            .into_iter()
            .map(|container| {
                let devices: Vec<_> = container
                    .devices_ids
                    .iter()
                    .map(|id| {
                        known
                            .iter()
                            .find(|d| d.uuid == *id)
                            .ok_or_else(|| Status::not_found(format!("no device {id}")))
                    })
                    .collect::<Result<_, _>>()?;
                let visible = ("NVIDIA_VISIBLE_DEVICES", container.devices_ids.join(","));
                // Where NVIDIA's plugin has the pipe of its MPS daemon in a container.
                let mps = devices.iter().any(|device| device.mps);
                let mps =
                    mps.then(|| ("CUDA_MPS_PIPE_DIRECTORY", "/mps/nvidia.com/gpu/pipe".into()));
                let envs = [Some(visible), mps].into_iter().flatten();
                Ok(ContainerAllocateResponse {
                    envs: envs.map(|(name, value)| (name.to_owned(), value)).collect(),
                    mounts: self.mounts(&devices)?,
                })
            })
            .collect::<Result<_, Status>>()?;
        Ok(AllocateResponse {
            container_responses,
        })
    }
}

fn mount(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        read_only: true,
    }
}

fn listed(device: &Device) -> ListedDevice {
    let health = if device.healthy {
        "Healthy"
    } else {
        "Unhealthy"
    };
    ListedDevice {
        id: device.uuid.clone(),
        health: health.to_owned(),
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

impl Methods for DevicePlugin {
    const NAME: &'static str = "v1beta1.DevicePlugin";

    async fn answer(self, call: http::Request<Body>) -> http::Response<Body> {
        match call.uri().path() {
            "/v1beta1.DevicePlugin/GetDevicePluginOptions" => {
                let codec: ProstCodec<DevicePluginOptions, Empty> = ProstCodec::default();
                let method = service_fn(|_: Request<Empty>| async {
                    Ok(Response::new(DevicePluginOptions::default()))
                });
                Grpc::new(codec).unary(method, call).await
            }
            "/v1beta1.DevicePlugin/ListAndWatch" => {
                let codec: ProstCodec<ListAndWatchResponse, Empty> = ProstCodec::default();
                let method = service_fn(|_: Request<Empty>| {
                    let answers: Answers = self.list_and_watch().boxed();
                    async { Ok(Response::new(answers)) }
                });
                Grpc::new(codec).server_streaming(method, call).await
            }
            "/v1beta1.DevicePlugin/Allocate" => {
                let codec: ProstCodec<AllocateResponse, AllocateRequest> = ProstCodec::default();
                let method = service_fn(|request: Request<AllocateRequest>| {
                    let answer = self.allocate(request.into_inner()).map(Response::new);
                    async { answer }
                });
                Grpc::new(codec).unary(method, call).await
            }
            path => unused(path),
        }
    }
}
