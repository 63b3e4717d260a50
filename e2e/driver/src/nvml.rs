//! The functions of NVML that the gate asks, and what watches a job's GPUs. A handle is a device's number and one more; with [`SLICE`] on top, a slice of it.

#![allow(non_snake_case, reason = "the names are NVML's")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::activity::{Question, sample_time};
use crate::config::{Config, Device, misunderstood};
use crate::faults;

const INVALID_ARGUMENT: i32 = 2;
const NOT_SUPPORTED: i32 = 3;
const NOT_FOUND: i32 = 6;
const TIMEOUT: i32 = 10;
const VERSION_MISMATCH: i32 = 25;

/// Told apart from a device's own handle.
const SLICE: usize = 1 << 16;

/// The devices, all of them: `CUDA_VISIBLE_DEVICES` and device files are no business of NVML's here.
static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::from_environment().unwrap_or_else(|error| misunderstood(&error)));

/// XIDs that wait for who has registered: device and number.
static EVENTS: Mutex<Vec<(usize, u64)>> = Mutex::new(vec![]);

/// How often the fabric was looked at.
static LOOKS: AtomicU32 = AtomicU32::new(0);

type Outcome<T = ()> = Result<T, i32>;

macro_rules! exports {
    ($(fn $name:ident($($argument:ident: $ty:ty),*) on $device:expr => $body:block)*) => {
        /// The names that a fault may be for.
        pub(crate) const CALLS: &[&str] = &[$(stringify!($name)),*];

        $(
            /// See nvml.h.
            ///
            /// # Safety
            ///
            /// Pointers must be good for what nvml.h says of them.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $ty),*) -> c_int {
                let device: Option<usize> = $device;
                let struck = faults::strike(
                    &CONFIG,
                    stringify!($name),
                    device.and_then(|device| u32::try_from(device).ok()),
                );
                let result: Outcome = struck.and_then(|()| $body);
                result.err().unwrap_or(0)
            }
        )*
    };
}

/// `nvmlFieldValue_t`.
#[repr(C)]
struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp: i64,
    latency: i64,
    kind: c_uint,
    code: c_uint,
    value: u64,
}

/// `nvmlGpuFabricInfo_v3_t`, of which version 2 has all but the end.
#[repr(C)]
struct FabricInfo {
    version: c_uint,
    cluster: [u8; 16],
    status: c_uint,
    clique: u32,
    state: u8,
    mask: u32,
    summary: u8,
}

/// `nvmlEccSramErrorStatus_v1_t`.
#[repr(C)]
struct SramErrors {
    version: c_uint,
    counts: [u64; 11],
    threshold_exceeded: c_uint,
}

/// `nvmlEventData_t`.
#[repr(C)]
struct EventData {
    device: usize,
    kind: u64,
    data: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
struct Memory {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// `nvmlUtilization_t`.
#[repr(C)]
struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

/// `nvmlSample_t`.
#[repr(C)]
struct Sample {
    time: u64,
    value: u64,
}

fn number(handle: usize) -> Option<usize> {
    (handle & !SLICE).checked_sub(1)
}

fn device(handle: usize) -> Outcome<&'static Device> {
    let number = number(handle).ok_or(INVALID_ARGUMENT)?;
    CONFIG.devices.get(number).ok_or(INVALID_ARGUMENT)
}

/// Writes a result where the caller wants it.
///
/// # Safety
///
/// `to` is null, or good for writing.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller answers for the rest.
    unsafe { to.write(value) };
    Ok(())
}

fn uuid(kind: &str, device: &Device) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(device.uuid));
    let groups = [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]);
    format!("{kind}-{}", groups.join("-"))
}

fn field(device: &Device, id: c_uint) -> Option<u64> {
    let health = &device.health;
    match id {
        4 => health.ecc_errors,
        144 => health.remap_pending.map(u64::from),
        145 => health.remap_failed.map(u64::from),
        230 => health.recovery_action.map(u64::from),
        _ => None,
    }
}

/// A count of the device's, as its use makes it grow.
fn count(handle: usize, question: Question) -> Outcome<u64> {
    let number = number(handle).ok_or(INVALID_ARGUMENT)?;
    let counted = device(handle)?.activity.count(number, question);
    counted.ok_or(NOT_SUPPORTED)
}

/// How busy it is now. A slice does not know.
fn utilization(handle: usize) -> Outcome<u32> {
    let number = number(handle).ok_or(INVALID_ARGUMENT)?;
    if handle & SLICE != 0 {
        return Err(NOT_SUPPORTED);
    }
    let now = device(handle)?.activity.utilization(number);
    now.ok_or(NOT_SUPPORTED)
}

fn fabric(device: &Device) -> Outcome<(u8, u32, u8)> {
    let (state, status, health) = device.health.fabric.ok_or(NOT_SUPPORTED)?;
    let looks = LOOKS.fetch_add(1, Ordering::Relaxed);
    let is_done = device
        .health
        .fabric_after
        .is_some_and(|after| looks >= after);
    Ok((if is_done { 3 } else { state }, status, health))
}

/// One of a pair.
fn one<T>(pair: Option<(T, T)>, first: bool) -> Outcome<T> {
    let (one, other) = pair.ok_or(NOT_SUPPORTED)?;
    Ok(if first { one } else { other })
}

// SAFETY, of all pointers below: the caller answers for them, as nvml.h says.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
mod exports {
    #[allow(
        clippy::wildcard_imports,
        reason = "the same file, parted for the sake of one allowance"
    )]
    use super::*;

    exports! {
        fn nvmlInit_v2() on None => { Ok(()) }

        fn nvmlDeviceGetCount_v2(count: *mut c_uint) on None => {
            let devices = c_uint::try_from(CONFIG.devices.len()).unwrap_or(c_uint::MAX);
            unsafe { put(count, devices) }
        }

        fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, handle: *mut usize) on Some(index as usize) => {
            device(index as usize + 1)?;
            unsafe { put(handle, index as usize + 1) }
        }

        fn nvmlDeviceGetHandleByUUID(text: *const c_char, handle: *mut usize) on None => {
            if text.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
            let found = CONFIG.devices.iter().enumerate().find_map(|(number, device)| {
                let slice = uuid("MIG", device) == text;
                let is_it = slice || uuid("GPU", device) == text;
                is_it.then_some(number + 1 + if slice { SLICE } else { 0 })
            });
            unsafe { put(handle, found.ok_or(NOT_FOUND)?) }
        }

        fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice: usize, handle: *mut usize) on number(slice) => {
            if slice & SLICE == 0 {
                return Err(INVALID_ARGUMENT);
            }
            unsafe { put(handle, slice & !SLICE) }
        }

        fn nvmlDeviceGetUUID(handle: usize, text: *mut c_char, size: c_uint) on number(handle) => {
            let uuid = uuid("GPU", device(handle)?);
            if text.is_null() || (size as usize) <= uuid.len() {
                return Err(INVALID_ARGUMENT);
            }
            unsafe {
                text.cast::<u8>().copy_from_nonoverlapping(uuid.as_ptr(), uuid.len());
                put(text.add(uuid.len()), 0)
            }
        }

        fn nvmlDeviceGetFieldValues(handle: usize, count: c_int, values: *mut FieldValue) on number(handle) => {
            let device = device(handle)?;
            let count = usize::try_from(count).map_err(|_| INVALID_ARGUMENT)?;
            if values.is_null() {
                return Err(INVALID_ARGUMENT);
            }
            for value in unsafe { std::slice::from_raw_parts_mut(values, count) } {
                let found = field(device, value.field);
                value.code = if found.is_some() { 0 } else { 3 };
                // An unsigned int, or the longest; what is beside the value is whatever was there.
                value.kind = if value.field == 4 { 3 } else { 1 };
                let garbage = if value.field == 4 { 0 } else { 0xdead_beef << 32 };
                value.value = found.unwrap_or(1) | garbage;
            }
            Ok(())
        }

        fn nvmlDeviceGetSramEccErrorStatus(handle: usize, errors: *mut SramErrors) on number(handle) => {
            let exceeded = device(handle)?.health.sram_threshold.ok_or(NOT_SUPPORTED)?;
            let errors = unsafe { errors.as_mut() }.ok_or(INVALID_ARGUMENT)?;
            if errors.version != 0x0100_0068 {
                return Err(VERSION_MISMATCH);
            }
            errors.threshold_exceeded = c_uint::from(exceeded);
            Ok(())
        }

        fn nvmlDeviceGetGpuFabricInfoV(handle: usize, info: *mut FabricInfo) on number(handle) => {
            let (state, status, health) = fabric(device(handle)?)?;
            let info = unsafe { info.as_mut() }.ok_or(INVALID_ARGUMENT)?;
            match info.version {
                0x0300_0028 => info.summary = health,
                0x0200_0024 => {}
                _ => return Err(VERSION_MISMATCH),
            }
            (info.state, info.status) = (state, status);
            Ok(())
        }

        fn nvmlDeviceGetNvLinkState(handle: usize, link: c_uint, active: *mut c_uint) on number(handle) => {
            let (all, up) = device(handle)?.health.links.ok_or(NOT_SUPPORTED)?;
            if link >= all {
                return Err(INVALID_ARGUMENT);
            }
            unsafe { put(active, c_uint::from(link < up)) }
        }

        fn nvmlDeviceGetMigMode(handle: usize, current: *mut c_uint, pending: *mut c_uint) on number(handle) => {
            let (now, next) = device(handle)?.health.mig.ok_or(NOT_SUPPORTED)?;
            unsafe {
                put(current, c_uint::from(now))?;
                put(pending, c_uint::from(next))
            }
        }

        fn nvmlDeviceGetCurrentClocksEventReasons(handle: usize, reasons: *mut u64) on number(handle) => {
            let found = device(handle)?.health.clock_reasons.ok_or(NOT_SUPPORTED)?;
            unsafe { put(reasons, found) }
        }

        fn nvmlDeviceGetCurrentClocksThrottleReasons(handle: usize, reasons: *mut u64) on number(handle) => {
            let found = device(handle)?.health.clock_reasons.ok_or(NOT_SUPPORTED)?;
            unsafe { put(reasons, found) }
        }

        fn nvmlDeviceGetCurrPcieLinkWidth(handle: usize, width: *mut c_uint) on number(handle) => {
            let found = one(device(handle)?.health.pcie, true)?;
            unsafe { put(width, found) }
        }

        fn nvmlDeviceGetMaxPcieLinkWidth(handle: usize, width: *mut c_uint) on number(handle) => {
            let found = one(device(handle)?.health.pcie, false)?;
            unsafe { put(width, found) }
        }

        fn nvmlEventSetCreate(set: *mut usize) on None => {
            unsafe { put(set, 1) }
        }

        fn nvmlDeviceRegisterEvents(handle: usize, kinds: u64, set: usize) on number(handle) => {
            let device = device(handle)?;
            if set != 1 || kinds != 8 {
                return Err(INVALID_ARGUMENT);
            }
            let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
            events.extend(device.health.xids.iter().map(|xid| (handle, *xid)));
            Ok(())
        }

        fn nvmlEventSetWait_v2(set: usize, data: *mut EventData, _milliseconds: c_uint) on None => {
            if set != 1 {
                return Err(INVALID_ARGUMENT);
            }
            let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
            for (number, device) in CONFIG.devices.iter().enumerate() {
                events.extend(device.activity.new_xids(number).iter().map(|xid| (number + 1, *xid)));
            }
            let (device, data_of) = events.pop().ok_or(TIMEOUT)?;
            let event = EventData { device, kind: 8, data: data_of, gpu_instance: u32::MAX, compute_instance: u32::MAX };
            unsafe { put(data, event) }
        }

        fn nvmlDeviceGetUtilizationRates(handle: usize, now: *mut Utilization) on number(handle) => {
            let gpu = utilization(handle)?;
            unsafe { put(now, Utilization { gpu, memory: 0 }) }
        }

        fn nvmlDeviceGetSamples(handle: usize, kind: c_uint, _since: u64, value_kind: *mut c_uint, count: *mut c_uint, samples: *mut Sample) on number(handle) => {
            let activity = &device(handle)?.activity;
            if kind != 1 || !activity.samples || activity.utilization.is_none() || handle & SLICE != 0 {
                return Err(NOT_SUPPORTED);
            }
            unsafe {
                put(value_kind, 1)?;
                put(count, 1)?;
            }
            if samples.is_null() {
                return Ok(());
            }
            // What is beside the value is whatever was there.
            let value = u64::from(utilization(handle)?) | 0xdead_beef << 32;
            unsafe { put(samples, Sample { time: sample_time(), value }) }
        }

        fn nvmlDeviceGetMemoryInfo_v2(handle: usize, memory: *mut Memory) on number(handle) => {
            let device = device(handle)?;
            let memory = unsafe { memory.as_mut() }.ok_or(INVALID_ARGUMENT)?;
            if memory.version != 0x0200_0028 {
                return Err(VERSION_MISMATCH);
            }
            let taken = device.memory_bytes - device.free_bytes;
            memory.used = device.activity.memory_used.unwrap_or(taken);
            Ok(())
        }

        fn nvmlDeviceGetClockInfo(handle: usize, kind: c_uint, clock: *mut c_uint) on number(handle) => {
            let found = device(handle)?.activity.clock_mhz.filter(|_| kind == 1);
            unsafe { put(clock, found.ok_or(NOT_SUPPORTED)?) }
        }

        fn nvmlDeviceGetTemperature(handle: usize, sensor: c_uint, celsius: *mut c_uint) on number(handle) => {
            let found = device(handle)?.activity.celsius.filter(|_| sensor == 0);
            unsafe { put(celsius, found.ok_or(NOT_SUPPORTED)?) }
        }

        fn nvmlDeviceGetTotalEnergyConsumption(handle: usize, energy: *mut u64) on number(handle) => {
            if handle & SLICE != 0 {
                return Err(NOT_SUPPORTED);
            }
            let found = device(handle)?.activity.energy().ok_or(NOT_SUPPORTED)?;
            unsafe { put(energy, found) }
        }

        fn nvmlDeviceGetPcieReplayCounter(handle: usize, replays: *mut c_uint) on number(handle) => {
            let found = count(handle, Question::Replays)?;
            unsafe { put(replays, c_uint::try_from(found).unwrap_or(c_uint::MAX)) }
        }

        fn nvmlDeviceGetTotalEccErrors(handle: usize, kind: c_uint, counter: c_uint, errors: *mut u64) on number(handle) => {
            let question = match (kind, counter) {
                (0, 0) => Question::Corrected,
                (1, 0) => Question::Uncorrected,
                _ => return Err(INVALID_ARGUMENT),
            };
            unsafe { put(errors, count(handle, question)?) }
        }
    }
}

pub(crate) use exports::CALLS;
