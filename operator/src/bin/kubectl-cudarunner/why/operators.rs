//! Which operators there are, as far as their Leases and their pods tell.

use std::collections::BTreeMap;

use cuda_runner_operator::lease::{ALONE_SECONDS, LABEL, LEASE, NAMESPACES, SELECTOR};
use cuda_runner_operator::selector::is_selected;
use cuda_runner_plan::why::operator::{Named, Operator, OperatorPod, Seen};
use cudarunner_crds::{CudaRunner, OperatorStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{Instant, timeout_at};

/// Looks for the operator that a pool names, and for all others; what is not there in time has not been seen.
pub(super) async fn see(client: &Client, pool: &CudaRunner, until: Instant) -> Seen {
    let ours = ListParams::default().labels(&format!("{LABEL}={LEASE}"));
    let leases = Api::<Lease>::all(client.clone());
    let pods = Api::<Pod>::all(client.clone());
    let (named, all, pods) = tokio::join!(
        timeout_at(until, named(client, pool)),
        timeout_at(until, leases.list(&ours)),
        timeout_at(until, pods.list(&ours)),
    );
    let all = all.ok().and_then(Result::ok);
    let pods = pods.ok().and_then(Result::ok);
    Seen {
        named: named.unwrap_or_default(),
        all: all.map(|all| all.iter().map(|lease| operator(lease, pool)).collect()),
        pods: pods.map(|pods| pods.iter().map(of_pod).collect()),
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
