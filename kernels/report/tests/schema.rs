//! `docs/reference/gate-report.schema.json` is the report's schema. `UPDATE_DOCS=1` writes it anew.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

use std::path::Path;

use gate_report::preflight::{Check, Preflight, PreflightFinding};
use gate_report::{
    Class, Confidence, Device, DeviceHealth, DeviceStep, Driver, DriverModel, Fabric, Failure,
    Health, Peers, Report, Step, Warning, schema::schema,
};
use jsonschema::Validator;
use serde_json::{Value, json};

#[test]
fn the_document_is_the_schema() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/gate-report.schema.json");
    let now = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|text| text == now),
        "docs/reference/gate-report.schema.json is stale: UPDATE_DOCS=1 cargo test -p gate-report"
    );
}

fn preflight() -> Preflight {
    let text = || Some("text".to_owned());
    Preflight {
        findings: vec![PreflightFinding {
            found: text(),
            wanted: text(),
            transient: true,
            ..PreflightFinding::failed(Check::Disk, "/tmp", "is full".into(), "Empty it.")
        }],
    }
}

fn health() -> Health {
    let yes = Some(true);
    Health {
        library: Some("text".into()),
        devices: vec![DeviceHealth {
            uuid: "GPU-0".into(),
            error: Some(15),
            recovery_action: Some(1),
            remap_pending: yes,
            remap_failed: yes,
            uncorrected_ecc_errors: Some(u64::MAX),
            sram_threshold_exceeded: yes,
            fabric: Some(Fabric {
                state: 3,
                status: 0,
                health: Some(1),
            }),
            nv_links: Some(18),
            nv_links_up: Some(17),
            mig: yes,
            mig_pending: yes,
            clock_reasons: Some(u64::MAX),
            pcie_width: Some(8),
            pcie_max_width: Some(16),
            xids: vec![79],
        }],
    }
}

/// A report with every field that there is.
fn whole() -> Value {
    let text = || Some("text".to_owned());
    let device = Device {
        pci_bus_id: text(),
        free_memory_bytes: Some(u64::MAX),
        multiprocessors: Some(1),
        l2_cache_bytes: Some(1),
        memory_pools: Some(true),
        tensor_load_ms: Some(0.5),
        memory_walk_bytes: Some(1),
        host_to_device_gib_per_second: Some(1.5),
        device_to_host_gib_per_second: Some(1.5),
        steps: vec![DeviceStep {
            step: Step::Launch,
            ms: 0.5,
        }],
        ..Device::default()
    };
    let report = Report {
        node: text(),
        namespace: text(),
        pod: text(),
        requested_devices: Some(1),
        driver: Some(Driver {
            library: text(),
            cuda_version: text(),
            kernel_version: text(),
            model: Some(DriverModel::Linux),
            ..Driver::default()
        }),
        devices: vec![device],
        peers: Some(Peers::default()),
        health: Some(health()),
        preflight: Some(preflight()),
        failure: Some(Failure {
            class: Class::Device,
            step: Step::Launch,
            code: Some(-1),
            code_name: "name".into(),
            call: text(),
            device: Some(0),
            uuid: text(),
            message: String::new(),
            advice: String::new(),
            confidence: Confidence::Low,
            shared: false,
        }),
        warnings: vec![Warning {
            reason: "Reason".into(),
            message: "message".into(),
            device: Some(0),
        }],
        ..Report::new("0.1.0")
    };
    serde_json::to_value(report).unwrap()
}

fn validator() -> Validator {
    jsonschema::validator_for(schema().as_value()).unwrap()
}

#[test]
fn what_may_come_later_is_valid_today() {
    let mut report = whole();
    validator().validate(&report).unwrap();
    report["new"] = json!({});
    report["devices"][0]["new"] = json!(null);
    report["devices"][0]["steps"][0]["step"] = json!("rayTracing");
    report["driver"]["model"] = json!("plan9");
    report["preflight"]["findings"][0]["check"] = json!("licence");
    report["preflight"]["findings"][0]["outcome"] = json!("postponed");
    validator().validate(&report).unwrap();
}

#[test]
fn what_would_break_a_reader_is_not() {
    let validator = validator();
    for (place, value) in [
        ("/schema", json!("cudarunner.dev/gate-report/v2")),
        ("/outcome", json!("undecided")),
        ("/failure/class", json!("weather")),
        ("/failure/confidence", json!("none")),
        ("/failure/code", json!("719")),
        ("/devices/0/ordinal", json!(-1)),
        ("/devices/0/memoryWalkBytes", json!(null)),
        ("/devices/0/steps/0/ms", json!(null)),
        ("/peers/pairs", json!(-1)),
        ("/preflight/findings/0/check", json!(1)),
        ("/driver", json!(null)),
        ("/health/devices/0/remapFailed", json!(0)),
    ] {
        let mut report = whole();
        *report.pointer_mut(place).unwrap() = value;
        assert!(!validator.is_valid(&report), "{place}");
    }
    for name in ["schema", "version", "outcome", "attempts", "devices"] {
        let mut report = whole();
        report.as_object_mut().unwrap().remove(name);
        assert!(!validator.is_valid(&report), "without {name}");
    }
}
