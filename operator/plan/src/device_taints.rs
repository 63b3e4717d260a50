//! A device that failed is kept off alone, where a DRA driver publishes it: by a `DeviceTaintRule`, so that the other devices
//! of its node are used on.
//!
//! A rule names a driver, a pool and a device, and a name is no device: another one may have it after a change of the
//! hardware. So the UUID stays beside the name, and each look at the slices says where it is by now.
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#device-taints-and-tolerations>

use std::collections::{BTreeMap, BTreeSet};

use cudarunner_crds::{MAX_TAINTED_DEVICES, QuarantineStatus, TaintedDeviceStatus};
use gate_report::Class;
use jiff::Timestamp;

use super::node_marks::TAINT;
use super::quarantine::{facts, is_active, is_fact};
use super::{Case, retest};
use crate::model::node_marks::Quarantined;
use crate::model::observed::Observed;
use crate::model::pool::GpuRequest;
use crate::model::published::{Published, PublishedDevice};

/// Key of the taint: that of quarantined nodes.
pub const KEY: &str = TAINT;
/// The label by which our rules are found.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The annotation with the UUID of a rule's device.
pub const UUID_ANNOTATION: &str = "cudarunner.dev/device-uuid";
/// The longest value of a taint.
const LONGEST_VALUE: usize = 63;
/// The longest part of a rule's name that is a device's UUID.
const LONGEST_UUID: usize = 64;

/// What the taint of a rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// New pods keep off the device; those that have it stay.
    NoSchedule,
    /// It only tells: nodes are quarantined as they are without rules.
    None,
}

impl Effect {
    /// Kubernetes' word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::None => "None",
        }
    }
}

/// What the rules of an installation belong to: with it, Kubernetes removes them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owner {
    /// Name of the `ClusterRole`.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// A `DeviceTaintRule` of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// The driver of the device.
    pub driver: String,
    /// The pool of devices.
    pub pool: String,
    /// The device's name there.
    pub device: String,
    /// The device's UUID.
    pub uuid: String,
    /// Value of the taint: what was found.
    pub value: String,
    /// Effect of the taint.
    pub effect: String,
}

/// A rule that is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Present {
    /// What it says.
    pub rule: Rule,
    /// Its uid.
    pub uid: String,
}

/// One write. Each is safe to repeat.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The rule is made, or made to be so.
    Apply(Rule),
    /// It goes, unless it is another one by now.
    Delete {
        /// Its name.
        name: String,
        /// Its uid.
        uid: String,
    },
}

/// A device that a rule keeps off.
#[derive(Clone, Debug)]
pub(super) struct Tainted {
    /// When it failed.
    pub(super) since: Timestamp,
    /// What is said of it.
    pub(super) sentence: String,
}

/// A device: UUID and node.
pub(crate) type Place = (String, String);

/// The devices that rules keep off, each with the oldest entry that is its reason: never more than half of those like it on
/// its node. What comes on top is its node's fault, and quarantines that.
pub(crate) fn covered<'a>(
    entries: impl Iterator<Item = &'a QuarantineStatus>,
    published: &'a Published,
    now: Timestamp,
) -> BTreeMap<Place, (&'a QuarantineStatus, &'a PublishedDevice)> {
    let mut all: Vec<_> = entries
        .filter(|entry| keeps_off(entry, now))
        .filter_map(|entry| Some((entry, device_of(entry, published)?)))
        .collect();
    all.sort_by_key(|(entry, _)| (entry.since.0, &entry.device, &entry.node));
    let mut covered = BTreeMap::new();
    let mut taken: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (entry, device) in all {
        let place = place(device);
        let taken = taken.entry((&device.node, &device.driver)).or_default();
        let most = published.alike(device) / 2;
        if *taken < most && !covered.contains_key(&place) {
            *taken = taken.saturating_add(1);
            covered.insert(place, (entry, device));
        }
    }
    covered
}

/// Whether an entry keeps its device off: its time is not over, or nothing but a re-test ends it.
fn keeps_off(entry: &QuarantineStatus, now: Timestamp) -> bool {
    entry.retest || is_active(entry, now)
}

/// The device that an entry blames, where its driver publishes it, and where the fault is one that no pool's author can make:
/// the whole cluster sees a rule.
pub(crate) fn device_of<'a>(
    entry: &QuarantineStatus,
    published: &'a Published,
) -> Option<&'a PublishedDevice> {
    let uuid = entry.device.as_deref()?;
    let is_its = entry.class == Class::Device && is_fact(entry);
    published.find(uuid, &entry.node).filter(|_| is_its)
}

/// What the drivers themselves taint on the pool's nodes.
pub(crate) fn of_drivers(observed: &Observed) -> Vec<TaintedDeviceStatus> {
    let tainted = observed.published.iter().flat_map(|all| all.tainted());
    tainted
        .filter(|device| observed.node(&device.node).is_some())
        .take(MAX_TAINTED_DEVICES)
        .map(|device| TaintedDeviceStatus {
            node: device.node.clone(),
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            driver: device.driver.clone(),
            taints: device.taints.clone(),
        })
        .collect()
}

/// The same as the end of a sentence; empty where drivers taint nothing.
pub(crate) fn said_by_drivers(observed: &Observed) -> String {
    let tainted = of_drivers(observed);
    let tainted = tainted.iter().map(|device| {
        let taints = device.taints.join(", ");
        format!("{} of {} ({taints})", device.name, device.node)
    });
    let tainted: Vec<String> = tainted.collect();
    if tainted.is_empty() {
        return String::new();
    }
    format!(". Tainted by their driver: {}", tainted.join("; "))
}

/// Where a device is.
pub(crate) fn place(device: &PublishedDevice) -> Place {
    (device.uuid.clone().unwrap_or_default(), device.node.clone())
}

impl<'a> Case<'a> {
    /// The device of an entry that a rule can keep the pool's pods off: its driver publishes it, and they come by it through
    /// a claim.
    pub(super) fn device_of(self, entry: &QuarantineStatus) -> Option<&'a PublishedDevice> {
        device_of(entry, self.published()?).filter(|device| self.claims_on(&device.node))
    }

    /// Whether the device of an entry can be tried by a claim of its own; `None` where that is not known.
    pub(super) fn can_retest(self, entry: &QuarantineStatus) -> Option<bool> {
        let GpuRequest::Claim(_) = &self.spec.gpu else {
            return Some(false);
        };
        retest::is_possible(self, self.device_of(entry)?)
    }

    /// What drivers publish, where a device that failed is kept off alone.
    pub(super) fn published(self) -> Option<&'a Published> {
        let published = self.observed.published.as_deref();
        published.filter(|_| self.observed.taints_devices)
    }

    /// Whether the pool's pods get their devices by a claim on a node: their own, or the one that Kubernetes makes where no
    /// device plugin offers what they ask for.
    fn claims_on(self, node: &str) -> bool {
        match &self.spec.gpu {
            GpuRequest::Claim(_) => true,
            GpuRequest::Resource { name, .. } => {
                let node = self.observed.node(node);
                node.and_then(|node| node.offers.get(name))
                    .is_none_or(|n| *n == 0)
            }
        }
    }

    /// Where the device of an entry is by now.
    pub(super) fn place_of(self, entry: &QuarantineStatus) -> Place {
        self.device_of(entry).map(place).unwrap_or_default()
    }

    /// The devices that rules keep off because of these entries of the pool, and what other pools found.
    pub(super) fn covered<'e>(
        self,
        own: impl Iterator<Item = &'e QuarantineStatus>,
    ) -> BTreeMap<Place, Tainted>
    where
        'a: 'e,
    {
        let Some(published) = self.published() else {
            return BTreeMap::new();
        };
        let others = facts(self.observed).map(|held| &held.entry);
        covered(own.chain(others), published, self.now)
            .into_iter()
            .filter(|(_, (_, device))| self.claims_on(&device.node))
            .map(|(place, (entry, device))| {
                let sentence = format!(
                    "{} ({}) of {}: {}",
                    place.0, device.name, device.node, entry.message
                );
                let since = entry.since.0;
                (place, Tainted { since, sentence })
            })
            .collect()
    }
}

/// The rules that have to change, and when time alone changes one.
#[must_use]
pub fn plan(
    effect: Effect,
    owner: &Owner,
    held: &[Quarantined],
    published: &Published,
    present: &[Present],
    now: Timestamp,
) -> (Vec<Change>, Option<Timestamp>) {
    let covered = covered(held.iter().map(|held| &held.entry), published, now);
    let wanted: Vec<Rule> = covered
        .values()
        .map(|(entry, device)| rule(effect, owner, entry, device))
        .collect();
    let names: BTreeSet<&str> = wanted.iter().map(|rule| rule.name.as_str()).collect();
    let over = present
        .iter()
        .filter(|there| !names.contains(there.rule.name.as_str()));
    let mut changes: Vec<Change> = over
        .map(|there| Change::Delete {
            name: there.rule.name.clone(),
            uid: there.uid.clone(),
        })
        .collect();
    let is_there = |rule: &&Rule| present.iter().any(|there| there.rule == **rule);
    changes.extend(
        wanted
            .iter()
            .filter(|rule| !is_there(rule))
            .cloned()
            .map(Change::Apply),
    );
    let ends = held.iter().filter_map(|held| held.entry.until.as_ref());
    let next = ends.map(|until| until.0).filter(|until| *until > now).min();
    (changes, next)
}

fn rule(effect: Effect, owner: &Owner, entry: &QuarantineStatus, device: &PublishedDevice) -> Rule {
    let uuid = device.uuid.clone().unwrap_or_default();
    Rule {
        name: name(owner, &uuid, &device.node),
        driver: device.driver.clone(),
        pool: device.pool.clone(),
        device: device.name.clone(),
        value: value(entry),
        effect: effect.word().to_owned(),
        uuid,
    }
}

/// By the device rather than by its name, so that the rule moves with it; and by the owner, so that two installations have
/// two.
fn name(owner: &Owner, uuid: &str, node: &str) -> String {
    let clean = |text: &str| -> String {
        let lower = text.chars().map(|c| c.to_ascii_lowercase());
        lower
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(LONGEST_UUID)
            .collect()
    };
    let of_owner: String = clean(&owner.uid).chars().take(8).collect();
    let name = format!("cudarunner-{of_owner}-{}-{}", clean(uuid), clean(node));
    name.trim_end_matches('-').to_owned()
}

/// What was found, as far as the value of a taint may say it.
fn value(entry: &QuarantineStatus) -> String {
    let found = entry.code_name.as_deref().unwrap_or("DeviceFailed");
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let found = found.chars().filter(|c| allowed(*c));
    let value: String = found.take(LONGEST_VALUE).collect();
    value
        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .to_owned()
}

#[cfg(test)]
mod tests;
