//! `cuda-smoke check` on what only shows with memory, load or several devices: memory that somebody else holds, cells
//! behind the cache, tensor cores under load, copies and kernels from one device to another.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests, with their helpers"
)]

mod common;

use std::fs::{self, File};
use std::process::Command;

use common::{Running, check, driver, failure, folder, read, without_driver};
use gate_report::{Class, Outcome, Step};
use serde_json::{Value, json};

fn healthy(profile: &str, count: u32) -> Value {
    json!({"devices": [{"profile": profile, "count": count}]})
}

#[test]
fn memory_that_somebody_else_holds_is_the_nodes_fault() {
    let taken = |profile: &str, free_mib: u64| json!({"devices": [{"profile": profile, "freeBytes": free_mib << 20}]});
    // 40 GiB, of which 90 % are 36,864 MiB.
    for (free, arguments, code) in [
        (1, &[][..], 13),
        (1_000, &[], 13),
        (36_863, &[], 13),
        (36_864, &[], 0),
        (1_000, &["--min-free-memory-percent", "2"], 0),
        (1_000, &["--min-free-memory-percent", "0"], 0),
        (1_000, &["--shared"], 0),
    ] {
        let (found, report) = check(&taken("a100", free), arguments);
        assert_eq!(found, code, "{free} {arguments:?}: {:?}", report.failure);
        assert_eq!(report.devices[0].free_memory_bytes, Some(free << 20));
        if code != 0 {
            let failure = failure(&report);
            assert_eq!(
                (failure.class, failure.code_name.as_str()),
                (Class::Node, "MemoryTaken")
            );
            assert_eq!((failure.step, failure.device), (Step::Context, Some(0)));
            for words in [
                &format!("{free} MiB of 40960 MiB"),
                "90 %",
                "outside of this pod",
                "no process that",
            ] {
                assert!(failure.message.contains(words), "{}", failure.message);
            }
        }
    }
    // Slices have less, and where host and device have one memory the host's programs hold much of it.
    for profile in ["mig-1g", "gh200", "gb200", "gb10"] {
        let (code, report) = check(&taken(profile, 1_000), &[]);
        assert_eq!(code, 0, "{profile}: {:?}", report.failure);
    }
}

#[test]
fn memory_that_is_let_go_in_a_moment_is_waited_for() {
    let devices = json!({"devices": [{"profile": "a100", "freeBytes": 1 << 30, "freedAt": 3}]});
    let (code, report) = check(&devices, &[]);
    assert_eq!(
        (code, report.outcome),
        (0, Outcome::Passed),
        "{:?}",
        report.failure
    );
    assert_eq!(report.devices[0].free_memory_bytes, Some(40 << 30));
}

#[test]
fn a_process_of_this_pod_that_holds_memory_is_named() {
    let dev = folder("dev");
    let device = dev.join("nvidia0");
    fs::write(&device, "").unwrap();
    // The file is open in that process alone.
    let hold = |file: File| Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
    let holder = Running(hold(File::open(&device).unwrap()));
    let devices = json!({"devices": [{"profile": "a100", "freeBytes": 1 << 30}]});
    let (_, report) = check(&devices, &["--dev-dir", dev.to_str().unwrap()]);
    let failure = failure(&report);
    let named = format!("process {} (sleep)", holder.0.id());
    assert!(failure.message.contains(&named), "{}", failure.message);
}

#[test]
fn a_cell_that_is_stuck_is_found_where_it_is() {
    // In the middle of what is walked through first.
    let cell =
        |device: u32| json!({"device": device, "offset": 7_200_000, "bit": 5, "value": true});
    let devices = |cell: Value| json!({"devices": [{"profile": "t4"}], "stuckCells": [cell]});
    let (code, report) = check(&devices(cell(0)), &[]);
    let failure = failure(&report);
    assert_eq!(
        (code, failure.code_name.as_str()),
        (12, "BadMemory"),
        "{}",
        failure.message
    );
    assert_eq!(failure.step, Step::MemoryWalk, "{}", failure.message);
    // The byte is the first of its word, so the bit is that of the word.
    assert!(
        failure.message.contains("0x00000020"),
        "{}",
        failure.message
    );
    let (code, report) = check(&devices(cell(1)), &[]);
    assert_eq!(code, 0, "another device's: {:?}", report.failure);
}

#[test]
fn the_report_has_the_memory_the_caches_and_the_pools_of_every_kind() {
    for (profile, l2_mib, integrated, host_page_tables) in [
        ("t4", 4, false, false),
        ("l4", 48, false, false),
        ("gh200", 50, false, true),
        ("gb200", 126, false, true),
        ("gb10", 24, true, true),
    ] {
        let (code, report) = check(&healthy(profile, 1), &[]);
        assert_eq!(code, 0, "{profile}: {:?}", report.failure);
        let device = &report.devices[0];
        assert_eq!(device.l2_cache_bytes, Some(l2_mib << 20), "{profile}");
        assert_eq!(device.integrated, Some(integrated), "{profile}");
        assert_eq!(device.host_page_tables, Some(host_page_tables), "{profile}");
        assert_eq!(device.memory_pools, Some(true), "{profile}");
    }
}

#[test]
fn the_report_has_the_machine() {
    let (_, report) = check(&healthy("gh200", 1), &[]);
    let host = report.host.unwrap();
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    assert_eq!(host.architecture, arch);
    assert!(host.page_size_bytes.is_power_of_two() && host.page_size_bytes >= 4096);
}

#[test]
fn memory_from_the_pool_is_tried_where_there_is_one() {
    // Without a pool nothing is asked of it, and one that is refused after all fails nothing.
    let none = json!({
        "devices": [{"profile": "a100", "memoryPools": false}],
        "faults": [{"call": "cuMemAllocAsync", "code": 719}],
    });
    let refused = json!({"devices": [{"profile": "a100"}], "faults": [{"call": "cuMemAllocAsync", "code": 801}]});
    for devices in [none, refused] {
        let (code, report) = check(&devices, &[]);
        assert_eq!(code, 0, "{:?}", report.failure);
        assert_eq!(report.devices[0].memory_pools, Some(false));
    }
    for (fault, code) in [
        (json!({"call": "cuMemAllocAsync", "code": 2}), 13),
        (json!({"call": "cuMemFreeAsync", "code": 214}), 12),
    ] {
        let devices = json!({"devices": [{"profile": "a100"}], "faults": [fault]});
        let (found, report) = check(&devices, &[]);
        assert_eq!(found, code, "{fault}: {:?}", report.failure);
    }
    // Each device's is tried.
    let second = json!({
        "devices": [{"profile": "a100", "count": 2}],
        "faults": [{"call": "cuMemFreeAsync", "code": 214, "device": 1}],
    });
    let (code, report) = check(&second, &[]);
    assert_eq!((code, failure(&report).device), (12, Some(1)));
}

#[test]
fn a_kernel_that_hangs_on_memory_from_the_pool_is_the_devices_fault() {
    // Given a device whose first kernel on such memory never ends: the fifth that is waited for
    let fault = json!({"call": "cuStreamSynchronize", "nth": 5, "hang": true});
    let devices = json!({"devices": [{"profile": "a100"}], "faults": [fault]});
    // When
    let (code, report) = check(&devices, &["--memory-walk-mib", "0", "--test-timeout", "5"]);
    // Then
    let failure = failure(&report);
    assert_eq!(
        (code, failure.class, failure.device, failure.step),
        (12, Class::Device, Some(0), Step::MemoryWalk),
        "{failure:?}"
    );
    assert_eq!(report.devices[0].memory_pools, Some(true));
}

#[test]
fn a_zero_of_either_sign_is_right() {
    let flip = |value: u32, bit: u32| {
        let fault = json!({"kernel": "tensor_multiply", "value": value, "flipBit": bit});
        check(
            &json!({"devices": [{"profile": "t4"}], "storeFaults": [fault]}),
            &[],
        )
    };
    let (code, report) = flip(0, 31);
    assert_eq!(code, 0, "{:?}", report.failure);
    // But not what is nearly zero, nor another number with the wrong sign.
    for (value, bit) in [(0, 0), (1.0_f32.to_bits(), 31)] {
        let (code, report) = flip(value, bit);
        let failure = failure(&report);
        assert_eq!(
            (code, failure.code_name.as_str(), failure.step),
            (12, "WrongResult", Step::TensorCores)
        );
    }
}

#[test]
fn every_tensor_core_of_every_multiprocessor_is_tried() {
    // 40 multiprocessors with eight warps of 256 words each: the last word of the last one.
    let last = 40 * 8 * 256 - 1;
    let fault = json!({"kernel": "tensor_multiply", "nth": last, "flipBit": 20});
    let (code, report) = check(
        &json!({"devices": [{"profile": "t4"}], "storeFaults": [fault]}),
        &[],
    );
    let failure = failure(&report);
    assert_eq!((code, failure.step), (12, Step::TensorCores));
    assert!(
        failure.message.contains(&format!("element {last}")),
        "{}",
        failure.message
    );
}

#[test]
fn a_tensor_core_that_errs_under_load_is_found() {
    let (code, report) = check(&healthy("t4", 1), &[]);
    assert_eq!(code, 0, "{:?}", report.failure);
    assert!(report.devices[0].tensor_load_ms.unwrap() > 0.0);
    // A shared GPU is not loaded.
    let (_, report) = check(&healthy("t4", 1), &["--shared"]);
    assert_eq!(report.devices[0].tensor_load_ms, None);

    // 40 multiprocessors with eight warps: the first launch has 320 products. In a round of the load each warp has five.
    let fault = json!({"kernel": "tensor_multiply", "nth": 1002, "flipBit": 13});
    let (code, report) = check(
        &json!({"devices": [{"profile": "t4"}], "productFaults": [fault]}),
        &[],
    );
    let failure = failure(&report);
    assert_eq!((code, failure.code_name.as_str()), (12, "WrongResult"));
    assert!(failure.message.contains("of load"), "{}", failure.message);
}

#[test]
fn hints_for_managed_memory_may_have_either_form_or_none() {
    let whole = fs::read(driver()).unwrap();
    let without = |names: &[&str], arguments: &[&str]| {
        let mut library = whole.clone();
        for name in names {
            library = cuda::without_symbol(&library, name).unwrap();
        }
        let folder = folder("hints");
        fs::write(folder.join("libcuda.so.1"), library).unwrap();
        let mut command = without_driver();
        command
            .env("LD_LIBRARY_PATH", &folder)
            .args(["check", "--json"])
            .args(arguments);
        read(&command.output().unwrap())
    };
    let first = ["cuMemAdvise", "cuMemPrefetchAsync"];
    let all = [
        "cuMemAdvise",
        "cuMemPrefetchAsync",
        "cuMemAdvise_v2",
        "cuMemPrefetchAsync_v2",
    ];
    for (names, skipped) in [
        (&first[..1], false),
        (&first[..], false),
        (&all[2..], false),
        (&all[..], true),
    ] {
        let (code, report) = without(names, &[]);
        assert_eq!(code, 0, "{names:?}: {:?}", report.failure);
        let warned = report
            .warnings
            .iter()
            .any(|warning| warning.reason == "ManagedMemorySkipped");
        assert_eq!(warned, skipped, "{names:?}: {:?}", report.warnings);
    }
    let (code, report) = without(&all, &["--managed-memory", "Require"]);
    assert_eq!(
        (code, failure(&report).code_name.as_str()),
        (14, "ManagedMemory")
    );

    // Nor does a driver need calls for peers and pools.
    let optional = [
        "cuMemAllocAsync",
        "cuMemFreeAsync",
        "cuDeviceCanAccessPeer",
        "cuCtxEnablePeerAccess",
        "cuMemcpyPeer",
    ];
    let (code, report) = without(&optional, &[]);
    assert_eq!(code, 0, "{:?}", report.failure);
}

#[test]
fn devices_that_reach_one_another_talk() {
    for (profile, count, pairs, with_access) in
        [("a100", 2, 2, 2), ("t4", 3, 6, 6), ("rtx5090", 2, 2, 0)]
    {
        let (code, report) = check(&healthy(profile, count), &[]);
        assert_eq!(code, 0, "{profile}: {:?}", report.failure);
        let peers = report.peers.unwrap();
        assert_eq!(
            (peers.pairs, peers.with_access),
            (pairs, with_access),
            "{profile}"
        );
        assert_eq!(
            (peers.copied_bytes >= 4096, peers.round_trips > 0),
            (with_access > 0, with_access > 0),
            "{profile}"
        );
        assert_eq!(report.warnings, [], "{profile}");
    }
    let (_, report) = check(&healthy("a100", 1), &[]);
    assert_eq!(report.peers, None);
    let (_, report) = check(&healthy("a100", 2), &["--shared"]);
    assert_eq!(report.peers, None);
}

#[test]
fn missing_access_is_told_and_fails_where_it_is_required() {
    let none = healthy("rtx5090", 2);
    let some = json!({"devices": [{"profile": "a100", "count": 3}], "peerFaults": [{"from": 1, "to": 2, "noAccess": true}]});
    let (code, report) = check(&some, &[]);
    assert_eq!(code, 0, "{:?}", report.failure);
    assert_eq!(report.peers.unwrap().with_access, 5);
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.reason == "PeerAccessMissing"
                && warning.message.contains("1 of 6"))
    );
    for devices in [none, some] {
        let (code, report) = check(&devices, &["--peer-access", "Require"]);
        let failure = failure(&report);
        assert_eq!(
            (code, failure.class, failure.code_name.as_str()),
            (14, Class::Unsupported, "NoPeerAccess")
        );
        assert_eq!(failure.step, Step::Peers);
    }
}

#[test]
fn a_device_that_alone_lacks_access_is_named() {
    // Given three devices, of which one reaches no other
    let faults = [(0, 1), (1, 0), (1, 2), (2, 1)]
        .map(|(from, to)| json!({"from": from, "to": to, "noAccess": true}));
    let devices = json!({"devices": [{"profile": "a100", "count": 3}], "peerFaults": faults});
    let words = "4 of 6 pairs of devices have no peer access";
    // When that is reported
    let (code, report) = check(&devices, &[]);
    // Then the warning names it
    let [warning] = &report.warnings[..] else {
        panic!("{:?}", report.warnings)
    };
    assert_eq!(
        (code, warning.reason.as_str(), warning.device),
        (0, "PeerAccessMissing", Some(1))
    );
    assert!(
        warning.message.contains(words) && warning.message.contains("device 1 is in all of them"),
        "{}",
        warning.message
    );
    // And where it is required, the failure does
    let (code, report) = check(&devices, &["--peer-access", "Require"]);
    let failure = failure(&report);
    assert_eq!(
        (code, failure.code_name.as_str(), failure.device),
        (14, "NoPeerAccess", Some(1))
    );
    assert_eq!(failure.uuid.as_ref(), Some(&report.devices[1].uuid));
}

#[test]
fn what_a_platform_refuses_of_peers_is_no_fault() {
    let refused = |call: &str, code: i32, required: &[&str]| {
        let fault = json!({"call": call, "code": code});
        let devices = json!({"devices": [{"profile": "t4", "count": 2}], "faults": [fault]});
        check(&devices, required)
    };
    for (call, code) in [
        ("cuDeviceCanAccessPeer", 801),
        ("cuCtxEnablePeerAccess", 800),
        ("cuCtxEnablePeerAccess", 101),
        ("cuMemcpyPeer", 801),
    ] {
        // Given a platform that refuses a call
        let (exit, report) = refused(call, code, &[]);
        // Then its devices have no access, which is told
        assert_eq!(exit, 0, "{call} {code}: {:?}", report.failure);
        assert_eq!(report.peers.unwrap().with_access, 0, "{call} {code}");
        let [warning] = &report.warnings[..] else {
            panic!("{call} {code}: {:?}", report.warnings)
        };
        assert_eq!(warning.reason, "PeerAccessMissing");
        let said = format!("{call} returned {code} ");
        for words in [said.as_str(), "that is no defect"] {
            assert!(warning.message.contains(words), "{}", warning.message);
        }
        // And fails where it is required
        let (exit, report) = refused(call, code, &["--peer-access", "Require"]);
        let failure = failure(&report);
        assert_eq!(
            (exit, failure.class, failure.code_name.as_str()),
            (14, Class::Unsupported, "NoPeerAccess"),
            "{call} {code}"
        );
        assert!(failure.message.contains(&said), "{}", failure.message);
    }
}

#[test]
fn access_that_is_there_already_is_used_and_refused_access_is_none() {
    let enabling_returns = |code: i32| {
        let fault = json!({"call": "cuCtxEnablePeerAccess", "code": code});
        check(
            &json!({"devices": [{"profile": "t4", "count": 2}], "faults": [fault]}),
            &[],
        )
    };
    // Given devices of which the driver says only now that they have no access, or too many peers
    for code in [217, 711] {
        // When
        let (exit, report) = enabling_returns(code);
        // Then they do without
        assert_eq!(exit, 0, "{code}: {:?}", report.failure);
        assert_eq!(report.peers.unwrap().with_access, 0, "{code}");
        assert_eq!(report.warnings, [], "{code}");
    }
    // Given access that is there already, by the fault's word alone
    let (_, report) = enabling_returns(704);
    // Then it counts, and kernels use it, which the simulated driver does not let them
    let failure = failure(&report);
    assert_eq!(
        (failure.step, failure.code),
        (Step::Peers, Some(700)),
        "{failure:?}"
    );
    assert_eq!(report.peers.as_ref().unwrap().with_access, 2);
}

#[test]
fn what_arrives_changed_or_not_at_all_is_a_pairs_fault() {
    for (fault, name, words) in [
        (
            json!({"from": 1, "to": 0, "flipBit": 3200}),
            "PeerCopy",
            "first is word 100",
        ),
        (
            json!({"from": 1, "to": 0, "loseCopies": true}),
            "PeerCopy",
            "first is word 0",
        ),
        // Copies pass, and every collective would hang.
        (
            json!({"from": 1, "to": 0, "loseStores": true}),
            "PeerHang",
            "round 0 of 64",
        ),
    ] {
        let devices = json!({"devices": [{"profile": "t4", "count": 2}], "peerFaults": [fault]});
        let (code, report) = check(&devices, &[]);
        let attempts = report.attempts;
        let uuid = report.devices[1].uuid.clone();
        let failure = failure(&report);
        assert_eq!(
            (code, failure.code_name.as_str(), attempts),
            (13, name, 2),
            "{fault}: {}",
            failure.message
        );
        // Two devices: which of them it is nobody can say.
        assert_eq!(
            (failure.step, failure.device),
            (Step::Peers, None),
            "{fault}"
        );
        let from = format!("device 1 ({uuid}) to device 0");
        assert!(
            failure.message.contains(words) && failure.message.contains(&from),
            "{}",
            failure.message
        );
    }
}

#[test]
fn the_device_in_all_bad_pairs_is_the_suspect() {
    let faults: Vec<_> = [(2, 0), (2, 1), (0, 2)]
        .map(|(from, to)| json!({"from": from, "to": to, "flipBit": 7}))
        .into();
    let devices = json!({"devices": [{"profile": "t4", "count": 3}], "peerFaults": faults});
    let (code, report) = check(&devices, &[]);
    let uuid = report.devices[2].uuid.clone();
    let failure = failure(&report);
    assert_eq!(
        (code, failure.device, failure.uuid.clone()),
        (13, Some(2), Some(uuid)),
        "{}",
        failure.message
    );
    assert!(
        failure
            .message
            .contains("3 of 6 pairs are bad, and device 2 is in all of them"),
        "{}",
        failure.message
    );
}

#[test]
fn a_pairs_fault_that_does_not_come_back_blames_nobody() {
    let once = folder("peer-once").join("struck");
    let devices = json!({
        "devices": [{"profile": "t4", "count": 2}],
        "faults": [{"call": "cuMemcpyPeer", "code": 719, "once": once}],
    });
    let (code, report) = check(&devices, &[]);
    assert_eq!((code, report.attempts), (0, 2), "{:?}", report.failure);
    assert_eq!(report.peers.unwrap().with_access, 2);
}
