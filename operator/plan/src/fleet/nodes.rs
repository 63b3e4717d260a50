//! The nodes, and what each of their devices is used for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cudarunner_crds::{QuarantineStatus, RunnerPhase};
use gate_report::clean;
use jiff::Timestamp;

use super::history::ByNode;
use super::{Device, DeviceState, Job, LONGEST, MAX_DEVICES, Node, Others};
use crate::NodeFacts;
use crate::labels::PRODUCT;
use crate::model::observed::HAS_GPU;
use crate::model::runner::{End, Runner};

/// Nodes while they are gathered.
pub(super) struct Nodes {
    /// Whether nodes, and pods of others, could be read.
    visible: (bool, bool),
    /// Extended resources that pools ask for.
    resources: BTreeSet<String>,
    by_name: BTreeMap<String, Gathered>,
}

/// What is known of a node.
#[derive(Default)]
struct Gathered {
    facts: Option<Arc<NodeFacts>>,
    others: BTreeMap<String, u32>,
    /// One entry for each device that a runner holds.
    ours: Vec<Device>,
    product: Option<String>,
    quarantine: Vec<Quarantine>,
}

struct Quarantine {
    pool: String,
    device: Option<String>,
    message: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

impl Nodes {
    pub(super) fn new(nodes: Option<&[Arc<NodeFacts>]>, others: Option<&Others>) -> Self {
        let gathered = nodes.into_iter().flatten().map(|facts| {
            let held = others.and_then(|others| others.get(&facts.name));
            let gathered = Gathered {
                facts: Some(Arc::clone(facts)),
                others: held.cloned().unwrap_or_default(),
                ..Gathered::default()
            };
            (facts.name.clone(), gathered)
        });
        Self {
            visible: (nodes.is_some(), others.is_some()),
            resources: BTreeSet::new(),
            by_name: gathered.collect(),
        }
    }

    /// Whether nodes, and pods of others, could be read.
    pub(super) fn visible(&self) -> (bool, bool) {
        self.visible
    }

    /// Notes that this extended resource stands for GPUs.
    pub(super) fn counts(&mut self, resource: &str) {
        if !self.resources.contains(resource) {
            self.resources.insert(resource.to_owned());
        }
    }

    /// Notes what a pool has in quarantine.
    pub(super) fn quarantine(&mut self, pool: &str, entries: &[QuarantineStatus]) {
        for entry in entries {
            let node = self.by_name.entry(entry.node.clone()).or_default();
            node.quarantine.push(Quarantine {
                pool: pool.to_owned(),
                device: entry.device.clone(),
                message: clean(&entry.message, LONGEST),
                since: entry.since.0,
                until: entry.until.as_ref().map(|until| until.0),
            });
        }
    }

    /// Notes what a runner holds.
    pub(super) fn runner(&mut self, pool: &str, runner: &Runner, job: Option<&Job>) {
        let Some((name, state)) = runner.node.as_ref().zip(state(runner)) else {
            return;
        };
        let node = self.by_name.entry(name.clone()).or_default();
        let hardware = runner.hardware.as_ref().and_then(|h| h.devices.first());
        if let Some(first) = hardware {
            node.product = Some(clean(&first.name, LONGEST));
        }
        let held = runner.devices_held.values().copied();
        let held = held.fold(0, u32::saturating_add);
        let held = usize::try_from(held).unwrap_or(MAX_DEVICES);
        // Before its gate nobody knows how many devices a claim has; one it has for certain.
        let places = held.max(runner.devices.len()).clamp(1, MAX_DEVICES);
        for place in 0..places {
            node.ours.push(Device {
                uuid: runner.devices.get(place).cloned(),
                since: Some(runner.since),
                pool: Some(pool.to_owned()),
                runner: Some(runner.name.clone()),
                job: job.cloned().filter(|_| state == DeviceState::Job),
                message: match &runner.end {
                    Some(End::Failed(failure)) => Some(clean(&failure.message, LONGEST)),
                    _ => None,
                },
                ..Device::new(state)
            });
        }
    }

    /// The nodes with GPUs, by name, and how many devices are in each state. `failed` are devices whose last gate failed,
    /// `seen` all that a gate has seen.
    pub(super) fn finish(
        self,
        failed: &ByNode<String>,
        seen: &BTreeMap<String, BTreeSet<String>>,
    ) -> (Vec<Node>, BTreeMap<DeviceState, u32>) {
        let mut devices = BTreeMap::new();
        let resources = self.resources;
        let nodes = self.by_name.into_iter().filter_map(|(name, gathered)| {
            let (failed, seen) = (failed.get(&name), seen.get(&name));
            gathered.finish(name, &resources, failed, seen)
        });
        let nodes: Vec<Node> = nodes.collect();
        for device in nodes.iter().flat_map(|node| &node.devices) {
            let count: &mut u32 = devices.entry(device.state).or_default();
            *count = count.saturating_add(1);
        }
        (nodes, devices)
    }
}

/// What the devices of a runner are used for; `None` once it holds none.
fn state(runner: &Runner) -> Option<DeviceState> {
    Some(match runner.phase {
        RunnerPhase::Unscheduled => return None,
        RunnerPhase::Preparing | RunnerPhase::Gated | RunnerPhase::Starting => DeviceState::Gate,
        RunnerPhase::Idle => DeviceState::Idle,
        RunnerPhase::Busy => DeviceState::Job,
        _ if runner.is_over => return None,
        RunnerPhase::Failed => DeviceState::Failed,
        RunnerPhase::Finished | RunnerPhase::Terminating => DeviceState::Ending,
    })
}

/// Whether an extended resource stands for GPUs by its name: whole ones, shares, or slices.
fn is_gpu(resource: &str) -> bool {
    let name = resource.strip_prefix("nvidia.com/");
    name.is_some_and(|name| name.starts_with("gpu") || name.starts_with("mig-"))
}

impl Gathered {
    fn finish(
        self,
        name: String,
        resources: &BTreeSet<String>,
        failed: Option<&BTreeMap<String, String>>,
        seen: Option<&BTreeSet<String>>,
    ) -> Option<Node> {
        let facts = self.facts.as_deref();
        let sum = |counts: &BTreeMap<String, u32>| {
            let gpus = counts
                .iter()
                .filter(|(resource, _)| resources.contains(*resource) || is_gpu(resource));
            gpus.fold(0_u32, |sum, (_, count)| sum.saturating_add(*count))
        };
        let gpus = facts.map(|facts| sum(&facts.offers)).filter(|n| *n > 0);
        let label = |key: &str| facts.and_then(|facts| facts.labels.get(key));
        let is_labelled = label(HAS_GPU).is_some_and(|value| value == "true");
        if gpus.is_none() && !is_labelled && self.ours.is_empty() && self.quarantine.is_empty() {
            return None;
        }
        let others = usize::try_from(sum(&self.others)).unwrap_or(MAX_DEVICES);
        let others = others.min(MAX_DEVICES);
        let total = usize::try_from(gpus.unwrap_or(0)).unwrap_or(MAX_DEVICES);
        let taken = self.ours.len().saturating_add(others);
        let free = total.min(MAX_DEVICES).saturating_sub(taken);
        let unheld = self.unheld(free, others == 0, failed, seen);
        let mut devices = self.ours;
        devices.extend(unheld);
        devices.extend(std::iter::repeat_n(
            Device::new(DeviceState::NotOurs),
            others,
        ));
        // What has a name first, in an order that stays while their use changes.
        devices.sort_by(|a, b| (a.uuid.is_none(), &a.uuid).cmp(&(b.uuid.is_none(), &b.uuid)));
        devices.truncate(MAX_DEVICES);
        Some(Node {
            ready: facts.map(|facts| facts.ready_since.is_some()),
            cordoned: facts.is_some_and(|facts| facts.is_cordoned),
            gpus,
            product: label(PRODUCT)
                .map(|product| clean(product, LONGEST))
                .or(self.product),
            devices,
            name,
        })
    }

    /// The devices that no pod holds: those in quarantine, those whose last gate failed, the others. Where pods of others
    /// hold some, nobody knows which of the named ones are free.
    fn unheld(
        &self,
        free: usize,
        all_ours: bool,
        failed: Option<&BTreeMap<String, String>>,
        seen: Option<&BTreeSet<String>>,
    ) -> Vec<Device> {
        let held: BTreeSet<&String> = self.ours.iter().filter_map(|d| d.uuid.as_ref()).collect();
        let mut named = BTreeMap::new();
        for (uuid, message) in failed.into_iter().flatten() {
            named.insert(
                uuid.clone(),
                Device {
                    uuid: Some(uuid.clone()),
                    message: Some(message.clone()),
                    ..Device::new(DeviceState::Failed)
                },
            );
        }
        let of_devices = self.quarantine.iter().filter(|q| q.device.is_some());
        for entry in of_devices {
            let uuid = entry.device.clone().unwrap_or_default();
            named.insert(uuid.clone(), entry.device(Some(uuid)));
        }
        let mut devices: Vec<Device> = named.into_values().collect();
        let whole_node = self.quarantine.iter().find(|q| q.device.is_none());
        let rest = |uuid: Option<String>| match whole_node {
            Some(entry) => entry.device(uuid),
            None => Device {
                uuid,
                ..Device::new(DeviceState::Free)
            },
        };
        if all_ours {
            let known = seen.into_iter().flatten().cloned();
            devices.extend(known.map(|uuid| rest(Some(uuid))));
        }
        let mut taken = BTreeSet::new();
        devices.retain(|device| {
            let uuid = device.uuid.clone().unwrap_or_default();
            !held.contains(&uuid) && taken.insert(uuid)
        });
        devices.truncate(free);
        let nameless = free.saturating_sub(devices.len());
        devices.extend((0..nameless).map(|_| rest(None)));
        devices
    }
}

impl Quarantine {
    fn device(&self, uuid: Option<String>) -> Device {
        Device {
            uuid,
            since: Some(self.since),
            pool: Some(self.pool.clone()),
            message: Some(self.message.clone()),
            until: self.until,
            ..Device::new(DeviceState::Quarantined)
        }
    }
}
