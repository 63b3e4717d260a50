//! The charts as real Helm renders them: what every installation of them may rely on.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

mod docs;
mod gitops;
mod monitoring;
mod objects;
mod operator;
mod pools;
mod refused;
mod uninstall;

use std::{
    path::PathBuf,
    process::{Command, Output},
    sync::LazyLock,
};

use e2e::{paths, report::Story, tools};
use serde_json::Value;

const CHARTS: [&str; 3] = [
    "cuda-runner",
    "cuda-runner-operator",
    "cuda-runner-operator-crds",
];

fn folder(chart: &str) -> PathBuf {
    paths::repository().join("charts").join(chart)
}

fn helm(arguments: &[&str], chart: &str, values: &Value) -> Output {
    static HELM: LazyLock<PathBuf> = LazyLock::new(|| tools::helm(&Story::silent()).unwrap());
    Command::new(&*HELM)
        .args(arguments)
        .arg(folder(chart))
        .args(["--namespace", "release-namespace", "--set-json"])
        .arg(values.to_string())
        .output()
        .unwrap()
}

/// What Helm would send to the cluster.
fn render(chart: &str, values: &Value) -> Vec<Value> {
    let done = helm(&["template", "release"], chart, values);
    assert!(
        done.status.success(),
        "{chart} with {values:#}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let text = String::from_utf8(done.stdout).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    objects.into_iter().filter(|v| !v.is_null()).collect()
}

/// Why Helm renders nothing.
fn refusal(chart: &str, values: &Value) -> String {
    let done = helm(&["template", "release"], chart, values);
    assert!(!done.status.success(), "{chart} takes {values:#}");
    String::from_utf8(done.stderr).unwrap()
}

fn parsed(chart: &str, file: &str) -> Value {
    let text = std::fs::read_to_string(folder(chart).join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn every_chart_is_here() {
    let mut found: Vec<_> = std::fs::read_dir(paths::repository().join("charts"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, CHARTS);
}

#[test]
fn helm_has_nothing_to_say_against_a_chart() {
    for chart in CHARTS {
        let values = if chart == "cuda-runner-operator" {
            operator::images()
        } else {
            Value::Object(serde_json::Map::default())
        };
        let done = helm(&["lint", "--strict"], chart, &values);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        );
        assert!(done.status.success(), "{said}");
        for level in ["[WARNING]", "[ERROR]", "level=WARN"] {
            assert!(!said.contains(level), "{said}");
        }
    }
}

#[test]
fn charts_carry_the_version_of_the_programs() {
    for chart in CHARTS {
        let about = parsed(chart, "Chart.yaml");
        assert_eq!(about["name"], chart);
        for version in ["version", "appVersion"] {
            assert_eq!(about[version], env!("CARGO_PKG_VERSION"), "{chart}");
        }
    }
}

#[test]
fn schemas_leave_nothing_open_that_they_name() {
    fn closed(path: &str, schema: &Value) {
        // A pod template names the fields that have rules; Kubernetes knows the rest.
        if path.ends_with("/properties/template") {
            return;
        }
        if schema.get("properties").is_some() && !path.ends_with("/items") {
            assert_eq!(schema["additionalProperties"], false, "{path}");
        }
        if let Some(parts) = schema.as_object() {
            for (name, part) in parts {
                closed(&format!("{path}/{name}"), part);
            }
        }
    }
    for chart in CHARTS {
        closed(chart, &parsed(chart, "values.schema.json"));
    }
}
