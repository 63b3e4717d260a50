//! The status: written when its meaning changed, never on time alone.
//!
//! What later reconciles act upon is written before the reconcile ends. What is only shown is written beside the
//! reconciles, so that an answer that comes late holds up none.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use cudarunner_crds::{CudaRunner, CudaRunnerStatus, JobStatus, RunnerPhase};
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource as _};
use serde_json::{Map, Value, json};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::{Outcome, scale_set};
use crate::context::{CONTROLLER, Context};
use crate::error::ReconcileError;
use crate::metrics::News;
use crate::watch::Waker;
use cuda_runner_plan::model::key::PoolKey;
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::time::Shift as _;
use cuda_runner_plan::reason::Reason;
use cuda_runner_plan::{Notice, Plan, Recorded};

pub mod writes;
use writes::Writes;

/// Changes of mere counts are gathered for this long, so that runners that come and go cost a pool one write and not
/// one each.
const GATHER: SignedDuration = SignedDuration::from_secs(5);
/// The same while jobs end one after another: then each runner has its share of the writes and of their cost.
const GATHER_JOBS: SignedDuration = SignedDuration::from_secs(30);
/// The same where jobs are few, and where other operators go by it: who is busy, and what is wanted, is shown almost at once.
const GATHER_BUSY: SignedDuration = SignedDuration::from_secs(2);
/// For so long after a job's end another one is expected.
const JOBS: SignedDuration = SignedDuration::from_mins(1);

/// So long after our last write the watch shows it.
const SHOWN: SignedDuration = SignedDuration::from_secs(30);
/// That the CRD is too old is said again after this time, while it is.
const SAY_AGAIN: SignedDuration = SignedDuration::from_mins(10);

/// Whether a status is to be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Write {
    /// Nothing has changed.
    No,
    /// Only counts have changed, and the last write is recent.
    In(SignedDuration),
    /// Now.
    Now,
}

/// Decides on a write.
#[must_use]
pub fn decide(
    old: &CudaRunnerStatus,
    new: &CudaRunnerStatus,
    written: Option<Timestamp>,
    now: Timestamp,
) -> Write {
    if old == new {
        return Write::No;
    }
    let meaning_changed = old.conditions != new.conditions
        || old.last_failures != new.last_failures
        || old.observed_generation != new.observed_generation
        || old.registered_at != new.registered_at
        || old.left_at != new.left_at
        || old.looked_again != new.looked_again
        || old.released != new.released
        || old.scale_set != new.scale_set
        || old.webhook != new.webhook
        || old.verification != new.verification
        || old.reruns != new.reruns
        || old.required_checks != new.required_checks
        || old.stale_labels != new.stale_labels
        || old.quarantine != new.quarantine;
    let wait = written.map_or(SignedDuration::ZERO, |at| {
        at.after(gather(old, new, now)).duration_since(now)
    });
    if meaning_changed || !wait.is_positive() {
        Write::Now
    } else {
        Write::In(wait)
    }
}

/// For how long changes of mere counts are gathered.
fn gather(old: &CudaRunnerStatus, new: &CudaRunnerStatus, now: Timestamp) -> SignedDuration {
    let has_jobs = |status: &CudaRunnerStatus| {
        let last = status.last_jobs.first().map(|job| job.finished_at.0);
        last.is_some_and(|end| now < end.after(JOBS))
    };
    // Other operators wait for it.
    if old.demand != new.demand {
        return GATHER_BUSY;
    }
    // The job that ends after a quiet time is no sign of others.
    if has_jobs(old) {
        GATHER_JOBS
    } else if old.busy != new.busy || !busy(old).eq(busy(new)) {
        GATHER_BUSY
    } else if has_jobs(new) {
        GATHER_JOBS
    } else {
        GATHER
    }
}

/// The runners that are shown as busy.
fn busy(status: &CudaRunnerStatus) -> impl Iterator<Item = &str> {
    let runners = status.runners.iter();
    let busy = runners.filter(|runner| runner.phase == RunnerPhase::Busy);
    busy.map(|runner| runner.name.as_str())
}

/// Whether what differs is only shown: no later reconcile depends on its being stored, and after a restart it is found
/// out again. A field that is not named here must be stored before anything is done because of it.
fn is_only_shown(old: &CudaRunnerStatus, new: &CudaRunnerStatus) -> bool {
    let shown = CudaRunnerStatus {
        replicas: new.replicas,
        pending: new.pending,
        gated: new.gated,
        online: new.online,
        busy: new.busy,
        failed: new.failed,
        queued: new.queued,
        runners: new.runners.clone(),
        runners_not_listed: new.runners_not_listed,
        demand: new.demand.clone(),
        conditions: new.conditions.clone(),
        ..old.clone()
    };
    shown == *new
}

/// Writes a plan's status, and then tells what it holds for the first time.
pub async fn record(
    ctx: &Context,
    pool: &Pool,
    plan: &mut Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> Result<Recorded, ReconcileError> {
    if outcome.lets_go {
        if outcome.errors.is_empty() {
            ctx.events.publish(pool, &plan.news);
        }
        return Ok(Recorded::LetGo);
    }
    let news = News::of(pool, plan);
    let status = std::mem::take(&mut plan.status);
    let set = status.scale_set.as_ref();
    let session = set.and_then(|set| set.session.clone());
    let later = write(ctx, pool, status, now).await;
    let later = later.map_err(|error| {
        say_of_old_crd(ctx, pool, &error, now);
        ReconcileError::Status(error)
    })?;
    // Only counts are ever written later.
    if let Some(session) = session {
        scale_set::stored(ctx, pool, &session);
    }
    if let Some(wait) = later {
        return Ok(Recorded::In(wait));
    }
    let (told, failures) = (
        std::mem::take(&mut plan.told),
        std::mem::take(&mut plan.failures),
    );
    ctx.memory.with(pool, |memory| {
        memory.told = Some(told);
        memory.failures = failures;
    });
    ctx.metrics.learned(&pool.key, &news);
    plan.watched_jobs
        .iter()
        .for_each(|job| log_usage(pool, job));
    ctx.events.publish(pool, &plan.news);
    Ok(Recorded::Now)
}

/// Says that the CRD is older than the operator, where no status is stored because of that. The status cannot say it.
fn say_of_old_crd(ctx: &Context, pool: &Pool, error: &kube::Error, now: Timestamp) {
    let Some(field) = undeclared(error) else {
        return;
    };
    let is_due = ctx.memory.with(pool, |memory| {
        let last = memory.said_of_crd;
        let is_due = last.is_none_or(|last| now >= last.after(SAY_AGAIN));
        memory.said_of_crd = if is_due { Some(now) } else { last };
        is_due
    });
    if is_due {
        let note = format!(
            "The CRD in this cluster has no field {field}: it is older than the operator. Until it is upgraded no status of this pool is stored, and finished pods stay; upgrade the chart cuda-runner-operator-crds to the operator's release"
        );
        let notice = Notice {
            warning: true,
            reason: Reason::CrdTooOld.into(),
            note,
            about: None,
        };
        ctx.events.publish(pool, &[notice]);
    }
}

/// The field that the API server does not find in the CRD, in its words.
fn undeclared(error: &kube::Error) -> Option<&str> {
    let kube::Error::Api(said) = error else {
        return None;
    };
    let (before, _) = said.message.split_once(": field not declared in schema")?;
    before.rsplit(char::is_whitespace).next()
}

/// What a job's GPUs did, once.
fn log_usage(pool: &Pool, job: &JobStatus) {
    tracing::info!(
        pool = %pool.key,
        runner = job.runner,
        job = job.job,
        workflow = job.workflow,
        repository = job.repository,
        run = job.run_id,
        gpu = %serde_json::to_string(&job.gpu).unwrap_or_default(),
        "what the GPUs did during a job"
    );
}

/// Has our status written again where the watch shows another one: somebody has edited it, or a backup was restored over it.
/// Each version of the resource is compared once, so that a field that somebody else adds for ever is no reason to write for
/// ever.
pub fn compare(ctx: &Context, pool: &Pool, own: &CudaRunnerStatus, now: Timestamp) {
    let is_new = ctx.memory.with(pool, |memory| {
        let is_settled = memory
            .status_written
            .is_some_and(|at| now >= at.after(SHOWN));
        let is_new = is_settled && memory.compared != pool.resource_version;
        if is_new {
            memory.compared.clone_from(&pool.resource_version);
        }
        is_new
    });
    if !is_new {
        return;
    }
    let shown = pool.foreign.as_deref().unwrap_or(&pool.status);
    let (shown, own) = (fields(shown), fields(own));
    if shown == own {
        return;
    }
    tracing::warn!(pool = %pool.key, "the status is not the one that was written, and is written again");
    let is_stray = |name: &&String| pool.foreign.is_some() || !own.contains_key(*name);
    let stray = shown.keys().filter(is_stray).cloned().collect();
    let writes = ctx.status_writes.with(pool, |writes| Arc::clone(writes));
    writes.are_undone(stray);
}

/// A status as it is stored, without what others write. Stored times have no fractions of seconds: only as JSON are they equal.
fn fields(status: &CudaRunnerStatus) -> Map<String, Value> {
    let Value::Object(mut fields) = json!(status) else {
        return Map::new();
    };
    fields.remove("operator");
    fields
}

/// Writes the status if it is due; otherwise says when it will be.
async fn write(
    ctx: &Context,
    pool: &Pool,
    new: CudaRunnerStatus,
    now: Timestamp,
) -> Result<Option<SignedDuration>, kube::Error> {
    let written = ctx.memory.with(pool, |memory| memory.status_written);
    let writes = ctx.status_writes.with(pool, |writes| Arc::clone(writes));
    if !writes.is_behind.load(Ordering::SeqCst) {
        match decide(&pool.status, &new, written, now) {
            Write::No => return Ok(None),
            // What is gathered for longer than a pool lives is told to nobody.
            Write::In(wait) if pool.deleting.is_none() => return Ok(Some(wait)),
            Write::In(_) | Write::Now => {}
        }
    }
    let target = Target {
        client: ctx.client.clone(),
        key: pool.key.clone(),
        uid: pool.uid.clone(),
        turns: Arc::clone(&ctx.status_turns),
    };
    let foreign = pool.foreign.as_deref().map(fields);
    let foreign = foreign.map(|fields| fields.into_iter().map(|(name, _)| name).collect());
    let stray: Vec<String> = foreign.unwrap_or_else(|| writes.stray());
    if pool.deleting.is_some()
        || !stray.is_empty()
        || writes.has_failed.load(Ordering::SeqCst)
        || !is_only_shown(&pool.status, &new)
    {
        let _turn = writes.turn.lock().await;
        // Without an answer it may have been carried out.
        writes.is_behind.store(true, Ordering::SeqCst);
        if !stray.is_empty() {
            target.clear(stray).await?;
        }
        target.put(&new).await?;
        writes.are_done();
    } else if let Some(turn) = writes.begin() {
        let waker = Arc::clone(&ctx.waker);
        tokio::spawn(write_beside(target, new.clone(), writes, turn, waker));
    }
    ctx.memory.with(pool, |memory| {
        memory.status = Some(new);
        memory.status_written = Some(now);
    });
    Ok(None)
}

/// Writes what is only shown. The pool is reconciled again where that fails, or where there is a newer status by then.
async fn write_beside(
    target: Target,
    status: CudaRunnerStatus,
    writes: Arc<Writes>,
    turn: OwnedMutexGuard<()>,
    waker: Arc<Waker>,
) {
    if let Err(error) = target.put(&status).await {
        tracing::warn!(pool = %target.key, %error, "a status was not written, and is tried again");
        writes.has_failed.store(true, Ordering::SeqCst);
        writes.is_behind.store(true, Ordering::SeqCst);
    }
    drop(turn);
    fence(Ordering::SeqCst);
    if writes.is_behind.load(Ordering::SeqCst) {
        waker.wake(&target.key);
    }
}

/// Whose status is written.
struct Target {
    client: Client,
    key: PoolKey,
    uid: String,
    turns: Arc<Semaphore>,
}

impl Target {
    /// Writes it, unless a namesake has taken the resource's place.
    async fn put(&self, status: &CudaRunnerStatus) -> Result<(), kube::Error> {
        // The semaphore is never closed.
        let _turn = self.turns.acquire().await;
        // The request is much larger than what waits for its turn.
        Box::pin(self.send(status)).await
    }

    /// Takes fields away that are not ours. Whoever has restored them owns them: no other write of ours would remove one that
    /// ours lacks.
    async fn clear(&self, stray: Vec<String>) -> Result<(), kube::Error> {
        let fields: Map<String, Value> =
            stray.into_iter().map(|name| (name, Value::Null)).collect();
        let api = Api::<CudaRunner>::namespaced(self.client.clone(), &self.key.namespace);
        let patch = Patch::Merge(json!({"metadata": {"uid": self.uid}, "status": fields}));
        let params = PatchParams::default();
        let patched = api.patch_status(&self.key.name, &params, &patch);
        patched.await.map(drop)
    }

    async fn send(&self, status: &CudaRunnerStatus) -> Result<(), kube::Error> {
        let api = Api::<CudaRunner>::namespaced(self.client.clone(), &self.key.namespace);
        // Who serves the pool is written apart: another operator may have taken it meanwhile.
        let mut status = json!(status);
        if let Some(fields) = status.as_object_mut() {
            fields.remove("operator");
        }
        let patch = Patch::Apply(json!({
            "apiVersion": CudaRunner::api_version(&()),
            "kind": CudaRunner::kind(&()),
            "metadata": {"uid": self.uid},
            "status": status,
        }));
        let params = PatchParams::apply(CONTROLLER).force();
        let patched = api.patch_status(&self.key.name, &params, &patch);
        patched.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuda_runner_plan::fixture;
    use kube::client::Body;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::atomic::AtomicUsize;

    const NOW: Timestamp = Timestamp::constant(1_000, 0);

    #[tokio::test]
    async fn a_status_becomes_a_request_when_its_turn_comes() {
        // Given an API server that does not answer, and one turn
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let service = tower::service_fn(move |_: http::Request<Body>| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<http::Response<Body>, Infallible>>()
        });
        let target = Target {
            client: Client::new(service, "default"),
            key: fixture::pool(1).key,
            uid: String::new(),
            turns: Arc::new(Semaphore::new(1)),
        };
        let status = CudaRunnerStatus::default();

        // When two are written
        let mut first = Box::pin(target.put(&status));
        let mut second = Box::pin(target.put(&status));
        let sent = async |write: &mut Pin<Box<_>>| {
            assert!(futures::poll!(write).is_pending());
            tokio::task::yield_now().await;
            asked.load(Ordering::SeqCst)
        };
        assert_eq!(sent(&mut first).await, 1);
        assert_eq!(sent(&mut second).await, 1);

        // Then the second waits for the end of the first
        drop(first);
        assert_eq!(sent(&mut second).await, 2);
    }

    #[test]
    fn an_equal_status_is_not_written() {
        let status = CudaRunnerStatus::default();
        assert_eq!(decide(&status, &status, None, NOW), Write::No);
    }

    #[test]
    fn counts_wait_and_meaning_does_not() {
        let old = CudaRunnerStatus::default();
        let counted = CudaRunnerStatus {
            online: 1,
            ..old.clone()
        };
        let just_now = Some(NOW - SignedDuration::from_secs(1));
        let long_ago = Some(NOW - SignedDuration::from_secs(60));
        assert_eq!(
            decide(&old, &counted, just_now, NOW),
            Write::In(SignedDuration::from_secs(4))
        );
        assert_eq!(decide(&old, &counted, long_ago, NOW), Write::Now);
        assert_eq!(decide(&old, &counted, None, NOW), Write::Now);
        let ended = |seconds: i64| CudaRunnerStatus {
            last_jobs: vec![
                serde_json::from_value(json!({
                    "job": "build", "runner": "pool-aaaaa",
                    "finishedAt": NOW - SignedDuration::from_secs(seconds)
                }))
                .unwrap(),
            ],
            ..old.clone()
        };
        assert_eq!(
            decide(&old, &ended(1), just_now, NOW),
            Write::In(SignedDuration::from_secs(29))
        );
        assert_eq!(
            decide(&old, &ended(90), just_now, NOW),
            Write::In(SignedDuration::from_secs(4))
        );

        let meant = CudaRunnerStatus {
            observed_generation: Some(2),
            ..old.clone()
        };
        assert_eq!(decide(&old, &meant, just_now, NOW), Write::Now);
        let recorded = CudaRunnerStatus {
            required_checks: Some(cudarunner_crds::RequiredChecksStatus::default()),
            ..old.clone()
        };
        assert_eq!(decide(&old, &recorded, just_now, NOW), Write::Now);
    }

    #[test]
    fn what_other_operators_go_by_is_shown_within_two_seconds() {
        // Given a pool in which jobs end one after another, when what it would have changes
        let job = json!({"job": "build", "runner": "pool-aaaaa", "finishedAt": NOW});
        let old = CudaRunnerStatus {
            last_jobs: vec![serde_json::from_value(job).unwrap()],
            ..CudaRunnerStatus::default()
        };
        let new = CudaRunnerStatus {
            demand: Some(cudarunner_crds::DemandStatus::default()),
            ..old.clone()
        };
        assert_eq!(
            decide(&old, &new, Some(NOW), NOW),
            Write::In(SignedDuration::from_secs(2))
        );
        assert!(is_only_shown(&old, &new));
    }

    #[test]
    fn who_is_busy_is_shown_at_once_where_jobs_are_few() {
        let seconds = SignedDuration::from_secs;
        let status = |phase: &str, ended: Option<i64>| CudaRunnerStatus {
            runners: vec![
                serde_json::from_value(json!({"name": "a", "phase": phase, "since": NOW})).unwrap(),
            ],
            last_jobs: ended
                .map(|ago| {
                    let at = NOW - seconds(ago);
                    let job = json!({"job": "build", "runner": "a", "finishedAt": at});
                    serde_json::from_value(job).unwrap()
                })
                .into_iter()
                .collect(),
            ..CudaRunnerStatus::default()
        };
        for (what, old, new, wait) in [
            ("a job begins", ("Idle", None), ("Busy", None), 2),
            ("a job ends", ("Busy", None), ("Finished", Some(0)), 2),
            (
                "a job begins a minute later",
                ("Idle", Some(61)),
                ("Busy", Some(61)),
                2,
            ),
            (
                "another begins soon",
                ("Idle", Some(9)),
                ("Busy", Some(9)),
                30,
            ),
            (
                "another ends soon",
                ("Busy", Some(9)),
                ("Finished", Some(0)),
                30,
            ),
            (
                "the next runner comes up",
                ("Finished", Some(9)),
                ("Idle", Some(9)),
                30,
            ),
            ("a runner comes up", ("Gated", None), ("Idle", None), 5),
        ] {
            let (old, new) = (status(old.0, old.1), status(new.0, new.1));
            let written = NOW - SignedDuration::from_millis(500);
            let wait = seconds(wait) - SignedDuration::from_millis(500);
            assert_eq!(
                decide(&old, &new, Some(written), NOW),
                Write::In(wait),
                "{what}"
            );
            let written = NOW - seconds(30);
            assert_eq!(decide(&old, &new, Some(written), NOW), Write::Now, "{what}");
        }
    }

    #[test]
    fn a_field_must_be_stored_unless_it_is_known_to_be_only_shown() {
        // Given a status with every field
        let mut all = json!({
            "uid": "a", "observedGeneration": 1, "replicas": 1, "pending": 1, "gated": 1, "online": 1, "busy": 1, "failed": 1,
            "queued": 1, "gpu": "a", "selector": "a", "runnersNotListed": 1, "consecutiveFailures": 1, "released": "a",
            "runnerVersion": "a", "runnerVersionEnds": NOW, "registeredAt": "a", "lookedAgain": "a",
            "runners": [{"name": "a", "phase": "Idle", "since": NOW}],
            "lastFailures": [{"runner": "a", "class": "node", "reason": "A", "message": "a", "at": NOW}],
            "lastJobs": [{"job": "a", "runner": "a", "finishedAt": NOW}],
            "quarantine": [{"node": "a", "class": "node", "message": "a", "failures": 1, "since": NOW}],
            "devices": [{"uuid": "a", "jobs": 1, "failed": 0}],
            "staleLabels": [{"node": "a", "label": "a", "value": "a", "found": "b"}],
            "leftAt": [{"url": "a"}],
            "scaleSet": {"id": 1, "name": "a"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "A", "message": "", "lastTransitionTime": NOW}],
        });
        let checks = cudarunner_crds::RequiredChecksStatus::default();
        all["requiredChecks"] = serde_json::to_value(checks).unwrap();
        let read = |status: &Value| -> CudaRunnerStatus {
            serde_json::from_value(status.clone()).unwrap()
        };

        // When one of them changes
        let mut shown = vec![];
        for name in all.as_object().unwrap().keys() {
            let mut other = all.clone();
            other.as_object_mut().unwrap().remove(name);
            let (all, other) = (read(&all), read(&other));
            assert_ne!(other, all, "{name}");
            if is_only_shown(&all, &other) {
                shown.push(name.as_str());
            }
        }

        // Then nothing waits for these alone
        shown.sort_unstable();
        assert_eq!(
            shown,
            [
                "busy",
                "conditions",
                "failed",
                "gated",
                "online",
                "pending",
                "queued",
                "replicas",
                "runners",
                "runnersNotListed"
            ]
        );
    }
}
