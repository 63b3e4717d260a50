//! What the operators themselves say of the fleet: the document of each, through the API server, where its fleet page is on and
//! may be reached so. Of pools that none of them shows the resources are left.

use std::time::Duration;

use cuda_runner_plan::fleet::{API_VERSION, Builder, Fleet, Known as Waiting};
use cuda_runner_plan::why::job::some;
use cudarunner_crds::CudaRunner;
use futures::future::join_all;
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt as _;
use kube::api::ListParams;
use tokio::time::{Instant, timeout_at};

use crate::connect::{Pools, key, said, shown};

/// The label of the Services that lead to the pages.
const PAGE: &str = "app.kubernetes.io/component=fleet-page";
/// Several replicas of an operator answer by turns, and one of them leads.
const TRIES: usize = 4;
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
        Some(fleet)
    }
}

/// Asks all operators, and lists the pools. Operators have so long for their answers, all together.
pub(crate) async fn read(pools: &Pools, limit: Duration) -> Result<Known, String> {
    let which = ListParams::default();
    let listing = pools.list::<CudaRunner>(&which);
    let ((documents, mut not_read), listed) = tokio::join!(of_operators(pools, limit), listing);
    let (resources, is_all) = match listed {
        Ok(listed) => listed,
        Err(why) if documents.is_empty() => return Err(why),
        Err(why) => {
            not_read.push(why);
            (vec![], false)
        }
    };
    // Which pools are beyond the end of a list nobody knows.
    let is_whole = documents.iter().all(|fleet| fleet.pools_not_listed == 0);
    let mut others: Vec<CudaRunner> = resources.into_iter().map(shown).collect();
    others.retain(|pool| {
        let namespace = pool.namespace().unwrap_or_default();
        let has = |fleet: &Fleet| fleet.has(&namespace, &pool.name_any());
        is_whole && !documents.iter().any(has)
    });
    others.sort_by_key(|pool| (pool.namespace(), pool.name_any()));
    if not_read.is_empty() && !others.is_empty() {
        not_read.push(not_shown(&others));
    }
    Ok(Known {
        documents,
        others,
        is_all,
        not_read,
    })
}

fn not_shown(others: &[CudaRunner]) -> String {
    format!(
        "no operator shows {} on its fleet page (fleetPage.enabled in its chart)",
        some(others.iter().map(key).collect(), ", ")
    )
}

/// The documents that come in time, and why others do not.
async fn of_operators(pools: &Pools, limit: Duration) -> (Vec<Fleet>, Vec<String>) {
    let until = Instant::now() + limit;
    let which = ListParams::default().labels(PAGE);
    let services = timeout_at(until, pools.list::<Service>(&which)).await;
    let mut services = match services {
        Ok(Ok((services, _))) => services,
        Ok(Err(why)) => return (vec![], vec![why]),
        Err(_) => {
            let why = "the API server does not list the operators' fleet pages in time";
            return (vec![], vec![why.to_owned()]);
        }
    };
    if services.is_empty() {
        let why = "the operator's fleet page is off (fleetPage.enabled in its chart)";
        return (vec![], vec![why.to_owned()]);
    }
    services.sort_by_key(|service| (service.namespace(), service.name_any()));
    let all = services.iter().map(|service| of(pools, service, until));
    let (mut documents, mut not_read) = (vec![], vec![]);
    for found in join_all(all).await {
        match found {
            Ok(fleet) => documents.push(fleet),
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
    let request = Request::get(path).header("host", "localhost").body(vec![]);
    let request = request.map_err(|e| format!("cannot be asked for: {e}"))?;
    let text = pools.client.request_text(request).await;
    let text = text.map_err(|e| format!("does not answer: {}", said(&e)))?;
    let fleet: Fleet =
        serde_json::from_str(&text).map_err(|e| format!("says something else: {e}"))?;
    if fleet.api_version != API_VERSION {
        return Err(format!("speaks {}, not {API_VERSION}", fleet.api_version));
    }
    Ok(fleet)
}
