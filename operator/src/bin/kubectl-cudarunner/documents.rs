//! What the operators themselves say of the fleet: the document of each, through the API server, where its fleet page is on and
//! may be reached so. Of pools that none of them shows the resources are left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cuda_runner_plan::fleet::{API_VERSION, Builder, Fleet, Known as Waiting};
use cuda_runner_plan::why::job::some;
use cuda_runner_plan::why::operator::{NOBODY, of_absent};
use cudarunner_crds::CudaRunner;
use futures::future::join_all;
use http::Request;
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::client::Body;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use crate::connect::{Pools, cleaned, key, said, shown};
use crate::why::operators::{ASK, look};

/// The label of the Services that lead to the pages.
const PAGE: &str = "app.kubernetes.io/component=fleet-page";
/// Several replicas of an operator answer by turns, and one of them leads.
const TRIES: usize = 4;
/// A document of all that is listed at most has some 20 MiB.
const LONGEST: usize = 32 * 1024 * 1024;

/// What is known, by whom.
pub(crate) struct Known {
    /// The documents, one of each operator that answered.
    pub(crate) documents: Vec<Fleet>,
    /// The pools that none of them has, by namespace and name.
    pub(crate) others: Vec<CudaRunner>,
    /// Whether pools of all namespaces could be listed.
    pub(crate) is_all: bool,
    /// Why not all of it is an operator's own word.
    pub(crate) not_read: Vec<String>,
    /// Of which pools nobody's word can be had, where no operator serves them.
    not_served: Option<String>,
}

impl Known {
    /// What the statuses of the other pools tell.
    pub(crate) fn by_status(&self, now: Timestamp) -> Fleet {
        let mut builder = Builder::new(now, None, None, None);
        for pool in &self.others {
            builder.pool(pool, Waiting::default());
        }
        builder.finish()
    }

    /// All that as one document, with what is put together of the other pools.
    pub(crate) fn joined(self, others: Option<Fleet>) -> Option<Fleet> {
        let all = self.documents.into_iter().chain(others);
        let mut fleet = all.reduce(Fleet::joined)?;
        fleet.not_read = self.not_read;
        fleet.not_served = self.not_served;
        Some(fleet)
    }
}

/// A document, and the namespace of the operator that gave it.
struct Document {
    namespace: String,
    fleet: Fleet,
}

/// Lists the pools, and asks the operators that they name. Those have so long for their answers, all together. Beside that it is
/// looked whether they run.
pub(crate) async fn read(pools: &Pools, limit: Duration, now: Timestamp) -> Result<Known, String> {
    let (read, operators) = tokio::join!(
        read_all(pools, limit),
        look(&pools.client, Instant::now() + ASK),
    );
    let (mut known, of) = read?;
    let is_absent = |pool: &&CudaRunner| operators.leave_out(pool, now);
    let absent: Vec<String> = known.others.iter().filter(is_absent).map(key).collect();
    if !absent.is_empty() && absent.len() == known.others.len() && known.documents.is_empty() {
        known.not_read = vec![NOBODY.to_owned()];
    }
    known.not_served = of_absent(absent, of);
    Ok(known)
}

/// What is known, and how many pools there are.
async fn read_all(pools: &Pools, limit: Duration) -> Result<(Known, usize), String> {
    let which = ListParams::default();
    let listing = pools.list::<CudaRunner>(&which);
    let (services, listed) = tokio::join!(pages(pools, limit), listing);
    let (resources, is_all) = listed?;
    let of = resources.len();
    let mut others: Vec<CudaRunner> = resources.into_iter().map(shown).collect();
    let (documents, mut not_read) = of_operators(pools, services, &others, limit).await;
    let documents = believed(documents, &others);
    // Which pools are beyond the end of a list nobody knows.
    let is_whole = documents.iter().all(|fleet| fleet.pools_not_listed == 0);
    others.retain(|pool| {
        let namespace = pool.namespace().unwrap_or_default();
        let has = |fleet: &Fleet| fleet.has(&namespace, &pool.name_any());
        is_whole && !documents.iter().any(has)
    });
    others.sort_by_key(|pool| (pool.namespace(), pool.name_any()));
    if not_read.is_empty() && !others.is_empty() {
        not_read.push(not_shown(&others));
    }
    let known = Known {
        documents,
        others,
        is_all,
        not_read,
        not_served: None,
    };
    Ok((known, of))
}

/// The documents, each without the pools that name an operator of another namespace: of those nobody else's word counts.
fn believed(documents: Vec<Document>, pools: &[CudaRunner]) -> Vec<Fleet> {
    let named: BTreeMap<(String, String), &str> = pools
        .iter()
        .filter_map(|pool| {
            let key = (pool.namespace().unwrap_or_default(), pool.name_any());
            Some((key, pool.operator()?.namespace.as_str()))
        })
        .collect();
    let documents = documents.into_iter().map(|mut document| {
        document.fleet.pools.retain(|pool| {
            let named = named.get(&(pool.namespace.clone(), pool.name.clone()));
            named.is_none_or(|named| *named == document.namespace)
        });
        document.fleet
    });
    documents.collect()
}

fn not_shown(others: &[CudaRunner]) -> String {
    format!(
        "no operator shows {} on its fleet page (fleetPage.enabled in its chart)",
        some(others.iter().map(key).collect(), ", ")
    )
}

/// The Services that say that they lead to a page.
async fn pages(pools: &Pools, limit: Duration) -> Result<Vec<Service>, String> {
    let which = ListParams::default().labels(PAGE);
    match timeout(limit, pools.list::<Service>(&which)).await {
        Ok(listed) => listed.map(|(services, _)| services),
        Err(_) => Err("the API server does not list the operators' fleet pages in time".to_owned()),
    }
}

/// The documents that come in time, and why others do not. Whoever may make Services can give one the label of a page, and let
/// it lead anywhere: only those are asked in whose namespace an operator is by the status of a pool, which its editors cannot
/// write.
async fn of_operators(
    pools: &Pools,
    services: Result<Vec<Service>, String>,
    resources: &[CudaRunner],
    limit: Duration,
) -> (Vec<Document>, Vec<String>) {
    let mut services = match services {
        Ok(services) => services,
        Err(why) => return (vec![], vec![why]),
    };
    let are_there = !services.is_empty();
    let named = resources.iter().filter_map(CudaRunner::operator);
    let named: BTreeSet<&str> = named.map(|named| named.namespace.as_str()).collect();
    services.retain(|service| {
        let namespace = service.namespace();
        namespace.is_some_and(|namespace| named.contains(namespace.as_str()))
    });
    if services.is_empty() {
        let why = if are_there && named.is_empty() {
            "no pool that may be seen names its operator, and no other one is believed"
        } else {
            "the operator's fleet page is off (fleetPage.enabled in its chart)"
        };
        return (vec![], vec![why.to_owned()]);
    }
    services.sort_by_key(|service| (service.namespace(), service.name_any()));
    let until = Instant::now() + limit;
    let all = services.iter().map(|service| of(pools, service, until));
    let (mut documents, mut not_read) = (vec![], vec![]);
    for (found, service) in join_all(all).await.into_iter().zip(&services) {
        let namespace = service.namespace().unwrap_or_default();
        match found {
            Ok(fleet) => documents.push(Document { namespace, fleet }),
            Err(why) => not_read.push(why),
        }
    }
    (documents, not_read)
}

/// The document of the operator behind a Service: by the replica that leads, or else by one that stands by.
async fn of(pools: &Pools, service: &Service, until: Instant) -> Result<Fleet, String> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/services/{name}:fleet/proxy/api/fleet");
    let mut last = None;
    for _ in 0..TRIES {
        match timeout_at(until, once(pools, &path)).await {
            Ok(Ok(fleet)) if fleet.operator.as_ref().is_some_and(|o| o.leads) => return Ok(fleet),
            Ok(Ok(fleet)) => last = Some(Ok(fleet)),
            Ok(Err(why)) => {
                last.get_or_insert(Err(why));
                break;
            }
            Err(_) => {
                last.get_or_insert_with(|| Err("does not answer in time".to_owned()));
                break;
            }
        }
    }
    let said = last.unwrap_or_else(|| Err("says nothing".to_owned()));
    said.map_err(|why| format!("the operator's fleet page {namespace}/{name} {why}"))
}

/// One answer; what is wrong with it follows the page's name.
async fn once(pools: &Pools, path: &str) -> Result<Fleet, String> {
    // The API server passes the name on, and the page answers to names that it knows.
    let request = Request::get(path).header("host", "localhost");
    let request = request.body(Body::empty());
    let request = request.map_err(|e| format!("cannot be asked for: {e}"))?;
    let answer = pools.client.send(request).await;
    let answer = answer.map_err(|e| format!("does not answer: {}", said(&e)))?;
    let status = answer.status();
    let text = Limited::new(answer.into_body(), LONGEST).collect().await;
    let text =
        text.map_err(|e| format!("does not answer in {} MiB: {e}", LONGEST / 1024 / 1024))?;
    let read = serde_json::from_slice::<Value>(&text.to_bytes()).map(cleaned);
    if !status.is_success() {
        let read = read.unwrap_or_default();
        let why = read["message"].as_str().map(str::to_owned);
        let why = why.unwrap_or_else(|| status.to_string());
        return Err(format!("does not answer: {why}"));
    }
    let fleet = read.and_then(serde_json::from_value::<Fleet>);
    let fleet = fleet.map_err(|e| format!("says something else: {e}"))?;
    if fleet.api_version != API_VERSION {
        return Err(format!("speaks {}, not {API_VERSION}", fleet.api_version));
    }
    Ok(fleet)
}
