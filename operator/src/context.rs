//! What every reconcile shares.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::Semaphore;

use crate::act::events::Events;
use crate::act::status::writes::Writes;
use crate::device_taints::Tainting;
use crate::ended::EndedRunners;
use crate::github::Clients;
use crate::lease::Fence;
use crate::listen::Listeners;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::owner::Ownership;
use crate::per_pool::PerPool;
use crate::registrar::{CaStore, Ledger};
use crate::shares::Shares;
use crate::specs::Specs;
use crate::watch::beside::Beside;
use crate::watch::devices::Devices;
use crate::watch::nodes::Nodes;
use crate::watch::objects::Objects;
use crate::watch::part::Part;
use crate::watch::pods::Pods;
use crate::watch::{self, Waker};
use crate::webhook::Webhooks;
use cuda_runner_plan::PodSettings;
use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::model::proxy::Proxy;
use cuda_runner_plan::node_marks::Marking;

/// Name under which we own fields and publish Events.
pub const CONTROLLER: &str = "cuda-runner-operator";

/// Pods that are created at a time, of all pools together. Each is built when its turn comes: a thousand pools that start
/// at once would otherwise hold all of theirs in memory, and wait with them for the API server.
pub const CREATIONS: usize = 32;

/// Statuses that are written at a time, of all pools together. Each becomes JSON when its turn comes: a thousand pools
/// that have found their scale sets all write theirs at once.
pub const STATUS_WRITES: usize = 16;

// Where both are slow, as behind an admission webhook that is, everything else has turns still.
const _: () = assert!(CREATIONS + STATUS_WRITES < crate::kubernetes::REQUESTS);

/// Clients, stores and settings.
pub struct Context {
    /// Kubernetes. It writes as long as this replica leads.
    pub client: Client,
    /// Whether this replica leads.
    pub fence: Fence,
    /// GitHub, one client for each address and credential.
    pub clients: Clients,
    /// Which pools are this operator's, where several share the cluster.
    pub ownership: Ownership,
    /// What is known of pools of other operators.
    pub beside: Arc<Beside>,
    /// The resources, one store for each watched scope.
    pub pools: Vec<Store<CudaRunner>>,
    /// The runner pods.
    pub pods: Arc<Pods>,
    /// The nodes, where the operator may see them.
    pub nodes: Option<Arc<Nodes>>,
    /// What each pool may have of the GPUs there.
    pub shares: Shares,
    /// Which marks nodes get.
    pub marking: Marking,
    /// How devices are tainted, where they are.
    pub tainting: Option<Tainting>,
    /// The devices that drivers publish, where devices are tainted.
    pub devices: Option<Arc<Devices>>,
    /// Secrets that pools name.
    pub secrets: Objects<Secret>,
    /// ConfigMaps that pools name.
    pub config_maps: Objects<ConfigMap>,
    /// The specs, as last read.
    pub specs: Specs,
    /// What is remembered between reconciles.
    pub memory: Memory,
    /// Runners that have ended.
    pub ended: EndedRunners,
    /// Who listens for the jobs of pools.
    pub listeners: Listeners,
    /// The writes of statuses that are under way.
    pub status_writes: PerPool<Arc<Writes>>,
    /// A permit for each status that is being written, of all pools together.
    pub status_turns: Arc<Semaphore>,
    /// What is counted.
    pub metrics: Metrics,
    /// The webhooks that GitHub delivers to, where any are taken.
    pub webhooks: Option<Arc<Webhooks>>,
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
    /// For how long GitHub and a runner's pod may contradict one another.
    pub hung_after: SignedDuration,
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

    /// Whether the pool of this name is seen here, and has this uid.
    #[must_use]
    pub fn has(&self, key: &PoolKey, uid: &str) -> bool {
        let pool = self.resource(key);
        pool.is_some_and(|pool| pool.metadata.uid.as_deref() == Some(uid))
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

    /// Lets go of the Secret and the ConfigMap that a pool named before.
    pub fn release_objects(&self, pool: &Pool) {
        let Ok(spec) = &pool.spec else { return };
        let of_proxy = spec.proxy.as_ref().and_then(Proxy::secret);
        let of_webhook = spec.webhook.as_ref().and_then(|w| w.secret.as_deref());
        let secrets: Vec<Part> = std::iter::once(Part::credentials(&spec.secret))
            .chain(of_proxy.map(Part::proxy_user))
            .chain(of_webhook.map(Part::webhook))
            .collect();
        self.secrets.release(&pool.key, &secrets);
        let bundle = spec.ca_bundle.as_ref().map(Part::certificates);
        self.config_maps.release(&pool.key, bundle.as_slice());
    }

    /// Lets go of everything that belongs to a pool.
    pub fn forget(&self, key: &PoolKey) {
        self.memory.forget(key);
        self.ended.forget(key);
        self.listeners.forget(key);
        self.clients.last.forget(key);
        self.status_writes.forget(key);
        self.specs.forget(key);
        self.pods.forget(key);
        self.metrics.forget(key);
        self.secrets.release(key, &[]);
        self.config_maps.release(key, &[]);
    }
}
