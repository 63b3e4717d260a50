//! `top`: the fleet at a glance, over every namespace.
//!
//! The operators' own documents are asked for and put together. Of pools that none of them has the same document is made here,
//! of what the resources show.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use cuda_runner_operator::observe::pod::read;
use cuda_runner_operator::watch::nodes::facts;
use cuda_runner_operator::watch::others::{ALIVE, held_by};
use cuda_runner_operator::watch::pods::pool_of;
use cuda_runner_operator::watch::pools::key_of;
use cuda_runner_plan::fleet::{
    Builder, DeviceState, Fleet, Known as Waiting, Node, Operator, WaitingJob,
};
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::runner::Runner;
use cudarunner_crds::{CudaRunner, POOL_LABEL};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as KubeNode, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use crate::connect::{Pools, shown};
use crate::documents::{self, Known};
use crate::text::{count, device, or_dash, span, table, wrap};

/// So long operators may take for their documents: of a page whose pods are gone the API server waits for half a minute.
const ASK: Duration = Duration::from_secs(5);
/// Devices that are shown for their failed jobs.
const DEVICES: usize = 5;
/// Jobs of each queue that are shown.
const JOBS: usize = 5;

/// The fleet: as the operators know it, and as the resources show what none of them does.
pub(crate) async fn fleet(pools: &Pools, now: Timestamp) -> Result<Fleet, String> {
    let mut known = documents::read(pools, ASK, now).await?;
    let is_told = !known.documents.is_empty();
    let others = if is_told && known.others.is_empty() {
        None
    } else {
        match of_resources(pools, &known, now).await {
            Err(why) if is_told => {
                known.not_read.push(why);
                Some(known.by_status(now))
            }
            others => Some(others?),
        }
    };
    let fleet = known.joined(others);
    fleet.ok_or_else(|| "nobody was asked".to_owned())
}

/// The same document of what the resources show to whoever asks, of the pools that no operator's has.
async fn of_resources(pools: &Pools, known: &Known, now: Timestamp) -> Result<Fleet, String> {
    let resources = &known.others;
    let runners = ListParams::default().labels(POOL_LABEL);
    let (runners, _) = pools.list::<Pod>(&runners).await?;
    let (of_pools, strays) = by_pool(resources, &runners);
    let nodes = Api::<KubeNode>::all(pools.client.clone());
    let nodes = nodes.list(&ListParams::default()).await.ok();
    let nodes: Option<Vec<_>> = nodes.map(|list| list.iter().map(|n| facts(n).into()).collect());
    let mut others = None;
    if known.is_all && nodes.is_some() {
        let alive = ListParams::default()
            .labels(&format!("!{POOL_LABEL}"))
            .fields(ALIVE);
        let pods = Api::<Pod>::all(pools.client.clone()).list(&alive).await;
        others = pods.ok().map(|pods| held_by(pods.iter().chain(strays)));
    }
    let mut builder = Builder::new(now, None, nodes.as_deref(), others.as_ref());
    for resource in resources {
        builder.pool(resource, Waiting::default());
        for runner in of_pools.get(&key_of(resource)).into_iter().flatten() {
            builder.runner(runner, None);
        }
    }
    Ok(shown(builder.finish()))
}

/// The runners of each pool, and the pods that only look like some.
fn by_pool<'a>(
    pools: &[CudaRunner],
    pods: &'a [Pod],
) -> (BTreeMap<PoolKey, Vec<Runner>>, Vec<&'a Pod>) {
    let uids: BTreeMap<_, _> = pools.iter().map(|p| (key_of(p), p.uid())).collect();
    let (mut of_pools, mut strays) = (BTreeMap::<_, Vec<_>>::new(), vec![]);
    for pod in pods {
        let runner = read(pod);
        let owner = Some(&runner.owner);
        let is_own = |pool: &PoolKey| uids.get(pool).is_some_and(|uid| uid.as_ref() == owner);
        match pool_of(pod).filter(is_own) {
            Some(pool) => of_pools.entry(pool).or_default().push(runner),
            None => strays.push(pod),
        }
    }
    (of_pools, strays)
}

/// The fleet for a terminal.
pub(crate) fn text(fleet: &Fleet) -> String {
    let mut out = String::new();
    // It comes first, since it says that much of the rest is old.
    if let Some(not_served) = &fleet.not_served {
        wrap(&mut out, "", 0, not_served);
    }
    let all: u32 = fleet.devices.values().sum();
    let states = DeviceState::ALL.iter().filter_map(|state| {
        let count = fleet.devices.get(state).filter(|count| **count > 0)?;
        Some(format!("{count} {}", state.label()))
    });
    let states: Vec<String> = states.collect();
    let listed = u32::try_from(fleet.nodes.len()).unwrap_or(u32::MAX);
    let nodes = listed.saturating_add(fleet.nodes_not_listed);
    let mut head = format!("{}, {}", count(nodes, "node"), count(all, "device"));
    if !states.is_empty() {
        let _ = write!(head, ": {}", states.join(", "));
    }
    wrap(&mut out, "", 0, &head);
    self::nodes(&mut out, fleet);
    self::pools(&mut out, fleet);
    failed_jobs(&mut out, fleet);
    queue(&mut out, fleet);
    unserved(&mut out, fleet);
    out.push('\n');
    source(&mut out, fleet);
    out
}

fn nodes(out: &mut String, fleet: &Fleet) {
    if fleet.nodes.is_empty() {
        return;
    }
    let heading = [
        "NODE", "GPUS", "JOB", "IDLE", "GATE", "FREE", "OTHERS", "BAD", "STATE",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    for node in &fleet.nodes {
        let of = |states: &[DeviceState]| {
            let devices = node.devices.iter();
            devices
                .filter(|d| states.contains(&d.state))
                .count()
                .to_string()
        };
        rows.push([
            node.name.clone(),
            or_dash(node.gpus),
            of(&[DeviceState::Job]),
            of(&[DeviceState::Idle]),
            of(&[DeviceState::Gate, DeviceState::Ending]),
            of(&[DeviceState::Free]),
            of(&[DeviceState::NotOurs]),
            of(&[DeviceState::Failed, DeviceState::Quarantined]),
            state(node).to_owned(),
        ]);
    }
    out.push_str("\nNODES\n");
    table(out, &rows, 0);
    if fleet.nodes_not_listed > 0 {
        let _ = writeln!(out, "  and {} more", fleet.nodes_not_listed);
    }
}

fn state(node: &Node) -> &'static str {
    match (node.ready, node.cordoned) {
        (Some(false), _) => "not ready",
        (_, true) => "cordoned",
        (Some(true), false) => "ready",
        (None, false) => "-",
    }
}

fn pools(out: &mut String, fleet: &Fleet) {
    if fleet.pools.is_empty() {
        return;
    }
    let heading = [
        "POOL", "READY", "RUNNERS", "PENDING", "GATE", "ONLINE", "BUSY", "QUEUED",
    ];
    let mut rows = vec![heading.map(str::to_owned)];
    for pool in &fleet.pools {
        let ready = if pool.ready { "yes" } else { "no" };
        let counts = [
            pool.runners,
            pool.pending,
            pool.gated,
            pool.online,
            pool.busy,
            pool.queue.jobs,
        ];
        let [runners, pending, gate, online, busy, queued] = counts.map(|n| n.to_string());
        rows.push([
            pool.key(),
            ready.to_owned(),
            runners,
            pending,
            gate,
            online,
            busy,
            queued,
        ]);
    }
    out.push_str("\nPOOLS\n");
    table(out, &rows, 0);
    if fleet.pools_not_listed > 0 {
        let _ = writeln!(out, "  and {} more", fleet.pools_not_listed);
    }
}

/// The devices on which most jobs fail, beside the others of their pools.
fn failed_jobs(out: &mut String, fleet: &Fleet) {
    let listed = fleet.pools.iter().flat_map(|pool| &pool.devices);
    let failed = listed.filter(|device| device.failed > 0);
    let nodes: BTreeMap<_, _> = failed.map(|d| (d.uuid.as_str(), &d.node)).collect();
    let all = nodes.into_iter().filter_map(|(uuid, node)| {
        let (own, others) = fleet.compared(uuid)?;
        Some((uuid, node, own, others))
    });
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(.., own, _)| Reverse((own.suspect, own.failed, Reverse(own.jobs))));
    let mut rows = vec![["NODE", "DEVICE", "FAILED JOBS", "ON OTHERS", ""].map(str::to_owned)];
    rows.extend(all.iter().take(DEVICES).map(|(uuid, node, own, others)| {
        let word = if own.suspect { "suspect" } else { "" };
        let node = or_dash(node.as_ref());
        [
            node,
            device(uuid),
            own.to_string(),
            others.to_string(),
            word.to_owned(),
        ]
    }));
    if rows.len() > 1 {
        out.push_str("\nDEVICES\n");
        table(out, &rows, 1);
    }
}

fn queue(out: &mut String, fleet: &Fleet) {
    let waiting: Vec<_> = fleet.pools.iter().filter(|p| p.queue.jobs > 0).collect();
    if waiting.is_empty() {
        return;
    }
    out.push_str("\nQUEUE\n");
    for pool in waiting {
        let head = format!("{}: {}", pool.key(), count(pool.queue.jobs, "job"));
        wrap(out, "  ", 4, &head);
        if let Some(why) = &pool.queue.why {
            wrap(out, "    ", 4, why);
        }
        let more = pool.queue.waiting_not_listed;
        jobs(out, &pool.queue.waiting, more, fleet.generated_at);
    }
}

fn unserved(out: &mut String, fleet: &Fleet) {
    if fleet.unserved.is_empty() {
        return;
    }
    out.push_str("\nNO POOL TAKES\n");
    let more = fleet.unserved_not_listed;
    jobs(out, &fleet.unserved, more, fleet.generated_at);
}

/// Jobs that wait: the first of them, and how many more there are.
fn jobs(out: &mut String, waiting: &[WaitingJob], more: u32, now: Timestamp) {
    let Some((shown, rest)) = waiting.split_at_checked(waiting.len().min(JOBS)) else {
        return;
    };
    for waiting in shown {
        let mut line = waiting.job.name.clone();
        if let Some(since) = waiting.since {
            let _ = write!(line, ", for {}", span(since, now));
        }
        let _ = write!(line, ", asks for [{}]", waiting.labels.join(", "));
        if let Some(url) = &waiting.job.url {
            let _ = write!(line, " {url}");
        }
        wrap(out, "    ", 6, &line);
    }
    let rest = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let more = rest.saturating_add(more);
    // Where none is known by name, the heading has counted them.
    if more > 0 && !shown.is_empty() {
        let _ = writeln!(out, "    and {more} more");
    }
}

/// Whose word it is, and what that is worth.
fn source(out: &mut String, fleet: &Fleet) {
    let mut says: Vec<String> = fleet.operators().map(word_of).collect();
    let why = fleet.not_read.join(", and ");
    match (says.is_empty(), why.is_empty()) {
        (true, _) => says.push(format!("From the resources alone, because {why}.")),
        (false, true) => {}
        (false, false) => says.push(format!(
            "What these do not tell is from the resources alone, because {why}."
        )),
    }
    let mut says = says.join(" ");
    if !fleet.nodes_visible {
        says.push_str(" Nodes cannot be listed: only those are shown on which runners are.");
    } else if !fleet.others_visible {
        says.push_str(" Pods of others cannot be listed: what they hold looks free.");
    }
    wrap(out, "", 0, &says);
}

fn word_of(operator: &Operator) -> String {
    format!(
        "From the operator {}, which remembers what happened since {}.{}",
        operator.name,
        operator.since.strftime("%Y-%m-%d %H:%MZ"),
        if operator.leads {
            ""
        } else {
            " It stands by: which jobs wait is known to the one that leads."
        }
    )
}

#[cfg(test)]
pub(crate) mod tests;
