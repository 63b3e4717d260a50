//! The exported functions. Each lets its faults strike, checks what it is given and asks the [`driver`](crate::driver).

#![allow(non_snake_case, reason = "the names are the driver's")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::LazyLock;

use crate::clock::Call;
use crate::config::{self, CONFIG, Config};
use crate::driver::{current, device, driver};
use crate::errors::{ERROR_INVALID_VALUE, ERROR_NOT_SUPPORTED, Outcome, SUCCESS, describe};
use crate::faults;
use crate::peers;

/// A device pointer.
type Address = u64;
/// An opaque handle.
type Handle = usize;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Location {
    kind: c_int,
    id: c_int,
}

impl Location {
    /// The device, as the first version of these calls names it.
    fn device(self) -> Outcome<c_int> {
        match self.kind {
            1 => Ok(self.id),
            2 => Ok(-1),
            _ => Err(ERROR_INVALID_VALUE),
        }
    }
}

macro_rules! exports {
    ($($(#[doc = $doc:literal])* fn $name:ident($($argument:ident: $ty:ty),*) on $device:expr => $body:block)*) => {
        /// The names that a fault may be for.
        pub(crate) const CALLS: &[&str] = &[$(stringify!($name)),*];

        $(
            $(#[doc = $doc])*
            ///
            /// # Safety
            ///
            /// Pointers must be good for what cuda.h says of them.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $ty),*) -> c_int {
                let _call = Call::begin();
                let device: Option<usize> = $device;
                let result: Outcome = strike(stringify!($name), device).and_then(|()| $body);
                result.err().unwrap_or(SUCCESS)
            }
        )*
    };
}

/// The simulation, whose faults are all for calls that there are.
static FAULTS: LazyLock<&Config> = LazyLock::new(|| {
    let calls = [CALLS, crate::nvml::CALLS].concat();
    if let Some(call) = CONFIG.unknown_call(&calls) {
        config::misunderstood(&format!("no such call: {call}"));
    }
    &CONFIG
});

/// Lets faults strike, and keeps a code with the context if it is of the kind that stays.
fn strike(call: &str, device: Option<usize>) -> Outcome {
    let device = device.and_then(|ordinal| u32::try_from(ordinal).ok());
    faults::strike(&FAULTS, call, device).inspect_err(|code| driver().poison(*code))
}

/// Writes a result where the caller wants it.
///
/// # Safety
///
/// `to` is null, or good for writing.
unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(ERROR_INVALID_VALUE);
    }
    // SAFETY: not null, and the caller answers for the rest.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a string with a zero at its end, cut to fit.
///
/// # Safety
///
/// `to` is null, or good for writing `size` bytes.
unsafe fn put_text(to: *mut c_char, size: c_int, text: &str) -> Outcome {
    let size = usize::try_from(size).unwrap_or(0);
    if to.is_null() || size == 0 {
        return Err(ERROR_INVALID_VALUE);
    }
    let length = text.len().min(size - 1);
    // SAFETY: at most `size` bytes with the zero, and the caller answers for the rest.
    unsafe {
        to.cast::<u8>()
            .copy_from_nonoverlapping(text.as_ptr(), length);
        to.add(length).write(0);
    }
    Ok(())
}

fn number(value: usize) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

fn ordinal(device: c_int) -> Option<usize> {
    usize::try_from(device).ok()
}

/// A device attribute.
fn attribute(number: c_int, device: c_int) -> Outcome<c_int> {
    let (_, device) = crate::driver::device(device)?;
    let value = match number {
        // Threads of a block, lanes of a warp, multiprocessors.
        1 => 1024,
        10 => 32,
        16 => device.multiprocessors,
        18 => u32::from(device.integrated),
        // Compute mode: the default one.
        20 => 0,
        38 => device.l2_bytes,
        75 => device.capability.major,
        76 => device.capability.minor,
        83 => u32::from(device.managed_memory),
        // Pageable memory access, and that by the host's own page tables.
        88 | 100 => u32::from(device.host_page_tables),
        89 => u32::from(device.concurrent_managed_access),
        115 => u32::from(device.memory_pools),
        _ => return Err(ERROR_INVALID_VALUE),
    };
    c_int::try_from(value).map_err(|_| ERROR_INVALID_VALUE)
}

// SAFETY, of all pointers below: the caller answers for them, as cuda.h says.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once, above")]
mod exports {
    #[allow(
        clippy::wildcard_imports,
        reason = "the same file, parted for the sake of one allowance"
    )]
    use super::*;

    exports! {
        fn cuInit(flags: c_uint) on None => {
            if flags != 0 {
                return Err(ERROR_INVALID_VALUE);
            }
            driver().init()
        }

        fn cuDriverGetVersion(version: *mut c_int) on None => {
            let cuda = CONFIG.cuda_version;
            let value = c_int::try_from(1000 * cuda.major + 10 * cuda.minor).map_err(|_| ERROR_INVALID_VALUE)?;
            unsafe { put(version, value) }
        }

        fn cuDeviceGetCount(count: *mut c_int) on None => {
            let value = number(driver().count()?);
            unsafe { put(count, value) }
        }

        fn cuDeviceGet(handle: *mut c_int, index: c_int) on ordinal(index) => {
            let (ordinal, _) = device(index)?;
            unsafe { put(handle, number(ordinal)) }
        }

        fn cuDeviceGetName(name: *mut c_char, size: c_int, handle: c_int) on ordinal(handle) => {
            let (_, device) = device(handle)?;
            unsafe { put_text(name, size, &device.name) }
        }

        fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], handle: c_int) on ordinal(handle) => {
            let (_, device) = device(handle)?;
            unsafe { put(uuid, device.uuid) }
        }

        fn cuDeviceGetPCIBusId(id: *mut c_char, size: c_int, handle: c_int) on ordinal(handle) => {
            let (_, device) = device(handle)?;
            unsafe { put_text(id, size, &device.pci_bus_id) }
        }

        fn cuDeviceTotalMem_v2(bytes: *mut usize, handle: c_int) on ordinal(handle) => {
            let (_, device) = device(handle)?;
            unsafe { put(bytes, usize::try_from(device.memory_bytes).unwrap_or(usize::MAX)) }
        }

        fn cuDeviceGetAttribute(value: *mut c_int, number: c_int, handle: c_int) on ordinal(handle) => {
            let found = attribute(number, handle)?;
            unsafe { put(value, found) }
        }

        fn cuDevicePrimaryCtxRetain(context: *mut Handle, handle: c_int) on ordinal(handle) => {
            let (ordinal, _) = device(handle)?;
            let retained = driver().retain(ordinal);
            unsafe { put(context, retained) }
        }

        fn cuDevicePrimaryCtxRelease_v2(handle: c_int) on ordinal(handle) => {
            device(handle).map(|_| ())
        }

        fn cuCtxSetCurrent(context: Handle) on current() => {
            driver().set_current(context)
        }

        fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) on current() => {
            let (free_bytes, total_bytes) = driver().ask_memory()?;
            unsafe {
                put(free, usize::try_from(free_bytes).unwrap_or(usize::MAX))?;
                put(total, usize::try_from(total_bytes).unwrap_or(usize::MAX))
            }
        }

        fn cuModuleLoadDataEx(
            module: *mut Handle, image: *const c_void, count: c_uint, options: *const c_int, values: *mut *mut c_void
        ) on current() => {
            if image.is_null() {
                return Err(ERROR_INVALID_VALUE);
            }
            // PTX is text with a zero at its end; a cubin would start with ELF's magic number and read as no PTX.
            let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
            let loaded = driver().load_module(&text);
            let log = loaded.as_ref().err().map_or("", |(_, log)| log);
            unsafe { write_log(log, count, options, values) };
            let loaded = loaded.map_err(|(code, _)| code)?;
            unsafe { put(module, loaded) }
        }

        fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) on current() => {
            if name.is_null() {
                return Err(ERROR_INVALID_VALUE);
            }
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            let found = driver().function(module, &name)?;
            unsafe { put(function, found) }
        }

        fn cuMemAlloc_v2(address: *mut Address, bytes: usize) on current() => {
            let allocated = driver().allocate(bytes as u64)?;
            unsafe { put(address, allocated) }
        }

        fn cuMemAllocManaged(address: *mut Address, bytes: usize, flags: c_uint) on current() => {
            if !matches!(flags, 1 | 2) {
                return Err(ERROR_INVALID_VALUE);
            }
            let allocated = driver().allocate_managed(bytes as u64)?;
            unsafe { put(address, allocated) }
        }

        fn cuMemAllocAsync(address: *mut Address, bytes: usize, stream: Handle) on current() => {
            let allocated = driver().allocate_async(bytes as u64, stream)?;
            unsafe { put(address, allocated) }
        }

        fn cuMemFreeAsync(address: Address, stream: Handle) on current() => {
            driver().check_stream(stream)?;
            driver().memory()?.free(address)
        }

        fn cuDeviceCanAccessPeer(can: *mut c_int, handle: c_int, peer: c_int) on ordinal(handle) => {
            let ((from, _), (to, _)) = (device(handle)?, device(peer)?);
            unsafe { put(can, c_int::from(peers::can_access(from, to))) }
        }

        fn cuCtxEnablePeerAccess(peer: Handle, flags: c_uint) on current() => {
            if flags != 0 {
                return Err(ERROR_INVALID_VALUE);
            }
            driver().enable_peer(peer)
        }

        fn cuMemcpyPeer(
            to: Address, to_context: Handle, from: Address, from_context: Handle, bytes: usize
        ) on current() => {
            driver().copy_between((to, to_context), (from, from_context), bytes as u64)
        }

        fn cuMemFree_v2(address: Address) on current() => {
            driver().memory()?.free(address)
        }

        fn cuMemcpyHtoD_v2(to: Address, from: *const c_void, bytes: usize) on current() => {
            unsafe { driver().memory()?.copy_in(to, from.cast(), bytes as u64) }
        }

        fn cuMemcpyDtoH_v2(to: *mut c_void, from: Address, bytes: usize) on current() => {
            unsafe { driver().memory()?.copy_out(to.cast(), from, bytes as u64) }
        }

        fn cuMemAdvise(address: Address, bytes: usize, _advice: c_int, target: c_int) on current() => {
            driver().check_hint(address, bytes as u64, target)
        }

        fn cuMemPrefetchAsync(address: Address, bytes: usize, target: c_int, stream: Handle) on current() => {
            driver().check_stream(stream)?;
            driver().check_hint(address, bytes as u64, target)
        }

        fn cuMemAdvise_v2(address: Address, bytes: usize, _advice: c_int, target: Location) on current() => {
            driver().check_hint(address, bytes as u64, target.device()?)
        }

        fn cuMemPrefetchAsync_v2(
            address: Address, bytes: usize, target: Location, flags: c_uint, stream: Handle
        ) on current() => {
            if flags != 0 {
                return Err(ERROR_INVALID_VALUE);
            }
            driver().check_stream(stream)?;
            driver().check_hint(address, bytes as u64, target.device()?)
        }

        fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) on current() => {
            let created = driver().stream()?;
            unsafe { put(stream, created) }
        }

        fn cuStreamSynchronize(stream: Handle) on current() => {
            driver().check_stream(stream)?;
            driver().idle().map(|_| ())
        }

        fn cuStreamDestroy_v2(stream: Handle) on current() => {
            driver().check_stream(stream)
        }

        fn cuEventCreate(event: *mut Handle, _flags: c_uint) on current() => {
            let created = driver().event()?;
            unsafe { put(event, created) }
        }

        fn cuEventRecord(event: Handle, stream: Handle) on current() => {
            driver().check_stream(stream)?;
            driver().record(event)
        }

        fn cuEventElapsedTime(ms: *mut f32, start: Handle, end: Handle) on current() => {
            let seconds = driver().elapsed(start, end)?;
            unsafe { put(ms, 1e3 * seconds) }
        }

        fn cuLaunchKernel(
            function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
            block_x: c_uint, block_y: c_uint, block_z: c_uint, _shared: c_uint,
            stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
        ) on current() => {
            if !extra.is_null() {
                return Err(ERROR_NOT_SUPPORTED);
            }
            driver().check_stream(stream)?;
            let layout = driver().params(function)?;
            let packed = unsafe { pack(params, &layout) }?;
            driver().launch(function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], &packed)
        }

        fn cuGetErrorName(code: c_int, text: *mut *const c_char) on None => {
            unsafe { put_description(text, describe(code).map(|(name, _)| name)) }
        }

        fn cuGetErrorString(code: c_int, text: *mut *const c_char) on None => {
            unsafe { put_description(text, describe(code).map(|(_, text)| text)) }
        }
    }
}

pub(crate) use exports::CALLS;

/// Collects a kernel's parameters from where the caller has them.
///
/// # Safety
///
/// `params` points to a pointer for each parameter.
unsafe fn pack(params: *mut *mut c_void, layout: &[(usize, usize)]) -> Outcome<Vec<u8>> {
    let mut packed = vec![0; layout.last().map_or(0, |(offset, size)| offset + size)];
    for (index, (offset, size)) in layout.iter().enumerate() {
        if params.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: there are as many as the kernel has parameters, each of its size.
        unsafe {
            let param = *params.add(index);
            param
                .cast::<u8>()
                .copy_to(packed[*offset..].as_mut_ptr(), *size);
        }
    }
    Ok(packed)
}

/// Fills the error log that the caller asked for, if it did.
///
/// # Safety
///
/// There are `count` options and values, as cuda.h says of them.
unsafe fn write_log(log: &str, count: c_uint, options: *const c_int, values: *mut *mut c_void) {
    const ERROR_LOG: c_int = 5;
    const ERROR_LOG_BYTES: c_int = 6;
    if options.is_null() || values.is_null() {
        return;
    }
    // SAFETY: see above.
    let (options, values) = unsafe {
        let count = count as usize;
        (
            std::slice::from_raw_parts(options, count),
            std::slice::from_raw_parts_mut(values, count),
        )
    };
    let find = |wanted| options.iter().position(|option| *option == wanted);
    if let (Some(buffer), Some(size)) = (find(ERROR_LOG), find(ERROR_LOG_BYTES)) {
        let room = values[size].addr();
        // SAFETY: the caller gave a buffer of so many bytes. A log that does not fit is cut.
        let _ = unsafe { put_text(values[buffer].cast(), number(room), log) };
        values[size] = ptr::without_provenance_mut(log.len().min(room.saturating_sub(1)));
    }
}

/// Gives a static text, or null and an error where there is none.
///
/// # Safety
///
/// `to` is null, or good for writing.
unsafe fn put_description(to: *mut *const c_char, text: Option<&'static CStr>) -> Outcome {
    // SAFETY: the caller answers.
    unsafe { put(to, text.map_or(ptr::null(), CStr::as_ptr)) }?;
    text.map(|_| ()).ok_or(ERROR_INVALID_VALUE)
}
