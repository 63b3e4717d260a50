//! The runner pod: ours first, the user's template merged over it.

use std::collections::BTreeMap;

use cudarunner_crds::{CudaRunner, ManagedMemory};
use gate_report::wire::AUDIENCE;
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    ExecAction, KeyToPath, ObjectFieldSelector, Pod, PodResourceClaim, PodSpec, Probe,
    ProjectedVolumeSource, ResourceClaim, ResourceRequirements, SeccompProfile, SecurityContext,
    ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;

use super::{NewRunner, PodSettings, node_marks, placement, preflight};
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
/// The pod's name for its claim of GPUs.
const CLAIM: &str = "gpu";
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
[ ! -e /run/cuda-runner/gpu.sh ] || /bin/sh /run/cuda-runner/gpu.sh remember
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
[ ! -e /run/cuda-runner/gpu.sh ] || /bin/sh /run/cuda-runner/gpu.sh remember
exec /home/runner/run.sh"#;

/// The agent writes the first line to its diagnostic log as soon as its session with GitHub is open, and the second one
/// while another agent holds that session. The latter leaves a mark for as long as it holds: `run.sh` ends with 0 then.
const ONLINE: &str = r#"conflict=/run/cuda-runner/conflict
said() { grep -qs "$1" /home/runner/_diag/Runner_*.log; }
if said "Listening for Jobs"; then
  [ ! -e "$conflict" ] || { rm -f "$conflict"; true >/dev/termination-log; } 2>/dev/null
  exit 0
fi
if [ ! -e "$conflict" ] && said "session for this runner already exists"; then
  { true >"$conflict" && echo '{"mark":"session-conflict"}' >>/dev/termination-log; } 2>/dev/null
fi
exit 1"#;
/// Ready to take a job: online, the hooks' mark of a running job is absent, and the GPU is still there. Without it the
/// gate's script ends the agent.
const IDLE: &str = r#"[ ! -e /run/cuda-runner/busy ] && grep -qs "Listening for Jobs" /home/runner/_diag/Runner_*.log || exit 1
[ ! -e /run/cuda-runner/gpu.sh ] || exec /bin/sh /run/cuda-runner/gpu.sh idle"#;

/// Makes the pod of a new runner.
#[must_use]
pub fn build(pool: &Pool, spec: &Spec, settings: &PodSettings, new: &NewRunner) -> Pod {
    let NewRunner { name, avoids } = new;
    let mut pod_spec = PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        init_containers: Some(vec![gate(spec, settings)]),
        containers: vec![runner(pool, spec, name)],
        volumes: Some(volumes(spec)),
        resource_claims: claims(&spec.gpu),
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
    // A list of the template's replaces ours.
    let tolerations = pod_spec.tolerations.get_or_insert_default();
    tolerations.push(node_marks::toleration());
    run_gate_as_the_job(&mut pod_spec);
    if let Some(wanted) = spec.preflight.as_ref().filter(|wanted| wanted.image) {
        preflight::add(&mut pod_spec, wanted);
    }
    placement::restrict(&mut pod_spec, avoids, &spec.gate.min_compute_capability);

    let user = spec.template.metadata.clone().unwrap_or_default();
    let mut annotations = protections();
    annotations.extend(user.annotations.unwrap_or_default());
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), spec.template_hash.clone());
    if spec.persistent {
        annotations.insert(LIFETIME_ANNOTATION.to_owned(), PERSISTENT.to_owned());
    }
    if !avoids.is_empty() {
        let names: Vec<&str> = avoids.iter().map(String::as_str).collect();
        annotations.insert(AVOIDS_ANNOTATION.to_owned(), names.join(","));
    }
    let mut labels = user.labels.unwrap_or_default();
    labels.extend(labels_of(&pool.key));
    Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
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
    if let Some(count) = spec.gpu.count() {
        env.push(value("CUDA_SMOKE_EXPECTED_DEVICES", count.to_string()));
    }
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
        RegistrationKind::JitConfig | RegistrationKind::ScaleSet => (START, None),
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

/// The same devices for every container that has this.
fn devices(gpu: &GpuRequest) -> ResourceRequirements {
    match gpu {
        GpuRequest::Resource { name, count } => ResourceRequirements {
            limits: Some(BTreeMap::from([(
                name.clone(),
                Quantity(count.to_string()),
            )])),
            ..ResourceRequirements::default()
        },
        GpuRequest::Claim(_) => ResourceRequirements {
            claims: Some(vec![ResourceClaim {
                name: CLAIM.to_owned(),
                request: None,
            }]),
            ..ResourceRequirements::default()
        },
    }
}

/// The pod's own claim, made from the template when the pod is, and gone with it.
fn claims(gpu: &GpuRequest) -> Option<Vec<PodResourceClaim>> {
    match gpu {
        GpuRequest::Resource { .. } => None,
        GpuRequest::Claim(template) => Some(vec![PodResourceClaim {
            name: CLAIM.to_owned(),
            resource_claim_template_name: Some(template.clone()),
            resource_claim_name: None,
        }]),
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
mod tests;
