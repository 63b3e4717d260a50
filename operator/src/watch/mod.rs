//! Watches on Kubernetes: what they show is kept, pruned to what we read, and each change wakes the pools it concerns.

pub mod beside;
pub mod devices;
pub mod nodes;
pub mod objects;
pub mod others;
pub mod part;
pub mod pods;
pub mod pools;
pub mod stores;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarunner_crds::CudaRunner;
use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use kube::{Api, Client, Resource};
use tokio::sync::Notify;

use cuda_runner_plan::model::pool::PoolKey;
use pools::key_of;

/// Objects that are read at a time. A whole one is many times what is kept of it, and the watcher's own 500 of them would
/// stay in the process's memory.
const PAGE: u32 = 50;

/// A pool, as the stores of `kube` name it.
#[must_use]
pub fn reference(pool: &PoolKey) -> ObjectRef<CudaRunner> {
    ObjectRef::new(&pool.name).within(&pool.namespace)
}

/// Wakes pools. Calls cost nothing while nobody listens.
#[derive(Debug)]
pub struct Waker {
    sender: UnboundedSender<ObjectRef<CudaRunner>>,
    listening: AtomicBool,
    leading: AtomicBool,
    /// A node, or what pools say of nodes, has changed: their marks may have to.
    pub marks: Notify,
    /// What pools share, or what they would have of it, has changed.
    pub shares: Notify,
    /// The same for the taints of devices.
    pub rules: Notify,
}

impl Waker {
    /// A waker, and the stream of those it wakes.
    #[must_use]
    pub fn new() -> (Self, UnboundedReceiver<ObjectRef<CudaRunner>>) {
        let (sender, receiver) = unbounded();
        let waker = Self {
            sender,
            listening: AtomicBool::new(false),
            leading: AtomicBool::new(false),
            marks: Notify::new(),
            shares: Notify::new(),
            rules: Notify::new(),
        };
        (waker, receiver)
    }

    /// What is quarantined has changed.
    pub fn quarantine_changed(&self) {
        self.marks.notify_one();
        self.rules.notify_one();
    }

    /// From now on somebody listens.
    pub fn listen(&self) {
        self.listening.store(true, Ordering::Release);
    }

    fn is_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire)
    }

    /// From now on this replica leads: it acts, and tells what it has done.
    pub fn lead(&self) {
        self.leading.store(true, Ordering::Release);
    }

    /// Whether this replica leads. One that stands by listens as well, and tells nothing.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.leading.load(Ordering::Acquire)
    }

    /// Has the pool looked at.
    pub fn wake(&self, pool: &PoolKey) {
        if self.is_listening() {
            // The receiver lives as long as the process: a failure means that the process ends.
            let _ = self.sender.unbounded_send(reference(pool));
        }
    }

    /// Has all pools looked at.
    pub fn wake_all(&self, pools: &[Store<CudaRunner>]) {
        for pool in pools.iter().flat_map(Store::state) {
            self.wake(&key_of(&pool));
        }
    }
}

/// The namespaces that are watched: all, or those named.
#[derive(Clone, Debug)]
pub enum Scope {
    /// The whole cluster.
    Cluster,
    /// One namespace.
    Namespace(String),
}

impl Scope {
    /// The scopes for a list of namespaces; an empty list is the cluster.
    #[must_use]
    pub fn of(namespaces: &[String]) -> Vec<Self> {
        if namespaces.is_empty() {
            return vec![Self::Cluster];
        }
        namespaces.iter().cloned().map(Self::Namespace).collect()
    }

    /// Whether the namespace is part of it.
    #[must_use]
    pub fn covers(&self, namespace: &str) -> bool {
        match self {
            Self::Cluster => true,
            Self::Namespace(own) => own == namespace,
        }
    }

    /// Objects of the scope.
    #[must_use]
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match self {
            Self::Cluster => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }
}

/// Logs what a watch could not do. The stream goes on by itself, with backoff.
fn log_error(what: &'static str, error: &kube::runtime::watcher::Error) {
    tracing::warn!(%error, what, "a watch failed and is tried again");
}

/// The API server's code where it has refused the first list of a watch.
fn refused(error: &kube::runtime::watcher::Error) -> Option<u16> {
    match error {
        kube::runtime::watcher::Error::InitialListFailed(kube::Error::Api(status)) => {
            Some(status.code)
        }
        _ => None,
    }
}

/// The longest pause after a read or a watch that failed. With a longer one a pool would do nothing for another half minute
/// after a short outage of the API server.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How long a broken watch, or a read that failed, waits before it is tried again: as usual, with a bound.
#[derive(Default)]
struct Pauses(DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0.next()?;
        Some(pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// A stream of watch events, driven to its end.
type Events<K> = std::pin::Pin<
    Box<dyn Stream<Item = kube::runtime::watcher::Result<kube::runtime::watcher::Event<K>>> + Send>,
>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_watch_is_back_soon_after_an_outage() {
        let mut pauses = Pauses::default();
        let longest = pauses.by_ref().take(20).max();
        assert_eq!(longest, Some(LONGEST_PAUSE));
        pauses.reset();
        assert!(pauses.next().unwrap() < Duration::from_secs(2));
    }
}
