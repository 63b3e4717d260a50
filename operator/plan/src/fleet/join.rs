//! The documents of several operators as one. Each operator knows its own pools, and takes what others' runners hold for
//! others'.

mod devices;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::history::History;
use super::{
    Device, DeviceState, Fleet, Hours, MAX_NODES, MAX_POOLS, MAX_WAITING, Node, Operator, Pool,
    WaitingJob, beyond,
};
use crate::model::github::has_label;
use crate::model::url::GitHubUrl;
use devices::Side;

impl Fleet {
    /// The replicas that answered, one of each operator.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.operator.iter().chain(&self.further_operators)
    }

    /// Whether a pool is listed, by `NAMESPACE/NAME`.
    #[must_use]
    pub fn has(&self, namespace: &str, name: &str) -> bool {
        let mut pools = self.pools.iter();
        pools.any(|pool| pool.namespace == namespace && pool.name == name)
    }

    /// This and what another operator knows: all pools, and of each device what its own operator says.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        let pools_not_listed = self.pools_not_listed.saturating_add(other.pools_not_listed);
        let (devices, nodes, nodes_not_listed) = nodes(&self, &other);
        let (pools, more) = pools(self.pools, other.pools);
        let (unserved, unserved_not_listed) = unserved(
            (self.unserved, self.unserved_not_listed),
            (other.unserved, other.unserved_not_listed),
            &pools,
        );
        let operators = self.operator.into_iter().chain(self.further_operators);
        let mut operators = operators
            .chain(other.operator)
            .chain(other.further_operators);
        Self {
            api_version: self.api_version,
            generated_at: self.generated_at.max(other.generated_at),
            operator: operators.next(),
            further_operators: operators.collect(),
            not_read: [self.not_read, other.not_read].concat(),
            not_served: self.not_served.or(other.not_served),
            devices,
            nodes_visible: self.nodes_visible || other.nodes_visible,
            others_visible: self.others_visible || other.others_visible,
            nodes,
            nodes_not_listed,
            pools,
            pools_not_listed: pools_not_listed.saturating_add(more),
            unserved,
            unserved_not_listed,
            history: History::joined(self.history, other.history),
            hours: hours(self.hours, other.hours),
        }
    }
}

/// All pools, and how many are beyond the list. One that both have is whose queue was read last: the other has it by mistake,
/// or for a moment.
fn pools(one: Vec<Pool>, other: Vec<Pool>) -> (Vec<Pool>, u32) {
    let mut all = BTreeMap::<_, Pool>::new();
    for pool in one.into_iter().chain(other) {
        let known = all.get(&(pool.namespace.clone(), pool.name.clone()));
        if known.is_none_or(|known| known.queue.as_of < pool.queue.as_of) {
            all.insert((pool.namespace.clone(), pool.name.clone()), pool);
        }
    }
    let more = beyond(all.len(), MAX_POOLS);
    (all.into_values().take(MAX_POOLS).collect(), more)
}

/// How many devices are in each state, the nodes, and how many are beyond the list.
fn nodes(one: &Fleet, other: &Fleet) -> (BTreeMap<DeviceState, u32>, Vec<Node>, u32) {
    let mut all = BTreeMap::<&str, (Option<&Node>, Option<&Node>)>::new();
    for node in &one.nodes {
        all.entry(&node.name).or_default().0 = Some(node);
    }
    for node in &other.nodes {
        all.entry(&node.name).or_default().1 = Some(node);
    }
    let known = |fleet: &Fleet| {
        let listed = u32::try_from(fleet.nodes.len()).unwrap_or(u32::MAX);
        listed.saturating_add(fleet.nodes_not_listed)
    };
    let known = known(one).max(known(other));
    let mut nodes: Vec<Node> = all
        .into_values()
        .filter_map(|(a, b)| node((a, one.others_visible), (b, other.others_visible)))
        .collect();
    let mut counts = BTreeMap::new();
    let not_listed = devices::not_listed(one, other);
    let listed = nodes.iter().flat_map(|node| &node.devices);
    for device in listed.chain(&not_listed) {
        let count: &mut u32 = counts.entry(device.state).or_default();
        *count = count.saturating_add(1);
    }
    nodes.truncate(MAX_NODES);
    let listed = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
    (counts, nodes, known.saturating_sub(listed))
}

/// A node as one of two has it, or both. Each says whether it sees pods of others.
fn node(one: (Option<&Node>, bool), other: (Option<&Node>, bool)) -> Option<Node> {
    let (a, b) = match (one.0, other.0) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return a.or(b).cloned(),
    };
    let gpus = a.gpus.max(b.gpus);
    let side = |node: &Node, sees_others| Side {
        devices: node.devices.clone(),
        sees_others,
    };
    let total = usize::try_from(gpus.unwrap_or(0)).unwrap_or(super::MAX_DEVICES);
    let mut devices = devices::joined(
        total.min(super::MAX_DEVICES),
        side(a, one.1),
        side(b, other.1),
    );
    devices.truncate(super::MAX_DEVICES);
    Some(Node {
        name: a.name.clone(),
        ready: a.ready.or(b.ready),
        cordoned: a.cordoned || b.cordoned,
        gpus,
        product: a.product.clone().or_else(|| b.product.clone()),
        devices,
    })
}

/// The jobs that no pool takes, of any operator, the oldest first, and how many more there are.
fn unserved(
    one: (Vec<WaitingJob>, u32),
    other: (Vec<WaitingJob>, u32),
    pools: &[Pool],
) -> (Vec<WaitingJob>, u32) {
    let mut all: Vec<WaitingJob> = vec![];
    for job in one.0.into_iter().chain(other.0) {
        if !all.iter().any(|known| known.job == job.job) && !pools.iter().any(|p| takes(p, &job)) {
            all.push(job);
        }
    }
    all.sort_by_key(|waits| (waits.job.run_id, waits.job.id));
    let more = beyond(all.len(), MAX_WAITING);
    all.truncate(MAX_WAITING);
    // Both read the same queue where both have pools of one repository.
    (all, one.1.max(other.1).saturating_add(more))
}

/// Whether a pool would take a job that waits.
fn takes(pool: &Pool, waits: &WaitingJob) -> bool {
    let has_all = || {
        let mut labels = waits.labels.iter();
        labels.all(|label| has_label(&pool.labels, label))
    };
    let is_there = || {
        let repository = waits.job.repository.as_deref().unwrap_or_default();
        let page = waits.job.url.as_deref().unwrap_or_default();
        let url = GitHubUrl::parse(&pool.url, true);
        url.is_ok_and(|url| {
            page.starts_with(&format!("{}/", url.origin())) && url.covers(repository)
        })
    };
    has_all() && is_there()
}

/// The hours of all runners: each operator counts its own.
fn hours(one: Option<Hours>, other: Option<Hours>) -> Option<Hours> {
    let (mut one, other) = match (one, other) {
        (Some(one), Some(other)) => (one, other),
        (one, other) => return one.or(other),
    };
    one.from = [one.from, other.from].into_iter().flatten().min();
    one.runners = one.runners.saturating_add(other.runners);
    for row in other.rows {
        let is_same = |known: &&mut super::HoursRow| {
            known.pool == row.pool && known.repository == row.repository
        };
        match one.rows.iter_mut().find(is_same) {
            Some(known) => {
                known.runners = known.runners.saturating_add(row.runners);
                known.gate_seconds = known.gate_seconds.saturating_add(row.gate_seconds);
                known.idle_seconds = known.idle_seconds.saturating_add(row.idle_seconds);
                known.job_seconds = known.job_seconds.saturating_add(row.job_seconds);
                known.lost_seconds = known.lost_seconds.saturating_add(row.lost_seconds);
            }
            None => one.rows.push(row),
        }
    }
    one.rows
        .sort_by(|a, b| (&a.pool, &a.repository).cmp(&(&b.pool, &b.repository)));
    Some(one)
}
