//! Whose a pool is, where several operators share the cluster: read, judge, act, as for a pool itself.
//!
//! A pool names its operator in its status, and the operator's Lease shows that it lives and what it selects. Before anything
//! else is done for a pool, it is this operator's. See `docs/decisions/0025-a-pool-names-its-operator.md`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cudarunner_crds::{CudaRunner, CudaRunnerSpec, OperatorStatus};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::controller::Action as Next;
use kube::{Api, Client, ResourceExt as _};
use tokio::time::Instant;

use crate::act::owner::{give_back, is_there, take};
use crate::context::Context;
use crate::error::ReconcileError;
use crate::lease::OtherLease;
use crate::selector::{PoolSelector, selects};
use cuda_runner_plan::Notice;
use cuda_runner_plan::model::pool::{Pool, PoolKey};
use cuda_runner_plan::owner::{self, Facts, GIVES_BACK_WITHIN, Other, SETTLES_IN, Standing, judge};
use cuda_runner_plan::teardown::without_finalizer;

/// How often a pool that another operator has is looked at: each new word of that operator's wakes it besides.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A Lease is read once in this time, however many pools name its operator.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// What this process knows of who serves which pool.
pub struct Ownership {
    own: OperatorStatus,
    selector: Option<PoolSelector>,
    client: Client,
    pools: Mutex<HashMap<PoolKey, Known>>,
    leases: tokio::sync::Mutex<HashMap<OperatorStatus, Read>>,
}

/// What is known of a pool.
#[derive(Clone, Debug, Default)]
struct Known {
    uid: String,
    /// Whether this process serves it.
    serves: bool,
    /// Whether it was seen with our finalizer while it was served.
    is_held: bool,
    /// Until when nothing is done for it.
    settles: Option<Instant>,
    /// What was last told of it.
    told: Option<Standing>,
    /// Since when the operator that it names is known not to select it.
    selects_not_since: Option<Timestamp>,
}

/// A pool that this process has served.
struct Served {
    uid: String,
    is_held: bool,
}

/// A Lease as it was last read.
struct Read {
    at: Instant,
    lease: OtherLease,
    word: Option<Word>,
}

/// What a Lease says; `None` of one that could not be read.
#[derive(Clone, Debug)]
struct Word {
    is_held: bool,
    was_held: bool,
    annotations: BTreeMap<String, String>,
}

impl Ownership {
    /// None is known yet. `client` reads Leases.
    #[must_use]
    pub fn new(own: OperatorStatus, selector: Option<PoolSelector>, client: Client) -> Self {
        Self {
            own,
            selector,
            client,
            pools: Mutex::default(),
            leases: tokio::sync::Mutex::default(),
        }
    }

    /// This operator, as pools name it.
    #[must_use]
    pub fn own(&self) -> &OperatorStatus {
        &self.own
    }

    /// Whether other operators serve other pools of the cluster: those that the selector leaves out.
    #[must_use]
    pub fn has_selector(&self) -> bool {
        self.selector.is_some()
    }

    /// Whether the selector takes in a pool with these labels.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.selector
            .as_ref()
            .is_none_or(|selector| selector.matches(labels))
    }

    /// Whether another operator lives, by its Lease: one that cannot be read is no proof that nobody acts.
    pub async fn lives(&self, operator: &OperatorStatus) -> bool {
        let word = self.read(operator).await;
        word.is_none_or(|word| word.is_held || word.was_held)
    }

    /// Forgets a pool; what is known of it if this process has served it.
    fn forget(&self, key: &PoolKey) -> Option<Served> {
        let known = self.lock().remove(key)?;
        let (uid, is_held) = (known.uid, known.is_held);
        known.serves.then_some(Served { uid, is_held })
    }

    /// Works on what is known of a pool.
    fn with<R>(&self, pool: &Pool, work: impl FnOnce(&mut Known) -> R) -> R {
        let mut pools = self.lock();
        let known = pools.entry(pool.key.clone()).or_default();
        if known.uid != pool.uid {
            *known = Known {
                uid: pool.uid.clone(),
                ..Known::default()
            };
        }
        work(known)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PoolKey, Known>> {
        // A panic elsewhere leaves whole values behind, none of them half-written.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the Lease of another operator says, if it can be read.
    async fn read(&self, operator: &OperatorStatus) -> Option<Word> {
        let mut leases = self.leases.lock().await;
        if let Some(read) = leases.get(operator)
            && read.at.elapsed() < READ_AGAIN
        {
            return read.word.clone();
        }
        let api = Api::<Lease>::namespaced(self.client.clone(), &operator.namespace);
        let found = api.get_opt(&operator.name).await;
        let read = leases.entry(operator.clone()).or_insert_with(|| Read {
            at: Instant::now(),
            lease: OtherLease::default(),
            word: None,
        });
        read.at = Instant::now();
        read.word = match found {
            Ok(found) => {
                let (is_held, was_held) = read.lease.see(found.as_ref());
                let annotations = found.map(|mut lease| std::mem::take(lease.annotations_mut()));
                Some(Word {
                    is_held,
                    was_held,
                    annotations: annotations.unwrap_or_default(),
                })
            }
            Err(error) => {
                tracing::warn!(%operator, %error, "the Lease of another operator cannot be read, so its pools are not touched");
                None
            }
        };
        read.word.clone()
    }

    /// What is known of the operator that a pool names.
    async fn other(
        &self,
        pool: &Pool,
        labels: &BTreeMap<String, String>,
        now: Timestamp,
    ) -> Option<Other> {
        let named = pool
            .status
            .operator
            .as_ref()
            .filter(|named| **named != self.own)?;
        let word = self.read(named).await?;
        let selects = selects(&word.annotations, &pool.key.namespace, labels);
        let selects_not_since = self.with(pool, |known| {
            // One that lies ahead is of a clock that was set back since.
            let since = known.selects_not_since.map_or(now, |since| since.min(now));
            known.selects_not_since = (!selects).then_some(since);
            known.selects_not_since
        });
        Some(Other {
            is_held: word.is_held,
            was_held: word.was_held,
            selects,
            selects_not_since,
        })
    }
}

/// Sees to it that a pool is this operator's. `None` when it is; otherwise when to look again.
pub async fn stand(
    ctx: &Context,
    pool: &Pool,
    labels: &BTreeMap<String, String>,
    now: Timestamp,
) -> Result<Option<Next>, ReconcileError> {
    let ownership = &ctx.ownership;
    let named = pool.status.operator.as_ref();
    let standing = judge(
        Facts {
            named,
            own: &ownership.own,
            was_served: pool.finalizer,
            other: ownership.other(pool, labels, now).await,
        },
        now,
    );
    match (standing, named) {
        (Standing::Serve, _) => Ok(serve(ownership, pool)),
        (Standing::Take { settles }, _) => {
            let taken = take(ctx, pool).await;
            taken.map_err(ReconcileError::Owner)?;
            let wait = if settles {
                SETTLES_IN.unsigned_abs()
            } else {
                Duration::ZERO
            };
            ownership.with(pool, |known| {
                // From here on it is given back when the selector takes it in no more.
                known.serves = true;
                known.settles = Some(Instant::now() + wait);
                known.selects_not_since = None;
            });
            if settles {
                ctx.events.publish(pool, &[owner::taken(named)]);
            }
            // The watch shows it, and wakes the pool then.
            Ok(Some(Next::requeue(LOOK_AGAIN)))
        }
        (standing, named) => {
            leave(ctx, pool, standing);
            let notice = named.and_then(|named| owner::notice(standing, named));
            let was_told = ownership.with(pool, |known| known.told.replace(standing));
            if was_told != Some(standing) {
                ctx.events.publish(pool, notice.as_slice());
            }
            Ok(Some(Next::requeue(LOOK_AGAIN)))
        }
    }
}

/// Whether a pool that this operator serves is still its own before anything is done for it, as the watch shows it now: the
/// reconcile may have waited for GitHub meanwhile. One that the watch shows no more is another's to take.
#[must_use]
pub fn may_act(ctx: &Context, pool: &Pool) -> bool {
    shown(ctx, pool).is_some_and(|shown| shown.may_be_of(&ctx.ownership.own))
}

/// Whether the pool's status is still this operator's to write, after it has acted for so long. One that the selector takes in
/// no more is, until another operator could have taken it.
#[must_use]
pub fn may_write(ctx: &Context, pool: &Pool, acted: Duration) -> bool {
    shown(ctx, pool).map_or_else(
        || acted < GIVES_BACK_WITHIN.unsigned_abs(),
        |shown| shown.may_be_of(&ctx.ownership.own),
    )
}

fn shown(ctx: &Context, pool: &Pool) -> Option<Arc<CudaRunner>> {
    let shown = ctx.resource(&pool.key);
    shown.filter(|shown| shown.metadata.uid.as_ref() == Some(&pool.uid))
}

/// Notes that the pool is this operator's; when to look again where nothing is done for it yet.
fn serve(ownership: &Ownership, pool: &Pool) -> Option<Next> {
    ownership.with(pool, |known| {
        known.serves = true;
        known.is_held = pool.finalizer;
        known.told = None;
        let left = known.settles?.duration_since(Instant::now());
        if !left.is_zero() {
            return Some(Next::requeue(left));
        }
        known.settles = None;
        None
    })
}

/// Does nothing any more for a pool that is another's, and knows nothing of it.
fn leave(ctx: &Context, pool: &Pool, standing: Standing) {
    let served = ctx
        .ownership
        .with(pool, |known| std::mem::take(&mut known.serves));
    if served {
        tracing::warn!(pool = %pool.key, ?standing, "another operator serves the pool: this one leaves it alone");
    }
    if let Some(listener) = ctx.listeners.take(&pool.key) {
        let key = pool.key.clone();
        tokio::spawn(async move { listener.close(&key).await });
    }
    ctx.forget(&pool.key);
}

/// What is known of a pool goes with it. One that is still there, and that the selector takes in no more, is given back: no
/// reconcile of it is under way any more.
pub fn gone(ctx: &Arc<Context>, key: PoolKey) {
    let served = ctx.ownership.forget(&key);
    let left = served.as_ref().and_then(|served| left(ctx, &key, served));
    let listener = ctx.listeners.take(&key);
    let writes = ctx.status_writes.take(&key);
    ctx.forget(&key);
    if let Some((pool, notice)) = left {
        tokio::spawn(tell(Arc::clone(ctx), pool, notice));
    }
    let Some(served) = served.filter(|_| ctx.ownership.has_selector()) else {
        return;
    };
    let ctx = Arc::clone(ctx);
    tokio::spawn(async move {
        if let Some(listener) = listener {
            listener.close(&key).await;
        }
        // A status that is being written is the last one.
        if let Some(writes) = writes {
            writes.have_ended().await;
        }
        give_back(&ctx, &key, &served.uid).await;
    });
}

/// What is left of a pool whose finalizer this process has not taken off, though it was there.
fn left(ctx: &Context, key: &PoolKey, served: &Served) -> Option<(Pool, Notice)> {
    let known = ctx.memory.of(key, &served.uid, |memory| {
        let status = memory.status.clone();
        status.filter(|_| !memory.lets_go && served.is_held)
    });
    let mut resource = CudaRunner::new(&key.name, CudaRunnerSpec::default());
    resource.metadata.namespace = Some(key.namespace.clone());
    resource.metadata.uid = Some(served.uid.clone());
    resource.status = Some(known??);
    // Its spec is gone, and says nothing of what was made.
    let pool = Pool::read(&resource, false);
    let notice = without_finalizer(&pool)?;
    Some((pool, notice))
}

/// Says what stays of a pool that is gone. To the watch, one that the selector takes in no more is gone, too.
async fn tell(ctx: Arc<Context>, pool: Pool, notice: Notice) {
    match is_there(&ctx, &pool.key, &pool.uid).await {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!(pool = %pool.key, note = notice.note, "a pool is gone that was not let go");
            ctx.events.publish(&pool, &[notice]);
        }
        Err(error) => {
            tracing::warn!(pool = %pool.key, %error, note = notice.note, "a pool may be gone that was not let go");
        }
    }
}

#[cfg(test)]
mod tests;
