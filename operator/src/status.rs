//! The status: written when its meaning changed, never on time alone.

use cudarunner_crds::{CudaRunner, CudaRunnerStatus};
use jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource as _};
use serde_json::json;

use crate::context::{CONTROLLER, Context};
use cuda_runner_plan::model::pool::Pool;
use cuda_runner_plan::model::time::Shift as _;

/// Changes of mere counts are gathered for this long, so that runners that come and go cost a pool one write and not
/// one each.
const GATHER: SignedDuration = SignedDuration::from_secs(5);
/// The same while jobs end one after another: then each runner has its share of the writes and of their cost.
const GATHER_JOBS: SignedDuration = SignedDuration::from_secs(30);
/// For so long after a job's end another one is expected.
const JOBS: SignedDuration = SignedDuration::from_mins(1);

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
        || old.verification != new.verification
        || old.required_checks != new.required_checks
        || old.stale_labels != new.stale_labels
        || old.quarantine != new.quarantine;
    let last_job = new.last_jobs.first().map(|job| job.finished_at.0);
    let gather = if last_job.is_some_and(|end| now < end.after(JOBS)) {
        GATHER_JOBS
    } else {
        GATHER
    };
    let wait = written.map_or(SignedDuration::ZERO, |at| {
        at.after(gather).duration_since(now)
    });
    if meaning_changed || !wait.is_positive() {
        Write::Now
    } else {
        Write::In(wait)
    }
}

/// Writes the status if it is due; otherwise says when it will be.
pub async fn write(
    ctx: &Context,
    pool: &Pool,
    new: CudaRunnerStatus,
    now: Timestamp,
) -> Result<Option<SignedDuration>, kube::Error> {
    let written = ctx.memory.with(pool, |memory| memory.status_written);
    match decide(&pool.status, &new, written, now) {
        Write::No => return Ok(None),
        // What is gathered for longer than a pool lives is told to nobody.
        Write::In(wait) if pool.deleting.is_none() => return Ok(Some(wait)),
        Write::In(_) | Write::Now => {}
    }
    let api = Api::<CudaRunner>::namespaced(ctx.client.clone(), &pool.key.namespace);
    let patch = json!({
        "apiVersion": CudaRunner::api_version(&()),
        "kind": CudaRunner::kind(&()),
        "metadata": {"uid": pool.uid},
        "status": new,
    });
    let params = PatchParams::apply(CONTROLLER).force();
    api.patch_status(&pool.key.name, &params, &Patch::Apply(patch))
        .await?;
    ctx.memory.with(pool, |memory| {
        memory.status = Some(new);
        memory.status_written = Some(now);
    });
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_000, 0);

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
}
