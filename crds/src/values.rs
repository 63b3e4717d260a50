//! The schema of the values of the chart `cuda-runner`: specs of `CudaRunner` that may be incomplete, as each pool's is
//! merged over what all share.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde_json::{Map, Value, json};

use crate::crd;

/// The schema as JSON, as Helm takes it.
#[must_use]
pub fn values_schema() -> String {
    let spec = crd()
        .spec
        .versions
        .into_iter()
        .find_map(|version| {
            version
                .schema?
                .open_api_v3_schema?
                .properties?
                .remove("spec")
        })
        .unwrap_or_default();
    let mut schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart cuda-runner",
        "description": "Written by `cargo run -p cudarunner-crds --bin crdgen`. Do not edit.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "global": {"type": "object"},
            "defaults": {"$ref": "#/definitions/spec"},
            "pools": {
                "type": "object",
                "propertyNames": {"maxLength": 57, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"},
                "additionalProperties": {"$ref": "#/definitions/spec"},
            },
        },
        "definitions": {"spec": part(&spec, true)},
    });
    schema.sort_all_objects();
    format!("{schema:#}\n")
}

/// One part of the CRD's schema. What is merged may lack required fields; what lies in a list is never merged.
fn part(of: &JSONSchemaProps, merged: bool) -> Value {
    let mut schema = Map::new();
    let mut keep = |keyword: &str, value: Option<Value>| {
        if let Some(value) = value {
            schema.insert(keyword.to_owned(), value);
        }
    };
    keep("description", of.description.as_ref().map(|v| json!(v)));
    keep("pattern", of.pattern.as_ref().map(|v| json!(v)));
    keep("minLength", of.min_length.map(|v| json!(v)));
    keep("maxLength", of.max_length.map(|v| json!(v)));
    keep("minimum", of.minimum.map(|v| json!(v)));
    keep("maximum", of.maximum.map(|v| json!(v)));
    keep("minItems", of.min_items.map(|v| json!(v)));
    keep("maxItems", of.max_items.map(|v| json!(v)));
    keep(
        "type",
        of.type_.as_ref().map(|kind| match of.nullable {
            Some(true) => json!([kind, "null"]),
            _ => json!(kind),
        }),
    );
    keep("enum", of.enum_.as_ref().map(|v| json!(v)));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &of.items {
        keep("items", Some(part(items, false)));
    }
    if let Some(properties) = &of.properties {
        let parts: Map<_, _> = properties
            .iter()
            .map(|(name, property)| (name.clone(), part(property, merged)))
            .collect();
        keep("properties", Some(parts.into()));
        let open = of.x_kubernetes_preserve_unknown_fields == Some(true);
        keep("additionalProperties", (!open).then_some(json!(false)));
        keep(
            "required",
            of.required.as_ref().filter(|_| !merged).map(|v| json!(v)),
        );
    }
    schema.into()
}
