//! How each field of a spec is read. What the schema has refused is not met here, and what it lets pass has a reading.

use std::sync::Arc;

use cudarunner_crds::{
    CudaRunnerSpec, Gpu, JobContainers, Preflight, RegistrationMode, Scaling, ScalingSource, Smoke,
    Telemetry, Verify,
};
use gate_report::allow::Policy;
use gate_report::preflight::{MIN_DISK_MIB, Wanted};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{GateSettings, GpuRequest, RegistrationKind, Size, SpecError, Webhook};
use crate::model::github::Repository;
use crate::model::proxy::Proxy;
use crate::model::time::duration;
use crate::model::url::{GitHubUrl, Scope};
use crate::placement::Place;
use crate::schedule::{self, Window};
use crate::shares::Needs;

/// The longest that a deletion may take: GitHub lets no job run longer.
const LONGEST_TEARDOWN: SignedDuration = SignedDuration::from_hours(5 * 24);
/// The shortest time between two verifications: each costs a workflow run, and most take minutes.
const SHORTEST_EVERY: SignedDuration = SignedDuration::from_mins(10);
/// The longest.
const LONGEST_EVERY: SignedDuration = SignedDuration::from_hours(365 * 24);

/// What the pool needs of the GPUs that it shares with others.
pub(super) fn needs(
    template: &PodTemplateSpec,
    spec: &CudaRunnerSpec,
    gpu: &GpuRequest,
    (registration, size): (RegistrationKind, Size),
) -> Option<Arc<Needs>> {
    let pod = template.spec.as_ref();
    let needs = Needs {
        resource: gpu.resource_name()?.to_owned(),
        count: gpu.count()?.max(1),
        weight: weight(spec.scaling.as_ref()),
        size,
        registration,
        place: Place::new(pod, spec.arch, &spec.gpu.min_compute_capability),
    };
    Some(Arc::new(needs))
}

fn weight(scaling: Option<&Scaling>) -> u32 {
    scaling.map_or(1, |scaling| scaling.weight.max(1).unsigned_abs())
}

/// What the gate demands.
pub(super) fn gate_settings(gpu: &Gpu, smoke: &Smoke) -> GateSettings {
    let free_memory = smoke.min_free_memory_percent.clamp(0, 100);
    GateSettings {
        min_compute_capability: gpu.min_compute_capability.clone(),
        min_cuda_version: gpu.min_cuda_version.clone(),
        managed_memory: smoke.managed_memory,
        min_free_memory_percent: free_memory.unsigned_abs(),
        peer_access: gpu.peer_access,
        timeout_seconds: smoke.timeout_seconds.max(1).unsigned_abs(),
    }
}

pub(super) fn schedule(scaling: Option<&Scaling>) -> Result<Vec<Window>, SpecError> {
    let windows = scaling.map(|scaling| scaling.schedule.as_slice());
    schedule::read(windows.unwrap_or_default()).map_err(SpecError::Schedule)
}

pub(super) fn webhook(scaling: Option<&Scaling>) -> Option<Webhook> {
    let scaling = scaling.filter(|scaling| scaling.source == ScalingSource::Webhook)?;
    let own = scaling.webhook.as_ref();
    let secret = own.and_then(|webhook| webhook.secret_ref.as_ref());
    Some(Webhook {
        secret: secret.map(|reference| reference.name.clone()),
    })
}

pub(super) fn proxy(spec: &CudaRunnerSpec) -> Result<Option<Proxy>, SpecError> {
    let Some(proxy) = &spec.github.proxy else {
        return Ok(None);
    };
    let secret = proxy.credentials_ref.as_ref().map(|r| r.name.as_str());
    let read = Proxy::parse(&proxy.url, &proxy.no_proxy)?;
    Ok(Some(read.with_secret(secret)))
}

/// A just-in-time configuration is good for one job: a persistent runner takes a token whatever is asked. Jobs that are
/// assigned to a scale set are for its runners alone.
pub(super) fn registration(spec: &CudaRunnerSpec, persistent: bool) -> RegistrationKind {
    let by_scale_set = spec.registration == RegistrationMode::ScaleSet
        || spec
            .scaling
            .as_ref()
            .is_some_and(|scaling| scaling.source == ScalingSource::ScaleSet);
    if persistent || spec.registration == RegistrationMode::RegistrationToken {
        RegistrationKind::Token
    } else if by_scale_set {
        RegistrationKind::ScaleSet
    } else {
        RegistrationKind::JitConfig
    }
}

pub(super) fn size(replicas: Option<i32>, scaling: Option<&Scaling>) -> Size {
    let count = |number: i32| usize::try_from(number).unwrap_or_default();
    let fixed = replicas.unwrap_or(1);
    let (min, max) = scaling.map_or((fixed, fixed), |s| (s.min_runners, s.max_runners));
    Size {
        min: count(min),
        max: count(max.max(min)),
    }
}

pub(super) fn read_gpu(gpu: &Gpu) -> GpuRequest {
    match &gpu.claim_template {
        Some(template) => GpuRequest::Claim(template.clone()),
        None => GpuRequest::Resource {
            name: gpu.resource.clone(),
            count: gpu.count.unwrap_or(1).max(1).unsigned_abs(),
        },
    }
}

/// The container is there for what only the image can tell; the gate tries addresses itself.
pub(super) fn read_preflight(preflight: &Preflight) -> Wanted {
    let image = !preflight.commands.is_empty()
        || preflight.cuda_toolkit.is_some()
        || preflight.rust_toolchain.is_some()
        || preflight.min_disk_mib.is_some();
    let least = preflight
        .min_disk_mib
        .map_or(MIN_DISK_MIB, |mib| u64::from(mib.max(0).unsigned_abs()));
    Wanted {
        image,
        commands: preflight.commands.clone(),
        cuda_toolkit: preflight.cuda_toolkit.clone(),
        rust_toolchain: preflight.rust_toolchain.clone(),
        min_disk_mib: image.then_some(least),
        egress: preflight.egress.clone(),
    }
}

pub(super) fn read_allow(spec: &CudaRunnerSpec) -> Option<Policy> {
    let allow = spec.jobs.as_ref()?.allow.as_ref()?;
    Some(Policy {
        events: allow.events.clone(),
        refs: allow.refs.clone(),
        forks: allow.forks,
    })
}

/// The size of shared memory has one word for all pools, and an older one for those with containers.
pub(super) fn job_containers(spec: &CudaRunnerSpec) -> Option<JobContainers> {
    let mut containers = spec.job_containers.clone()?;
    if let Some(size) = &spec.shared_memory {
        containers.shm_size = Quantity(size.clone());
    }
    Some(containers)
}

pub(super) fn telemetry(spec: &CudaRunnerSpec) -> Telemetry {
    let jobs = spec.jobs.as_ref();
    jobs.map(|jobs| jobs.telemetry).unwrap_or_default()
}

pub(super) fn max_job_minutes(spec: &CudaRunnerSpec) -> Option<u32> {
    let minutes = spec.jobs.as_ref()?.max_minutes?;
    Some(minutes.max(1).unsigned_abs())
}

/// What the schema admits; one of a resource that is older than its bounds becomes the nearest within them, and what is no
/// duration is ten minutes.
pub(super) fn teardown_timeout(text: &str) -> SignedDuration {
    let limit = duration(text).unwrap_or(SignedDuration::from_mins(10));
    limit.clamp(SignedDuration::ZERO, LONGEST_TEARDOWN)
}

/// The same for the time between two verifications. What is no duration is none.
pub(super) fn verify_every(verify: Option<&Verify>) -> Option<SignedDuration> {
    let every = duration(verify?.every.as_deref()?)?;
    Some(every.clamp(SHORTEST_EVERY, LONGEST_EVERY))
}

/// The repository of `spec.verify`: its own word, or the pool's.
pub(crate) fn repository(verify: Option<&Verify>, url: &GitHubUrl) -> Option<Repository> {
    let own = verify.and_then(|v| v.repository.clone());
    let name = own.or_else(|| match url.scope() {
        Scope::Repository { owner, name } => Some(format!("{owner}/{name}")),
        _ => None,
    })?;
    Repository::new(&name)
}
