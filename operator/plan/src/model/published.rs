//! What DRA drivers publish of the devices of nodes.

use std::collections::BTreeMap;

/// A device of a `ResourceSlice`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PublishedDevice {
    /// The node that it is of.
    pub node: String,
    /// The driver.
    pub driver: String,
    /// The driver's pool of devices.
    pub pool: String,
    /// Its name there. Another device may have it after a change of the hardware, or a restart.
    pub name: String,
    /// Its UUID, where the driver publishes one as the attribute `uuid`.
    pub uuid: Option<String>,
    /// The domain of that attribute: the driver's, unless the attribute names another.
    pub domain: String,
    /// The taints that its driver gives it, as `KEY=VALUE:EFFECT`, or `KEY:EFFECT`.
    pub taints: Vec<String>,
}

/// The devices of all nodes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// Those with a UUID, by it and by their node.
    devices: BTreeMap<(String, String), PublishedDevice>,
    /// How many each node has.
    counts: BTreeMap<String, usize>,
    /// How many with a UUID each node has of each driver.
    alike: BTreeMap<(String, String), usize>,
    /// Those that their drivers taint, with or without a UUID.
    tainted: Vec<PublishedDevice>,
}

impl Published {
    /// Takes in devices of pools that are published as a whole.
    #[must_use]
    pub fn new(all: impl IntoIterator<Item = PublishedDevice>) -> Self {
        let mut published = Self::default();
        for device in all {
            let count = published.counts.entry(device.node.clone()).or_default();
            *count = count.saturating_add(1);
            if !device.taints.is_empty() {
                published.tainted.push(device.clone());
            }
            if let Some(uuid) = device.uuid.clone() {
                let of_driver = (device.node.clone(), device.driver.clone());
                let at = (uuid, device.node.clone());
                if published.devices.insert(at, device).is_none() {
                    let alike = published.alike.entry(of_driver).or_default();
                    *alike = alike.saturating_add(1);
                }
            }
        }
        published
            .tainted
            .sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        published
    }

    /// The device with this UUID: on this node, or wherever it is by now.
    #[must_use]
    pub fn find(&self, uuid: &str, node: &str) -> Option<&PublishedDevice> {
        let here = self.devices.get(&(uuid.to_owned(), node.to_owned()));
        here.or_else(|| {
            let mut from = self.devices.range((uuid.to_owned(), String::new())..);
            from.next()
                .filter(|((found, _), _)| found == uuid)
                .map(|(_, device)| device)
        })
    }

    /// How many devices a node has.
    #[must_use]
    pub fn count(&self, node: &str) -> usize {
        self.counts.get(node).copied().unwrap_or_default()
    }

    /// Whether a node has any device whose UUID is of this one's kind, such as `GPU-` or `MIG-`: other drivers' devices have
    /// others, or none, and say nothing of it.
    #[must_use]
    pub fn has_like(&self, uuid: &str, node: &str) -> bool {
        let kind = uuid.split_inclusive('-').next().unwrap_or_default();
        let from = self.devices.range((kind.to_owned(), String::new())..);
        let mut alike = from.take_while(|((found, _), _)| found.starts_with(kind));
        alike.any(|((_, of), _)| of == node)
    }

    /// How many devices with a UUID the driver of this one publishes on its node: network cards of another driver are no GPUs,
    /// and neither are parts of a GPU that it could be divided into.
    #[must_use]
    pub fn alike(&self, device: &PublishedDevice) -> usize {
        let of_driver = (device.node.clone(), device.driver.clone());
        self.alike.get(&of_driver).copied().unwrap_or_default()
    }

    /// Those that their drivers taint, by node and name.
    #[must_use]
    pub fn tainted(&self) -> &[PublishedDevice] {
        &self.tainted
    }
}
