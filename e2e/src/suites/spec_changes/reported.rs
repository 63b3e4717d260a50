//! Values that the API server accepts and that lead nowhere: the operator must say so, with a reason.

use serde_json::{Value, json};

use super::rows::set;
use crate::suites::context::merge;

/// A value that is reported.
pub(super) struct Reported {
    /// The field's path in the spec.
    pub(super) path: &'static str,
    value: Value,
    base: Value,
    /// The reason of a condition.
    pub(super) reason: &'static str,
}

impl Reported {
    /// A spec with this value.
    pub(super) fn spec(&self) -> Value {
        let mut spec = json!({});
        merge(&mut spec, self.base.clone());
        set(&mut spec, self.path, &self.value);
        spec
    }
}

/// All of them. None makes a pod that gets a node.
pub(super) fn reported(github: &str, repository: &str) -> Vec<Reported> {
    let organization = repository.split('/').next().unwrap_or_default();
    let queue = json!({
        "github": {"url": format!("{github}/{organization}")},
        "scaling": {"minRunners": 1, "maxRunners": 2},
    });
    let nowhere = json!({"spec": {"nodeSelector": {"example.com/nowhere": "true"}}});
    let nobody = json!({"spec": {"serviceAccountName": "absent"}});
    let mut all = of_github(github, repository);
    all.extend([
        value("gpu.resource", json!("example.com/none"), "Unschedulable"),
        value("arch", json!("arm64"), "Unschedulable"),
        value("gpu.count", json!(16), "Unschedulable"),
        value("template", nowhere, "Unschedulable"),
        value("template", nobody, "PodNotCreated"),
        Reported {
            base: json!({"smoke": {"resources": {"limits": {"cpu": "1"}}}}),
            ..value("smoke.resources.requests.cpu", json!("2"), "PodNotCreated")
        },
        Reported {
            base: queue,
            ..value("scaling.source", json!("Poll"), "NoQueue")
        },
        Reported {
            base: super::rows::by_time(),
            ..value(
                "scaling.schedule[].timeZone",
                json!("Europe/Berln"),
                "InvalidSchedule",
            )
        },
    ]);
    all
}

/// The way to GitHub.
fn of_github(github: &str, repository: &str) -> Vec<Reported> {
    vec![
        value(
            "github.url",
            json!(format!("{github}/{repository}-nowhere")),
            "NotFound",
        ),
        value(
            "github.url",
            json!("https://nowhere.invalid/a/b"),
            "Unreachable",
        ),
        value(
            "github.credentialsRef.name",
            json!("absent"),
            "SecretNotFound",
        ),
        value(
            "github.caBundleRef.name",
            json!("absent"),
            "CaBundleNotFound",
        ),
        value(
            "github.caBundleRef.key",
            json!("absent"),
            "CaBundleNotFound",
        ),
        value(
            "github.proxy.url",
            json!("http://127.0.0.1:1"),
            "Unreachable",
        ),
        Reported {
            base: json!({"github": {"proxy": {"url": "http://127.0.0.1:1"}}}),
            ..value(
                "github.proxy.credentialsRef.name",
                json!("absent"),
                "SecretNotFound",
            )
        },
    ]
}

/// A value at this path, which this reason is to follow.
fn value(path: &'static str, value: Value, reason: &'static str) -> Reported {
    Reported {
        path,
        value,
        base: json!({}),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::rows::tests::fields;
    use super::*;

    /// Whatever the CRD admits can be carried out.
    const ALL_GOOD: &[&str] = &[
        "deletionPolicy",
        "github.proxy.noProxy",
        "gpu.peerAccess",
        "jobContainers.imagePullPolicy",
        "jobContainers.runAsUser",
        "jobContainers.services",
        "jobContainers.shmSize",
        "jobs.maxMinutes",
        "labels",
        "lifetime",
        "registration",
        "replicas",
        "requiredChecks.allowUnseen",
        "requiredChecks.branches[].ifProtected",
        "requiredChecks.mode",
        "rerun.limit",
        "rerun.onGpuFault",
        "rerun.onNodeLoss",
        "scaling.maxRunners",
        "scaling.minRunners",
        "sharedMemory",
        "scaling.weight",
        "smoke.managedMemory",
        "smoke.minFreeMemoryPercent",
        "smoke.quarantineMinutes",
        "smoke.timeoutSeconds",
        "teardownTimeout",
        "verify.every",
        "verify.pickupSeconds",
    ];
    /// What is wrong shows with a node, a run or a group: other suites and tests have it.
    const ELSEWHERE: &[(&str, &[&str])] = &[
        ("suite claims", &["gpu.claimTemplate"]),
        (
            "suite schedule",
            &[
                "scaling.schedule[].days",
                "scaling.schedule[].from",
                "scaling.schedule[].minRunners",
                "scaling.schedule[].to",
            ],
        ),
        ("suite webhook", &["scaling.webhook.secretRef.name"]),
        (
            "suite job-policy",
            &["jobs.allow.events", "jobs.allow.forks", "jobs.allow.refs"],
        ),
        ("suite telemetry-of-jobs", &["jobs.telemetry"]),
        (
            "test each_demand_of_the_pool_is_held_up_to_the_report",
            &["gpu.minComputeCapability", "gpu.minCudaVersion"],
        ),
        (
            "test runner_groups_are_found_by_name_and_remembered",
            &["github.runnerGroup"],
        ),
        (
            "suite preflight",
            &[
                "preflight.commands",
                "preflight.cudaToolkit",
                "preflight.egress",
                "preflight.minDiskMiB",
                "preflight.rustToolchain",
            ],
        ),
        (
            "as smoke.resources.requests.cpu",
            &[
                "jobContainers.resources.limits.cpu",
                "jobContainers.resources.limits.ephemeral-storage",
                "jobContainers.resources.limits.memory",
                "jobContainers.resources.requests.cpu",
                "jobContainers.resources.requests.ephemeral-storage",
                "jobContainers.resources.requests.memory",
                "smoke.resources.limits.cpu",
                "smoke.resources.limits.ephemeral-storage",
                "smoke.resources.limits.memory",
                "smoke.resources.requests.ephemeral-storage",
                "smoke.resources.requests.memory",
            ],
        ),
        ("suite required-checks", &["requiredChecks.branches[].name"]),
        (
            "suite verification",
            &[
                "verify.jobs[].name",
                "verify.jobs[].tests.passed",
                "verify.ref",
                "verify.repository",
                "verify.workflow",
            ],
        ),
    ];

    #[test]
    fn of_every_field_it_is_known_what_tells_a_value_that_leads_nowhere() {
        let here: BTreeSet<&str> = reported("https://github.test", "o/r")
            .iter()
            .map(|reported| reported.path)
            .collect();
        let elsewhere = ELSEWHERE.iter().flat_map(|(_, paths)| paths.iter());
        let others: Vec<&str> = ALL_GOOD.iter().chain(elsewhere).copied().collect();
        assert!(others.iter().all(|field| !here.contains(field)));
        let all = here.iter().chain(&others).map(|field| (*field).to_owned());
        assert_eq!(all.collect::<BTreeSet<String>>(), fields());
    }
}
