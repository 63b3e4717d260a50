//! What the driver's management library says: each row of its table, and a library that is old, broken, slow or dead.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, with their helpers"
)]

mod common;

use std::time::{Duration, Instant};

use common::{check, driver, folder, read, without_driver};
use gate_report::{Class, DeviceHealth, Report, SYMPTOMS, Step, Verdict};
use serde_json::{Value, json};

/// Two devices of which the second has this health. CUDA finds nothing wrong with them.
fn second(health: &Value) -> Value {
    json!({"devices": [{"profile": "h100"}, {"profile": "h100", "health": health}]})
}

/// Without the test's longer parts.
const SHORT: &[&str] = &["--memory-walk-mib", "0"];

fn of(report: &Report, index: usize) -> &DeviceHealth {
    let health = report.health.as_ref().unwrap();
    let uuid = &report.devices[index].uuid;
    let found = health.devices.iter().find(|one| one.uuid == *uuid);
    found.unwrap_or_else(|| panic!("no health of {uuid}: {health:?}"))
}

fn reasons(report: &Report) -> Vec<&str> {
    let warnings = report.warnings.iter();
    warnings.map(|warning| warning.reason.as_str()).collect()
}

#[test]
fn a_healthy_device_is_told_and_what_is_not_supported_is_not_there() {
    let (code, report) = check(&second(&json!({"links": [18, 18], "pcie": null})), SHORT);
    assert_eq!(code, 0, "{:?}", report.failure);
    assert_eq!(reasons(&report), [""; 0]);
    let health = report.health.as_ref().unwrap();
    assert!(
        health
            .library
            .as_ref()
            .unwrap()
            .ends_with("libnvidia-ml.so.1")
    );
    assert_eq!(health.devices.len(), 2);
    let expected = DeviceHealth {
        uuid: report.devices[1].uuid.clone(),
        recovery_action: Some(0),
        remap_pending: Some(false),
        remap_failed: Some(false),
        uncorrected_ecc_errors: Some(0),
        sram_threshold_exceeded: Some(false),
        nv_links: Some(18),
        nv_links_up: Some(18),
        clock_reasons: Some(0),
        ..DeviceHealth::default()
    };
    assert_eq!(of(&report, 1), &expected);
    let nothing = json!({"recoveryAction": null, "remapPending": null, "remapFailed": null, "eccErrors": null,
        "sramThreshold": null, "clockReasons": null, "pcie": null});
    let (_, report) = check(&second(&nothing), SHORT);
    let expected = DeviceHealth {
        uuid: report.devices[1].uuid.clone(),
        ..DeviceHealth::default()
    };
    assert_eq!(of(&report, 1), &expected);
}

/// Name, health of the second device, and the exit code; 0 is a warning.
fn rows() -> Vec<(&'static str, Value, i32)> {
    vec![
        ("NeedsReboot", json!({"recoveryAction": 2}), 13),
        ("NeedsReboot", json!({"recoveryAction": 7}), 13),
        ("NeedsReset", json!({"recoveryAction": 1}), 12),
        ("NeedsReset", json!({"recoveryAction": 4}), 12),
        ("NeedsReset", json!({"recoveryAction": 6}), 12),
        ("NeedsDrain", json!({"recoveryAction": 3}), 12),
        ("NeedsRecovery", json!({"recoveryAction": 8}), 12),
        ("NeedsRecovery", json!({"recoveryAction": 99}), 12),
        ("RemapFailed", json!({"remapFailed": true}), 12),
        ("SramThreshold", json!({"sramThreshold": true}), 12),
        ("FabricFailed", json!({"fabric": [3, 999, 0]}), 13),
        ("FabricFailed", json!({"fabric": [3, 0, 2]}), 13),
        ("FabricFailed", json!({"recoveryAction": 5}), 13),
        // Status and health mean nothing yet.
        ("FabricNotReady", json!({"fabric": [1, 999, 2]}), 11),
        ("FabricNotReady", json!({"fabric": [2, 0, 0]}), 11),
        ("FabricLimited", json!({"fabric": [3, 0, 3]}), 0),
        ("RemapPending", json!({"remapPending": true}), 0),
        ("UncorrectedEcc", json!({"eccErrors": 5_000_000_000_u64}), 0),
        ("MigPending", json!({"mig": [false, true]}), 0),
        ("Throttled", json!({"clockReasons": 0x40}), 0),
        ("NarrowPcie", json!({"pcie": [8, 16]}), 0),
        ("Xid", json!({"xids": [94]}), 0),
    ]
}

#[test]
fn each_row_of_the_table_has_its_verdict() {
    for (name, health, expected) in rows() {
        let (code, report) = check(&second(&health), SHORT);
        assert_eq!(code, expected, "{name}: {:?}", report.failure);
        if code == 0 {
            assert_eq!(reasons(&report), [name], "{health}");
            assert_eq!(report.warnings[0].device, Some(1), "{name}");
            continue;
        }
        let failure = report.failure.unwrap();
        assert_eq!(
            (failure.code_name.as_str(), failure.step, failure.device),
            (name, Step::Health, Some(1)),
            "{failure:?}"
        );
        assert_eq!(failure.uuid.as_ref(), Some(&report.devices[1].uuid));
        assert!(failure.message.starts_with("NVML: "), "{failure:?}");
    }
    let tested: Vec<_> = rows().iter().map(|(name, ..)| *name).collect();
    let all = SYMPTOMS.iter().map(|symptom| symptom.name);
    let left: Vec<_> = all.filter(|name| !tested.contains(name)).collect();
    // These two compare devices, and are below.
    assert_eq!(left, ["NvLinkDown", "NvLinkDown"]);
}

#[test]
fn each_recovery_action_has_its_own_words() {
    for (action, what, advice) in [
        (1, "is 1: reset the GPU", "nvidia-smi -r"),
        (2, "is 2: restart the node", "restart it"),
        (3, "is 3: drain peer traffic", "no program uses peer access"),
        (4, "is 4: drain and reset the GPU", "nvidia-smi -r"),
        (5, "is 5: recover the IMEX domain", "IMEX"),
        (6, "is 6: reset the bus", "nvidia-smi -r"),
        (7, "is 7: restart the node", "restart it"),
        (
            8,
            "this version does not know which",
            "NVIDIA's documentation",
        ),
    ] {
        let (_, report) = check(&second(&json!({"recoveryAction": action})), SHORT);
        let failure = report.failure.unwrap();
        assert!(failure.message.contains(what), "{}", failure.message);
        assert!(failure.advice.contains(advice), "{}", failure.advice);
        let says_reset = failure.message.contains("only a reset");
        assert_eq!(says_reset, [1, 4, 6].contains(&action), "{failure:?}");
    }
}

#[test]
fn links_are_compared_with_a_gpu_of_the_same_kind() {
    let pair = |other: &str, fabric: Value| {
        json!({"devices": [
            {"profile": other, "health": {"links": [18, 18], "fabric": fabric}},
            {"profile": "h100", "health": {"links": [18, 17], "fabric": fabric}},
        ]})
    };
    let (code, report) = check(&pair("h100", json!([3, 0, 1])), SHORT);
    assert_eq!(
        (code, report.failure.unwrap().code_name.as_str()),
        (12, "NvLinkDown")
    );
    // Without a fabric bridges may differ, and another kind of GPU may have more.
    let (code, report) = check(&pair("h100", json!(null)), SHORT);
    assert_eq!((code, reasons(&report)), (0, vec!["NvLinkDown"]));
    let (code, report) = check(&pair("a100", json!([3, 0, 1])), SHORT);
    assert_eq!((code, reasons(&report)), (0, vec![]));
}

#[test]
fn a_fabric_in_progress_is_waited_for_and_one_device_needs_none() {
    let after = json!({"fabric": [2, 0, 1], "fabricAfter": 3});
    let (code, report) = check(&second(&after), SHORT);
    assert_eq!(code, 0, "{:?}", report.failure);
    assert_eq!(of(&report, 1).fabric.as_ref().unwrap().state, 3);
    let alone = json!({"devices": [{"profile": "h100", "health": {"fabric": [1, 0, 0]}}]});
    let (code, report) = check(&alone, SHORT);
    assert_eq!((code, reasons(&report)), (0, vec!["FabricNotReady"]));
}

#[test]
fn a_failure_of_cuda_stays_and_nvml_names_the_cause_beside_it() {
    let health = json!({"xids": [48, 79], "recoveryAction": 1});
    let mut devices = json!({"devices": [{"profile": "a100", "health": health}]});
    devices["faults"] = json!([{"call": "cuMemcpyHtoD_v2", "code": 214}]);
    let (code, report) = check(&devices, SHORT);
    let failure = report.failure.unwrap();
    assert_eq!((code, failure.code), (12, Some(214)));
    for words in [
        "XID 48 (double-bit",
        "XID 79 (the GPU has fallen",
        "recovery action is 1",
    ] {
        assert!(failure.message.contains(words), "{}", failure.message);
    }
    // Before CUDA has named a device, all that NVML shows are asked.
    devices["faults"] = json!([{"call": "cuInit", "code": 803}]);
    let (code, report) = check(&devices, SHORT);
    let failure = report.failure.unwrap();
    assert_eq!((code, failure.code), (13, Some(803)));
    assert!(failure.message.contains("XID 79"), "{}", failure.message);
    assert_eq!(report.health.unwrap().devices.len(), 1);
}

#[test]
fn what_cuda_blames_nobody_for_has_nvmls_verdict() {
    let reset = json!({"recoveryAction": 1});
    for (call, code, step) in [
        ("cuDevicePrimaryCtxRetain", 46, Step::Context),
        ("cuDevicePrimaryCtxRetain", 4711, Step::Context),
        // CUDA has named no device yet.
        ("cuInit", 802, Step::Init),
    ] {
        // Given a GPU that needs a reset, which CUDA calls busy or something that nobody knows
        let devices = json!({
            "devices": [{"profile": "a100", "health": reset}],
            "faults": [{"call": call, "code": code}],
        });
        // When
        let (exit, report) = check(&devices, &[SHORT, &["--wait", "0"]].concat());
        // Then the verdict is NVML's, and what CUDA said stays
        let failure = report.failure.as_ref().unwrap();
        assert_eq!(
            (exit, failure.class, failure.code_name.as_str()),
            (12, Class::Device, "NeedsReset"),
            "{failure:?}"
        );
        assert_eq!(
            (failure.code, failure.call.as_deref(), failure.step),
            (Some(code), Some(call), step)
        );
        let uuid = &report.health.as_ref().unwrap().devices[0].uuid;
        assert_eq!(failure.uuid.as_ref(), Some(uuid), "{failure:?}");
        assert!(failure.advice.contains("nvidia-smi -r"), "{failure:?}");
        let said = format!("{call} returned {code} ");
        for words in [said.as_str(), "recovery action is 1", "only a reset"] {
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        assert_eq!(report.exit_code(), 12);
    }
}

#[test]
fn a_symptom_of_another_device_decides_nothing() {
    // Given two devices, of which the first is busy and the second needs a reset
    let mut devices = second(&json!({"recoveryAction": 1}));
    devices["faults"] = json!([{"call": "cuDevicePrimaryCtxRetain", "code": 46, "device": 0}]);
    // When
    let (exit, report) = check(&devices, &[SHORT, &["--wait", "0"]].concat());
    // Then
    let failure = report.failure.unwrap();
    assert_eq!(
        (exit, failure.class, failure.device, failure.code),
        (11, Class::Transient, Some(0), Some(46)),
        "{failure:?}"
    );
    assert_eq!(failure.code_name, "CUDA_ERROR_DEVICE_UNAVAILABLE");
    assert!(
        failure.message.contains("recovery action is 1"),
        "{}",
        failure.message
    );
}

#[test]
fn a_gpu_that_nvml_calls_lost_is_named_and_one_of_other_pods_is_not() {
    let fault = json!({"call": "nvmlDeviceGetFieldValues", "code": 16, "device": 0});
    let devices = json!({"devices": [{"profile": "a100"}], "faults": [fault]});
    let (code, report) = check(&devices, SHORT);
    assert_eq!(
        (code, report.failure.unwrap().code_name.as_str()),
        (12, "NeedsReset")
    );
    // NVML shows two, CUDA one of them.
    let output = common::smoke(&second(&json!({"remapFailed": true})))
        .env("CUDA_VISIBLE_DEVICES", "0")
        .args(["check", "--json"])
        .args(SHORT)
        .output()
        .unwrap();
    let (_, report) = read(&output);
    assert_eq!(report.health.as_ref().unwrap().devices.len(), 1);
    assert!(
        report
            .failure
            .is_none_or(|failure| failure.code_name != "RemapFailed")
    );
}

#[test]
fn of_a_slice_is_said_what_is_said_of_its_gpu() {
    let health = json!({"mig": [true, true], "remapFailed": true});
    let (code, report) = check(
        &json!({"devices": [{"profile": "mig-1g", "health": health}]}),
        SHORT,
    );
    assert!(report.devices[0].uuid.starts_with("MIG-"));
    assert_eq!(of(&report, 0).mig, Some(true));
    assert_eq!(
        (code, report.failure.unwrap().code_name.as_str()),
        (12, "RemapFailed")
    );
}

/// All that are called of a healthy device.
const CALLS: &[&str] = &[
    "nvmlEventSetCreate",
    "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetUUID",
    "nvmlDeviceRegisterEvents",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetSramEccErrorStatus",
    "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetCurrPcieLinkWidth",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlEventSetWait_v2",
];

#[test]
fn a_call_that_hangs_or_kills_costs_its_field_and_a_little_time() {
    for call in CALLS.iter().chain(&["nvmlInit_v2"]) {
        for (how, words) in [("hang", "did not come back"), ("crash", "died of signal")] {
            let fault =
                json!({"call": call, how: if how == "hang" { json!(true) } else { json!("segv") }});
            let devices = json!({"devices": [{"profile": "a100"}], "faults": [fault]});
            let started = Instant::now();
            let (code, report) = check(&devices, SHORT);
            assert_eq!(code, 0, "{call} {how}: {:?}", report.failure);
            let warnings: Vec<_> = report.warnings.iter().map(|one| &one.message).collect();
            let words = match (*call, how) {
                ("nvmlInit_v2", "hang") => "no answer in nvmlInit_v2",
                _ => words,
            };
            assert!(
                warnings
                    .iter()
                    .any(|text| text.contains(words) && text.contains(call)),
                "{call} {how}: {warnings:?}"
            );
            assert!(started.elapsed() < Duration::from_secs(30), "{call} {how}");
        }
    }
}

#[test]
fn one_field_lost_leaves_the_others() {
    let fault = json!({"call": "nvmlDeviceGetMigMode", "hang": true});
    let health = json!({"mig": [false, false], "remapFailed": true});
    let device = json!({"profile": "a100", "count": 3, "health": health});
    let devices = json!({"devices": [device], "faults": [fault]});
    let (_, report) = check(&devices, SHORT);
    assert_eq!(reasons(&report), ["HealthUnknown"], "it is asked once");
    let device = of(&report, 0);
    assert_eq!((device.mig, device.pcie_width), (None, Some(16)));
    assert_eq!(report.failure.unwrap().code_name, "RemapFailed");
}

#[test]
fn a_library_that_prints_without_an_end_of_line_hides_nothing() {
    // What is told of the device is the very next line.
    let fault = json!({"call": "nvmlEventSetWait_v2", "says": "{\"event\": oops"});
    let health = json!({"xids": [79]});
    let devices = json!({"devices": [{"profile": "h100", "health": health}], "faults": [fault]});
    let (_, report) = check(&devices, SHORT);
    assert_eq!(of(&report, 0).xids, [79]);
}

/// The driver's folder with this management library.
fn with_library(library: Option<&[u8]>) -> Report {
    let folder = folder("nvml");
    std::fs::copy(driver(), folder.join("libcuda.so.1")).unwrap();
    if let Some(library) = library {
        std::fs::write(folder.join("libnvidia-ml.so.1"), library).unwrap();
    }
    let output = without_driver()
        .env("LD_LIBRARY_PATH", &folder)
        .env(
            "SIMCUDA",
            json!({"devices": [{"health": {"fabric": [3, 0, 1]}}]}).to_string(),
        )
        .args(["check", "--json"])
        .args(SHORT)
        .output()
        .unwrap();
    let (code, report) = read(&output);
    assert_eq!(code, 0, "{:?}", report.failure);
    report
}

#[test]
fn a_library_that_is_absent_old_or_broken_fails_nothing() {
    let whole = std::fs::read(driver()).unwrap();
    let report = with_library(None);
    assert_eq!((report.health.as_ref(), reasons(&report)), (None, vec![]));
    for call in CALLS.iter().skip(5) {
        let report = with_library(Some(&cuda::without_symbol(&whole, call).unwrap()));
        assert_eq!(reasons(&report), [""; 0], "{call}");
        assert_eq!(report.health.unwrap().devices.len(), 1, "{call}");
    }
    let reasons_old =
        cuda::without_symbol(&whole, "nvmlDeviceGetCurrentClocksEventReasons").unwrap();
    let report = with_library(Some(&reasons_old));
    assert_eq!(of(&report, 0).clock_reasons, Some(0), "by its older name");
    let no_init = cuda::without_symbol(&whole, "nvmlInit_v2").unwrap();
    for library in [&whole[..0], &whole[..40], &whole[..100_000], &no_init] {
        let report = with_library(Some(library));
        assert_eq!(reasons(&report), ["HealthUnknown"], "{:?}", report.warnings);
        assert_eq!(report.health, None);
    }
}

#[test]
fn every_failing_row_has_a_finding_of_its_own() {
    for symptom in &SYMPTOMS {
        if let Verdict::Fails(found) = symptom.verdict {
            let fault = gate_report::finding(found, gate_report::Context::at(Step::Health));
            assert_eq!(fault.name, symptom.name);
        }
    }
}
