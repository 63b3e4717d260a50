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
    /// The taints that its driver gives it, as `KEY=VALUE:EFFECT`.
    pub taints: Vec<String>,
}

/// The devices of all nodes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Published {
    /// Those with a UUID, by it and by their node.
    devices: BTreeMap<(String, String), PublishedDevice>,
    /// How many each node has.
    counts: BTreeMap<String, usize>,
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
                published
                    .devices
                    .insert((uuid, device.node.clone()), device);
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

    /// Those that their drivers taint, by node and name.
    #[must_use]
    pub fn tainted(&self) -> &[PublishedDevice] {
        &self.tainted
    }
}
