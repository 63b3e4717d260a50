use cudarunner_crds::CudaRunnerSpec;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::super::tests::{init, new, settings, variable};
use super::*;
use crate::fixture;
use crate::model::pool::Pool;
use crate::model::runner::{MAIN, PREPARE};
use crate::pod::build;

/// The pod of a pool with this template and these containers for jobs.
fn built(template: Value, containers: Value, change: impl FnOnce(&mut CudaRunnerSpec)) -> Pod {
    let mut resource = fixture::resource();
    resource.spec.template = Some(template);
    resource.spec.job_containers = Some(serde_json::from_value(containers).unwrap());
    change(&mut resource.spec);
    let pool = Pool::read(&resource, false);
    let spec = pool.spec.clone().unwrap();
    build(&pool, &spec, &settings(), &new("pool-aaaaa"))
}

fn main(pod: &Pod) -> Container {
    let all = &pod.spec.as_ref().unwrap().containers;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].name, MAIN);
    all[0].clone()
}

fn runner(fields: &Value) -> Value {
    let mut runner = json!({"name": "runner", "image": "example/runner:1"});
    runner
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    let volumes = ["data", "cache"].map(|name| json!({"name": name, "emptyDir": {}}));
    let claims = json!([{"name": "net", "resourceClaimTemplateName": "net"}]);
    json!({"spec": {"containers": [runner], "volumes": volumes, "resourceClaims": claims}})
}

#[test]
fn the_pod_is_as_documented() {
    let pod = built(json!({}), json!({}), |_| {});
    insta::assert_json_snapshot!(pod, {".metadata.annotations[\"cudarunner.dev/template\"]" => "[hash]"});
}

#[test]
fn the_template_describes_the_agents_container_and_devices_go_where_the_job_is() {
    let nic = json!({"cpu": "2", "memory": "1Gi", "rdma/hca": "1"});
    let pod = built(
        runner(&json!({
            "env": [{"name": "A", "value": "1"}],
            "resources": {"requests": nic, "limits": nic, "claims": [{"name": "net"}]},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "cache", "mountPath": "/cache", "readOnly": true}],
        })),
        json!({"resources": {"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}}}),
        |_| {},
    );
    let (gpu, agent, prepare) = (init(&pod, GPU), main(&pod), init(&pod, PREPARE));
    // The agent has what the template says, and no device
    assert_eq!(agent.image.as_deref(), Some("example/runner:1"));
    assert_eq!(variable(&agent, "A").as_deref(), Some("1"));
    let few = json!({"cpu": "2", "memory": "1Gi"});
    let of_agent = serde_json::to_value(&agent.resources).unwrap();
    assert_eq!(of_agent, json!({"requests": few, "limits": few}));
    // The job has the devices, and what the pool gives it
    let of_job = serde_json::to_value(&gpu.resources).unwrap();
    assert_eq!(
        of_job,
        json!({
            "requests": {"cpu": "8", "rdma/hca": "1"},
            "limits": {"memory": "64Gi", "rdma/hca": "1", "nvidia.com/gpu": "1"},
            "claims": [{"name": "net"}],
        })
    );
    assert_eq!(gpu.image.as_deref(), Some("example/cuda-smoke:1"));
    assert_eq!(variable(&gpu, "A"), None, "a job has its own environment");
    // Both have the template's volumes, and the hook is told where
    for container in [&agent, &gpu] {
        let mounts = container.volume_mounts.iter().flatten();
        let mut theirs = mounts.filter(|m| ["data", "cache"].contains(&m.name.as_str()));
        assert_eq!(theirs.next().unwrap().mount_path, "/data");
        assert_eq!(theirs.next().unwrap().read_only, Some(true));
    }
    let volumes = variable(&prepare, "CUDA_SMOKE_JOB_VOLUMES");
    assert_eq!(volumes.as_deref(), Some("/data:/cache"));
}

#[test]
fn what_an_agent_knows_is_where_no_code_of_a_job_comes() {
    let pod = built(
        runner(&json!({"lifecycle": {"postStart": {"exec": {"command": ["/warm-up"]}}}})),
        json!({}),
        |spec| {
            spec.github.ca_bundle_ref =
                serde_json::from_value(json!({"name": "ca", "key": "ca"})).ok();
        },
    );
    let has = |container: &Container| -> Vec<(String, String)> {
        let mounts = container.volume_mounts.iter().flatten();
        let mounts = mounts.map(|m| (m.name.clone(), m.mount_path.clone()));
        mounts.collect()
    };
    let (gpu, agent) = (init(&pod, GPU), main(&pod));
    let of_agent = |(name, _): &(String, String)| {
        [owned::AGENT_FILES, owned::REGISTRAR_TOKEN].contains(&name.as_str())
    };
    assert!(!has(&gpu).iter().any(of_agent), "{:?}", has(&gpu));
    assert!(has(&agent).iter().any(of_agent));
    assert!(has(&init(&pod, PREPARE)).iter().any(of_agent));
    // All that runs in the agent's container comes from there
    let text = serde_json::to_string(&agent).unwrap();
    let text = text.replace(r#""mountPath":"/run/cuda-runner","#, "");
    let mut shared = text.match_indices("/run/cuda-runner");
    assert!(
        shared.all(|(at, _)| text[at..].starts_with("/run/cuda-runner-")),
        "{text}"
    );
    // Both trust the pool's authorities
    for container in [&gpu, &agent] {
        assert!(variable(container, "NODE_EXTRA_CA_CERTS").is_some());
        assert!(has(container).contains(&("github-ca".to_owned(), CA_DIR.to_owned())));
    }
}

#[test]
fn the_jobs_container_has_the_rights_of_the_template_and_its_own_user() {
    let rights = json!({
        "runAsUser": 1234, "runAsGroup": 5, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    let pod = built(
        runner(&json!({"securityContext": rights})),
        json!({}),
        |_| {},
    );
    let of = |c: Container| serde_json::to_value(c.security_context).unwrap();
    assert_eq!(of(main(&pod)), rights);
    let mut own = rights.clone();
    for user in ["runAsUser", "runAsGroup"] {
        own.as_object_mut().unwrap().remove(user);
    }
    assert_eq!(of(init(&pod, GPU)), own);
    assert_eq!(of(init(&pod, PREPARE))["runAsUser"], 1234);
    // The pool can start all jobs as root
    let pod = built(
        runner(&json!({"securityContext": rights})),
        json!({"runAsUser": 0}),
        |_| {},
    );
    own["runAsUser"] = json!(0);
    assert_eq!(of(init(&pod, GPU)), own);
    assert_eq!(of(main(&pod)), rights);
    // What is not the template's is allowed at the level baseline: no privileges, no path of the node
    let bare = built(json!({}), json!({}), |_| {}).spec.unwrap();
    assert_eq!(bare.containers[0].security_context, None);
    let allowed = |v: &Volume| v.empty_dir.is_some() || v.projected.is_some();
    assert!(bare.volumes.iter().flatten().all(allowed));
}

#[test]
fn the_pool_says_how_images_are_pulled_and_how_much_memory_is_shared() {
    let pod = built(
        json!({"spec": {"imagePullSecrets": [{"name": "mirror"}]}}),
        json!({"shmSize": "8Gi", "imagePullPolicy": "Always"}),
        |_| {},
    );
    assert_eq!(init(&pod, GPU).image_pull_policy.as_deref(), Some("Always"));
    let bytes = variable(&init(&pod, PREPARE), "CUDA_SMOKE_JOB_SHM_BYTES");
    assert_eq!(bytes.as_deref(), Some("8589934592"));
    let spec = pod.spec.unwrap();
    let shm = spec
        .volumes
        .iter()
        .flatten()
        .find(|v| v.name == owned::JOB_SHM);
    let shm = shm.unwrap().empty_dir.clone().unwrap();
    assert_eq!(shm.medium.as_deref(), Some("Memory"));
    assert_eq!(shm.size_limit.unwrap().0, "8Gi");
    // The Secret of a job is named before it is there
    let secrets = spec.image_pull_secrets.into_iter().flatten();
    let secrets: Vec<String> = secrets.map(|s| s.name).collect();
    assert_eq!(secrets, ["pool-aaaaa-job", "mirror"]);
}

#[test]
fn a_claim_is_the_jobs_alone() {
    let pod = built(json!({}), json!({}), |spec| {
        spec.gpu.claim_template = Some("a100".into());
    });
    let claims = |container: &Container| {
        let claims = container.resources.as_ref().and_then(|r| r.claims.clone());
        claims.into_iter().flatten().count()
    };
    assert_eq!(claims(&init(&pod, GPU)), 1);
    assert_eq!(claims(&main(&pod)), 0);
}

#[test]
fn the_agents_container_is_started_once_the_agent_has_been_online() {
    let folder = std::env::temp_dir().join(format!("startup-probe-{}", std::process::id()));
    // Of an earlier process with this number.
    let _ = std::fs::remove_dir_all(&folder);
    let pod = built(json!({}), json!({}), |_| {});
    let command = |probe: Option<Probe>| probe.unwrap().exec.unwrap().command.unwrap();
    let (startup, ready) = (main(&pod).startup_probe, main(&pod).readiness_probe);
    let here = |path: &str| folder.join(path).to_string_lossy().into_owned();
    let passes = |probe: &Option<Probe>| {
        let script = command(probe.clone())[2]
            .replace(AGENT_DIR, &here("agent"))
            .replace("/home/runner/_diag", &here("diag"))
            .replace("/dev/termination-log", &here("marks"));
        let done = std::process::Command::new("/bin/sh")
            .args(["-c", &script])
            .output();
        done.unwrap().status.success()
    };
    for name in ["agent", "diag"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let write = |path: &str, text: &str| std::fs::write(folder.join(path), text).unwrap();
    // Before the agent there is an earlier one's log at most
    write("diag/Runner_1.log", "Listening for Jobs\n");
    assert!(!passes(&startup));
    write("agent/earlier", &format!("{}\n", here("diag/Runner_1.log")));
    assert!(!passes(&startup));
    // Its own session is open: it is started, and idle
    write("diag/Runner_2.log", "Listening for Jobs\n");
    assert!(passes(&startup) && passes(&ready));
    // It has a job: it has been online all the same
    write("agent/busy", "");
    assert!(passes(&startup) && !passes(&ready));
    // A job that came before anybody had looked
    std::fs::remove_file(folder.join("agent/online")).unwrap();
    assert!(passes(&startup) && !passes(&ready));
    std::fs::remove_dir_all(folder).unwrap();
}
