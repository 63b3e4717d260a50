//! Secrets and ConfigMaps that pools name, of which [what is read](super::part) is kept.
//!
//! Where the operator may, one watch of each namespace tells which of its objects have changed, without what is in them, and
//! those that pools name are read by name: many pools then need no more connections than one. Where it may not, or where
//! that fails again and again, each object that a pool names has a watch of its own: no right to list the others is needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::{Notify, Semaphore, watch as flag};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::part::{Data, Keyed, Part};
use super::{LONGEST_PAUSE, PAGE, Pauses, Waker, log_error};
use cuda_runner_plan::model::pool::PoolKey;

/// How long the first look at an object may take.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// A watch of a namespace that fails so often in a row is given up: three times in some seconds, well within the first look.
const TRIES: u32 = 3;
/// Failures that lie further apart are not in a row.
const IN_A_ROW: Duration = Duration::from_mins(1);
/// After such a time it is tried again.
const AGAIN: Duration = Duration::from_mins(5);

/// Objects that are read at a time. A whole one may take some MiB while it is read.
const READS: usize = 16;

/// Objects of one kind.
pub struct Objects<K> {
    client: Client,
    waker: Arc<Waker>,
    breadth: Breadth,
    namespaces: Mutex<HashMap<String, Namespace>>,
    turns: Arc<Semaphore>,
    kind: PhantomData<fn() -> K>,
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
struct Namespace {
    named: Arc<Mutex<BTreeMap<Part, Named>>>,
    /// How far the watches reach, once that is known.
    breadth: flag::Receiver<Option<Breadth>>,
    /// What watches the namespace.
    task: AbortHandle,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An object that pools name.
struct Named {
    seen: flag::Receiver<Seen>,
    /// It may have changed.
    changed: Arc<Notify>,
    users: Users,
    task: AbortHandle,
}

impl Drop for Named {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Users = Arc<Mutex<BTreeSet<PoolKey>>>;

/// An object as it was last seen; `None` before the first look.
type Seen = Option<Lookup>;

/// What is known of an object.
#[derive(Clone)]
pub enum Lookup {
    /// It is there.
    Found(Arc<Data>),
    /// It is not.
    Missing,
    /// What is to be read of it is longer than [`Keyed::MOST`].
    TooLong,
    /// The API server did not say in time: the operator may lack the right to read it.
    Unreadable,
}

impl<K: Keyed> Objects<K> {
    /// No object is watched yet.
    #[must_use]
    pub fn new(client: Client, waker: Arc<Waker>, breadth: Breadth) -> Self {
        Self {
            client,
            waker,
            breadth,
            namespaces: Mutex::default(),
            turns: Arc::new(Semaphore::new(READS)),
            kind: PhantomData,
        }
    }

    /// The part of an object in the pool's namespace. From now on changes of the object wake the pool.
    pub async fn get(&self, pool: &PoolKey, part: &Part) -> Lookup {
        let mut seen = self.seen(pool, part);
        let first = seen.wait_for(Option::is_some);
        match tokio::time::timeout(FIRST_LOOK, first).await {
            Ok(Ok(seen)) => seen.clone().unwrap_or(Lookup::Unreadable),
            Ok(Err(_)) | Err(_) => Lookup::Unreadable,
        }
    }

    /// The pool does not need this kind of object any more, or now others than `keep`.
    pub fn release(&self, pool: &PoolKey, keep: &[Part]) {
        let mut namespaces = lock(&self.namespaces);
        let Some(namespace) = namespaces.get_mut(&pool.namespace) else {
            return;
        };
        let mut named = lock(&namespace.named);
        named.retain(|part, object| {
            if keep.contains(part) {
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

    fn seen(&self, pool: &PoolKey, part: &Part) -> flag::Receiver<Seen> {
        let mut namespaces = lock(&self.namespaces);
        let namespace = namespaces
            .entry(pool.namespace.clone())
            .or_insert_with(|| self.namespace(&pool.namespace));
        let mut named = lock(&namespace.named);
        let object = named
            .entry(part.clone())
            .or_insert_with(|| self.named(&pool.namespace, part, namespace.breadth.clone()));
        lock(&object.users).insert(pool.clone());
        object.seen.clone()
    }

    fn namespace(&self, namespace: &str) -> Namespace {
        let named = Arc::default();
        let (found, breadth) = flag::channel(None);
        let task = match self.breadth {
            Breadth::Namespace => {
                let api = Api::<PartialObjectMeta<K>>::namespaced(self.client.clone(), namespace);
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
        part: &Part,
        mut breadth: flag::Receiver<Option<Breadth>>,
    ) -> Named {
        let (shown, seen) = flag::channel(None);
        let (changed, users) = (Arc::<Notify>::default(), Users::default());
        let keeper = Keeper {
            api: Api::<K>::namespaced(self.client.clone(), namespace),
            metadata: Api::namespaced(self.client.clone(), namespace),
            part: part.clone(),
            turns: Arc::clone(&self.turns),
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
async fn tell_of_changes<K: Keyed>(
    api: Api<PartialObjectMeta<K>>,
    named: Arc<Mutex<BTreeMap<Part, Named>>>,
    breadth: flag::Sender<Option<Breadth>>,
) {
    loop {
        tell_while_watched(&api, &named, &breadth).await;
        breadth.send_replace(Some(Breadth::Object));
        tokio::time::sleep(AGAIN).await;
    }
}

/// Ends when there is no right to watch the namespace, or when that has failed again and again.
async fn tell_while_watched<K: Keyed>(
    api: &Api<PartialObjectMeta<K>>,
    named: &Mutex<BTreeMap<Part, Named>>,
    breadth: &flag::Sender<Option<Breadth>>,
) {
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = watch(api.clone(), config)
        .backoff(Pauses::default())
        .boxed();
    let (mut failures, mut last) = (0, Instant::now());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                let first = Part::new(&object.name_any(), &[]);
                let named = lock(named);
                let parts = named.range(&first..);
                parts
                    .take_while(|(part, _)| part.name == first.name)
                    .for_each(|(_, object)| object.changed.notify_one());
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
    metadata: Api<PartialObjectMeta<K>>,
    part: Part,
    turns: Arc<Semaphore>,
    shown: flag::Sender<Seen>,
    users: Users,
    waker: Arc<Waker>,
}

impl<K: Keyed> Keeper<K> {
    /// The only one of its name: whoever may list or watch it needs no other right.
    fn selector(&self) -> String {
        format!("metadata.name={}", self.part.name)
    }

    /// Reads it now, and whenever it is told to have changed.
    async fn read_when(&self, changed: &Notify) {
        loop {
            self.read().await;
            changed.notified().await;
        }
    }

    /// Watches it, without what is in it, and reads it whenever it may have changed.
    async fn follow(&self) {
        let config = watcher::Config::default().fields(&self.selector());
        let mut events = watch(self.metadata.clone(), config)
            .backoff(Pauses::default())
            .boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init | Event::InitApply(_)) => {}
                Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) => self.read().await,
                Err(error) => log_error("an object that a pool names", &error),
            }
        }
    }

    /// Reads it, however often that fails, and wakes whoever names it.
    async fn read(&self) {
        let only = ListParams::default().fields(&self.selector());
        let mut pauses = Pauses::default();
        while let Err(error) = self.read_once(&only).await {
            tracing::warn!(%error, name = self.part.name, "an object that a pool names could not be read, and is tried again");
            tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
        }
        let users = lock(&self.users);
        users.iter().for_each(|pool| self.waker.wake(pool));
    }

    async fn read_once(&self, only: &ListParams) -> Result<(), kube::Error> {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let list = self.api.list(only).await?;
        let object = list.items.into_iter().next();
        let seen = object.map_or(Lookup::Missing, |object| self.part.of(object));
        self.shown.send_replace(Some(seen));
        Ok(())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain values behind, none of them half-written.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
