//! The report's types, and its short form.

use serde::{Deserialize, Serialize};

use crate::preflight::Preflight;
use crate::{Failure, Health, Step};

/// Value of [`Report::schema`]. Fields may be added under the same value; a reader ignores what it does not know.
pub const SCHEMA: &str = "cudarunner.dev/gate-report/v1";

/// The kubelet keeps this much of a termination message.
pub const SUMMARY_LIMIT: usize = 4096;

/// Characters of one text that are read of a report.
const LONGEST_TEXT: usize = 4_096;

/// What the gate tried, what came back, and on which device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Names the format and its version.
    #[cfg_attr(feature = "schema", schemars(extend("const" = SCHEMA)))]
    pub schema: String,
    /// Version of `cuda-smoke`.
    pub version: String,
    /// The verdict over all devices.
    pub outcome: Outcome,
    /// Node of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod, which is the runner's too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// How many devices the pod asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_devices: Option<u32>,
    /// How many processes ran the test: 2 when the first one met a fault worth a second look.
    pub attempts: u32,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// The driver, as far as it could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Driver>,
    /// Every device that was reached, in the driver's order.
    pub devices: Vec<Device>,
    /// How the devices reach one another, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
    /// What the driver's management library says of the devices, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What the runner's image and network offer, where the pool asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preflight: Option<Preflight>,
    /// Why the gate failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What is worth knowing and fails nothing.
    pub warnings: Vec<Warning>,
    /// Where the time went.
    pub timings: Timings,
}

/// The verdict. A report that does not say passed has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Every device computes.
    Passed,
    /// The failure says why.
    #[default]
    Failed,
}

/// The machine under the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Host {
    /// Its architecture in Kubernetes' words: `amd64`, `arm64`.
    pub architecture: String,
    /// Size of a page of its memory: 4096, or 65536 as on many machines with Grace.
    pub page_size_bytes: u64,
}

/// The driver's user-mode library and the device files beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Driver {
    /// The file that was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Other files of that name that are there and were not loaded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_libraries: Vec<String>,
    /// Newest CUDA version that the driver supports, such as `12.9`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// Version of the kernel module, such as `580.95.05`, where `/proc` shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_version: Option<String>,
    /// How the host drives the devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<DriverModel>,
    /// Whether any `/dev/nvidia<N>` is in the container.
    pub device_files: bool,
    /// Whether `/dev/nvidia-uvm` is in the container.
    pub uvm_file: bool,
}

/// How the host drives the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = crate::schema::open))]
#[serde(rename_all = "camelCase")]
pub enum DriverModel {
    /// Linux's own driver.
    Linux,
    /// Windows' driver (WDDM) behind WSL2: no concurrent managed access.
    Wsl2,
    /// A model that this version does not know.
    #[serde(other)]
    Unknown,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// The driver's number for it in this container.
    pub ordinal: u32,
    /// Product name.
    pub name: String,
    /// `GPU-…`, or `MIG-…` for a slice. Empty where the driver could not say.
    pub uuid: String,
    /// Bus address, such as `0000:3b:00.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_bus_id: Option<String>,
    /// Such as `8.0`. Empty where the driver could not say.
    pub compute_capability: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Memory that was free before the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory_bytes: Option<u64>,
    /// Attribute 83: `cuMemAllocManaged` works.
    pub managed_memory: bool,
    /// Attribute 89: host and device may touch managed memory at once. False under WDDM and WSL2.
    pub concurrent_managed_access: bool,
    /// Attribute 18: its memory is the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub integrated: Option<bool>,
    /// Attribute 100: it goes by the host's page tables, so that any memory of a process is its own as well, coherently.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_page_tables: Option<bool>,
    /// Its multiprocessors; those of the slice under MIG.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiprocessors: Option<u32>,
    /// How much of its memory was written and read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_walk_bytes: Option<u64>,
    /// Attribute 38: its cache between the multiprocessors and memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_cache_bytes: Option<u64>,
    /// Attribute 115: `cuMemAllocAsync` works; where it is true, it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_pools: Option<bool>,
    /// How long all tensor cores computed and compared, in milliseconds by the device's own events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_load_ms: Option<f64>,
    /// Speed of a copy from pageable host memory to the device, in GiB (2³⁰ bytes) per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_to_device_gib_per_second: Option<f64>,
    /// Speed of a copy from the device to pageable host memory, in GiB (2³⁰ bytes) per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_to_host_gib_per_second: Option<f64>,
    /// What ran on it, with the time of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<DeviceStep>,
}

/// How the devices of a pod reach one another's memory. A pair has a direction: two devices are two pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Peers {
    /// All pairs.
    pub pairs: u32,
    /// Pairs with peer access: each was tried.
    pub with_access: u32,
    /// How much each of them copied and compared.
    pub copied_bytes: u64,
    /// How often a kernel on each device of a pair answered one on the other.
    pub round_trips: u32,
}

/// A step that went well on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DeviceStep {
    /// Which.
    pub step: Step,
    /// How long it took, in milliseconds.
    pub ms: f64,
}

/// Something worth knowing that fails nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// One word in `PascalCase`, for machines.
    pub reason: String,
    /// One sentence, for people.
    pub message: String,
    /// Ordinal of the device, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
}

/// Where the time went, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Timings {
    /// From start to verdict.
    pub total_ms: f64,
    /// `cuInit` alone: a cold device takes seconds.
    pub init_ms: f64,
    /// Everything after initialisation, over all devices.
    pub test_ms: f64,
    /// What was waited for, once all else was reported, until the test's process was gone: the driver's clean-up. 0 where the
    /// test failed.
    pub teardown_ms: f64,
}

impl Report {
    /// Reads a report that somebody else has written: none of its texts holds anything hidden.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut value = serde_json::from_slice(json)?;
        crate::clean_all(&mut value, LONGEST_TEXT);
        serde_json::from_value(value)
    }

    /// An empty report that has not passed.
    #[must_use]
    pub fn new(version: &str) -> Self {
        Self {
            schema: SCHEMA.into(),
            version: version.into(),
            attempts: 1,
            ..Self::default()
        }
    }

    /// Whether every device computes.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.outcome == Outcome::Passed
    }

    /// The exit code that this report stands for.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match (&self.failure, self.outcome) {
            (Some(failure), _) => failure.class.exit_code(),
            (None, Outcome::Passed) => crate::exit::PASSED,
            (None, Outcome::Failed) => crate::exit::INTERNAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_accepts_what_it_does_not_know_and_what_is_missing() {
        let report: Report = serde_json::from_str(
            r#"{"schema":"cudarunner.dev/gate-report/v1","outcome":"passed","new":1,
                "devices":[{"ordinal":0,"steps":[{"step":"rayTracing","ms":1.5,"new":2}]}]}"#,
        )
        .unwrap();
        assert!(report.passed());
        assert_eq!(report.devices[0].steps[0].step, Step::Unknown);
    }

    #[test]
    fn nothing_said_is_not_passed() {
        let report: Report = serde_json::from_str("{}").unwrap();
        assert!(!report.passed());
        assert_eq!(report.exit_code(), crate::exit::INTERNAL);
    }
}
