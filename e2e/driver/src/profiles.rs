//! Properties of devices that exist, so that a test can name one.

use gate_report::Version;

/// What a profile says of a device.
#[derive(Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) key: &'static str,
    pub(crate) name: &'static str,
    pub(crate) capability: Version,
    pub(crate) memory_gib: u64,
    pub(crate) multiprocessors: u32,
    pub(crate) l2_mib: u32,
    pub(crate) memory: Memory,
    pub(crate) concurrent_managed_access: bool,
    /// Whether it reaches the memory of other such devices.
    pub(crate) peers: bool,
}

/// Whose a device's memory is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// The device's own, behind a bus.
    Own,
    /// The device's own, and coherent with the host's: its processor uses it as well.
    Coherent,
    /// The host's.
    Integrated,
}

const fn profile(
    key: &'static str,
    name: &'static str,
    (major, minor): (u32, u32),
    (memory_gib, l2_mib): (u64, u32),
    multiprocessors: u32,
) -> Profile {
    Profile {
        key,
        name,
        capability: Version::new(major, minor),
        memory_gib,
        multiprocessors,
        l2_mib,
        memory: Memory::Own,
        concurrent_managed_access: true,
        peers: true,
    }
}

const fn without_peers(profile: Profile) -> Profile {
    Profile {
        peers: false,
        ..profile
    }
}

const fn with(memory: Memory, profile: Profile) -> Profile {
    Profile { memory, ..profile }
}

/// All profiles. Each has managed memory. Figures are those of NVIDIA's data sheets; of L2, of its architecture papers.
pub(crate) static PROFILES: [Profile; 14] = [
    profile("p100", "Tesla P100-PCIE-16GB", (6, 0), (16, 4), 56),
    profile("v100", "Tesla V100-SXM2-16GB", (7, 0), (16, 6), 80),
    profile("t4", "Tesla T4", (7, 5), (15, 4), 40),
    without_peers(profile(
        "rtx2060",
        "NVIDIA GeForce RTX 2060",
        (7, 5),
        (6, 3),
        30,
    )),
    Profile {
        concurrent_managed_access: false,
        ..without_peers(profile(
            "rtx2060-wddm",
            "NVIDIA GeForce RTX 2060",
            (7, 5),
            (6, 3),
            30,
        ))
    },
    profile("a100", "NVIDIA A100-SXM4-40GB", (8, 0), (40, 40), 108),
    without_peers(profile(
        "mig-1g",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        (8, 0),
        (5, 5),
        14,
    )),
    profile("l4", "NVIDIA L4", (8, 9), (23, 48), 58),
    profile("h100", "NVIDIA H100 80GB HBM3", (9, 0), (80, 50), 132),
    with(
        Memory::Coherent,
        profile("gh200", "NVIDIA GH200 480GB", (9, 0), (95, 50), 132),
    ),
    profile("b200", "NVIDIA B200", (10, 0), (180, 126), 148),
    with(
        Memory::Coherent,
        profile("gb200", "NVIDIA GB200", (10, 0), (184, 126), 152),
    ),
    without_peers(with(
        Memory::Integrated,
        profile("gb10", "NVIDIA GB10", (12, 1), (119, 24), 48),
    )),
    without_peers(profile(
        "rtx5090",
        "NVIDIA GeForce RTX 5090",
        (12, 0),
        (32, 96),
        170,
    )),
];
