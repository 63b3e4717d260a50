//! The driver's calls as safe functions. Each says first, to the supervisor, where the test is.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use cudarc::driver::sys::{CUdevice_attribute, CUjit_option};
use gate_report::{Context as Circumstances, Finding, Step, fault};

use super::functions::{Address, Functions, Handle};
use crate::protocol::{Cause, Event, Place, Stop, send};

/// Most bytes of the compiler's log that are kept.
const JIT_LOG: usize = 4096;

/// `Result` of a call. The error is boxed, as it is rare and large.
pub(super) type Called<T> = Result<T, Box<Stop>>;

/// The driver, at a step of the test, on a device.
#[derive(Clone, Copy)]
pub(super) struct Driver<'a> {
    pub(super) functions: &'a Functions,
    step: Step,
    pub(super) device: Option<u32>,
}

/// Memory of the device.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub(super) address: Address,
    pub(super) words: usize,
}

impl Buffer {
    /// How long it is.
    pub(super) fn words(self) -> usize {
        self.words
    }

    /// The same memory from a word on.
    pub(super) fn from(self, index: usize) -> Self {
        Self {
            address: self.word(index),
            words: self.words.saturating_sub(index),
        }
    }

    /// The address of a word, for a kernel.
    pub(super) fn word(self, index: usize) -> u64 {
        self.address + 4 * index as u64
    }
}

/// A device attribute.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Attribute {
    Multiprocessors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as c_int,
    /// Its memory is the host's.
    Integrated = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED as c_int,
    L2CacheSize = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE as c_int,
    ComputeCapabilityMajor =
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as c_int,
    ComputeCapabilityMinor =
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as c_int,
    ManagedMemory = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY as c_int,
    ConcurrentManagedAccess =
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS as c_int,
    /// It goes by the host's page tables, as coherent devices do: the host uses its memory as well.
    HostPageTables =
        CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES
            as c_int,
    /// `cuMemAllocAsync`.
    MemoryPools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED as c_int,
}

impl<'a> Driver<'a> {
    /// The driver before any device is known.
    pub(super) fn new(functions: &'a Functions) -> Self {
        Self {
            functions,
            step: Step::Init,
            device: None,
        }
    }

    /// The same, at another step.
    pub(super) fn at(self, step: Step) -> Self {
        Self { step, ..self }
    }

    /// The same, on a device.
    pub(super) fn on(self, device: u32) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    /// Tells the supervisor where the test is, when no call does.
    pub(super) fn announce(self) {
        send(&Event::Calling(self.place(None)));
    }

    /// A fault that the test found without the driver's help.
    pub(super) fn stop(self, finding: Finding, detail: String) -> Stop {
        Stop::found(self.place(None), finding, detail)
    }

    /// Whether the platform or the driver lacks an optional feature, going by how a call to it failed.
    pub(super) fn is_skip(self, stop: &Stop) -> bool {
        match stop.cause {
            Cause::Code(code) => fault(code, Circumstances::at(self.step)).skip,
            // Of those that a driver may lack: without the others nothing was loaded.
            Cause::Finding(finding) => finding == Finding::MissingSymbol,
        }
    }

    fn place(self, call: Option<&str>) -> Place {
        Place {
            step: self.step,
            call: call.map(Into::into),
            device: self.device,
        }
    }

    pub(super) fn call(
        self,
        name: &'static str,
        call: impl FnOnce(&Functions) -> c_int,
    ) -> Called<()> {
        send(&Event::Calling(self.place(Some(name))));
        let code = call(self.functions);
        if code == 0 {
            return Ok(());
        }
        let code_name = self.code_name(code);
        let shown = code_name
            .as_deref()
            .unwrap_or_else(|| fault(code, Circumstances::at(self.step)).name);
        Err(Box::new(Stop {
            place: self.place(Some(name)),
            cause: Cause::Code(code),
            detail: format!("{name} returned {code} ({shown})"),
            code_name,
        }))
    }

    /// The driver's name for a code that our table does not list.
    fn code_name(self, code: c_int) -> Option<String> {
        if gate_report::listed().any(|listed| listed == code) {
            return None;
        }
        let name = self.functions.cuGetErrorName?;
        let mut text: *const c_char = ptr::null();
        // SAFETY: the driver sets the pointer to a string that it never frees, or leaves it null.
        let text = unsafe {
            if name(code, &raw mut text) != 0 || text.is_null() {
                return None;
            }
            CStr::from_ptr(text)
        };
        Some(text.to_string_lossy().into_owned())
    }

    /// A function that a driver may lack.
    pub(super) fn function<T>(self, name: &'static str, function: Option<T>) -> Called<T> {
        let missing = || format!("the driver has no function {name}");
        Ok(function.ok_or_else(|| self.stop(Finding::MissingSymbol, missing()))?)
    }

    pub(super) fn init(self) -> Called<()> {
        // SAFETY: takes a number.
        self.call("cuInit", |f| unsafe { (f.cuInit)(0) })
    }

    pub(super) fn driver_version(self) -> Called<c_int> {
        let mut version = 0;
        // SAFETY: writes one integer.
        self.call("cuDriverGetVersion", |f| unsafe {
            (f.cuDriverGetVersion)(&raw mut version)
        })?;
        Ok(version)
    }

    pub(super) fn device_count(self) -> Called<u32> {
        let mut count = 0;
        // SAFETY: writes one integer.
        self.call("cuDeviceGetCount", |f| unsafe {
            (f.cuDeviceGetCount)(&raw mut count)
        })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(super) fn device(self, ordinal: u32) -> Called<c_int> {
        let mut device = 0;
        let ordinal = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        // SAFETY: writes one integer.
        self.call("cuDeviceGet", |f| unsafe {
            (f.cuDeviceGet)(&raw mut device, ordinal)
        })?;
        Ok(device)
    }

    pub(super) fn device_name(self, device: c_int) -> Called<String> {
        // SAFETY: writes a string of at most the given length, its end included.
        self.text("cuDeviceGetName", |f, text, size| unsafe {
            (f.cuDeviceGetName)(text, size, device)
        })
    }

    pub(super) fn pci_bus_id(self, device: c_int) -> Called<String> {
        // SAFETY: writes a string of at most the given length, its end included.
        self.text("cuDeviceGetPCIBusId", |f, text, size| unsafe {
            (f.cuDeviceGetPCIBusId)(text, size, device)
        })
    }

    fn text(
        self,
        name: &'static str,
        get: impl FnOnce(&Functions, *mut c_char, c_int) -> c_int,
    ) -> Called<String> {
        let mut text = [0_u8; 256];
        // One byte less than there is, so that a string always ends.
        self.call(name, |f| get(f, text.as_mut_ptr().cast(), 255))?;
        let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    pub(super) fn uuid(self, device: c_int) -> Called<[u8; 16]> {
        let mut uuid = [0; 16];
        // SAFETY: writes 16 bytes.
        self.call("cuDeviceGetUuid_v2", |f| unsafe {
            (f.cuDeviceGetUuid_v2)(&raw mut uuid, device)
        })?;
        Ok(uuid)
    }

    pub(super) fn attribute(self, attribute: Attribute, device: c_int) -> Called<c_int> {
        let mut value = 0;
        self.call("cuDeviceGetAttribute", |f| {
            // SAFETY: writes one integer.
            unsafe { (f.cuDeviceGetAttribute)(&raw mut value, attribute as c_int, device) }
        })?;
        Ok(value)
    }

    /// Makes the device's primary context current: the one that the job's programs will use.
    pub(super) fn make_context(self, device: c_int) -> Called<Handle> {
        let mut context = 0;
        self.call("cuDevicePrimaryCtxRetain", |f| {
            // SAFETY: writes one handle.
            unsafe { (f.cuDevicePrimaryCtxRetain)(&raw mut context, device) }
        })?;
        self.use_context(context)?;
        Ok(context)
    }

    /// Makes a context current, for what follows.
    pub(super) fn use_context(self, context: Handle) -> Called<()> {
        // SAFETY: takes a handle that the driver gave.
        self.call("cuCtxSetCurrent", |f| unsafe {
            (f.cuCtxSetCurrent)(context)
        })
    }

    /// Free and total memory of the device, in bytes.
    pub(super) fn memory(self) -> Called<(u64, u64)> {
        let (mut free, mut total) = (0_usize, 0_usize);
        self.call("cuMemGetInfo_v2", |f| {
            // SAFETY: writes two sizes.
            unsafe { (f.cuMemGetInfo_v2)(&raw mut free, &raw mut total) }
        })?;
        Ok((free as u64, total as u64))
    }

    /// Loads PTX. When the driver's compiler has something to say about a failure, it is in the error.
    pub(super) fn load_module(self, ptx: &CStr) -> Called<Handle> {
        use CUjit_option::{
            CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_INFO_LOG_BUFFER,
            CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        };
        let mut module = 0;
        let (mut info, mut errors) = ([0_u8; JIT_LOG], [0_u8; JIT_LOG]);
        // One byte stays ours, so that the text always ends. Sizes are passed by value, in the pointer.
        let size = ptr::without_provenance_mut::<c_void>(JIT_LOG - 1);
        let mut options = [
            CU_JIT_INFO_LOG_BUFFER,
            CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
            CU_JIT_ERROR_LOG_BUFFER,
            CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ]
        .map(|option| option as c_int);
        let mut values = [
            info.as_mut_ptr().cast(),
            size,
            errors.as_mut_ptr().cast(),
            size,
        ];
        let result = self.call("cuModuleLoadDataEx", |f| {
            // SAFETY: the PTX ends with a zero; there are as many options as values, and the buffers outlive the call.
            unsafe {
                (f.cuModuleLoadDataEx)(
                    &raw mut module,
                    ptx.as_ptr().cast(),
                    4,
                    options.as_mut_ptr(),
                    values.as_mut_ptr(),
                )
            }
        });
        result.map_err(|mut stop| {
            let said = CStr::from_bytes_until_nul(&errors)
                .unwrap_or_default()
                .to_string_lossy();
            if !said.trim().is_empty() {
                stop.detail = format!("{}; the compiler says: {}", stop.detail, said.trim());
            }
            stop
        })?;
        Ok(module)
    }

    pub(super) fn kernel(self, module: Handle, name: &CStr) -> Called<Handle> {
        let mut kernel = 0;
        self.call("cuModuleGetFunction", |f| {
            // SAFETY: writes one handle; the module is loaded and the name ends with a zero.
            unsafe { (f.cuModuleGetFunction)(&raw mut kernel, module, name.as_ptr()) }
        })?;
        Ok(kernel)
    }

    pub(super) fn allocate(self, words: usize) -> Called<Buffer> {
        let mut address = 0;
        // SAFETY: writes one address.
        self.call("cuMemAlloc_v2", |f| unsafe {
            (f.cuMemAlloc_v2)(&raw mut address, 4 * words)
        })?;
        Ok(Buffer { address, words })
    }

    pub(super) fn copy_to_device(self, buffer: Buffer, words: &[u32]) -> Called<()> {
        let bytes = 4 * words.len().min(buffer.words);
        self.call("cuMemcpyHtoD_v2", |f| {
            // SAFETY: both sides hold so many bytes.
            unsafe { (f.cuMemcpyHtoD_v2)(buffer.address, words.as_ptr().cast(), bytes) }
        })
    }

    pub(super) fn copy_to_host(self, words: &mut [u32], buffer: Buffer) -> Called<()> {
        let bytes = 4 * words.len().min(buffer.words);
        self.call("cuMemcpyDtoH_v2", |f| {
            // SAFETY: both sides hold so many bytes.
            unsafe { (f.cuMemcpyDtoH_v2)(words.as_mut_ptr().cast(), buffer.address, bytes) }
        })
    }

    /// A stream that waits for the default one, so that plain copies are done before its kernels start.
    pub(super) fn stream(self) -> Called<Handle> {
        let mut stream = 0;
        // SAFETY: writes one handle.
        self.call("cuStreamCreate", |f| unsafe {
            (f.cuStreamCreate)(&raw mut stream, 0)
        })?;
        Ok(stream)
    }

    pub(super) fn synchronize(self, stream: Handle) -> Called<()> {
        // SAFETY: takes a handle that the driver gave.
        self.call("cuStreamSynchronize", |f| unsafe {
            (f.cuStreamSynchronize)(stream)
        })
    }

    /// An event that takes the time.
    pub(super) fn event(self) -> Called<Handle> {
        let mut event = 0;
        // SAFETY: writes one handle.
        self.call("cuEventCreate", |f| unsafe {
            (f.cuEventCreate)(&raw mut event, 0)
        })?;
        Ok(event)
    }

    pub(super) fn record(self, event: Handle, stream: Handle) -> Called<()> {
        // SAFETY: takes handles that the driver gave.
        self.call("cuEventRecord", |f| unsafe {
            (f.cuEventRecord)(event, stream)
        })
    }

    /// Milliseconds between two events, both over.
    pub(super) fn elapsed(self, start: Handle, end: Handle) -> Called<f64> {
        let mut ms = 0.0_f32;
        self.call("cuEventElapsedTime", |f| {
            // SAFETY: writes one number; takes handles that the driver gave.
            unsafe { (f.cuEventElapsedTime)(&raw mut ms, start, end) }
        })?;
        Ok(f64::from(ms))
    }

    /// Starts a kernel. Every parameter is given in a slot of 8 bytes, little-endian, of which it reads what it needs.
    pub(super) fn launch(
        self,
        kernel: Handle,
        blocks: u32,
        threads: u32,
        stream: Handle,
        params: &mut [u64],
    ) -> Called<()> {
        let mut pointers: Vec<*mut c_void> = params
            .iter_mut()
            .map(|param| ptr::from_mut(param).cast())
            .collect();
        self.call("cuLaunchKernel", |f| {
            // SAFETY: there is a pointer for every parameter of the kernel, and the driver copies what they point to.
            unsafe {
                (f.cuLaunchKernel)(
                    kernel,
                    blocks,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    0,
                    stream,
                    pointers.as_mut_ptr(),
                    ptr::null_mut(),
                )
            }
        })
    }
}
