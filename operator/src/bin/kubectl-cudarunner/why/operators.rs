//! Which operators there are, as far as their Leases and their pods tell.

use std::collections::BTreeMap;
use std::time::Duration;

use cuda_runner_operator::lease::{ALONE_SECONDS, LABEL, LEASE, NAMESPACES, SELECTOR};
use cuda_runner_operator::selector::is_selected;
use cuda_runner_plan::why::operator::{Named, Operator, OperatorPod, Seen, absent};
use cudarunner_crds::{CudaRunner, OperatorStatus};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{Instant, timeout_at};

/// The last part of a person's patience, in which it is looked whether an operator runs at all.
pub(crate) const ASK: Duration = Duration::from_millis(300);

/// The operators of a cluster; `None` for what could not be read.
pub(crate) struct Operators {
    leases: Option<Vec<Lease>>,
    pods: Option<Vec<OperatorPod>>,
}

/// Looks for all operators; what is not there in time has not been seen.
pub(crate) async fn look(client: &Client, until: Instant) -> Operators {
    let ours = ListParams::default().labels(&format!("{LABEL}={LEASE}"));
    let leases = Api::<Lease>::all(client.clone());
    let pods = Api::<Pod>::all(client.clone());
    let (leases, pods) = tokio::join!(
        timeout_at(until, leases.list(&ours)),
        timeout_at(until, pods.list(&ours)),
    );
    let pods = pods.ok().and_then(Result::ok);
    Operators {
        leases: leases.ok().and_then(Result::ok).map(|list| list.items),
        pods: pods.map(|pods| pods.iter().map(of_pod).collect()),
    }
}

/// The same, and for the operator that a pool names.
pub(super) async fn see(client: &Client, pool: &CudaRunner, until: Instant) -> Seen {
    let (named, all) = tokio::join!(timeout_at(until, named(client, pool)), look(client, until),);
    Seen {
        named: named.unwrap_or_default(),
        ..all.beside(pool)
    }
}

impl Operators {
    /// Whether it is known which ones there are.
    pub(crate) fn are_known(&self) -> bool {
        self.leases.is_some()
    }

    /// Whether nobody serves a pool, as far as can be told.
    pub(crate) fn leave_out(&self, pool: &CudaRunner, now: Timestamp) -> bool {
        absent(pool.operator(), &self.beside(pool), now).is_some()
    }

    /// What is seen for one pool. Its operator is one of all.
    fn beside(&self, pool: &CudaRunner) -> Seen {
        let all = self.leases.as_ref();
        let all = all.map(|all| all.iter().map(|lease| operator(lease, pool)));
        let all: Option<Vec<Operator>> = all.map(Iterator::collect);
        let named = match (pool.operator(), &all) {
            (Some(named), Some(all)) => {
                let its = all.iter().find(|operator| operator.lease == *named);
                its.map_or(Named::Gone, |its| Named::There(its.clone()))
            }
            _ => Named::Unread,
        };
        Seen {
            named,
            all,
            pods: self.pods.clone(),
        }
    }
}

/// The operator that a pool names.
async fn named(client: &Client, pool: &CudaRunner) -> Named {
    let Some(named) = pool.operator() else {
        return Named::Unread;
    };
    let leases = Api::<Lease>::namespaced(client.clone(), &named.namespace);
    let which = ListParams::default().fields(&format!("metadata.name={}", named.name));
    match leases.list(&which).await {
        Ok(found) => match found.items.first() {
            Some(lease) => Named::There(operator(lease, pool)),
            None => Named::Gone,
        },
        Err(_) => Named::Unread,
    }
}

fn operator(lease: &Lease, pool: &CudaRunner) -> Operator {
    let spec = lease.spec.as_ref();
    let is_held = |spec: &&k8s_openapi::api::coordination::v1::LeaseSpec| {
        let holder = spec.holder_identity.as_ref();
        holder.is_some_and(|holder| !holder.is_empty())
    };
    let renewed = spec
        .filter(is_held)
        .and_then(|spec| spec.renew_time.as_ref());
    Operator {
        lease: OperatorStatus {
            namespace: lease.namespace().unwrap_or_default(),
            name: lease.name_any(),
        },
        renewed: renewed.map(|at| at.0),
        is_renewed: spec.and_then(|spec| spec.lease_duration_seconds) != Some(ALONE_SECONDS),
        selects: is_selected(lease.annotations(), pool),
        serves: serves(lease.annotations()),
    }
}

/// The pools that the holder of a Lease serves, in words.
fn serves(annotations: &BTreeMap<String, String>) -> String {
    let selector = annotations.get(SELECTOR);
    let of = selector.map_or_else(
        || "all pools".to_owned(),
        |selector| format!("the pools with the labels {selector}"),
    );
    match annotations.get(NAMESPACES) {
        None => of,
        Some(namespaces) => format!("{of} in the namespaces {namespaces}"),
    }
}

fn of_pod(pod: &Pod) -> OperatorPod {
    let conditions = pod
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let mut ready = conditions.filter(|c| c.type_ == "Ready" && c.status == "True");
    OperatorPod {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        is_ready: ready.next().is_some(),
    }
}
