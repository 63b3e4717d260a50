//! What to simulate: `SIMCUDA` or its file, read and made whole.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use gate_report::Version;
use serde::Deserialize;

use crate::activity::Activity;
use crate::profiles::{Memory, PROFILES, Profile};

/// What is simulated.
pub(crate) static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let config = Config::from_environment().and_then(Config::in_this_process);
    config.unwrap_or_else(|error| misunderstood(&error))
});

/// What to simulate in a container: a program may have a cleared environment, as the gate has.
const FILE: &str = "/usr/local/nvidia/simcuda.json";

/// Ends the process: a test that is misunderstood must not pass.
pub(crate) fn misunderstood(error: &str) -> ! {
    eprintln!("simulated driver: SIMCUDA is not understood: {error}");
    std::process::abort();
}

/// The simulation, ready to run.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) cuda_version: Version,
    pub(crate) devices: Vec<Device>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) store_faults: Vec<StoreFault>,
    pub(crate) product_faults: Vec<ProductFault>,
    pub(crate) peer_faults: Vec<PeerFault>,
    pub(crate) stuck_cells: Vec<StuckCell>,
    pub(crate) clock: Option<PathBuf>,
    pub(crate) broken_clock: bool,
    pub(crate) device_files: Option<PathBuf>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) memory_events: Option<PathBuf>,
    /// What bringing all devices up takes, hidden ones too.
    pub(crate) startup: Duration,
}

/// A device with all its properties.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an attribute of the driver's"
)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) uuid: [u8; 16],
    pub(crate) capability: Version,
    pub(crate) memory_bytes: u64,
    pub(crate) free_bytes: u64,
    pub(crate) multiprocessors: u32,
    pub(crate) managed_memory: bool,
    pub(crate) concurrent_managed_access: bool,
    pub(crate) pci_bus_id: String,
    pub(crate) l2_bytes: u32,
    pub(crate) integrated: bool,
    pub(crate) host_page_tables: bool,
    pub(crate) memory_pools: bool,
    pub(crate) peers: bool,
    /// All of its memory is free when this is asked for so often.
    pub(crate) freed_at: Option<u32>,
    /// The number of its device file. Slices of one GPU have the same.
    pub(crate) minor: usize,
    pub(crate) startup_ms: u64,
    pub(crate) health: Health,
    pub(crate) activity: Activity,
}

/// See the crate's documentation.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Raw {
    cuda_version: Option<Version>,
    devices: Option<Vec<RawDevice>>,
    faults: Vec<Fault>,
    store_faults: Vec<StoreFault>,
    product_faults: Vec<ProductFault>,
    peer_faults: Vec<PeerFault>,
    stuck_cells: Vec<StuckCell>,
    clock: Option<PathBuf>,
    broken_clock: bool,
    device_files: Option<PathBuf>,
    state: Option<PathBuf>,
    memory_events: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RawDevice {
    profile: Option<String>,
    count: Option<u32>,
    name: Option<String>,
    uuid: Option<String>,
    compute_capability: Option<Version>,
    memory_bytes: Option<u64>,
    free_bytes: Option<u64>,
    multiprocessors: Option<u32>,
    managed_memory: Option<bool>,
    concurrent_managed_access: Option<bool>,
    pci_bus_id: Option<String>,
    l2_bytes: Option<u32>,
    integrated: Option<bool>,
    host_page_tables: Option<bool>,
    memory_pools: Option<bool>,
    peers: Option<bool>,
    freed_at: Option<u32>,
    minor: Option<usize>,
    startup_ms: u64,
    health: Health,
    activity: Activity,
}

/// What NVML says of the device. `null` is not supported.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Health {
    pub(crate) recovery_action: Option<u32>,
    pub(crate) remap_pending: Option<bool>,
    pub(crate) remap_failed: Option<bool>,
    pub(crate) ecc_errors: Option<u64>,
    pub(crate) sram_threshold: Option<bool>,
    /// State, status, health.
    pub(crate) fabric: Option<(u8, u32, u8)>,
    /// A fabric that is in progress is complete after so many looks.
    pub(crate) fabric_after: Option<u32>,
    /// How many there are, and how many are up.
    pub(crate) links: Option<(u32, u32)>,
    /// Current and pending.
    pub(crate) mig: Option<(bool, bool)>,
    pub(crate) clock_reasons: Option<u64>,
    /// Current and at most.
    pub(crate) pcie: Option<(u32, u32)>,
    pub(crate) xids: Vec<u64>,
}

impl Default for Health {
    /// A healthy device that is in no fabric.
    fn default() -> Self {
        Self {
            recovery_action: Some(0),
            remap_pending: Some(false),
            remap_failed: Some(false),
            ecc_errors: Some(0),
            sram_threshold: Some(false),
            fabric: None,
            fabric_after: None,
            links: None,
            mig: None,
            clock_reasons: Some(0),
            pcie: Some((16, 16)),
            xids: vec![],
        }
    }
}

/// What goes wrong at a call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fault {
    pub(crate) call: String,
    #[serde(default)]
    pub(crate) nth: Option<u32>,
    #[serde(default)]
    pub(crate) device: Option<u32>,
    #[serde(default)]
    pub(crate) once: Option<PathBuf>,
    /// The first and the last process that it strikes, as the state counts them from 1.
    #[serde(default)]
    pub(crate) processes: Option<(u64, u64)>,
    /// What later processes get when they make a context on the device that it struck.
    #[serde(default)]
    pub(crate) leaves: Option<i32>,
    /// Printed on standard output, without an end of the line.
    #[serde(default)]
    pub(crate) says: Option<String>,
    #[serde(default)]
    pub(crate) delay_ms: u64,
    #[serde(default)]
    pub(crate) hang: bool,
    #[serde(default)]
    pub(crate) crash: Option<Crash>,
    #[serde(default)]
    pub(crate) exit: Option<i32>,
    #[serde(default)]
    pub(crate) code: Option<i32>,
}

/// How the process dies.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Crash {
    Abort,
    Segv,
    /// As the kernel does where a container has used up its limit, and counts both that and the kill.
    Oom,
    /// As the kernel does where the node has no memory left: of a container it counts the kill alone.
    NodeOom,
}

/// What goes wrong when a kernel stores.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StoreFault {
    pub(crate) kernel: String,
    #[serde(default)]
    pub(crate) nth: Option<u64>,
    #[serde(default)]
    pub(crate) value: Option<u64>,
    #[serde(default)]
    pub(crate) device: Option<u32>,
    #[serde(default)]
    pub(crate) flip_bit: Option<u32>,
    #[serde(default)]
    pub(crate) move_bytes: i64,
}

/// What goes wrong in a product of the tensor cores.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProductFault {
    pub(crate) kernel: String,
    pub(crate) nth: u64,
    #[serde(default)]
    pub(crate) device: Option<u32>,
    pub(crate) flip_bit: u32,
}

/// What goes wrong on the way from one device into another's memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PeerFault {
    pub(crate) from: usize,
    pub(crate) to: usize,
    #[serde(default)]
    pub(crate) flip_bit: Option<u64>,
    #[serde(default)]
    pub(crate) lose_copies: bool,
    #[serde(default)]
    pub(crate) lose_stores: bool,
    #[serde(default)]
    pub(crate) no_access: bool,
}

impl PeerFault {
    /// Whether it is about this way.
    pub(crate) fn is_on(&self, from: usize, to: usize) -> bool {
        (self.from, self.to) == (from, to)
    }
}

/// A bit of a device's memory that has its value whatever is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct StuckCell {
    pub(crate) device: usize,
    /// Bytes from where device memory starts.
    pub(crate) offset: u64,
    /// Of that byte, from 0.
    pub(crate) bit: u32,
    pub(crate) value: bool,
}

impl Config {
    /// The call of a fault that is none of these.
    pub(crate) fn unknown_call(&self, calls: &[&str]) -> Option<&str> {
        let mut wanted = self.faults.iter().map(|fault| fault.call.as_str());
        wanted.find(|call| !calls.contains(call))
    }

    /// From the environment, else from the container's file.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let text = match std::env::var("SIMCUDA") {
            Ok(text) => match text.strip_prefix('@') {
                None => text,
                Some(path) => read(path)?,
            },
            Err(_) if fs::exists(FILE).unwrap_or_default() => read(FILE)?,
            Err(_) => "{}".to_owned(),
        };
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let raw_devices = raw.devices.unwrap_or_else(|| vec![RawDevice::default()]);
        let mut devices: Vec<Device> = Vec::new();
        for raw in &raw_devices {
            let first = devices.len();
            for ordinal in first..first + raw.count.unwrap_or(1) as usize {
                let mut device = raw.device(ordinal)?;
                if device.is_slice() && ordinal > first {
                    device.minor = devices[first].minor;
                    device.pci_bus_id.clone_from(&devices[first].pci_bus_id);
                }
                devices.push(device);
            }
        }
        Ok(Self {
            cuda_version: raw.cuda_version.unwrap_or(Version::new(12, 9)),
            startup: Duration::from_millis(devices.iter().map(|device| device.startup_ms).sum()),
            devices,
            faults: raw.faults,
            store_faults: raw.store_faults,
            product_faults: raw.product_faults,
            peer_faults: raw.peer_faults,
            stuck_cells: raw.stuck_cells,
            clock: raw.clock,
            broken_clock: raw.broken_clock,
            device_files: raw.device_files,
            state: raw.state,
            memory_events: raw.memory_events,
        })
    }
}

impl RawDevice {
    /// The `ordinal`th device, with its profile's properties where it has none of its own.
    fn device(&self, ordinal: usize) -> Result<Device, String> {
        let key = self.profile.as_deref().unwrap_or("a100");
        let profile = PROFILES
            .iter()
            .find(|profile| profile.key == key)
            .ok_or_else(|| format!("no such profile: {key}"))?;
        let memory_bytes = self.memory_bytes.unwrap_or(profile.memory_gib << 30);
        Ok(Device {
            name: self.name.clone().unwrap_or_else(|| profile.name.into()),
            uuid: match (&self.uuid, self.count.unwrap_or(1)) {
                (Some(text), 1) => uuid(text).ok_or_else(|| format!("not a UUID: {text}"))?,
                (Some(text), _) => return Err(format!("one UUID for several devices: {text}")),
                (None, _) => made_up_uuid(profile, ordinal),
            },
            capability: self.compute_capability.unwrap_or(profile.capability),
            memory_bytes,
            // A driver keeps some for itself.
            free_bytes: self.free_bytes.unwrap_or(memory_bytes - memory_bytes / 64),
            multiprocessors: self.multiprocessors.unwrap_or(profile.multiprocessors),
            managed_memory: self.managed_memory.unwrap_or(true),
            concurrent_managed_access: self
                .concurrent_managed_access
                .unwrap_or(profile.concurrent_managed_access),
            pci_bus_id: self
                .pci_bus_id
                .clone()
                .unwrap_or_else(|| format!("0000:{:02X}:00.0", 0x3b + ordinal)),
            l2_bytes: self.l2_bytes.unwrap_or(profile.l2_mib << 20),
            integrated: self
                .integrated
                .unwrap_or(profile.memory == Memory::Integrated),
            host_page_tables: self
                .host_page_tables
                .unwrap_or(profile.memory != Memory::Own),
            memory_pools: self.memory_pools.unwrap_or(true),
            peers: self.peers.unwrap_or(profile.peers),
            freed_at: self.freed_at,
            minor: self.minor.unwrap_or(ordinal),
            startup_ms: self.startup_ms,
            health: self.health.clone(),
            activity: self.activity.clone(),
        })
    }
}

/// `GPU-` or `MIG-` and 32 hexadecimal digits in groups.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups = text
        .strip_prefix("GPU-")
        .or_else(|| text.strip_prefix("MIG-"))?;
    let digits = groups.replace('-', "");
    if digits.len() != 32 {
        return None;
    }
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

fn made_up_uuid(profile: &Profile, ordinal: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, letter) in bytes.iter_mut().zip(profile.key.bytes()) {
        *byte = letter;
    }
    bytes[15] = u8::try_from(ordinal).unwrap_or(u8::MAX);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_is_one_healthy_a100() {
        let config = Config::parse("{}").unwrap();
        assert_eq!(config.devices.len(), 1);
        assert_eq!(config.devices[0].name, "NVIDIA A100-SXM4-40GB");
        assert!(config.faults.is_empty());
    }

    #[test]
    fn a_device_has_its_profile_and_its_own() {
        let config = Config::parse(
            r#"{"devices":[{"profile":"t4","count":2,"computeCapability":"6.1"},
                {"profile":"mig-1g","uuid":"MIG-00112233-4455-6677-8899-aabbccddeeff"}]}"#,
        )
        .unwrap();
        assert_eq!(config.devices.len(), 3);
        assert_eq!(config.devices[1].name, "Tesla T4");
        assert_eq!(config.devices[1].capability, Version::new(6, 1));
        assert_ne!(config.devices[0].uuid, config.devices[1].uuid);
        assert_eq!(config.devices[2].uuid[..2], [0x00, 0x11]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in [
            r#"{"fault":[]}"#,
            r#"{"devices":[{"profile":"gtx480"}]}"#,
            r#"{"devices":[{"uuid":"GPU-12"}]}"#,
            r#"{"faults":[{"call":"cuInit","codes":1}]}"#,
            r#"{"cudaVersion":"12"}"#,
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_fault_for_a_call_that_is_none_is_found() {
        let calls = ["cuInit", "cuDeviceGet"];
        let fault =
            |call| Config::parse(&format!(r#"{{"faults":[{{"call":"{call}"}}]}}"#)).unwrap();
        assert_eq!(fault("cuInitt").unknown_call(&calls), Some("cuInitt"));
        assert_eq!(fault("cuInit").unknown_call(&calls), None);
    }
}
