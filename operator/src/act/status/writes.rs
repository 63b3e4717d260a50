//! Which writes of a pool's status are on their way, and whether the API server may lack one.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard};

/// The writes of one pool's status.
#[derive(Debug, Default)]
pub struct Writes {
    /// Held while one is on its way: of two, the API server could carry out the older one last.
    pub(super) turn: Arc<Mutex<()>>,
    /// The API server may not have the last status.
    pub(super) is_behind: AtomicBool,
    /// The last write beside the reconciles was not carried out: the next one is a reconcile's own, and its error
    /// counts.
    pub(super) has_failed: AtomicBool,
    /// Fields that somebody else has put into the stored status, and that ours does not have.
    stray: std::sync::Mutex<Vec<String>>,
}

impl Writes {
    /// Whether one is on its way.
    #[cfg(test)]
    pub(crate) fn are_under_way(&self) -> bool {
        self.turn.try_lock().is_err()
    }

    /// Waits until none is on its way.
    pub(crate) async fn have_ended(&self) {
        drop(self.turn.lock().await);
    }

    /// The API server has another status than the last one, with these fields beside ours.
    pub(super) fn are_undone(&self, stray: Vec<String>) {
        *self.lock_stray() = stray;
        self.is_behind.store(true, Ordering::SeqCst);
    }

    pub(super) fn stray(&self) -> Vec<String> {
        self.lock_stray().clone()
    }

    fn lock_stray(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.stray.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The API server has the last status.
    pub(super) fn are_done(&self) {
        self.lock_stray().clear();
        self.has_failed.store(false, Ordering::SeqCst);
        self.is_behind.store(false, Ordering::SeqCst);
    }

    /// The turn for a write beside the reconciles; `None` while one is on its way, which then wakes the pool.
    pub(super) fn begin(&self) -> Option<OwnedMutexGuard<()>> {
        // Before the turn is asked for: whoever holds it looks here once it is given back.
        self.is_behind.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let turn = Arc::clone(&self.turn).try_lock_owned().ok()?;
        self.is_behind.store(false, Ordering::SeqCst);
        Some(turn)
    }
}
