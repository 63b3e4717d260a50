//! `top`: the fleet at a glance, over every namespace.
//!
//! The operator's own document is asked for through the API server, where the fleet page is on and may be reached so. Else the
//! same document is put together here, of what the resources show.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cuda_runner_operator::observe::pod::read;
use cuda_runner_operator::watch::nodes::facts;
use cuda_runner_operator::watch::others::{ALIVE, held_by};
use cuda_runner_operator::watch::pods::pool_of;
use cuda_runner_operator::watch::pools::key_of;
use cuda_runner_plan::fleet::{API_VERSION, Builder, DeviceState, Fleet, Known, Node, WaitingJob};
use cuda_runner_plan::model::pool::PoolKey;
use cuda_runner_plan::model::runner::Runner;
use cudarunner_crds::{CudaRunner, POOL_LABEL};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node as KubeNode, Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use crate::connect::{Pools, said};
use crate::text::{count, or_dash, span, table, wrap};

/// The label of the Service that leads to the page.
const PAGE: &str = "app.kubernetes.io/component=fleet-page";
/// Several replicas answer by turns, and one of them leads.
const TRIES: usize = 4;
/// Jobs of each queue that are shown.
const JOBS: usize = 5;

/// The fleet, and why it is not the operator's word, where it is not.
pub(crate) async fn fleet(
    pools: &Pools,
    now: Timestamp,
) -> Result<(Fleet, Option<String>), String> {
    match of_operator(pools).await {
        Ok(fleet) => Ok((fleet, None)),
        Err(why) => Ok((of_resources(pools, now).await?, Some(why))),
    }
}

/// The operator's document.
pub(crate) async fn of_operator(pools: &Pools) -> Result<Fleet, String> {
    let (services, _) = pools
        .list::<Service>(&ListParams::default().labels(PAGE))
        .await?;
    let service = services.first();
    let service =
        service.ok_or("the operator's fleet page is off (fleetPage.enabled in its chart)")?;
    let path = format!(
        "/api/v1/namespaces/{}/services/{}:fleet/proxy/api/fleet",
        service.namespace().unwrap_or_default(),
        service.name_any()
    );
    let mut last = None;
    for _ in 0..TRIES {
        // The API server passes the name on, and the page answers to names that it knows.
        let request = Request::get(&path).header("host", "localhost").body(vec![]);
        let request = request.map_err(|e| e.to_string())?;
        let text = pools.client.request_text(request).await;
        let text =
            text.map_err(|e| format!("the operator's fleet page does not answer: {}", said(&e)))?;
        let fleet: Fleet = serde_json::from_str(&text)
            .map_err(|e| format!("the operator's fleet page says something else: {e}"))?;
        if fleet.api_version != API_VERSION {
            return Err(format!(
                "the operator's fleet page speaks {}, not {API_VERSION}",
                fleet.api_version
            ));
        }
        let leads = fleet.operator.as_ref().is_some_and(|o| o.leads);
        last = Some(fleet);
        if leads {
            break;
        }
    }
    last.ok_or_else(|| "the operator's fleet page says nothing".to_owned())
}

/// The same of what the resources show to whoever asks.
async fn of_resources(pools: &Pools, now: Timestamp) -> Result<Fleet, String> {
    let (resources, is_all) = pools.list::<CudaRunner>(&ListParams::default()).await?;
    let runners = ListParams::default().labels(POOL_LABEL);
    let (runners, _) = pools.list::<Pod>(&runners).await?;
    let (of_pools, strays) = by_pool(&resources, &runners);
    let nodes = Api::<KubeNode>::all(pools.client.clone());
    let nodes = nodes.list(&ListParams::default()).await.ok();
    let nodes: Option<Vec<_>> = nodes.map(|list| list.iter().map(|n| facts(n).into()).collect());
    let mut others = None;
    if is_all && nodes.is_some() {
        let alive = ListParams::default()
            .labels(&format!("!{POOL_LABEL}"))
            .fields(ALIVE);
        let pods = Api::<Pod>::all(pools.client.clone()).list(&alive).await;
        others = pods.ok().map(|pods| held_by(pods.iter().chain(strays)));
    }
    let mut builder = Builder::new(now, None, nodes.as_deref(), others.as_ref());
    for resource in &resources {
        builder.pool(resource, Known::default());
        for runner in of_pools.get(&key_of(resource)).into_iter().flatten() {
            builder.runner(runner, None);
        }
    }
    Ok(builder.finish())
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
pub(crate) fn text(fleet: &Fleet, instead: Option<&str>) -> String {
    let mut out = String::new();
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
    queue(&mut out, fleet);
    unserved(&mut out, fleet);
    out.push('\n');
    source(&mut out, fleet, instead);
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
fn source(out: &mut String, fleet: &Fleet, instead: Option<&str>) {
    let mut says = match (&fleet.operator, instead) {
        (Some(operator), _) => format!(
            "From the operator {}, which remembers what happened since {}.{}",
            operator.name,
            operator.since.strftime("%Y-%m-%d %H:%MZ"),
            if operator.leads {
                ""
            } else {
                " It stands by: which jobs wait is known to the one that leads."
            }
        ),
        (None, why) => format!(
            "From the resources alone, because {}.",
            why.unwrap_or("nobody was asked")
        ),
    };
    if !fleet.nodes_visible {
        says.push_str(" Nodes cannot be listed: only those are shown on which runners are.");
    } else if !fleet.others_visible {
        says.push_str(" Pods of others cannot be listed: what they hold looks free.");
    }
    wrap(out, "", 0, &says);
}

#[cfg(test)]
pub(crate) mod tests;
