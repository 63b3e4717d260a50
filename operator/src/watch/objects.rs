//! Secrets and ConfigMaps that pools name: each watched by itself, so that no right to list them all is needed.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::watch as flag;
use tokio::task::AbortHandle;

use super::{Events, Waker, log_error};
use cuda_runner_plan::model::pool::PoolKey;

/// How long the first look at an object may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);

/// Objects of one kind, watched one by one.
pub struct Objects<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    client: Client,
    waker: Arc<Waker>,
    watched: Mutex<HashMap<(String, String), Watched<K>>>,
}

struct Watched<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store: Store<K>,
    /// True after the first list. The store's own `wait_until_ready` wakes one of those who wait, and only that one.
    ready: flag::Receiver<bool>,
    users: Arc<Mutex<BTreeSet<PoolKey>>>,
    task: AbortHandle,
}

/// What is known of an object.
#[derive(Debug)]
pub enum Lookup<K> {
    /// It is there.
    Found(Arc<K>),
    /// It is not.
    Missing,
    /// The API server did not say in time: the operator may lack the right to read it.
    Unreadable,
}

impl<K> Objects<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
    K::DynamicType: Hash + Eq + Clone,
{
    /// No object is watched yet.
    #[must_use]
    pub fn new(client: Client, waker: Arc<Waker>) -> Self {
        Self {
            client,
            waker,
            watched: Mutex::default(),
        }
    }

    /// The object `name` in the pool's namespace. From now on its changes wake the pool.
    pub async fn get(&self, pool: &PoolKey, name: &str) -> Lookup<K> {
        let (store, mut ready) = self.store(pool, name);
        match tokio::time::timeout(FIRST_LOOK, ready.wait_for(|ready| *ready)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Lookup::Unreadable,
        }
        let object = store.get(&ObjectRef::new(name).within(&pool.namespace));
        object.map_or(Lookup::Missing, Lookup::Found)
    }

    /// The pool does not need this kind of object any more, or now another one than `keep`.
    pub fn release(&self, pool: &PoolKey, keep: Option<&str>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|(namespace, name), entry| {
            if *namespace != pool.namespace || keep == Some(name.as_str()) {
                return true;
            }
            let mut users = entry.users.lock().unwrap_or_else(PoisonError::into_inner);
            users.remove(pool);
            if users.is_empty() {
                entry.task.abort();
            }
            !users.is_empty()
        });
    }

    fn store(&self, pool: &PoolKey, name: &str) -> (Store<K>, flag::Receiver<bool>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched
            .entry((pool.namespace.clone(), name.to_owned()))
            .or_insert_with(|| self.follow(&pool.namespace, name));
        let mut users = entry.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.insert(pool.clone());
        (entry.store.clone(), entry.ready.clone())
    }

    fn follow(&self, namespace: &str, name: &str) -> Watched<K> {
        let (store, mut writer) = reflector::store();
        let (filled, ready) = flag::channel(false);
        let users = Arc::new(Mutex::new(BTreeSet::<PoolKey>::new()));
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let mut events: Events<K> = watch(api, config).default_backoff().boxed();
        let waker = Arc::clone(&self.waker);
        let woken = Arc::clone(&users);
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        let event = event.modify(|o| o.managed_fields_mut().clear());
                        writer.apply_watcher_event(&event);
                        if matches!(event, Event::InitDone) {
                            filled.send_replace(true);
                        }
                        if !matches!(event, Event::Init | Event::InitApply(_)) {
                            let users = woken.lock().unwrap_or_else(PoisonError::into_inner);
                            users.iter().for_each(|pool| waker.wake(pool));
                        }
                    }
                    Err(error) => log_error("an object that a pool names", &error),
                }
            }
        });
        Watched {
            store,
            ready,
            users,
            task: task.abort_handle(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::Secret;
    use kube::client::Body;
    use serde_json::json;
    use tokio::task::JoinSet;
    use tokio::time::{Instant, sleep};

    /// A client of an API server that takes a moment, and has one Secret.
    fn slow_server() -> Client {
        let service = tower::service_fn(|request: Request<Body>| async move {
            if request.uri().to_string().contains("watch=true") {
                std::future::pending::<()>().await;
            }
            sleep(Duration::from_millis(100)).await;
            let list = json!({
                "kind": "SecretList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
                "items": [{"metadata": {"name": "app", "namespace": "ci"}}],
            });
            Ok::<_, Infallible>(Response::new(Body::from(list.to_string().into_bytes())))
        });
        Client::new(service, "ci")
    }

    #[tokio::test(start_paused = true)]
    async fn all_pools_that_wait_for_an_object_go_on_when_it_is_there() {
        let waker = Arc::new(Waker::new().0);
        let secrets = Arc::new(Objects::<Secret>::new(slow_server(), waker));
        let start = Instant::now();
        // Each with a waker of its own, as visits have them.
        let mut visits = JoinSet::new();
        for number in 0..20 {
            let secrets = Arc::clone(&secrets);
            visits.spawn(async move {
                let pool = PoolKey {
                    namespace: "ci".to_owned(),
                    name: format!("pool-{number}"),
                };
                secrets.get(&pool, "app").await
            });
        }
        let found = visits.join_all().await;
        assert!(found.iter().all(|f| matches!(f, Lookup::Found(_))));
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "{:?}",
            start.elapsed()
        );
    }
}
