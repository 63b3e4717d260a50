//! What the gate itself never does with the driver, in a process of its own: PTX that is wrong, memory that is held.

use std::env;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode, Stdio};
use std::ptr;

use libloading::Library;

type Load =
    unsafe extern "C" fn(*mut usize, *const c_void, c_uint, *mut c_int, *mut *mut c_void) -> c_int;

/// The first argument of this program as a helper.
pub(crate) const HELPER: &str = "helper";

/// This program as a helper.
pub(crate) fn helper(what: &str, value: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap_or_default());
    command
        .args([HELPER, what, value])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// The driver's code, as a helper prints it.
pub(crate) fn code_of(what: &str, value: &str) -> Result<i32, String> {
    let output = helper(what, value)
        .output()
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.trim().parse();
    number.map_err(|_| format!("the helper said {text:?}"))
}

/// The helper: prints the driver's code, and holds what it has until its input ends.
pub(crate) fn help(what: &str, value: &str) -> ExitCode {
    let code = match what {
        "ptx" => load(value),
        _ => hold(value.parse().unwrap_or(0)),
    };
    println!("{}", code.map_or_else(|error| error, |()| "0".into()));
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    ExitCode::SUCCESS
}

/// The driver with a context on its first device.
fn with_context() -> Result<Library, String> {
    // SAFETY: loading the driver's library runs its own initialisers.
    let library = unsafe { Library::new("libcuda.so.1") }.map_err(|error| error.to_string())?;
    let (mut device, mut context): (c_int, usize) = (0, 0);
    // SAFETY: types are those of cuda.h, and every pointer is to a place of its type.
    unsafe {
        call::<unsafe extern "C" fn(c_uint) -> c_int>(&library, "cuInit", |f| f(0))?;
        call::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(&library, "cuDeviceGet", |f| {
            f(&raw mut device, 0)
        })?;
        call::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(
            &library,
            "cuDevicePrimaryCtxRetain",
            |f| f(&raw mut context, device),
        )?;
        call::<unsafe extern "C" fn(usize) -> c_int>(&library, "cuCtxSetCurrent", |f| f(context))?;
    }
    Ok(library)
}

/// Calls a function. The error is its code, as text.
///
/// # Safety
///
/// `F` is the function's type.
unsafe fn call<F: Copy>(
    library: &Library,
    name: &str,
    call: impl FnOnce(F) -> c_int,
) -> Result<(), String> {
    // SAFETY: the caller answers for the type.
    let function = unsafe { library.get::<F>(name) }.map_err(|error| error.to_string())?;
    match call(*function) {
        0 => Ok(()),
        code => Err(code.to_string()),
    }
}

fn load(which: &str) -> Result<(), String> {
    let good =
        ".version 8.0\n.target sm_70\n.address_size 64\n.visible .entry nothing()\n{\n\tret;\n}\n";
    let text = match which {
        "wrong" => good.replace("ret;", "no.such.instruction %r1;"),
        "new" => good.replace("8.0", "99.0"),
        _ => good.to_owned(),
    };
    let text = CString::new(text).map_err(|error| error.to_string())?;
    let library = with_context()?;
    let mut module = 0_usize;
    // SAFETY: the text ends with a zero, and there are no options.
    unsafe {
        call::<Load>(&library, "cuModuleLoadDataEx", |f| {
            f(
                &raw mut module,
                text.as_ptr().cast(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        })
    }
}

fn hold(percent: usize) -> Result<(), String> {
    // Stays loaded: what it holds is held until the process ends.
    let library = std::mem::ManuallyDrop::new(with_context()?);
    let (mut free, mut total, mut address) = (0_usize, 0_usize, 0_u64);
    // SAFETY: writes two sizes, then one address.
    unsafe {
        call::<unsafe extern "C" fn(*mut usize, *mut usize) -> c_int>(
            &library,
            "cuMemGetInfo_v2",
            |f| f(&raw mut free, &raw mut total),
        )?;
        call::<unsafe extern "C" fn(*mut u64, usize) -> c_int>(&library, "cuMemAlloc_v2", |f| {
            f(&raw mut address, free / 100 * percent)
        })
    }
}
