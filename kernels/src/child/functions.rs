//! The driver's functions, with raw integers for results: a Rust enum would be undefined behaviour for a code that
//! it does not list, and new drivers have new codes. The driver's numbers are cudarc's; its loader is not used, because it
//! prefers a toolkit's stub.

use std::ffi::{c_char, c_int, c_uint, c_void};

use libloading::Library;

/// `CUdeviceptr`.
pub(super) type Address = u64;
/// Any of the driver's opaque handles.
pub(super) type Handle = usize;

/// `CUmemLocation`: a kind of place, and which of that kind.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Location {
    pub(super) kind: c_int,
    pub(super) id: c_int,
}

macro_rules! functions {
    (
        required { $($required:ident($($argument:ty),*);)* }
        optional { $($optional:ident($($optional_argument:ty),*);)* }
    ) => {
        /// One pointer for each function.
        #[allow(non_snake_case, reason = "the driver's own names")]
        pub(super) struct Functions {
            $(pub(super) $required: unsafe extern "C" fn($($argument),*) -> c_int,)*
            $(pub(super) $optional: Option<unsafe extern "C" fn($($optional_argument),*) -> c_int>,)*
        }

        impl Functions {
            /// Looks all of them up. The error is the name of the first required one that is missing.
            pub(super) fn load(library: &'static Library) -> Result<Self, &'static str> {
                // SAFETY: the types are those of cuda.h, with raw integers for enums, and the library stays loaded.
                unsafe {
                    Ok(Self {
                        $($required: *library
                            .get(concat!(stringify!($required), "\0"))
                            .map_err(|_| stringify!($required))?,)*
                        $($optional: library
                            .get(concat!(stringify!($optional), "\0"))
                            .ok()
                            .map(|symbol| *symbol),)*
                    })
                }
            }
        }
    };
}

functions! {
    required {
        cuInit(c_uint);
        cuDriverGetVersion(*mut c_int);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGet(*mut c_int, c_int);
        cuDeviceGetName(*mut c_char, c_int, c_int);
        cuDeviceGetUuid_v2(*mut [u8; 16], c_int);
        cuDeviceGetPCIBusId(*mut c_char, c_int, c_int);
        cuDeviceGetAttribute(*mut c_int, c_int, c_int);
        cuDevicePrimaryCtxRetain(*mut Handle, c_int);
        cuCtxSetCurrent(Handle);
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuModuleLoadDataEx(*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
        cuModuleGetFunction(*mut Handle, Handle, *const c_char);
        cuMemAlloc_v2(*mut Address, usize);
        cuMemcpyHtoD_v2(Address, *const c_void, usize);
        cuMemcpyDtoH_v2(*mut c_void, Address, usize);
        cuStreamCreate(*mut Handle, c_uint);
        cuStreamSynchronize(Handle);
        cuEventCreate(*mut Handle, c_uint);
        cuEventRecord(Handle, Handle);
        cuEventElapsedTime(*mut f32, Handle, Handle);
        cuLaunchKernel(
            Handle,
            c_uint, c_uint, c_uint,
            c_uint, c_uint, c_uint,
            c_uint, Handle, *mut *mut c_void, *mut *mut c_void
        );
    }
    optional {
        cuMemAllocManaged(*mut Address, usize, c_uint);
        cuMemAdvise(Address, usize, c_int, c_int);
        cuMemAdvise_v2(Address, usize, c_int, Location);
        cuMemPrefetchAsync(Address, usize, c_int, Handle);
        cuMemPrefetchAsync_v2(Address, usize, Location, c_uint, Handle);
        cuMemAllocAsync(*mut Address, usize, Handle);
        cuMemFreeAsync(Address, Handle);
        cuDeviceCanAccessPeer(*mut c_int, c_int, c_int);
        cuCtxEnablePeerAccess(Handle, c_uint);
        cuMemcpyPeer(Address, Handle, Address, Handle, usize);
        cuGetErrorName(c_int, *mut *const c_char);
    }
}
