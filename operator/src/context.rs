//! What every visit shares.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::Semaphore;

use crate::act::events::Events;
use crate::github::{Clients, GitHubUrl};
use crate::lease::Fence;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::registrar::{CaStore, Ledger};
use crate::specs::Specs;
use crate::watch::nodes::Nodes;
use crate::watch::objects::Objects;
use crate::watch::pods::Pods;
use crate::watch::pools::key_of;
use crate::watch::{self, Waker};
use cuda_runner_plan::checks;
use cuda_runner_plan::model::checks::{Elsewhere, Word};
use cuda_runner_plan::model::node_marks::Held;
use cuda_runner_plan::model::pool::{GpuRequest, Pool, PoolKey};
use cuda_runner_plan::node_marks::Marking;
use cuda_runner_plan::{Passed, PodSettings};

/// Name under which we own fields and publish Events.
pub const CONTROLLER: &str = "cuda-runner-operator";

/// Pods that are created at a time, of all pools together. Each is built when its turn comes: a thousand pools that start
/// at once would otherwise hold all of theirs in memory, and wait with them for the API server.
pub const CREATIONS: usize = 64;

/// What a pool leaves alone, as its status says.
#[must_use]
pub fn held_by(pool: &CudaRunner) -> Vec<Held> {
    let entries = pool.status.iter().flat_map(|s| &s.quarantine);
    let held = entries.map(|entry| Held {
        pool: key_of(pool),
        entry: entry.clone(),
    });
    held.collect()
}

/// Clients, stores and settings.
pub struct Context {
    /// Kubernetes. It writes as long as this replica leads.
    pub client: Client,
    /// Whether this replica leads.
    pub fence: Fence,
    /// GitHub, one client for each address and credential.
    pub clients: Clients,
    /// The resources, one store for each watched scope.
    pub pools: Vec<Store<CudaRunner>>,
    /// The runner pods.
    pub pods: Arc<Pods>,
    /// The nodes, where the operator may see them.
    pub nodes: Option<Arc<Nodes>>,
    /// Which marks nodes get.
    pub marking: Marking,
    /// Secrets that pools name.
    pub secrets: Objects<Secret>,
    /// ConfigMaps that pools name.
    pub config_maps: Objects<ConfigMap>,
    /// The specs, as last read.
    pub specs: Specs,
    /// What is remembered between visits.
    pub memory: Memory,
    /// What is counted.
    pub metrics: Metrics,
    /// Publishes Events.
    pub events: Events,
    /// Wakes pools.
    pub waker: Arc<Waker>,
    /// A permit for each pod that is being created, of all pools together.
    pub creations: Semaphore,
    /// The registrar's certificate authority.
    pub ca: Arc<CaStore>,
    /// Which pods the registrar has registered.
    pub ledger: Arc<Ledger>,
    /// Address of the registrar, as pods reach it.
    pub registrar_url: String,
    /// Image of the gate.
    pub gate_image: String,
    /// Pull policy of that image.
    pub image_pull_policy: String,
    /// Whether plain http to GitHub is allowed.
    pub insecure_github: bool,
}

impl Context {
    /// The resource of a pool.
    #[must_use]
    pub fn resource(&self, key: &PoolKey) -> Option<Arc<CudaRunner>> {
        let reference = watch::reference(key);
        self.pools.iter().find_map(|store| store.get(&reference))
    }

    /// The other pools.
    fn others<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = Arc<CudaRunner>> + 'a {
        let all = self.pools.iter().flat_map(Store::state);
        all.filter(|other| other.metadata.uid.as_ref() != Some(&pool.uid))
    }

    /// Labels of the other pools that register at the address of `pool`.
    #[must_use]
    pub fn other_pools(&self, pool: &Pool) -> Vec<Vec<String>> {
        let Ok(spec) = &pool.spec else {
            return vec![];
        };
        self.others(pool)
            .filter(|other| {
                GitHubUrl::parse(&other.spec.github.url, true).is_ok_and(|url| url == spec.url)
            })
            .map(|other| other.spec.labels.clone())
            .collect()
    }

    /// What the runners of other pools hold of a pool's extended resource, by node; `None` where no other pool uses it.
    #[must_use]
    pub fn taken(&self, pool: &Pool) -> Option<BTreeMap<String, u32>> {
        let GpuRequest::Resource { name, .. } = &pool.spec.as_ref().ok()?.gpu else {
            return None;
        };
        let is_shared = self.others(pool).any(|other| {
            let gpu = &other.spec.gpu;
            gpu.claim_template.is_none() && gpu.resource == *name
        });
        is_shared.then(|| self.pods.taken(name, &pool.key))
    }

    /// What the other pools have in quarantine.
    #[must_use]
    pub fn quarantined_elsewhere(&self, pool: &Pool) -> Vec<Held> {
        self.others(pool)
            .flat_map(|other| held_by(&other))
            .collect()
    }

    /// The gates that passed, of pools that there are.
    #[must_use]
    pub fn passed(&self) -> Vec<Passed> {
        self.pods.passed(|key, owner| {
            let pool = self.resource(key);
            pool.is_some_and(|pool| pool.metadata.uid.as_deref() == Some(owner))
        })
    }

    /// What other pools require at the server of a pool that requires something, too, as this process has written it down
    /// for them: what a namespace's users can write is no proof. One in deletion gives its part up.
    #[must_use]
    pub fn required_elsewhere(&self, pool: &Pool) -> BTreeSet<Elsewhere> {
        let Ok(spec) = &pool.spec else {
            return BTreeSet::new();
        };
        if spec.required_checks.is_none() && pool.status.required_checks.is_none() {
            return BTreeSet::new();
        }
        self.others(pool)
            .filter(|other| other.metadata.deletion_timestamp.is_none())
            .filter(|other| other.spec.required_checks.is_some())
            .flat_map(|other| self.required_by(&other))
            .collect()
    }

    fn required_by(&self, other: &CudaRunner) -> Vec<Elsewhere> {
        let uid = other.metadata.uid.as_deref().unwrap_or_default();
        let known = self.memory.of(&key_of(other), uid, |memory| {
            let word = Word::of(&memory.github.access, &memory.checks.watched);
            (word, memory.status.clone())
        });
        let (word, written) = known.unwrap_or((Some(Word::Unproven), None));
        match (word, written.as_ref().or(other.status.as_ref())) {
            (Some(word), Some(status)) => checks::required_by(&other.spec, status, word),
            _ => vec![],
        }
    }

    /// What pods have to know of the operator.
    #[must_use]
    pub fn pod_settings(&self) -> PodSettings {
        PodSettings {
            gate_image: self.gate_image.clone(),
            image_pull_policy: self.image_pull_policy.clone(),
            registrar_url: self.registrar_url.clone(),
            registrar_ca: self.ca.bundle().to_string(),
        }
    }

    /// The page that Prometheus reads.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        let exists = |pool: &PoolKey| self.resource(pool).is_some();
        self.metrics.page(exists, self.clients.usage())
    }

    /// Fresh randomness for names; nothing secret depends on it.
    #[must_use]
    pub fn random(&self) -> u64 {
        RandomState::new().build_hasher().finish()
    }

    /// Lets go of everything that belongs to a pool.
    pub fn forget(&self, key: &PoolKey) {
        self.memory.forget(key);
        self.specs.forget(key);
        self.pods.forget(key);
        self.metrics.forget(key);
        self.secrets.release(key, None);
        self.config_maps.release(key, None);
    }
}
