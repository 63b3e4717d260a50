//! What a report must show: a good one, changed in one way each.

use gate_report::preflight::{Check, CheckOutcome, Preflight, PreflightFinding};
use gate_report::{Device, Driver, Outcome, Peers, Report, SCHEMA, Version};

use crate::registrar::{Decision, Policy, admit};

pub(super) fn policy() -> Policy {
    Policy {
        devices: Some(2),
        min_compute_capability: Version::new(7, 0),
        min_cuda_version: Version::new(12, 0),
        require_managed_memory: true,
        require_peer_access: true,
        require_preflight: true,
        pod: "pool-a".to_owned(),
        node: Some("node-a".to_owned()),
    }
}

fn finding(outcome: CheckOutcome) -> PreflightFinding {
    PreflightFinding {
        outcome,
        ..PreflightFinding::failed(Check::Command, "cc", "no cc".to_owned(), "Install it.")
    }
}

pub(super) fn report() -> Report {
    let device = Device {
        compute_capability: "7.0".to_owned(),
        concurrent_managed_access: true,
        ..Device::default()
    };
    let warning = finding(CheckOutcome::Warning);
    Report {
        schema: SCHEMA.to_owned(),
        outcome: Outcome::Passed,
        pod: Some("pool-a".to_owned()),
        node: Some("node-a".to_owned()),
        driver: Some(Driver {
            cuda_version: Some("12.0".to_owned()),
            ..Driver::default()
        }),
        devices: vec![device.clone(), device],
        peers: Some(Peers {
            pairs: 2,
            with_access: 2,
            ..Peers::default()
        }),
        preflight: Some(Preflight {
            findings: vec![finding(CheckOutcome::Ok), warning],
        }),
        ..Report::default()
    }
}

fn verdict(change: impl FnOnce(&mut Report)) -> String {
    let mut report = report();
    change(&mut report);
    match admit(&report, &policy()) {
        Decision::Admit => "admitted".to_owned(),
        Decision::Failed => "failed".to_owned(),
        Decision::Refuse { reason, .. } => reason.to_owned(),
    }
}

#[test]
fn each_demand_of_the_pool_is_held_up_to_the_report() {
    assert_eq!(verdict(|_| {}), "admitted");
    assert_eq!(verdict(|r| r.schema = "other/1".into()), "UnknownSchema");
    assert_eq!(verdict(|r| r.outcome = Outcome::Failed), "failed");
    assert_eq!(verdict(|r| r.pod = Some("pool-b".into())), "OtherPod");
    assert_eq!(verdict(|r| r.pod = None), "OtherPod");
    assert_eq!(verdict(|r| r.node = Some("node-b".into())), "OtherNode");
    assert_eq!(verdict(|r| r.preflight = None), "NoPreflight");
    assert_eq!(verdict(|r| r.driver = None), "CudaVersion");
    for cuda in [None, Some(""), Some("11.8"), Some("12"), Some("x.y")] {
        let old = |r: &mut Report| {
            r.driver.as_mut().unwrap().cuda_version = cuda.map(str::to_owned);
        };
        assert_eq!(verdict(old), "CudaVersion", "{cuda:?}");
    }
    // Fewer is a fault, and more is somebody else's device
    assert_eq!(verdict(|r| r.devices.truncate(1)), "DeviceCount");
    let more = |r: &mut Report| r.devices.push(r.devices[0].clone());
    assert_eq!(verdict(more), "DeviceCount");
    for capability in ["6.1", "", "7"] {
        let old = |r: &mut Report| r.devices[1].compute_capability = capability.to_owned();
        assert_eq!(verdict(old), "ComputeCapability", "{capability}");
    }
    let without = |r: &mut Report| r.devices[1].concurrent_managed_access = false;
    assert_eq!(verdict(without), "ManagedMemory");
    // The pairs are counted by the devices, not by what the report says of them
    let fewer = |r: &mut Report| {
        let peers = r.peers.as_mut().unwrap();
        (peers.pairs, peers.with_access) = (1, 1);
    };
    assert_eq!(verdict(fewer), "PeerAccess");
    assert_eq!(verdict(|r| r.peers = None), "PeerAccess");
}

#[test]
fn one_device_has_no_peer_to_reach() {
    let mut report = report();
    report.devices.truncate(1);
    report.peers = None;
    let single = Policy {
        devices: Some(1),
        ..policy()
    };
    assert_eq!(admit(&report, &single), Decision::Admit);
}

#[test]
fn of_a_claim_at_least_one_device_is_demanded() {
    let claim = Policy {
        devices: None,
        ..policy()
    };
    let mut report = report();
    for count in [2, 1] {
        report.devices.truncate(count);
        assert_eq!(admit(&report, &claim), Decision::Admit, "{count}");
    }
    report.devices.clear();
    let Decision::Refuse { reason, .. } = admit(&report, &claim) else {
        panic!("admitted without a device")
    };
    assert_eq!(reason, "DeviceCount");
}

#[test]
fn a_preflight_that_found_something_is_refused_whatever_the_report_calls_itself() {
    for outcome in [CheckOutcome::Failed, CheckOutcome::Unknown] {
        let bad = |r: &mut Report| {
            r.preflight = Some(Preflight {
                findings: vec![finding(outcome)],
            });
        };
        assert_eq!(verdict(bad), "Preflight");
    }
}
