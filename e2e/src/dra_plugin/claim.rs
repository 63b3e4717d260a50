//! What a claim brings into its containers, as a file of the Container Device Interface that containerd reads.
//! <https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md>

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::resource::v1::{DeviceRequestAllocationResult, ResourceClaim};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::{
    Config, DRIVER,
    api::{Claim, PreparedDevice},
    slice,
};
use crate::device_plugin::{
    CONTROL, DRIVER_PATH, SETTINGS, SMI_PATH,
    state::{self, Device},
};
use crate::images::SMI;

/// The kind of its devices, as NVIDIA's driver has it.
const KIND: &str = "k8s.gpu.nvidia.com/claim";

/// The claims of a node.
#[derive(Clone)]
pub(super) struct Claims {
    /// For reading claims, with the node's own rights.
    pub(super) client: Client,
    /// Where the devices are, and the driver.
    pub(super) config: Config,
    /// Where containerd looks.
    pub(super) cdi: PathBuf,
}

impl Claims {
    /// Makes a claim's devices ready. Repeated, as after a restart of the kubelet, it changes nothing.
    pub(super) async fn prepare(&self, asked: &Claim) -> Result<Vec<PreparedDevice>> {
        let api = Api::<ResourceClaim>::namespaced(self.client.clone(), &asked.namespace);
        let claim = api.get(&asked.name).await?;
        ensure!(
            claim.metadata.uid.as_deref() == Some(&asked.uid),
            "the claim {}/{} is another one by now",
            asked.namespace,
            asked.name
        );
        let allocation = claim.status.and_then(|status| status.allocation);
        let devices = allocation.and_then(|all| all.devices?.results);
        let results: Vec<_> = devices
            .context("the claim is not allocated")?
            .into_iter()
            .filter(|given| given.driver == DRIVER)
            .collect();
        self.write(&asked.uid, &results)?;
        Ok(results
            .into_iter()
            .map(|given| PreparedDevice {
                // A request with alternatives is `REQUEST/ALTERNATIVE`, and containers name the request.
                request_names: given.request.split('/').take(1).map(Into::into).collect(),
                cdi_device_ids: vec![format!("{KIND}={}", name(&asked.uid, &given.device))],
                pool_name: given.pool,
                device_name: given.device,
            })
            .collect())
    }

    /// Forgets a claim, if it was prepared.
    pub(super) fn unprepare(&self, uid: &str) -> Result<()> {
        match fs::remove_file(self.file(uid)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.cdi.join(format!("k8s.{DRIVER}-claim_{uid}.json"))
    }

    /// Containers that start later, or again, get what the first has got.
    fn write(&self, uid: &str, results: &[DeviceRequestAllocationResult]) -> Result<()> {
        let file = self.file(uid);
        if file.exists() {
            return Ok(());
        }
        // Read now: a device broken a moment ago is broken for the claim that gets it now.
        let known = state::read_all(&self.config.devices)?;
        let mut given = vec![];
        for result in results {
            let number = slice::number(&result.device);
            let device = number.and_then(|number| known.get(number));
            let device = device.with_context(|| format!("no device {}", result.device))?;
            if result.pool != self.config.node || device.lost {
                bail!("{} of {}: nvml: GPU is lost", result.device, result.pool);
            }
            given.push((result.device.as_str(), device));
        }
        let text = serde_json::to_vec_pretty(&self.spec(uid, &given)?)?;
        fs::create_dir_all(&self.cdi)?;
        // containerd reads `.json` and `.yaml` alone.
        let partial = file.with_extension("partial");
        fs::write(&partial, text)?;
        Ok(fs::rename(&partial, &file)?)
    }

    fn spec(&self, uid: &str, given: &[(&str, &Device)]) -> Result<Value> {
        let devices: Vec<_> = given.iter().map(|(_, device)| *device).collect();
        let first = devices.first().context("a claim without a device")?;
        let folder = &self.config.devices;
        let (driver, control) = (
            &self.config.driver,
            state::new_control_file(folder, &first.uuid)?,
        );
        let settings = state::new_settings_file(folder, &devices)?;
        let nodes = given.iter().map(|(device, _)| {
            // Anything that every program may open stands for a GPU's device file.
            let number = slice::number(device).unwrap_or_default();
            json!({
                "name": name(uid, device),
                "containerEdits": {"deviceNodes": [{"path": format!("/dev/nvidia{number}"), "hostPath": "/dev/null"}]},
            })
        });
        let nodes: Vec<_> = nodes.collect();
        Ok(json!({
            "cdiVersion": "0.6.0",
            "kind": KIND,
            "devices": nodes,
            "containerEdits": {
                // What NVIDIA's own runtime would inject otherwise.
                "env": ["NVIDIA_VISIBLE_DEVICES=void"],
                "mounts": [
                    mount(DRIVER_PATH, driver),
                    mount(SMI_PATH, &driver.join(SMI)),
                    mount(CONTROL, &control),
                    mount(SETTINGS, &settings),
                ],
            },
        }))
    }
}

fn name(uid: &str, device: &str) -> String {
    format!("{uid}-{device}")
}

fn mount(container: &str, host: &Path) -> Value {
    json!({
        "containerPath": container,
        "hostPath": host,
        "options": ["ro", "nosuid", "nodev", "bind"],
    })
}
