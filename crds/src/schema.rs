//! Schemas of the parts whose Rust types belong to others.

use schemars::{Schema, SchemaGenerator, json_schema};

/// `metav1.Condition`, with the limits that Kubernetes itself sets, as a list keyed by `type`.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "What is true of the pool now. Every type is present from the first visit on.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "What is spoken of, for example `Ready`."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it is so."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "description": "One word for why, for programs."},
                "message": {"type": "string", "maxLength": 32768, "description": "Why, and what to do about it, for people."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "Since when the status is what it is."},
                "observedGeneration": {
                    "type": "integer", "format": "int64", "minimum": 0,
                    "description": "The `metadata.generation` that this was said of."
                }
            }
        }
    })
}

/// A moment, RFC 3339.
pub(crate) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// A moment that may be absent.
pub(crate) fn optional_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time", "nullable": true})
}

/// A pod template: left open here, because the API server checks the pod itself.
pub(crate) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true,
        "description": "A pod template merged over the operator's own: lists of containers, volumes, \
            environment variables and the like are merged by name. The agent's container is named `runner`. \
            Names and types are those of a Pod (`kubectl explain pod.spec`); a field that a Pod does not have is \
            reported in the condition `Stalled`."
    })
}
