use std::collections::BTreeSet;

use super::runner::ONLINE;
use super::*;
use crate::fixture;
use cudarunner_crds::{Lifetime, RegistrationMode};
use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::{Value, json};

fn settings() -> PodSettings {
    PodSettings {
        gate_image: "example/cuda-smoke:1".into(),
        image_pull_policy: "IfNotPresent".into(),
        registrar_url: "https://10.96.0.7:8443".into(),
        registrar_ca: "-----BEGIN CERTIFICATE-----".into(),
    }
}

fn new(name: &str) -> NewRunner {
    NewRunner {
        name: name.to_owned(),
        avoids: BTreeSet::new(),
    }
}

fn built(template: serde_json::Value) -> Pod {
    let mut resource = fixture::resource();
    resource.spec.template = Some(template);
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    build(&pool, &spec, &settings(), &new("pool-aaaaa"))
}

#[test]
fn the_pod_is_as_documented() {
    insta::assert_json_snapshot!(built(json!({})), {".metadata.annotations[\"cudarunner.dev/template\"]" => "[hash]"});
}

#[test]
fn the_template_is_merged_by_name_and_devices_stay() {
    let pod = built(json!({
        "metadata": {"labels": {"team": "ml"}, "annotations": {"karpenter.sh/do-not-disrupt": "false"}},
        "spec": {
            "nodeSelector": {"gpu": "a100"},
            "containers": [
                {"name": "runner", "image": "example/runner:1",
                 "env": [{"name": "A", "value": "1"}],
                 "resources": {"requests": {"cpu": "4"}},
                 "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "protocol": "TCP"}]},
            ],
            "initContainers": [{"name": "vpn", "image": "example/vpn:1", "restartPolicy": "Always"}]
        }
    }));
    let spec = pod.spec.unwrap();
    let init = spec.init_containers.unwrap();
    let names: Vec<&str> = init.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(
        names,
        ["gate", "vpn"],
        "the gate fails before anything else is done"
    );
    let sees = init[1]
        .env
        .iter()
        .flatten()
        .find(|v| v.name == "NVIDIA_VISIBLE_DEVICES");
    assert_eq!(
        sees.unwrap().value.as_deref(),
        Some("void"),
        "whatever its image says"
    );
    let runner = &spec.containers[0];
    assert_eq!(runner.image.as_deref(), Some("example/runner:1"));
    assert_eq!(runner.ports.as_ref().unwrap().len(), 2);
    let resources = runner.resources.as_ref().unwrap();
    assert_eq!(resources.requests.as_ref().unwrap()["cpu"].0, "4");
    assert_eq!(resources.limits.as_ref().unwrap()["nvidia.com/gpu"].0, "1");
    let names: Vec<&str> = runner
        .env
        .iter()
        .flatten()
        .map(|e| e.name.as_str())
        .collect();
    assert!(names.contains(&"A") && names.contains(&"ACTIONS_RUNNER_HOOK_JOB_STARTED"));
    let labels = pod.metadata.labels.unwrap();
    assert_eq!(
        (
            labels["team"].as_str(),
            labels["cudarunner.dev/pool"].as_str()
        ),
        ("ml", "pool")
    );
    assert_eq!(
        pod.metadata.annotations.unwrap()["karpenter.sh/do-not-disrupt"],
        "false"
    );
}

#[test]
fn tolerations_are_added_to_ours_each_once() {
    let own = json!([
        {"key": "example.com/donor", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]);
    let pod = built(json!({"spec": {"tolerations": own}}));
    let tolerations = pod.spec.unwrap().tolerations.unwrap();
    let keys: Vec<_> = tolerations
        .iter()
        .filter_map(|t| t.key.as_deref())
        .collect();
    assert_eq!(
        keys,
        [node_marks::TAINT, "example.com/donor", "nvidia.com/gpu"]
    );
}

#[test]
fn the_teams_hooks_are_handed_to_ours() {
    let pod = built(json!({"spec": {"containers": [{"name": "runner", "env": [
        {"name": "ACTIONS_RUNNER_HOOK_JOB_STARTED", "value": "/hooks/started.sh"},
        {"name": "ACTIONS_RUNNER_HOOK_JOB_COMPLETED", "value": "/hooks/completed.sh"},
    ]}]}}));
    let runner = &pod.spec.unwrap().containers[0];
    let found: Vec<(&str, &str)> = runner
        .env
        .iter()
        .flatten()
        .filter(|v| v.name.contains("_HOOK_"))
        .filter_map(|v| Some((v.name.as_str(), v.value.as_deref()?)))
        .collect();
    assert_eq!(
        found,
        [
            (
                "ACTIONS_RUNNER_HOOK_JOB_STARTED",
                "/run/cuda-runner/job-started.sh"
            ),
            (
                "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
                "/run/cuda-runner/job-completed.sh"
            ),
            ("CUDA_RUNNER_HOOK_JOB_STARTED", "/hooks/started.sh"),
            ("CUDA_RUNNER_HOOK_JOB_COMPLETED", "/hooks/completed.sh"),
        ]
    );
}

#[test]
fn ours_say_what_they_may_use_and_the_spec_can_say_otherwise() {
    let resources = |change: fn(&mut cudarunner_crds::CudaRunnerSpec)| {
        let mut resource = fixture::resource();
        resource.spec.preflight = serde_json::from_value(json!({"commands": ["git"]})).ok();
        change(&mut resource.spec);
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"))
            .spec
            .unwrap();
        let init = pod.init_containers.unwrap();
        let found = init
            .into_iter()
            .map(|c| serde_json::to_value(c.resources).unwrap());
        found.collect::<Vec<_>>()
    };
    let requests = json!({"cpu": "10m", "memory": "64Mi"});
    assert_eq!(
        resources(|spec| spec.gpu.count = Some(8)),
        [
            json!({"requests": requests, "limits": {"cpu": "2", "memory": "4608Mi"}}),
            json!({"requests": requests, "limits": {"cpu": "2", "memory": "4608Mi", "nvidia.com/gpu": "8"}}),
        ]
    );
    let own = resources(|spec| {
        let own = json!({"limits": {"cpu": 1, "memory": "2Gi"}});
        spec.smoke.resources = serde_json::from_value(own).ok();
    });
    assert_eq!(
        own,
        [
            json!({"requests": {}, "limits": {"cpu": "1", "memory": "2Gi"}}),
            json!({"requests": {}, "limits": {"cpu": "1", "memory": "2Gi", "nvidia.com/gpu": "1"}}),
        ]
    );
}

#[test]
fn gate_and_runner_share_one_claim_and_ask_for_no_resource() {
    let mut resource = fixture::resource();
    resource.spec.gpu.claim_template = Some("a100".to_owned());
    resource.spec.preflight = serde_json::from_value(json!({"commands": ["git"]})).ok();
    resource.spec.template = Some(json!({"spec": {
        "containers": [{"name": "runner", "resources": {"requests": {"cpu": "4"}, "claims": [{"name": "nic"}]}}],
        "resourceClaims": [{"name": "nic", "resourceClaimName": "nic-0"}]
    }}));
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"))
        .spec
        .unwrap();
    let of_pod: Vec<_> = pod.resource_claims.iter().flatten().collect();
    assert_eq!(of_pod.len(), 2);
    assert_eq!(
        of_pod[0].resource_claim_template_name.as_deref(),
        Some("a100")
    );
    let init = pod.init_containers.unwrap();
    let claimed = |container: &Container| {
        let resources = container.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        assert!(!limits.contains_key("nvidia.com/gpu"));
        let claims = resources.claims.unwrap_or_default();
        claims.into_iter().map(|c| c.name).collect::<Vec<_>>()
    };
    assert_eq!(claimed(&init[0]), [] as [&str; 0], "the look at the image");
    assert_eq!(
        claimed(&init[1]),
        ["gpu", "nic"],
        "the gate sees what the job gets"
    );
    assert_eq!(claimed(&pod.containers[0]), ["gpu", "nic"]);
    let env = init[1].env.iter().flatten();
    assert!(
        !env.into_iter()
            .any(|e| e.name == "CUDA_SMOKE_EXPECTED_DEVICES")
    );
}

#[test]
fn a_token_comes_with_the_arguments_of_config_sh_and_in_none_of_them() {
    let arguments = |lifetime, url: &str| {
        let mut resource = fixture::resource();
        resource.spec.registration = RegistrationMode::RegistrationToken;
        resource.spec.lifetime = lifetime;
        resource.spec.github.url = url.to_owned();
        resource.spec.github.runner_group = Some("default".to_owned());
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings(), &new("pool-0"));
        pod.spec.unwrap().containers[0].args.clone().unwrap()
    };
    let own = "cudarunner-1b4e28ba";
    assert_eq!(
        arguments(Lifetime::Ephemeral, "https://github.com/acme/widgets").join(" "),
        format!(
            "--url https://github.com/acme/widgets --name pool-0 --labels self-hosted,cuda,{own} --work _work --unattended --replace --ephemeral --disableupdate"
        )
    );
    assert_eq!(
        arguments(Lifetime::Persistent, "https://ghe.example.com/acme").join(" "),
        format!(
            "--url https://ghe.example.com/acme --name pool-0 --labels self-hosted,cuda,{own} --work _work --unattended --replace --runnergroup default"
        )
    );
}

#[test]
fn a_proxy_is_known_to_gate_and_agent() {
    let mut resource = fixture::resource();
    resource.spec.github.proxy = Some(cudarunner_crds::Proxy {
        url: "http://proxy:3128/".to_owned(),
        no_proxy: vec![".internal".to_owned()],
    });
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"))
        .spec
        .unwrap();
    let gate = &pod.init_containers.unwrap()[0];
    for container in [gate, &pod.containers[0]] {
        let get = |name: &str| {
            let variable = container.env.iter().flatten().find(|e| e.name == name);
            variable.and_then(|e| e.value.clone()).unwrap_or_default()
        };
        assert_eq!(get("https_proxy"), "http://proxy:3128");
        assert_eq!(get("HTTP_PROXY"), "http://proxy:3128");
        assert_eq!(get("no_proxy"), ".internal,localhost,127.0.0.1,::1");
    }
}

#[test]
fn the_runners_image_is_looked_at_as_the_job_will_see_it_and_without_a_gpu() {
    let mut resource = fixture::resource();
    resource.spec.preflight = serde_json::from_value(json!({"cudaToolkit": ">=12.0"})).ok();
    resource.spec.template = Some(json!({"spec": {"containers": [{
        "name": "runner", "image": "example/runner:1", "workingDir": "/work",
        "env": [{"name": "CUDA_HOME", "value": "/opt/cuda"}],
        "volumeMounts": [{"name": "cuda", "mountPath": "/opt/cuda"}],
    }]}}));
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    let pod = pod.spec.unwrap();
    let init = pod.init_containers.unwrap();
    let names: Vec<&str> = init.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["preflight", "gate"]);
    let (preflight, gate) = (&init[0], &init[1]);
    assert_eq!(preflight.image.as_deref(), Some("example/runner:1"));
    assert_eq!(preflight.working_dir.as_deref(), Some("/work"));
    let limits = preflight.resources.as_ref().and_then(|r| r.limits.as_ref());
    assert!(!limits.unwrap().contains_key("nvidia.com/gpu"));
    assert_eq!(preflight.security_context, gate.security_context);
    let get = |container: &Container, name: &str| {
        let mut all = container.env.iter().flatten().filter(|e| e.name == name);
        let found = all.next().and_then(|e| e.value.clone());
        assert!(all.next().is_none(), "{name} is there twice");
        found
    };
    assert_eq!(get(preflight, "CUDA_HOME").unwrap(), "/opt/cuda");
    assert_eq!(get(preflight, "NVIDIA_VISIBLE_DEVICES").unwrap(), "void");
    let mounts = preflight.volume_mounts.iter().flatten();
    assert_eq!(mounts.filter(|m| m.mount_path == "/opt/cuda").count(), 1);
    let wanted = get(gate, "CUDA_SMOKE_PREFLIGHT").unwrap();
    assert!(wanted.contains(r#""cudaToolkit":">=12.0""#), "{wanted}");
}

#[test]
fn addresses_alone_need_no_look_at_the_image() {
    let mut resource = fixture::resource();
    resource.spec.preflight =
        serde_json::from_value(json!({"egress": ["https://github.com"]})).ok();
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    assert_eq!(pod.spec.unwrap().init_containers.unwrap().len(), 1);
}

#[test]
fn the_gate_is_the_jobs_user_and_never_root() {
    let user = |template| {
        let spec = built(template).spec.unwrap();
        let gate = spec.init_containers.unwrap().remove(0);
        gate.security_context.unwrap().run_as_user
    };
    assert_eq!(user(json!({})), Some(1001));
    assert_eq!(
        user(json!({"spec": {"securityContext": {"runAsUser": 1234}, "containers": []}})),
        Some(1234)
    );
    assert_eq!(
        user(
            json!({"spec": {"securityContext": {"runAsUser": 1234}, "containers": [
                {"name": "runner", "securityContext": {"runAsUser": 2000}}
            ]}})
        ),
        Some(2000)
    );
    let root = json!({"spec": {"securityContext": {"runAsUser": 0}}});
    assert_eq!(user(root), Some(1001));
}

/// The startup probe with its files elsewhere: whether it passes, and the marks that are there then.
fn probe(folder: &std::path::Path) -> (bool, String) {
    let here = |path: &str| folder.join(path).to_string_lossy().into_owned();
    let script = ONLINE
        .replace("/run/cuda-runner", &here("run"))
        .replace("/home/runner/_diag", &here("diag"))
        .replace("/dev/termination-log", &here("marks"));
    let done = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(done.stderr.is_empty(), "{done:?}");
    let marks = std::fs::read_to_string(folder.join("marks")).unwrap_or_default();
    (done.status.success(), marks)
}

#[test]
fn a_session_that_another_agent_holds_leaves_one_mark_for_as_long_as_it_is_held() {
    let folder = std::env::temp_dir().join(format!("startup-probe-{}", std::process::id()));
    for name in ["run", "diag"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let log = |text: &str| std::fs::write(folder.join("diag/Runner_1.log"), text).unwrap();
    // Nothing is known yet
    assert_eq!(probe(&folder), (false, String::new()));
    // Another agent holds the session: one mark, however often it is looked
    log("[INFO Listener] The session for this runner already exists.\n");
    let mark = "{\"mark\":\"session-conflict\"}\n".to_owned();
    for _ in 0..2 {
        assert_eq!(probe(&folder), (false, mark.clone()));
    }
    // It is online after all: the mark is gone
    log("The session for this runner already exists.\nListening for Jobs\n");
    assert_eq!(probe(&folder), (true, String::new()));
    // Logs that were there before this container's agent tell nothing of it
    let earlier = folder.join("diag/Runner_1.log");
    std::fs::write(
        folder.join("run/earlier"),
        format!("{}\n", earlier.display()),
    )
    .unwrap();
    assert_eq!(probe(&folder), (false, String::new()));
    std::fs::write(folder.join("diag/Runner_2.log"), "Listening for Jobs\n").unwrap();
    assert_eq!(probe(&folder), (true, String::new()));
    std::fs::remove_dir_all(folder).unwrap();
}

/// Fields of a runner that templates set, good and bad.
fn runner_fields() -> Vec<Value> {
    vec![
        json!({"image": "example/runner:1", "workingDir": "/work"}),
        json!({"command": ["/home/runner/run.sh"]}),
        json!({"args": ["x"]}),
        json!({"env": [{"name": "A", "value": "1"}, {"name": "ACTIONS_RUNNER_HOOK_JOB_STARTED", "value": "/x"}]}),
        json!({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}),
        json!({"envFrom": [{"secretRef": {"name": "s"}}]}),
        json!({"resources": {"limits": {"cpu": "1", "nvidia.com/gpu": "1"}}}),
        json!({"resources": {"limits": {"nvidia.com/gpu": "2"}}}),
        json!({"livenessProbe": {"exec": {"command": ["true"]}}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}),
        json!({"readinessProbe": {"exec": {"command": ["true"]}}}),
        json!({"securityContext": {"runAsUser": 0, "privileged": true}}),
        json!({"volumeMounts": [{"name": "data", "mountPath": "/data"}]}),
        json!({"volumeMounts": [{"name": "data", "mountPath": "/run/cuda-runner"}]}),
        json!({"terminationMessagePath": "/tmp/x"}),
    ]
}

/// Fields of a pod's spec.
fn pod_fields() -> Vec<Value> {
    vec![
        json!({"hostPID": true, "hostNetwork": true, "runtimeClassName": "nvidia"}),
        json!({"restartPolicy": "Always"}),
        json!({"securityContext": {"runAsUser": 1000, "fsGroup": 1000}}),
        json!({"nodeName": "node-1"}),
        json!({"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}),
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}),
        json!({"volumes": [{"name": "data", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "registration", "hostPath": {"path": "/"}}]}),
        json!({"initContainers": [{"name": "vpn", "image": "example/vpn:1", "restartPolicy": "Always"}]}),
        json!({"initContainers": [{"name": "gate", "image": "example/gate:1"}]}),
        json!({"automountServiceAccountToken": true}),
        json!({"shareProcessNamespace": true}),
        json!({"activeDeadlineSeconds": 1}),
        json!({"readinessGates": [{"conditionType": "a/b"}]}),
    ]
}

/// Any few of these, one over the other.
fn some_of(fields: Vec<Value>) -> impl Strategy<Value = Value> {
    subsequence(fields, 0..4).prop_map(|chosen| {
        let mut all = serde_json::Map::new();
        for fields in chosen {
            all.extend(fields.as_object().unwrap().clone());
        }
        Value::Object(all)
    })
}

/// Whether everything in `ours` is in `merged`: lists as a part, whatever is beside it.
fn holds(merged: &Value, ours: &Value) -> bool {
    match (merged, ours) {
        (Value::Object(merged), Value::Object(ours)) => ours
            .iter()
            .all(|(name, value)| merged.get(name).is_some_and(|found| holds(found, value))),
        (Value::Array(merged), Value::Array(ours)) => ours
            .iter()
            .all(|value| merged.iter().any(|found| holds(found, value))),
        (merged, ours) => merged == ours,
    }
}

proptest! {
    #[test]
    fn a_template_is_refused_or_everything_of_ours_stays(
        mut pod in some_of(pod_fields()),
        mut runner in some_of(runner_fields()),
        keys in some_of(vec![
            json!({"labels": {"a": "b"}}),
            json!({"annotations": {"cudarunner.dev/template": "x"}}),
            json!({"labels": {"cudarunner.dev/pool": "x"}}),
        ]),
    ) {
        runner["name"] = json!("runner");
        pod["containers"] = json!([runner]);
        let mut resource = fixture::resource();
        let bare = serde_json::to_value(built(json!(null)).spec).unwrap();
        resource.spec.template = Some(json!({"metadata": keys, "spec": pod}));
        let pool = Pool::read(&resource, false);
        let Ok(spec) = pool.spec.clone() else { return Ok(()) };
        let built = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
        let pod = built.spec.clone().unwrap();
        let mut gate = pod.init_containers.clone().unwrap().remove(0);
        let context = gate.security_context.as_mut().unwrap();
        prop_assert!(context.run_as_user.is_some_and(|user| user != 0));
        context.run_as_user = Some(RUNNER_USER);
        let mut merged = serde_json::to_value(&pod).unwrap();
        prop_assert_eq!(serde_json::to_value(&gate).unwrap(), bare["initContainers"][0].clone());
        merged["initContainers"][0] = bare["initContainers"][0].clone();
        // What is the user's to choose
        let mut ours = bare;
        ours["containers"][0]["image"] = json!(pod.containers[0].image);
        ours.as_object_mut().unwrap().remove("affinity");
        prop_assert!(holds(&merged, &ours), "{merged:#} lacks something of {ours:#}");
        for list in ["command", "args", "startupProbe", "readinessProbe"] {
            prop_assert_eq!(&merged["containers"][0][list], &ours["containers"][0][list]);
        }
        prop_assert_eq!(built.metadata.labels.unwrap()["cudarunner.dev/pool"].clone(), "pool");
        prop_assert_eq!(built.metadata.annotations.unwrap()[TEMPLATE_ANNOTATION].clone(), spec.template_hash.clone());
        let with_gpu = pod.init_containers.iter().flatten().chain(&pod.containers).filter(|c| {
            c.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key("nvidia.com/gpu"))
        });
        let with_gpu: Vec<&str> = with_gpu.map(|c| c.name.as_str()).collect();
        prop_assert_eq!(with_gpu, ["gate", "runner"]);
        let names: BTreeSet<&str> = pod.init_containers.iter().flatten().chain(&pod.containers).map(|c| c.name.as_str()).collect();
        prop_assert_eq!(names.len(), pod.init_containers.iter().flatten().count() + pod.containers.len());
    }
}

/// The rules of the level *restricted* that are about containers.
#[test]
fn what_is_ours_passes_pod_security_restricted() {
    let mut resource = fixture::resource();
    resource.spec.preflight = serde_json::from_value(json!({"commands": ["git"]})).ok();
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"))
        .spec
        .unwrap();
    for container in pod.init_containers.unwrap() {
        let context = container.security_context.unwrap();
        assert_eq!(context.allow_privilege_escalation, Some(false));
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(context.capabilities.unwrap().drop.unwrap(), ["ALL"]);
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
        assert_ne!(context.privileged, Some(true));
    }
    let allowed =
        |v: &Volume| v.empty_dir.is_some() || v.projected.is_some() || v.config_map.is_some();
    assert!(pod.volumes.iter().flatten().all(allowed));
}
