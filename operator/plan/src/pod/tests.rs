use std::collections::BTreeSet;

use super::ours::RUNNER_USER;
use super::runner::IDLE;
use super::*;
use crate::fixture;
use crate::model::claim::Retest;
use crate::model::runner::{GPU, MAIN, PREPARE};
use cudarunner_crds::{JobContainers, Lifetime, RegistrationMode};
use gate_report::allow::Policy;
use gate_report::contract::{file, gate};
use k8s_openapi::api::resource::v1::ResourceClaimSpec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::{Value, json};

pub(super) fn settings() -> PodSettings {
    PodSettings {
        gate_image: "example/cuda-smoke:1".into(),
        image_pull_policy: "IfNotPresent".into(),
        registrar_url: "https://10.96.0.7:8443".into(),
        registrar_ca: "-----BEGIN CERTIFICATE-----".into(),
    }
}

pub(super) fn new(name: &str) -> NewRunner {
    NewRunner {
        name: name.to_owned(),
        avoids: BTreeSet::new(),
        shuns: BTreeSet::new(),
        retest: None,
    }
}

fn built(template: serde_json::Value) -> Pod {
    let mut resource = fixture::resource();
    resource.spec.template = Some(template);
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    build(&pool, &spec, &settings(), &new("pool-aaaaa"))
}

/// The init container of this name.
pub(super) fn init(pod: &Pod, name: &str) -> Container {
    let all = pod.spec.iter().flat_map(|spec| &spec.init_containers);
    let mut all = all.flatten().filter(|c| c.name == name);
    let found = all.next().unwrap_or_else(|| panic!("no {name}")).clone();
    assert!(all.next().is_none(), "{name} is there twice");
    found
}

/// The value of a variable, which is there once at most.
pub(super) fn variable(container: &Container, name: &str) -> Option<String> {
    let mut all = container.env.iter().flatten().filter(|e| e.name == name);
    let found = all.next().and_then(|e| e.value.clone());
    assert!(all.next().is_none(), "{name} is there twice");
    found
}

#[test]
fn the_pod_is_as_documented() {
    insta::assert_json_snapshot!(built(json!({})), {".metadata.annotations[\"cudarunner.dev/template\"]" => "[hash]"});
}

#[test]
fn the_gate_demands_as_much_free_memory_as_the_spec_does() {
    let demanded = |percent: i32| {
        let mut resource = fixture::resource();
        resource.spec.smoke.min_free_memory_percent = percent;
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
        variable(&init(&pod, PREPARE), gate::MIN_FREE_MEMORY_PERCENT)
    };
    for percent in [0, 50, 90] {
        assert_eq!(demanded(percent), Some(percent.to_string()));
    }
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
    let all = pod.spec.as_ref().unwrap().init_containers.clone().unwrap();
    let names: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
    // What is beside the agent begins before it and ends after it
    assert_eq!(names, [PREPARE, "vpn", GPU]);
    assert_eq!(
        variable(&all[1], "NVIDIA_VISIBLE_DEVICES").as_deref(),
        Some("void"),
        "whatever its image says"
    );
    let gpu = &all[2];
    assert_eq!(gpu.image.as_deref(), Some("example/cuda-smoke:1"));
    assert_eq!(gpu.image_pull_policy.as_deref(), Some("IfNotPresent"));
    assert_eq!(gpu.ports.as_ref().unwrap().len(), 2);
    let resources = gpu.resources.as_ref().unwrap();
    assert_eq!(resources.requests.as_ref().unwrap()["cpu"].0, "4");
    assert_eq!(resources.limits.as_ref().unwrap()["nvidia.com/gpu"].0, "1");
    assert_eq!(variable(gpu, "A").as_deref(), Some("1"));
    assert!(variable(gpu, "ACTIONS_RUNNER_HOOK_JOB_STARTED").is_some());
    let main: Vec<String> = pod
        .spec
        .iter()
        .flat_map(|s| &s.containers)
        .map(|c| c.name.clone())
        .collect();
    assert_eq!(main, [MAIN]);
    let labels = pod.metadata.labels.unwrap();
    assert_eq!(
        (
            labels["team"].as_str(),
            labels["cudarunner.dev/pool"].as_str()
        ),
        ("ml", "pool")
    );
    let annotations = pod.metadata.annotations.unwrap();
    assert_eq!(annotations["karpenter.sh/do-not-disrupt"], "false");
    assert_eq!(annotations[IMAGE_ANNOTATION], "example/runner:1");
}

#[test]
fn both_images_of_the_gpus_container_are_pulled_by_one_policy() {
    let (latest, fixed) = ("example/runner:latest", "example/runner:1");
    let table = [
        // How the installation pulls the gate's image, what the template says of the runner's, and what counts.
        ("IfNotPresent", latest, None, "Always"),
        ("IfNotPresent", fixed, None, "IfNotPresent"),
        ("Always", fixed, None, "IfNotPresent"),
        // No registry has the gate's image
        ("Never", latest, None, "IfNotPresent"),
        ("Never", fixed, None, "IfNotPresent"),
        // The template's own word
        ("IfNotPresent", latest, Some("IfNotPresent"), "IfNotPresent"),
        ("IfNotPresent", fixed, Some("Never"), "Never"),
        ("Never", latest, Some("Always"), "Always"),
    ];
    for (of_the_gate, image, own, expected) in table {
        let mut resource = fixture::resource();
        let runner = json!({"name": "runner", "image": image, "imagePullPolicy": own});
        resource.spec.template = Some(json!({"spec": {"containers": [runner]}}));
        let pool = Pool::read(&resource, false);
        let settings = PodSettings {
            image_pull_policy: of_the_gate.into(),
            ..settings()
        };
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings, &new("pool-aaaaa"));
        let given = init(&pod, GPU).image_pull_policy;
        assert_eq!(
            given.as_deref(),
            Some(expected),
            "{of_the_gate}, {image}, {own:?}"
        );
        let ours = init(&pod, PREPARE).image_pull_policy;
        assert_eq!(ours.as_deref(), Some(of_the_gate));
    }
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
    let gpu = init(&pod, GPU);
    let found: Vec<(&str, &str)> = gpu
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
fn where_not_every_job_is_taken_the_agent_asks_first_and_the_answer_is_in_no_template() {
    let policy = Policy {
        events: vec!["push".to_owned()],
        ..Policy::default()
    };
    for (containers, place, dir) in [
        (None, GPU, "/run/cuda-runner"),
        (
            Some(JobContainers::default()),
            MAIN,
            "/run/cuda-runner-agent",
        ),
    ] {
        let mut pool = fixture::pool(1);
        let spec = pool.spec_mut();
        (spec.allow, spec.job_containers) = (Some(policy.clone()), containers);
        let spec = spec.clone();
        let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
        let agent = if place == GPU {
            init(&pod, GPU)
        } else {
            pod.spec.as_ref().unwrap().containers[0].clone()
        };
        let hook = variable(&agent, "ACTIONS_RUNNER_HOOK_JOB_STARTED");
        assert_eq!(hook, Some(format!("{dir}/{}", file::ALLOW)));
        assert_eq!(variable(&agent, gate::ALLOW), None);
        let told = variable(&init(&pod, PREPARE), gate::ALLOW).unwrap();
        assert_eq!(serde_json::from_str::<Policy>(&told).unwrap(), policy);
    }
}

#[test]
fn a_pool_that_wants_no_job_watched_has_pods_of_its_own_and_one_that_says_nothing_has_not() {
    let told = |jobs: serde_json::Value| {
        let mut resource = fixture::resource();
        resource.spec.jobs = serde_json::from_value(jobs).unwrap();
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
        let variable = variable(&init(&pod, PREPARE), gate::TELEMETRY);
        (variable, spec.template_hash.clone())
    };
    let (nothing, usual) = told(serde_json::Value::Null);
    assert_eq!(nothing, None);
    assert_eq!(told(json!({"telemetry": "Enabled"})), (None, usual.clone()));
    let (disabled, other) = told(json!({"telemetry": "Disabled"}));
    assert_eq!(disabled.as_deref(), Some("Disabled"));
    assert_ne!(other, usual);
}

#[test]
fn what_the_template_does_at_the_agents_start_and_end_is_not_done_to_the_gate() {
    let pod = built(
        json!({"spec": {"containers": [{"name": "runner", "lifecycle": {
            "postStart": {"exec": {"command": ["/warm-up", "cache"]}}, "preStop": {"sleep": {"seconds": 7}}
        }, "livenessProbe": {"exec": {"command": ["/alive", "1"]}, "periodSeconds": 30}}]}}),
    );
    let lifecycle = serde_json::to_value(init(&pod, GPU).lifecycle).unwrap();
    let hook = ["/run/cuda-runner/bin/runner-init", "hook"];
    assert_eq!(
        lifecycle,
        json!({
            "postStart": {"exec": {"command": [hook[0], hook[1], "/warm-up", "cache"]}},
            "preStop": {"exec": {"command": [hook[0], hook[1], "/bin/sh", "-c", "sleep 7"]}},
        })
    );
    let probe = init(&pod, GPU).liveness_probe.unwrap();
    assert_eq!(probe.period_seconds, Some(30));
    let mut command = probe.exec.unwrap().command.unwrap();
    assert_eq!(command.split_off(5), ["live", "/alive", "1"]);
    assert_eq!(command[..2], hook);
}

#[test]
fn ours_say_what_they_may_use_and_the_spec_can_say_otherwise() {
    let resources = |change: fn(&mut cudarunner_crds::CudaRunnerSpec)| {
        let mut resource = fixture::resource();
        change(&mut resource.spec);
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
        let main = pod.spec.as_ref().unwrap().containers[0].clone();
        [init(&pod, PREPARE), init(&pod, GPU), main]
            .map(|c| serde_json::to_value(c.resources).unwrap())
    };
    let few = json!({"cpu": "10m", "memory": "16Mi"});
    let ours = json!({"requests": few, "limits": {"cpu": "1", "memory": "128Mi"}});
    // The gate has what the agent has later: the template says it, and hardly anything is set aside where it does not
    let devices = json!({"requests": few, "limits": {"nvidia.com/gpu": "8"}});
    assert_eq!(
        resources(|spec| spec.gpu.count = Some(8)),
        [ours.clone(), devices, ours]
    );
    let own = resources(|spec| {
        let own = json!({"requests": {"cpu": 1}, "limits": {"cpu": 1, "memory": "2Gi"}});
        spec.smoke.resources = serde_json::from_value(own).ok();
    });
    let ours = json!({
        "requests": {"cpu": "1", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "2Gi"},
    });
    let devices = json!({"requests": few, "limits": {"nvidia.com/gpu": "1"}});
    assert_eq!(own, [ours.clone(), devices, ours]);
}

#[test]
fn every_container_asks_for_cpu_and_memory_or_has_a_limit_of_it() {
    let asked = |resources: Value| {
        let runner = json!({"name": "runner", "resources": resources});
        let pod = built(json!({"spec": {"containers": [runner]}}));
        let requests = init(&pod, GPU).resources.and_then(|r| r.requests);
        serde_json::to_value(requests.unwrap_or_default()).unwrap()
    };
    let table = [
        (json!({}), json!({"cpu": "10m", "memory": "16Mi"})),
        (
            json!({"requests": {"cpu": "4"}}),
            json!({"cpu": "4", "memory": "16Mi"}),
        ),
        // Kubernetes asks for as much as the limit
        (json!({"limits": {"memory": "8Gi"}}), json!({"cpu": "10m"})),
        (json!({"limits": {"cpu": "4", "memory": "8Gi"}}), json!({})),
        (
            json!({"requests": {"memory": "1Gi"}, "limits": {"cpu": "4", "memory": "8Gi"}}),
            json!({"memory": "1Gi"}),
        ),
    ];
    for (resources, expected) in table {
        assert_eq!(asked(resources.clone()), expected, "{resources}");
    }
}

#[test]
fn shared_memory_is_where_jobs_run_and_counts_for_the_fingerprint() {
    for containers in [None, Some(JobContainers::default())] {
        let mut resource = fixture::resource();
        resource.spec.job_containers = containers;
        let before = Pool::read(&resource, false).spec.unwrap();
        resource.spec.shared_memory = Some("8Gi".to_owned());
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        assert_ne!(spec.template_hash, before.template_hash);
        let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
        let of_pod = pod.spec.as_ref().unwrap();
        let all = of_pod.volumes.iter().flatten();
        let shm: Vec<_> = all.filter(|v| v.name == owned::JOB_SHM).collect();
        assert_eq!(shm.len(), 1);
        let volume = shm[0].empty_dir.clone().unwrap();
        assert_eq!(volume.medium.as_deref(), Some("Memory"));
        assert_eq!(volume.size_limit.unwrap().0, "8Gi");
        let init = of_pod.init_containers.iter().flatten();
        let has_it = |c: &&Container| {
            let mounts = c.volume_mounts.iter().flatten();
            mounts
                .into_iter()
                .any(|m| m.mount_path == owned::SHM_DIR && m.name == owned::JOB_SHM)
        };
        let found = init.chain(&of_pod.containers).filter(has_it);
        let found: Vec<&str> = found.map(|c| c.name.as_str()).collect();
        assert_eq!(found, [GPU]);
    }
}

#[test]
fn a_pod_that_tries_a_device_has_a_claim_of_its_own() {
    let mut resource = fixture::resource();
    resource.spec.gpu.claim_template = Some("a100".to_owned());
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let retest = Retest {
        uuid: "GPU-1".to_owned(),
        node: "node-1".to_owned(),
        suffix: "x".to_owned(),
        claim: ResourceClaimSpec::default(),
    };
    let runner = NewRunner {
        retest: Some(retest),
        ..new("pool-aaaaa")
    };
    let pod = build(&pool, &spec, &settings(), &runner);
    let annotations = pod.metadata.annotations.unwrap();
    assert_eq!(annotations[RETESTS_ANNOTATION], "GPU-1");
    assert_eq!(
        serde_json::to_value(pod.spec.unwrap().resource_claims).unwrap(),
        json!([{"name": "gpu", "resourceClaimName": "pool-aaaaa-retest-x"}])
    );
}

#[test]
fn one_container_has_the_claims_and_asks_for_no_resource() {
    let mut resource = fixture::resource();
    resource.spec.gpu.claim_template = Some("a100".to_owned());
    resource.spec.template = Some(json!({"spec": {
        "containers": [{"name": "runner", "resources": {"requests": {"cpu": "4"}, "claims": [{"name": "nic"}]}}],
        "resourceClaims": [{"name": "nic", "resourceClaimName": "nic-0"}]
    }}));
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    let of_pod = pod.spec.as_ref().unwrap().resource_claims.clone().unwrap();
    assert_eq!(of_pod.len(), 2);
    assert_eq!(
        of_pod[0].resource_claim_template_name.as_deref(),
        Some("a100")
    );
    let claimed = |container: &Container| {
        let resources = container.resources.clone().unwrap_or_default();
        let limits = resources.limits.unwrap_or_default();
        assert!(!limits.contains_key("nvidia.com/gpu"));
        let claims = resources.claims.unwrap_or_default();
        claims.into_iter().map(|c| c.name).collect::<Vec<_>>()
    };
    let main = pod.spec.as_ref().unwrap().containers[0].clone();
    assert_eq!(claimed(&init(&pod, GPU)), ["gpu", "nic"]);
    for ours in [init(&pod, PREPARE), main] {
        assert_eq!(claimed(&ours), [] as [&str; 0], "{}", ours.name);
    }
    let prepare = init(&pod, PREPARE);
    assert_eq!(variable(&prepare, "CUDA_SMOKE_EXPECTED_DEVICES"), None);
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
        let gpu = init(&pod, GPU);
        assert_eq!(
            gpu.command.unwrap(),
            ["/run/cuda-runner/bin/runner-init", "gpu"]
        );
        let mut agent = gpu.args.unwrap();
        let arguments = agent.split_off(4);
        assert_eq!(
            (agent[0].as_str(), agent[1].as_str(), agent[3].as_str()),
            ("/bin/sh", "-c", "runner")
        );
        arguments
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
        credentials_ref: None,
    });
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    for name in [PREPARE, GPU] {
        let container = init(&pod, name);
        let get = |name: &str| variable(&container, name).unwrap_or_default();
        assert_eq!(get("https_proxy"), "http://proxy:3128");
        assert_eq!(get("HTTP_PROXY"), "http://proxy:3128");
        assert_eq!(get("no_proxy"), ".internal,localhost,127.0.0.1,::1");
    }
}

#[test]
fn the_user_of_a_proxy_is_put_together_by_the_kubelet() {
    let mut resource = fixture::resource();
    resource.spec.github.proxy = Some(cudarunner_crds::Proxy {
        url: "https://proxy:3128".to_owned(),
        no_proxy: vec![],
        credentials_ref: Some(cudarunner_crds::SecretReference {
            name: "proxy-auth".to_owned(),
        }),
    });
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    for name in [PREPARE, GPU] {
        let env = init(&pod, name).env.unwrap();
        let at = |name: &str| env.iter().position(|v| v.name == name).unwrap();
        for (variable, key) in owned::PROXY_USER.into_iter().zip(["username", "password"]) {
            let source = env[at(variable)].value_from.clone().unwrap();
            let reference = source.secret_key_ref.unwrap();
            assert_eq!(
                (reference.name.as_str(), reference.key.as_str()),
                ("proxy-auth", key)
            );
            assert!(
                at(variable) < at("http_proxy"),
                "the kubelet knows what comes before"
            );
        }
        assert_eq!(
            env[at("https_proxy")].value.as_deref(),
            Some("https://$(CUDA_RUNNER_PROXY_USERNAME):$(CUDA_RUNNER_PROXY_PASSWORD)@proxy:3128")
        );
    }
}

#[test]
fn what_the_gate_is_told_comes_from_a_container_that_no_template_reaches() {
    let mut resource = fixture::resource();
    resource.spec.preflight = serde_json::from_value(json!({"cudaToolkit": ">=12.0"})).ok();
    resource.spec.template = Some(json!({"spec": {"containers": [{
        "name": "runner", "image": "example/runner:1", "workingDir": "/work",
        "env": [{"name": "LD_PRELOAD", "value": "/opt/mine.so"}],
        "volumeMounts": [{"name": "cuda", "mountPath": "/opt/cuda"}],
    }], "volumes": [{"name": "cuda", "emptyDir": {}}]}}));
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    let (prepare, gpu) = (init(&pod, PREPARE), init(&pod, GPU));
    let wanted = variable(&prepare, "CUDA_SMOKE_PREFLIGHT").unwrap();
    assert!(wanted.contains(r#""cudaToolkit":">=12.0""#), "{wanted}");
    let bare = init(&built(json!(null)), PREPARE);
    let settings_alone = |container: &Container| {
        let all = container.env.clone().unwrap_or_default();
        let all = all.into_iter().filter(|v| v.name != "CUDA_SMOKE_PREFLIGHT");
        all.collect::<Vec<_>>()
    };
    assert_eq!(settings_alone(&prepare), settings_alone(&bare));
    assert_eq!(prepare.image.as_deref(), Some("example/cuda-smoke:1"));
    assert_eq!(prepare.volume_mounts, bare.volume_mounts);
    // The token is in no other container, and none of the gate's variables
    for container in [gpu, pod.spec.as_ref().unwrap().containers[0].clone()] {
        let mounts = container.volume_mounts.iter().flatten();
        let names: Vec<&str> = mounts.map(|m| m.name.as_str()).collect();
        assert!(!names.contains(&owned::REGISTRAR_TOKEN), "{names:?}");
        let env = container.env.iter().flatten();
        assert!(!env.into_iter().any(|v| v.name.starts_with("CUDA_SMOKE_")));
    }
}

#[test]
fn ours_are_the_jobs_user_and_never_root() {
    let user = |template| {
        let pod = built(template);
        let main = pod.spec.as_ref().unwrap().containers[0].clone();
        let users = [init(&pod, PREPARE), main]
            .map(|c| c.security_context.and_then(|context| context.run_as_user));
        assert_eq!(users[0], users[1]);
        users[0]
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

/// The readiness probe with its files elsewhere: whether it passes, and the marks that are there then.
fn probe(folder: &std::path::Path) -> (bool, String) {
    let here = |path: &str| folder.join(path).to_string_lossy().into_owned();
    let script = IDLE
        .replace("/run/cuda-runner", &here("run"))
        .replace("/home/runner/_diag", &here("diag"))
        .replace("/dev/termination-log", &here("marks"))
        .replace("/proc", &here("proc"));
    let done = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(done.stderr.is_empty(), "{done:?}");
    let marks = std::fs::read_to_string(folder.join("marks")).unwrap_or_default();
    (done.status.success(), marks)
}

#[test]
fn a_runner_is_busy_from_the_start_of_its_agents_process_for_the_job_to_that_ones_end() {
    let folder = std::env::temp_dir().join(format!("working-probe-{}", std::process::id()));
    // Of an earlier process with this number.
    let _ = std::fs::remove_dir_all(&folder);
    for name in ["run", "diag", "proc/1", "proc/17", "proc/gone"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("diag/Runner_1.log", "Listening for Jobs\n");
    for (first, other, is_idle) in [
        ("runner-init", "Runner.Listener", true),
        ("runner-init", "Runner.Worker", false),
        // Processes of the whole node tell nothing of this runner.
        ("systemd", "Runner.Worker", true),
    ] {
        write("proc/1/comm", &format!("{first}\n"));
        write("proc/17/comm", &format!("{other}\n"));
        assert_eq!(probe(&folder).0, is_idle, "{first} {other}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_session_that_another_agent_holds_leaves_one_mark_for_as_long_as_it_is_held() {
    let folder = std::env::temp_dir().join(format!("readiness-probe-{}", std::process::id()));
    // Of an earlier process with this number.
    let _ = std::fs::remove_dir_all(&folder);
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
    let online = folder.join("run/online");
    std::fs::remove_file(&online).unwrap();
    // A job that comes before anybody has looked: the agent has been online all the same, and is busy
    let busy = folder.join("run/busy");
    std::fs::write(&busy, "").unwrap();
    assert_eq!(probe(&folder), (false, String::new()));
    assert!(!online.exists(), "the earlier log is not its own");
    std::fs::write(folder.join("diag/Runner_2.log"), "Listening for Jobs\n").unwrap();
    assert_eq!(probe(&folder), (false, String::new()));
    assert!(online.exists());
    std::fs::remove_file(busy).unwrap();
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
        let mut merged = serde_json::to_value(&pod).unwrap();
        let mut ours = bare;
        // Two containers have nothing of the template's but the user, who is never root
        let last = merged["initContainers"].as_array().unwrap().len() - 1;
        for container in [&mut merged["initContainers"][0], &mut ours["initContainers"][0]] {
            prop_assert!(container["securityContext"]["runAsUser"].as_i64().is_some_and(|user| user != 0));
            container["securityContext"]["runAsUser"] = json!(RUNNER_USER);
        }
        let user = merged["containers"][0]["securityContext"].as_object_mut().unwrap();
        user.insert("runAsUser".to_owned(), json!(RUNNER_USER));
        prop_assert_eq!(&merged["initContainers"][0], &ours["initContainers"][0]);
        prop_assert_eq!(&merged["containers"], &ours["containers"]);
        // What is the user's to choose
        let of_gpu = ours["initContainers"][1].as_object_mut().unwrap();
        of_gpu.remove("imagePullPolicy");
        of_gpu["resources"].as_object_mut().unwrap().remove("requests");
        ours.as_object_mut().unwrap().remove("affinity");
        prop_assert!(holds(&merged, &ours), "{merged:#} lacks something of {ours:#}");
        let gpu = &merged["initContainers"][last];
        prop_assert_eq!(&gpu["name"], "gpu");
        for field in ["image", "command", "args", "readinessProbe", "restartPolicy"] {
            prop_assert_eq!(&gpu[field], &ours["initContainers"][1][field]);
        }
        prop_assert_eq!(built.metadata.labels.unwrap()["cudarunner.dev/pool"].clone(), "pool");
        prop_assert_eq!(built.metadata.annotations.unwrap()[TEMPLATE_ANNOTATION].clone(), spec.template_hash.clone());
        let with_gpu = pod.init_containers.iter().flatten().chain(&pod.containers).filter(|c| {
            c.resources.as_ref().and_then(|r| r.limits.as_ref()).is_some_and(|l| l.contains_key("nvidia.com/gpu"))
        });
        let with_gpu: Vec<&str> = with_gpu.map(|c| c.name.as_str()).collect();
        prop_assert_eq!(with_gpu, ["gpu"]);
        let names: BTreeSet<&str> = pod.init_containers.iter().flatten().chain(&pod.containers).map(|c| c.name.as_str()).collect();
        prop_assert_eq!(names.len(), pod.init_containers.iter().flatten().count() + pod.containers.len());
    }
}

/// Our programs bring what they run: of it only what the agent's start and its probe need is in the spec.
#[test]
fn the_look_at_the_image_is_not_in_the_pods_spec() {
    let mut resource = fixture::resource();
    let wanted =
        json!({"commands": ["cc"], "cudaToolkit": ">=12.0", "egress": ["https://ghcr.io"]});
    resource.spec.preflight = serde_json::from_value(wanted).unwrap();
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    let pod = build(&pool, &spec, &settings(), &new("pool-aaaaa"));
    let text = serde_json::to_string(&pod.spec).unwrap();
    let lines = gate_report::preflight::SCRIPT.lines();
    for line in lines.filter(|line| line.len() > 40) {
        assert!(!text.contains(line), "{line}");
    }
}

/// The rules of the level *restricted* that are about containers.
#[test]
fn what_is_ours_passes_pod_security_restricted() {
    let pod = built(json!({})).spec.unwrap();
    let init = pod.init_containers.iter().flatten();
    // What the agent's may do, the template says.
    for container in init.chain(&pod.containers).filter(|c| c.name != GPU) {
        let context = container.security_context.clone().unwrap();
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
