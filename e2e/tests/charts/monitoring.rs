//! What the operator's chart has for Prometheus and Grafana.

use std::{collections::BTreeMap, process::Command};

use e2e::{paths, report::Story, tools};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Service},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    folder,
    objects::of_kind,
    operator::{CHART, everything, images, service},
    render,
};

/// As much of the Prometheus Operator's definition as the chart uses:
/// <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.ServiceMonitor>.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceMonitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: MonitorSpec,
}

#[derive(Deserialize, Serialize)]
struct MonitorSpec {
    selector: LabelSelector,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    port: String,
    path: String,
    honor_labels: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
}

/// <https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PrometheusRule>.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: Rules,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    lasts: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[test]
fn nothing_of_the_prometheus_operator_comes_unasked() {
    let objects = render(CHART, &images());
    for kind in ["ServiceMonitor", "PrometheusRule", "ConfigMap"] {
        assert!(of_kind::<Value>(kind, &objects).is_empty(), "{kind}");
    }
    let annotations = service("metrics", &objects).metadata.annotations.unwrap();
    let expected = [
        ("prometheus.io/path", "/metrics"),
        ("prometheus.io/port", "8080"),
        ("prometheus.io/scrape", "true"),
    ];
    assert_eq!(
        annotations,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
}

#[test]
fn a_service_monitor_finds_the_service_of_the_metrics_and_no_other() {
    let objects = render(CHART, &everything());
    let monitor = of_kind::<ServiceMonitor>("ServiceMonitor", &objects).remove(0);
    let wanted = monitor.spec.selector.match_labels.unwrap();
    let found: Vec<_> = of_kind::<Service>("Service", &objects)
        .into_iter()
        .filter(|service| {
            let labels = service.metadata.labels.clone().unwrap();
            wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
        })
        .map(|service| service.metadata.name)
        .collect();
    let own = service("metrics", &objects);
    assert_eq!(found, [own.metadata.name]);
    // Else whoever follows the annotations, too, reads everything twice.
    assert_eq!(own.metadata.annotations, None);
    let endpoint = &monitor.spec.endpoints[0];
    assert_eq!(endpoint.port, "metrics");
    assert!(endpoint.honor_labels);
    assert_eq!(endpoint.interval.as_deref(), Some("15s"));
    let labels = monitor.metadata.labels.unwrap();
    assert_eq!(labels["release"], "p");
}

#[test]
fn the_rules_and_the_dashboard_reach_the_cluster_as_they_are_in_their_files() {
    let objects = render(CHART, &everything());
    let file =
        |name: &str| std::fs::read_to_string(folder(CHART).join("files").join(name)).unwrap();
    let rules: Rules = serde_saphyr::from_str(&file("alerts.yaml")).unwrap();
    let rule = of_kind::<PrometheusRule>("PrometheusRule", &objects).remove(0);
    assert_eq!(rule.spec, rules);
    let map = of_kind::<ConfigMap>("ConfigMap", &objects).remove(0);
    let shown: Value = serde_json::from_str(&map.data.unwrap()["cuda-runner.json"]).unwrap();
    let expected: Value = serde_json::from_str(&file("dashboard.json")).unwrap();
    assert_eq!(shown, expected);
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let rules = folder(CHART).join("files/alerts.yaml");
    let cases = paths::repository().join("e2e/tests/charts/alerts.test.yaml");
    for (what, file) in [("check", rules), ("test", cases)] {
        let done = Command::new(tools::promtool(&Story::silent()).unwrap())
            .args([what, "rules"])
            .arg(file)
            .output()
            .unwrap();
        let said = [done.stdout, done.stderr].concat();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
