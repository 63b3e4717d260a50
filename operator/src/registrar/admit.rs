//! Whether a report is good enough for a registration. Pure.
use gate_report::{Report, SCHEMA, Version, clean};

/// What a report must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Exactly so many devices; `None`: at least one.
    pub devices: Option<u32>,
    /// Every device has at least this compute capability.
    pub min_compute_capability: Version,
    /// The driver supports at least this version of CUDA.
    pub min_cuda_version: Version,
    /// Every device has concurrent managed access.
    pub require_managed_memory: bool,
    /// Every device reaches the memory of every other.
    pub require_peer_access: bool,
    /// What the runner's image and network offer was looked at, and is in order.
    pub require_preflight: bool,
    /// Name of the pod that the report must be from.
    pub pod: String,
    /// Node of the pod, as the API server knows it. `None`: not known yet, and not compared.
    pub node: Option<String>,
}

/// What is decided on a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The pod gets the agent's image, and then its registration.
    Admit,
    /// The gate itself found a fault: noted, nothing more.
    Failed,
    /// The gate passed, and the report does not satisfy the pool's policy.
    Refuse {
        /// One word in `PascalCase`, for machines.
        reason: &'static str,
        /// One sentence, for people.
        message: String,
    },
}

/// Why these are not the devices that a runner has. Of a claim only its template knows how many there are.
fn wrong_count(count: usize, wanted: Option<u32>) -> Option<String> {
    let (is_right, wanted) = match wanted {
        Some(wanted) => (usize::try_from(wanted) == Ok(count), wanted.to_string()),
        None => (count > 0, "at least one".to_owned()),
    };
    (!is_right)
        .then(|| format!("the report is over {count} devices, the pool's runners have {wanted}"))
}

/// Which of the ordered pairs of devices do not reach one another's memory, as far as counts tell.
fn missing_access(report: &Report) -> Option<String> {
    let devices = report.devices.len();
    let pairs = devices.saturating_mul(devices.saturating_sub(1));
    let with_access = report.peers.as_ref().map_or(0, |peers| peers.with_access);
    let with_access = usize::try_from(with_access).unwrap_or_default();
    (with_access < pairs).then(|| {
        format!(
            "{with_access} of the {pairs} ordered pairs of devices have peer access, the pool requires all (spec.gpu.peerAccess)"
        )
    })
}

/// Decides on a report.
#[must_use]
#[expect(
    clippy::too_many_lines,
    reason = "one list: what is asked of a report, in its order"
)]
pub fn admit(report: &Report, policy: &Policy) -> Decision {
    let refuse = |reason: &'static str, message: String| Decision::Refuse { reason, message };
    if report.schema != SCHEMA {
        return refuse(
            "UnknownSchema",
            format!(
                "the report's schema is {:?}, this operator knows {SCHEMA:?}; use the gate image of the operator's own version",
                cut(&report.schema)
            ),
        );
    }
    if !report.passed() || report.failure.is_some() {
        return Decision::Failed;
    }
    if report.pod.as_deref() != Some(&policy.pod) {
        return refuse(
            "OtherPod",
            format!(
                "the report is from pod {}, the token is pod {}'s",
                named(report.pod.as_deref()),
                policy.pod
            ),
        );
    }
    if let Some(node) = &policy.node
        && report.node.as_ref() != Some(node)
    {
        return refuse(
            "OtherNode",
            format!(
                "the report is from node {}, the pod is on {node}",
                named(report.node.as_deref())
            ),
        );
    }
    let preflight = report.preflight.as_ref();
    if policy.require_preflight && preflight.is_none() {
        return refuse(
            "NoPreflight",
            "the report does not say what the runner's image and network offer, the pool asks for it (spec.preflight)".to_owned(),
        );
    }
    if let Some(preflight) = preflight.filter(|preflight| preflight.has_failed()) {
        return refuse("Preflight", sentence(&preflight.sentence()));
    }
    if let Some(message) = wrong_count(report.devices.len(), policy.devices) {
        return refuse("DeviceCount", message);
    }
    let cuda = report
        .driver
        .as_ref()
        .and_then(|driver| driver.cuda_version.as_deref());
    if !cuda.is_some_and(|cuda| at_least(cuda, policy.min_cuda_version)) {
        return refuse(
            "CudaVersion",
            format!(
                "the driver supports CUDA {}, the pool requires {} (spec.gpu.minCudaVersion); update the node's driver",
                named(cuda),
                policy.min_cuda_version
            ),
        );
    }
    for device in &report.devices {
        if !at_least(&device.compute_capability, policy.min_compute_capability) {
            return refuse(
                "ComputeCapability",
                format!(
                    "device {} ({}) has compute capability {}, the pool requires {} (spec.gpu.minComputeCapability)",
                    device.ordinal,
                    cut(&device.name),
                    named(Some(&device.compute_capability)),
                    policy.min_compute_capability
                ),
            );
        }
        if policy.require_managed_memory && !device.concurrent_managed_access {
            return refuse(
                "ManagedMemory",
                format!(
                    "device {} ({}) has no concurrent managed access, the pool requires it (spec.smoke.managedMemory)",
                    device.ordinal,
                    cut(&device.name)
                ),
            );
        }
    }
    if policy.require_peer_access
        && let Some(message) = missing_access(report)
    {
        return refuse("PeerAccess", message);
    }
    Decision::Admit
}

fn at_least(version: &str, minimum: Version) -> bool {
    version
        .parse::<Version>()
        .is_ok_and(|version| version >= minimum)
}

/// The gate's words go into a sentence for people: never more than a line of them.
pub(crate) fn cut(text: &str) -> String {
    clean(text, 64)
}

/// Words of somebody else's, of a length for a refusal and for the log.
pub(crate) fn sentence(text: &str) -> String {
    clean(text, 2000)
}

fn named(text: Option<&str>) -> String {
    match text {
        None | Some("") => "that it does not name".into(),
        Some(text) => cut(text),
    }
}
