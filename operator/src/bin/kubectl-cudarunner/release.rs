//! `release`: ends the quarantine of a node.

use std::time::Duration;

use cudarunner_crds::{CudaRunner, RELEASE};
use jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, ResourceExt as _};

use crate::connect::Pools;

/// How long the operator may take to let a node go.
const LETS_GO: Duration = Duration::from_secs(30);

/// A pool whose status has an entry of the node.
#[derive(Debug, PartialEq)]
struct Holder {
    namespace: String,
    name: String,
    /// When the entry was made: a later one is another failure.
    since: Timestamp,
}

/// Has every pool let go of the node that keeps `name` off it. `moment` makes the annotation a new one.
pub(crate) async fn release(
    pools: &Pools,
    name: &str,
    node: &str,
    moment: &str,
    tell: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let (all, everywhere) = pools.list::<CudaRunner>(&ListParams::default()).await?;
    let is_asked = |pool: &&CudaRunner| {
        pool.name_any() == name && pool.namespace().as_ref() == Some(&pools.namespace)
    };
    if !all.iter().any(|pool| is_asked(&pool)) {
        return Err(format!("there is no CudaRunner {}/{name}", pools.namespace));
    }
    let holders = holders(&all, node);
    if holders.is_empty() {
        return Err(nobody(&all, node, everywhere));
    }
    let mut trouble = vec![];
    let mut asked = vec![];
    for holder in holders {
        let value = format!("{node} {moment}");
        let patched = pools
            .annotate(&holder.namespace, &holder.name, RELEASE, &value)
            .await;
        match patched {
            Ok(()) => asked.push(holder),
            Err(message) => trouble.push(message),
        }
    }
    for holder in asked {
        match gone(pools, &holder, node).await {
            Ok(()) => tell(&format!(
                "{}/{} lets {node} go\n",
                holder.namespace, holder.name
            )),
            Err(message) => trouble.push(message),
        }
    }
    if trouble.is_empty() {
        Ok(())
    } else {
        Err(trouble.join("; "))
    }
}

fn holders(pools: &[CudaRunner], node: &str) -> Vec<Holder> {
    let entries = pools.iter().flat_map(|pool| {
        let status = pool.status.iter();
        status
            .flat_map(|s| &s.quarantine)
            .map(move |entry| (pool, entry))
    });
    entries
        .filter(|(_, entry)| entry.node == node)
        .map(|(pool, entry)| Holder {
            namespace: pool.namespace().unwrap_or_default(),
            name: pool.name_any(),
            since: entry.since.0,
        })
        .collect()
}

/// Says that no pool has an entry of the node, and which entries there are.
fn nobody(pools: &[CudaRunner], node: &str, everywhere: bool) -> String {
    let statuses = pools.iter().filter_map(|pool| pool.status.as_ref());
    let entries = statuses.flat_map(|s| &s.quarantine);
    let mut nodes: Vec<&str> = entries.map(|entry| entry.node.as_str()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let place = if everywhere {
        ""
    } else {
        " of this namespace, the only one that you may list,"
    };
    let others = match nodes.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    format!("no pool{place} has {node} in quarantine; in quarantine: {others}")
}

async fn gone(pools: &Pools, holder: &Holder, node: &str) -> Result<(), String> {
    let Holder {
        namespace,
        name,
        since,
    } = holder;
    let api = Api::<CudaRunner>::namespaced(pools.client.clone(), namespace);
    let waiting = await_condition(api, name, without(node, *since));
    match tokio::time::timeout(LETS_GO, waiting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(format!(
            "{namespace}/{name} was asked, and cannot be watched: {e}"
        )),
        Err(_) => Err(format!(
            "{namespace}/{name} was asked, and still holds {node} after {} seconds; does the operator run?",
            LETS_GO.as_secs()
        )),
    }
}

/// Whether the entry is gone. A pool that is gone holds nothing.
fn without(node: &str, since: Timestamp) -> impl Condition<CudaRunner> {
    move |pool: Option<&CudaRunner>| {
        let status = pool.and_then(|p| p.status.as_ref());
        let mut entries = status.into_iter().flat_map(|s| &s.quarantine);
        !entries.any(|entry| entry.node == node && entry.since.0 == since)
    }
}

#[cfg(test)]
mod tests;
