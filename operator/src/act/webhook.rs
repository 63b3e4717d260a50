//! Changes of a pool's webhook. What came of one is the pool's to tell, at its next reconcile.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Done, Executor};
use crate::error::ActError;
use crate::github::{Client, Error};
use crate::memory::Unremoved;
use crate::observe::github::client_at;
use crate::observe::webhook::secret_of;
use cuda_runner_plan::model::webhook::Written;

impl Executor<'_> {
    pub(super) async fn create_webhook(&self, url: &str) -> Result<Done, ActError> {
        let Some((secret, version)) = secret_of(self.ctx, self.pool).await else {
            return Ok(Done::Yes);
        };
        let made = self.github()?.create_hook(url, &secret).await;
        if made.is_ok() {
            tracing::info!(pool = %self.pool.key, url, "made a webhook");
        }
        Ok(self.note_webhook(url, made, version))
    }

    pub(super) async fn update_webhook(&self, id: u64, url: &str) -> Result<Done, ActError> {
        let Some((secret, version)) = secret_of(self.ctx, self.pool).await else {
            return Ok(Done::Yes);
        };
        let changed = self.github()?.update_hook(id, url, &secret).await;
        Ok(self.note_webhook(url, changed, version))
    }

    fn note_webhook(&self, url: &str, done: Result<(), Error>, version: String) -> Done {
        let (now, uid, url) = (Timestamp::now(), &self.pool.uid, url.to_owned());
        self.ctx.memory.with(self.pool, |memory| {
            memory.hook.writes();
            match done {
                Ok(()) => memory.hook.written(Written { url, version }),
                Err(error) => memory.hook.failed(&error, uid, now),
            }
        });
        Done::Yes
    }

    /// Removes the one that delivers to this address.
    pub(super) async fn remove_webhook(&self, address: &str, url: &str) -> Result<Done, ActError> {
        let here = self.client.as_ref();
        let here = here.filter(|client| client.url().to_string() == address);
        let client = match here {
            Some(client) => Ok(Arc::clone(client)),
            None => client_at(self.ctx, self.pool, address).await,
        };
        let removed = match client {
            Ok(client) => remove(&client, url).await.map_err(Unremoved::Failed),
            Err(why) => Err(Unremoved::NotAsked(why)),
        };
        let (now, uid) = (Timestamp::now(), &self.pool.uid);
        self.ctx.memory.with(self.pool, |memory| {
            memory.hook.removed(url, removed, uid, now);
        });
        Ok(Done::Yes)
    }
}

async fn remove(client: &Client, url: &str) -> Result<(), Error> {
    match client.find_hook(url).await? {
        Some(hook) => client.delete_hook(hook.id).await,
        None => Ok(()),
    }
}
