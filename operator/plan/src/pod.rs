//! The runner pod: ours first, the user's template merged over it.

use std::collections::BTreeMap;

use cudarunner_crds::{CudaRunner, ManagedMemory};
use gate_report::contract::{TOKEN_FILE, TOKEN_NAME, gate};
use gate_report::wire::AUDIENCE;
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    KeyToPath, ObjectFieldSelector, Pod, PodResourceClaim, PodSpec, ProjectedVolumeSource,
    ResourceClaim, ResourceRequirements, SeccompProfile, SecurityContext,
    ServiceAccountTokenProjection, Toleration, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;

use super::{NewRunner, PodSettings, node_marks, placement, preflight};
use crate::model::pool::owned::{self, CA_DIR, CLAIM, REGISTRATION_DIR, TOKEN_DIR};
use crate::model::pool::{GpuRequest, Pool, Spec, labels_of};
use crate::model::runner::{
    AVOIDS_ANNOTATION, GATE, LIFETIME_ANNOTATION, PERSISTENT, RUNNER, TEMPLATE_ANNOTATION,
    URL_ANNOTATION,
};

mod runner;

/// The user of GitHub's own runner image.
const RUNNER_USER: i64 = 1001;
/// What the scheduler sets aside for our containers: hardly anything, since they are over when the job begins.
const REQUESTED: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "64Mi")];
/// The most processor time that they get.
const MOST_CPU: &str = "2";
/// MiB of memory for the programs, and again for what the driver keeps in the process for each device.
const MEMORY_STEP: u32 = 512;
/// Devices to reckon with where only a claim knows their number.
const MANY_DEVICES: u32 = 8;

/// Makes the pod of a new runner.
#[must_use]
pub fn build(pool: &Pool, spec: &Spec, settings: &PodSettings, new: &NewRunner) -> Pod {
    let NewRunner { name, avoids } = new;
    let mut pod_spec = PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        init_containers: Some(vec![gate(spec, settings)]),
        containers: vec![runner::container(pool, spec, name)],
        volumes: Some(volumes(spec)),
        resource_claims: claims(&spec.gpu),
        ..PodSpec::default()
    };
    pod_spec.tolerations = Some(tolerations(spec));
    if let Some(template) = spec.template.spec.clone() {
        merge(&mut pod_spec, template);
    }
    run_gate_as_the_job(&mut pod_spec);
    if let Some(wanted) = spec.preflight.as_ref().filter(|wanted| wanted.image) {
        let user = job_user(&pod_spec);
        preflight::add(&mut pod_spec, wanted, gate_resources(spec), user);
    }
    placement::restrict(&mut pod_spec, avoids, &spec.gate.min_compute_capability);

    let user = spec.template.metadata.clone().unwrap_or_default();
    let mut annotations = protections();
    annotations.extend(user.annotations.unwrap_or_default());
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), spec.template_hash.clone());
    annotations.insert(URL_ANNOTATION.to_owned(), spec.url.to_string());
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

/// Merges a template that [`crate::model::pool`] has found to take nothing of ours.
fn merge(spec: &mut PodSpec, mut template: PodSpec) {
    // A list of the template's would replace ours.
    let tolerations = template.tolerations.take();
    spec.tolerations
        .get_or_insert_default()
        .extend(tolerations.into_iter().flatten());
    // Ports are told apart by number alone, and two protocols may share one.
    let ports = template.containers.first_mut().and_then(|c| c.ports.take());
    for variable in template
        .containers
        .iter_mut()
        .flat_map(|c| c.env.iter_mut().flatten())
    {
        // The agent knows one hook for each event: ours, which calls theirs.
        if let Some((_, ours)) = owned::HOOKS
            .iter()
            .find(|(agents, _)| *agents == variable.name)
        {
            (*ours).clone_into(&mut variable.name);
        }
    }
    for container in template.init_containers.iter_mut().flatten() {
        // An image may ask for every device of the node.
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|v| v.name == owned::VISIBLE_DEVICES) {
            env.push(value(owned::VISIBLE_DEVICES, owned::NO_DEVICES.to_owned()));
        }
    }
    spec.merge_from(template);
    let Some(runner) = spec.containers.first_mut() else {
        return;
    };
    runner.ports = ports;
    // What the job can reach through its claims, the gate has to see as well.
    let claims = runner.resources.as_ref().and_then(|r| r.claims.clone());
    let gate = spec
        .init_containers
        .iter_mut()
        .flatten()
        .find(|c| c.name == GATE);
    if let Some(resources) = gate.and_then(|g| g.resources.as_mut()) {
        resources.claims = claims;
    }
}

/// Ours: of nodes with GPUs, and of those that were marked because of a fault.
fn tolerations(spec: &Spec) -> Vec<Toleration> {
    let ours = [
        Toleration {
            key: Some("nvidia.com/gpu".to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        },
        node_marks::toleration(),
    ];
    let template = spec.template.spec.as_ref();
    let theirs = template.and_then(|t| t.tolerations.as_ref());
    let is_theirs = |ours: &Toleration| theirs.is_some_and(|theirs| theirs.contains(ours));
    ours.into_iter().filter(|ours| !is_theirs(ours)).collect()
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

/// What the gate is told.
fn gate_env(spec: &Spec, settings: &PodSettings) -> Vec<EnvVar> {
    let settings_env = [
        (gate::REGISTRAR_URL, settings.registrar_url.clone()),
        (gate::REGISTRAR_CA, settings.registrar_ca.clone()),
        (gate::TOKEN_FILE, TOKEN_FILE.to_owned()),
        (gate::REGISTRATION_DIR, REGISTRATION_DIR.to_owned()),
        (
            gate::MIN_COMPUTE_CAPABILITY,
            spec.gate.min_compute_capability.clone(),
        ),
        (gate::MIN_CUDA_VERSION, spec.gate.min_cuda_version.clone()),
        (
            gate::MANAGED_MEMORY,
            match spec.gate.managed_memory {
                ManagedMemory::Report => "Report",
                ManagedMemory::Require => "Require",
            }
            .to_owned(),
        ),
        (gate::TIMEOUT_SECONDS, spec.gate.timeout_seconds.to_string()),
        // Where the vendor's device plugin mounts the driver without a runtime class, as on GKE.
        ("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64".to_owned()),
    ];
    let mut env: Vec<EnvVar> = settings_env.into_iter().map(|(n, v)| value(n, v)).collect();
    if let Some(count) = spec.gpu.count() {
        env.push(value(gate::EXPECTED_DEVICES, count.to_string()));
    }
    env.extend(proxy(spec));
    env.push(field(gate::NODE, "spec.nodeName"));
    env.push(field(gate::POD, "metadata.name"));
    env.push(field(gate::NAMESPACE, "metadata.namespace"));
    if let Some(wanted) = &spec.preflight {
        let wanted = serde_json::to_string(wanted).unwrap_or_default();
        env.push(value(gate::PREFLIGHT, wanted));
    }
    env
}

/// The init container: the same devices as the job, the least rights.
fn gate(spec: &Spec, settings: &PodSettings) -> Container {
    let mut env = gate_env(spec, settings);
    let mut mounts = vec![
        mount(owned::REGISTRATION, REGISTRATION_DIR, false),
        mount(owned::REGISTRAR_TOKEN, TOKEN_DIR, true),
    ];
    if spec.preflight.is_some() && spec.ca_bundle.is_some() {
        mounts.push(mount(owned::GITHUB_CA, CA_DIR, true));
        env.push(value("SSL_CERT_FILE", format!("{CA_DIR}/ca.crt")));
    }
    let devices = devices(&spec.gpu);
    let mut resources = gate_resources(spec);
    let limits = resources.limits.get_or_insert_default();
    limits.extend(devices.limits.unwrap_or_default());
    resources.claims = devices.claims;
    Container {
        name: GATE.to_owned(),
        image: Some(settings.gate_image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        args: Some(vec!["gate".to_owned()]),
        env: Some(env),
        resources: Some(resources),
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

/// What our containers may use beside devices. A namespace's quota may demand that every container says it.
fn gate_resources(spec: &Spec) -> ResourceRequirements {
    let (requests, limits) = if let Some(own) = &spec.gate_resources {
        (own.requests.clone(), own.limits.clone())
    } else {
        let devices = spec.gpu.count().unwrap_or(MANY_DEVICES);
        let memory = format!(
            "{}Mi",
            MEMORY_STEP.saturating_mul(devices.saturating_add(1))
        );
        (
            quantities(REQUESTED),
            quantities([("cpu", MOST_CPU), ("memory", &memory)]),
        )
    };
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits),
        claims: None,
    }
}

fn quantities(of: [(&str, &str); 2]) -> BTreeMap<String, Quantity> {
    of.into_iter()
        .map(|(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned())))
        .collect()
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
            name: owned::REGISTRATION.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity("1Mi".to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: owned::REGISTRAR_TOKEN.to_owned(),
            projected: Some(ProjectedVolumeSource {
                // Readable for whichever user the template runs the job as.
                default_mode: Some(0o444),
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        audience: Some(AUDIENCE.to_owned()),
                        expiration_seconds: Some(3600),
                        path: TOKEN_NAME.to_owned(),
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
            name: owned::GITHUB_CA.to_owned(),
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

/// The user that the template chooses for the job.
fn job_user(spec: &PodSpec) -> Option<i64> {
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let runner = spec.containers.iter().find(|c| c.name == RUNNER);
    let of_runner = runner.and_then(|c| c.security_context.as_ref()?.run_as_user);
    of_runner.or(of_pod)
}

/// What the gate leaves can be read and removed by whatever user the image has. Where the template chooses one, the gate
/// is that one, for a policy may allow no other; but it is never root.
fn run_gate_as_the_job(spec: &mut PodSpec) {
    let Some(user) = job_user(spec).filter(|user| *user != 0) else {
        return;
    };
    let gate = spec
        .init_containers
        .iter_mut()
        .flatten()
        .find(|c| c.name == GATE);
    if let Some(context) = gate.and_then(|g| g.security_context.as_mut()) {
        context.run_as_user = Some(user);
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
