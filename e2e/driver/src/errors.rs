//! The driver's codes, by the names of cuda.h.

use std::ffi::CStr;

/// `CUresult`, as the C side sees it.
pub(crate) type Code = i32;

/// What a call gives: nothing, or a code.
pub(crate) type Outcome<T = ()> = Result<T, Code>;

macro_rules! codes {
    ($($name:ident = $code:literal: $text:literal;)*) => {
        $(
            #[allow(dead_code, reason = "all are there for their names")]
            pub(crate) const $name: Code = $code;
        )*

        /// Name and description of a code.
        pub(crate) fn describe(code: Code) -> Option<(&'static CStr, &'static CStr)> {
            let (name, text) = match code {
                $($code => (concat!("CUDA_", stringify!($name), "\0"), concat!($text, "\0")),)*
                _ => return None,
            };
            Some((CStr::from_bytes_until_nul(name.as_bytes()).ok()?, CStr::from_bytes_until_nul(text.as_bytes()).ok()?))
        }
    };
}

codes! {
    SUCCESS = 0: "no error";
    ERROR_INVALID_VALUE = 1: "invalid argument";
    ERROR_OUT_OF_MEMORY = 2: "out of memory";
    ERROR_NOT_INITIALIZED = 3: "initialization error";
    ERROR_DEINITIALIZED = 4: "driver shutting down";
    ERROR_STUB_LIBRARY = 34: "CUDA driver is a stub library";
    ERROR_CALL_REQUIRES_NEWER_DRIVER = 36: "API call is not supported in the installed CUDA driver";
    ERROR_DEVICE_UNAVAILABLE = 46: "CUDA-capable device(s) is/are busy or unavailable";
    ERROR_NO_DEVICE = 100: "no CUDA-capable device is detected";
    ERROR_INVALID_DEVICE = 101: "invalid device ordinal";
    ERROR_DEVICE_NOT_LICENSED = 102: "CUDA-capable device is not licensed";
    ERROR_INVALID_IMAGE = 200: "device kernel image is invalid";
    ERROR_INVALID_CONTEXT = 201: "invalid device context";
    ERROR_NO_BINARY_FOR_GPU = 209: "no kernel image is available for execution on the device";
    ERROR_ECC_UNCORRECTABLE = 214: "uncorrectable ECC error encountered";
    ERROR_INVALID_PTX = 218: "a PTX JIT compilation failed";
    ERROR_NVLINK_UNCORRECTABLE = 220: "uncorrectable NVLink error detected during the execution";
    ERROR_PEER_ACCESS_UNSUPPORTED = 217: "peer access is not supported between these two devices";
    ERROR_JIT_COMPILER_NOT_FOUND = 221: "PTX JIT compiler library not found";
    ERROR_UNSUPPORTED_PTX_VERSION = 222: "the provided PTX was compiled with an unsupported toolchain.";
    ERROR_JIT_COMPILATION_DISABLED = 223: "PTX JIT compilation was disabled";
    ERROR_CONTAINED = 226: "Invalid access of peer GPU memory over nvlink or a hardware error";
    ERROR_INSUFFICIENT_LOADER_VERSION = 227: "the loader version is insufficient";
    ERROR_INVALID_SOURCE = 300: "device kernel image is invalid";
    ERROR_FILE_NOT_FOUND = 301: "file not found";
    ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND = 302: "shared object symbol not found";
    ERROR_SHARED_OBJECT_INIT_FAILED = 303: "shared object initialization failed";
    ERROR_OPERATING_SYSTEM = 304: "OS call failed or operation not supported on this OS";
    ERROR_INVALID_HANDLE = 400: "invalid resource handle";
    ERROR_ILLEGAL_STATE = 401: "the operation cannot be performed in the present state";
    ERROR_NOT_FOUND = 500: "named symbol not found";
    ERROR_NOT_READY = 600: "device not ready";
    ERROR_ILLEGAL_ADDRESS = 700: "an illegal memory access was encountered";
    ERROR_LAUNCH_OUT_OF_RESOURCES = 701: "too many resources requested for launch";
    ERROR_LAUNCH_TIMEOUT = 702: "the launch timed out and was terminated";
    ERROR_PEER_ACCESS_ALREADY_ENABLED = 704: "peer access is already enabled";
    ERROR_PEER_ACCESS_NOT_ENABLED = 705: "peer access has not been enabled";
    ERROR_CONTEXT_IS_DESTROYED = 709: "context is destroyed";
    ERROR_ASSERT = 710: "device-side assert triggered";
    ERROR_HARDWARE_STACK_ERROR = 714: "hardware stack error";
    ERROR_ILLEGAL_INSTRUCTION = 715: "an illegal instruction was encountered";
    ERROR_MISALIGNED_ADDRESS = 716: "misaligned address";
    ERROR_INVALID_ADDRESS_SPACE = 717: "operation not supported on global/shared address space";
    ERROR_INVALID_PC = 718: "invalid program counter";
    ERROR_LAUNCH_FAILED = 719: "unspecified launch failure";
    ERROR_NOT_PERMITTED = 800: "operation not permitted";
    ERROR_NOT_SUPPORTED = 801: "operation not supported";
    ERROR_SYSTEM_NOT_READY = 802: "system not yet initialized";
    ERROR_SYSTEM_DRIVER_MISMATCH = 803: "system has unsupported display driver / cuda driver combination";
    ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804: "forward compatibility was attempted on non supported HW";
    ERROR_MPS_CONNECTION_FAILED = 805: "MPS client failed to connect to the MPS control daemon or the MPS server";
    ERROR_MPS_RPC_FAILURE = 806: "the remote procedural call between the MPS server and the MPS client failed";
    ERROR_MPS_SERVER_NOT_READY = 807: "MPS server is not ready to accept new MPS client requests";
    ERROR_MPS_MAX_CLIENTS_REACHED = 808: "the hardware resources required to create MPS client have been exhausted";
    ERROR_MPS_MAX_CONNECTIONS_REACHED = 809: "the hardware resources required to support device connections have been exhausted";
    ERROR_MPS_CLIENT_TERMINATED = 810: "the MPS client has been terminated by the server";
    ERROR_KEY_ROTATION = 916: "the keys of the device are being changed";
    ERROR_FABRIC_NOT_READY = 919: "the fabric is not ready";
    ERROR_UNKNOWN = 999: "unknown error";
}

/// Whether a code, once met, is all that the context answers from then on.
pub(crate) fn is_sticky(code: Code) -> bool {
    matches!(code, 214 | 220 | 226 | 700 | 702 | 710 | 714..=719)
}
