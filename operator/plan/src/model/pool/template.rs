//! The pod template: read, and held against what is the operator's. What passes here can be merged over
//! [the pod](crate::pod) without loss of anything of ours.

use cudarunner_crds::template as why;
use cudarunner_crds::{ARCH_LABEL, Arch};
use gate_report::contract::{RUNNER, gate, script};
use gate_report::wire::AUDIENCE;
use k8s_openapi::api::core::v1::{
    Container, EnvVar, LifecycleHandler, PodSpec, PodTemplateSpec, ResourceRequirements, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::{GpuRequest, owned};

/// The most bytes that a template may have, as JSON.
const LARGEST: usize = 64 * 1024;

/// What the rest of the spec says, as far as a template has to agree with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest<'a> {
    /// The architecture of the pool's nodes.
    pub arch: Arch,
    /// The devices of one runner.
    pub gpu: &'a GpuRequest,
    /// Whether the pool has a proxy.
    pub proxy: bool,
    /// Whether the pool has certificate authorities.
    pub authorities: bool,
    /// Whether jobs bring their containers.
    pub job_containers: bool,
    /// How much shared memory jobs have, where the pool says it.
    pub shared_memory: Option<&'a str>,
}

/// A template that can be merged, or what is wrong, beginning with the path of the field below `spec.template`.
pub(super) fn read(given: Option<&Value>, rest: Rest<'_>) -> Result<PodTemplateSpec, String> {
    let Some(given) = given.filter(|t| !t.is_null()) else {
        return Ok(PodTemplateSpec::default());
    };
    let size = given.to_string().len();
    if size > LARGEST {
        return Err(format!(
            ": it has {size} bytes as JSON, and {LARGEST} are the most: move scripts and long values into a ConfigMap, and mount it"
        ));
    }
    let mut parsed = known(given)
        .map_err(|error| format!(": {error}; compare it with `kubectl explain pod.spec`"))?;
    metadata(given.get("metadata"), parsed.metadata.as_ref())?;
    if let Some(spec) = &parsed.spec {
        pod(spec, rest)?;
        for volume in spec.volumes.iter().flatten() {
            of_volume(volume, rest)?;
        }
        containers(spec, rest)?;
        references(spec)?;
    }
    leave_out_what_changes_nothing(&mut parsed);
    Ok(parsed)
}

/// What other controllers and other images read, and nothing here does: it protects nobody to refuse it.
fn leave_out_what_changes_nothing(template: &mut PodTemplateSpec) {
    if let Some(labels) = template.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
        labels.remove(owned::MANAGED_BY);
    }
    let containers = template.spec.iter_mut().flat_map(|s| &mut s.containers);
    for env in containers.filter_map(|c| c.env.as_mut()) {
        env.retain(|variable| !owned::WITHOUT_EFFECT.contains(&variable.name.as_str()));
    }
}

/// A template with every field known: one that a Pod does not have would otherwise vanish in silence.
fn known(given: &Value) -> Result<PodTemplateSpec, String> {
    let parsed: PodTemplateSpec =
        serde_json::from_value(given.clone()).map_err(|e| e.to_string())?;
    let known = serde_json::to_value(&parsed).map_err(|e| e.to_string())?;
    match first_lost("", given, &known) {
        Some(field) => Err(format!("a pod has no field {field:?}")),
        None => Ok(parsed),
    }
}

/// The first path of `given` that did not survive into `known`. What is empty may vanish.
fn first_lost(path: &str, given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match known.get(name) {
                Some(kept) => first_lost(&path, value, kept),
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => given
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(i, (given, known))| first_lost(&format!("{path}[{i}]"), given, known)),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// The first of these that is so is refused, with its field and the sentence.
fn first(table: &[(bool, &str, &str)], path: impl Fn(&str) -> String) -> Result<(), String> {
    match table.iter().find(|(refused, ..)| *refused) {
        Some((_, field, why)) => Err(format!("{}: {why}", path(field))),
        None => Ok(()),
    }
}

fn metadata(given: Option<&Value>, parsed: Option<&ObjectMeta>) -> Result<(), String> {
    let fields = given.and_then(Value::as_object).into_iter().flatten();
    for (field, value) in fields {
        if !["labels", "annotations"].contains(&field.as_str()) && !is_empty(value) {
            return Err(format!(".metadata.{field}: {}", why::METADATA));
        }
    }
    let labels = parsed.and_then(|m| m.labels.as_ref());
    let annotations = parsed.and_then(|m| m.annotations.as_ref());
    for (list, keys) in [("labels", labels), ("annotations", annotations)] {
        if let Some(key) = keys
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .find(|key| owned::is_own_key(key))
        {
            return Err(format!(".metadata.{list}[{key:?}]: {}", why::OWN_KEYS));
        }
    }
    Ok(())
}

fn pod(spec: &PodSpec, rest: Rest<'_>) -> Result<(), String> {
    let claims = spec.resource_claims.iter().flatten();
    let restarts = spec.restart_policy.as_deref().is_some_and(|p| p != "Never");
    let mounts_token = spec.automount_service_account_token == Some(true);
    let selector = spec.node_selector.iter().flatten();
    let other_arch = selector
        .clone()
        .any(|(label, value)| label == ARCH_LABEL && value != rest.arch.as_str());
    let table = [
        (restarts, "restartPolicy", why::RESTART_POLICY),
        (spec.node_name.is_some(), "nodeName", why::NODE_NAME),
        (
            other_arch,
            "nodeSelector[\"kubernetes.io/arch\"]",
            "it is another architecture than spec.arch, whose nodes the pods go to: remove it here, and write it there",
        ),
        (
            spec.active_deadline_seconds.is_some(),
            "activeDeadlineSeconds",
            why::DEADLINE,
        ),
        (
            spec.share_process_namespace == Some(true),
            "shareProcessNamespace",
            why::SHARED_PROCESSES,
        ),
        (
            rest.job_containers && spec.host_pid == Some(true),
            "hostPID",
            "a job with root in its own container would read what the agent knows: remove it, or spec.jobContainers",
        ),
        (
            mounts_token,
            "automountServiceAccountToken",
            why::ACCOUNT_TOKEN,
        ),
        (
            spec.ephemeral_containers
                .as_ref()
                .is_some_and(|c| !c.is_empty()),
            "ephemeralContainers",
            "Kubernetes takes them for pods that run, not for new ones: remove ephemeralContainers, and use `kubectl debug`",
        ),
        (
            claims.clone().any(|claim| claim.name == owned::CLAIM),
            "resourceClaims",
            "the claim named gpu is the operator's: set spec.gpu.claimTemplate, or give a claim for something else another name",
        ),
    ];
    first(&table, |field| format!(".spec.{field}"))
}

/// Whether a volume of this name is the operator's.
fn is_our_volume(name: &str, rest: Rest<'_>) -> bool {
    owned::VOLUMES.contains(&name)
        || rest.job_containers && owned::JOB_VOLUMES.contains(&name)
        || rest.shared_memory.is_some() && name == owned::JOB_SHM
}

fn of_volume(volume: &Volume, rest: Rest<'_>) -> Result<(), String> {
    let sources = volume.projected.iter().filter_map(|p| p.sources.as_ref());
    let tokens = sources
        .flatten()
        .filter_map(|s| s.service_account_token.as_ref());
    let table = [
        (
            is_our_volume(&volume.name, rest),
            "name",
            "a volume of the operator's has this name: choose another one",
        ),
        (
            tokens
                .clone()
                .any(|t| t.audience.as_deref() == Some(AUDIENCE)),
            "projected.sources",
            "a token of this audience is the gate's alone, since it is good for a registration: choose another audience",
        ),
    ];
    first(&table, |field| {
        format!(".spec.volumes[{}].{field}", volume.name)
    })
}

/// All containers of a template, `runner` first.
fn places(spec: &PodSpec) -> impl Iterator<Item = Place<'_>> {
    let runners = spec.containers.iter().map(|c| ("containers", c));
    let init = spec.init_containers.iter().flatten();
    let all = runners.chain(init.map(|c| ("initContainers", c)));
    all.map(|(list, container)| Place { list, container })
}

fn containers(spec: &PodSpec, rest: Rest<'_>) -> Result<(), String> {
    let mut names = vec![];
    for place in places(spec) {
        let Place { list, container } = place;
        if names.contains(&&container.name) {
            return Err(place.says("name", "two containers have this name: choose another one"));
        }
        names.push(&container.name);
        mounts(place, rest)?;
        if list == "containers" {
            spares_the_gate(place)?;
            runner(place, rest)?;
        } else {
            beside(place, rest)?;
        }
    }
    Ok(())
}

/// Volumes and claims that a container names are there. Kubernetes would refuse each pod, and say of the container only its
/// number among all of the pod's.
fn references(spec: &PodSpec) -> Result<(), String> {
    let has_volume = |name: &str| spec.volumes.iter().flatten().any(|v| v.name == name);
    let has_claim = |name: &str| {
        spec.resource_claims
            .iter()
            .flatten()
            .any(|c| c.name == name)
    };
    for place in places(spec) {
        let c = place.container;
        let mounts = c.volume_mounts.iter().flatten();
        let mounts = mounts.map(|m| ("volumeMounts", &m.name));
        let devices = c.volume_devices.iter().flatten();
        let devices = devices.map(|d| ("volumeDevices", &d.name));
        if let Some((list, name)) = mounts.chain(devices).find(|(_, name)| !has_volume(name)) {
            return Err(place.says(
                &format!("{list}[{name}].name"),
                "spec.template.spec.volumes has no volume of this name: add it there, or remove this one",
            ));
        }
        let claims = c.resources.iter().filter_map(|r| r.claims.as_ref());
        if let Some(claim) = claims.flatten().find(|claim| !has_claim(&claim.name)) {
            return Err(place.says(
                &format!("resources.claims[{}].name", claim.name),
                "spec.template.spec.resourceClaims has no claim of this name: add it there, or remove this one",
            ));
        }
    }
    Ok(())
}

/// A container of the template, for messages.
#[derive(Clone, Copy)]
struct Place<'a> {
    list: &'a str,
    container: &'a Container,
}

impl Place<'_> {
    fn path(&self, field: &str) -> String {
        format!(".spec.{}[{}].{field}", self.list, self.container.name)
    }

    fn says(&self, field: &str, why: &str) -> String {
        format!("{}: {why}", self.path(field))
    }
}

/// The agent's container.
fn runner(place: Place<'_>, rest: Rest<'_>) -> Result<(), String> {
    let c = place.container;
    let restarts = c.restart_policy.is_some() || c.restart_policy_rules.is_some();
    let path = c.termination_message_path.as_deref();
    let policy = c.termination_message_policy.as_deref();
    let table = [
        (c.name != RUNNER, "name", why::OTHER_CONTAINER),
        (c.command.is_some(), "command", why::COMMAND),
        (c.args.is_some(), "args", why::COMMAND),
        (c.startup_probe.is_some(), "startupProbe", why::PROBE),
        (c.readiness_probe.is_some(), "readinessProbe", why::PROBE),
        (restarts, "restartPolicy", why::RESTART_POLICY),
        (
            path.is_some_and(|p| p != owned::TERMINATION_LOG),
            "terminationMessagePath",
            "the job hooks leave their marks in /dev/termination-log: remove terminationMessagePath",
        ),
        (
            policy.is_some_and(|p| p != owned::TERMINATION_POLICY),
            "terminationMessagePolicy",
            "an agent that fails says why in its log only: remove terminationMessagePolicy; it is FallbackToLogsOnError",
        ),
    ];
    first(&table, |field| place.path(field))?;
    let all = c.env.iter().flatten();
    for (number, variable) in all.clone().enumerate() {
        if let Some(why) = not_a_users(&variable.name, rest) {
            return Err(place.says(&format!("env[{}]", variable.name), why));
        }
        if all.clone().take(number).any(|v| v.name == variable.name) {
            return Err(place.says(
                &format!("env[{}]", variable.name),
                "it is there twice: remove one",
            ));
        }
    }
    let Some(resources) = &c.resources else {
        return Ok(());
    };
    for (field, name, quantity) in devices(resources, rest.gpu) {
        let agrees = matches!(rest.gpu, GpuRequest::Resource { name: ours, count } if ours == name && count.to_string() == quantity);
        if !agrees {
            return Err(place.says(
                &format!("resources.{field}[{name:?}]"),
                &format!("it asks for {quantity}, and spec.gpu for {}; the gate proves what spec.gpu says, and a job gets nothing else: remove it here, and set spec.gpu.resource and spec.gpu.count", rest.gpu),
            ));
        }
    }
    let claims = resources.claims.iter().flatten();
    match claims.into_iter().find(|c| c.name == owned::CLAIM) {
        Some(_) => Err(place.says("resources.claims", "the claim named gpu is the operator's, and the runner has it as spec.gpu.claimTemplate says: remove it here")),
        None => Ok(()),
    }
}

/// An init container of the user's, or a sidecar: it gets no GPU.
fn beside(place: Place<'_>, rest: Rest<'_>) -> Result<(), String> {
    let c = place.container;
    let resources = c.resources.as_ref();
    let has_devices = resources.is_some_and(|r| devices(r, rest.gpu).next().is_some());
    let has_claims = resources.is_some_and(|r| r.claims.as_ref().is_some_and(|c| !c.is_empty()));
    let sees = |variable: &EnvVar| {
        variable.name == owned::VISIBLE_DEVICES
            && !matches!(
                variable.value.as_deref(),
                Some("" | "none" | owned::NO_DEVICES)
            )
    };
    let no_gpu = "the devices are the runner's, after the gate has proven them: no other container gets one, so remove it here";
    let table = [
        (
            owned::CONTAINERS.contains(&c.name.as_str()),
            "name",
            "a container of the operator's has this name, and a template cannot change it: choose another one",
        ),
        (
            c.name == RUNNER,
            "name",
            "runner is the agent's container: choose another name",
        ),
        (has_devices, "resources", no_gpu),
        (
            has_claims,
            "resources.claims",
            "the gate proves what the runner claims, and nothing else: claim it for the container runner",
        ),
        (
            c.env.iter().flatten().any(sees),
            "env[NVIDIA_VISIBLE_DEVICES]",
            no_gpu,
        ),
    ];
    first(&table, |field| place.path(field))
}

/// No container has our volumes, or something else in their place.
fn mounts(place: Place<'_>, rest: Rest<'_>) -> Result<(), String> {
    // What is beside the runner has no part in its jobs.
    let is_runner = place.list == "containers";
    let shared = rest.job_containers && is_runner;
    let has_shm = (rest.job_containers || rest.shared_memory.is_some()) && is_runner;
    for mount in place.container.volume_mounts.iter().flatten() {
        let path = normal(&mount.mount_path);
        let has = |ours: &[&str]| ours.iter().any(|ours| is_in(&path, &normal(ours)));
        let table = [
            (
                is_our_volume(&mount.name, rest),
                "name",
                "this volume is the operator's: remove the mount",
            ),
            (
                has(&owned::PATHS),
                "mountPath",
                "the operator has its own files there: choose another path",
            ),
            (
                has_shm && has(&[owned::SHM_DIR]),
                "mountPath",
                "spec.sharedMemory says what a job has there: remove the mount",
            ),
            (
                shared && has(&owned::JOB_PATHS),
                "mountPath",
                "with spec.jobContainers the agent and the job's container share folders there: choose another path",
            ),
        ];
        first(&table, |field| {
            place.path(&format!("volumeMounts[{}].{field}", mount.name))
        })?;
    }
    Ok(())
}

/// The gate runs in the agent's container, before it: nothing there hides what it runs from, or is done to it.
fn spares_the_gate(place: Place<'_>) -> Result<(), String> {
    let c = place.container;
    let mounts = c.volume_mounts.iter().flatten();
    let mounts = mounts.map(|m| ("volumeMounts", &m.name, "mountPath", &m.mount_path));
    let devices = c.volume_devices.iter().flatten();
    let devices = devices.map(|d| ("volumeDevices", &d.name, "devicePath", &d.device_path));
    for (list, name, field, path) in mounts.chain(devices) {
        if hides_the_gate(path) {
            return Err(place.says(
                &format!("{list}[{name}].{field}"),
                "the gate runs in this container before the agent does, and needs what its image and the driver have there: choose another path",
            ));
        }
    }
    let hooks = c.lifecycle.iter().flat_map(|l| {
        [
            ("lifecycle.postStart", &l.post_start),
            ("lifecycle.preStop", &l.pre_stop),
        ]
    });
    let hooks = hooks.map(|(field, handler)| {
        let asks = |h: &LifecycleHandler| h.http_get.is_some() || h.tcp_socket.is_some();
        (field, handler.as_ref().is_some_and(asks))
    });
    let probe = c.liveness_probe.as_ref().is_some_and(|p| p.exec.is_none());
    for (field, asks) in hooks.chain([("livenessProbe", probe)]) {
        if asks {
            return Err(place.says(
                field,
                "the gate runs in this container before the agent does, and answers nobody: write it as exec",
            ));
        }
    }
    Ok(())
}

/// Whether a mount at this path is in, beneath or over what the gate runs from.
fn hides_the_gate(path: &str) -> bool {
    let path = normal(path);
    owned::OF_THE_GATE
        .iter()
        .any(|place| match place.strip_suffix('*') {
            Some(beginning) => path.starts_with(beginning) || is_in(beginning, &path),
            None => is_in(&path, place) || is_in(place, &path),
        })
}

/// Whether a path is this folder, or in it.
fn is_in(path: &str, folder: &str) -> bool {
    let rest = path.strip_prefix(folder.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A path as a container runtime takes it. Images have their `/var/run` at `/run`.
fn normal(path: &str) -> String {
    let mut parts = vec![];
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if let ["var", "run", ..] = parts.as_slice() {
        parts.remove(0);
    }
    format!("/{}", parts.join("/"))
}

/// What a container asks for that is a GPU: field, name and quantity.
fn devices<'a>(
    resources: &'a ResourceRequirements,
    gpu: &'a GpuRequest,
) -> impl Iterator<Item = (&'static str, &'a str, &'a str)> {
    let both = [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ];
    both.into_iter().flat_map(move |(field, list)| {
        let list = list.iter().flatten();
        list.filter(|(name, _)| is_gpu(name, gpu))
            .map(move |(name, quantity)| (field, name.as_str(), quantity.0.as_str()))
    })
}

/// Whether a resource stands for GPUs: the pool's own, or one of the names under which NVIDIA's device plugin offers them.
fn is_gpu(name: &str, gpu: &GpuRequest) -> bool {
    let own = matches!(gpu, GpuRequest::Resource { name: ours, .. } if ours == name);
    let device = name.strip_prefix("nvidia.com/").unwrap_or_default();
    own || device == "gpu" || device.starts_with("gpu.") || device.starts_with("mig-")
}

/// Why a variable may not be set for the agent.
fn not_a_users(name: &str, rest: Rest<'_>) -> Option<&'static str> {
    let is_proxy = || owned::PROXY.contains(&name.to_lowercase().as_str());
    match name {
        owned::VISIBLE_DEVICES => Some(
            "the device plugin or the claim decides which devices a container has, and the gate proves those: remove it, and set spec.gpu.count",
        ),
        owned::DEPRECATED_EXIT_CODE | owned::TRAP_SIGNALS => {
            Some("the operator sets it: remove it")
        }
        _ if name.starts_with("ACTIONS_RUNNER_INPUT_") => Some(
            "options of the agent are the operator's: remove it; spec.github, spec.labels and spec.lifetime say what it registers with",
        ),
        _ if name.starts_with(script::PREFIX) || name.starts_with(gate::PREFIX) => {
            Some("variables of this prefix are the operator's: choose another name")
        }
        owned::CONTAINER_HOOKS | owned::REQUIRE_JOB_CONTAINER if rest.job_containers => {
            Some("spec.jobContainers sets it: remove it")
        }
        _ if rest.proxy && is_proxy() => Some(
            "spec.github.proxy sets it: remove it, and write exceptions into spec.github.proxy.noProxy",
        ),
        _ if rest.authorities && owned::AUTHORITIES.contains(&name) => Some(
            "spec.github.caBundleRef sets it: remove it, and put further authorities into that ConfigMap",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
