//! Every code of the driver, wherever it may come back: exit code, class, step, name, sentences.

#![allow(clippy::unwrap_used, reason = "a test, with its helpers")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::thread;

use common::{check, folder};
use gate_report::exit::{CONFIG, DEVICE, INTERNAL, NODE, TRANSIENT, UNKNOWN, UNSUPPORTED};
use gate_report::{Class, Failure, Report, Step, listed};
use serde_json::{Value, json};

/// A code, its name, the exit code that it leads to, how many processes that takes, and words of what it means.
type Code = (i32, &'static str, u8, u32, &'static str);

/// All codes that have a meaning of their own, and some that have none.
#[rustfmt::skip]
const CODES: &[Code] = &[
    (1, "CUDA_ERROR_INVALID_VALUE", INTERNAL, 1, "an argument that it does not take"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", NODE, 1, "should be free"),
    (3, "CUDA_ERROR_NOT_INITIALIZED", NODE, 2, "did not come up"),
    (34, "CUDA_ERROR_STUB_LIBRARY", CONFIG, 1, "link-time stub"),
    (36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", CONFIG, 1, "is newer than the driver on the node"),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", TRANSIENT, 1, "is busy"),
    (100, "CUDA_ERROR_NO_DEVICE", NODE, 1, "has lost it"),
    (101, "CUDA_ERROR_INVALID_DEVICE", CONFIG, 1, "does not exist any more"),
    (102, "CUDA_ERROR_DEVICE_NOT_LICENSED", CONFIG, 1, "has no licence"),
    (200, "CUDA_ERROR_INVALID_IMAGE", INTERNAL, 1, "does not take our kernel"),
    (201, "CUDA_ERROR_INVALID_CONTEXT", INTERNAL, 1, "without a context"),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", UNSUPPORTED, 1, "older than compute capability 7.0"),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE", DEVICE, 1, "ECC cannot correct"),
    (218, "CUDA_ERROR_INVALID_PTX", UNSUPPORTED, 1, "compiler rejects"),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", DEVICE, 1, "An NVLink of the device"),
    (221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", CONFIG, 1, "libnvidia-ptxjitcompiler.so.1, is not"),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", CONFIG, 1, "supports no CUDA 12.0"),
    (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", CONFIG, 1, "is switched off"),
    (226, "CUDA_ERROR_CONTAINED", DEVICE, 2, "contained it"),
    (227, "CUDA_ERROR_INSUFFICIENT_LOADER_VERSION", CONFIG, 1, "is older than the driver on the node"),
    (300, "CUDA_ERROR_INVALID_SOURCE", UNSUPPORTED, 1, "our kernel's source"),
    (302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", CONFIG, 1, "are of different versions"),
    (303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", CONFIG, 1, "cannot be loaded"),
    (304, "CUDA_ERROR_OPERATING_SYSTEM", CONFIG, 1, "refused a system call"),
    (400, "CUDA_ERROR_INVALID_HANDLE", INTERNAL, 1, "a handle"),
    (401, "CUDA_ERROR_ILLEGAL_STATE", INTERNAL, 1, "could not take the call"),
    (500, "CUDA_ERROR_NOT_FOUND", INTERNAL, 1, "a name that our kernel does not have"),
    (600, "CUDA_ERROR_NOT_READY", INTERNAL, 1, "before the device had it"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS", DEVICE, 2, "a wrong address."),
    (702, "CUDA_ERROR_LAUNCH_TIMEOUT", DEVICE, 2, "the driver's time limit"),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", INTERNAL, 1, "a context that is no more"),
    (710, "CUDA_ERROR_ASSERT", DEVICE, 2, "a failed one"),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", DEVICE, 2, "a broken call stack"),
    (715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", DEVICE, 2, "met an instruction"),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", DEVICE, 2, "a misaligned address"),
    (717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", DEVICE, 2, "a wrong address space"),
    (718, "CUDA_ERROR_INVALID_PC", DEVICE, 2, "program counter"),
    (719, "CUDA_ERROR_LAUNCH_FAILED", DEVICE, 2, "failed on the device"),
    (800, "CUDA_ERROR_NOT_PERMITTED", CONFIG, 1, "does not permit"),
    (801, "CUDA_ERROR_NOT_SUPPORTED", CONFIG, 1, "does not support"),
    (802, "CUDA_ERROR_SYSTEM_NOT_READY", TRANSIENT, 1, "fabric manager has not finished"),
    (803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", NODE, 1, "have different versions"),
    (804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", CONFIG, 1, "forward-compatibility"),
    (805, "CUDA_ERROR_MPS_CONNECTION_FAILED", TRANSIENT, 1, "MPS server does not answer"),
    (806, "CUDA_ERROR_MPS_RPC_FAILURE", TRANSIENT, 1, "answered badly"),
    (807, "CUDA_ERROR_MPS_SERVER_NOT_READY", TRANSIENT, 1, "starting or recovering"),
    (808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", TRANSIENT, 1, "as many clients"),
    (809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", TRANSIENT, 1, "as many MPS connections"),
    (810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", TRANSIENT, 1, "ended our process"),
    (916, "CUDA_ERROR_KEY_ROTATION", TRANSIENT, 1, "changing its keys"),
    (919, "CUDA_ERROR_FABRIC_NOT_READY", TRANSIENT, 1, "joined its NVLink fabric"),
    (999, "CUDA_ERROR_UNKNOWN", NODE, 2, "does not know what went wrong"),
    // Named by the driver, not by us.
    (301, "CUDA_ERROR_FILE_NOT_FOUND", UNKNOWN, 2, "not one of those that we know"),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", UNKNOWN, 2, "not one of those that we know"),
    // Named by nobody.
    (4711, "CUDA_ERROR_UNLISTED", UNKNOWN, 2, "not one of those that we know"),
    (-1, "CUDA_ERROR_UNLISTED", UNKNOWN, 2, "not one of those that we know"),
    (i32::MIN, "CUDA_ERROR_UNLISTED", UNKNOWN, 2, "not one of those that we know"),
];

/// A call: its step, its name, which of the process's calls of that name, and the memory walk in MiB.
type Place = (Step, &'static str, u32, u32);

/// One call of each step. Any of them may return any code: cuda.h says of nearly all functions that they may also
/// return what earlier, asynchronous launches left.
const STEPS: &[Place] = &[
    (Step::Init, "cuInit", 1, 0),
    (Step::DriverVersion, "cuDriverGetVersion", 1, 0),
    (Step::DeviceCount, "cuDeviceGetCount", 1, 0),
    (Step::Properties, "cuDeviceGet", 1, 0),
    (Step::Context, "cuDevicePrimaryCtxRetain", 1, 0),
    (Step::ModuleLoad, "cuModuleLoadDataEx", 1, 0),
    (Step::Allocate, "cuMemAlloc_v2", 1, 0),
    (Step::CopyToDevice, "cuMemcpyHtoD_v2", 1, 0),
    (Step::Launch, "cuLaunchKernel", 1, 0),
    (Step::Synchronize, "cuStreamSynchronize", 1, 0),
];

/// The other calls, and the steps that take long to get to: some codes stand for all, or this would take minutes.
const OTHERS: &[Place] = &[
    (Step::Properties, "cuDeviceGetName", 1, 0),
    (Step::Properties, "cuDeviceGetAttribute", 5, 0),
    (Step::Properties, "cuDeviceGetUuid_v2", 1, 0),
    (Step::Properties, "cuDeviceGetPCIBusId", 1, 0),
    (Step::Context, "cuCtxSetCurrent", 1, 0),
    (Step::Context, "cuMemGetInfo_v2", 1, 0),
    (Step::Context, "cuStreamCreate", 1, 0),
    (Step::ModuleLoad, "cuModuleLoadDataEx", 3, 0),
    (Step::ModuleLoad, "cuModuleGetFunction", 4, 0),
    (Step::Launch, "cuEventCreate", 2, 0),
    (Step::Launch, "cuEventRecord", 1, 0),
    (Step::Synchronize, "cuEventElapsedTime", 1, 0),
    (Step::CopyToHost, "cuMemcpyDtoH_v2", 1, 0),
    (Step::MemoryWalk, "cuMemAlloc_v2", 4, 1),
    (Step::MemoryWalk, "cuStreamSynchronize", 3, 1),
    (Step::TensorCores, "cuMemAlloc_v2", 4, 0),
    (Step::TensorCores, "cuStreamSynchronize", 2, 0),
    (Step::ManagedMemory, "cuMemAllocManaged", 1, 0),
    (Step::ManagedMemory, "cuMemPrefetchAsync", 1, 0),
    (Step::TensorCores, "cuStreamSynchronize", 3, 0),
    (Step::ManagedMemory, "cuStreamSynchronize", 4, 0),
    (Step::Allocate, "cuMemAllocAsync", 1, 0),
    (Step::MemoryWalk, "cuStreamSynchronize", 5, 0),
    (Step::MemoryWalk, "cuMemFreeAsync", 1, 0),
    (Step::Peers, "cuDeviceCanAccessPeer", 1, 0),
    (Step::Peers, "cuCtxEnablePeerAccess", 1, 0),
    // To the first device, from the second.
    (Step::Peers, "cuMemcpyPeer", 2, 0),
];

/// One code for each way to be judged; 801 is another matter for what is optional than elsewhere.
const SOME: [i32; 6] = [2, 214, 700, 801, 802, 4711];

/// A container with a GPU's device files, whatever this machine has.
static DEV: LazyLock<PathBuf> = LazyLock::new(|| {
    let dev = folder("dev");
    for file in ["nvidia0", "nvidia-uvm"] {
        std::fs::write(dev.join(file), "").unwrap();
    }
    dev
});

/// The same with two GPUs.
static TWO: LazyLock<PathBuf> = LazyLock::new(|| {
    let dev = folder("dev-of-two");
    for file in ["nvidia0", "nvidia1", "nvidia-uvm"] {
        std::fs::write(dev.join(file), "").unwrap();
    }
    dev
});

/// Exit code and report on these devices, with this folder as `/dev`.
fn run(devices: &Value, dev: &Path, walk: u32, arguments: &[&str]) -> (i32, Report) {
    let walk = walk.to_string();
    let mut line = vec![
        "--dev-dir",
        dev.to_str().unwrap(),
        "--memory-walk-mib",
        &walk,
        // What a moment may fix is waited for in `verdicts.rs`.
        "--wait",
        "0",
    ];
    line.extend(arguments);
    check(devices, &line)
}

/// Runs each on a thread, as many at a time as there are processors, and tells all that went wrong.
fn each<T: Sync>(cases: &[T], test: impl Fn(&T) -> Result<(), String> + Sync) {
    let (left, wrong) = (Mutex::new(cases.iter()), Mutex::new(vec![]));
    let next = || left.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(case) = next() {
                    if let Err(error) = test(case) {
                        wrong.lock().unwrap().push(error);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the report must say of a code at a place, whichever place that is.
fn verdict(place: &Place, code: &Code) -> Result<(), String> {
    let (step, call, nth, walk) = *place;
    let fault = json!({"call": call, "nth": nth, "code": code.0});
    let count = if step == Step::Peers { 2 } else { 1 };
    let devices = json!({"devices": [{"profile": "a100", "count": count}], "faults": [fault]});
    let (found, report) = run(&devices, &DEV, walk, &[]);
    let device = is_of_a_device(step).then_some(0);
    judge(place, code, device, found, &report)
}

/// The same of a call for the second of two devices.
fn verdict_of_second(place: &Place, code: &Code) -> Result<(), String> {
    let (_, call, _, walk) = *place;
    let fault = json!({"call": call, "device": 1, "code": code.0});
    let devices = json!({"devices": [{"profile": "a100", "count": 2}], "faults": [fault]});
    let (found, report) = run(&devices, &TWO, walk, &[]);
    judge(place, code, Some(1), found, &report)
}

/// Whether exit code and report are what this code at this place, on this device, must lead to.
fn judge(
    place: &Place,
    code: &Code,
    device: Option<u32>,
    found: i32,
    report: &Report,
) -> Result<(), String> {
    let (step, call, ..) = *place;
    let (code, name, exit, attempts, words) = *code;
    let fail = |what: &str| {
        Err(format!(
            "{call} at {step:?} returns {code}: {what}: {report:?}"
        ))
    };
    if is_skipped(step, call, code) {
        let reasons: Vec<_> = report.warnings.iter().map(|one| &one.reason).collect();
        let is_told = match step {
            Step::ManagedMemory => reasons == ["ManagedMemorySkipped"],
            Step::Peers => reasons == ["PeerAccessMissing"],
            _ => report.devices[0].memory_pools == Some(false),
        };
        return if found == 0 && report.passed() && is_told {
            Ok(())
        } else {
            fail("not skipped")
        };
    }
    let Some(failure) = &report.failure else {
        return fail("passed");
    };
    let place_of = (failure.step, failure.call.as_deref(), failure.code);
    let wrong = [
        (found == i32::from(exit), "another exit code"),
        (report.attempts == attempts, "another number of tries"),
        // What the operator makes of the exit code is what the report says.
        (
            Class::from_exit_code(found) == Some(failure.class),
            "another class",
        ),
        (report.exit_code() == exit, "report and exit code differ"),
        (place_of == (step, Some(call), Some(code)), "another place"),
        (failure.code_name == name, "another name"),
        (failure.device == device, "another device"),
        (is_explained(failure, words), "not explained"),
    ]
    .into_iter()
    .find(|(holds, _)| !holds);
    wrong.map_or(Ok(()), |(_, what)| fail(what))
}

/// Platforms without managed-memory hints, peer access or memory pools are no worse for it.
fn is_skipped(step: Step, call: &str, code: i32) -> bool {
    match step {
        Step::ManagedMemory | Step::Peers => [101, 800, 801].contains(&code),
        _ => call == "cuMemAllocAsync" && [800, 801].contains(&code),
    }
}

fn is_of_a_device(step: Step) -> bool {
    !matches!(step, Step::Init | Step::DriverVersion | Step::DeviceCount)
}

/// The message says what happened and, in a sentence more, what it means; the advice is a sentence, too.
fn is_explained(failure: &Failure, words: &str) -> bool {
    let happened = format!(
        "{} returned {} ({})",
        failure.call.as_deref().unwrap_or_default(),
        failure.code.unwrap_or_default(),
        failure.code_name
    );
    failure
        .message
        .strip_prefix(&happened)
        .is_some_and(|rest| rest.contains(words) && rest.ends_with('.'))
        && failure.advice.len() > 20
        && failure.advice.ends_with('.')
}

#[test]
fn the_table_has_every_code_that_has_a_meaning_of_its_own() {
    let here: Vec<i32> = CODES.iter().map(|(code, ..)| *code).collect();
    let missing: Vec<i32> = listed().filter(|code| !here.contains(code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_code_at_every_step_has_its_class_and_its_sentences() {
    let cases: Vec<_> = STEPS
        .iter()
        .flat_map(|place| CODES.iter().map(move |code| (place, code)))
        .collect();
    each(&cases, |(place, code)| verdict(place, code));
}

#[test]
fn every_call_is_judged_as_its_step_is() {
    let some = || CODES.iter().filter(|(code, ..)| SOME.contains(code));
    let cases: Vec<_> = OTHERS
        .iter()
        .flat_map(|place| some().map(move |code| (place, code)))
        .collect();
    each(&cases, |(place, code)| verdict(place, code));
}

#[test]
fn a_code_on_the_second_of_two_devices_names_that_one() {
    let places = || STEPS.iter().filter(|(step, ..)| is_of_a_device(*step));
    let some = || CODES.iter().filter(|(code, ..)| SOME.contains(code));
    let cases: Vec<_> = places()
        .flat_map(|place| some().map(move |code| (place, code)))
        .collect();
    assert_eq!(cases.len(), 42);
    each(&cases, |(place, code)| verdict_of_second(place, code));
}

#[test]
fn what_a_platform_lacks_of_managed_memory_fails_only_where_it_is_required() {
    let features = CODES
        .iter()
        .filter(|(code, ..)| is_skipped(Step::ManagedMemory, "cuMemAdvise", *code));
    let cases: Vec<_> = features.collect();
    assert_eq!(cases.len(), 3);
    each(&cases, |code| {
        verdict(&(Step::ManagedMemory, "cuMemAdvise", 1, 0), code)?;
        let fault = json!({"call": "cuMemAdvise", "code": code.0});
        let devices = json!({"devices": [{"profile": "a100"}], "faults": [fault]});
        let (exit, report) = run(&devices, &DEV, 0, &["--managed-memory", "require"]);
        let failure = report
            .failure
            .map(|failure| (failure.class, failure.code_name));
        match failure {
            Some((Class::Unsupported, name)) if name == "ManagedMemory" && exit == 14 => Ok(()),
            other => Err(format!("{code:?}: {exit}, {other:?}")),
        }
    });
}

#[test]
fn circumstances_change_what_a_code_means() {
    let none = folder("no-dev");
    let no_uvm = folder("no-uvm");
    std::fs::write(no_uvm.join("nvidia0"), "").unwrap();
    let all = DEV.as_path();
    // Device, device files, argument, call and code; exit code, words of the message.
    let cases = [
        ("a100", all, "--shared", "cuMemAlloc_v2", 2, 11, "is shared"),
        ("mig-1g", all, "", "cuMemAlloc_v2", 2, 11, "A slice has"),
        ("mig-1g", all, "--shared", "cuMemAlloc_v2", 2, 11, "shared"),
        ("a100", all, "", "cuMemAlloc_v2", 2, 13, "should be free"),
        ("a100", &none, "", "cuInit", 100, 10, "no GPU was given"),
        ("a100", all, "", "cuInit", 100, 13, "has lost it"),
        ("a100", &no_uvm, "", "cuInit", 999, 13, "nvidia-uvm is not"),
        ("a100", &no_uvm, "", "cuInit", 34, 10, "link-time stub"),
    ];
    each(&cases, |(profile, dev, flag, call, code, exit, words)| {
        let fault = json!({"call": call, "code": code});
        let devices = json!({"devices": [{"profile": profile}], "faults": [fault]});
        let flags: Vec<_> = flag.split_whitespace().collect();
        let (found, report) = run(&devices, dev, 0, &flags);
        let message = report
            .failure
            .map(|failure| failure.message)
            .unwrap_or_default();
        if found == *exit && message.contains(words) {
            return Ok(());
        }
        Err(format!(
            "{profile} {flag} {call} {code}: {found}, {message:?}"
        ))
    });
}

#[test]
fn a_code_that_is_worth_a_second_process_and_does_not_come_back_blames_nobody() {
    let cases: Vec<_> = CODES
        .iter()
        .filter(|(.., attempts, _)| *attempts == 2)
        .collect();
    assert_eq!(cases.len(), 17);
    each(&cases, |(code, ..)| {
        let once = folder("once").join("struck");
        let fault = json!({"call": "cuMemGetInfo_v2", "code": code, "once": once});
        let devices = json!({"devices": [{"profile": "a100"}], "faults": [fault]});
        let (exit, report) = run(&devices, &DEV, 0, &[]);
        let reasons: Vec<_> = report
            .warnings
            .iter()
            .map(|warning| &warning.reason)
            .collect();
        if exit == 0 && report.attempts == 2 && reasons == ["PassedOnRetry"] {
            Ok(())
        } else {
            Err(format!("{code}: {exit}, {report:?}"))
        }
    });
}
