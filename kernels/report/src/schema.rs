//! The report's JSON schema: what this version writes, and what a reader must be ready for.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::RecursiveTransform;
use serde_json::{Value, json};

use crate::{Report, SCHEMA};

/// The schema of a whole [`Report`] and of its [`summary`](Report::summary).
#[must_use]
pub fn schema() -> Schema {
    let mut schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .with_transform(RecursiveTransform(as_written))
        .into_generator()
        .into_root_schema_for::<Report>();
    schema.insert("title".into(), SCHEMA.into());
    schema
}

/// Lets an enumeration have values that a later version may add: its `unknown` stands for all other words.
pub(crate) fn open(schema: &mut Schema) {
    let Some(Value::Array(mut values)) = schema.remove("oneOf") else {
        return;
    };
    for value in &mut values {
        if value["const"] == "unknown" {
            *value = json!({"description": value["description"], "type": "string"});
        }
    }
    schema.insert("anyOf".into(), values.into());
}

/// A field without a value is left out, never null; one that is always there has no default.
fn as_written(schema: &mut Schema) {
    if let Some(Value::Array(required)) = schema.get("required").cloned()
        && let Some(Value::Object(properties)) = schema.get_mut("properties")
    {
        for name in required.iter().filter_map(Value::as_str) {
            if let Some(Value::Object(property)) = properties.get_mut(name) {
                property.remove("default");
            }
        }
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
        choices.retain(|choice| choice["type"] != "null");
        if let [only] = choices.as_slice()
            && let Some(Value::String(target)) = only.get("$ref").cloned()
        {
            schema.remove("anyOf");
            schema.insert("$ref".into(), target.into());
        }
    }
}
