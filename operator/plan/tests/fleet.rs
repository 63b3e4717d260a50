//! `docs/reference/fleet.schema.json` is the schema of the fleet document, and its page names every field. `UPDATE_DOCS=1`
//! writes the schema anew.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

use cuda_runner_plan::fleet::{API_VERSION, DeviceState, schema};
use serde_json::Value;

fn reference(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/reference")
        .join(file)
}

#[test]
fn the_schema_is_up_to_date() {
    let path = reference("fleet.schema.json");
    let now = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|text| text == now),
        "docs/reference/fleet.schema.json is stale: UPDATE_DOCS=1 cargo test -p cuda-runner-plan --test fleet"
    );
}

#[test]
fn the_reference_names_every_field_and_every_state() {
    let page = std::fs::read_to_string(reference("fleet.md")).unwrap();
    let mut names = vec![];
    let schema = serde_json::to_value(schema()).unwrap();
    gather(&schema, &mut names);
    assert!(names.len() > 50, "the schema has {} fields", names.len());
    let states = DeviceState::ALL.iter();
    names.extend(states.map(|s| {
        serde_json::to_value(s)
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned()
    }));
    for name in names {
        assert!(
            page.contains(&format!("`{name}`")),
            "docs/reference/fleet.md lacks `{name}`"
        );
    }
    assert!(page.contains(API_VERSION));
}

/// The names of all fields.
fn gather(schema: &Value, names: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Object(properties)) = fields.get("properties") {
                names.extend(properties.keys().cloned());
            }
            fields.values().for_each(|field| gather(field, names));
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, names)),
        _ => {}
    }
}
