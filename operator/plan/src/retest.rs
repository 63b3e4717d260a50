//! The re-test of a device that a rule keeps off: when its time is over the rule stays, and one new pod of the pool gets a
//! claim of its own, which tolerates our taint and which that device alone fits. Its gate decides.
//!
//! No other pod waits for a device in doubt, and the pod is an ordinary runner once its gate has passed.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#device-taints-and-tolerations>

use std::collections::BTreeSet;

use cudarunner_crds::{QuarantineStatus, RunnerPhase};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    CELDeviceSelector, DeviceSelector, DeviceToleration, ExactDeviceRequest, ResourceClaim,
    ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::device_taints::{Effect, KEY};
use super::quarantine::is_active;
use super::runners::suffix;
use super::{Access, Case};
use crate::model::claim::{ClaimTemplate, Retest};
use crate::model::published::PublishedDevice;
use crate::model::runner::{End, Runner};
use crate::model::time::Shift as _;

/// How long the pod waits for the device: whoever has it keeps it for longer than the scheduler takes to look.
const WAITS: SignedDuration = SignedDuration::from_mins(1);
/// How long the device rests after an attempt that did not reach it, or told nothing of it.
const RESTS: SignedDuration = SignedDuration::from_mins(10);
/// As many selectors, and as many tolerations, as a request may have.
const MOST_SELECTORS: usize = 32;
const MOST_TOLERATIONS: usize = 16;

/// Whether the device of an entry can be tried by a claim of its own; `None` where that is not known.
pub(super) fn is_possible(case: Case, device: &PublishedDevice) -> Option<bool> {
    match &case.observed.claim_template {
        ClaimTemplate::Unread => None,
        ClaimTemplate::Unreadable => Some(false),
        ClaimTemplate::Read(template) => Some(narrowed(template, device).is_some()),
    }
}

/// The device whose turn it is: its time is over, and no pod of the pool is on its way to any.
pub(super) fn next(
    case: Case,
    entries: &[QuarantineStatus],
    off_limits: impl Fn(&str) -> bool,
) -> Option<Retest> {
    let ClaimTemplate::Read(template) = &case.observed.claim_template else {
        return None;
    };
    if is_under_way(case) {
        return None;
    }
    let runners = &case.observed.runners;
    let has = |device: &PublishedDevice| {
        let mut all = runners.iter().filter(|r| r.is_active(case.now));
        all.any(|r| r.retests == device.uuid)
    };
    let due = entries
        .iter()
        .filter(|e| e.retest && !is_active(e, case.now));
    let due = due.filter_map(|entry| Some((entry, case.device_of(entry)?)));
    let due = due.filter(|(_, device)| {
        !is_kept_off_by_driver(device) && !off_limits(&device.node) && !has(device)
    });
    let (_, device) =
        due.min_by_key(|(entry, _)| (entry.until.as_ref().map(|t| t.0), &entry.device))?;
    let mut seed = case.observed.seed;
    Some(Retest {
        uuid: device.uuid.clone()?,
        node: device.node.clone(),
        suffix: suffix(&mut seed),
        claim: narrowed(template, device)?,
    })
}

/// Whether a pod is on its way to a verdict, or may be: a pod that was created and is not seen yet may be one.
fn is_under_way(case: Case) -> bool {
    let observed = case.observed;
    let shown: BTreeSet<&str> = observed.runners.iter().map(|r| r.name.as_str()).collect();
    let is_unseen = |name: &String| !shown.contains(name.as_str());
    let tries = |r: &Runner| r.retests.is_some() && !r.gate_passed && r.is_active(case.now);
    !observed.unanswered.is_empty()
        || observed.expected.iter().any(is_unseen)
        || observed.runners.iter().any(tries)
}

/// From when on a device whose attempt has come to nothing is tried again; `None` where none has. One that its gate blames
/// has a new time already.
pub(super) fn put_off(case: Case, entry: &QuarantineStatus) -> Option<Timestamp> {
    let told_nothing = |r: &Runner| {
        let is_new = case.health.new.iter().any(|f| f.runner == r.name);
        is_overdue(r, case.now) || is_new && matches!(r.end, Some(End::Failed(_)))
    };
    let mut all = case.observed.runners.iter();
    let is_in_vain = entry.retest
        && !is_active(entry, case.now)
        && all.any(|r| r.retests.is_some() && r.retests == entry.device && told_nothing(r));
    is_in_vain.then(|| case.now.after(RESTS))
}

/// Whether a pod has waited for its device for too long: it is held, or its driver keeps it off.
pub(super) fn is_overdue(runner: &Runner, now: Timestamp) -> bool {
    waits_until(runner).is_some_and(|until| until <= now)
}

/// Until when a pod waits for its device.
pub(super) fn waits_until(runner: &Runner) -> Option<Timestamp> {
    let waits = runner.retests.is_some() && runner.phase == RunnerPhase::Unscheduled;
    waits.then(|| runner.created.after(WAITS))
}

/// The pod that makes room for a re-test where no pod is missing: the scheduler has found no device for it.
pub(super) fn gives_way<'a>(case: Case, active: &[&'a Runner]) -> Option<&'a Runner> {
    let health = case.health;
    let may_create = case.pool.finalizer
        && case.observed.access == Access::Granted
        && health.not_before.is_none_or(|moment| moment <= case.now);
    if !may_create || health.quarantine.retest().is_none() {
        return None;
    }
    let waits = |r: &&Runner| {
        let waiting = r.waiting.as_ref();
        r.phase == RunnerPhase::Unscheduled
            && waiting.is_some_and(|waiting| waiting.reason.is("Unschedulable"))
    };
    let waiting = active.iter().copied().filter(waits);
    waiting.min_by_key(|r| (r.created, &r.name))
}

/// Whether the device's driver taints it so that our toleration does not help.
fn is_kept_off_by_driver(device: &PublishedDevice) -> bool {
    let none = format!(":{}", Effect::None.word());
    device.taints.iter().any(|taint| !taint.ends_with(&none))
}

/// The claims of a template, narrowed to one device that has our taint; `None` where the template asks for anything but one
/// device.
fn narrowed(template: &ResourceClaimSpec, device: &PublishedDevice) -> Option<ResourceClaimSpec> {
    let uuid = device.uuid.as_deref().filter(|uuid| is_plain(uuid))?;
    let mut claim = template.clone();
    let [request] = claim.devices.as_mut()?.requests.as_mut()?.as_mut_slice() else {
        return None;
    };
    let exactly = request
        .exactly
        .as_mut()
        .filter(|exactly| asks_for_one(exactly))?;
    let PublishedDevice { driver, domain, .. } = device;
    let attribute = format!("device.attributes[\"{domain}\"].uuid");
    exactly
        .selectors
        .get_or_insert_default()
        .push(DeviceSelector {
            cel: Some(CELDeviceSelector {
                // Without the attribute, of another device, the expression would be an error, and nothing be allocated.
                expression: format!(
                    "device.driver == \"{driver}\" && has({attribute}) && {attribute} == \"{uuid}\""
                ),
            }),
        });
    exactly
        .tolerations
        .get_or_insert_default()
        .push(DeviceToleration {
            key: Some(KEY.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(Effect::NoSchedule.word().to_owned()),
            ..DeviceToleration::default()
        });
    Some(claim)
}

fn asks_for_one(request: &ExactDeviceRequest) -> bool {
    let mode = request.allocation_mode.as_deref().unwrap_or("ExactCount");
    let selectors = request.selectors.as_ref().map_or(0, Vec::len);
    let tolerations = request.tolerations.as_ref().map_or(0, Vec::len);
    mode == "ExactCount"
        && request.count.unwrap_or(1) == 1
        && request.admin_access != Some(true)
        && selectors < MOST_SELECTORS
        && tolerations < MOST_TOLERATIONS
}

/// Whether a UUID needs no quotes of its own in an expression: a driver may publish any text.
fn is_plain(uuid: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '/');
    !uuid.is_empty() && uuid.chars().all(plain)
}

/// The name of the claim of a pod that re-tests a device.
pub(super) fn claim_name(pod: &str, retest: &Retest) -> String {
    format!("{pod}-retest-{}", retest.suffix)
}

/// The claim of a pod that re-tests a device. It belongs to the pod, and goes with it.
#[must_use]
pub fn claim(namespace: &str, pod: &str, uid: &str, retest: &Retest) -> ResourceClaim {
    ResourceClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(pod, retest)),
            namespace: Some(namespace.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: <Pod as k8s_openapi::Resource>::API_VERSION.to_owned(),
                kind: <Pod as k8s_openapi::Resource>::KIND.to_owned(),
                name: pod.to_owned(),
                uid: uid.to_owned(),
                // So Kubernetes removes it as soon as the pod has ended, as it does with claims made from a template.
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(retest.claim.clone()),
        ..ResourceClaim::default()
    }
}

#[cfg(test)]
mod tests;
