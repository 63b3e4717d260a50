//! Whether an object is what Kubernetes, or our own definition, understands under its kind.

use std::collections::BTreeSet;

use cudarunner_crds::CudaRunner;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        batch::v1::Job,
        core::v1::{ConfigMap, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    monitoring::{PrometheusRule, ServiceMonitor},
    render,
};

/// The objects of one kind.
pub(super) fn of_kind<T: DeserializeOwned>(kind: &str, objects: &[Value]) -> Vec<T> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .map(|object| serde_json::from_value(object.clone()).unwrap())
        .collect()
}

/// Checks all objects of a release.
pub(super) fn understood(objects: &[Value]) {
    let mut names = BTreeSet::new();
    for object in objects {
        one(object);
        let meta = &object["metadata"];
        let name = format!("{}/{}/{}", object["kind"], meta["namespace"], meta["name"]);
        assert!(names.insert(name.clone()), "{name} is there twice");
        let labels = meta["labels"].as_object().unwrap();
        assert_eq!(labels["app.kubernetes.io/instance"], "release", "{name}");
        for value in labels.values() {
            assert!(value.as_str().is_some_and(|v| v.len() <= 63), "{name}");
        }
    }
}

fn one(object: &Value) {
    let kind = (
        object["apiVersion"].as_str().unwrap(),
        object["kind"].as_str().unwrap(),
    );
    match kind {
        ("v1", "Service") => survives::<Service>(object),
        ("v1", "ConfigMap") => survives::<ConfigMap>(object),
        ("v1", "ServiceAccount") => survives::<ServiceAccount>(object),
        ("apps/v1", "Deployment") => survives::<Deployment>(object),
        ("batch/v1", "Job") => survives::<Job>(object),
        ("policy/v1", "PodDisruptionBudget") => survives::<PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => survives::<NetworkPolicy>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => survives::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => survives::<RoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => survives::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            survives::<ClusterRoleBinding>(object);
        }
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition") => {
            survives::<CustomResourceDefinition>(object);
        }
        ("monitoring.coreos.com/v1", "ServiceMonitor") => survives::<ServiceMonitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => survives::<PrometheusRule>(object),
        ("cudarunner.dev/v1alpha1", "CudaRunner") => survives::<CudaRunner>(object),
        other => panic!("no type is known here for {other:?}"),
    }
}

/// A field that the type does not know is lost on the way through it.
fn survives<T: DeserializeOwned + Serialize>(object: &Value) {
    let through: T = serde_json::from_value(object.clone())
        .unwrap_or_else(|error| panic!("{error} in {object:#}"));
    let mut lost = Vec::new();
    compare(
        "",
        object,
        &serde_json::to_value(through).unwrap(),
        &mut lost,
    );
    assert!(lost.is_empty(), "{lost:?} of {object:#}");
}

fn compare(path: &str, before: &Value, after: &Value, lost: &mut Vec<String>) {
    match (before, after) {
        (Value::Null, _) => {}
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let after = after.get(key).unwrap_or(&Value::Null);
                compare(&format!("{path}.{key}"), value, after, lost);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                compare(&format!("{path}[{index}]"), before, after, lost);
            }
        }
        // A schema's `minimum: 1` is a float there.
        (Value::Number(before), Value::Number(after)) if before.as_f64() == after.as_f64() => {}
        _ if before == after => {}
        _ => lost.push(path.to_owned()),
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let object: Value = serde_json::json!({"spec": {"ports": [{"port": 1, "tragetPort": 2}]}});
    let after: Service = serde_json::from_value(object.clone()).unwrap();
    let mut lost = Vec::new();
    compare(
        "",
        &object,
        &serde_json::to_value(after).unwrap(),
        &mut lost,
    );
    assert_eq!(lost, [".spec.ports[0].tragetPort"]);
}

#[test]
fn the_definition_is_a_definition_that_helm_keeps() {
    let objects = render("cuda-runner-operator-crds", &serde_json::json!({}));
    understood(&objects);
    assert_eq!(objects.len(), 1);
    let annotations = &objects[0]["metadata"]["annotations"];
    assert_eq!(annotations["helm.sh/resource-policy"], "keep");
    let expected = serde_json::to_value(cudarunner_crds::crd()).unwrap();
    let mut lost = Vec::new();
    compare("", &expected, &objects[0], &mut lost);
    assert!(lost.is_empty(), "the chart changes {lost:?}");
}
