//! The devices as files, one each, so that suites can break one, make it unhealthy or swap it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A simulated device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its UUID, which is also its id for the kubelet.
    pub uuid: String,
    /// What the plugin tells the kubelet. An unhealthy device is not given out.
    pub healthy: bool,
    /// Further fields of the device in the simulated driver's `SIMCUDA`, such as `profile`.
    #[serde(default)]
    pub properties: Map<String, Value>,
    /// Entries for `faults` of `SIMCUDA`, for every container that gets this device. A field `device`, whatever its
    /// value, becomes this device's number in the container.
    #[serde(default)]
    pub faults: Vec<Value>,
    /// Entries for `storeFaults`, likewise.
    #[serde(default)]
    pub store_faults: Vec<Value>,
    /// The driver's CUDA version, which is the container's.
    #[serde(default)]
    pub cuda_version: Option<String>,
}

impl Device {
    /// A healthy device with a UUID made from two numbers: which device, and which replacement of it.
    #[must_use]
    pub fn healthy(number: usize, generation: usize) -> Self {
        Self {
            uuid: format!("GPU-c0da{generation:04x}-0000-4000-8000-{number:012x}"),
            healthy: true,
            properties: Map::new(),
            faults: Vec::new(),
            store_faults: Vec::new(),
            cuda_version: None,
        }
    }
}

/// Reads all devices, in order.
pub fn read_all(folder: &Path) -> Result<Vec<Device>> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| {
            let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_slice(&text)
                .with_context(|| format!("{} is no device", file.display()))
        })
        .collect()
}

/// Writes one device; readers see the old or the new one, nothing between.
pub fn write(folder: &Path, number: usize, device: &Device) -> Result<()> {
    fs::create_dir_all(folder)?;
    let partial = folder.join(format!("{number}.partial"));
    fs::write(&partial, serde_json::to_vec_pretty(device)?)?;
    fs::rename(&partial, folder.join(format!("{number}.json")))?;
    Ok(())
}

/// Makes this many healthy devices and removes all others.
pub fn reset(folder: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        write(folder, number, &Device::healthy(number, 0))?;
    }
    for entry in fs::read_dir(folder)?.flatten() {
        let number = entry
            .path()
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<usize>().ok());
        if number.is_none_or(|number| number >= count) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The simulated driver's configuration for a container that gets these devices.
pub fn simcuda(devices: &[&Device]) -> Value {
    let list: Vec<_> = devices
        .iter()
        .map(|device| {
            let mut properties = device.properties.clone();
            properties.insert("uuid".to_owned(), Value::String(device.uuid.clone()));
            Value::Object(properties)
        })
        .collect();
    let mut all = json!({
        "devices": list,
        "faults": numbered(devices, |device| &device.faults),
        "storeFaults": numbered(devices, |device| &device.store_faults),
    });
    if let Some(version) = devices
        .iter()
        .find_map(|device| device.cuda_version.as_ref())
    {
        all["cudaVersion"] = Value::String(version.clone());
    }
    all
}

/// The faults of all devices; those of one device name it by its place in the container.
fn numbered(devices: &[&Device], faults: impl Fn(&Device) -> &Vec<Value>) -> Vec<Value> {
    let of_device = |(place, device): (usize, &&Device)| {
        let mut faults = faults(device).clone();
        for fault in faults
            .iter_mut()
            .filter(|fault| fault.get("device").is_some())
        {
            fault["device"] = Value::from(place);
        }
        faults
    };
    devices.iter().enumerate().flat_map(of_device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_their_files_and_a_reset_heals_them() {
        let folder = std::env::temp_dir().join(format!("e2e-devices-{}", std::process::id()));
        reset(&folder, 3).unwrap();
        let mut broken = Device::healthy(1, 7);
        broken.healthy = false;
        write(&folder, 1, &broken).unwrap();
        assert_eq!(read_all(&folder).unwrap()[1], broken);
        reset(&folder, 2).unwrap();
        assert_eq!(
            read_all(&folder).unwrap(),
            [Device::healthy(0, 0), Device::healthy(1, 0)]
        );
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_container_sees_its_devices_and_their_faults() {
        let mut broken = Device::healthy(2, 0);
        broken
            .faults
            .push(json!({"call": "cuInit", "code": 802, "device": true}));
        let value = simcuda(&[&Device::healthy(0, 0), &broken]);
        assert_eq!(value["devices"][1]["uuid"], broken.uuid);
        assert_eq!(
            value["faults"],
            json!([{"call": "cuInit", "code": 802, "device": 1}])
        );
    }
}
