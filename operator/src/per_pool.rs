//! What is kept of each pool: by its name and its uid, so that a namesake starts afresh.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cuda_runner_plan::model::pool::{Pool, PoolKey};

/// A value for each pool. They are boxed: up to half of a table's places are empty.
#[derive(Default)]
pub struct PerPool<T>(Mutex<HashMap<PoolKey, Box<OfUid<T>>>>);

/// The value of the resource with this uid.
struct OfUid<T> {
    uid: String,
    value: T,
}

impl<T: Default> PerPool<T> {
    /// Works on a pool's value. `work` must be short: others wait.
    pub fn with<R>(&self, pool: &Pool, work: impl FnOnce(&mut T) -> R) -> R {
        let mut pools = self.lock();
        let fresh = || {
            Box::new(OfUid {
                uid: pool.uid.clone(),
                value: T::default(),
            })
        };
        let kept = pools.entry(pool.key.clone()).or_insert_with(fresh);
        if kept.uid != pool.uid {
            *kept = fresh();
        }
        work(&mut kept.value)
    }

    /// Looks at what is kept of a resource, if anything is.
    pub fn of<R>(&self, key: &PoolKey, uid: &str, look: impl FnOnce(&T) -> R) -> Option<R> {
        let pools = self.lock();
        let kept = pools.get(key).filter(|kept| kept.uid == uid)?;
        Some(look(&kept.value))
    }

    /// Takes out what is kept of a pool.
    pub fn take(&self, key: &PoolKey) -> Option<T> {
        self.lock().remove(key).map(|kept| kept.value)
    }

    /// Forgets a pool.
    pub fn forget(&self, key: &PoolKey) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PoolKey, Box<OfUid<T>>>> {
        // A panic elsewhere leaves whole values behind, none of them half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;

    #[test]
    fn a_namesake_starts_afresh() {
        let kept = PerPool::<u32>::default();
        let mut pool = fixture::pool(1);
        kept.with(&pool, |count| *count = 1);
        assert_eq!(kept.of(&pool.key, &pool.uid, |count| *count), Some(1));

        // When another resource has its name
        pool.uid = "another".to_owned();
        assert_eq!(kept.of(&pool.key, &pool.uid, |count| *count), None);
        assert_eq!(kept.with(&pool, |count| *count), 0);

        // And nothing is kept of one that is gone
        kept.forget(&pool.key);
        assert_eq!(kept.of(&pool.key, &pool.uid, |count| *count), None);
    }
}
