//! `OpenAPI` 3.0 schemas become JSON Schema 2020-12.

use serde_json::{Map, Value, json};

/// Converts one schema and everything below it.
pub(super) fn schema(source: &Value) -> Value {
    let Value::Object(source) = source else {
        // An absent schema allows everything.
        return Value::Bool(source.as_bool().unwrap_or(true));
    };
    if let Some(reference) = source.get("$ref") {
        // In OpenAPI 3.0 nothing beside a reference counts.
        return json!({"$ref": reference});
    }
    let mut target = Map::new();
    for (keyword, value) in source {
        let converted = match keyword.as_str() {
            // Prose, and what has no meaning for validation.
            "description" | "title" | "example" | "examples" | "default" | "externalDocs"
            | "deprecated" | "discriminator" | "xml" | "readOnly" | "writeOnly" | "nullable" => {
                continue;
            }
            keyword if keyword.starts_with("x-") => continue,
            "properties" | "patternProperties" => map(value),
            "items" | "not" | "additionalProperties" => schema(value),
            "allOf" | "anyOf" | "oneOf" => list(value),
            "exclusiveMinimum" | "exclusiveMaximum" if value.is_boolean() => continue,
            "minimum" if source.get("exclusiveMinimum") == Some(&Value::Bool(true)) => {
                target.insert("exclusiveMinimum".into(), value.clone());
                continue;
            }
            "maximum" if source.get("exclusiveMaximum") == Some(&Value::Bool(true)) => {
                target.insert("exclusiveMaximum".into(), value.clone());
                continue;
            }
            _ => value.clone(),
        };
        target.insert(keyword.clone(), converted);
    }
    if source.get("nullable") == Some(&Value::Bool(true)) {
        return json!({"anyOf": [{"type": "null"}, target]});
    }
    Value::Object(target)
}

fn map(value: &Value) -> Value {
    let Value::Object(entries) = value else {
        return json!({});
    };
    entries
        .iter()
        .map(|(name, entry)| (name.clone(), schema(entry)))
        .collect::<Map<_, _>>()
        .into()
}

fn list(value: &Value) -> Value {
    let Value::Array(items) = value else {
        return json!([]);
    };
    Value::Array(items.iter().map(schema).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nullable_becomes_a_choice_with_null() {
        let converted = schema(&json!({"type": "string", "nullable": true, "enum": ["a"]}));
        assert_eq!(
            converted,
            json!({"anyOf": [{"type": "null"}, {"type": "string", "enum": ["a"]}]})
        );
    }

    #[test]
    fn a_property_named_like_a_keyword_stays() {
        let source = json!({"type": "object", "properties": {
            "nullable": {"type": "boolean"}, "example": {"type": "string", "example": "x"},
        }});
        assert_eq!(
            schema(&source),
            json!({"type": "object", "properties": {
                "nullable": {"type": "boolean"}, "example": {"type": "string"},
            }})
        );
    }

    #[test]
    fn boolean_exclusive_bounds_become_numbers() {
        let source = json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true});
        assert_eq!(
            schema(&source),
            json!({"type": "integer", "exclusiveMinimum": 1})
        );
    }
}
