//! The devices as files, one each, so that suites can break one, make it unhealthy or swap it.

use std::{
    fs::{self, File, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// As long as this file is among the devices, the plugin does not begin to serve.
pub const HELD: &str = "held";

/// A simulated device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its UUID, which is also its id for the kubelet.
    pub uuid: String,
    /// What the plugin tells the kubelet. An unhealthy device is not given out.
    pub healthy: bool,
    /// Further fields of the device in the simulated driver's settings, such as `profile`.
    #[serde(default)]
    pub properties: Map<String, Value>,
    /// Entries for `faults` in these settings, for every container that gets this device. A field `device`, whatever its
    /// value, becomes this device's number in the container.
    #[serde(default)]
    pub faults: Vec<Value>,
    /// Entries for `storeFaults`, likewise.
    #[serde(default)]
    pub store_faults: Vec<Value>,
    /// The driver's CUDA version, which is the container's.
    #[serde(default)]
    pub cuda_version: Option<String>,
    /// It has fallen off the bus, and the plugin has not noticed: it answers every request for any device with an error.
    #[serde(default)]
    pub lost: bool,
    /// Whether the plugin shares it by MPS: a container hears of it by a variable.
    #[serde(default)]
    pub mps: bool,
    /// An error of it that its DRA driver has seen in the kernel's log, by NVIDIA's number.
    #[serde(default)]
    pub xid: Option<u32>,
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
            lost: false,
            mps: false,
            xid: None,
        }
    }

    /// From now on it computes wrongly: one bit of one element.
    pub fn compute_wrongly(&mut self) {
        let fault = json!({"kernel": "vector_add", "nth": 7, "flipBit": 3, "device": 0});
        self.store_faults.push(fault);
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

/// Where the files are that stand for `/dev/nvidiactl` in containers.
fn control_files(devices: &Path) -> PathBuf {
    devices.with_extension("control")
}

/// Makes the file that stands for `/dev/nvidiactl` in one container, whose first device has this UUID.
pub fn new_control_file(devices: &Path, uuid: &str) -> Result<PathBuf> {
    new_file(&control_files(devices), uuid)
}

/// Makes the file that tells the simulated driver in one container which devices it has.
pub fn new_settings_file(folder: &Path, devices: &[&Device]) -> Result<PathBuf> {
    let first = devices.first().context("no device")?;
    let file = new_file(&folder.with_extension("settings"), &first.uuid)?;
    fs::write(&file, simcuda(devices).to_string())?;
    Ok(file)
}

/// Makes a file for one container that nothing else writes.
fn new_file(folder: &Path, uuid: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let mut number = 0;
    loop {
        let file = folder.join(format!("{uuid}.{number}"));
        match File::create_new(&file) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => {
                made.with_context(|| format!("cannot make {}", file.display()))?;
                return Ok(file);
            }
        }
    }
}

/// Takes a device from the containers that have it: their file is still there, and cannot be opened any more, except
/// by root. That is what a device cgroup does after a `systemctl daemon-reload`. Containers that come later have it.
pub fn take(devices: &Path, uuid: &str) -> Result<()> {
    let prefix = format!("{uuid}.");
    for entry in fs::read_dir(control_files(devices))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::set_permissions(entry.path(), Permissions::from_mode(0o000))?;
        }
    }
    Ok(())
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
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&folder);
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
    fn a_device_is_taken_from_the_containers_that_have_it_and_no_others() {
        let folder = std::env::temp_dir().join(format!("e2e-taken-{}", std::process::id()));
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&folder);
        let devices = folder.join("devices");
        let file = |uuid| new_control_file(&devices, uuid).unwrap();
        let (mine, other) = (file("GPU-1"), file("GPU-11"));
        take(&devices, "GPU-1").unwrap();
        let later = file("GPU-1");
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&mine), 0);
        assert!(mode(&other) != 0 && mode(&later) != 0);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn each_container_has_settings_of_its_own_which_stay_when_the_device_is_taken() {
        let folder = std::env::temp_dir().join(format!("e2e-settings-{}", std::process::id()));
        // Of an earlier process with this number.
        let _ = fs::remove_dir_all(&folder);
        let devices = folder.join("devices");
        let (one, two) = (Device::healthy(0, 0), Device::healthy(1, 0));
        let first = new_settings_file(&devices, &[&one]).unwrap();
        let second = new_settings_file(&devices, &[&one, &two]).unwrap();
        new_control_file(&devices, &one.uuid).unwrap();
        take(&devices, &one.uuid).unwrap();
        let read = |file: &Path| serde_json::from_slice::<Value>(&fs::read(file).unwrap()).unwrap();
        assert_eq!(read(&first), simcuda(&[&one]));
        assert_eq!(read(&second), simcuda(&[&one, &two]));
        let mode = fs::metadata(&first).unwrap().permissions().mode() & 0o777;
        assert_ne!(mode, 0);
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
