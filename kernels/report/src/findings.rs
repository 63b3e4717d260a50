//! What the gate sees itself, without a code from the driver.

use serde::{Deserialize, Serialize};

use crate::Class::{self, Config, Device, Node, Transient, Unsupported};
use crate::Confidence::{self, High, Low, Medium};
use crate::{Again, Context, Fault};

/// A fault that no code of the driver stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Finding {
    /// There is no `libcuda.so.1` to load.
    NoDriver,
    /// There is one, and it cannot be loaded: truncated, for another machine, without a library that it needs.
    BrokenDriver,
    /// The library lacks a function that every driver since CUDA 12.0 has.
    MissingSymbol,
    /// Fewer devices than requested.
    TooFewDevices,
    /// More devices than requested.
    TooManyDevices,
    /// As many devices as device files, and fewer than requested: several slices or shares of one GPU show as one.
    SliceHidden,
    /// `CUDA_VISIBLE_DEVICES` hides devices.
    HiddenDevices,
    /// The driver cannot open a device: it is off the bus, or the driver does not give it out.
    LostDevice,
    /// The kernel forbids to open a device: the device cgroup, or the driver's list of excluded GPUs.
    ExcludedDevice,
    /// The mode of a device file forbids to open it.
    DeviceFileMode,
    /// Below the minimum compute capability.
    ComputeCapability,
    /// Below the minimum CUDA version.
    CudaVersion,
    /// Managed memory is required, and concurrent access is not there.
    ManagedMemory,
    /// The kernel's output is wrong.
    WrongResult,
    /// The kernel wrote outside its output.
    BrokenCanary,
    /// Memory does not hold what was written to it.
    BadMemory,
    /// A copy between host and device is slower than the floor that was set.
    SlowCopy,
    /// Something outside of the pod holds the device's memory.
    MemoryTaken,
    /// What one device copied to another is not what arrived.
    PeerCopy,
    /// A kernel on one device waited for one on another, and nothing came.
    PeerHang,
    /// Peer access is required, and two devices have none.
    NoPeerAccess,
    /// A call did not come back within the deadline.
    Hang,
    /// There was no CPU for the test within the deadline.
    Starved,
    /// The test process died of a signal.
    Crash,
    /// The kernel killed the test process, because the container was out of memory.
    OutOfMemoryKill,
    /// The kernel killed the test process, because the node was out of memory.
    NodeOutOfMemory,
    /// The test process ended without a verdict.
    UnexpectedExit,
    /// NVML: only a restart of the node helps.
    NeedsReboot,
    /// NVML: only a reset of the GPU helps.
    NeedsReset,
    /// NVML: traffic between this GPU and others has to end first.
    NeedsDrain,
    /// NVML: the GPU needs an action that this version does not know.
    NeedsRecovery,
    /// NVML: a row of memory could not be replaced.
    RemapFailed,
    /// NVML: too many uncorrectable errors in SRAM.
    SramThreshold,
    /// NVML: the `NVLink` fabric is broken.
    FabricFailed,
    /// NVML: the `NVLink` fabric is not up yet.
    FabricNotReady,
    /// NVML: fewer `NVLinks` than another GPU of the fabric.
    NvLinkDown,
    /// The registrar refused.
    Refused,
    /// The registrar did not answer in time.
    Unreachable,
    /// The gate itself is at fault.
    Internal,
}

impl Finding {
    /// All of them.
    pub const ALL: [Self; 39] = [
        Self::NoDriver,
        Self::BrokenDriver,
        Self::MissingSymbol,
        Self::TooFewDevices,
        Self::TooManyDevices,
        Self::SliceHidden,
        Self::HiddenDevices,
        Self::LostDevice,
        Self::ExcludedDevice,
        Self::DeviceFileMode,
        Self::ComputeCapability,
        Self::CudaVersion,
        Self::ManagedMemory,
        Self::WrongResult,
        Self::BrokenCanary,
        Self::BadMemory,
        Self::SlowCopy,
        Self::MemoryTaken,
        Self::PeerCopy,
        Self::PeerHang,
        Self::NoPeerAccess,
        Self::Hang,
        Self::Starved,
        Self::Crash,
        Self::OutOfMemoryKill,
        Self::NodeOutOfMemory,
        Self::UnexpectedExit,
        Self::NeedsReboot,
        Self::NeedsReset,
        Self::NeedsDrain,
        Self::NeedsRecovery,
        Self::RemapFailed,
        Self::SramThreshold,
        Self::FabricFailed,
        Self::FabricNotReady,
        Self::NvLinkDown,
        Self::Refused,
        Self::Unreachable,
        Self::Internal,
    ];

    /// The gate's own name for it, whatever the circumstances.
    #[must_use]
    pub fn name(self) -> &'static str {
        finding(self, Context::at(crate::Step::Start)).name
    }
}

const PEER_ADVICE: &str = "Look for XID 74 and for IOMMU faults in the node's kernel log, check the links (nvidia-smi nvlink -s, nvidia-smi topo -p2p w), and switch ACS off where PCIe switches forward peer traffic; one device that is in every bad pair is to be replaced.";

/// What a finding means in its circumstances.
#[must_use]
#[expect(clippy::too_many_lines, reason = "a table reads best in one piece")]
pub fn finding(finding: Finding, context: Context) -> Fault {
    let launched = context.step.is_after_launch();
    let (name, class, confidence, meaning, advice) = match finding {
        Finding::NoDriver => no_driver(context),
        Finding::BrokenDriver => (
            "BrokenDriver",
            Config,
            Medium,
            "There is a libcuda, and it cannot be loaded: it is truncated, of another architecture, or lacks a library that it needs.",
            "Reinstall the driver on the node, and check what the image or the runtime mounts in its place.",
        ),
        Finding::MissingSymbol => (
            "MissingSymbol",
            Config,
            Medium,
            "The driver's library lacks a function that every driver since CUDA 12.0 has.",
            "Update the node's driver to R525 or newer, and check that the image does not bring a libcuda of its own.",
        ),
        Finding::TooFewDevices => (
            "TooFewDevices",
            Node,
            Medium,
            "The driver shows fewer devices than the pod was given: one is lost.",
            "Look for XID 79 in the node's kernel log, and at what the device plugin says of the node.",
        ),
        Finding::TooManyDevices => (
            "TooManyDevices",
            Config,
            High,
            "The driver shows more devices than the pod was given: the container sees GPUs of other pods.",
            "Remove NVIDIA_VISIBLE_DEVICES from the image, run unprivileged, and set accept-nvidia-visible-devices-envvar-when-unprivileged = false in the container toolkit.",
        ),
        Finding::SliceHidden => (
            "SliceHidden",
            Config,
            Medium,
            "A program sees one MIG slice of a GPU, and several shares of one GPU as one device, however many the pod has. The hardware is not to blame.",
            "Ask for one slice or share for each runner (gpu.count: 1), or for whole GPUs.",
        ),
        Finding::HiddenDevices => (
            "HiddenDevices",
            Config,
            High,
            "CUDA_VISIBLE_DEVICES in the environment hides devices from every program, the test included.",
            "Remove CUDA_VISIBLE_DEVICES from the environment, or name in it what the driver has (nvidia-smi -L).",
        ),
        Finding::LostDevice => (
            "LostDevice",
            Node,
            High,
            "The driver does not open the device: it has fallen off the bus, cannot be started, or is held back for a reset.",
            "Look for XID 79 or 119 in the node's kernel log; restart the node, then check seating, power and cooling.",
        ),
        Finding::ExcludedDevice => (
            "ExcludedDevice",
            Config,
            High,
            "This container may not open the device: its device cgroup does not list it, or the driver is configured to leave the GPU out.",
            "Request the GPU as a resource limit and leave device files out of the template; on the node, check that systemd's daemon-reload does not take devices away from running containers (container toolkit with CDI), and NVreg_ExcludedGpus.",
        ),
        Finding::DeviceFileMode => (
            "DeviceFileMode",
            Config,
            High,
            "The user of this container may not open the device's file.",
            "Give /dev/nvidia* the mode 0666 on the node (NVreg_DeviceFileMode), or run the pod as a user or in a group that may open them.",
        ),
        Finding::ComputeCapability => (
            "ComputeCapability",
            Unsupported,
            High,
            "The device is older than the pool asks for.",
            "Lower gpu.minComputeCapability, or keep the pool off such nodes with a node selector.",
        ),
        Finding::CudaVersion => (
            "CudaVersion",
            Config,
            High,
            "The driver is older than the pool asks for.",
            "Update the node's driver, or lower gpu.minCudaVersion.",
        ),
        Finding::ManagedMemory => (
            "ManagedMemory",
            Unsupported,
            High,
            "The device has no concurrent managed access (WDDM, WSL2 and some vGPU profiles never have), and the pool requires it.",
            "Set smoke.managedMemory: Report, or keep the pool off such nodes.",
        ),
        Finding::WrongResult => (
            "WrongResult",
            Device,
            High,
            "The device computed, reported success, and the result is wrong.",
            "Take the device out of use and replace it; nothing that it computed lately is to be trusted.",
        ),
        Finding::BrokenCanary => (
            "BrokenCanary",
            Device,
            High,
            "The device wrote to memory next to the kernel's output.",
            "Take the device out of use and replace it; nothing that it computed lately is to be trusted.",
        ),
        Finding::BadMemory => (
            "BadMemory",
            Device,
            High,
            "The device's memory does not hold what was written to it, and the device reported no error.",
            "Take the device out of use and replace it; nothing that it computed lately is to be trusted.",
        ),
        Finding::SlowCopy => (
            "SlowCopy",
            if context.retried { Device } else { Transient },
            Medium,
            "Copies between host and device are slower than the floor that was set: a PCIe link with fewer lanes or of an older generation than it should have, or a host that is very busy.",
            "Compare nvidia-smi -q -d PCIE (link width and generation) with the maximum it shows, and reseat or replace the device or riser. By hand, lower CUDA_SMOKE_MIN_COPY_GIB_PER_SECOND if the link is as it should be.",
        ),
        Finding::MemoryTaken => (
            "MemoryTaken",
            Node,
            Medium,
            "The GPU is this pod's alone, and another process holds its memory: one that the node's administrator or another scheduler started, or one that an earlier pod left behind.",
            "Find the process on the node (nvidia-smi shows it) and end it, or reset the GPU where none is shown. Where memory is taken on purpose, as by a desktop, lower smoke.minFreeMemoryPercent (cuda-smoke check: --min-free-memory-percent).",
        ),
        Finding::PeerCopy => (
            "PeerCopy",
            if context.retried { Node } else { Transient },
            Medium,
            "What one device copied to another by peer access is not what arrived. The link between them loses or changes data: NVLink, a PCIe switch, or ACS and IOMMU settings that send peer traffic astray.",
            PEER_ADVICE,
        ),
        Finding::PeerHang => (
            "PeerHang",
            if context.retried { Node } else { Transient },
            Medium,
            "Kernels on two devices wait for one another through peer memory, and what one writes does not reach the other: collectives such as NCCL's would hang.",
            PEER_ADVICE,
        ),
        Finding::NoPeerAccess => (
            "NoPeerAccess",
            Unsupported,
            High,
            "The devices of this pod cannot reach one another's memory, and the pool requires it.",
            "Set gpu.peerAccess: Report, or keep the pool to nodes whose GPUs have it (nvidia-smi topo -p2p r shows them).",
        ),
        Finding::Hang if context.mps => (
            "Hang",
            Transient,
            Medium,
            "The driver did not come back within the deadline. The GPU is shared by MPS, where a program waits for those of others.",
            "Look at what else runs on the GPU (nvidia-smi), and at the MPS control daemon if nothing does.",
        ),
        Finding::Hang => (
            "Hang",
            if launched { Device } else { Node },
            Medium,
            "The driver did not come back within the deadline.",
            "Look for XID messages and blocked tasks in the node's kernel log; reset the GPU or restart the node. A cold node may need a longer smoke.timeoutSeconds.",
        ),
        Finding::Starved => (
            "Starved",
            Transient,
            High,
            "The host was so busy that the test got no CPU for most of its time. The GPU is not to blame.",
            "Give the runner more CPU (spec.template; the gate has the same), look what else runs on the node, or raise smoke.timeoutSeconds.",
        ),
        Finding::Crash => (
            "Crash",
            if context.retried { Node } else { Transient },
            Medium,
            "The driver's library crashed the process that called it.",
            "Look at the kernel log, then reinstall the driver on the node.",
        ),
        Finding::OutOfMemoryKill => (
            "OutOfMemoryKill",
            Config,
            High,
            "The kernel killed the test process, because the container has too little memory. Neither the driver nor the GPU is to blame.",
            "Raise the memory limit of the container runner in spec.template: the gate has the same. The driver takes more for each further GPU.",
        ),
        Finding::NodeOutOfMemory => (
            "NodeOutOfMemory",
            Transient,
            High,
            "The node is short of memory, or the pod as a whole: the kernel killed the test process, and the container had not reached its own limit. Neither the driver nor the GPU is to blame.",
            "Look what takes the node's memory (kubectl describe node), and request as much for the container runner in spec.template as it uses, so that its pods go where there is room.",
        ),
        Finding::UnexpectedExit => (
            "UnexpectedExit",
            if context.retried { Node } else { Transient },
            Low,
            "The test process ended in the middle of a call, without a signal and without a verdict.",
            "Look at the kernel log, then at the driver on the node.",
        ),
        Finding::NeedsReboot => (
            "NeedsReboot",
            Node,
            High,
            "The driver itself says that only a restart of the node brings this GPU back.",
            "Drain the node and restart it.",
        ),
        Finding::NeedsReset => (
            "NeedsReset",
            Device,
            High,
            "The driver itself says that only a reset brings this GPU back.",
            "Drain the node and reset the GPU (nvidia-smi -r), or restart the node.",
        ),
        Finding::NeedsDrain => (
            "NeedsDrain",
            Device,
            High,
            "The driver itself says that traffic between this GPU and others has to end before it can tell what else the GPU needs.",
            "Drain the node, so that no program uses peer access between GPUs, switch UVM's persistence mode off, and ask again: nvidia-smi -q shows the recovery action that is left.",
        ),
        Finding::NeedsRecovery => (
            "NeedsRecovery",
            Device,
            High,
            "The driver itself says that this GPU needs an action, and this version does not know which.",
            "Drain the node, and do what NVIDIA's documentation of the node's driver says of the recovery action that nvidia-smi -q shows.",
        ),
        Finding::RemapFailed => (
            "RemapFailed",
            Device,
            High,
            "The device's memory is worn: there are no spare rows left for a broken one.",
            "Take the device out of use and have it replaced; nvidia-smi -q -d ROW_REMAPPER shows the rows.",
        ),
        Finding::SramThreshold => (
            "SramThreshold",
            Device,
            High,
            "The device's caches and registers err too often; NVIDIA's threshold for a replacement is exceeded.",
            "Take the device out of use and have it replaced; nvidia-smi -q -d ECC shows the counts.",
        ),
        Finding::FabricFailed => (
            "FabricFailed",
            Node,
            High,
            "The NVLink fabric of the node is broken.",
            "Look at the log of nvidia-fabricmanager on the node, which must have the driver's very version, and at IMEX where there are several nodes.",
        ),
        Finding::FabricNotReady => (
            "FabricNotReady",
            Transient,
            Medium,
            "The NVLink fabric that joins the pod's GPUs is not up yet.",
            "Wait while the node warms up; if it stays, start nvidia-fabricmanager and look at its log.",
        ),
        Finding::NvLinkDown => (
            "NvLinkDown",
            Device,
            Medium,
            "A link of the device to the fabric is down.",
            "Look for XID 74 in the node's kernel log, check the links with nvidia-smi nvlink -s, and reset the GPU.",
        ),
        Finding::Refused => (
            "Refused",
            Class::Refused,
            High,
            "The registrar gives this pod no registration.",
            "The reason is the registrar's; kubectl describe cudarunner shows it too.",
        ),
        Finding::Unreachable => (
            "RegistrarUnreachable",
            Transient,
            Medium,
            "The registrar did not answer within its deadline.",
            "Check that the operator runs and that no NetworkPolicy keeps runner pods from its registrar.",
        ),
        Finding::Internal => (
            "Internal",
            Class::Internal,
            Low,
            "The gate itself is at fault.",
            "Please send us this report.",
        ),
    };
    let is_once_more = matches!(
        finding,
        Finding::Crash
            | Finding::UnexpectedExit
            | Finding::SlowCopy
            | Finding::PeerCopy
            | Finding::PeerHang
    );
    let again = if is_once_more && !context.retried {
        Again::Once
    } else {
        Again::No
    };
    Fault {
        class,
        name,
        meaning,
        advice,
        confidence,
        again,
        skip: false,
    }
}

fn no_driver(context: Context) -> (&'static str, Class, Confidence, &'static str, &'static str) {
    let (meaning, advice) = if context.device_files {
        (
            "The GPU's device files are in the container, but the driver's library is not.",
            "Set NVIDIA_DRIVER_CAPABILITIES=compute,utility (utility alone brings no libcuda), and check that the container runtime injects libraries.",
        )
    } else {
        (
            "There is no NVIDIA driver here: neither its library nor a device file.",
            "In a cluster: request the GPU as a resource limit and set runtimeClassName: nvidia, and check that the node's driver is installed. On a host: install NVIDIA's driver, R525 or newer, from your distribution (Debian: nvidia-driver, Ubuntu: ubuntu-drivers install) or from NVIDIA. In a container of your own: start it with --gpus all.",
        )
    };
    ("NoDriver", Config, Medium, meaning, advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Step;

    #[test]
    fn classes() {
        let table = [
            (Finding::NoDriver, Step::Load, Config),
            (Finding::BrokenDriver, Step::Load, Config),
            (Finding::MissingSymbol, Step::Load, Config),
            (Finding::TooFewDevices, Step::DeviceCount, Node),
            (Finding::TooManyDevices, Step::DeviceCount, Config),
            (Finding::SliceHidden, Step::DeviceCount, Config),
            (Finding::HiddenDevices, Step::DeviceCount, Config),
            (Finding::LostDevice, Step::Init, Node),
            (Finding::ExcludedDevice, Step::Init, Config),
            (Finding::DeviceFileMode, Step::Init, Config),
            (Finding::OutOfMemoryKill, Step::Synchronize, Config),
            (Finding::NodeOutOfMemory, Step::Synchronize, Transient),
            (Finding::ComputeCapability, Step::Properties, Unsupported),
            (Finding::CudaVersion, Step::DriverVersion, Config),
            (Finding::ManagedMemory, Step::Properties, Unsupported),
            (Finding::WrongResult, Step::Compare, Device),
            (Finding::BrokenCanary, Step::Compare, Device),
            (Finding::BadMemory, Step::MemoryWalk, Device),
            (Finding::SlowCopy, Step::CopyToDevice, Transient),
            (Finding::MemoryTaken, Step::Context, Node),
            (Finding::NoPeerAccess, Step::Peers, Unsupported),
            (Finding::Hang, Step::Peers, Node),
            (Finding::Hang, Step::Init, Node),
            (Finding::Hang, Step::Synchronize, Device),
            (Finding::Starved, Step::Synchronize, Transient),
            (Finding::NeedsReboot, Step::Health, Node),
            (Finding::NeedsReset, Step::Health, Device),
            (Finding::NeedsDrain, Step::Health, Device),
            (Finding::NeedsRecovery, Step::Health, Device),
            (Finding::RemapFailed, Step::Health, Device),
            (Finding::SramThreshold, Step::Health, Device),
            (Finding::FabricFailed, Step::Health, Node),
            (Finding::FabricNotReady, Step::Health, Transient),
            (Finding::NvLinkDown, Step::Health, Device),
            (Finding::Refused, Step::Registration, Class::Refused),
            (Finding::Unreachable, Step::Registration, Transient),
        ];
        for (what, step, class) in table {
            assert_eq!(finding(what, Context::at(step)).class, class, "{what:?}");
        }
    }

    #[test]
    fn a_crash_and_a_pairs_fault_are_tried_again_before_the_node_is_blamed() {
        for what in [
            Finding::Crash,
            Finding::UnexpectedExit,
            Finding::PeerCopy,
            Finding::PeerHang,
        ] {
            let first = finding(what, Context::at(Step::Init));
            assert_eq!((first.class, first.again), (Transient, Again::Once));
            let again = finding(
                what,
                Context {
                    retried: true,
                    ..Context::at(Step::Init)
                },
            );
            assert_eq!((again.class, again.again), (Node, Again::No));
        }
    }

    #[test]
    fn under_mps_a_hang_may_be_another_programs() {
        for step in [Step::Init, Step::Synchronize] {
            let context = Context {
                shared: true,
                mps: true,
                ..Context::at(step)
            };
            assert_eq!(finding(Finding::Hang, context).class, Transient);
        }
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> =
            Finding::ALL.iter().map(|what| what.name()).collect();
        assert_eq!(names.len(), Finding::ALL.len());
    }
}
