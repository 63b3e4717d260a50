//! The examples for Argo CD, Flux and Kustomize: what can be known of them without running those. What needs a cluster is
//! the suite `charts`.

use std::process::Command;

use e2e::{paths, report::Story, tools};
use serde_json::{Value, json};

use super::{CHARTS, objects::understood, render};

fn example(file: &str) -> Vec<Value> {
    let path = paths::repository().join("docs/examples/gitops").join(file);
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The charts that an example installs, with their values, in its order.
fn argocd() -> Vec<(String, Value)> {
    let mut applications = example("argocd/applications.yaml");
    applications.sort_by_key(wave);
    applications
        .iter()
        .map(|application| {
            let source = &application["spec"]["source"];
            (
                chart(&source["path"]),
                source["helm"]["valuesObject"].clone(),
            )
        })
        .collect()
}

fn wave(application: &Value) -> i32 {
    let wave = &application["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"];
    wave.as_str().unwrap().parse().unwrap()
}

fn flux() -> Vec<(String, Value)> {
    let (releases, sources): (Vec<_>, Vec<_>) = example("flux/releases.yaml")
        .into_iter()
        .partition(|object| object["kind"] == "HelmRelease");
    let mut before = Value::Null;
    releases
        .iter()
        .map(|release| {
            let spec = &release["spec"];
            let chart_spec = &spec["chart"]["spec"];
            let source = &chart_spec["sourceRef"];
            assert_eq!(source["kind"], sources[0]["kind"]);
            assert_eq!(source["name"], sources[0]["metadata"]["name"]);
            assert_eq!(
                spec["dependsOn"][0]["name"], before,
                "each waits for the one before"
            );
            before = release["metadata"]["name"].clone();
            (chart(&chart_spec["chart"]), spec["values"].clone())
        })
        .collect()
}

fn chart(path: &Value) -> String {
    path.as_str()
        .unwrap()
        .strip_prefix("charts/")
        .unwrap()
        .to_owned()
}

#[test]
fn examples_install_the_definition_first_and_pools_last_with_values_that_charts_take() {
    for steps in [argocd(), flux()] {
        let order: Vec<_> = steps.iter().map(|(chart, _)| chart.as_str()).collect();
        assert_eq!(
            order,
            [
                "cuda-runner-operator-crds",
                "cuda-runner-operator",
                "cuda-runner"
            ]
        );
        assert_eq!(order.len(), CHARTS.len());
        for (chart, values) in &steps {
            let values = if values.is_null() {
                json!({})
            } else {
                values.clone()
            };
            let objects = render(chart, &values);
            assert!(!objects.is_empty());
            understood(&objects);
        }
    }
    assert_eq!(argocd(), flux(), "the examples show one installation");
}

/// The health that Argo CD would show of this resource.
fn health(resource: &Value) -> (String, String) {
    let config = example("argocd/health.yaml").remove(0);
    let script = &config["data"]["resource.customizations.health.cudarunner.dev_CudaRunner"];
    let program = format!(
        "local obj = {}\nlocal health = (function()\n{}\nend)()\nprint(health.status)\nprint(health.message)",
        lua(resource),
        script.as_str().unwrap()
    );
    let done = Command::new(tools::lua(&Story::silent()).unwrap())
        .args(["-e", &program])
        .output()
        .unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    let lines = said.split_once('\n');
    let (status, message) =
        lines.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&done.stderr)));
    (status.to_owned(), message.trim().to_owned())
}

/// A value as a Lua literal.
fn lua(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!(
            "{{{}}}",
            items.iter().map(lua).collect::<Vec<_>>().join(",")
        ),
        Value::Object(parts) => {
            let parts = parts
                .iter()
                .map(|(name, part)| format!("[{name:?}]={}", lua(part)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

fn pool(observed: Option<i64>, conditions: &[(&str, &str)]) -> Value {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|(kind, status)| json!({"type": kind, "status": status, "message": format!("{kind} is {status}")}))
        .collect();
    json!({
        "metadata": {"generation": 2},
        "status": {"observedGeneration": observed, "conditions": conditions},
    })
}

#[test]
fn argocd_shows_what_the_conditions_say() {
    let cases = [
        (
            json!({"metadata": {"generation": 1}}),
            "Progressing",
            "No operator has seen this pool yet",
        ),
        (
            pool(None, &[("Ready", "Unknown")]),
            "Progressing",
            "Ready is Unknown",
        ),
        (
            pool(Some(2), &[("Ready", "False"), ("Stalled", "False")]),
            "Progressing",
            "Ready is False",
        ),
        (
            pool(Some(2), &[("Ready", "False"), ("Stalled", "True")]),
            "Degraded",
            "Stalled is True",
        ),
        (
            pool(Some(2), &[("Ready", "True"), ("Stalled", "False")]),
            "Healthy",
            "Ready is True",
        ),
        (
            pool(Some(1), &[("Ready", "True")]),
            "Progressing",
            "The operator has not seen this spec yet",
        ),
    ];
    for (resource, status, message) in cases {
        let expected = (status.to_owned(), message.to_owned());
        assert_eq!(health(&resource), expected, "{resource:#}");
    }
}
