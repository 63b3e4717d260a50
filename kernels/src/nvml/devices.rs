//! What is asked of NVML both beside the gate's test and during a job.

// SAFETY, of all calls here: types are those of nvml.h, and every pointer is to a place of its type that outlives the call.
#![allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]

use std::ffi::{CString, c_char, c_uint};

use super::calls::Nvml;
use super::layout::{EventData, Handle};

/// `nvmlEventTypeXidCriticalError`.
const XID: u64 = 8;

/// A GPU or a slice of one.
pub(super) fn by_uuid(nvml: &mut Nvml, uuid: &str) -> Option<Handle> {
    type ByUuid = unsafe extern "C" fn(*const c_char, *mut Handle) -> c_uint;
    let text = CString::new(uuid).ok()?;
    let ask = move |f: ByUuid, handle: &mut Handle| unsafe { f(text.as_ptr(), handle) };
    nvml.call(&["nvmlDeviceGetHandleByUUID"], ask).ok()
}

/// Where XIDs are kept until somebody asks.
pub(super) fn event_set(nvml: &mut Nvml) -> Option<Handle> {
    type Create = unsafe extern "C" fn(*mut Handle) -> c_uint;
    let create = |f: Create, set: &mut Handle| unsafe { f(set) };
    nvml.call(&["nvmlEventSetCreate"], create).ok()
}

/// Has the XIDs of a GPU kept; where that is refused there are none.
pub(super) fn register(nvml: &mut Nvml, set: Handle, gpu: Handle) {
    type Register = unsafe extern "C" fn(Handle, u64, Handle) -> c_uint;
    let register = move |f: Register, (): &mut ()| unsafe { f(gpu, XID, set) };
    let _ = nvml.call(&["nvmlDeviceRegisterEvents"], register);
}

/// The next XID and its GPU; `None` where none comes in this time.
pub(super) fn next_xid(
    nvml: &mut Nvml,
    set: Handle,
    milliseconds: c_uint,
) -> Option<(Handle, u64)> {
    type Wait = unsafe extern "C" fn(Handle, *mut EventData, c_uint) -> c_uint;
    let wait = move |f: Wait, event: &mut EventData| unsafe { f(set, event, milliseconds) };
    // A timeout is a code, too. Nothing but XIDs was asked for.
    let event = nvml.call(&["nvmlEventSetWait_v2"], wait).ok()?;
    Some((event.device, event.data))
}

/// What holds the clocks back now, as bits.
pub(super) fn clock_reasons(nvml: &mut Nvml, gpu: Handle) -> Option<u64> {
    type Get = unsafe extern "C" fn(Handle, *mut u64) -> c_uint;
    const NAMES: [&str; 2] = [
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ];
    let get = move |f: Get, reasons: &mut u64| unsafe { f(gpu, reasons) };
    nvml.call(&NAMES, get).ok()
}
