//! Properties of devices that exist, so that a test can name one.

use gate_report::Version;

/// What a profile says of a device.
pub(crate) struct Profile {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) capability: Version,
    pub(crate) memory_gib: u64,
    pub(crate) multiprocessors: u32,
    pub(crate) concurrent_managed_access: bool,
}

const fn profile(
    key: &'static str,
    name: &'static str,
    (major, minor): (u32, u32),
    memory_gib: u64,
    multiprocessors: u32,
    concurrent_managed_access: bool,
) -> Profile {
    Profile {
        key,
        name,
        capability: Version::new(major, minor),
        memory_gib,
        multiprocessors,
        concurrent_managed_access,
    }
}

/// All profiles. Each has managed memory.
pub(crate) static PROFILES: [Profile; 11] = [
    profile("p100", "Tesla P100-PCIE-16GB", (6, 0), 16, 56, true),
    profile("v100", "Tesla V100-SXM2-16GB", (7, 0), 16, 80, true),
    profile("t4", "Tesla T4", (7, 5), 15, 40, true),
    profile("rtx2060", "NVIDIA GeForce RTX 2060", (7, 5), 6, 30, true),
    profile(
        "rtx2060-wddm",
        "NVIDIA GeForce RTX 2060",
        (7, 5),
        6,
        30,
        false,
    ),
    profile("a100", "NVIDIA A100-SXM4-40GB", (8, 0), 40, 108, true),
    profile(
        "mig-1g",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        (8, 0),
        5,
        14,
        true,
    ),
    profile("l4", "NVIDIA L4", (8, 9), 23, 58, true),
    profile("h100", "NVIDIA H100 80GB HBM3", (9, 0), 80, 132, true),
    profile("b200", "NVIDIA B200", (10, 0), 180, 148, true),
    profile("rtx5090", "NVIDIA GeForce RTX 5090", (12, 0), 32, 170, true),
];
