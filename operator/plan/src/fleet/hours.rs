//! GPU-hours of the runners that ended, by pool and repository.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Hours, HoursRow};
use crate::hours::RunnerHours;

/// The sums so far.
#[derive(Default)]
pub(super) struct Sums {
    from: Option<Timestamp>,
    runners: u32,
    rows: BTreeMap<(String, Option<String>), HoursRow>,
}

/// Adds a runner's.
pub(super) fn add(sums: &mut Sums, runner: &RunnerHours) {
    let pool = runner.pool_key().to_string();
    let repository = runner.job.as_ref().and_then(|job| job.repository.clone());
    let key = (pool.clone(), repository.clone());
    let row = sums.rows.entry(key).or_insert_with(|| HoursRow {
        pool,
        repository,
        ..HoursRow::default()
    });
    let gpus = u64::from(runner.gpus);
    let add = |sum: &mut u64, seconds: u64| *sum = sum.saturating_add(seconds.saturating_mul(gpus));
    add(&mut row.gate_seconds, runner.seconds.gate);
    add(&mut row.idle_seconds, runner.seconds.idle);
    add(&mut row.job_seconds, runner.seconds.job);
    add(&mut row.lost_seconds, runner.seconds.lost);
    row.runners = row.runners.saturating_add(1);
    sums.runners = sums.runners.saturating_add(1);
    let ended = runner.held_until;
    sums.from = Some(sums.from.map_or(ended, |from| from.min(ended)));
}

impl Sums {
    pub(super) fn finish(self) -> Hours {
        Hours {
            from: self.from,
            runners: self.runners,
            rows: self.rows.into_values().collect(),
        }
    }
}
