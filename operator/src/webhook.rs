//! GitHub's webhooks: who is woken by which, and by which secrets its deliveries are known.
//!
//! A delivery is a wake-up and never a number: whoever is woken reads the queue.

pub mod desk;
pub mod keys;
mod seen;
pub mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use cuda_runner_plan::model::pool::{Pool, Spec};
use cuda_runner_plan::webhook::coalesced;

use keys::Keys;

/// How often the pools are gone through, at most, for a name that is not known.
const LOOK: Duration = Duration::from_secs(1);

/// The path below which GitHub delivers; what follows is the webhook's name.
const PATH: &str = "hooks";

/// Whose webhook it is: that of the pools of one namespace, of one repository, and of one secret. Namespaces share none: what
/// one may know of a webhook would be the other's.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HookName {
    /// The pools' namespace.
    pub namespace: String,
    /// The address of the repository.
    pub address: String,
    /// The Secret that the pools name.
    pub secret: Option<String>,
}

impl HookName {
    /// The webhook of a pool that is to have one.
    #[must_use]
    pub fn of(pool: &Pool, spec: &Spec) -> Option<Self> {
        let webhook = spec.webhook.as_ref()?;
        Some(Self {
            namespace: pool.key.namespace.clone(),
            address: spec.url.to_string(),
            secret: webhook.secret.clone(),
        })
    }

    /// All of it, and of no other.
    fn bytes(&self) -> Vec<u8> {
        let all = (&self.namespace, &self.address, &self.secret);
        // Texts always are JSON.
        serde_json::to_vec(&all).unwrap_or_default()
    }
}

/// What is known of all webhooks.
#[derive(Debug)]
pub struct Webhooks {
    url: String,
    keys: Keys,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    hooks: BTreeMap<String, Hook>,
    looked: Option<Instant>,
}

/// A webhook, and when its pools were last told to read the queue.
#[derive(Debug)]
struct Hook {
    name: HookName,
    last: Option<Timestamp>,
}

impl Webhooks {
    /// Those that are reached at this address.
    #[must_use]
    pub fn new(url: &str, keys: Keys) -> Self {
        Self {
            url: url.trim_end_matches('/').to_owned(),
            keys,
            known: Mutex::default(),
        }
    }

    /// Where GitHub delivers to a webhook.
    #[must_use]
    pub fn address(&self, hook: &HookName) -> String {
        format!("{}/{PATH}/{}", self.url, self.keys.id(hook))
    }

    /// The keys of their secrets.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The webhook of this name, where `all` has it: those that pools have now.
    fn find(&self, id: &str, all: impl FnOnce() -> BTreeSet<HookName>) -> Option<HookName> {
        {
            let mut known = self.known();
            if let Some(hook) = known.hooks.get(id) {
                return Some(hook.name.clone());
            }
            let now = Instant::now();
            if known
                .looked
                .is_some_and(|last| now.duration_since(last) < LOOK)
            {
                return None;
            }
            known.looked = Some(now);
        }
        // Whoever sends what is unknown has this done once in a while, and holds up nobody.
        let hooks: Vec<_> = all()
            .into_iter()
            .map(|name| (self.keys.id(&name), name))
            .collect();
        let mut known = self.known();
        let mut before = std::mem::take(&mut known.hooks);
        known.hooks = hooks
            .into_iter()
            .map(|(id, name)| {
                let last = before.remove(&id).and_then(|hook| hook.last);
                (id, Hook { name, last })
            })
            .collect();
        known.hooks.get(id).map(|hook| hook.name.clone())
    }

    /// When the pools of a webhook read the queue because of an event at `now`.
    fn read_at(&self, id: &str, now: Timestamp) -> Timestamp {
        let mut known = self.known();
        let Some(hook) = known.hooks.get_mut(id) else {
            return now;
        };
        let moment = coalesced(hook.last, now);
        hook.last = Some(moment);
        moment
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
