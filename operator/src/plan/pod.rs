//! The runner pod: ours first, the user's template merged over it.

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::{CudaRunner, ManagedMemory};
use gate_report::wire::AUDIENCE;
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    ExecAction, KeyToPath, ObjectFieldSelector, Pod, PodSpec, Probe, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecurityContext, ServiceAccountTokenProjection,
    Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;

use super::{PodSettings, placement, preflight};
use crate::github::Scope;
use crate::observe::pod::{
    AVOIDS_ANNOTATION, GATE, LIFETIME_ANNOTATION, PERSISTENT, RUNNER, TEMPLATE_ANNOTATION,
};
use crate::pool::{GpuRequest, Pool, RegistrationKind, Spec, WORK_FOLDER, labels_of};

/// Memory-backed folder in which the gate leaves the registration and the hooks.
const REGISTRATION_DIR: &str = "/run/cuda-runner";
/// Folder of the gate's service-account token.
const TOKEN_DIR: &str = "/var/run/secrets/cudarunner.dev";
/// Folder of the certificate authorities for GitHub.
const CA_DIR: &str = "/etc/cuda-runner/github-ca";
/// The user of GitHub's own runner image.
const RUNNER_USER: i64 = 1001;
/// The image that runs where the template names none.
const DEFAULT_IMAGE: &str = "ghcr.io/actions/actions-runner:latest";

/// Reads the registration, removes it, and becomes the agent: the secret is in no argument list and in no object.
const START: &str = r#"set -eu
registration=/run/cuda-runner/jitconfig
ACTIONS_RUNNER_INPUT_JITCONFIG=$(cat "$registration")
export ACTIONS_RUNNER_INPUT_JITCONFIG
rm -f "$registration"
exec /home/runner/run.sh"#;

/// Reads the token, removes it, registers, and becomes the agent. The arguments of `config.sh` are the container's own;
/// the token is among neither them nor the environment of jobs.
const CONFIGURE_AND_START: &str = r#"set -eu
registration=/run/cuda-runner/token
ACTIONS_RUNNER_INPUT_TOKEN=$(cat "$registration")
export ACTIONS_RUNNER_INPUT_TOKEN
rm -f "$registration"
/home/runner/config.sh "$@" || exit 78
unset ACTIONS_RUNNER_INPUT_TOKEN
exec /home/runner/run.sh"#;

/// The agent writes this line to its diagnostic log as soon as its session with GitHub is open.
const ONLINE: &str = r#"grep -qs "Listening for Jobs" /home/runner/_diag/Runner_*.log"#;
/// Ready to take a job: online, and the hooks' mark of a running job is absent.
const IDLE: &str = r#"[ ! -e /run/cuda-runner/busy ] && grep -qs "Listening for Jobs" /home/runner/_diag/Runner_*.log"#;

/// Makes the pod of the runner `name`.
#[must_use]
pub fn build(
    pool: &Pool,
    spec: &Spec,
    settings: &PodSettings,
    avoid: &BTreeSet<String>,
    name: &str,
) -> Pod {
    let mut pod_spec = PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        init_containers: Some(vec![gate(spec, settings)]),
        containers: vec![runner(pool, spec, name)],
        volumes: Some(volumes(spec)),
        tolerations: Some(vec![Toleration {
            key: Some("nvidia.com/gpu".to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        }]),
        ..PodSpec::default()
    };
    if let Some(template) = spec.template.spec.clone() {
        pod_spec.merge_from(template);
    }
    run_gate_as_the_job(&mut pod_spec);
    if let Some(wanted) = spec.preflight.as_ref().filter(|wanted| wanted.image) {
        preflight::add(&mut pod_spec, wanted);
    }
    placement::restrict(&mut pod_spec, avoid, &spec.gate.min_compute_capability);

    let user = spec.template.metadata.clone().unwrap_or_default();
    let mut annotations = protections();
    annotations.extend(user.annotations.unwrap_or_default());
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), spec.template_hash.clone());
    if spec.persistent {
        annotations.insert(LIFETIME_ANNOTATION.to_owned(), PERSISTENT.to_owned());
    }
    if !avoid.is_empty() {
        let names: Vec<&str> = avoid.iter().map(String::as_str).collect();
        annotations.insert(AVOIDS_ANNOTATION.to_owned(), names.join(","));
    }
    let mut labels = user.labels.unwrap_or_default();
    labels.extend(labels_of(&pool.key));
    Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(pool.key.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owner(pool)]),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec),
        status: None,
    }
}

fn owner(pool: &Pool) -> OwnerReference {
    OwnerReference {
        api_version: CudaRunner::api_version(&()).into_owned(),
        kind: CudaRunner::kind(&()).into_owned(),
        name: pool.key.name.clone(),
        uid: pool.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Annotations by which autoscalers leave a pod alone: a job cannot be moved.
/// See <https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md> and
/// <https://karpenter.sh/docs/concepts/disruption/>.
fn protections() -> BTreeMap<String, String> {
    BTreeMap::from([
        (
            "cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(),
            "false".to_owned(),
        ),
        ("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned()),
    ])
}

/// The init container: the same devices as the job, the least rights.
fn gate(spec: &Spec, settings: &PodSettings) -> Container {
    let settings_env = [
        ("CUDA_SMOKE_REGISTRAR_URL", settings.registrar_url.clone()),
        ("CUDA_SMOKE_REGISTRAR_CA", settings.registrar_ca.clone()),
        ("CUDA_SMOKE_TOKEN_FILE", format!("{TOKEN_DIR}/token")),
        ("CUDA_SMOKE_REGISTRATION_DIR", REGISTRATION_DIR.to_owned()),
        ("CUDA_SMOKE_EXPECTED_DEVICES", spec.gpu.count.to_string()),
        (
            "CUDA_SMOKE_MIN_COMPUTE_CAPABILITY",
            spec.gate.min_compute_capability.clone(),
        ),
        (
            "CUDA_SMOKE_MIN_CUDA_VERSION",
            spec.gate.min_cuda_version.clone(),
        ),
        (
            "CUDA_SMOKE_MANAGED_MEMORY",
            match spec.gate.managed_memory {
                ManagedMemory::Report => "Report",
                ManagedMemory::Require => "Require",
            }
            .to_owned(),
        ),
        (
            "CUDA_SMOKE_TIMEOUT_SECONDS",
            spec.gate.timeout_seconds.to_string(),
        ),
        // Where the vendor's device plugin mounts the driver without a runtime class, as on GKE.
        ("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64".to_owned()),
    ];
    let mut env: Vec<EnvVar> = settings_env.into_iter().map(|(n, v)| value(n, v)).collect();
    env.extend(proxy(spec));
    env.push(field("NODE_NAME", "spec.nodeName"));
    env.push(field("POD_NAME", "metadata.name"));
    env.push(field("POD_NAMESPACE", "metadata.namespace"));
    let mut mounts = vec![
        mount("registration", REGISTRATION_DIR, false),
        mount("registrar-token", TOKEN_DIR, true),
    ];
    if let Some(wanted) = &spec.preflight {
        let wanted = serde_json::to_string(wanted).unwrap_or_default();
        env.push(value("CUDA_SMOKE_PREFLIGHT", wanted));
        if spec.ca_bundle.is_some() {
            mounts.push(mount("github-ca", CA_DIR, true));
            env.push(value("SSL_CERT_FILE", format!("{CA_DIR}/ca.crt")));
        }
    }
    Container {
        name: GATE.to_owned(),
        image: Some(settings.gate_image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        args: Some(vec!["gate".to_owned()]),
        env: Some(env),
        resources: Some(devices(&spec.gpu)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            run_as_user: Some(RUNNER_USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// The agent's container.
fn runner(pool: &Pool, spec: &Spec, name: &str) -> Container {
    let (start, args) = match spec.registration {
        RegistrationKind::JitConfig => (START, None),
        RegistrationKind::Token => (
            CONFIGURE_AND_START,
            Some(config_arguments(pool, spec, name)),
        ),
    };
    let mut env = vec![
        value(
            "ACTIONS_RUNNER_HOOK_JOB_STARTED",
            format!("{REGISTRATION_DIR}/job-started.sh"),
        ),
        value(
            "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
            format!("{REGISTRATION_DIR}/job-completed.sh"),
        ),
        value(
            "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE",
            "1".to_owned(),
        ),
    ];
    env.extend(proxy(spec));
    let mut mounts = vec![mount("registration", REGISTRATION_DIR, false)];
    if spec.ca_bundle.is_some() {
        mounts.push(mount("github-ca", CA_DIR, true));
        env.push(value("SSL_CERT_FILE", format!("{CA_DIR}/ca.crt")));
        env.push(value("NODE_EXTRA_CA_CERTS", format!("{CA_DIR}/ca.crt")));
    }
    Container {
        name: RUNNER.to_owned(),
        image: Some(DEFAULT_IMAGE.to_owned()),
        command: Some(vec![
            "/bin/sh".to_owned(),
            "-c".to_owned(),
            start.to_owned(),
            // What the script calls itself; the arguments follow.
            "runner".to_owned(),
        ]),
        args,
        // An agent that fails says why in its log only.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        env: Some(env),
        resources: Some(devices(&spec.gpu)),
        startup_probe: Some(Probe {
            period_seconds: Some(1),
            // The operator's own deadline comes first; it removes the registration, which the kubelet cannot.
            failure_threshold: Some(3600),
            ..shell_probe(ONLINE)
        }),
        readiness_probe: Some(Probe {
            period_seconds: Some(2),
            failure_threshold: Some(1),
            ..shell_probe(IDLE)
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// What `config.sh` gets, beside the token.
fn config_arguments(pool: &Pool, spec: &Spec, name: &str) -> Vec<String> {
    let mut arguments = vec![
        "--url".to_owned(),
        spec.url.to_string(),
        "--name".to_owned(),
        name.to_owned(),
        "--labels".to_owned(),
        pool.registered_labels(spec).join(","),
        "--work".to_owned(),
        WORK_FOLDER.to_owned(),
        "--unattended".to_owned(),
        // The entry of a predecessor of this name has no agent any more.
        "--replace".to_owned(),
    ];
    if let Some(group) = &spec.runner_group {
        // A repository has the default group only, and the agent asks for none there.
        if !matches!(spec.url.scope(), Scope::Repository { .. }) {
            arguments.extend(["--runnergroup".to_owned(), group.clone()]);
        }
    }
    if !spec.persistent {
        // An agent for one job would spend its time on an update that goes with the pod.
        arguments.extend(["--ephemeral".to_owned(), "--disableupdate".to_owned()]);
    }
    arguments
}

/// The proxy, under every name that some program looks for. The gate speaks with the registrar without it.
fn proxy(spec: &Spec) -> Vec<EnvVar> {
    let Some(proxy) = &spec.proxy else {
        return vec![];
    };
    let without = [proxy.exceptions(), "localhost,127.0.0.1,::1".to_owned()];
    let without: Vec<_> = without
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    [
        ("http_proxy", proxy.to_string()),
        ("https_proxy", proxy.to_string()),
        ("no_proxy", without.join(",")),
    ]
    .into_iter()
    .flat_map(|(name, text)| [value(name, text.clone()), value(&name.to_uppercase(), text)])
    .collect()
}

fn shell_probe(test: &str) -> Probe {
    Probe {
        exec: Some(ExecAction {
            command: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), test.to_owned()]),
        }),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}

fn devices(gpu: &GpuRequest) -> ResourceRequirements {
    ResourceRequirements {
        limits: Some(BTreeMap::from([(
            gpu.resource.clone(),
            Quantity(gpu.count.to_string()),
        )])),
        ..ResourceRequirements::default()
    }
}

fn volumes(spec: &Spec) -> Vec<Volume> {
    let mut volumes = vec![
        Volume {
            name: "registration".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("1Mi".to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "registrar-token".to_owned(),
            projected: Some(ProjectedVolumeSource {
                // Readable for whichever user the template runs the job as.
                default_mode: Some(0o444),
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(AUDIENCE.to_owned()),
                        expiration_seconds: Some(3600),
                        path: "token".to_owned(),
                        ..ServiceAccountTokenProjection::default()
                    }),
                    ..VolumeProjection::default()
                }]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        },
    ];
    if let Some(ca) = &spec.ca_bundle {
        volumes.push(Volume {
            name: "github-ca".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: ca.name.clone(),
                items: Some(vec![KeyToPath {
                    key: ca.key.clone(),
                    path: "ca.crt".to_owned(),
                    ..KeyToPath::default()
                }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

/// The gate leaves files that the job's user must be able to remove: where the template chooses a user, the gate is that user.
fn run_gate_as_the_job(spec: &mut PodSpec) {
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let of_runner = spec
        .containers
        .iter()
        .find(|c| c.name == RUNNER)
        .and_then(|c| c.security_context.as_ref())
        .and_then(|c| c.run_as_user);
    let Some(user) = of_runner.or(of_pod) else {
        return;
    };
    let gate = spec
        .init_containers
        .iter_mut()
        .flatten()
        .find(|c| c.name == GATE);
    if let Some(context) = gate.and_then(|g| g.security_context.as_mut()) {
        context.run_as_user = Some(user);
        context.run_as_non_root = Some(user != 0);
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn value(name: &str, value: String) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture;
    use cudarunner_crds::{Lifetime, RegistrationMode};
    use serde_json::json;

    fn settings() -> PodSettings {
        PodSettings {
            gate_image: "example/cuda-smoke:1".into(),
            image_pull_policy: "IfNotPresent".into(),
            registrar_url: "https://10.96.0.7:8443".into(),
            registrar_ca: "-----BEGIN CERTIFICATE-----".into(),
        }
    }

    fn built(template: serde_json::Value) -> Pod {
        let mut resource = fixture::resource();
        resource.spec.template = Some(template);
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        build(&pool, &spec, &settings(), &BTreeSet::new(), "pool-aaaaa")
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
                     "resources": {"requests": {"cpu": "4"}}},
                    {"name": "sidecar", "image": "example/sidecar:1"}
                ]
            }
        }));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.containers.len(), 2);
        let runner = &spec.containers[0];
        assert_eq!(runner.image.as_deref(), Some("example/runner:1"));
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
    fn a_token_comes_with_the_arguments_of_config_sh_and_in_none_of_them() {
        let arguments = |lifetime, url: &str| {
            let mut resource = fixture::resource();
            resource.spec.registration = RegistrationMode::RegistrationToken;
            resource.spec.lifetime = lifetime;
            resource.spec.github.url = url.to_owned();
            resource.spec.github.runner_group = Some("default".to_owned());
            let pool = Pool::read(&resource, false);
            let spec = pool.spec.clone().unwrap();
            let pod = build(&pool, &spec, &settings(), &BTreeSet::new(), "pool-0");
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
        let pod = build(&pool, &spec, &settings(), &BTreeSet::new(), "pool-aaaaa")
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
            "env": [{"name": "CUDA_HOME", "value": "/opt/cuda"}, {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
            "volumeMounts": [{"name": "cuda", "mountPath": "/opt/cuda"}],
        }]}}));
        let pool = Pool::read(&resource, false);
        let spec = pool.spec.clone().unwrap();
        let pod = build(&pool, &spec, &settings(), &BTreeSet::new(), "pool-aaaaa");
        let pod = pod.spec.unwrap();
        let init = pod.init_containers.unwrap();
        let names: Vec<&str> = init.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["preflight", "gate"]);
        let (preflight, gate) = (&init[0], &init[1]);
        assert_eq!(preflight.image.as_deref(), Some("example/runner:1"));
        assert_eq!(preflight.working_dir.as_deref(), Some("/work"));
        assert!(preflight.resources.is_none());
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
        let pod = build(&pool, &spec, &settings(), &BTreeSet::new(), "pool-aaaaa");
        assert_eq!(pod.spec.unwrap().init_containers.unwrap().len(), 1);
    }

    #[test]
    fn a_template_cannot_take_the_pod_away_from_its_pool() {
        let pod = built(json!({"metadata": {"labels": {"cudarunner.dev/pool": "other"}}}));
        assert_eq!(pod.metadata.labels.unwrap()["cudarunner.dev/pool"], "pool");
    }

    #[test]
    fn the_gate_is_the_jobs_user() {
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
    }
}
