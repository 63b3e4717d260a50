//! Changes of a pool's scale set. What came of one is the pool's to tell, at its next reconcile.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Done, Executor};
use crate::context::Context;
use crate::error::ActError;
use crate::github::{Error, NewScaleSet, ScaleSet};
use crate::listen::{Listener, ListenerConfig};
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::runner::Runner;
use cuda_runner_plan::model::scale_set::Known;

/// Has the messages acknowledged that were acted on, and what was heard of runners that are gone forgotten.
pub(super) fn acknowledge(ctx: &Context, pool: &Pool, set: u64, number: u64) {
    let mut runners: BTreeSet<String> = ctx.pods.vanished(&pool.key).into_iter().collect();
    ctx.memory.with(pool, |memory| {
        // Those that were seen when this was decided on, not those that are there by now.
        runners.extend(memory.known.keys().chain(memory.expected.keys()).cloned());
    });
    ctx.listeners.with(pool, |listener| {
        if let Some(listener) = listener.as_ref().filter(|l| l.set() == set) {
            listener.acted_on(number);
            listener.keep(|name| runners.contains(name));
        }
    });
}

/// Tells the listener that the status names this session.
pub(super) fn stored(ctx: &Context, pool: &Pool, session: &str) {
    ctx.listeners.with(pool, |listener| {
        if let Some(listener) = listener {
            listener.stored(session);
        }
    });
}

impl Executor<'_> {
    pub(super) async fn create_scale_set(&self, new: &NewScaleSet) -> Result<Done, ActError> {
        let made = self.github()?.create_scale_set(new).await;
        if let Ok(set) = &made {
            tracing::info!(pool = %self.pool.key, set = set.id, name = set.name, "made a scale set");
        }
        self.read_again(made, new).await
    }

    pub(super) async fn update_scale_set(
        &self,
        id: u64,
        new: &NewScaleSet,
    ) -> Result<Done, ActError> {
        let changed = self.github()?.update_scale_set(id, new).await;
        self.read_again(changed, new).await
    }

    /// What an answer says of labels may be what was asked for; what is there may be less.
    async fn read_again(
        &self,
        written: Result<ScaleSet, Error>,
        asked: &NewScaleSet,
    ) -> Result<Done, ActError> {
        let github = self.github()?;
        let read = async {
            let set = written?;
            Ok(github.scale_set(set.id).await?.unwrap_or(set))
        };
        Ok(self.note(read.await.map(Known::Present), Some(asked.clone())))
    }

    /// Removes it where nothing is lost by that, as GitHub and the registrar's books say now.
    pub(super) async fn delete_unused_scale_set(&self, id: u64) -> Result<Done, ActError> {
        let runners = self.ctx.pods.of(&self.pool.key, &self.pool.uid);
        let now = Timestamp::now();
        let may_be_registered = |r: &Runner| {
            let books = &self.ctx.ledger;
            books.is_under_way(&r.uid) || books.is_registered(&r.uid) == Some(true)
        };
        let is_used =
            runners.iter().any(may_be_registered) || !self.github()?.is_unused(id).await?;
        // Whatever comes of it, it is not tried again at once.
        self.ctx.memory.with(self.pool, |memory| {
            memory.github.scale_set.remade = Some(now);
        });
        if is_used {
            return Ok(Done::Yes);
        }
        self.delete_scale_set(id).await
    }

    pub(super) async fn delete_scale_set(&self, id: u64) -> Result<Done, ActError> {
        let gone = self.github()?.delete_scale_set(id).await;
        if gone.is_ok() {
            // Whoever listened to it hears nothing any more.
            self.ctx.listeners.with(self.pool, |listener| {
                listener.take_if(|l| l.set() == id);
            });
        }
        Ok(self.note(gone.map(|()| Known::Absent), None))
    }

    /// Removes the one that the pool had at an address that it has left.
    pub(super) async fn delete_scale_set_at(&self, url: &str, id: u64) -> Result<Done, ActError> {
        let place = self.place_of(Some(url)).await?;
        place.client.delete_scale_set(id).await?;
        self.ask_again_at(url);
        Ok(Done::Yes)
    }

    fn note(&self, outcome: Result<Known, Error>, asked: Option<NewScaleSet>) -> Done {
        let now = Timestamp::now();
        self.ctx.memory.with(self.pool, |memory| {
            let set = &mut memory.github.scale_set;
            match outcome {
                Ok(known) => set.written(known, asked),
                Err(error) => set.failed(&error, true, &self.pool.uid, now),
            }
        });
        Done::Yes
    }

    /// Has somebody listen, and tells GitHub how many jobs may be assigned at a time.
    pub(super) fn listen(
        &self,
        set: u64,
        capacity: usize,
        session: Option<String>,
    ) -> Result<Done, ActError> {
        let memory = &self.ctx.memory;
        let identity = memory.with(self.pool, |memory| memory.github.identity.clone());
        self.ctx.listeners.with(self.pool, |listener| {
            let is_right = |l: &&Listener| l.set() == set && l.listens();
            if let Some(listener) = listener.as_ref().filter(is_right) {
                listener.advertise(capacity);
                return Ok(Done::Yes);
            }
            let client = self.client.as_ref().ok_or(ActError::NoClient)?;
            let config = ListenerConfig {
                client: Arc::clone(client),
                identity,
                set,
                pool: self.pool.key.clone(),
                waker: Arc::clone(&self.ctx.waker),
                // The same in every process: what one of them left open is known by it.
                owner: format!("cuda-runner-operator/{}", self.pool.scale_set_name()),
            };
            *listener = Some(Listener::start(config, capacity, session));
            Ok(Done::Yes)
        })
    }

    /// Ends the listening, and the session with it.
    pub(super) async fn stop_listening(&self) -> Result<Done, ActError> {
        let Some(listener) = self.ctx.listeners.with(self.pool, Option::take) else {
            return Ok(Done::Yes);
        };
        listener.close(&self.pool.key).await;
        Ok(Done::Yes)
    }
}
