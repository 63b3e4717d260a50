//! Who has had what: one registration for each pod, and so many requests a minute for each pool.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::PoolKey;

/// A pod that has had its registration is remembered for this long: its token ends sooner, and its gate long before.
const REMEMBERED: Duration = Duration::from_hours(24);

/// The registrar's memory. A restart empties it: the pods' deadlines and GitHub's own rules stand behind it.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    pods: HashMap<String, Entry>,
    pools: HashMap<PoolKey, Bucket>,
    tidied: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Entry {
    UnderWay,
    Done(Instant),
}

/// Requests that a pool has left.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Whether a pod may be registered.
#[derive(Debug)]
pub(super) enum Claim {
    /// Yes, and nobody else for it meanwhile.
    Granted(Granted),
    /// Another request of this pod is being answered.
    UnderWay,
    /// It has had its registration.
    Done,
}

/// The right to register a pod; given back when dropped.
#[derive(Debug)]
pub(super) struct Granted {
    ledger: Arc<Ledger>,
    uid: String,
    done: bool,
}

impl Granted {
    /// The pod has its registration.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        let mut entries = self.ledger.lock();
        if self.done {
            entries
                .pods
                .insert(self.uid.clone(), Entry::Done(Instant::now()));
        } else {
            entries.pods.remove(&self.uid);
        }
    }
}

impl Ledger {
    /// Asks to register the pod with this uid.
    pub(super) fn claim(self: &Arc<Self>, uid: &str) -> Claim {
        let mut entries = self.lock();
        entries.tidy();
        match entries.pods.get(uid) {
            Some(Entry::UnderWay) => Claim::UnderWay,
            Some(Entry::Done(_)) => Claim::Done,
            None => {
                entries.pods.insert(uid.to_owned(), Entry::UnderWay);
                Claim::Granted(Granted {
                    ledger: Arc::clone(self),
                    uid: uid.to_owned(),
                    done: false,
                })
            }
        }
    }

    /// Takes one request from what the pool may ask: `burst` at once, `per_minute` in the long run. `Err` says when the
    /// next is free.
    pub(super) fn take(&self, pool: &PoolKey, burst: u32, per_minute: u32) -> Result<(), Duration> {
        let now = Instant::now();
        let rate = f64::from(per_minute) / 60.0;
        let mut entries = self.lock();
        let bucket = entries.pools.entry(pool.clone()).or_insert(Bucket {
            left: f64::from(burst),
            at: now,
        });
        bucket.left = f64::from(burst).min(bucket.left + rate * (now - bucket.at).as_secs_f64());
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Duration::try_from_secs_f64((1.0 - bucket.left) / rate)
                .unwrap_or(Duration::from_mins(1)));
        }
        bucket.left -= 1.0;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Forgets what is of no more use, once an hour.
    fn tidy(&mut self) {
        let now = Instant::now();
        if self
            .tidied
            .is_some_and(|at| now - at < Duration::from_hours(1))
        {
            return;
        }
        self.tidied = Some(now);
        self.pods.retain(|_, entry| match entry {
            Entry::UnderWay => true,
            Entry::Done(at) => now - *at < REMEMBERED,
        });
        self.pools
            .retain(|_, bucket| now - bucket.at < Duration::from_hours(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_registered_once() {
        let ledger = Arc::new(Ledger::default());
        let Claim::Granted(first) = ledger.claim("u") else {
            panic!("not granted")
        };
        assert!(matches!(ledger.claim("u"), Claim::UnderWay));
        drop(first);
        let Claim::Granted(second) = ledger.claim("u") else {
            panic!("a failed attempt was not given back")
        };
        second.done();
        assert!(matches!(ledger.claim("u"), Claim::Done));
        tokio::time::advance(REMEMBERED + Duration::from_hours(2)).await;
        assert!(
            matches!(ledger.claim("u"), Claim::Granted(_)),
            "it is remembered for ever"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_has_a_burst_and_then_a_rate() {
        let ledger = Ledger::default();
        let pool = |name: &str| PoolKey {
            namespace: "ci".into(),
            name: name.into(),
        };
        for _ in 0..3 {
            ledger.take(&pool("a"), 3, 60).unwrap();
        }
        let wait = ledger.take(&pool("a"), 3, 60).unwrap_err();
        assert!(
            wait <= Duration::from_secs(1) && wait > Duration::ZERO,
            "{wait:?}"
        );
        ledger.take(&pool("b"), 3, 60).unwrap();
        tokio::time::advance(wait).await;
        ledger.take(&pool("a"), 3, 60).unwrap();
    }
}
