//! The devices of one node, as two operators see them.

use super::{BTreeSet, Device, DeviceState, Fleet};

/// What one operator says of a node's devices.
pub(super) struct Side {
    pub(super) devices: Vec<Device>,
    /// Whether it sees what pods of others hold.
    pub(super) sees_others: bool,
}

/// What a runner holds is as its own operator says. Of what one side takes for others', the other's runners are taken off; and
/// what nobody holds is as bad as the worse of both says. A node has `total` devices.
pub(super) fn joined(total: usize, one: Side, other: Side) -> Vec<Device> {
    let sides = [Taken::of(one), Taken::of(other)];
    let [a, b] = &sides;
    let mut held: Vec<Device> = a.held.clone();
    held.extend(b.held.iter().filter(|d| !a.has(d)).cloned());
    // Of each side, how many of these it does not know as its own.
    let foreign = [
        held.len().saturating_sub(a.held.len()),
        a.held.iter().filter(|d| !b.has(d)).count(),
    ];
    let not_ours = sides.iter().zip(foreign);
    let not_ours =
        not_ours.filter_map(|(side, foreign)| Some(side.not_ours?.saturating_sub(foreign)));
    let not_ours = not_ours.min().unwrap_or(0);
    let free = total.saturating_sub(held.len().saturating_add(not_ours));
    let [a, b] = sides;
    let mut devices = unheld(free, &held, a.rest, b.rest);
    devices.extend(held);
    devices.extend(std::iter::repeat_n(
        Device::new(DeviceState::NotOurs),
        not_ours,
    ));
    devices.sort_by(|a, b| (a.uuid.is_none(), &a.uuid).cmp(&(b.uuid.is_none(), &b.uuid)));
    devices
}

/// The devices of nodes that neither lists: of them the states are known alone, and how many are in each.
pub(super) fn not_listed(one: &Fleet, other: &Fleet) -> Vec<Device> {
    let side = |fleet: &Fleet| {
        let mut devices = vec![];
        for (state, all) in &fleet.devices {
            let listed = fleet.nodes.iter().flat_map(|node| &node.devices);
            let listed = listed.filter(|device| device.state == *state).count();
            let all = usize::try_from(*all).unwrap_or(usize::MAX);
            devices.extend(std::iter::repeat_n(
                Device::new(*state),
                all.saturating_sub(listed),
            ));
        }
        Side {
            devices,
            sees_others: fleet.others_visible && fleet.nodes_not_listed > 0,
        }
    };
    let (one, other) = (side(one), side(other));
    joined(one.devices.len().max(other.devices.len()), one, other)
}

/// One side's devices by what they are.
struct Taken {
    held: Vec<Device>,
    /// How many pods of others hold, where that is seen.
    not_ours: Option<usize>,
    rest: Vec<Device>,
}

impl Taken {
    fn of(side: Side) -> Self {
        let (held, rest): (Vec<_>, Vec<_>) = side.devices.into_iter().partition(is_held);
        let (not_ours, rest): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|device| device.state == DeviceState::NotOurs);
        Self {
            held,
            not_ours: side.sees_others.then_some(not_ours.len()),
            rest,
        }
    }

    /// Whether a device is held by a runner that this side knows as its own.
    fn has(&self, device: &Device) -> bool {
        let is_same = |own: &Device| own.runner == device.runner && own.pool == device.pool;
        device.runner.is_some() && self.held.iter().any(is_same)
    }
}

/// Whether a runner holds it.
fn is_held(device: &Device) -> bool {
    let of_runners = [
        DeviceState::Gate,
        DeviceState::Idle,
        DeviceState::Job,
        DeviceState::Ending,
    ];
    device.runner.is_some() || of_runners.contains(&device.state)
}

/// So many that no pod holds: those that somebody knows by name, then those of which only the number is known.
fn unheld(free: usize, held: &[Device], one: Vec<Device>, other: Vec<Device>) -> Vec<Device> {
    let count = |side: &[Device], state| {
        let nameless = side.iter().filter(|d| d.uuid.is_none());
        nameless.filter(|d| d.state == state).count()
    };
    let mut nameless = vec![];
    for state in [DeviceState::Quarantined, DeviceState::Failed] {
        let side = if count(&one, state) < count(&other, state) {
            &other
        } else {
            &one
        };
        let all = side.iter().filter(|d| d.uuid.is_none());
        nameless.extend(all.filter(|d| d.state == state).cloned());
    }
    let mut named: Vec<Device> = one.into_iter().chain(other).collect();
    named.retain(|device| device.uuid.is_some());
    named.sort_by_key(|device| match device.state {
        DeviceState::Quarantined => 0,
        DeviceState::Failed => 1,
        _ => 2,
    });
    let mut taken: BTreeSet<Option<String>> = held.iter().map(|d| d.uuid.clone()).collect();
    named.retain(|device| taken.insert(device.uuid.clone()));
    named.truncate(free);
    nameless.truncate(free.saturating_sub(named.len()));
    let rest = free.saturating_sub(named.len().saturating_add(nameless.len()));
    named.extend(nameless);
    named.extend(std::iter::repeat_n(Device::new(DeviceState::Free), rest));
    named
}
