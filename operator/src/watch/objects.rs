//! Secrets and ConfigMaps that pools name.
//!
//! Where the operator may, one watch of each namespace tells which of its objects have changed, without what is in them, and
//! those that pools name are read by name: many pools then need no more connections than one. Where it may not, or where
//! that fails again and again, each object that a pool names has a watch of its own: no right to list the others is needed.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::NamespaceResourceScope;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch as flag};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{Events, LONGEST_PAUSE, PAGE, Pauses, Waker, log_error};
use cuda_runner_plan::model::pool::PoolKey;

/// How long the first look at an object may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// A watch of a namespace that fails so often in a row is given up: three times in some seconds, well within the first look.
const TRIES: u32 = 3;
/// Failures that lie further apart are not in a row.
const IN_A_ROW: Duration = Duration::from_mins(1);
/// After such a time it is tried again.
const AGAIN: Duration = Duration::from_mins(5);

/// Objects of one kind.
pub struct Objects<K> {
    client: Client,
    waker: Arc<Waker>,
    breadth: Breadth,
    namespaces: Mutex<HashMap<String, Namespace<K>>>,
}

/// How far a watch found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Breadth {
    /// Over all objects of a namespace, if the operator may.
    Namespace,
    /// Over one object.
    Object,
}

/// The objects of a namespace that pools name.
struct Namespace<K> {
    named: Arc<Mutex<HashMap<String, Named<K>>>>,
    /// How far the watches reach, once that is known.
    breadth: flag::Receiver<Option<Breadth>>,
    /// What watches the namespace.
    task: AbortHandle,
}

impl<K> Drop for Namespace<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An object that pools name.
struct Named<K> {
    seen: flag::Receiver<Seen<K>>,
    /// It may have changed.
    changed: Arc<Notify>,
    users: Users,
    task: AbortHandle,
}

impl<K> Drop for Named<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Users = Arc<Mutex<BTreeSet<PoolKey>>>;

/// An object as it was last seen; `None` before the first look.
type Seen<K> = Option<Lookup<K>>;

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

impl<K> Clone for Lookup<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Found(object) => Self::Found(Arc::clone(object)),
            Self::Missing => Self::Missing,
            Self::Unreadable => Self::Unreadable,
        }
    }
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
{
    /// No object is watched yet.
    #[must_use]
    pub fn new(client: Client, waker: Arc<Waker>, breadth: Breadth) -> Self {
        Self {
            client,
            waker,
            breadth,
            namespaces: Mutex::default(),
        }
    }

    /// The object `name` in the pool's namespace. From now on its changes wake the pool.
    pub async fn get(&self, pool: &PoolKey, name: &str) -> Lookup<K> {
        let mut seen = self.seen(pool, name);
        let first = seen.wait_for(Option::is_some);
        match tokio::time::timeout(FIRST_LOOK, first).await {
            Ok(Ok(seen)) => seen.clone().unwrap_or(Lookup::Unreadable),
            Ok(Err(_)) | Err(_) => Lookup::Unreadable,
        }
    }

    /// The pool does not need this kind of object any more, or now others than `keep`.
    pub fn release(&self, pool: &PoolKey, keep: &[&str]) {
        let mut namespaces = lock(&self.namespaces);
        let Some(namespace) = namespaces.get_mut(&pool.namespace) else {
            return;
        };
        let mut named = lock(&namespace.named);
        named.retain(|name, object| {
            if keep.contains(&name.as_str()) {
                return true;
            }
            let mut users = lock(&object.users);
            users.remove(pool);
            !users.is_empty()
        });
        let is_unused = named.is_empty();
        drop(named);
        if is_unused {
            namespaces.remove(&pool.namespace);
        }
    }

    fn seen(&self, pool: &PoolKey, name: &str) -> flag::Receiver<Seen<K>> {
        let mut namespaces = lock(&self.namespaces);
        let namespace = namespaces
            .entry(pool.namespace.clone())
            .or_insert_with(|| self.namespace(&pool.namespace));
        let mut named = lock(&namespace.named);
        let object = named
            .entry(name.to_owned())
            .or_insert_with(|| self.named(&pool.namespace, name, namespace.breadth.clone()));
        lock(&object.users).insert(pool.clone());
        object.seen.clone()
    }

    fn namespace(&self, namespace: &str) -> Namespace<K> {
        let named = Arc::default();
        let (found, breadth) = flag::channel(None);
        let task = match self.breadth {
            Breadth::Namespace => {
                let api = Api::namespaced(self.client.clone(), namespace);
                tokio::spawn(tell_of_changes(api, Arc::clone(&named), found))
            }
            Breadth::Object => tokio::spawn(async move {
                found.send_replace(Some(Breadth::Object));
                // Whoever comes later reads it, too.
                found.closed().await;
            }),
        };
        Namespace {
            named,
            breadth,
            task: task.abort_handle(),
        }
    }

    fn named(
        &self,
        namespace: &str,
        name: &str,
        mut breadth: flag::Receiver<Option<Breadth>>,
    ) -> Named<K> {
        let (shown, seen) = flag::channel(None);
        let (changed, users) = (Arc::<Notify>::default(), Users::default());
        let keeper = Keeper {
            api: Api::<K>::namespaced(self.client.clone(), namespace),
            name: name.to_owned(),
            shown,
            users: Arc::clone(&users),
            waker: Arc::clone(&self.waker),
        };
        let reported = Arc::clone(&changed);
        let task = tokio::spawn(async move {
            loop {
                let known = *breadth.borrow_and_update();
                let keep = async {
                    match known {
                        Some(Breadth::Namespace) => keeper.read_when(&reported).await,
                        Some(Breadth::Object) => keeper.follow().await,
                        // A look before the watch has begun could miss a change in between.
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = keep => {}
                    changed = breadth.changed() => if changed.is_err() {
                        return;
                    },
                }
            }
        });
        Named {
            seen,
            changed,
            users,
            task: task.abort_handle(),
        }
    }
}

/// Tells the named objects of a namespace that they have changed; or, while the namespace cannot be watched, that each is to
/// be watched by itself.
async fn tell_of_changes<K>(
    api: Api<PartialObjectMeta<K>>,
    named: Arc<Mutex<HashMap<String, Named<K>>>>,
    breadth: flag::Sender<Option<Breadth>>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    loop {
        tell_while_watched(&api, &named, &breadth).await;
        breadth.send_replace(Some(Breadth::Object));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Ends when there is no right to watch the namespace, or when that has failed again and again.
async fn tell_while_watched<K>(
    api: &Api<PartialObjectMeta<K>>,
    named: &Mutex<HashMap<String, Named<K>>>,
    breadth: &flag::Sender<Option<Breadth>>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = watch(api.clone(), config)
        .backoff(Pauses::default())
        .boxed();
    let (mut failures, mut last) = (0, Instant::now());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                if let Some(object) = lock(named).get(&object.name_any()) {
                    object.changed.notify_one();
                }
            }
            Ok(Event::InitDone) => {
                failures = 0;
                // All begin anew with a read: what has changed before a later list is not reported one by one.
                breadth.send_replace(Some(Breadth::Namespace));
            }
            Ok(Event::Init | Event::InitApply(_)) => {}
            Err(error) if is_forbidden(&error) => return,
            Err(error) => {
                log_error(
                    "the objects of a namespace in which pools name some",
                    &error,
                );
                failures = if last.elapsed() < IN_A_ROW {
                    failures + 1
                } else {
                    1
                };
                last = Instant::now();
                if failures >= TRIES {
                    return;
                }
            }
        }
    }
}

fn is_forbidden(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.code == 403
}

/// Keeps what is known of an object up to date.
struct Keeper<K> {
    api: Api<K>,
    name: String,
    shown: flag::Sender<Seen<K>>,
    users: Users,
    waker: Arc<Waker>,
}

impl<K> Keeper<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// The only one of its name: whoever may list or watch it needs no other right.
    fn selector(&self) -> String {
        format!("metadata.name={}", self.name)
    }

    fn show(&self, object: Option<K>) {
        let seen = object.map_or(Lookup::Missing, |mut object| {
            object.managed_fields_mut().clear();
            Lookup::Found(Arc::new(object))
        });
        self.shown.send_replace(Some(seen));
        let users = lock(&self.users);
        users.iter().for_each(|pool| self.waker.wake(pool));
    }

    /// Reads it now, and whenever it is told to have changed.
    async fn read_when(&self, changed: &Notify) {
        let only = ListParams::default().fields(&self.selector());
        loop {
            let mut pauses = Pauses::default();
            loop {
                match self.api.list(&only).await {
                    Ok(list) => {
                        self.show(list.items.into_iter().next());
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(%error, name = self.name, "an object that a pool names could not be read, and is tried again");
                    }
                }
                tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
            }
            changed.notified().await;
        }
    }

    /// Watches it.
    async fn follow(&self) {
        let config = watcher::Config::default().fields(&self.selector());
        let mut events: Events<K> = watch(self.api.clone(), config)
            .backoff(Pauses::default())
            .boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(object)) => listed = Some(object),
                Ok(Event::InitDone) => self.show(listed.take()),
                Ok(Event::Apply(object)) => self.show(Some(object)),
                Ok(Event::Delete(_)) => self.show(None),
                Err(error) => log_error("an object that a pool names", &error),
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain values behind, none of them half-written.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
