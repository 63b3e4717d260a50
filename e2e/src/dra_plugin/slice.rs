//! The node's devices as its `ResourceSlice` shows them: with the attributes of NVIDIA's driver.
//! <https://github.com/kubernetes-sigs/dra-driver-nvidia-gpu> (`cmd/gpu-kubelet-plugin/deviceinfo.go`, `device_health.go`)

use serde_json::{Value, json};

use super::DRIVER;
use crate::device_plugin::state::Device;

/// Errors that applications cause, by the driver's own list: they are told, and keep nobody off.
const OF_APPLICATIONS: [u32; 3] = [13, 31, 43];

/// The devices of a slice. A device keeps its name, whatever hardware is in its place. Where one is lost, all of the node's are
/// tainted, because the driver cannot tell which.
pub(super) fn devices(all: &[Device]) -> Vec<Value> {
    let is_lost = all.iter().any(|device| !device.healthy);
    let all = all.iter().enumerate();
    all.map(|(number, one)| device(number, one, is_lost))
        .collect()
}

fn device(number: usize, device: &Device, is_lost: bool) -> Value {
    let mut shown = json!({
        "name": format!("gpu-{number}"),
        "attributes": {
            "type": {"string": "gpu"},
            "uuid": {"string": device.uuid},
            "productName": {"string": "NVIDIA H100 80GB HBM3"},
            "brand": {"string": "Nvidia"},
            "architecture": {"string": "Hopper"},
            "cudaComputeCapability": {"version": "9.0.0"},
            "driverVersion": {"version": "580.95.5"},
            "cudaDriverVersion": {"version": "13.0.0"},
            "addressingMode": {"string": "none"},
            "resource.kubernetes.io/pciBusID": {"string": format!("0000:{number:02x}:00.0")},
            "resource.kubernetes.io/pcieRoot": {"string": format!("pci0000:{number:02x}")},
        },
        "capacity": {"memory": {"value": "80Gi"}},
    });
    let mut taints = vec![];
    if let Some(xid) = device.xid {
        let is_of_application = OF_APPLICATIONS.contains(&xid);
        let effect = if is_of_application {
            "None"
        } else {
            "NoSchedule"
        };
        taints.push(taint("xid", Some(xid.to_string()), effect));
    }
    if is_lost {
        taints.push(taint("gpu-lost", None, "NoSchedule"));
    }
    if !taints.is_empty() {
        shown["taints"] = taints.into();
    }
    shown
}

/// Only the one with a number has a value.
fn taint(key: &str, value: Option<String>, effect: &str) -> Value {
    let mut taint = json!({"key": format!("{DRIVER}/{key}"), "effect": effect});
    if let Some(value) = value {
        taint["value"] = value.into();
    }
    taint
}

/// `gpu-3` → 3.
pub(super) fn number(device: &str) -> Option<usize> {
    device.strip_prefix("gpu-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_name_and_what_is_wrong_with_it_is_a_taint() {
        let mut bad = Device::healthy(1, 7);
        bad.xid = Some(79);
        bad.healthy = false;
        let shown = devices(&[Device::healthy(0, 0), bad.clone()]);
        let lost = json!({"key": "gpu.nvidia.com/gpu-lost", "effect": "NoSchedule"});
        assert_eq!(shown[0]["taints"], json!([lost]));
        assert_eq!(shown[1]["name"], "gpu-1");
        assert_eq!(shown[1]["attributes"]["uuid"]["string"], bad.uuid);
        assert_eq!(
            shown[1]["taints"],
            json!([
                {"key": "gpu.nvidia.com/xid", "value": "79", "effect": "NoSchedule"},
                lost,
            ])
        );
        bad.healthy = true;
        bad.xid = Some(13);
        let shown = devices(&[Device::healthy(0, 0), bad]);
        assert!(shown[0]["taints"].is_null());
        assert_eq!(shown[1]["taints"][0]["effect"], "None");
        assert_eq!(shown[1]["name"].as_str().and_then(number), Some(1));
    }
}
