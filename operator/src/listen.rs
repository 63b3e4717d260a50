//! Listens for the jobs of a scale set: one task for each pool, with one long poll at a time.
//!
//! What is heard is numbers, and each message repeats them: nothing is lost with one. It is acknowledged once a
//! reconcile has acted on it, so that a crash in between has it come again.

mod pace;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::task::{Orders, Task};
use crate::github::{Client, Queued, QueuedJob};
use crate::per_pool::PerPool;
use crate::watch::Waker;
use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::model::runner::Job;
use cuda_runner_plan::model::scale_set::{Heard, Listening};

/// What is remembered of one scale set's jobs that wait, in bytes: some four hundred jobs as people name them.
const MOST_OF_NAMED: usize = 128 << 10;

/// Who listens, and for whom.
pub struct ListenerConfig {
    /// The way to GitHub.
    pub client: Arc<Client>,
    /// Changes with the address, the credentials and the certificate authorities.
    pub identity: String,
    /// The scale set.
    pub set: u64,
    /// The pool, which is woken.
    pub pool: PoolKey,
    /// Wakes it.
    pub waker: Arc<Waker>,
    /// Who says so to GitHub.
    pub owner: String,
}

/// A task that listens. It ends when this is dropped; its session stays until it is closed.
pub struct Listener {
    /// The way to GitHub; none where nobody listens, in tests.
    client: Option<Arc<Client>>,
    set: u64,
    identity: String,
    capacity: watch::Sender<usize>,
    acted_on: watch::Sender<u64>,
    stored: watch::Sender<Option<String>>,
    received: Arc<Mutex<Received>>,
    task: AbortHandle,
}

/// What was heard.
#[derive(Default)]
struct Received {
    heard: Heard,
    /// Runners whose job has ended.
    completed: BTreeSet<String>,
    /// What runners have or had to do, by their names.
    jobs: BTreeMap<String, Job>,
    /// Jobs that wait for a runner, by their numbers.
    queued: BTreeMap<i64, Queued>,
    /// Those of them that are known by more than a number.
    named: BTreeMap<i64, QueuedJob>,
    /// When the scale set was found to have vanished.
    gone: Option<Timestamp>,
}

impl Received {
    /// Takes in which jobs wait, of which no more than `most` are remembered. What a message has missed is corrected by the
    /// numbers that each one repeats.
    fn queue(&mut self, news: Vec<(i64, Queued)>, most: usize) {
        for (job, queued) in news {
            if queued == Queued::Over {
                self.queued.remove(&job);
            } else if self.queued.len() < most || self.queued.contains_key(&job) {
                self.queued.insert(job, queued);
            }
        }
        if let Some(statistics) = self.heard.statistics {
            let all_run = statistics.assigned <= statistics.running;
            self.queued.retain(|_, queued| match queued {
                Queued::Available(_) => statistics.available > 0,
                Queued::Assigned(_) => !all_run,
                Queued::Over => false,
            });
        }
        let since = self.queued.values().filter_map(|queued| match queued {
            Queued::Available(since) | Queued::Assigned(since) => Some(*since),
            Queued::Over => None,
        });
        self.heard.oldest = since.min();
    }

    /// Takes in what the jobs that wait are called, as far as there is room.
    fn name(&mut self, jobs: Vec<(i64, QueuedJob)>) {
        self.named.retain(|id, _| self.queued.contains_key(id));
        let kept = self.named.values().map(QueuedJob::size).sum();
        let mut room = MOST_OF_NAMED.saturating_sub(kept);
        for (id, job) in jobs {
            let length = job.size();
            let is_new = self.queued.contains_key(&id) && !self.named.contains_key(&id);
            if is_new && length <= room {
                room = room.saturating_sub(length);
                self.named.insert(id, job);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Starts to listen. `left_over` is a session of ours that may be open still.
    #[must_use]
    pub fn start(config: ListenerConfig, capacity: usize, left_over: Option<String>) -> Self {
        let (capacity, capacities) = watch::channel(capacity);
        let (acted_on, acts) = watch::channel(0);
        let (stored, sessions) = watch::channel(None);
        let received = Arc::new(Mutex::new(Received::default()));
        let (set, identity) = (config.set, config.identity.clone());
        let client = Some(Arc::clone(&config.client));
        let orders = Orders {
            capacities,
            acts,
            sessions,
        };
        let task = Task::new(config, orders, Arc::clone(&received), left_over);
        Self {
            client,
            set,
            identity,
            capacity,
            acted_on,
            stored,
            received,
            task: tokio::spawn(task.run()).abort_handle(),
        }
    }

    /// Ends the listening, and the session with it. One that cannot be ended now runs out.
    pub async fn close(self, pool: &PoolKey) {
        self.task.abort();
        let session = lock(&self.received).heard.session.clone();
        let Some((client, session)) = self.client.as_ref().zip(session) else {
            return;
        };
        if let Err(error) = client.close_session(self.set, &session).await {
            tracing::info!(%pool, %error, "a session was left open");
        }
    }

    /// Whether the task still listens. It ends by itself for a mistake of ours, or with its scale set.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.gone().is_none() && !self.task.is_finished()
    }

    /// Has GitHub assign so many jobs at a time, from the next poll on, which begins at once.
    pub fn advertise(&self, capacity: usize) {
        self.capacity.send_if_modified(|now| {
            let changes = *now != capacity;
            *now = capacity;
            changes
        });
    }

    /// What was heard up to this number was acted on.
    pub fn acted_on(&self, number: u64) {
        self.acted_on.send_replace(number);
    }

    /// This session's name is in the status, so that a successor can end it: jobs may be assigned in it.
    pub fn stored(&self, session: &str) {
        self.stored.send_replace(Some(session.to_owned()));
    }

    /// The scale set.
    #[must_use]
    pub fn set(&self) -> u64 {
        self.set
    }

    /// What was heard, and the runners whose job has ended by then.
    #[must_use]
    pub fn snapshot(&self) -> (Listening, BTreeSet<String>) {
        let received = lock(&self.received);
        let listening = Listening {
            set: self.set,
            capacity: *self.capacity.borrow(),
            heard: received.heard.clone(),
        };
        (listening, received.completed.clone())
    }

    /// When its scale set was found to have vanished.
    #[must_use]
    pub fn gone(&self) -> Option<Timestamp> {
        lock(&self.received).gone
    }

    /// The job that GitHub has given a runner, where it has reported.
    #[must_use]
    pub fn job_of(&self, runner: &str) -> Option<Job> {
        lock(&self.received).jobs.get(runner).cloned()
    }

    /// The jobs that wait for a runner and that are known by name.
    #[must_use]
    pub fn waiting(&self) -> Vec<QueuedJob> {
        lock(&self.received).named.values().cloned().collect()
    }

    /// Forgets what was heard of runners that are gone.
    pub fn keep(&self, is_there: impl Fn(&String) -> bool) {
        let mut received = lock(&self.received);
        received.completed.retain(&is_there);
        received.jobs.retain(|name, _| is_there(name));
    }
}

/// The listeners of all pools. `act` starts, changes and ends them; others only look.
#[derive(Default)]
pub struct Listeners(PerPool<Option<Listener>>);

impl Listeners {
    /// What the pool's listener has heard, and the runners whose job has ended by then; `None` where nobody listens with
    /// the credentials of this identity.
    #[must_use]
    pub fn heard(&self, pool: &Pool, identity: &str) -> Option<(Listening, BTreeSet<String>)> {
        self.look(pool, identity, |listener| {
            listener.listens().then(|| listener.snapshot())
        })
    }

    /// When the scale set was found to have vanished that the pool's listener listened to.
    #[must_use]
    pub fn gone(&self, pool: &Pool, identity: &str) -> Option<Timestamp> {
        self.look(pool, identity, Listener::gone)
    }

    fn look<T>(
        &self,
        pool: &Pool,
        identity: &str,
        look: impl FnOnce(&Listener) -> Option<T>,
    ) -> Option<T> {
        self.with(pool, |listener| {
            listener
                .as_ref()
                .filter(|l| l.identity == identity)
                .and_then(look)
        })
    }

    /// The job that GitHub has given a runner of a pool, where somebody listens for it.
    #[must_use]
    pub fn job_of(&self, pool: &PoolKey, uid: &str, runner: &str) -> Option<Job> {
        let heard = self
            .0
            .of(pool, uid, |listener| listener.as_ref()?.job_of(runner));
        heard.flatten()
    }

    /// The jobs that wait for a pool and that are known by name; `None` where nobody listens for it.
    #[must_use]
    pub fn waiting(&self, pool: &PoolKey, uid: &str) -> Option<Vec<QueuedJob>> {
        let heard = self
            .0
            .of(pool, uid, |listener| Some(listener.as_ref()?.waiting()));
        heard.flatten()
    }

    /// Works on a pool's listener.
    pub fn with<R>(&self, pool: &Pool, work: impl FnOnce(&mut Option<Listener>) -> R) -> R {
        self.0.with(pool, work)
    }

    /// Ends the listening with credentials that are not the pool's any more.
    pub fn keep(&self, pool: &Pool, identity: &str) {
        self.with(pool, |listener| {
            listener.take_if(|l| l.identity != identity);
        });
    }

    /// The listener of a pool, which listens on until it is dropped or closed.
    #[must_use]
    pub fn take(&self, key: &PoolKey) -> Option<Listener> {
        self.0.take(key).flatten()
    }

    /// Forgets a pool, and ends its listening.
    pub fn forget(&self, key: &PoolKey) {
        self.0.forget(key);
    }
}

fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    // Plain values, none of them half-written.
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
