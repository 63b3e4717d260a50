//! What every connection shares: the state under its lock, and the news that it has changed.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{engine, openapi::Description, state::World};

/// What every connection shares.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    changed: watch::Sender<()>,
    pub(crate) description: Description,
}

impl Shared {
    pub(crate) fn new(world: World, description: Description) -> Self {
        Self {
            world: Mutex::new(world),
            changed: watch::Sender::new(()),
            description,
        }
    }

    /// The state, locked: never held across an await.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        // A panic elsewhere is reported elsewhere; the state stays readable for the post-mortem.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody who waits for a change.
    pub(crate) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Hears of changes from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Asks `look` after each change until it has an answer; none when the time is over.
    pub(crate) async fn wait<T, F>(&self, limit: Duration, mut look: F) -> Option<T>
    where
        F: FnMut(&mut World) -> Option<T> + Send,
    {
        let mut changes = self.changes();
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        loop {
            let found = {
                let mut world = self.world();
                let now = world.now();
                if engine::pump(&mut world, now) {
                    self.notify();
                }
                look(&mut world)
            };
            if found.is_some() {
                return found;
            }
            tokio::select! {
                () = &mut deadline => return None,
                changed = changes.changed() => changed.ok()?,
            }
        }
    }
}
