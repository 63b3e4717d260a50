//! Each field with two values that are good, and what the schema forbids.

use serde_json::{Value, json};

use crate::{
    example,
    suites::context::{agent_with, merge},
};

/// A field that changes.
pub(super) struct Row {
    /// Its path in the spec; `[]` is the first item of a list.
    pub(super) path: String,
    /// One value; null leaves it out.
    pub(super) one: Value,
    /// Another.
    pub(super) other: Value,
    base: Value,
}

impl Row {
    /// A spec with this value.
    pub(super) fn spec(&self, value: &Value) -> Value {
        // No node has the label: the pods wait, and cost nothing.
        let nowhere = json!({"nodeSelector": {"example.com/nowhere": "true"}});
        let mut spec = json!({"template": {"spec": nowhere}});
        merge(&mut spec, self.base.clone());
        if !value.is_null() {
            set(&mut spec, &self.path, value);
        }
        merge(&mut spec, json!({"template": {"spec": nowhere}}));
        spec
    }
}

/// Puts a value where a path leads.
pub(super) fn set(spec: &mut Value, path: &str, value: &Value) {
    let mut at = spec;
    for part in path.split('.') {
        at = match part.strip_suffix("[]") {
            Some(list) => {
                if !at[list].is_array() {
                    at[list] = json!([{}]);
                }
                &mut at[list][0]
            }
            None => &mut at[part],
        };
    }
    *at = value.clone();
}

/// All fields, each with what its change needs around it.
pub(super) fn rows(github: &str, repository: &str) -> Vec<Row> {
    let organization = repository.split('/').next().unwrap_or_default();
    let organization = json!({"github": {"url": format!("{github}/{organization}")}});
    let proxy = json!({"github": {"proxy": {"url": "http://127.0.0.1:1"}}});
    let verify = json!({"verify": {"workflow": "a.yml", "ref": "main", "jobs": [{"name": "a"}]}});
    let mut checks = verify.clone();
    let required = json!({"requiredChecks": {"branches": [{"name": "main"}]}});
    merge(&mut checks, required);
    let scaled =
        |source: &str| json!({"scaling": {"minRunners": 1, "maxRunners": 3, "source": source}});
    let groups = [
        (json!({}), of_a_pool(github, repository)),
        (json!({}), of_the_gate()),
        (json!({"jobContainers": {}}), of_jobs_with_containers()),
        (
            organization,
            json!({"github.runnerGroup": [null, "Default"]}),
        ),
        (proxy, through_a_proxy(github)),
        (
            scaled("Poll"),
            json!({
                "scaling.minRunners": [1, 2],
                "scaling.source": ["Poll", "ScaleSet"],
                "scaling.weight": [1, 3],
            }),
        ),
        (scaled("ScaleSet"), json!({"scaling.maxRunners": [3, 1]})),
        (by_time(), of_windows()),
        (
            scaled("Webhook"),
            json!({"scaling.webhook.secretRef.name": ["hook", "other"]}),
        ),
        (verify, of_verification(repository)),
        (checks, of_required_checks()),
        (
            json!({"rerun": {"onGpuFault": true, "onNodeLoss": true}}),
            json!({
                "rerun.onGpuFault": [true, false],
                "rerun.onNodeLoss": [true, false],
                "rerun.limit": [1, 2],
            }),
        ),
    ];
    let mut all = vec![];
    for (base, fields) in groups {
        for (path, values) in fields.as_object().into_iter().flatten() {
            all.push(Row {
                path: path.clone(),
                one: values[0].clone(),
                other: values[1].clone(),
                base: base.clone(),
            });
        }
    }
    all
}

/// A pool with a window of time.
pub(super) fn by_time() -> Value {
    let window = json!({"from": "08:00", "to": "18:00", "timeZone": "UTC", "minRunners": 1});
    json!({"scaling": {"maxRunners": 3, "source": "Poll", "schedule": [window]}})
}

fn of_windows() -> Value {
    json!({
        "scaling.schedule[].days": [["Monday"], ["Monday", "Sunday"]],
        "scaling.schedule[].from": ["08:00", "09:30"],
        "scaling.schedule[].to": ["18:00", "24:00"],
        "scaling.schedule[].timeZone": ["UTC", "Europe/Berlin"],
        "scaling.schedule[].minRunners": [1, 2],
    })
}

fn of_a_pool(github: &str, repository: &str) -> Value {
    let here = format!("{github}/{repository}");
    json!({
        "github.url": [here, format!("{here}-other")],
        "github.credentialsRef.name": [example::SECRET, "other"],
        "github.proxy.url": [null, "http://127.0.0.1:1"],
        "github.caBundleRef.name": [example::AUTHORITY, "other"],
        "github.caBundleRef.key": ["ca.crt", "absent"],
        "labels": [["self-hosted", "cuda"], ["self-hosted", "a"]],
        "lifetime": ["Ephemeral", "Persistent"],
        "registration": ["JitConfig", "ScaleSet"],
        "replicas": [1, 3],
        "arch": ["amd64", "arm64"],
        "gpu.resource": ["nvidia.com/gpu", "example.com/gpu"],
        "gpu.count": [1, 2],
        "gpu.claimTemplate": [null, "absent"],
        "gpu.minComputeCapability": ["7.0", "9.0"],
        "gpu.minCudaVersion": ["12.0", "12.9"],
        "gpu.peerAccess": ["Report", "Require"],
        "jobs.allow.events": [["push"], ["push", "schedule"]],
        "jobs.allow.refs": [null, ["refs/heads/main"]],
        "jobs.allow.forks": [false, true],
        "jobs.telemetry": ["Enabled", "Disabled"],
        "jobs.maxMinutes": [null, 30],
        "sharedMemory": [null, "128Mi"],
        "deletionPolicy": ["WaitForJobs", "Now"],
        "teardownTimeout": ["10m", "30s"],
        "template": [agent_with("A", "one"), agent_with("A", "other")],
    })
}

fn of_the_gate() -> Value {
    json!({
        "smoke.timeoutSeconds": [30, 60],
        "smoke.managedMemory": ["Report", "Require"],
        "smoke.minFreeMemoryPercent": [90, 50],
        "smoke.quarantineMinutes": [30, 1],
        "smoke.resources.requests.cpu": ["10m", "20m"],
        "smoke.resources.requests.memory": ["64Mi", "65Mi"],
        "smoke.resources.requests.ephemeral-storage": [null, "1Mi"],
        "smoke.resources.limits.cpu": ["1", 2],
        "smoke.resources.limits.memory": ["512Mi", "1Gi"],
        "smoke.resources.limits.ephemeral-storage": [null, "1Gi"],
        "preflight.commands": [["git"], ["git", "tar"]],
        "preflight.cudaToolkit": [null, ">=12.0"],
        "preflight.rustToolchain": ["stable", "nightly-2026-04-03"],
        "preflight.minDiskMiB": [512, 1],
        "preflight.egress": [["https://example.com"], []],
    })
}

fn of_jobs_with_containers() -> Value {
    json!({
        "jobContainers.imagePullPolicy": ["IfNotPresent", "Always"],
        "jobContainers.runAsUser": [null, 0],
        "jobContainers.services": [true, false],
        "jobContainers.shmSize": ["64Mi", "1Gi"],
        "jobContainers.resources.requests.cpu": [null, "20m"],
        "jobContainers.resources.requests.memory": [null, "65Mi"],
        "jobContainers.resources.requests.ephemeral-storage": [null, "1Mi"],
        "jobContainers.resources.limits.cpu": [null, 2],
        "jobContainers.resources.limits.memory": [null, "1Gi"],
        "jobContainers.resources.limits.ephemeral-storage": [null, "1Gi"],
    })
}

fn through_a_proxy(github: &str) -> Value {
    let server = github.trim_start_matches("https://");
    let host = server.split(':').next().unwrap_or_default();
    json!({
        "github.proxy.noProxy": [[host], [host, "example.com"]],
        "github.proxy.credentialsRef.name": [null, "other"],
    })
}

fn of_verification(repository: &str) -> Value {
    json!({
        "verify.workflow": ["a.yml", "b.yml"],
        "verify.ref": ["main", "dev"],
        "verify.pickupSeconds": [30, 60],
        "verify.repository": [null, repository],
        "verify.every": ["24h", "10m"],
        "verify.jobs[].name": ["a", "b"],
        "verify.jobs[].tests.passed": [1, 46],
    })
}

fn of_required_checks() -> Value {
    json!({
        "requiredChecks.mode": ["BranchProtection", "Ruleset"],
        "requiredChecks.branches[].name": ["main", "dev"],
        "requiredChecks.branches[].ifProtected": [false, true],
        "requiredChecks.allowUnseen": [false, true],
    })
}

/// The fields of a schema that hold values themselves, with their paths.
pub(super) fn leaves(schema: &Value) -> Vec<(String, &Value)> {
    let inner = |schema: &'_ Value| schema["x-kubernetes-preserve-unknown-fields"] != json!(true);
    let mut found = vec![];
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let (below, name) = if field["items"]["properties"].is_object() {
            (&field["items"], format!("{name}[]"))
        } else {
            (field, name.clone())
        };
        if below["properties"].is_object() && inner(below) {
            let below = leaves(below).into_iter();
            found.extend(below.map(|(path, field)| (format!("{name}.{path}"), field)));
        } else {
            found.push((name, field));
        }
    }
    found
}

/// Values that a field cannot have, by its schema.
pub(super) fn invalid(field: &Value) -> Vec<Value> {
    let mut all = vec![json!([[]])];
    match field["type"].as_str() {
        Some("string") => all.extend([json!(7), json!("\u{1b}[2J\n"), json!({"a": "b"})]),
        Some("integer") => all.extend([json!("x"), json!(1.5), json!(-1), json!(1_u64 << 40)]),
        Some("array") => all.extend([json!("x"), json!(vec![""; 200])]),
        Some("boolean" | "object") => all.push(json!("x")),
        _ => all.extend([json!("-1"), json!("\u{1b}"), json!("1e400")]),
    }
    if let Some(most) = field["maxLength"].as_u64() {
        all.push(json!(
            "1".repeat(usize::try_from(most).unwrap_or_default() + 1)
        ));
    }
    if field["enum"].is_array() {
        all.extend([json!("Nonsense"), json!("")]);
    }
    let beyond = |bound: &str, by: i64| Some(json!(whole(&field[bound])? + by));
    all.extend(beyond("minimum", -1));
    all.extend(beyond("maximum", 1));
    all
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "bounds of the CRD are small"
)]
fn whole(bound: &Value) -> Option<i64> {
    bound.as_f64().map(|bound| bound as i64)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use cudarunner_crds::CudaRunner;
    use kube::CustomResourceExt as _;

    use super::*;

    /// The paths of all fields of the spec.
    pub(in super::super) fn fields() -> BTreeSet<String> {
        let definition = json!(CudaRunner::crd());
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let fields = leaves(&schema["properties"]["spec"]).into_iter();
        fields.map(|(path, _)| path).collect()
    }

    #[test]
    fn every_field_of_the_definition_has_a_row_that_changes_it() {
        let rows = rows("https://github.test", "o/r");
        let named: BTreeSet<String> = rows.iter().map(|row| row.path.clone()).collect();
        assert_eq!(fields(), named);
        assert!(rows.iter().all(|row| row.one != row.other));
    }
}
