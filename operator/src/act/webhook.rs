//! Changes of a pool's webhook. What came of one is the pool's to tell, at its next reconcile.

use jiff::Timestamp;

use super::{Done, Executor};
use crate::error::ActError;
use crate::github::Error;
use crate::observe::github::client_at;
use crate::observe::webhook::secret_of;

impl Executor<'_> {
    pub(super) async fn create_webhook(&self, url: &str) -> Result<Done, ActError> {
        let Some((secret, version)) = secret_of(self.ctx, self.pool).await else {
            return Ok(Done::Yes);
        };
        let made = self.github()?.create_hook(url, &secret).await;
        if made.is_ok() {
            tracing::info!(pool = %self.pool.key, url, "made a webhook");
        }
        Ok(self.note_webhook(made, version))
    }

    pub(super) async fn update_webhook(&self, id: u64, url: &str) -> Result<Done, ActError> {
        let Some((secret, version)) = secret_of(self.ctx, self.pool).await else {
            return Ok(Done::Yes);
        };
        let changed = self.github()?.update_hook(id, url, &secret).await;
        Ok(self.note_webhook(changed, version))
    }

    fn note_webhook(&self, written: Result<(), Error>, version: String) -> Done {
        let (now, uid) = (Timestamp::now(), &self.pool.uid);
        self.ctx.memory.with(self.pool, |memory| match written {
            Ok(()) => memory.hook.written(version),
            Err(error) => memory.hook.failed(&error, uid, now),
        });
        Done::Yes
    }

    /// Removes the one that delivers to this address. Where none may be seen, none of ours was made.
    pub(super) async fn remove_webhook(&self, address: &str, url: &str) -> Result<Done, ActError> {
        let spec = self.pool.spec.as_ref();
        let client = if spec.is_ok_and(|spec| spec.url.to_string() == address) {
            self.client.clone()
        } else {
            client_at(self.ctx, self.pool, address).await.ok()
        };
        let client = client.ok_or(ActError::NoClient)?;
        let removed = match client.find_hook(url).await {
            Ok(Some(hook)) => client.delete_hook(hook.id).await,
            Ok(None) => Ok(()),
            Err(error) if !error.is_transient() => Ok(()),
            Err(error) => Err(error),
        };
        let (now, uid) = (Timestamp::now(), &self.pool.uid);
        self.ctx.memory.with(self.pool, |memory| match removed {
            Ok(()) => memory.hook.removed(url),
            Err(error) => memory.hook.failed(&error, uid, now),
        });
        Ok(Done::Yes)
    }
}
