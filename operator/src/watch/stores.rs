//! The watches that the operator starts with, and the stores that they fill.

use std::sync::Arc;

use cudarunner_crds::CudaRunner;
use kube::Client;
use kube::runtime::reflector::{self, Store};
use tokio::sync::watch as flag;

use super::beside::{self, Beside};
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
    /// What pools of other operators have in quarantine; nothing where this one selects all pools.
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
        let mut stores = Self::default();
        for scope in Scope::of(&config.watch_namespace) {
            let (store, writer) = reflector::store();
            tokio::spawn(pools::follow(
                client.clone(),
                (scope.clone(), config.pool_selector.clone()),
                writer,
                Arc::clone(waker),
            ));
            let (filled, is_filled) = flag::channel(false);
            let reader: Store<CudaRunner> = store.clone();
            tokio::spawn(async move {
                filled.send_replace(reader.wait_until_ready().await.is_ok());
            });
            stores.filled.push(("the CudaRunner resources", is_filled));
            stores.pools.push(store);
            let (filled, is_filled) = flag::channel(false);
            let pods = Arc::clone(&stores.pods);
            tokio::spawn(pods::follow(
                client.clone(),
                scope,
                pods,
                Arc::clone(waker),
                filled,
            ));
            stores.filled.push(("the runner pods", is_filled));
        }
        if config.watch_namespace.is_empty() {
            stores.follow_others(client, waker);
        }
        if config.pool_selector.is_some() {
            stores.follow_beside(config, client, waker);
        }
        if config.watch_namespace.is_empty() || config.marks.marking() != Marking::default() {
            let nodes = Arc::new(Nodes::default());
            let (filled, is_filled) = flag::channel(false);
            tokio::spawn(nodes::follow(
                client.clone(),
                Arc::clone(&nodes),
                stores.pools.clone(),
                Arc::clone(waker),
                filled,
            ));
            stores.filled.push(("the nodes", is_filled));
            stores.nodes = Some(nodes);
        }
        if config.device_taints.tainting().is_some() {
            stores.watch_devices(client, waker);
        }
        stores
    }

    /// Starts the watches of what pools have in quarantine that the selector leaves out.
    fn follow_beside(&mut self, config: &Config, client: &Client, waker: &Arc<Waker>) {
        for scope in Scope::of(&config.watch_namespace) {
            let (filled, is_filled) = flag::channel(false);
            tokio::spawn(beside::follow(
                client.clone(),
                scope,
                Arc::clone(&self.beside),
                (self.pools.clone(), Arc::clone(waker)),
                filled,
            ));
            self.filled
                .push(("the quarantines of other pools", is_filled));
        }
    }

    fn follow_others(&mut self, client: &Client, waker: &Arc<Waker>) {
        let held = Arc::new(Held::default());
        let (filled, is_filled) = flag::channel(false);
        tokio::spawn(others::follow(
            client.clone(),
            Arc::clone(&held),
            Arc::clone(waker),
            filled,
        ));
        self.filled.push(("the pods of others", is_filled));
        self.others = Some(held);
    }

    fn watch_devices(&mut self, client: &Client, waker: &Arc<Waker>) {
        let devices = Arc::new(Devices::default());
        let (filled, is_filled) = flag::channel(false);
        tokio::spawn(devices::follow_slices(
            client.clone(),
            Arc::clone(&devices),
            self.pools.clone(),
            Arc::clone(waker),
            filled,
        ));
        self.filled.push(("the devices", is_filled));
        let (filled, is_filled) = flag::channel(false);
        tokio::spawn(devices::follow_rules(
            client.clone(),
            Arc::clone(&devices),
            Arc::clone(waker),
            filled,
        ));
        self.filled.push(("the taints of devices", is_filled));
        self.devices = Some(devices);
    }
}
