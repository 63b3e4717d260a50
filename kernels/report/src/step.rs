//! The steps of the test, in their order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The steps of the test, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(transform = crate::schema::open))]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// The test process starts.
    Start,
    /// The driver's library is loaded and its functions are looked up.
    Load,
    /// `cuInit`.
    Init,
    /// The driver's version is asked and compared with the minimum.
    DriverVersion,
    /// The devices are counted and compared with the request.
    DeviceCount,
    /// Name, UUID and attributes.
    Properties,
    /// The device's context is made.
    Context,
    /// The PTX is loaded.
    ModuleLoad,
    /// Device memory is allocated.
    Allocate,
    /// Input goes to the device.
    CopyToDevice,
    /// The kernel is launched.
    Launch,
    /// The kernel is waited for.
    Synchronize,
    /// Output comes back.
    CopyToHost,
    /// Output is compared, every element.
    Compare,
    /// A bounded part of the free memory is written and read back.
    MemoryWalk,
    /// f16 matrix multiplication on the tensor cores.
    TensorCores,
    /// Managed memory: advise, prefetch, round trip.
    ManagedMemory,
    /// Devices copy to one another, and kernels on two of them talk.
    Peers,
    /// The driver's management library is asked.
    Health,
    /// The runner's image and network are looked at.
    Preflight,
    /// The registrar is asked.
    Registration,
    /// A step that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Step {
    /// Whether the device had been given work before or in this step, so that a driver's error may stem from it.
    #[must_use]
    pub fn is_after_launch(self) -> bool {
        matches!(
            self,
            Self::Launch
                | Self::Synchronize
                | Self::CopyToHost
                | Self::Compare
                | Self::MemoryWalk
                | Self::TensorCores
                | Self::ManagedMemory
        )
    }

    /// Words for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Load => "load the driver",
            Self::Init => "initialise the driver",
            Self::DriverVersion => "driver version",
            Self::DeviceCount => "count devices",
            Self::Properties => "device properties",
            Self::Context => "create context",
            Self::ModuleLoad => "load kernel",
            Self::Allocate => "allocate memory",
            Self::CopyToDevice => "copy to device",
            Self::Launch => "launch kernel",
            Self::Synchronize => "wait for kernel",
            Self::CopyToHost => "copy from device",
            Self::Compare => "compare result",
            Self::MemoryWalk => "memory walk",
            Self::TensorCores => "tensor cores",
            Self::ManagedMemory => "managed memory",
            Self::Peers => "copy between devices",
            Self::Health => "ask the management library",
            Self::Preflight => "preflight",
            Self::Registration => "register",
            Self::Unknown => "unknown step",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title())
    }
}
