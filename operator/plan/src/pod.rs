//! The runner pod: ours first, the user's template merged over it.

use std::collections::BTreeMap;

use cudarunner_crds::CudaRunner;
use gate_report::contract::TOKEN_NAME;
use gate_report::wire::AUDIENCE;
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, KeyToPath,
    LocalObjectReference, Pod, PodResourceClaim, PodSpec, ProjectedVolumeSource, ResourceClaim,
    ResourceRequirements, SecretKeySelector, ServiceAccountTokenProjection, Toleration, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource as _;

use super::{NewRunner, PodSettings, node_marks, placement, retest};
use crate::model::pool::owned::{self, CLAIM};
use crate::model::pool::{GpuRequest, Pool, Spec, labels_of};
use crate::model::runner::{
    AVOIDS_ANNOTATION, IMAGE_ANNOTATION, LIFETIME_ANNOTATION, PERSISTENT, RETESTS_ANNOTATION,
    TEMPLATE_ANNOTATION, URL_ANNOTATION,
};

pub mod jobs;
mod ours;
mod runner;

/// The container whose log `kubectl logs` shows.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Our programs and a few small files.
const SHARED_MEMORY: &str = "32Mi";

/// Makes the pod of a new runner.
#[must_use]
pub fn build(pool: &Pool, spec: &Spec, settings: &PodSettings, new: &NewRunner) -> Pod {
    let NewRunner {
        name,
        avoids,
        shuns,
        ..
    } = new;
    let mut template = spec.template.spec.clone().unwrap_or_default();
    let theirs = std::mem::take(&mut template.containers).into_iter().next();
    let agent = runner::container(pool, spec, name);
    let Containers {
        mut gpu,
        mut main,
        image,
        user,
    } = match &spec.job_containers {
        None => plain(agent, theirs, &template, spec, settings),
        Some(containers) => jobs::containers(agent, theirs, &template, spec, containers, settings),
    };
    for container in [&mut gpu, &mut main] {
        ours::ask_for_something(container);
    }
    // Kubernetes starts these in their order, and ends those that go on in reverse: what the template has beside the
    // agent is there before it, and for as long as it.
    let mut init = vec![ours::prepare(spec, settings, user)];
    init.extend(beside(&mut template));
    init.push(gpu);
    let mut pod_spec = PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        init_containers: Some(init),
        containers: vec![main],
        volumes: Some(volumes(spec)),
        image_pull_secrets: pull_secrets(spec, name),
        resource_claims: claims(&spec.gpu, new),
        tolerations: Some(tolerations(spec)),
        ..PodSpec::default()
    };
    merge(&mut pod_spec, template);
    let capability = &spec.gate.min_compute_capability;
    placement::restrict(&mut pod_spec, spec.arch, avoids, capability);
    placement::prefer_others(&mut pod_spec, shuns);

    Pod {
        metadata: metadata(pool, spec, new, image),
        spec: Some(pod_spec),
        status: None,
    }
}

/// Name, owner, labels, and what the operator will read of it; `image` is the agent's.
fn metadata(pool: &Pool, spec: &Spec, new: &NewRunner, image: String) -> ObjectMeta {
    let user = spec.template.metadata.clone().unwrap_or_default();
    let mut annotations = protections();
    let agents = runner::Place::of(spec).name;
    annotations.insert(DEFAULT_CONTAINER.to_owned(), agents.to_owned());
    annotations.extend(user.annotations.unwrap_or_default());
    annotations.insert(IMAGE_ANNOTATION.to_owned(), image);
    annotations.insert(TEMPLATE_ANNOTATION.to_owned(), spec.template_hash.clone());
    annotations.insert(URL_ANNOTATION.to_owned(), spec.url.to_string());
    if spec.persistent {
        annotations.insert(LIFETIME_ANNOTATION.to_owned(), PERSISTENT.to_owned());
    }
    if !new.avoids.is_empty() {
        let names: Vec<&str> = new.avoids.iter().map(String::as_str).collect();
        annotations.insert(AVOIDS_ANNOTATION.to_owned(), names.join(","));
    }
    if let Some(retest) = &new.retest {
        annotations.insert(RETESTS_ANNOTATION.to_owned(), retest.uuid.clone());
    }
    let mut labels = user.labels.unwrap_or_default();
    labels.extend(labels_of(&pool.key));
    ObjectMeta {
        name: Some(new.name.clone()),
        namespace: Some(pool.key.namespace.clone()),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![owner(pool)]),
        ..ObjectMeta::default()
    }
}

/// The containers of a pod that depend on where jobs run.
struct Containers {
    gpu: Container,
    main: Container,
    /// The agent's image.
    image: String,
    /// The user that the template chooses.
    user: Option<i64>,
}

/// Jobs run in the agent's container, which is that of the GPUs.
fn plain(
    agent: Container,
    theirs: Option<Container>,
    template: &PodSpec,
    spec: &Spec,
    settings: &PodSettings,
) -> Containers {
    let mut gpu = runner::with_gpu(agent, spec);
    if spec.shared_memory.is_some() {
        let mounts = gpu.volume_mounts.get_or_insert_default();
        mounts.push(mount(owned::JOB_SHM, owned::SHM_DIR, false));
    }
    if let Some(theirs) = theirs {
        runner::merge(&mut gpu, theirs, runner::Place::of(spec));
    }
    let image = runner::begin_as_the_gate(&mut gpu, settings);
    let user = chosen_user(template, &gpu);
    Containers {
        main: ours::main(spec, settings, user),
        gpu,
        image,
        user,
    }
}

/// Named before it is there: later the pod cannot name it.
fn pull_secrets(spec: &Spec, pod: &str) -> Option<Vec<LocalObjectReference>> {
    spec.job_containers.as_ref()?;
    let name = job_secret(pod);
    Some(vec![LocalObjectReference { name }])
}

/// The Secret with what the job's container of a pod needs, once a job has made it.
#[must_use]
pub fn job_secret(pod: &str) -> String {
    format!("{pod}{}", owned::JOB_SECRET)
}

/// Merges what is left of a template that [`crate::model::pool`] has found to take nothing of ours.
fn merge(spec: &mut PodSpec, mut template: PodSpec) {
    // A list of the template's would replace ours.
    let tolerations = template.tolerations.take();
    spec.tolerations
        .get_or_insert_default()
        .extend(tolerations.into_iter().flatten());
    spec.merge_from(template);
}

/// The template's init containers and sidecars.
fn beside(template: &mut PodSpec) -> Vec<Container> {
    let mut all = template.init_containers.take().unwrap_or_default();
    for container in &mut all {
        // An image may ask for every device of the node.
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|v| v.name == owned::VISIBLE_DEVICES) {
            env.push(value(owned::VISIBLE_DEVICES, owned::NO_DEVICES.to_owned()));
        }
    }
    all
}

/// Of nodes with GPUs, and of those that were marked because of a fault.
pub(crate) fn our_tolerations() -> [Toleration; 2] {
    [
        Toleration {
            key: Some("nvidia.com/gpu".to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        },
        node_marks::toleration(),
    ]
}

/// Ours that the template does not have.
fn tolerations(spec: &Spec) -> Vec<Toleration> {
    let template = spec.template.spec.as_ref();
    let theirs = template.and_then(|t| t.tolerations.as_ref());
    let is_theirs = |ours: &Toleration| theirs.is_some_and(|theirs| theirs.contains(ours));
    let ours = our_tolerations().into_iter();
    ours.filter(|ours| !is_theirs(ours)).collect()
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
    // The kubelet puts the Secret's words into the address, so that no object has them.
    let [name, password] = owned::PROXY_USER;
    let words = |secret: &str| {
        let of = [(name, "username"), (password, "password")];
        of.map(|(variable, key)| from_secret(variable, secret, key))
    };
    let address = match proxy.secret() {
        Some(_) => proxy.as_user(&format!("$({name})"), &format!("$({password})")),
        None => proxy.to_string(),
    };
    let variables = [
        ("http_proxy", address.clone()),
        ("https_proxy", address),
        ("no_proxy", without.join(",")),
    ];
    let variables = variables
        .into_iter()
        .flat_map(|(name, text)| [value(name, text.clone()), value(&name.to_uppercase(), text)]);
    let words = proxy.secret().map(words).into_iter().flatten();
    words.chain(variables).collect()
}

/// A variable whose value is in a Secret.
fn from_secret(name: &str, secret: &str, key: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: key.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    }
}

/// The devices of a runner, proven first and used then, in one container.
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

/// The pod's own claim, made from the template when the pod is, and gone with it; that of a re-test is made by us.
fn claims(gpu: &GpuRequest, new: &NewRunner) -> Option<Vec<PodResourceClaim>> {
    let GpuRequest::Claim(template) = gpu else {
        return None;
    };
    let ours = new.retest.as_ref();
    let ours = ours.map(|retest| retest::claim_name(&new.name, retest));
    Some(vec![PodResourceClaim {
        name: CLAIM.to_owned(),
        resource_claim_template_name: ours.is_none().then(|| template.clone()),
        resource_claim_name: ours,
    }])
}

fn volumes(spec: &Spec) -> Vec<Volume> {
    let mut volumes = vec![
        in_memory(owned::REGISTRATION, SHARED_MEMORY),
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
    match (&spec.job_containers, &spec.shared_memory) {
        (Some(containers), _) => volumes.extend(jobs::volumes(containers)),
        (None, Some(size)) => volumes.push(in_memory(owned::JOB_SHM, size)),
        (None, None) => {}
    }
    volumes
}

/// A volume in memory, of this size at most.
fn in_memory(name: &str, size: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity(size.to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The user that the template chooses for the agent.
fn chosen_user(template: &PodSpec, agent: &Container) -> Option<i64> {
    let of_pod = template.security_context.as_ref();
    let of_agent = agent.security_context.as_ref().and_then(|c| c.run_as_user);
    of_agent.or_else(|| of_pod?.run_as_user)
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

#[cfg(test)]
mod tests;
