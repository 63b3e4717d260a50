//! The CEL rules refuse what can never work, with a message that says what to write instead.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test, with its helpers"
)]

use cudarunner_crds::{Arch, CudaRunner, template};
use kube::core::cel::Validator;
use serde_json::{Value, json};

/// The smallest manifest: everything but `spec.github` has a default.
fn manifest() -> Value {
    json!({
        "apiVersion": "cudarunner.dev/v1alpha1",
        "kind": "CudaRunner",
        "metadata": {"name": "pool", "namespace": "ci"},
        "spec": {
            "github": {
                "url": "https://github.com/acme/widgets",
                "credentialsRef": {"name": "github"}
            },
            "labels": ["self-hosted", "cuda"],
            "gpu": {"resource": "nvidia.com/gpu"}
        }
    })
}

/// Messages of the rules that refuse `manifest`.
fn refusals(manifest: &Value) -> Vec<String> {
    let crd = serde_json::to_value(cudarunner_crds::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    match Validator::new().validate(schema, manifest, None) {
        Ok(()) => vec![],
        Err(errors) => errors.iter().map(|e| e.message.clone()).collect(),
    }
}

#[track_caller]
fn assert_refused(change: impl FnOnce(&mut Value), part: &str) {
    let mut changed = manifest();
    change(&mut changed);
    let said = refusals(&changed);
    assert!(
        said.iter().any(|m| m.contains(part)),
        "expected a refusal with {part:?}, got {said:?}"
    );
}

#[test]
fn smallest_manifest_is_accepted_and_gets_the_defaults() {
    assert_eq!(refusals(&manifest()), Vec::<String>::new());

    let pool: CudaRunner = serde_json::from_value(json!({
        "apiVersion": "cudarunner.dev/v1alpha1",
        "kind": "CudaRunner",
        "metadata": {"name": "pool"},
        "spec": {"github": {"url": "https://github.com/acme/widgets", "credentialsRef": {"name": "github"}}}
    }))
    .unwrap();
    assert!(pool.spec.labels.is_empty());
    assert_eq!(
        pool.runner_labels(),
        ["self-hosted", "Linux", "X64", "cuda", "pool"]
    );
    let mut on_arm = pool.clone();
    on_arm.spec.arch = Arch::Arm64;
    assert_eq!(
        on_arm.runner_labels(),
        ["self-hosted", "Linux", "ARM64", "cuda", "pool"]
    );
    assert_eq!(pool.spec.gpu.resource, "nvidia.com/gpu");
    assert_eq!(pool.spec.gpu.min_compute_capability, "7.0");
    assert_eq!(pool.spec.smoke.timeout_seconds, 30);
    assert_eq!(pool.spec.teardown_timeout, "10m");
}

#[test]
fn replicas_and_scaling_exclude_each_other() {
    assert_refused(
        |m| {
            m["spec"]["replicas"] = json!(1);
            m["spec"]["scaling"] = json!({"minRunners": 0, "maxRunners": 2});
        },
        "not both",
    );
}

#[test]
fn a_range_is_not_upside_down() {
    assert_refused(
        |m| m["spec"]["scaling"] = json!({"minRunners": 3, "maxRunners": 2}),
        "minRunners may not be larger",
    );
}

#[test]
fn who_wants_jobs_run_again_says_which() {
    let rerun = |gpu: bool, node: bool| json!({"onGpuFault": gpu, "onNodeLoss": node});
    assert_refused(
        |m| m["spec"]["rerun"] = rerun(false, false),
        "or remove spec.rerun",
    );
    for wanted in [rerun(true, false), rerun(false, true), rerun(true, true)] {
        let mut changed = manifest();
        changed["spec"]["rerun"] = wanted;
        assert_eq!(refusals(&changed), Vec::<String>::new());
        let pool: CudaRunner = serde_json::from_value(changed).unwrap();
        assert_eq!(pool.spec.rerun.map(|rerun| rerun.limit), Some(1));
    }
}

#[test]
fn count_and_claim_exclude_each_other() {
    assert_refused(
        |m| m["spec"]["gpu"] = json!({"count": 1, "claimTemplate": "one-gpu"}),
        "not both",
    );
}

#[test]
fn shared_memory_is_a_size_that_is_said_once() {
    let said = |size: &str, containers: Value| {
        let mut changed = manifest();
        changed["spec"]["sharedMemory"] = json!(size);
        changed["spec"]["jobContainers"] = containers;
        refusals(&changed)
    };
    for (size, containers) in [
        ("8Gi", json!({})),
        ("512Mi", json!({"shmSize": "512Mi"})),
        ("512Mi", json!({"shmSize": "64Mi"})),
    ] {
        let refused = said(size, containers.clone());
        assert_eq!(refused, Vec::<String>::new(), "{size}, {containers}");
    }
    let refused = said("8Gi", json!({"shmSize": "4Gi"})).join(" ");
    assert!(
        refused.contains("remove spec.jobContainers.shmSize"),
        "{refused}"
    );
}

#[test]
fn the_containers_of_jobs_are_not_combined_with_what_they_would_undo() {
    let accepted = |containers: Value| {
        let mut changed = manifest();
        changed["spec"]["jobContainers"] = containers;
        changed["spec"]["preflight"] = json!({"commands": ["git"], "egress": ["https://ghcr.io"]});
        refusals(&changed)
    };
    for good in [
        json!({}),
        json!({"shmSize": "8Gi", "imagePullPolicy": "Always", "services": false}),
        json!({"resources": {"requests": {"cpu": 8}, "limits": {"memory": "64Gi"}}}),
    ] {
        assert_eq!(accepted(good.clone()), Vec::<String>::new(), "{good}");
    }
    assert_refused(
        |m| {
            m["spec"]["jobContainers"] = json!({});
            m["spec"]["lifetime"] = json!("Persistent");
        },
        "is not cleared for the next job",
    );
    for preflight in [
        json!({"cudaToolkit": ">=12.0"}),
        json!({"rustToolchain": "1.90"}),
    ] {
        assert_refused(
            |m| {
                m["spec"]["jobContainers"] = json!({});
                m["spec"]["preflight"] = preflight;
            },
            "bring their toolkits",
        );
    }
    let pool: CudaRunner = serde_json::from_value(json!({
        "apiVersion": "cudarunner.dev/v1alpha1", "kind": "CudaRunner", "metadata": {"name": "pool"},
        "spec": {
            "github": {"url": "https://github.com/acme/widgets", "credentialsRef": {"name": "github"}},
            "jobContainers": {},
        }
    }))
    .unwrap();
    assert_eq!(
        pool.spec.job_containers,
        Some(cudarunner_crds::JobContainers::default())
    );
}

#[test]
fn labels_are_not_empty_and_have_no_blanks() {
    assert_refused(|m| m["spec"]["labels"] = json!([]), "at least one label");
    assert_refused(|m| m["spec"]["labels"] = json!(["a b"]), "no spaces");
    assert_refused(|m| m["spec"]["labels"] = json!(["a,b"]), "no spaces");
}

#[test]
fn url_names_a_repository_an_organization_or_an_enterprise() {
    for good in [
        "https://github.com/acme",
        "https://github.com/acme/widgets",
        "https://github.com/enterprises/acme",
        "https://ghe.example.com:8443/acme/widgets/",
    ] {
        let mut changed = manifest();
        changed["spec"]["github"]["url"] = json!(good);
        assert_eq!(refusals(&changed), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "github.com/acme/widgets",
        "https://github.com",
        "https://github.com/acme/widgets/actions",
        "https://user@github.com/acme/widgets",
        "https://github.com/acme/widgets?tab=readme",
        "ssh://git@github.com/acme/widgets",
    ] {
        assert_refused(
            |m| m["spec"]["github"]["url"] = json!(bad),
            "address of a repository",
        );
    }
}

#[test]
fn durations_have_bounds() {
    let verify = |every: &str| json!({"workflow": "w.yml", "ref": "main", "every": every, "jobs": [{"name": "cuda"}]});
    for good in ["0s", "10m", "119h59m", "120h", "1.5h", "500ms"] {
        let mut changed = manifest();
        changed["spec"]["teardownTimeout"] = json!(good);
        assert_eq!(refusals(&changed), Vec::<String>::new(), "{good}");
    }
    for good in ["10m", "24h", "8760h"] {
        let mut changed = manifest();
        changed["spec"]["verify"] = verify(good);
        assert_eq!(refusals(&changed), Vec::<String>::new(), "{good}");
    }
    for bad in ["121h", "999999h"] {
        assert_refused(
            |m| m["spec"]["teardownTimeout"] = json!(bad),
            "at most 120h",
        );
    }
    for bad in ["0m", "9m", "9.9m", "8761h"] {
        assert_refused(|m| m["spec"]["verify"] = verify(bad), "at least 10m");
    }
}

/// Whether the pattern of a field admits a text, as the API server decides it.
#[track_caller]
fn admits(path: &[&str], text: &str) -> bool {
    let crd = serde_json::to_value(cudarunner_crds::crd()).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let field = path.iter().fold(spec, |schema, name| match *name {
        "[]" => &schema["items"],
        name => &schema["properties"][name],
    });
    let pattern = field["pattern"].as_str().expect("a pattern");
    let limit = field["maxLength"].as_u64().expect("a length");
    regex::Regex::new(pattern).unwrap().is_match(text) && text.len() as u64 <= limit
}

#[test]
fn names_are_those_of_objects_and_nothing_else() {
    let names: [&[&str]; 3] = [
        &["github", "credentialsRef", "name"],
        &["github", "caBundleRef", "name"],
        &["gpu", "claimTemplate"],
    ];
    for path in names {
        for good in ["app", "github-app.v2", "0"] {
            assert!(admits(path, good), "{path:?} {good:?}");
        }
        for bad in [
            "",
            "app,metadata.name!=x",
            "App",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "a=b",
        ] {
            assert!(!admits(path, bad), "{path:?} {bad:?}");
        }
    }
    assert!(admits(&["github", "caBundleRef", "key"], "ca.crt"));
    assert!(!admits(&["github", "caBundleRef", "key"], "../ca"));
}

#[test]
fn what_is_shown_elsewhere_has_no_invisible_characters() {
    let shown: [&[&str]; 5] = [
        &["github", "runnerGroup"],
        &["verify", "workflow"],
        &["verify", "ref"],
        &["verify", "jobs", "[]", "name"],
        &["requiredChecks", "branches", "[]", "name"],
    ];
    for path in shown {
        assert!(admits(path, "größe-1.yml"), "{path:?}");
        for bad in [
            "",
            "a\u{1b}[2J",
            "a\nb",
            "a\u{202e}b",
            "a\u{7f}",
            "a\u{9b}31m",
        ] {
            assert!(!admits(path, bad), "{path:?} {bad:?}");
        }
    }
    // An emoji of several parts is joined by one.
    assert!(admits(
        &["verify", "jobs", "[]", "name"],
        "cuda 👩\u{200d}🚀 / x (1)"
    ));
    assert!(!admits(&["verify", "workflow"], "../cuda.yml"));
    assert!(!admits(&["verify", "ref"], "a b"));
    assert_refused(
        |m| m["spec"]["labels"] = json!(["a\u{202e}b"]),
        "no invisible",
    );
}

#[test]
fn checks_need_a_verification() {
    assert_refused(
        |m| m["spec"]["requiredChecks"] = json!({"branches": [{"name": "main"}]}),
        "add spec.verify",
    );
}

/// A template that changes the runner's container.
fn runner(change: &Value) -> Value {
    let mut container = json!({"name": "runner", "image": "example/runner:1"});
    container
        .as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    json!({"spec": {"containers": [container]}})
}

/// Templates that take what is the operator's, and what is said of them.
fn templates_that_take() -> Vec<(Value, &'static str)> {
    vec![
        (json!({"metadata": {"name": "x"}}), template::METADATA),
        (
            json!({"metadata": {"generateName": "x-"}}),
            template::METADATA,
        ),
        (
            json!({"metadata": {"labels": {"cudarunner.dev/pool": "x"}}}),
            template::OWN_KEYS,
        ),
        (
            json!({"metadata": {"annotations": {"cudarunner.dev/avoids": "x"}}}),
            template::OWN_KEYS,
        ),
        (
            json!({"spec": {"restartPolicy": "Always"}}),
            template::RESTART_POLICY,
        ),
        (json!({"spec": {"nodeName": "node-1"}}), template::NODE_NAME),
        (
            json!({"spec": {"activeDeadlineSeconds": 60}}),
            template::DEADLINE,
        ),
        (
            json!({"spec": {"shareProcessNamespace": true}}),
            template::SHARED_PROCESSES,
        ),
        (
            json!({"spec": {"automountServiceAccountToken": true}}),
            template::ACCOUNT_TOKEN,
        ),
        (
            json!({"spec": {"containers": [{"name": "main"}]}}),
            template::OTHER_CONTAINER,
        ),
        (
            json!({"spec": {"containers": [{"name": "runner"}, {"name": "dind"}]}}),
            template::OTHER_CONTAINER,
        ),
        (
            runner(&json!({"command": ["/home/runner/run.sh"]})),
            template::COMMAND,
        ),
        (runner(&json!({"args": ["--once"]})), template::COMMAND),
        (
            runner(&json!({"readinessProbe": {"exec": {"command": ["true"]}}})),
            template::PROBE,
        ),
        (
            runner(&json!({"startupProbe": {"exec": {"command": ["true"]}}})),
            template::PROBE,
        ),
    ]
}

#[test]
fn a_template_that_takes_what_is_the_operators_is_refused() {
    for (given, words) in templates_that_take() {
        assert_refused(|m| m["spec"]["template"] = given.clone(), words);
    }
    let taken = [
        json!(null),
        json!({"metadata": {"labels": {"team": "ml"}, "annotations": {}}}),
        json!({"spec": {"restartPolicy": "Never", "automountServiceAccountToken": false, "hostNetwork": true}}),
        runner(
            &json!({"env": [{"name": "A", "value": "1"}], "livenessProbe": {"exec": {"command": ["true"]}}}),
        ),
    ];
    for given in taken {
        let mut changed = manifest();
        changed["spec"]["template"] = given.clone();
        assert_eq!(refusals(&changed), Vec::<String>::new(), "{given}");
    }
}

#[test]
fn a_null_in_a_template_is_as_good_as_nothing() {
    /// Paths of the fields that the API server would refuse a null for. To its rules one is absent; the validator of
    /// these tests is no judge of that, so the suite `template` is.
    fn strict(path: &str, schema: &Value, found: &mut Vec<String>) {
        let properties = schema["properties"].as_object().into_iter().flatten();
        for (name, property) in properties {
            let path = format!("{path}.{name}");
            if property["nullable"] != true {
                found.push(path.clone());
            }
            strict(&path, property, found);
        }
        if schema["items"].is_object() {
            strict(&format!("{path}[]"), &schema["items"], found);
        }
    }
    let crd = serde_json::to_value(cudarunner_crds::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let template = &schema["properties"]["spec"]["properties"]["template"];
    let mut found = vec![];
    strict("", template, &mut found);
    assert_eq!(found, [".spec.containers[].name"]);
}

#[test]
fn a_name_leaves_room_for_the_runners_suffix() {
    assert_refused(
        |m| m["metadata"]["name"] = json!("x".repeat(58)),
        "at most 57",
    );
}

#[test]
fn the_schema_is_described_throughout() {
    fn undescribed(path: &str, schema: &Value, found: &mut Vec<String>) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            if property["description"].as_str().is_none_or(str::is_empty) {
                found.push(path.clone());
            }
            undescribed(&path, property, found);
            undescribed(&path, &property["items"], found);
        }
    }
    let crd = serde_json::to_value(cudarunner_crds::crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut found = vec![];
    undescribed("spec", &schema["properties"]["spec"], &mut found);
    assert!(
        found.is_empty(),
        "kubectl explain would be silent on {found:?}"
    );
}

#[test]
fn who_may_use_the_gpu_is_written_so_that_it_can_come_true() {
    let with = |allow: Value| {
        let mut changed = manifest();
        changed["spec"]["jobs"] = json!({"allow": allow});
        refusals(&changed)
    };
    for good in [
        json!({}),
        json!({"forks": true}),
        json!({"events": ["push", "merge_group", "pull_request_target"], "forks": false}),
        json!({"refs": ["refs/heads/main", "refs/heads/release/**", "refs/tags/v*", "refs/pull/*/merge"]}),
    ] {
        assert_eq!(with(good.clone()), Vec::<String>::new(), "{good}");
    }
    for (bad, part) in [
        (json!({"events": []}), "name at least one event"),
        (
            json!({"events": ["Push"]}),
            "write an event as a workflow's on: has it",
        ),
        (
            json!({"events": ["pull-request"]}),
            "write an event as a workflow's on: has it",
        ),
        (
            json!({"events": ["workflow_call"]}),
            "the event of its caller",
        ),
        (json!({"refs": []}), "name at least one ref"),
        (json!({"refs": ["main"]}), "write a whole ref"),
        (
            json!({"refs": ["refs/heads/v[0-9]"]}),
            "knows * and ** alone",
        ),
        (json!({"refs": ["refs/heads/a b"]}), "knows * and ** alone"),
        (json!({"refs": ["refs/heads/\\"]}), "knows * and ** alone"),
    ] {
        let said = with(bad.clone());
        assert!(said.iter().any(|m| m.contains(part)), "{bad}: {said:?}");
    }
    assert_refused(
        |m| {
            m["spec"]["lifetime"] = json!("Persistent");
            m["spec"]["jobs"] = json!({"allow": {}});
        },
        "an earlier job can change",
    );
}

#[test]
fn what_kubectl_cudarunner_migrate_writes_is_accepted() {
    let folder = "../operator/src/bin/kubectl-cudarunner/migrate/snapshots";
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        // A heading of insta's, and the screen.
        let written = text.splitn(3, "---\n").nth(2).unwrap();
        let resources: Vec<Value> = serde_saphyr::from_multiple(written).unwrap();
        for resource in resources {
            assert_eq!(refusals(&resource), Vec::<String>::new(), "{path:?}");
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} resources");
}
