//! The containers of a runner's pod in which nothing of the template's is: the one that prepares, and the main one.

use std::collections::BTreeMap;

use cudarunner_crds::Telemetry;
use gate_report::contract::{RUNNER_INIT_PROGRAM, TOKEN_FILE, command, gate};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, ObjectFieldSelector, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::runner::probe;
use super::{jobs, mount, proxy, value};
use crate::PodSettings;
use crate::model::pool::Spec;
use crate::model::pool::owned::{self, AGENT_DIR, CA_DIR, REGISTRATION_DIR, TOKEN_DIR};
use crate::model::runner::{MAIN, PREPARE};

/// The user of GitHub's own runner image.
pub(super) const RUNNER_USER: i64 = 1001;
/// What the scheduler sets aside where nobody says it: hardly anything.
const REQUESTED: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "16Mi")];
/// The most that they get where the spec says nothing else.
const MOST: [(&str, &str); 2] = [("cpu", "1"), ("memory", "128Mi")];

/// Brings what the container of the GPUs needs: the only one with the pod's token, and without a GPU.
pub(super) fn prepare(spec: &Spec, settings: &PodSettings, user: Option<i64>) -> Container {
    let mut mounts = vec![
        mount(owned::REGISTRATION, REGISTRATION_DIR, false),
        mount(owned::REGISTRAR_TOKEN, TOKEN_DIR, true),
    ];
    if spec.job_containers.is_some() {
        mounts.push(mount(owned::AGENT_FILES, AGENT_DIR, false));
    }
    Container {
        name: PREPARE.to_owned(),
        args: Some(vec!["prepare".to_owned()]),
        env: Some(settings_of_the_gate(spec, settings)),
        // Where the image is for another architecture, only the log says so.
        termination_message_policy: Some(owned::TERMINATION_POLICY.to_owned()),
        volume_mounts: Some(mounts),
        ..plain(spec, settings, user)
    }
}

/// Ends as the runner did, and its pod with it.
pub(super) fn main(spec: &Spec, settings: &PodSettings, user: Option<i64>) -> Container {
    Container {
        name: MAIN.to_owned(),
        command: Some(init(MAIN)),
        // What the kubelet shows as started here has been online, whatever became of the agent since. An agent that ends
        // before this is asked says so itself.
        startup_probe: Some(Probe {
            period_seconds: Some(5),
            // No time is too long: the operator has its own deadlines, and the end needs no probe.
            failure_threshold: Some(i32::MAX),
            ..probe(init(command::ONLINE))
        }),
        volume_mounts: Some(vec![mount(owned::REGISTRATION, REGISTRATION_DIR, false)]),
        ..plain(spec, settings, user)
    }
}

/// Our program with this command, from our image: what lies in the pod's memory, a job can change.
fn init(command: &str) -> Vec<String> {
    [RUNNER_INIT_PROGRAM, command].map(str::to_owned).to_vec()
}

/// The least rights, and the gate's image.
fn plain(spec: &Spec, settings: &PodSettings, user: Option<i64>) -> Container {
    Container {
        image: Some(settings.gate_image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        resources: Some(resources(spec)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            // A policy may allow no other user than the job's; but ours are never root.
            run_as_user: Some(user.filter(|user| *user != 0).unwrap_or(RUNNER_USER)),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// What the gate is told. It runs in the container of the GPUs, where a template has a say: so it gets this from here, and
/// nothing from there.
fn settings_of_the_gate(spec: &Spec, settings: &PodSettings) -> Vec<EnvVar> {
    let of_the_gate = [
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
            spec.gate.managed_memory.as_str().to_owned(),
        ),
        (
            gate::MIN_FREE_MEMORY_PERCENT,
            spec.gate.min_free_memory_percent.to_string(),
        ),
        (gate::PEER_ACCESS, spec.gate.peer_access.as_str().to_owned()),
        (gate::TIMEOUT_SECONDS, spec.gate.timeout_seconds.to_string()),
        // Where the vendor's device plugin mounts the driver without a runtime class, as on GKE.
        ("LD_LIBRARY_PATH", "/usr/local/nvidia/lib64".to_owned()),
    ];
    let mut env: Vec<EnvVar> = of_the_gate.into_iter().map(|(n, v)| value(n, v)).collect();
    if let Some(containers) = &spec.job_containers {
        env.extend(jobs::settings(spec, containers));
    }
    if let Some(policy) = &spec.allow {
        let policy = serde_json::to_string(policy).unwrap_or_default();
        env.push(value(gate::ALLOW, policy));
    }
    if spec.telemetry == Telemetry::Disabled {
        env.push(value(gate::TELEMETRY, "Disabled".to_owned()));
    }
    if let Some(minutes) = spec.max_job_minutes {
        let seconds = minutes.saturating_mul(60);
        env.push(value(gate::MAX_JOB_SECONDS, seconds.to_string()));
    }
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
        if spec.ca_bundle.is_some() {
            env.push(value("SSL_CERT_FILE", format!("{CA_DIR}/ca.crt")));
        }
    }
    env
}

/// What ours may use. A namespace's quota may demand that every container says it, and its `LimitRange` how it is said.
fn resources(spec: &Spec) -> ResourceRequirements {
    let mut requests = quantities(REQUESTED);
    let limits = match &spec.gate_resources {
        Some(own) => {
            requests.extend(own.requests.clone());
            own.limits.clone()
        }
        None => quantities(MOST),
    };
    ResourceRequirements {
        requests: Some(requests),
        limits: Some(limits),
        claims: None,
    }
}

/// Lets a container whose resources are the user's to say ask for something all the same: a quota on requests takes no pod
/// with one that does not. Where there is a limit, Kubernetes takes that.
pub(super) fn ask_for_something(container: &mut Container) {
    let resources = container.resources.get_or_insert_default();
    for (name, quantity) in quantities(REQUESTED) {
        let limits = resources.limits.as_ref();
        if !limits.is_some_and(|limits| limits.contains_key(&name)) {
            let requests = resources.requests.get_or_insert_default();
            requests.entry(name).or_insert(quantity);
        }
    }
}

fn quantities(of: [(&str, &str); 2]) -> BTreeMap<String, Quantity> {
    of.into_iter()
        .map(|(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned())))
        .collect()
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
