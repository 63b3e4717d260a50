//! What GPUs do during jobs: whether that is looked at, and what was seen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether something is done.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Telemetry {
    /// It is, where the driver and the job's image let it.
    #[default]
    Enabled,
    /// It is not.
    Disabled,
}

/// What one GPU did during a job, as a program beside the job saw it by the driver's management library. Information, and no
/// evidence: the job could have written it. What the driver does not tell is absent.
#[derive(JsonSchema, Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobGpuStatus {
    /// The GPU, as the gate saw it.
    pub uuid: String,
    /// For how many seconds it was watched.
    pub watched_seconds: i32,
    /// In how much of that time a kernel ran on it, in percent. Absent where the GPU is shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_percent: Option<i32>,
    /// The most of that within a second or less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_busy_percent: Option<i32>,
    /// Nothing ran on it and nothing was put into its memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unused: bool,
    /// The most of its memory that was taken, in MiB. Absent where the GPU is shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_mib: Option<i32>,
    /// The energy that it took, in joules. Absent where the GPU is shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<i64>,
    /// The lowest clock of its processors while it was busy, in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sm_clock_mhz: Option<i32>,
    /// The mean clock of its processors while it was busy, in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_sm_clock_mhz: Option<i32>,
    /// Its highest temperature, in degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_temperature_celsius: Option<i32>,
    /// For how many seconds something held its clocks back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<JobThrottledStatus>,
    /// Errors of its memory that were corrected during the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrected_ecc_errors: Option<i32>,
    /// Errors of its memory that could not be corrected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncorrected_ecc_errors: Option<i32>,
    /// Packets on `PCIe` that were sent once more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_replays: Option<i32>,
    /// XIDs that the driver reported, at most 4.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xids: Vec<i32>,
}

/// For how many seconds something held a GPU's clocks back.
#[derive(JsonSchema, Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobThrottledStatus {
    /// Heat or the power supply.
    pub seconds: i32,
    /// Heat, as the driver found it.
    pub software_thermal_seconds: i32,
    /// Heat, as the hardware found it.
    pub hardware_thermal_seconds: i32,
    /// The power supply.
    pub power_brake_seconds: i32,
    /// The limit of the GPU's own power, which is usual under load and not counted above.
    pub power_cap_seconds: i32,
}
