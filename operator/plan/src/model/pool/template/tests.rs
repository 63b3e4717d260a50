use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::fixture;
use crate::model::pool::{Pool, Spec, SpecError};

fn read_pool(
    template: Value,
    change: impl FnOnce(&mut cudarunner_crds::CudaRunnerSpec),
) -> Result<Arc<Spec>, SpecError> {
    let mut resource = fixture::resource();
    resource.spec.template = Some(template);
    change(&mut resource.spec);
    Pool::read(&resource, false).spec
}

#[track_caller]
fn assert_refused(template: Value, path: &str, words: &str) {
    let error = read_pool(template, |_| {}).unwrap_err();
    assert_eq!(error.reason(), "InvalidTemplate");
    let said = error.to_string();
    assert!(
        said.starts_with(&format!("spec.template{path}: ")),
        "{path} is not where {said:?} points"
    );
    assert!(said.contains(words), "{words:?} is not in {said:?}");
}

fn runner_with(fields: Value) -> Value {
    let mut container = json!({"name": "runner"});
    let Value::Object(fields) = fields else {
        panic!("fields are an object")
    };
    container.as_object_mut().unwrap().extend(fields);
    json!({"spec": {"containers": [container]}})
}

fn beside_with(fields: Value) -> Value {
    let mut container = json!({"name": "vpn", "image": "example/vpn:1", "restartPolicy": "Always"});
    let Value::Object(fields) = fields else {
        panic!("fields are an object")
    };
    container.as_object_mut().unwrap().extend(fields);
    json!({"spec": {"initContainers": [container]}})
}

#[test]
fn the_pods_name_owner_and_keys_are_the_operators() {
    for field in ["name", "generateName", "namespace"] {
        assert_refused(
            json!({"metadata": {field: "x"}}),
            &format!(".metadata.{field}"),
            "labels and annotations only",
        );
    }
    assert_refused(
        json!({"metadata": {"finalizers": ["x/y"]}}),
        ".metadata.finalizers",
        "labels and annotations only",
    );
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "y"}]);
    assert_refused(
        json!({"metadata": {"ownerReferences": owner}}),
        ".metadata.ownerReferences",
        "labels and annotations only",
    );
    assert_refused(
        json!({"metadata": {"annotations": {"cudarunner.dev/avoids": "x"}}}),
        r#".metadata.annotations["cudarunner.dev/avoids"]"#,
        "choose another prefix",
    );
    assert_refused(
        json!({"metadata": {"labels": {"sub.cudarunner.dev/x": "x"}}}),
        r#".metadata.labels["sub.cudarunner.dev/x"]"#,
        "choose another prefix",
    );
}

#[test]
fn what_the_pod_may_not_be_is_named_with_what_to_write_instead() {
    let table = [
        (
            json!({"restartPolicy": "Always"}),
            "restartPolicy",
            "it is Never",
        ),
        (
            json!({"restartPolicy": "OnFailure"}),
            "restartPolicy",
            "it is Never",
        ),
        (
            json!({"nodeName": "node-1"}),
            "nodeName",
            "write nodeSelector",
        ),
        (
            json!({"activeDeadlineSeconds": 60}),
            "activeDeadlineSeconds",
            "timeout-minutes",
        ),
        (
            json!({"shareProcessNamespace": true}),
            "shareProcessNamespace",
            "remove it",
        ),
        (
            json!({"automountServiceAccountToken": true}),
            "automountServiceAccountToken",
            "projected volume",
        ),
        (
            json!({"ephemeralContainers": [{"name": "x"}]}),
            "ephemeralContainers",
            "kubectl debug",
        ),
        (
            json!({"resourceClaims": [{"name": "gpu", "resourceClaimName": "x"}]}),
            "resourceClaims",
            "spec.gpu.claimTemplate",
        ),
        (
            json!({"volumes": [{"name": "registration", "emptyDir": {}}]}),
            "volumes[registration].name",
            "choose another one",
        ),
        (
            json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"audience": AUDIENCE, "path": "t"}}]}}]}),
            "volumes[t].projected.sources",
            "choose another audience",
        ),
    ];
    for (spec, field, words) in table {
        assert_refused(json!({"spec": spec}), &format!(".spec.{field}"), words);
    }
}

#[test]
fn what_the_runner_may_not_have_is_named_with_what_to_write_instead() {
    assert_runner_refused([
        (
            json!({"command": ["/home/runner/run.sh"]}),
            "command",
            "remove command and args",
        ),
        (json!({"command": []}), "command", "remove command and args"),
        (
            json!({"args": ["--once"]}),
            "args",
            "remove command and args",
        ),
        (
            json!({"readinessProbe": {"exec": {"command": ["true"]}}}),
            "readinessProbe",
            "livenessProbe is free",
        ),
        (
            json!({"startupProbe": {"exec": {"command": ["true"]}}}),
            "startupProbe",
            "livenessProbe is free",
        ),
        (
            json!({"restartPolicy": "Always"}),
            "restartPolicy",
            "it is Never",
        ),
        (
            json!({"terminationMessagePath": "/tmp/x"}),
            "terminationMessagePath",
            "remove",
        ),
        (
            json!({"terminationMessagePolicy": "File"}),
            "terminationMessagePolicy",
            "remove",
        ),
    ]);
}

#[test]
fn devices_and_mounts_that_are_not_the_runners_are_named_with_what_to_write_instead() {
    assert_runner_refused([
        (
            json!({"resources": {"limits": {"nvidia.com/gpu": 2}}}),
            r#"resources.limits["nvidia.com/gpu"]"#,
            "spec.gpu for 1 x nvidia.com/gpu",
        ),
        (
            json!({"resources": {"requests": {"nvidia.com/gpu": "2"}}}),
            r#"resources.requests["nvidia.com/gpu"]"#,
            "set spec.gpu.resource and spec.gpu.count",
        ),
        (
            json!({"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}}),
            r#"resources.limits["nvidia.com/mig-1g.10gb"]"#,
            "it asks for 1",
        ),
        (
            json!({"resources": {"claims": [{"name": "gpu"}]}}),
            "resources.claims",
            "remove it here",
        ),
        (
            json!({"volumeMounts": [{"name": "registration", "mountPath": "/x"}]}),
            "volumeMounts[registration].name",
            "remove the mount",
        ),
        (
            json!({"volumeMounts": [{"name": "own", "mountPath": "/run/cuda-runner/"}]}),
            "volumeMounts[own].mountPath",
            "choose another path",
        ),
        (
            json!({"volumeMounts": [{"name": "own", "mountPath": "/run/cuda-runner/job-started.sh"}]}),
            "volumeMounts[own].mountPath",
            "choose another path",
        ),
        (
            json!({"volumeMounts": [{"name": "own", "mountPath": "/var/run/../run/cuda-runner"}]}),
            "volumeMounts[own].mountPath",
            "choose another path",
        ),
        (
            json!({"volumeMounts": [{"name": "own", "mountPath": "/dev/termination-log"}]}),
            "volumeMounts[own].mountPath",
            "choose another path",
        ),
    ]);
}

#[test]
fn a_volume_and_a_claim_that_a_container_names_are_in_the_pod() {
    let mount = json!({"volumeMounts": [{"name": "work", "mountPath": "/work"}]});
    let device = json!({"volumeDevices": [{"name": "work", "devicePath": "/dev/work"}]});
    let claim = json!({"resources": {"claims": [{"name": "nic"}]}});
    let (no_volume, no_claim) = (
        "volumes has no volume of this name",
        "resourceClaims has no",
    );
    // Given a name that nothing in the pod has, then the container and the name are in the message
    for (template, path, words) in [
        (
            runner_with(mount.clone()),
            ".spec.containers[runner].volumeMounts[work].name",
            no_volume,
        ),
        (
            beside_with(mount.clone()),
            ".spec.initContainers[vpn].volumeMounts[work].name",
            no_volume,
        ),
        (
            runner_with(device.clone()),
            ".spec.containers[runner].volumeDevices[work].name",
            no_volume,
        ),
        (
            runner_with(claim.clone()),
            ".spec.containers[runner].resources.claims[nic].name",
            no_claim,
        ),
    ] {
        assert_refused(template, path, words);
    }
    // And where the pod has it, the template is taken
    for fields in [mount, device, claim] {
        let mut template = runner_with(fields);
        template["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
        template["spec"]["resourceClaims"] =
            json!([{"name": "nic", "resourceClaimTemplateName": "nic"}]);
        let taken = read_pool(template, |_| {});
        assert!(taken.is_ok(), "{:?}", taken.err());
    }
}

/// Where a mount hides what the gate runs from.
const HIDES_THE_GATE: [&str; 32] = [
    "/",
    "//",
    "/usr",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/bin/nvidia-smi",
    "/usr/local",
    "/usr/local/lib",
    "/usr/local/nvidia",
    "/usr/local/nvidia/lib64",
    "/lib",
    "/lib64",
    "/lib/x86_64-linux-gnu",
    "/bin",
    "/sbin",
    "/etc",
    "/etc/ld.so.preload",
    "/etc/ld.so.conf.d",
    "/proc",
    "/proc/driver/nvidia",
    "/sys",
    "/sys/module",
    "/dev",
    "/dev/nvidia0",
    "/dev/nvidia-caps",
    "/cuda-smoke",
    "/runner-init",
    // Written otherwise
    "usr/lib",
    "/opt/../lib",
    "/usr/./lib/",
    "/../proc",
];

/// What templates mount, and the gate does not miss.
const SPARES_THE_GATE: [&str; 13] = [
    "/data",
    "/home/runner/_work",
    "/usr/local/cuda",
    "/usr/local/bin/tool",
    "/usr/share/data",
    "/etc/ssl/certs",
    "/etc/docker/config.json",
    "/dev/shm",
    "/dev/infiniband",
    "/run/docker",
    "/var/lib/docker",
    "/process",
    "/binaries",
];

/// Given a mount of the agent's container there, in which the gate runs first, then it is refused.
#[test]
fn no_mount_of_the_runner_hides_what_the_gate_runs_from() {
    let own = |field: &str, path: &str| json!({"name": "own", field: path});
    for path in HIDES_THE_GATE {
        for (list, field) in [
            ("volumeMounts", "mountPath"),
            ("volumeDevices", "devicePath"),
        ] {
            assert_refused(
                runner_with(json!({list: [own(field, path)]})),
                &format!(".spec.containers[runner].{list}[own].{field}"),
                "the gate runs in this container",
            );
        }
    }
    let is_taken = |mut template: Value, path: &str| {
        template["spec"]["volumes"] = json!([{"name": "own", "emptyDir": {}}]);
        let taken = read_pool(template, |_| {});
        assert!(taken.is_ok(), "{path}: {:?}", taken.err());
    };
    for path in SPARES_THE_GATE {
        let mount = json!({"volumeMounts": [own("mountPath", path)]});
        is_taken(runner_with(mount), path);
    }
    // And the gate runs in no other container
    for path in HIDES_THE_GATE.iter().chain(&SPARES_THE_GATE) {
        let mount = json!({"volumeMounts": [own("mountPath", path)]});
        is_taken(beside_with(mount), path);
    }
}

#[test]
fn hooks_and_probes_of_the_runner_that_ask_over_the_network_are_refused() {
    for (field, fields) in [
        (
            "lifecycle.postStart",
            json!({"lifecycle": {"postStart": {"httpGet": {"port": 80}}}}),
        ),
        (
            "lifecycle.preStop",
            json!({"lifecycle": {"preStop": {"tcpSocket": {"port": 80}}}}),
        ),
        (
            "livenessProbe",
            json!({"livenessProbe": {"grpc": {"port": 80}}}),
        ),
        (
            "livenessProbe",
            json!({"livenessProbe": {"httpGet": {"port": 80}}}),
        ),
    ] {
        assert_refused(
            runner_with(fields),
            &format!(".spec.containers[runner].{field}"),
            "write it as exec",
        );
    }
    let own = json!({"livenessProbe": {"exec": {"command": ["true"]}}, "lifecycle": {"postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 1}}}});
    assert!(read_pool(runner_with(own), |_| {}).is_ok());
}

/// Given these fields of the container `runner`, then the one that is named is refused with these words.
#[track_caller]
fn assert_runner_refused<const N: usize>(table: [(Value, &str, &str); N]) {
    for (fields, field, words) in table {
        let field = format!(".spec.containers[runner].{field}");
        assert_refused(runner_with(fields), &field, words);
    }
}

#[test]
fn variables_that_are_the_operators_are_named() {
    let env = |name: &str| runner_with(json!({"env": [{"name": name, "value": "x"}]}));
    let table = [
        ("NVIDIA_VISIBLE_DEVICES", "spec.gpu.count"),
        ("ACTIONS_RUNNER_INPUT_JITCONFIG", "spec.labels"),
        ("ACTIONS_RUNNER_INPUT_LABELS", "spec.labels"),
        (
            "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE",
            "remove it",
        ),
        ("RUNNER_MANUALLY_TRAP_SIG", "remove it"),
        ("CUDA_RUNNER_HOOK_JOB_STARTED", "choose another name"),
    ];
    for (name, words) in table {
        assert_refused(
            env(name),
            &format!(".spec.containers[runner].env[{name}]"),
            words,
        );
    }
    // Those that only some pools have
    for name in [
        "https_proxy",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "RUNNER_ALLOW_RUNASROOT",
        "ACTIONS_RUNNER_HOOK_JOB_STARTED",
    ] {
        assert!(read_pool(env(name), |_| {}).is_ok(), "{name}");
    }
    let proxy = cudarunner_crds::Proxy {
        url: "http://proxy:3128".to_owned(),
        no_proxy: vec![],
        credentials_ref: None,
    };
    let error = read_pool(env("NO_PROXY"), |spec| spec.github.proxy = Some(proxy)).unwrap_err();
    assert!(
        error.to_string().contains("spec.github.proxy.noProxy"),
        "{error}"
    );
    let bundle = cudarunner_crds::KeyReference {
        name: "ca".to_owned(),
        key: "ca.crt".to_owned(),
    };
    let error = read_pool(env("SSL_CERT_FILE"), |spec| {
        spec.github.ca_bundle_ref = Some(bundle);
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("spec.github.caBundleRef"),
        "{error}"
    );
}

#[test]
fn other_containers_are_init_containers() {
    for containers in [
        json!([{"name": "main"}]),
        json!([{"name": "main"}, {"name": "runner"}]),
    ] {
        let path = ".spec.containers[main].name";
        assert_refused(
            json!({"spec": {"containers": containers}}),
            path,
            "initContainers with restartPolicy: Always",
        );
    }
    assert_refused(
        json!({"spec": {"containers": [{"name": "runner"}, {"name": "runner"}]}}),
        ".spec.containers[runner].name",
        "two containers",
    );
    for name in ["prepare", "gpu", "main", "runner"] {
        assert_refused(
            beside_with(json!({"name": name})),
            &format!(".spec.initContainers[{name}].name"),
            "choose another",
        );
    }
}

#[test]
fn other_containers_have_no_gpu() {
    let table = [
        (
            json!({"resources": {"limits": {"nvidia.com/gpu": 1}}}),
            "resources",
            "no other container gets one",
        ),
        (
            json!({"resources": {"claims": [{"name": "nic"}]}}),
            "resources.claims",
            "for the container runner",
        ),
        (
            json!({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}),
            "env[NVIDIA_VISIBLE_DEVICES]",
            "no other container gets one",
        ),
        (
            json!({"volumeMounts": [{"name": "registrar-token", "mountPath": "/x"}]}),
            "volumeMounts[registrar-token].name",
            "remove the mount",
        ),
    ];
    for (fields, field, words) in table {
        assert_refused(
            beside_with(fields),
            &format!(".spec.initContainers[vpn].{field}"),
            words,
        );
    }
    assert!(
        read_pool(
            beside_with(
                json!({"command": ["vpn"], "startupProbe": {"exec": {"command": ["true"]}}})
            ),
            |_| {}
        )
        .is_ok()
    );
}

#[test]
fn what_changes_nothing_is_left_out_and_stalls_no_pool() {
    // Given what a template brings along from Helm, from another controller and for another image
    let variables = [
        "RUNNER_NAME",
        "RUNNER_TOKEN",
        "RUNNER_LABELS",
        "RUNNER_WORKDIR",
        "RUNNER_ALLOW_RUNASROOT",
    ];
    let variables: Vec<_> = variables
        .map(|name| json!({"name": name, "value": "x"}))
        .into();
    let mut given = runner_with(json!({"env": variables, "command": null, "readinessProbe": null}));
    given["metadata"] = json!({
        "labels": {"app.kubernetes.io/managed-by": "Helm", "app": "ci"},
        "annotations": null, "creationTimestamp": null, "name": null
    });
    given["spec"]["readinessGates"] = json!([{"conditionType": "x/y"}]);
    given["spec"]["nodeName"] = json!(null);
    given["spec"]["initContainers"] = json!([{"name": "vpn", "restartPolicy": "Always", "readinessProbe": {"exec": {"command": ["true"]}}}]);

    // When it is read
    let template = read_pool(given, |_| {}).unwrap().template.clone();

    // Then it is taken, without what nobody reads here
    let labels = template.metadata.unwrap().labels.unwrap();
    assert_eq!(labels.into_keys().collect::<Vec<_>>(), ["app"]);
    let spec = template.spec.unwrap();
    let env = spec.containers[0].env.iter().flatten();
    let names: Vec<&str> = env.map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["RUNNER_ALLOW_RUNASROOT"]);
    assert_eq!(spec.readiness_gates.unwrap().len(), 1);
}

#[test]
fn devices_that_agree_with_the_spec_are_taken() {
    let two = json!({"resources": {"limits": {"nvidia.com/gpu": 2, "cpu": "4"}, "requests": {"nvidia.com/gpu": "2"}}});
    assert!(read_pool(runner_with(two.clone()), |spec| spec.gpu.count = Some(2)).is_ok());
    let claim = |spec: &mut cudarunner_crds::CudaRunnerSpec| {
        spec.gpu.claim_template = Some("a100".to_owned());
    };
    let error = read_pool(runner_with(two), claim).unwrap_err();
    assert!(error.to_string().contains("claim a100"), "{error}");
    // Devices of other kinds are the user's
    let nic = json!({"resources": {"limits": {"rdma/hca": 1, "nvidia.com/hostdev": 1}}});
    assert!(read_pool(runner_with(nic), |_| {}).is_ok());
}

#[test]
fn a_template_has_a_largest_size() {
    let of = |bytes: usize| json!({"metadata": {"annotations": {"a": "x".repeat(bytes)}}});
    assert!(read_pool(of(60_000), |_| {}).is_ok());
    assert_refused(
        of(70_000),
        "",
        "70037 bytes as JSON, and 65536 are the most",
    );
}

#[test]
fn where_jobs_bring_their_containers_their_folders_and_variables_are_the_operators() {
    let read = |template: &Value, with_containers: bool| {
        read_pool(template.clone(), |spec| {
            spec.job_containers = with_containers.then(Default::default);
        })
    };
    let mount = |name: &str, path: &str| {
        let mut template =
            runner_with(json!({"volumeMounts": [{"name": name, "mountPath": path}]}));
        template["spec"]["volumes"] = json!([{"name": name, "emptyDir": {}}]);
        template
    };
    let mut sees_all = runner_with(json!({}));
    sees_all["spec"]["hostPID"] = json!(true);
    for (template, words) in [
        (sees_all, "what the agent knows"),
        (mount("fast", "/home/runner/_work"), "share folders"),
        (mount("fast", "/home/runner/_work/_tool"), "share folders"),
        (mount("shm", "/dev/shm"), "spec.sharedMemory"),
        (mount("x", "/__w"), "share folders"),
        (mount("x", "/github/home"), "share folders"),
        (mount("x", "/run/cuda-runner-agent"), "share folders"),
        (mount("job-work", "/data"), "has this name"),
        (
            runner_with(
                json!({"env": [{"name": "ACTIONS_RUNNER_CONTAINER_HOOKS", "value": "/x.sh"}]}),
            ),
            "spec.jobContainers sets it",
        ),
    ] {
        let refused = read(&template, true).unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        assert!(read(&template, false).is_ok(), "{template}");
    }
    // A sidecar has nothing of the job's, and may have shared memory of its own
    let beside = json!({"spec": {
        "initContainers": [{"name": "vpn", "image": "v", "restartPolicy": "Always", "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}],
        "volumes": [{"name": "shm", "emptyDir": {}}],
    }});
    assert!(read(&beside, true).is_ok());
}

#[test]
fn where_the_pool_says_how_much_shared_memory_there_is_no_template_does() {
    let mounted = |name: &str, size: Option<&str>| {
        let mut template =
            runner_with(json!({"volumeMounts": [{"name": name, "mountPath": "/dev/shm"}]}));
        template["spec"]["volumes"] = json!([{"name": name, "emptyDir": {"medium": "Memory"}}]);
        read_pool(template, |spec| {
            spec.shared_memory = size.map(str::to_owned);
        })
    };
    for name in ["dshm", "job-shm"] {
        assert!(mounted(name, None).is_ok(), "{name}");
        assert!(mounted(name, Some("8Gi")).is_err(), "{name}");
    }
    let refused = mounted("dshm", Some("8Gi")).unwrap_err().to_string();
    assert!(refused.contains("spec.sharedMemory"), "{refused}");
}
