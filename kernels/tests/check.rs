//! `cuda-smoke check` on devices that are well, and on all that can be wrong with them.

mod common;

use std::time::Instant;

use common::{check, driver, faulty, folder, read, side_by_side, smoke, waited, without_driver};
use gate_report::{Class, Outcome, Step};
use serde_json::{Value, json};

#[test]
fn row_25_without_a_driver_it_says_so() {
    let output = without_driver().arg("check").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(10), "{text}");
    assert!(
        text.contains("libcuda.so.1") && text.contains("no NVIDIA driver") && text.contains("R525"),
        "{text}"
    );
    // And how to get one, on a host and in a container.
    for way in ["Debian: nvidia-driver", "ubuntu-drivers", "--gpus all"] {
        assert!(text.contains(way), "{text}");
    }
}

#[test]
fn row_19_the_report_says_what_nvidia_smi_would() {
    let devices = json!({"cudaVersion": "13.0", "devices": [
        {"profile": "a100", "uuid": "GPU-6d3c8a4e-3a5e-4a6c-9a51-3f6a0d1b2c3d"},
        {"profile": "rtx2060-wddm"},
    ]});
    let (code, report) = check(&devices, &[]);
    assert_eq!(
        (code, report.outcome),
        (0, Outcome::Passed),
        "{:?}",
        report.failure
    );
    let driver = report.driver.unwrap();
    assert_eq!(driver.cuda_version.as_deref(), Some("13.0"));
    assert!(driver.library.unwrap().ends_with("libcuda.so.1"));
    let [a100, rtx] = report.devices.as_slice() else {
        panic!("{:?}", report.devices)
    };
    assert_eq!(a100.uuid, "GPU-6d3c8a4e-3a5e-4a6c-9a51-3f6a0d1b2c3d");
    assert_eq!(
        (a100.name.as_str(), a100.compute_capability.as_str()),
        ("NVIDIA A100-SXM4-40GB", "8.0")
    );
    assert!(a100.concurrent_managed_access && !rtx.concurrent_managed_access);
    assert!(a100.memory_bytes > 30 << 30);
    for device in [a100, rtx] {
        assert!(
            device.steps.iter().any(|step| step.step == Step::Launch),
            "{:?}",
            device.steps
        );
    }
}

#[test]
fn row_5_the_devices_own_compute_capability_counts() {
    for (capability, minimum, code) in [
        ("6.1", "7.0", 14),
        ("7.0", "7.0", 0),
        ("7.5", "8.0", 14),
        ("8.0", "8.0", 0),
        ("9.0", "8.0", 0),
        ("12.0", "9.0", 0),
    ] {
        let devices = json!({"devices": [{"profile": "a100", "computeCapability": capability}]});
        let (found, report) = check(&devices, &["--min-compute-capability", minimum]);
        assert_eq!(
            found, code,
            "{capability} for {minimum}: {:?}",
            report.failure
        );
        if let Some(failure) = report.failure {
            assert_eq!(
                (failure.class, failure.device),
                (Class::Unsupported, Some(0))
            );
            assert!(
                failure.message.contains(capability) && failure.message.contains(minimum),
                "{}",
                failure.message
            );
        }
    }
}

#[test]
fn an_old_driver_and_the_wrong_number_of_devices_are_told() {
    let one = json!({"cudaVersion": "12.1", "devices": [{"profile": "t4"}]});
    let two = json!({"devices": [{"profile": "t4", "count": 2}]});
    let wddm = json!({"devices": [{"profile": "rtx2060-wddm"}]});
    for (devices, arguments, code, name) in [
        (&one, ["--min-cuda-version", "12.4"], 10, "CudaVersion"),
        (&one, ["--expected-devices", "2"], 13, "TooFewDevices"),
        (&two, ["--expected-devices", "1"], 10, "TooManyDevices"),
        (&wddm, ["--managed-memory", "Require"], 14, "ManagedMemory"),
    ] {
        let (found, report) = check(devices, &arguments);
        let failure = report.failure.unwrap();
        assert_eq!(
            (found, failure.code_name.as_str()),
            (code, name),
            "{}",
            failure.message
        );
    }
}

/// Calls that the test makes, and a code for each that such a call gives: class, exit code, words of its own.
const CODES: &[(&str, i32, u8, &str)] = &[
    ("cuInit", 34, 10, "stub"),
    ("cuInit", 802, 11, "fabric manager"),
    ("cuInit", 803, 13, ""),
    ("cuInit", 804, 10, ""),
    ("cuInit", 999, 13, ""),
    ("cuDriverGetVersion", 999, 13, ""),
    ("cuDeviceGetCount", 3, 13, "did not come up"),
    ("cuDeviceGet", 101, 10, "stale"),
    ("cuDeviceGetName", 101, 10, "stale"),
    ("cuDeviceGetAttribute", 101, 10, "stale"),
    ("cuDevicePrimaryCtxRetain", 46, 11, "busy"),
    ("cuDevicePrimaryCtxRetain", 2, 13, "memory"),
    ("cuCtxSetCurrent", 999, 13, ""),
    (
        "cuModuleLoadDataEx",
        209,
        14,
        "older than compute capability 7.0",
    ),
    ("cuModuleLoadDataEx", 218, 14, "PTX"),
    ("cuModuleLoadDataEx", 221, 10, "libnvidia-ptxjitcompiler"),
    ("cuModuleLoadDataEx", 222, 10, "older than our kernel's PTX"),
    ("cuModuleLoadDataEx", 223, 10, "switched off"),
    ("cuModuleGetFunction", 500, 70, "does not have"),
    ("cuMemAlloc_v2", 2, 13, "memory"),
    ("cuMemcpyHtoD_v2", 214, 12, "ECC"),
    ("cuLaunchKernel", 719, 12, ""),
    ("cuStreamSynchronize", 700, 12, "wrong address"),
    ("cuStreamSynchronize", 702, 12, "time limit"),
    ("cuMemcpyDtoH_v2", 719, 12, ""),
    (
        "cuMemcpyDtoH_v2",
        12345,
        17,
        "not one of those that we know",
    ),
];

#[test]
fn row_20_every_code_has_its_class_and_its_sentence() {
    for (call, code, exit, words) in CODES {
        let (found, report) = check(
            &faulty(json!({"call": call, "code": code})),
            &["--wait", "0"],
        );
        let failure = report
            .failure
            .unwrap_or_else(|| panic!("{call} returned {code}, and the test passed"));
        assert_eq!(found, i32::from(*exit), "{call} {code}: {failure:?}");
        assert_eq!(failure.class.exit_code(), *exit, "{call} {code}");
        assert_eq!(failure.code, Some(*code), "{call}: {failure:?}");
        assert!(failure.call.as_deref() == Some(call), "{call}: {failure:?}");
        assert!(
            failure.message.contains(words) && !failure.advice.is_empty(),
            "{call} {code}: {failure:?}"
        );
    }
}

#[test]
fn an_error_after_the_launch_that_does_not_come_back_blames_nobody() {
    let once = folder("once").join("struck");
    let (code, report) = check(
        &faulty(json!({"call": "cuStreamSynchronize", "code": 719, "once": once})),
        &[],
    );
    assert_eq!((code, report.attempts), (0, 2), "{:?}", report.failure);
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.reason == "PassedOnRetry"),
        "{:?}",
        report.warnings
    );
}

#[test]
fn a_wrong_result_is_the_devices_fault() {
    for fault in [
        json!({"kernel": "vector_add", "nth": 1000, "flipBit": 0, "device": 1}),
        json!({"kernel": "vector_add", "nth": 0, "moveBytes": -4, "device": 1}),
    ] {
        let devices = json!({"devices": [{"profile": "a100", "count": 3}], "storeFaults": [fault]});
        let (code, report) = check(&devices, &[]);
        let failure = report.failure.unwrap();
        assert_eq!(
            (code, failure.code_name.as_str(), failure.device),
            (12, "WrongResult", Some(1)),
            "{}",
            failure.message
        );
        assert_eq!(failure.uuid.as_ref(), Some(&report.devices[1].uuid));
    }
}

#[test]
fn memory_that_forgets_and_tensor_cores_that_err_are_the_devices_fault() {
    for (fault, name, step) in [
        (
            json!({"kernel": "memory_fill", "nth": 5000, "flipBit": 7, "device": 1}),
            "BadMemory",
            Step::MemoryWalk,
        ),
        (
            json!({"kernel": "memory_check", "nth": 0, "flipBit": 0, "device": 1}),
            "BadMemory",
            Step::MemoryWalk,
        ),
        (
            json!({"kernel": "tensor_multiply", "nth": 300, "flipBit": 22, "device": 1}),
            "WrongResult",
            Step::TensorCores,
        ),
    ] {
        let devices = json!({"devices": [{"profile": "l4", "count": 2}], "storeFaults": [fault]});
        let (code, report) = check(&devices, &[]);
        let failure = report.failure.unwrap();
        assert_eq!(
            (
                code,
                failure.code_name.as_str(),
                failure.step,
                failure.device
            ),
            (12, name, step, Some(1)),
            "{}",
            failure.message
        );
    }
}

#[test]
fn copies_are_judged_only_by_a_floor_that_was_set() {
    let one = json!({"devices": [{"profile": "h100"}]});
    let (code, report) = check(&one, &[]);
    assert_eq!(code, 0);
    assert!(report.devices[0].host_to_device_gib_per_second.unwrap() > 0.0);
    assert!(report.devices[0].device_to_host_gib_per_second.unwrap() > 0.0);
    let (code, report) = check(&one, &["--min-copy-gib-per-second", "1000000"]);
    let failure = report.failure.unwrap();
    assert_eq!(
        (code, failure.code_name.as_str(), report.attempts),
        (12, "SlowCopy", 2),
        "{}",
        failure.message
    );
}

#[test]
fn a_shared_gpu_or_a_slice_is_neither_filled_nor_timed() {
    let full = json!({"call": "cuMemAlloc_v2", "nth": 4, "code": 2});
    for (profile, arguments) in [("mig-1g", &[][..]), ("t4", &["--shared"][..])] {
        let devices = json!({"devices": [{"profile": profile}]});
        let (code, report) = check(&devices, arguments);
        let device = &report.devices[0];
        assert_eq!(code, 0, "{profile}");
        assert!(device.memory_walk_bytes.unwrap() <= 1 << 20, "{profile}");
        assert_eq!(device.host_to_device_gib_per_second, None, "{profile}");
        let devices = json!({"devices": [{"profile": profile}], "faults": [full]});
        let (code, report) = check(&devices, arguments);
        assert_eq!(code, 0, "{profile}: {:?}", report.failure);
        assert!(
            report
                .warnings
                .iter()
                .any(|warning| warning.reason == "MemoryWalkSkipped"),
            "{profile}: {:?}",
            report.warnings
        );
    }
}

#[test]
fn every_generation_of_gpus_has_its_verdict() {
    for (profile, code) in [
        ("p100", 14),
        ("v100", 0),
        ("t4", 0),
        ("rtx2060", 0),
        ("rtx2060-wddm", 0),
        ("a100", 0),
        ("mig-1g", 0),
        ("l4", 0),
        ("h100", 0),
        ("b200", 0),
        ("rtx5090", 0),
    ] {
        let (found, report) = check(&json!({"devices": [{"profile": profile}]}), &[]);
        assert_eq!(found, code, "{profile}: {:?}", report.failure);
        let ran = |step| report.devices[0].steps.iter().any(|ran| ran.step == step);
        if code == 0 {
            assert!(
                ran(Step::MemoryWalk) && ran(Step::TensorCores),
                "{profile}: {:?}",
                report.devices[0].steps
            );
            assert_eq!(
                ran(Step::ManagedMemory),
                profile != "rtx2060-wddm",
                "{profile}"
            );
            assert_eq!(
                report.devices[0].uuid.starts_with("MIG-"),
                profile == "mig-1g"
            );
        }
    }
}

#[test]
fn start_up_and_test_are_given_their_own_time() {
    let slow = json!({"call": "cuInit", "delayMs": 6000});
    let hang = |call| json!({"call": call, "hang": true});
    let at_start = (13, "Hang", Step::Init);
    let at_test = (12, "Hang", Step::Synchronize);
    let cases = [
        (slow, "--test-timeout", None),
        (hang("cuInit"), "--startup-timeout", Some(at_start)),
        (hang("cuStreamSynchronize"), "--test-timeout", Some(at_test)),
    ];
    side_by_side(cases, |(fault, limit, expected)| {
        let started = Instant::now();
        let arguments = [limit, "5", "--memory-walk-mib", "0"];
        let (code, report) = check(&faulty(fault), &arguments);
        let Some(expected) = expected else {
            assert_eq!(code, 0, "{:?}", report.failure);
            return;
        };
        let failure = report.failure.unwrap();
        assert_eq!((code, failure.code_name.as_str(), failure.step), expected);
        let most = started.elapsed().as_secs() + 1;
        assert!((5..=most).contains(&waited(&failure)), "{failure:?}");
    });
}

#[test]
fn what_kills_or_stops_the_test_does_not_stop_the_report() {
    let cases = [
        (json!({"call": "cuInit", "hang": true}), 13, "Hang"),
        (
            json!({"call": "cuStreamSynchronize", "hang": true}),
            12,
            "Hang",
        ),
        (
            json!({"call": "cuModuleLoadDataEx", "crash": "segv"}),
            13,
            "Crash",
        ),
        (
            json!({"call": "cuLaunchKernel", "crash": "abort"}),
            13,
            "Crash",
        ),
        (json!({"call": "cuInit", "exit": 0}), 13, "UnexpectedExit"),
    ];
    side_by_side(cases, |(fault, code, name)| {
        let (found, report) = check(&faulty(fault.clone()), &["--timeout", "5"]);
        let failure = report.failure.unwrap();
        assert_eq!(
            (found, failure.code_name.as_str()),
            (code, name),
            "{fault}: {}",
            failure.message
        );
    });
}

#[test]
fn a_library_that_is_cut_or_lacks_a_function_is_told() {
    let whole = std::fs::read(driver()).unwrap();
    // The loader itself dies of one that ends within what it maps.
    for (length, code, name) in [
        (0, 10, "BrokenDriver"),
        (40, 10, "BrokenDriver"),
        (100_000, 13, "Crash"),
    ] {
        let folder = folder("cut");
        std::fs::write(folder.join("libcuda.so.1"), &whole[..length]).unwrap();
        let output = without_driver()
            .env("LD_LIBRARY_PATH", &folder)
            .args(["check", "--json"])
            .output()
            .unwrap();
        let (found, report) = read(&output);
        let failure = report.failure.unwrap();
        assert_eq!(
            (found, failure.code_name.as_str()),
            (code, name),
            "{}",
            failure.message
        );
    }
    let folder = folder("symbol");
    std::fs::write(
        folder.join("libcuda.so.1"),
        cuda::without_symbol(&whole, "cuLaunchKernel").unwrap(),
    )
    .unwrap();
    let output = without_driver()
        .env("LD_LIBRARY_PATH", &folder)
        .args(["check", "--json"])
        .output()
        .unwrap();
    let (code, report) = read(&output);
    let failure = report.failure.unwrap();
    assert_eq!(
        (code, failure.code_name.as_str()),
        (10, "MissingSymbol"),
        "{}",
        failure.message
    );
    assert!(
        failure.message.contains("cuLaunchKernel"),
        "{}",
        failure.message
    );
}

#[test]
fn no_device_is_told_apart_from_no_driver() {
    let (code, report) = check(&json!({"devices": []}), &[]);
    let failure = report.failure.unwrap();
    assert_eq!(
        (failure.code, failure.code_name.as_str()),
        (Some(100), "CUDA_ERROR_NO_DEVICE")
    );
    assert_eq!(
        code, 10,
        "without device files it is the pod's: {}",
        failure.message
    );
}

#[test]
fn a_summary_of_many_failing_devices_fits_the_termination_message() {
    let devices: Value = json!({
        "devices": [{"profile": "h100", "count": 16}],
        "faults": [{"call": "cuMemcpyDtoH_v2", "code": 719, "device": 15}],
    });
    let (_, report) = check(&devices, &[]);
    let summary = report.summary();
    assert!(summary.len() <= 4096, "{} bytes", summary.len());
    let read: gate_report::Report = serde_json::from_str(&summary).unwrap();
    assert_eq!(read.failure.unwrap().device, Some(15));
}

#[test]
fn a_wrong_command_line_is_explained() {
    let output = smoke(&json!({}))
        .args(["check", "--min-compute-capability", "seven"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("two numbers with a dot"));
}
