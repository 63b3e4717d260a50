//! The watches that the operator starts with, and the stores that they fill.

use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use kube::Client;
use kube::runtime::reflector::{self, Store};
use tokio::sync::watch as flag;

use super::beside::{self, Beside, Which};
use super::devices::{self, Devices};
use super::nodes::{self, Nodes};
use super::others::{self, Held};
use super::pods::{self, Pods};
use super::{Scope, Waker, pools};
use crate::config::Config;
use cuda_runner_plan::node_marks::Marking;

/// What a store holds, and whether it was filled.
pub type Filled = (&'static str, flag::Receiver<bool>);

/// The stores that watches fill.
#[derive(Default)]
pub struct Stores {
    /// The resources, one store for each watched scope.
    pub pools: Vec<Store<CudaRunner>>,
    /// What is known of pools of other operators; nothing where this one selects all pools.
    pub beside: Arc<Beside>,
    /// The runner pods.
    pub pods: Arc<Pods>,
    /// The nodes, where the operator may see them.
    pub nodes: Option<Arc<Nodes>>,
    /// What pods hold that are no runners, in an installation for the whole cluster.
    pub others: Option<Arc<Held>>,
    /// The devices that drivers publish, where devices are tainted.
    pub devices: Option<Arc<Devices>>,
    /// Tell when they have been filled.
    pub filled: Vec<Filled>,
}

impl Stores {
    /// Starts the watches. Nodes are seen only by an operator for the whole cluster, and by one that marks them.
    #[must_use]
    pub fn watch(config: &Config, client: &Client, waker: &Arc<Waker>) -> Self {
        let mut stores = Self {
            beside: Arc::new(Beside::new(config.pool_selector.clone())),
            ..Self::default()
        };
        for scope in Scope::of(&config.watch_namespace) {
            let (store, writer) = reflector::store();
            tokio::spawn(pools::follow(
                client.clone(),
                (scope.clone(), config.pool_selector.clone()),
                writer,
                Arc::clone(waker),
            ));
            let reader: Store<CudaRunner> = store.clone();
            stores.follow("the CudaRunner resources", |filled| async move {
                filled.send_replace(reader.wait_until_ready().await.is_ok());
            });
            stores.pools.push(store);
            let pods = Arc::clone(&stores.pods);
            stores.follow("the runner pods", |filled| {
                pods::follow(client.clone(), scope, pods, Arc::clone(waker), filled)
            });
        }
        if config.watch_namespace.is_empty() {
            stores.follow_others(client, waker);
        }
        let sees_nodes =
            config.watch_namespace.is_empty() || config.marks.marking() != Marking::default();
        if config.pool_selector.is_some() {
            let which = if sees_nodes {
                Which::All
            } else {
                Which::Quarantining
            };
            stores.follow_beside((config, which), client, waker);
        }
        if sees_nodes {
            stores.follow_nodes(client, waker);
        }
        if config.device_taints.tainting().is_some() {
            stores.follow_devices(client, waker);
        }
        stores
    }

    /// Starts a watch, which says when it has read what there is.
    fn follow<W>(&mut self, what: &'static str, watch: impl FnOnce(flag::Sender<bool>) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let (filled, is_filled) = flag::channel(false);
        tokio::spawn(watch(filled));
        self.filled.push((what, is_filled));
    }

    /// Starts the watches of pools that the selector leaves out.
    fn follow_beside(
        &mut self,
        (config, which): (&Config, Which),
        client: &Client,
        waker: &Arc<Waker>,
    ) {
        for scope in Scope::of(&config.watch_namespace) {
            let beside = Arc::clone(&self.beside);
            let concerned = (self.pools.clone(), Arc::clone(waker));
            self.follow("the pools of other operators", |filled| {
                beside::follow(client.clone(), (scope, which), beside, concerned, filled)
            });
        }
    }

    fn follow_others(&mut self, client: &Client, waker: &Arc<Waker>) {
        let held = Arc::new(Held::default());
        self.others = Some(Arc::clone(&held));
        self.follow("the pods of others", |filled| {
            others::follow(client.clone(), held, Arc::clone(waker), filled)
        });
    }

    fn follow_nodes(&mut self, client: &Client, waker: &Arc<Waker>) {
        let nodes = Arc::new(Nodes::default());
        self.nodes = Some(Arc::clone(&nodes));
        let (client, pools, waker) = (client.clone(), self.pools.clone(), Arc::clone(waker));
        self.follow("the nodes", |filled| {
            nodes::follow(client, nodes, pools, waker, filled)
        });
    }

    fn follow_devices(&mut self, client: &Client, waker: &Arc<Waker>) {
        let devices = Arc::new(Devices::default());
        self.devices = Some(Arc::clone(&devices));
        let (pools, kept) = (self.pools.clone(), Arc::clone(&devices));
        self.follow("the devices", |filled| {
            devices::follow_slices(client.clone(), kept, pools, Arc::clone(waker), filled)
        });
        self.follow("the taints of devices", |filled| {
            devices::follow_rules(client.clone(), devices, Arc::clone(waker), filled)
        });
    }
}
