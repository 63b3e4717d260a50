//! The driver's codes, one entry each: name, meaning, advice.

use crate::Class::{self, Config, Device, Internal, Node, Unknown, Unsupported};
use crate::Confidence::{self, High, Low, Medium};

/// How the circumstances decide the class.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// They do not.
    Always(Class),
    /// A moment may fix it, so it is waited for. What lasts longer is transient all the same: one report cannot tell a
    /// service that starts from one that never will.
    Wait,
    /// Transient and worth a second process at once; then this class.
    OnceMoreThen(Class),
    /// Waited for. A leaked process on an exclusive device, business as usual on a shared one, either on a slice.
    OutOfMemory,
    /// Not given to the container, or lost by the node.
    NoDevice,
    /// Optional for managed memory and between devices, a set-up fault elsewhere.
    Feature,
}

/// What the table says of one code.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) code: i32,
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    pub(crate) confidence: Confidence,
    pub(crate) meaning: &'static str,
    pub(crate) advice: &'static str,
}

const fn entry_of(
    code: i32,
    name: &'static str,
    rule: Rule,
    confidence: Confidence,
    meaning: &'static str,
    advice: &'static str,
) -> Entry {
    Entry {
        code,
        name,
        rule,
        confidence,
        meaning,
        advice,
    }
}

const KERNEL_ADVICE: &str = "Look for XID messages in the node's kernel log, run a diagnosis (dcgmi diag -r 3), and replace the device if it happens again.";
const MPS_ADVICE: &str =
    "Look at the MPS control daemon on the node and restart it; its log is in /var/log/nvidia-mps.";
const PARTS_ADVICE: &str = "Remove what the image brings of the driver (libcuda, cuda-compat), check that the container runtime injects all libraries of the node's driver, and update that driver.";
const OURS_ADVICE: &str = "Please send us this report.";

/// What is said of a code that the table does not list.
static UNLISTED: Entry = entry_of(
    0,
    "CUDA_ERROR_UNLISTED",
    Rule::OnceMoreThen(Unknown),
    Low,
    "This code is not one of those that we know, so nothing is blamed for it.",
    "Look the code up in the CUDA driver API's list of results, look for XID messages in the node's kernel log, and send us this report.",
);

#[rustfmt::skip]
static TABLE: &[Entry] = &[
    entry_of(1, "CUDA_ERROR_INVALID_VALUE", Rule::Always(Internal), Medium,
        "We gave the driver an argument that it does not take.",
        OURS_ADVICE),
    entry_of(2, "CUDA_ERROR_OUT_OF_MEMORY", Rule::OutOfMemory, Medium,
        "A GPU that should be free has not enough memory for a small test: an earlier process did not let go of it.",
        "Find the process with nvidia-smi on the node and end it, or reset the GPU."),
    entry_of(3, "CUDA_ERROR_NOT_INITIALIZED", Rule::OnceMoreThen(Node), Medium,
        "The driver did not come up.",
        "Look at the driver on the node (nvidia-smi, kernel log); a restart of the node's driver pod or of the node helps most often."),
    entry_of(34, "CUDA_ERROR_STUB_LIBRARY", Rule::Always(Config), High,
        "The libcuda that was found is the CUDA toolkit's link-time stub, not the driver.",
        "Remove the toolkit's lib64/stubs folder from LD_LIBRARY_PATH in the image, and run the pod with runtimeClassName: nvidia."),
    entry_of(36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", Rule::Always(Config), Medium,
        "A part of the driver in the container is newer than the driver on the node.",
        PARTS_ADVICE),
    entry_of(46, "CUDA_ERROR_DEVICE_UNAVAILABLE", Rule::Wait, Medium,
        "The device is busy: in exclusive compute mode and in use by another process, without its vGPU licence, or in need of a reset.",
        "If it stays, find the process with nvidia-smi, set the compute mode back (nvidia-smi -c 0), or reset the GPU (nvidia-smi -r)."),
    entry_of(100, "CUDA_ERROR_NO_DEVICE", Rule::NoDevice, Medium,
        "The container has device files, but the driver finds no GPU behind them: the node has lost it.",
        "Look for XID 79 (fallen off the bus) in the node's kernel log; restart the node, then check seating, power and cooling."),
    entry_of(101, "CUDA_ERROR_INVALID_DEVICE", Rule::Feature, Medium,
        "The device that the pod was given does not exist any more: its UUID or MIG slice is stale.",
        "Recreate the pod; if it happens again, restart the device plugin so that it lists the devices anew."),
    entry_of(102, "CUDA_ERROR_DEVICE_NOT_LICENSED", Rule::Always(Config), High,
        "The vGPU has no licence, so its driver does not let it compute.",
        "Bring the licence's client token onto the node (/etc/nvidia/ClientConfigToken) and start nvidia-gridd; nvidia-smi -q shows the state of the licence."),
    entry_of(200, "CUDA_ERROR_INVALID_IMAGE", Rule::Always(Internal), Medium,
        "The driver does not take our kernel for one.",
        OURS_ADVICE),
    entry_of(201, "CUDA_ERROR_INVALID_CONTEXT", Rule::Always(Internal), Medium,
        "We called the driver without a context that it knows.",
        OURS_ADVICE),
    entry_of(209, "CUDA_ERROR_NO_BINARY_FOR_GPU", Rule::Always(Unsupported), High,
        "This GPU cannot run our kernel: it is older than compute capability 7.0 (Volta).",
        "Keep the pool off such GPUs with gpu.minComputeCapability or a node selector."),
    entry_of(214, "CUDA_ERROR_ECC_UNCORRECTABLE", Rule::Always(Device), High,
        "The device's memory has an error that ECC cannot correct.",
        "Drain the node and reset the GPU; if rows keep being remapped (nvidia-smi -q -d ROW_REMAPPER), replace it."),
    entry_of(218, "CUDA_ERROR_INVALID_PTX", Rule::Always(Unsupported), Medium,
        "The driver's compiler rejects our kernel's PTX, which every ptxas that we test with accepts.",
        "Read the compiler's log in the report; update the driver, and send us the report if it stays."),
    entry_of(220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", Rule::Always(Device), High,
        "An NVLink of the device has an error that cannot be corrected.",
        "Drain the node and reset the GPU; check the links with nvidia-smi nvlink -e."),
    entry_of(221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", Rule::Always(Config), High,
        "The driver's PTX compiler, libnvidia-ptxjitcompiler.so.1, is not in the container.",
        "Update nvidia-container-toolkit on the node so that it injects the library, with compute among NVIDIA_DRIVER_CAPABILITIES."),
    entry_of(222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", Rule::Always(Config), High,
        "The driver is older than our kernel's PTX 8.0: it supports no CUDA 12.0.",
        "Update the node's driver to R525 or newer."),
    entry_of(223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", Rule::Always(Config), High,
        "Compiling PTX is switched off in this environment.",
        "Remove CUDA_DISABLE_PTX_JIT from the environment of the pod or image."),
    entry_of(226, "CUDA_ERROR_CONTAINED", Rule::OnceMoreThen(Device), Medium,
        "The device met an error and contained it.",
        "Look for XID 94 in the node's kernel log; reset the GPU if it happens again."),
    entry_of(227, "CUDA_ERROR_INSUFFICIENT_LOADER_VERSION", Rule::Always(Config), Medium,
        "A part of the driver in the container is older than the driver on the node.",
        PARTS_ADVICE),
    entry_of(300, "CUDA_ERROR_INVALID_SOURCE", Rule::Always(Unsupported), Low,
        "The driver does not take our kernel's source.",
        "Read the compiler's log in the report; update the driver, and send us the report if it stays."),
    entry_of(302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", Rule::Always(Config), Medium,
        "A library of the driver lacks a function that another part of it needs: the parts in the container are of different versions.",
        PARTS_ADVICE),
    entry_of(303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", Rule::Always(Config), Medium,
        "A library that the driver needs cannot be loaded in this container.",
        PARTS_ADVICE),
    entry_of(304, "CUDA_ERROR_OPERATING_SYSTEM", Rule::Always(Config), Medium,
        "The kernel refused a system call of the driver: most likely a seccomp, AppArmor or SELinux profile forbids it.",
        "Look in the node's audit log for what was denied (SECCOMP, AVC), and run the pod with the runtime's default profile."),
    entry_of(400, "CUDA_ERROR_INVALID_HANDLE", Rule::Always(Internal), Medium,
        "We gave the driver a handle that it does not know.",
        OURS_ADVICE),
    entry_of(401, "CUDA_ERROR_ILLEGAL_STATE", Rule::Always(Internal), Medium,
        "We called the driver when it could not take the call.",
        OURS_ADVICE),
    entry_of(500, "CUDA_ERROR_NOT_FOUND", Rule::Always(Internal), Medium,
        "We asked the driver for a name that our kernel does not have.",
        OURS_ADVICE),
    entry_of(600, "CUDA_ERROR_NOT_READY", Rule::Always(Internal), Medium,
        "We asked for a result before the device had it.",
        OURS_ADVICE),
    entry_of(700, "CUDA_ERROR_ILLEGAL_ADDRESS", Rule::OnceMoreThen(Device), Medium,
        "A kernel that is known to be right reached a wrong address.",
        KERNEL_ADVICE),
    entry_of(702, "CUDA_ERROR_LAUNCH_TIMEOUT", Rule::OnceMoreThen(Device), Medium,
        "A kernel of microseconds ran into the driver's time limit.",
        KERNEL_ADVICE),
    entry_of(709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", Rule::Always(Internal), Medium,
        "We used a context that is no more.",
        OURS_ADVICE),
    entry_of(710, "CUDA_ERROR_ASSERT", Rule::OnceMoreThen(Device), Medium,
        "A kernel without assertions reported a failed one.",
        KERNEL_ADVICE),
    entry_of(714, "CUDA_ERROR_HARDWARE_STACK_ERROR", Rule::OnceMoreThen(Device), Medium,
        "A kernel that is known to be right met a broken call stack.",
        KERNEL_ADVICE),
    entry_of(715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", Rule::OnceMoreThen(Device), Medium,
        "A kernel that is known to be right met an instruction that the device does not know.",
        KERNEL_ADVICE),
    entry_of(716, "CUDA_ERROR_MISALIGNED_ADDRESS", Rule::OnceMoreThen(Device), Medium,
        "A kernel that is known to be right used a misaligned address.",
        KERNEL_ADVICE),
    entry_of(717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", Rule::OnceMoreThen(Device), Medium,
        "A kernel that is known to be right reached into a wrong address space.",
        KERNEL_ADVICE),
    entry_of(718, "CUDA_ERROR_INVALID_PC", Rule::OnceMoreThen(Device), Medium,
        "The program counter of a kernel that is known to be right went astray.",
        KERNEL_ADVICE),
    entry_of(719, "CUDA_ERROR_LAUNCH_FAILED", Rule::OnceMoreThen(Device), Medium,
        "A kernel that is known to be right failed on the device.",
        KERNEL_ADVICE),
    entry_of(800, "CUDA_ERROR_NOT_PERMITTED", Rule::Feature, Medium,
        "The driver does not permit this in the container.",
        "Look for what confines it: MPS or vGPU profile, security context, device cgroup."),
    entry_of(801, "CUDA_ERROR_NOT_SUPPORTED", Rule::Feature, Medium,
        "The driver does not support this on the platform that it runs on.",
        "Check the vGPU licence and profile, and that the driver's branch fits the GPU."),
    entry_of(802, "CUDA_ERROR_SYSTEM_NOT_READY", Rule::Wait, Medium,
        "The system is not ready: on NVSwitch machines the fabric manager has not finished, whatever nvidia-smi says.",
        "Wait while the node warms up; if it stays, start nvidia-fabricmanager in the driver's very version and look at its log."),
    entry_of(803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", Rule::Always(Node), High,
        "The driver's library and its kernel module have different versions, as after an unattended upgrade.",
        "Restart the node, and keep driver packages out of unattended upgrades."),
    entry_of(804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", Rule::Always(Config), High,
        "The image brings CUDA's forward-compatibility libraries, and this GPU's hardware does not allow them.",
        "Remove cuda-compat from the image (or its folder from LD_LIBRARY_PATH), or update the node's driver instead."),
    entry_of(805, "CUDA_ERROR_MPS_CONNECTION_FAILED", Rule::Wait, Medium,
        "The MPS server does not answer.", MPS_ADVICE),
    entry_of(806, "CUDA_ERROR_MPS_RPC_FAILURE", Rule::Wait, Medium,
        "The MPS server answered badly.", MPS_ADVICE),
    entry_of(807, "CUDA_ERROR_MPS_SERVER_NOT_READY", Rule::Wait, Medium,
        "The MPS server is starting or recovering.", MPS_ADVICE),
    entry_of(808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", Rule::Wait, Medium,
        "The MPS server has as many clients as it takes.", MPS_ADVICE),
    entry_of(809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", Rule::Wait, Medium,
        "The device has as many MPS connections as it takes.", MPS_ADVICE),
    entry_of(810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", Rule::Wait, Medium,
        "The MPS server ended our process, because another one on the same GPU failed or was stopped.",
        MPS_ADVICE),
    entry_of(916, "CUDA_ERROR_KEY_ROTATION", Rule::Wait, Medium,
        "The GPU is in confidential-computing mode and is changing its keys.",
        "Try again; if it stays, look at the attestation service and at the driver's log on the node."),
    entry_of(919, "CUDA_ERROR_FABRIC_NOT_READY", Rule::Wait, Medium,
        "The GPU has not joined its NVLink fabric.",
        "Wait while the node warms up; if it stays, look at nvidia-fabricmanager, at nvidia-imex, and at nvidia-smi -q for the fabric's state."),
    entry_of(999, "CUDA_ERROR_UNKNOWN", Rule::OnceMoreThen(Node), Medium,
        "The driver does not know what went wrong; often nvidia-uvm is not loaded or its device file is missing.",
        "Check that /dev/nvidia-uvm exists on the node and in the container (nvidia-modprobe -u -c=0), then look at the kernel log."),
];

/// What the table says of `code`.
pub(crate) fn entry(code: i32) -> &'static Entry {
    TABLE
        .binary_search_by_key(&code, |entry| entry.code)
        .map_or(&UNLISTED, |index| &TABLE[index])
}

/// The codes that have an entry of their own, ascending.
pub fn listed() -> impl Iterator<Item = i32> {
    TABLE.iter().map(|entry| entry.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_has_no_code_twice() {
        assert!(TABLE.is_sorted_by(|a, b| a.code < b.code));
    }
}
