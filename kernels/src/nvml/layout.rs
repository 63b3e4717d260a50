//! Structures of `nvml.h` that are passed to functions, laid out by hand, with their version words.

use std::ffi::c_uint;

/// A device, an opaque pointer.
pub(super) type Handle = usize;

/// The version word of a structure: its size, and its version on top.
const fn version(size: usize, version: c_uint) -> c_uint {
    // Sizes here are below 200 bytes.
    #[allow(clippy::cast_possible_truncation, reason = "see above")]
    let size = size as c_uint;
    size | version << 24
}

/// `nvmlFieldValue_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FieldValue {
    pub(super) field: c_uint,
    pub(super) scope: c_uint,
    pub(super) timestamp: i64,
    pub(super) latency: i64,
    pub(super) kind: c_uint,
    /// The field's own code.
    pub(super) code: c_uint,
    /// A union, little-endian.
    pub(super) value: u64,
}

impl FieldValue {
    pub(super) fn new(field: c_uint) -> Self {
        Self {
            field,
            ..Self::default()
        }
    }

    /// The value, where the field has one: kinds 1 and 5 fill four bytes of the union, 2 to 4 eight.
    pub(super) fn get(self) -> Option<u64> {
        match (self.code, self.kind) {
            (0, 1 | 5) => Some(self.value & 0xffff_ffff),
            (0, 2..=4) => Some(self.value),
            _ => None,
        }
    }
}

/// `nvmlEccSramErrorStatus_v1_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct SramErrors {
    version: c_uint,
    counts: [u64; 11],
    pub(super) threshold_exceeded: c_uint,
}

impl Default for SramErrors {
    fn default() -> Self {
        Self {
            version: version(size_of::<Self>(), 1),
            counts: [0; 11],
            threshold_exceeded: 0,
        }
    }
}

/// `nvmlGpuFabricInfo_v2_t` and, with `summary` filled, `nvmlGpuFabricInfo_v3_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct FabricInfo {
    version: c_uint,
    cluster: [u8; 16],
    pub(super) status: c_uint,
    clique: u32,
    pub(super) state: u8,
    mask: u32,
    pub(super) summary: u8,
}

impl FabricInfo {
    const EMPTY: Self = Self {
        version: 0,
        cluster: [0; 16],
        status: 0,
        clique: 0,
        state: 0,
        mask: 0,
        summary: 0,
    };

    /// With the health's summary; drivers from about R570 on know it.
    pub(super) fn v3() -> Self {
        Self {
            version: version(size_of::<Self>(), 3),
            ..Self::EMPTY
        }
    }

    /// Without it, and four bytes shorter: the driver writes no more.
    pub(super) fn v2() -> Self {
        Self {
            version: version(size_of::<Self>() - 4, 2),
            ..Self::EMPTY
        }
    }
}

impl Default for FabricInfo {
    fn default() -> Self {
        Self::v3()
    }
}

/// `nvmlEventData_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EventData {
    pub(super) device: Handle,
    pub(super) kind: u64,
    /// The XID.
    pub(super) data: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// `nvmlMemory_v2_t`, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    pub(super) used: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            version: version(size_of::<Self>(), 2),
            total: 0,
            reserved: 0,
            free: 0,
            used: 0,
        }
    }
}

/// `nvmlUtilization_t`, in percent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Utilization {
    pub(super) gpu: c_uint,
    memory: c_uint,
}

/// `nvmlSample_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    /// In microseconds.
    pub(super) time: u64,
    /// A union, little-endian.
    value: u64,
}

impl Sample {
    /// The value, where it is a whole number of this kind: 1 fills four bytes of the union, 2 and 3 eight.
    pub(super) fn value(self, kind: c_uint) -> Option<u32> {
        match kind {
            1 => u32::try_from(self.value & 0xffff_ffff).ok(),
            2 | 3 => u32::try_from(self.value).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_version_words_are_those_of_nvml() {
        assert_eq!(size_of::<FieldValue>(), 40);
        assert_eq!(size_of::<EventData>(), 32);
        assert_eq!(SramErrors::default().version, 0x0100_0068);
        assert_eq!(FabricInfo::v2().version, 0x0200_0024);
        assert_eq!(FabricInfo::v3().version, 0x0300_0028);
        assert_eq!(Memory::default().version, 0x0200_0028);
        assert_eq!((size_of::<Utilization>(), size_of::<Sample>()), (8, 16));
    }

    #[test]
    fn a_sample_of_another_kind_is_not_0() {
        let sample = Sample {
            time: 1,
            value: 0xdead_0000_0000_0047,
        };
        assert_eq!(sample.value(1), Some(0x47));
        assert_eq!(sample.value(3), None);
        assert_eq!(sample.value(0), None);
    }

    #[test]
    fn a_field_without_a_value_is_not_0() {
        let field = |code, kind| FieldValue {
            code,
            kind,
            value: 0xffff_ffff_0000_0001,
            ..FieldValue::new(230)
        };
        assert_eq!(field(0, 1).get(), Some(1));
        assert_eq!(field(0, 3).get(), Some(0xffff_ffff_0000_0001));
        assert_eq!(field(3, 1).get(), None);
        assert_eq!(field(0, 99).get(), None);
    }
}
