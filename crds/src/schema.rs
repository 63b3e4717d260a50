//! Schemas of the parts whose Rust types belong to others.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::template;

/// `metav1.Condition`, with the limits that Kubernetes itself sets, as a list keyed by `type`.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "What is true of the pool now. Every type is present from the first reconcile on.",
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

/// Quantities of what a container can ask for, without devices: those are `spec.gpu`.
pub(crate) fn quantities(_: &mut SchemaGenerator) -> Schema {
    let quantity = |of: &str| {
        json!({
            "x-kubernetes-int-or-string": true,
            "nullable": false,
            "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$",
            "description": format!("{of}, as in a container's resources."),
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "cpu": quantity("Cores"),
            "memory": quantity("Bytes of memory"),
            "ephemeral-storage": quantity("Bytes of local disk"),
        }
    })
}

/// The size of a job's shared memory: a volume in memory.
pub(crate) fn shm_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": r"^[1-9][0-9]{0,15}(k|Ki|M|Mi|G|Gi|T|Ti)?$",
        "description": "What a job's container has at `/dev/shm`, for example `8Gi`: `--shm-size` in a workflow is honored up to this. It counts as the container's memory. Where `spec.sharedMemory` is set, that counts instead.",
        "default": "64Mi",
    })
}

/// A pod template: open, because the API server checks the pod itself. Only what CEL is to see is declared.
pub(crate) fn pod_template(_: &mut SchemaGenerator) -> Schema {
    let schema = open(
        "A pod template merged over the operator's own: lists of volumes, environment variables and the like are \
        merged by name. The agent's container is named `runner`. Names and types are those of a Pod (`kubectl explain \
        pod.spec`); a field that a Pod does not have, or that is the operator's, is reported in the condition `Stalled`.",
        json!({"metadata": template_metadata(), "spec": template_spec()}),
        &[],
    );
    let mut wrapped = json_schema!({});
    if let (Some(to), Value::Object(from)) = (wrapped.as_object_mut(), schema) {
        *to = from;
    }
    wrapped
}

fn template_metadata() -> Value {
    let keys = |of: &str| {
        json!({
            "type": "object",
            "nullable": true,
            "maxProperties": 100,
            "additionalProperties": {"type": "string"},
            "description": format!("{of} of the pods."),
            "x-kubernetes-validations": [rule("self.all(key, !key.startsWith('cudarunner.dev/'))", template::OWN_KEYS)],
        })
    };
    let name = declared("string", "Not for templates.");
    open(
        "Labels and annotations of the pods.",
        json!({
            "labels": keys("Labels"),
            "annotations": keys("Annotations"),
            "name": name,
            "generateName": name,
        }),
        &[rule(
            "!has(self.name) && !has(self.generateName)",
            template::METADATA,
        )],
    )
}

fn template_spec() -> Value {
    let mut deadline = declared("integer", "Not for templates.");
    deadline["format"] = json!("int64");
    open(
        "The spec of the pods.",
        json!({
            "restartPolicy": declared("string", "`Never`, or absent."),
            "nodeName": declared("string", "Not for templates."),
            "activeDeadlineSeconds": deadline,
            "shareProcessNamespace": declared("boolean", "`false`, or absent."),
            "automountServiceAccountToken": declared("boolean", "`false`, or absent."),
            "containers": {
                "type": "array",
                "nullable": true,
                "maxItems": 16,
                "items": template_container(),
                "description": "The container `runner`, and no other.",
            },
        }),
        &[
            rule(
                "!has(self.restartPolicy) || self.restartPolicy == 'Never'",
                template::RESTART_POLICY,
            ),
            rule("!has(self.nodeName)", template::NODE_NAME),
            rule("!has(self.activeDeadlineSeconds)", template::DEADLINE),
            rule(
                "!has(self.shareProcessNamespace) || !self.shareProcessNamespace",
                template::SHARED_PROCESSES,
            ),
            rule(
                "!has(self.automountServiceAccountToken) || !self.automountServiceAccountToken",
                template::ACCOUNT_TOKEN,
            ),
        ],
    )
}

fn template_container() -> Value {
    let mut words = declared("array", "Not for templates.");
    words["items"] = json!({"type": "string"});
    let probe = open("Not for templates.", json!({}), &[]);
    let mut container = open(
        "The agent's container.",
        json!({
            "name": declared("string", "`runner`."),
            "command": words,
            "args": words,
            "startupProbe": probe,
            "readinessProbe": probe,
        }),
        &[
            rule("self.name == 'runner'", template::OTHER_CONTAINER),
            rule(
                "self.name != 'runner' || !has(self.command) && !has(self.args)",
                template::COMMAND,
            ),
            rule(
                "self.name != 'runner' || !has(self.startupProbe) && !has(self.readinessProbe)",
                template::PROBE,
            ),
        ],
    );
    container["required"] = json!(["name"]);
    container["nullable"] = json!(false);
    container["properties"]["name"]["nullable"] = json!(false);
    container
}

/// A field of a template. A null is as good as nothing, as everywhere in a pod: kubectl and Helm write such.
fn declared(type_: &str, description: &str) -> Value {
    json!({"type": type_, "nullable": true, "description": description})
}

/// An object of which some fields are declared, and all others kept.
fn open(description: &str, properties: Value, rules: &[Value]) -> Value {
    let mut schema = json!({
        "type": "object",
        "nullable": true,
        "x-kubernetes-preserve-unknown-fields": true,
        "description": description,
    });
    if properties != json!({}) {
        schema["properties"] = properties;
    }
    if !rules.is_empty() {
        schema["x-kubernetes-validations"] = json!(rules);
    }
    schema
}

fn rule(rule: &str, message: &str) -> Value {
    json!({"rule": rule, "message": message})
}
